//! A contiguous part of a scan, read from one tablet after another (usually one).
//!
//! Invariants: (1) `rest` is exactly what has not been given out: it shrinks only past rows that were
//! given out whole, past rows that the server says it has looked at, and past tablets read to their
//! end; (2) a row of which only a part has come is given out later or thrown away, never in part;
//! (3) rows come in strict key order, else the scan fails: a server's mistake must not look like data.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::Stream;
use tonic::Streaming;
use uruk_proto::RowRange;
use uruk_proto::cell_batch::{self, RowPiece, unpack};
use uruk_proto::tablet::{ReadRequest, ReadResponse, RowRange as RangeMessage, TabletRef};

use crate::error::{Error, Result};
use crate::locate::Wanted;
use crate::location::Location;
use crate::retry::{Attempts, Effect, Failure, Origin};
use crate::row::RowBatch;
use crate::salt::Salt;
use crate::scan::merge::{beyond, key_before};
use crate::scan::{Order, ScanOptions};
use crate::server::ScanClient;
use crate::table::{Resolved, Table};

/// One piece of a scan.
pub(super) struct Piece {
    table: Table,
    options: Arc<ScanOptions>,
    /// What its range was made for.
    salt: Salt,
    /// What is left to read.
    progress: Progress,
    open: Option<Open>,
    attempts: Option<Attempts>,
    wanted: Wanted,
    ended: bool,
}

/// An answer that is being read.
struct Open {
    responses: Streaming<ReadResponse>,
    location: Arc<Location>,
    resolved: Arc<Resolved>,
    client: ScanClient,
}

impl Piece {
    pub fn new(table: Table, range: RowRange, options: Arc<ScanOptions>, salt: Salt) -> Piece {
        let progress = Progress {
            rest: Some(range),
            rows_left: if options.limit == 0 { u64::MAX } else { options.limit },
            partial: None,
            descending: options.order == Order::Descending,
        };
        Piece { table, options, salt, progress, open: None, attempts: None, wanted: Wanted::default(), ended: false }
    }

    /// The batches; ends after an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<RowBatch>> + Send {
        futures::stream::unfold(self, |mut piece| async move {
            if piece.ended {
                return None;
            }
            match piece.next().await {
                Ok(Some(batch)) => Some((Ok(batch), piece)),
                Ok(None) => None,
                Err(error) => {
                    piece.ended = true;
                    Some((Err(error), piece))
                }
            }
        })
    }

    async fn next(&mut self) -> Result<Option<RowBatch>> {
        while let Some(rest) = self.progress.rest.clone().filter(|_| self.progress.rows_left > 0) {
            let now = self.table.now();
            self.attempts().idle(now);
            let mut open = match self.open.take() {
                Some(open) => open,
                None => match self.open(&rest).await? {
                    Some(open) => open,
                    None => continue,
                },
            };
            let near = self.progress.near_key();
            let left = self.left();
            let message = open.responses.message();
            match self.table.answer(&open.resolved, &open.location, &near, self.table.deadlines(left, 0), message).await
            {
                Ok(Some(response)) => {
                    let now = self.table.now();
                    let rows = self.progress.take(response)?;
                    self.attempts().progressed(now);
                    let schema = self.table.naming(open.resolved.schema.clone(), &rows).await?;
                    self.open = Some(open);
                    if !rows.is_empty() {
                        return Ok(Some(RowBatch { rows, schema }));
                    }
                }
                Ok(None) => {
                    self.progress.tablet_ended(&open.location.range)?;
                    let now = self.table.now();
                    self.attempts().progressed(now);
                    self.wanted = Wanted::default();
                }
                Err(failure) => {
                    if failure.origin == Origin::Silent {
                        open.client.reconnect();
                    }
                    self.failed(&open.resolved, Some(open.location.clone()), failure).await?;
                }
            }
        }
        Ok(None)
    }

    /// Sends the request for what is left in the tablet at the near end of `rest`. None: it failed,
    /// and is to be tried again.
    async fn open(&mut self, rest: &RowRange) -> Result<Option<Open>> {
        let near = self.progress.near_key();
        let resolved = self.table.resolved();
        let attempts = self.attempts().clone();
        let location = match self.table.served(&resolved, &near, self.wanted, &attempts).await {
            Ok(location) => location,
            Err(failure) => {
                self.failed(&resolved, None, failure?).await?;
                return Ok(None);
            }
        };
        let server = location.server.as_ref().expect("the tablet is served");
        let client = server.scan_client();
        let request = self.request(&resolved, &location, rest).map_err(|error| attempts.ends_with(error))?;
        let mut rpc = (*client).clone();
        let left = attempts.left(self.table.now());
        let answer =
            self.table.answer(&resolved, &location, &near, self.table.deadlines(left, 0), rpc.read(request)).await;
        match answer {
            Ok(answer) => Ok(Some(Open { responses: answer.into_inner(), location, resolved, client })),
            Err(failure) => {
                if failure.origin == Origin::Silent {
                    client.reconnect();
                }
                self.failed(&resolved, Some(location), failure).await?;
                Ok(None)
            }
        }
    }

    fn request(&self, resolved: &Resolved, location: &Location, rest: &RowRange) -> Result<ReadRequest> {
        self.salt.check(&resolved.schema)?;
        let here = location.range.intersect(rest);
        let limit = self.progress.rows_left;
        Ok(ReadRequest {
            tablet: Some(TabletRef { tablet_id: location.tablet.0, schema_version: resolved.schema.version }),
            ranges: vec![RangeMessage { start: here.start, end: here.end }],
            rows: Vec::new(),
            filter: Some(self.options.filter.to_message(&resolved.schema)?),
            rows_limit: if limit == u64::MAX { 0 } else { limit },
            reverse: self.progress.descending,
            no_cache_fill: !self.options.fill_cache,
        })
    }

    async fn failed(&mut self, resolved: &Resolved, location: Option<Arc<Location>>, failure: Failure) -> Result<()> {
        // What came of a row that has not ended is thrown away: the next attempt brings it whole.
        self.progress.partial = None;
        let now = self.table.now();
        let mut attempts = self.attempts().clone();
        attempts.idle(now);
        let wanted = self.table.after(resolved, location.as_deref(), failure, &mut attempts).await;
        self.attempts = Some(attempts);
        self.wanted = wanted?;
        Ok(())
    }

    fn left(&mut self) -> Duration {
        let now = self.table.now();
        self.attempts().left(now)
    }

    fn attempts(&mut self) -> &mut Attempts {
        let table = &self.table;
        self.attempts.get_or_insert_with(|| table.attempts(Effect::Read))
    }
}

/// What has been read, and what is left. Pure.
#[derive(Debug)]
struct Progress {
    /// None: all is read.
    rest: Option<RowRange>,
    rows_left: u64,
    partial: Option<cell_batch::Row>,
    descending: bool,
}

impl Progress {
    /// The key where reading goes on; it finds the tablet.
    fn near_key(&self) -> Bytes {
        match &self.rest {
            None => Bytes::new(),
            Some(rest) if self.descending => key_before(&rest.end),
            Some(rest) => rest.start.clone(),
        }
    }

    /// Takes in a response; returns the rows that it completes.
    fn take(&mut self, response: ReadResponse) -> Result<Vec<cell_batch::Row>> {
        let pieces = unpack(response.batch).map_err(|error| Error::bad_response(error.to_string()))?;
        let mut rows = Vec::with_capacity(pieces.len());
        let (mut floor, mut last): (Option<Bytes>, Option<Bytes>) = (None, None);
        for piece in pieces {
            let key = piece.row.key.clone();
            self.check_order(&key, floor.as_ref(), &piece)?;
            if let Some(row) = self.join(piece)? {
                last = Some(row.key.clone());
                rows.push(row);
            }
            floor = Some(key);
        }
        self.rows_left = self.rows_left.saturating_sub(rows.len() as u64);
        if let Some(last) = last {
            self.go_past(&last);
        }
        // A row that goes on has not been looked at, whatever the server says.
        if !response.last_scanned.is_empty() && self.partial.is_none() && self.is_in_rest(&response.last_scanned) {
            self.go_past(&response.last_scanned);
        }
        Ok(rows)
    }

    fn check_order(&self, key: &Bytes, before: Option<&Bytes>, piece: &RowPiece) -> Result<()> {
        let in_order = match before {
            _ if piece.goes_on_from_before => true,
            None => true,
            Some(before) if self.descending => key < before,
            Some(before) => key > before,
        };
        if in_order && !key.is_empty() && self.is_in_rest(key) {
            return Ok(());
        }
        Err(Error::bad_response(format!(
            "row \"{}\" comes out of order in the scan of {:?}",
            key.escape_ascii(),
            self.rest
        )))
    }

    fn is_in_rest(&self, key: &[u8]) -> bool {
        self.rest.as_ref().is_some_and(|rest| rest.contains(key))
    }

    /// Adds a piece to its row; returns the row once it is whole.
    fn join(&mut self, piece: RowPiece) -> Result<Option<cell_batch::Row>> {
        let row = match (self.partial.take(), piece.goes_on_from_before) {
            (None, false) => piece.row,
            (Some(mut partial), true) if partial.key == piece.row.key => {
                partial.cells.extend(piece.row.cells);
                partial
            }
            (partial, _) => {
                return Err(Error::bad_response(format!(
                    "a piece of row \"{}\" follows a piece of {:?}",
                    piece.row.key.escape_ascii(),
                    partial.map(|row| row.key)
                )));
            }
        };
        if piece.goes_on_in_next {
            self.partial = Some(row);
            return Ok(None);
        }
        Ok(Some(row))
    }

    /// Everything up to and with `key` is done.
    fn go_past(&mut self, key: &Bytes) {
        let Some(rest) = &mut self.rest else { return };
        if self.descending {
            rest.end = key.clone();
        } else {
            let mut next = BytesMut::with_capacity(key.len() + 1);
            next.put_slice(key);
            next.put_u8(0);
            rest.start = next.freeze();
        }
        if rest.is_empty() {
            self.rest = None;
        }
    }

    /// The server has sent all that it has of `rest` in `tablet`.
    fn tablet_ended(&mut self, tablet: &RowRange) -> Result<()> {
        if let Some(partial) = self.partial.take() {
            let key = partial.key.escape_ascii();
            return Err(Error::bad_response(format!("the scan ends in the middle of row \"{key}\"")));
        }
        self.rest = self.rest.as_ref().and_then(|rest| beyond(rest, tablet, self.descending));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
