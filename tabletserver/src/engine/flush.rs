//! Memtables to files.
//!
//! A flush writes one file per locality group whose frozen memtable is not empty. It drops what other
//! entries of the same memtable hide: views that still see the hidden entries hold the memtable itself.

use std::sync::Arc;

use uruk_proto::master::LocalityGroupFiles;
use uruk_proto::schema::TableSchema;
use uruk_proto::{RowRange, SeqNo};

use super::context::EngineContext;
use super::error::EngineError;
use super::memtable::Memtable;
use super::merge::Merge;
use super::progress::Progress;
use super::rewrite::{Output, Purge, rewrite};
use super::sstable::cursor::ReadOptions;
use super::sstable::skip::Wanted;

/// What a flush wrote. It counts for nothing until the master has committed it.
#[derive(Clone, PartialEq, Debug)]
pub struct FlushResult {
    /// The new files; possibly none.
    pub groups: Vec<LocalityGroupFiles>,
    /// Everything up to here is in files now.
    pub flushed_seq: SeqNo,
}

/// Writes the memtables of all groups. `path` gives a unique path for the file of a group.
pub(crate) async fn flush(
    context: &EngineContext,
    schema: &TableSchema,
    range: &RowRange,
    memtables: &[(u32, Arc<Memtable>)],
    flushed_seq: SeqNo,
    progress: &Arc<Progress>,
    path: &mut (dyn FnMut(u32) -> String + Send),
) -> Result<FlushResult, EngineError> {
    let options = ReadOptions {
        fill_cache: false,
        cache_fill_bytes_max: u64::MAX,
        readahead_bytes_min: 0,
        readahead_bytes_max: 0,
        wanted: Wanted::ALL,
    };
    let mut groups = Vec::new();
    for (group, memtable) in memtables.iter().filter(|(_, memtable)| !memtable.is_empty()) {
        let merge = Merge::new([memtable], [], options);
        let output = Output {
            range,
            level: 0,
            group: *group,
            // What a family left here when it moved goes with the next major compaction.
            moved: Vec::new(),
            is_major: false,
            file_bytes_max: u64::MAX,
            progress,
            path: &mut *path,
        };
        groups.extend(rewrite(context, schema, merge, Purge::Hidden, output).await?);
    }
    Ok(FlushResult { groups, flushed_seq })
}
