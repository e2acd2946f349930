//! soon
use uruk_base::Metrics;
/// Blocks of all tablets.
#[derive(Debug)]
pub struct BlockCache {}
impl BlockCache {
    /// A cache that weighs at most `bytes_max`.
    pub fn new(_bytes_max: u64, _metrics: &Metrics) -> BlockCache {
        BlockCache {}
    }
    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        0
    }
    /// Blocks found so far.
    pub fn hits(&self) -> u64 {
        0
    }
    /// Blocks not found so far.
    pub fn misses(&self) -> u64 {
        0
    }
}
