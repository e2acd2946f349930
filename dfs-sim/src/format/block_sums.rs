//! CRC-32 of each 64 KiB of a chunk or segment, built up as the bytes arrive.

use super::CHECKSUM_BLOCK_BYTES;

const BLOCK: usize = CHECKSUM_BLOCK_BYTES as usize;

/// Checksums of a growing run of bytes. The last block may be short.
#[derive(Clone, Debug)]
pub struct BlockSums {
    full: Vec<u32>,
    tail: crc32fast::Hasher,
    tail_bytes: usize,
}

impl BlockSums {
    /// Of no bytes.
    pub fn new() -> BlockSums {
        BlockSums { full: Vec::new(), tail: crc32fast::Hasher::new(), tail_bytes: 0 }
    }

    /// Of `bytes`.
    pub fn of(bytes: &[u8]) -> BlockSums {
        let mut sums = BlockSums::new();
        sums.update(bytes);
        sums
    }

    /// Adds bytes at the end.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(bytes.len().min(BLOCK - self.tail_bytes));
            self.tail.update(piece);
            self.tail_bytes += piece.len();
            if self.tail_bytes == BLOCK {
                self.full.push(std::mem::take(&mut self.tail).finalize());
                self.tail_bytes = 0;
            }
            bytes = rest;
        }
    }

    /// How many bytes are covered.
    pub fn bytes(&self) -> u64 {
        (self.full.len() * BLOCK + self.tail_bytes) as u64
    }

    /// One checksum for each block, the short last one included.
    pub fn blocks(&self) -> Vec<u32> {
        let mut blocks = self.full.clone();
        if self.tail_bytes > 0 {
            blocks.push(self.tail.clone().finalize());
        }
        blocks
    }

    /// CRC-32 of all the bytes.
    pub fn total(&self) -> u32 {
        let mut total = crc32fast::Hasher::new();
        for crc in &self.full {
            total.combine(&crc32fast::Hasher::new_with_initial_len(*crc, CHECKSUM_BLOCK_BYTES));
        }
        total.combine(&self.tail);
        total.finalize()
    }
}

impl Default for BlockSums {
    fn default() -> BlockSums {
        BlockSums::new()
    }
}

/// Number of blocks that `bytes` take.
pub fn block_count(bytes: u64) -> u64 {
    bytes.div_ceil(CHECKSUM_BLOCK_BYTES)
}

/// Checks whole blocks (the last one of all may be short), which start with block `first`.
/// `Err` names the first bad block.
pub fn verify(blocks: &[u32], first: u64, bytes: &[u8]) -> Result<(), u64> {
    for (number, block) in (first..).zip(bytes.chunks(BLOCK)) {
        if blocks.get(number as usize) != Some(&crc32fast::hash(block)) {
            return Err(number);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn pieces_do_not_matter(pieces in prop::collection::vec(0usize..100_000, 0..8)) {
            let bytes = pattern(pieces.iter().sum());
            let mut sums = BlockSums::new();
            let mut at = 0;
            for piece in pieces {
                sums.update(&bytes[at..at + piece]);
                at += piece;
            }
            prop_assert_eq!(sums.bytes(), bytes.len() as u64);
            prop_assert_eq!(sums.total(), crc32fast::hash(&bytes));
            prop_assert_eq!(sums.blocks().len() as u64, block_count(bytes.len() as u64));
            prop_assert_eq!(verify(&sums.blocks(), 0, &bytes), Ok(()));
        }
    }

    #[test]
    fn names_the_bad_block() {
        let mut bytes = pattern(3 * BLOCK + 5);
        let blocks = BlockSums::of(&bytes).blocks();
        bytes[2 * BLOCK + 1] ^= 1;
        assert_eq!(verify(&blocks, 0, &bytes), Err(2));
        assert_eq!(verify(&blocks, 3, &bytes[3 * BLOCK..]), Ok(()));
        assert_eq!(verify(&blocks, 1, &bytes[BLOCK..]), Err(2));
        assert_eq!(verify(&blocks, 4, b"beyond"), Err(4));
    }
}
