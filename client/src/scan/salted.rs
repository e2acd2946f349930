//! Scans of salted tables: one scan for each prefix, put back in order.
//!
//! Invariants: (1) a row is given out only when every other prefix has shown its next row, or its end;
//! (2) a prefix is asked for more only when all of its rows so far are given out, so what is held is one
//! batch for each prefix; (3) an error comes in its place: all rows before it are out.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use uruk_proto::schema::TableSchema;
use uruk_proto::{RowRange, cell_batch};

use crate::error::{Error, Result};
use crate::row::RowBatch;
use crate::salt::Salt;
use crate::scan::merge::Merge;
use crate::scan::{Order, ScanOptions};
use crate::table::Table;

/// All prefixes of a scan, merged.
pub(super) struct Salted {
    salt: Salt,
    order: Order,
    prefixes: Vec<Prefix>,
    /// The next row of each prefix that has shown one: its key, and which prefix.
    heads: BTreeMap<Bytes, usize>,
    /// Which prefix has the first word when rows come in any order.
    turn: usize,
}

struct Prefix {
    batches: Merge,
    /// With their own keys; the key of the first is among the heads.
    rows: VecDeque<cell_batch::Row>,
    schema: Option<Arc<TableSchema>>,
    ended: bool,
}

impl Salted {
    pub fn new(table: &Table, salt: Salt, range: &RowRange, options: &ScanOptions) -> Salted {
        let ranges = salt.ranges(range);
        let options = ScanOptions {
            // Every prefix is read at the same time as it is.
            parallel: options.parallel.div_ceil(ranges.len()),
            prefetch: 0,
            ..options.clone()
        };
        let prefix = |range| Prefix {
            batches: Merge::new(table.clone(), range, options.clone(), salt),
            rows: VecDeque::new(),
            schema: None,
            ended: false,
        };
        let prefixes = ranges.into_iter().map(prefix).collect();
        Salted { salt, order: options.order, prefixes, heads: BTreeMap::new(), turn: 0 }
    }

    /// Lets a prefix that has shown no row bring some. Ready once it has, or has ended.
    fn bring(&mut self, place: usize, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let prefix = &mut self.prefixes[place];
        while prefix.rows.is_empty() && !prefix.ended {
            match prefix.batches.poll_next_unpin(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => prefix.ended = true,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(Some(Ok(batch))) => {
                    for mut row in batch.rows {
                        row.key = self.salt.key(&row.key)?;
                        prefix.rows.push_back(row);
                    }
                    prefix.schema = Some(batch.schema);
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Rows of whichever prefix has some.
    fn poll_any(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<RowBatch>>> {
        let mut waits = false;
        for step in 0..self.prefixes.len() {
            let place = (self.turn + step) % self.prefixes.len();
            match self.bring(place, cx) {
                Poll::Pending => waits = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(Ok(())) => {
                    let prefix = &mut self.prefixes[place];
                    if let (false, Some(schema)) = (prefix.rows.is_empty(), prefix.schema.clone()) {
                        self.turn = place + 1;
                        let rows = std::mem::take(&mut prefix.rows).into();
                        return Poll::Ready(Some(Ok(RowBatch { rows, schema })));
                    }
                }
            }
        }
        if waits { Poll::Pending } else { Poll::Ready(None) }
    }

    /// Rows in order, until some prefix has to bring more.
    fn poll_ordered(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<RowBatch>>> {
        let mut waits = false;
        for place in 0..self.prefixes.len() {
            // Prefixes without a head are those that brought nothing yet, ran dry, or have ended.
            if !self.prefixes[place].rows.is_empty() || self.prefixes[place].ended {
                continue;
            }
            match self.bring(place, cx) {
                Poll::Pending => waits = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(Ok(())) => {
                    if let Err(error) = self.show(place) {
                        return Poll::Ready(Some(Err(error)));
                    }
                }
            }
        }
        if waits {
            return Poll::Pending;
        }
        let (mut rows, mut schema): (Vec<cell_batch::Row>, Option<Arc<TableSchema>>) = (Vec::new(), None);
        while let Some((_, place)) = self.next_head() {
            let prefix = &mut self.prefixes[place];
            rows.push(prefix.rows.pop_front().expect("a head stands for a row"));
            if schema.as_ref().map(|schema| schema.version) < prefix.schema.as_ref().map(|schema| schema.version) {
                schema.clone_from(&prefix.schema);
            }
            if prefix.rows.is_empty() && !prefix.ended {
                break;
            }
            if let Err(error) = self.show(place) {
                return Poll::Ready(Some(Err(error)));
            }
        }
        Poll::Ready(schema.map(|schema| Ok(RowBatch { rows, schema })))
    }

    fn next_head(&mut self) -> Option<(Bytes, usize)> {
        match self.order {
            Order::Ascending | Order::Any => self.heads.pop_first(),
            Order::Descending => self.heads.pop_last(),
        }
    }

    /// Puts the prefix's next row, if it has one, among the heads.
    fn show(&mut self, place: usize) -> Result<()> {
        let Some(row) = self.prefixes[place].rows.front() else { return Ok(()) };
        match self.heads.insert(row.key.clone(), place) {
            None => Ok(()),
            Some(other) => {
                let key = row.key.escape_ascii();
                Err(Error::bad_response(format!("row \"{key}\" is stored behind prefixes {other} and {place}")))
            }
        }
    }
}

impl Stream for Salted {
    type Item = Result<RowBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<RowBatch>>> {
        match self.order {
            Order::Any => self.poll_any(cx),
            Order::Ascending | Order::Descending => self.poll_ordered(cx),
        }
    }
}
