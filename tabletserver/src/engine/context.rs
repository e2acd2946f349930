//! What all tablets of a server share: the object store, the block cache, the open files, the limits.

use std::fmt;
use std::sync::Arc;

use object_store::ObjectStore;
use uruk_base::Env;

use super::cache::BlockCache;
use super::config::{ConfigError, EngineConfig};
use super::rate::CompactionRate;
use super::sstable::FileTable;
use super::sstable::pins::{IndexPins, Resident};

/// Shared by all tablets of one server.
pub struct EngineContext {
    pub(crate) env: Env,
    pub(crate) config: EngineConfig,
    pub(crate) cache: Arc<BlockCache>,
    pub(crate) files: FileTable,
    pub(crate) compaction_rate: CompactionRate,
}

impl EngineContext {
    /// Checks the limits and makes the block cache.
    pub fn new(env: Env, store: Arc<dyn ObjectStore>, config: EngineConfig) -> Result<Arc<EngineContext>, ConfigError> {
        config.validate()?;
        let cache = Arc::new(BlockCache::new(config.block_cache_bytes, &env.metrics));
        let pins = Arc::new(IndexPins::new(config.index_pinned_bytes_max, &env.metrics));
        let resident = Arc::new(Resident::new(config.in_memory_bytes_max, &env.metrics));
        let files = FileTable::new(store, cache.clone(), pins, resident);
        let compaction_rate = CompactionRate::new(config.compaction_bytes_per_second_max);
        Ok(Arc::new(EngineContext { env, config, cache, files, compaction_rate }))
    }

    /// How fast compactions may write at present, in bytes a second; 0: no limit.
    pub fn compaction_bytes_per_second(&self) -> u64 {
        self.compaction_rate.bytes_per_second()
    }

    /// Bytes of index partitions and filters that are pinned.
    pub fn index_pinned_bytes(&self) -> u64 {
        self.files.pinned_bytes()
    }

    /// Bytes of blocks of in-memory locality groups.
    pub fn in_memory_bytes(&self) -> u64 {
        self.files.resident_bytes()
    }

    /// The blocks of all tablets.
    pub fn cache(&self) -> &BlockCache {
        &self.cache
    }
}

impl fmt::Debug for EngineContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineContext")
    }
}
