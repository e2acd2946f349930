//! soon
use super::cache::BlockCache;
use object_store::ObjectStore;
use std::sync::Arc;
/// soon
#[derive(Debug)]
pub struct FileTable {}
impl FileTable {
    /// soon
    pub fn new(_store: Arc<dyn ObjectStore>, _cache: Arc<BlockCache>) -> FileTable {
        FileTable {}
    }
}
