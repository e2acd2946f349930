//! One tablet's data: memtables per locality group, and files.

use std::sync::Arc;

use uruk_proto::master::{LocalityGroupFiles, MetaRow};
use uruk_proto::mutation::Mutation;
use uruk_proto::schema::TableSchema;
use uruk_proto::{RowRange, SeqNo, TabletId};

use super::compaction::{Compaction, CompactionResult};
use super::context::EngineContext;
use super::error::EngineError;
use super::flush::FlushResult;
use super::scan::ReadView;

/// The memtables of all locality groups, frozen at one published sequence number.
#[derive(Clone, Debug)]
pub struct FreezeToken {
    upto: SeqNo,
}

impl FreezeToken {
    /// Everything up to here is in the frozen memtables or in files.
    pub fn upto(&self) -> SeqNo {
        self.upto
    }
}

/// One tablet's data.
#[derive(Debug)]
pub struct TabletStore {}

impl TabletStore {
    /// Opens a tablet from its meta row. Reads no file. Nothing is published beyond `flushed_seq`;
    /// the caller applies what the logs hold beyond it, then publishes that.
    pub fn open(
        _context: &Arc<EngineContext>,
        _schema: Arc<TableSchema>,
        _row: &MetaRow,
    ) -> Result<TabletStore, EngineError> {
        Ok(TabletStore {})
    }
    /// Which tablet.
    pub fn tablet_id(&self) -> TabletId {
        TabletId(0)
    }
    /// Its rows.
    pub fn range(&self) -> &RowRange {
        unimplemented!()
    }
    /// The schema in use.
    pub fn schema(&self) -> Arc<TableSchema> {
        unimplemented!()
    }
    /// A new version of the schema; older ones are ignored.
    pub fn set_schema(&self, _schema: Arc<TableSchema>) {}
    /// Puts the mutations of one row into the memtables; mutation i has number `first + i`.
    /// Timestamps are resolved, the row key is valid and in range, the mutations are durable.
    /// Not visible before it is published. Applying the same again (replay) changes nothing.
    /// Mutations of families that the schema doesn't name are left out.
    ///
    /// # Panics
    /// When a number is not above all frozen ones.
    pub fn apply(&self, _first: SeqNo, _row: &[u8], _mutations: &[Mutation]) {}
    /// Makes everything up to `upto` visible: all of it has been applied.
    pub fn publish(&self, _upto: SeqNo) {}
    /// Writes up to here are visible to new views.
    pub fn published(&self) -> SeqNo {
        SeqNo::ZERO
    }
    /// Everything up to here is in committed files.
    pub fn flushed_seq(&self) -> SeqNo {
        SeqNo::ZERO
    }
    /// The tablet as published now.
    pub fn snapshot(&self) -> ReadView {
        unimplemented!()
    }
    /// Freezes the memtables of all groups: they hold everything up to `upto` that is not in files, and
    /// nothing above. None when they are empty, or when too many frozen sets wait already.
    ///
    /// # Panics
    /// When something above `upto` was applied, or `upto` is not published.
    pub fn freeze(&self, _upto: SeqNo) -> Option<FreezeToken> {
        None
    }
    /// Frozen sets that are not committed as flushed yet, oldest first: flush them in this order.
    pub fn frozen(&self) -> Vec<FreezeToken> {
        Vec::new()
    }
    /// Writes the frozen memtables to files. `path` gives a unique path for each (argument: locality
    /// group). On an error nothing has changed; the same token may be flushed again, to other paths.
    pub async fn flush(
        &self,
        token: &FreezeToken,
        _path: &mut (dyn FnMut(u32) -> String + Send),
    ) -> Result<FlushResult, EngineError> {
        Ok(FlushResult { groups: Vec::new(), flushed_seq: token.upto })
    }
    /// Takes over the committed row: its files, in place of the old ones and of the frozen memtables up
    /// to its `flushed_seq`. Rows must come in the order of their commits (one commit in flight per
    /// tablet); a row that is flushed less far is ignored.
    pub fn install(&self, _row: &MetaRow) -> Result<(), EngineError> {
        Ok(())
    }
    /// The compaction that is due, if any. At most one per locality group runs at a time (the caller's
    /// business).
    pub fn pick_compaction(&self) -> Option<Compaction> {
        None
    }
    /// A compaction of all files of the group, if that makes sense.
    pub fn pick_major(&self, _locality_group: u32) -> Option<Compaction> {
        None
    }
    /// Runs a compaction. Dropping the future cancels it.
    pub async fn compact(&self, _compaction: &Compaction, _path: String) -> Result<CompactionResult, EngineError> {
        unimplemented!()
    }
    /// Bytes of the memtables, frozen ones included.
    pub fn memtable_bytes(&self) -> u64 {
        0
    }
    /// Bytes of the memtables that a freeze would freeze.
    pub fn active_bytes(&self) -> u64 {
        0
    }
    /// The files, newest first in each group.
    pub fn files(&self) -> Vec<LocalityGroupFiles> {
        Vec::new()
    }
    /// Paths of files that are named no more but still read by living views.
    pub fn pinned_files(&self) -> Vec<String> {
        Vec::new()
    }
}
