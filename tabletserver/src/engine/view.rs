//! A tablet at one moment, and what can be asked of it.

use std::sync::Arc;

use bytes::Bytes;
use uruk_proto::cell_batch::{self, Row};
use uruk_proto::{RowRange, SeqNo, tablet};

use super::context::EngineContext;
use super::error::EngineError;
use super::filter::Filter;
use super::scan::RowScanner;
use super::sstable::FileHandle;
use super::store::Version;

/// Which rows to read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ScanTargets {
    /// Ranges, ascending and disjoint.
    Ranges(Vec<RowRange>),
    /// Single rows, ascending, no duplicates.
    Rows(Vec<Bytes>),
}

impl ScanTargets {
    fn validate(&self) -> Result<(), EngineError> {
        let ascend = match self {
            ScanTargets::Ranges(ranges) => {
                ranges.windows(2).all(|pair| !pair[0].end.is_empty() && pair[0].end <= pair[1].start)
            }
            ScanTargets::Rows(rows) => rows.windows(2).all(|pair| pair[0] < pair[1]),
        };
        match ascend {
            true => Ok(()),
            false => Err(EngineError::InvalidArgument("rows to read are not ascending and disjoint".to_owned())),
        }
    }
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

impl TryFrom<&tablet::ReadRequest> for ScanRequest {
    type Error = EngineError;

    fn try_from(message: &tablet::ReadRequest) -> Result<ScanRequest, EngineError> {
        let targets = match (&message.rows[..], &message.ranges[..]) {
            ([], []) => ScanTargets::Ranges(vec![RowRange::ALL]),
            ([], ranges) => {
                let range = |range: &tablet::RowRange| RowRange::new(range.start.clone(), range.end.clone());
                ScanTargets::Ranges(ranges.iter().map(range).collect())
            }
            (rows, []) => ScanTargets::Rows(rows.to_vec()),
            (_, _) => {
                return Err(EngineError::InvalidArgument("row ranges and row keys in one request".to_owned()));
            }
        };
        targets.validate()?;
        Ok(ScanRequest {
            targets,
            filter: message.filter.as_ref().map(Filter::try_from).transpose()?.unwrap_or_default(),
            rows_limit: message.rows_limit,
            reverse: message.reverse,
            fill_cache: !message.no_cache_fill,
        })
    }
}

/// A tablet at one moment. Pins memtables and files for as long as it lives.
#[derive(Clone, Debug)]
pub struct ReadView {
    pub(super) context: Arc<EngineContext>,
    pub(super) version: Arc<Version>,
    pub(super) range: RowRange,
    pub(super) seq: SeqNo,
}

impl ReadView {
    pub(super) fn new(context: Arc<EngineContext>, version: Arc<Version>, range: RowRange, seq: SeqNo) -> ReadView {
        ReadView { context, version, range, seq }
    }

    /// The same without the tablet's bounds, for who has checked them.
    pub(super) fn unbounded(&self) -> ReadView {
        ReadView { range: RowRange::ALL, ..self.clone() }
    }

    /// Writes up to here are seen.
    pub fn seq(&self) -> SeqNo {
        self.seq
    }

    /// Starts a scan. Rows outside of the tablet do not exist.
    pub fn scan(&self, request: ScanRequest) -> Result<RowScanner, EngineError> {
        request.targets.validate()?;
        Ok(RowScanner::start(self, request))
    }

    /// One row; without cells when there is none.
    pub async fn get(&self, row: &[u8], filter: &Filter) -> Result<Row, EngineError> {
        let key = Bytes::copy_from_slice(row);
        let mut scanner = self.scan(ScanRequest {
            targets: ScanTargets::Rows(vec![key.clone()]),
            filter: filter.clone(),
            rows_limit: 0,
            reverse: false,
            fill_cache: true,
        })?;
        let mut row = Row { key, cells: Vec::new() };
        while let Some(batch) = scanner.next_batch().await? {
            let pieces = cell_batch::unpack(batch.data).expect("the scanner packed it");
            row.cells.extend(pieces.into_iter().flat_map(|piece| piece.row.cells));
        }
        Ok(row)
    }

    /// The files that this view pins.
    pub fn files(&self) -> impl Iterator<Item = &Arc<FileHandle>> {
        self.version.all_files()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(ranges: &[(&'static str, &'static str)], rows: &[&'static str]) -> tablet::ReadRequest {
        let range = |(start, end): &(&'static str, &'static str)| tablet::RowRange {
            start: Bytes::from_static(start.as_bytes()),
            end: Bytes::from_static(end.as_bytes()),
        };
        tablet::ReadRequest {
            ranges: ranges.iter().map(range).collect(),
            rows: rows.iter().map(|row| Bytes::from_static(row.as_bytes())).collect(),
            ..tablet::ReadRequest::default()
        }
    }

    #[test]
    fn a_request_without_rows_means_all() {
        let parsed = ScanRequest::try_from(&request(&[], &[])).unwrap();
        assert_eq!(parsed.targets, ScanTargets::Ranges(vec![RowRange::ALL]));
        assert_eq!(parsed.filter, Filter::all());
        assert!(parsed.fill_cache && !parsed.reverse && parsed.rows_limit == 0);
    }

    #[test]
    fn rows_out_of_order_are_refused() {
        for (ranges, rows) in [
            (&[("a", "c"), ("b", "d")][..], &[][..]),
            (&[("a", ""), ("b", "d")], &[]),
            (&[("c", "d"), ("a", "b")], &[]),
            (&[], &["b", "a"]),
            (&[], &["a", "a"]),
            (&[("a", "b")], &["c"]),
        ] {
            let error = ScanRequest::try_from(&request(ranges, rows)).unwrap_err();
            assert!(matches!(error, EngineError::InvalidArgument(_)), "{ranges:?} {rows:?}: {error}");
        }
        assert!(ScanRequest::try_from(&request(&[("a", "b"), ("b", "")], &[])).is_ok());
        assert!(ScanRequest::try_from(&request(&[], &["a", "b"])).is_ok());
    }
}
