//! The read path: a stream of packed batches, pulled by the connection.
//!
//! Invariants: (1) the lease is checked when the request starts and before each batch is sent; (2) a
//! scan sees the tablet at one moment after its request began, so it goes on when the tablet is split,
//! merged or moved meanwhile (its files are kept for it, see `pins`), and ends with an error, never
//! early, when it cannot; (3) nothing is read ahead of the client, so a client that goes away stops its scan, and
//! a slow one holds one batch.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::Stream;
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;
use uruk_proto::schema::validate_row_key;
use uruk_proto::tablet::{ReadRequest, ReadResponse};
use uruk_proto::{ErrorCode, RowRange, RpcError, cell_batch};

use super::Server;
use super::tablet::{Tablet, TabletState};
use crate::engine::{Filter, RowScanner, ScanRequest, ScanTargets};

/// A running read.
struct Reading {
    server: Arc<Server>,
    tablet: Arc<Tablet>,
    scanner: RowScanner,
    _slot: OwnedSemaphorePermit,
}

impl Server {
    /// Starts a read.
    pub async fn read(
        self: &Arc<Self>,
        request: ReadRequest,
    ) -> Result<impl Stream<Item = Result<ReadResponse, Status>> + Send + use<>, RpcError> {
        self.incarnation.check_read()?;
        let tablet = self.tablets.find(request.tablet.as_ref())?;
        self.wait_while(&tablet, &[TabletState::Replacing]).await;
        tablet.check_readable()?;
        let full = |_| RpcError::overloaded("too many reads at once", self.config.overload_retry_ms);
        let slot = self.read_slots.clone().try_acquire_owned().map_err(full)?;
        let scan = parse(request, &tablet)?;
        let scanner = tablet.store.snapshot().scan(scan)?;
        let reading = Reading { server: self.clone(), tablet, scanner, _slot: slot };
        Ok(futures::stream::unfold(Some(reading), |reading| async move {
            let mut reading = reading?;
            match reading.next().await {
                Ok(Some(response)) => Some((Ok(response), Some(reading))),
                Ok(None) => None,
                Err(error) => Some((Err(Status::from(error)), None)),
            }
        }))
    }
}

impl Reading {
    async fn next(&mut self) -> Result<Option<ReadResponse>, RpcError> {
        let batch = match self.scanner.next_batch().await {
            Ok(batch) => batch,
            Err(error) => {
                self.server.note_engine_error(&self.tablet, &error);
                return Err(error.into());
            }
        };
        // Before it is sent: while we read, the lease may have lapsed.
        self.server.incarnation.check_read()?;
        let Some(batch) = batch else { return Ok(None) };
        self.tablet.traffic.reads.fetch_add(1, Ordering::Relaxed);
        self.tablet.samples.note_one_of(|chance| one_row(&batch.data, chance));
        self.tablet.traffic.bytes_read.fetch_add(batch.data.len() as u64, Ordering::Relaxed);
        Ok(Some(ReadResponse { batch: batch.data, last_scanned: batch.last_scanned }))
    }
}

/// One row of a batch: all of them stand for where the load of a scan is, and its ends do not.
fn one_row(batch: &Bytes, chance: f64) -> Option<Bytes> {
    let rows = cell_batch::unpack(batch.clone()).ok()?;
    let at = (chance * rows.len() as f64) as usize;
    rows.get(at.min(rows.len().saturating_sub(1))).map(|piece| Bytes::copy_from_slice(&piece.row.key))
}

fn parse(request: ReadRequest, tablet: &Tablet) -> Result<ScanRequest, RpcError> {
    let invalid = |message: &str| RpcError::new(ErrorCode::InvalidArgument, message);
    let targets = if request.rows.is_empty() {
        ScanTargets::Ranges(parse_ranges(request.ranges, tablet)?)
    } else if request.ranges.is_empty() {
        ScanTargets::Rows(parse_rows(request.rows, tablet)?)
    } else {
        return Err(invalid("either rows or ranges, not both"));
    };
    Ok(ScanRequest {
        targets,
        filter: Filter::try_from(&request.filter.unwrap_or_default())?,
        rows_limit: request.rows_limit,
        reverse: request.reverse,
        fill_cache: !request.no_cache_fill,
    })
}

fn parse_rows(rows: Vec<Bytes>, tablet: &Tablet) -> Result<Vec<Bytes>, RpcError> {
    for row in &rows {
        validate_row_key(row)?;
        if !tablet.range.contains(row) {
            let message = format!("row \"{}\" is not in {}", row.escape_ascii(), tablet.id);
            return Err(RpcError::new(ErrorCode::StaleLocation, message));
        }
    }
    if !rows.is_sorted_by(|a, b| a < b) {
        return Err(RpcError::new(ErrorCode::InvalidArgument, "rows are not in order, each once"));
    }
    Ok(rows)
}

/// What of the ranges lies in the tablet.
fn parse_ranges(ranges: Vec<uruk_proto::tablet::RowRange>, tablet: &Tablet) -> Result<Vec<RowRange>, RpcError> {
    if ranges.is_empty() {
        return Ok(vec![tablet.range.clone()]);
    }
    let ranges: Vec<RowRange> =
        ranges.into_iter().map(|range| RowRange { start: range.start, end: range.end }).collect();
    let in_order = |a: &RowRange, b: &RowRange| !a.end.is_empty() && a.end <= b.start;
    if !ranges.is_sorted_by(in_order) {
        return Err(RpcError::new(ErrorCode::InvalidArgument, "ranges are not in order and apart"));
    }
    Ok(ranges.iter().map(|range| range.intersect(&tablet.range)).filter(|range| !range.is_empty()).collect())
}
