//! The block cache: unpacked blocks of all tablets' files, weighted, loaded once however many wait.
//!
//! Blocks never change, so the cache is only ever right or empty. Hashing and sharding are fixed, not
//! seeded or derived from the machine: a simulated run must replay.

use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};
use uruk_base::Metrics;
use uruk_base::metrics::Counter;

use super::error::EngineError;
use super::sstable::Block;
use super::sstable::bloom::Bloom;

/// Which block: the file's number in this process, its offset there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BlockId {
    /// Number of the open file; never used again.
    pub file: u64,
    /// Offset of the block.
    pub offset: u64,
}

/// What a block is when it is unpacked.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Entries.
    Block(Block),
    /// The filter of an index partition.
    Filter(Arc<Bloom>),
}

impl Piece {
    /// Bytes in memory.
    pub fn len(&self) -> usize {
        match self {
            Piece::Block(block) => block.len(),
            Piece::Filter(filter) => filter.len(),
        }
    }

    /// Whether it has no bytes; never so.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How readily a block makes room for others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Priority {
    /// Data: what is read once goes first.
    Low,
    /// Index and filters, of which a byte serves reads of many blocks: it starts as if it had been read often.
    High,
}

/// Blocks of all tablets.
pub struct BlockCache {
    blocks: Cache<BlockId, Piece, PieceWeight, FixedState>,
    hits: Counter,
    misses: Counter,
}

const SHARDS: usize = 16;
/// The cache remembers no more references of an entry: one takes it among the hot ones when its turn to go comes, the
/// other keeps it there for a round.
const HIGH_REFERENCES: usize = 2;
/// What an entry costs besides its block.
const ENTRY_OVERHEAD_BYTES: u64 = 128;
const TYPICAL_BLOCK_BYTES: u64 = 16 << 10;

impl BlockCache {
    /// A cache that weighs at most `bytes_max`.
    pub fn new(bytes_max: u64, metrics: &Metrics) -> BlockCache {
        let options = OptionsBuilder::new()
            .shards(SHARDS)
            .estimated_items_capacity((bytes_max / TYPICAL_BLOCK_BYTES).max(1) as usize)
            .weight_capacity(bytes_max)
            .build()
            .expect("shards, items and weight are given");
        BlockCache {
            blocks: Cache::with_options(options, PieceWeight, FixedState, DefaultLifecycle::default()),
            hits: metrics.register(
                "uruk_tabletserver_block_cache_hits",
                "Blocks found in the cache.",
                Counter::default(),
            ),
            misses: metrics.register(
                "uruk_tabletserver_block_cache_misses",
                "Blocks read from storage.",
                Counter::default(),
            ),
        }
    }

    /// The block, if it is here.
    #[inline]
    pub fn get(&self, id: BlockId) -> Option<Piece> {
        let block = self.blocks.get(&id)?;
        self.hits.inc();
        Some(block)
    }

    /// The block, loaded by `load` if it is not here; one caller loads, the others wait for it.
    pub async fn get_or_load(
        &self,
        id: BlockId,
        priority: Priority,
        load: impl Future<Output = Result<Piece, EngineError>>,
    ) -> Result<Piece, EngineError> {
        let load = async {
            self.misses.inc();
            load.await
        };
        let piece = self.blocks.get_or_insert_async(&id, load).await?;
        if priority == Priority::High {
            // Each counts as a reference.
            (0..HIGH_REFERENCES).for_each(|_| drop(self.blocks.get(&id)));
        }
        Ok(piece)
    }

    /// Adds a block that was read ahead.
    pub fn insert(&self, id: BlockId, block: Block) {
        self.blocks.insert(id, Piece::Block(block));
    }

    /// Counts a block that was read around the cache.
    pub fn count_miss(&self) {
        self.misses.inc();
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.blocks.weight()
    }

    /// Blocks found so far.
    pub fn hits(&self) -> u64 {
        self.hits.get()
    }

    /// Blocks not found so far.
    pub fn misses(&self) -> u64 {
        self.misses.get()
    }
}

impl std::fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockCache").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct PieceWeight;

impl Weighter<BlockId, Piece> for PieceWeight {
    fn weight(&self, _: &BlockId, piece: &Piece) -> u64 {
        piece.len() as u64 + ENTRY_OVERHEAD_BYTES
    }
}

/// Two multiplications: ids are two small numbers, chosen by nobody outside.
#[derive(Clone)]
struct FixedState;

struct FixedHasher(u64);

impl BuildHasher for FixedState {
    type Hasher = FixedHasher;
    fn build_hasher(&self) -> FixedHasher {
        FixedHasher(0)
    }
}

impl Hasher for FixedHasher {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }
    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

#[cfg(test)]
mod tests {
    use super::super::sstable::block::BlockBuilder;
    use super::*;

    fn block(len: usize) -> Block {
        let mut builder = BlockBuilder::new(1);
        builder.add(b"k", &vec![0; len]);
        Block::parse(builder.finish().to_vec().into()).unwrap()
    }

    #[tokio::test]
    async fn waiting_readers_share_one_load() {
        let cache = BlockCache::new(1 << 20, &Metrics::new());
        let id = BlockId { file: 1, offset: 2 };
        let load = || async {
            tokio::task::yield_now().await;
            Ok(Piece::Block(block(10)))
        };
        let (a, b) =
            tokio::join!(cache.get_or_load(id, Priority::Low, load()), cache.get_or_load(id, Priority::Low, load()));
        assert_eq!(a.unwrap().len(), b.unwrap().len());
        assert_eq!(cache.misses(), 1);
        assert!(cache.get(id).is_some());
        assert_eq!(cache.hits(), 1);
    }

    #[tokio::test]
    async fn a_failed_load_is_tried_again() {
        let cache = BlockCache::new(1 << 20, &Metrics::new());
        let id = BlockId { file: 1, offset: 2 };
        let error = EngineError::MissingFile { file: "f".into() };
        let failed = cache.get_or_load(id, Priority::High, async { Err(error.clone()) }).await;
        assert_eq!(failed.map(|_| ()), Err(error));
        assert!(cache.get_or_load(id, Priority::High, async { Ok(Piece::Block(block(1))) }).await.is_ok());
    }

    #[tokio::test]
    async fn what_has_high_priority_outlives_a_scan() {
        let cache = BlockCache::new(1 << 20, &Metrics::new());
        let id = |offset| BlockId { file: 1, offset };
        // Until it is full everything is welcome.
        (1_000..1_500).for_each(|offset| cache.insert(id(offset), block(4 << 10)));
        for offset in 0..10 {
            let priority = if offset < 5 { Priority::High } else { Priority::Low };
            cache.get_or_load(id(offset), priority, async { Ok(Piece::Block(block(4 << 10))) }).await.unwrap();
        }
        (100..600).for_each(|offset| cache.insert(id(offset), block(4 << 10)));
        let kept = |offset: &u64| cache.get(id(*offset)).is_some();
        assert_eq!((0..10).filter(kept).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn weight_stays_within_its_limit() {
        let cache = BlockCache::new(1 << 20, &Metrics::new());
        for offset in 0..1000 {
            cache.insert(BlockId { file: 1, offset }, block(16 << 10));
        }
        assert!(cache.bytes() <= 1 << 20);
        assert!(cache.bytes() > 1 << 18);
    }
}
