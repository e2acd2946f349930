//! Scans: rows in key order over any number of tablets.
//!
//! A scan is cut into one piece per tablet. The pieces are opened ahead of the reader (servers push
//! up to a flow-control window each), and each piece looks after itself: it resumes after the last
//! complete row, wherever its rows live by then ([`piece`]). [`merge`] puts the pieces in order. In a salted
//! table that is done for each prefix, and [`salted`] puts the rows of all prefixes in order.
//!
//! No task runs for a scan: dropping the stream ends it, on the servers as well.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use uruk_proto::RowRange;
use uruk_proto::cell_batch;
use uruk_proto::schema::TableSchema;

use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::row::{Row, RowBatch};
use crate::scan::merge::Merge;
use crate::scan::salted::Salted;
use crate::table::Table;

mod merge;
mod piece;
mod salted;

/// Most pieces of one scan that are open at once.
const OPEN_PIECES_MAX: usize = 64;

/// In which order rows come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Order {
    /// By key, ascending.
    #[default]
    Ascending,
    /// By key, descending.
    Descending,
    /// Those of one tablet by key, ascending, and those of several mixed as they come: the fastest.
    Any,
}

/// How to scan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanOptions {
    /// Which cells. Rows without any that it lets through are left out.
    pub filter: Filter,
    /// Stop after this many rows; 0 for all.
    pub limit: u64,
    /// In which order rows come.
    pub order: Order,
    /// Tablets that are read from at the same time.
    pub parallel: usize,
    /// Tablets beyond those that are opened ahead. A scan with a limit opens none ahead.
    pub prefetch: usize,
    /// Let servers keep what is read in their block caches; off by default, since a large scan
    /// would push out what others use.
    pub fill_cache: bool,
}

impl Default for ScanOptions {
    fn default() -> ScanOptions {
        ScanOptions {
            filter: Filter::all(),
            limit: 0,
            order: Order::Ascending,
            parallel: 1,
            prefetch: 1,
            fill_cache: false,
        }
    }
}

impl ScanOptions {
    fn open_pieces(&self) -> usize {
        let ahead = if self.limit == 0 { self.prefetch } else { 0 };
        self.parallel.max(1).saturating_add(ahead).min(OPEN_PIECES_MAX)
    }
}

impl Table {
    /// The rows of `range`: each that existed throughout the scan exactly once, each as it was at one
    /// moment. Tablets that move, split or fail over meanwhile only cost time.
    ///
    /// After an error the stream ends. The configured call deadline bounds how long it may make no
    /// progress.
    pub fn scan(&self, range: RowRange, options: ScanOptions) -> RowStream {
        RowStream { batches: self.scan_batches(range, options), current: Vec::new().into_iter(), schema: None }
    }

    /// The same rows batch by batch as they arrive, with families by id: whole rows only.
    pub fn scan_batches(&self, range: RowRange, options: ScanOptions) -> BatchStream {
        let left = if options.limit == 0 { u64::MAX } else { options.limit };
        let salt = self.salt();
        let batches = match salt.is_none() {
            true => Merge::new(self.clone(), range, options, salt).boxed(),
            false => Salted::new(self, salt, &range, &options).boxed(),
        };
        BatchStream { batches, left }
    }
}

/// Rows of a scan.
pub struct RowStream {
    batches: BatchStream,
    current: std::vec::IntoIter<cell_batch::Row>,
    schema: Option<Arc<TableSchema>>,
}

impl Stream for RowStream {
    type Item = Result<Row>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Row>>> {
        let this = &mut *self;
        loop {
            if let (Some(row), Some(schema)) = (this.current.next(), &this.schema) {
                return Poll::Ready(Some(Ok(Row::new(row, schema.clone()))));
            }
            match ready!(this.batches.poll_next_unpin(cx)) {
                Some(Ok(batch)) => {
                    this.current = batch.rows.into_iter();
                    this.schema = Some(batch.schema);
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

/// Batches of a scan's rows.
pub struct BatchStream {
    batches: BoxStream<'static, Result<RowBatch, Error>>,
    /// Rows left of the limit; 0 also after an error or the end.
    left: u64,
}

impl Stream for BatchStream {
    type Item = Result<RowBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<RowBatch>>> {
        if self.left == 0 {
            self.batches = futures::stream::empty().boxed();
            return Poll::Ready(None);
        }
        let mut item = ready!(self.batches.poll_next_unpin(cx));
        match &mut item {
            Some(Ok(batch)) => {
                batch.rows.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= batch.rows.len() as u64;
            }
            Some(Err(_)) | None => self.left = 0,
        }
        Poll::Ready(item)
    }
}
