//! Rows as packed batches of cells.

use bytes::Bytes;
use uruk_proto::cell_batch::Row;
use uruk_proto::{RowRange, SeqNo};

use super::error::EngineError;
use super::filter::Filter;

/// Which rows to read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ScanTargets {
    /// Ranges, ascending and disjoint.
    Ranges(Vec<RowRange>),
    /// Single rows, ascending, no duplicates.
    Rows(Vec<Bytes>),
}

/// What to read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanRequest {
    /// Which rows.
    pub targets: ScanTargets,
    /// Which of their cells.
    pub filter: Filter,
    /// Most rows with at least one cell; 0 for no limit.
    pub rows_limit: u64,
    /// Last row first.
    pub reverse: bool,
    /// Whether to keep what is read in the block cache.
    pub fill_cache: bool,
}

/// Packed rows, and how far the scan got.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanBatch {
    /// `uruk_proto::cell_batch`; may be empty when nothing matched for a long while.
    pub data: Bytes,
    /// Everything up to and including this row has been looked at; empty: nothing complete yet.
    pub last_scanned: Bytes,
}

/// A tablet at one moment. Pins memtables and files for as long as it lives.
#[derive(Clone, Debug)]
pub struct ReadView {
    seq: SeqNo,
}

impl ReadView {
    /// Writes up to here are seen.
    pub fn seq(&self) -> SeqNo {
        self.seq
    }
    /// Starts a scan.
    pub fn scan(&self, _request: ScanRequest) -> Result<RowScanner, EngineError> {
        Ok(RowScanner {})
    }
    /// One row; without cells when there is none.
    pub async fn get(&self, row: &[u8], _filter: &Filter) -> Result<Row, EngineError> {
        Ok(Row { key: Bytes::copy_from_slice(row), cells: Vec::new() })
    }
}

/// A running scan.
#[derive(Debug)]
pub struct RowScanner {}

impl RowScanner {
    /// The next batch; None at the end. After an error the scan is over.
    pub async fn next_batch(&mut self) -> Result<Option<ScanBatch>, EngineError> {
        Ok(None)
    }
}
