//! Collects row writes into batches per tablet, and keeps many of them in flight.
//!
//! A tablet's rows are sent when a full batch has come together, or when they have waited for the
//! linger time and no request of the tablet is in flight: batches grow with the load by themselves.
//!
//! Invariants: (1) rows that wait or are in flight hold at most `writer_bytes_max` bytes: beyond it,
//! adding waits; (2) writes of one row are performed in the order in which they were added: the
//! second is not sent before the first has ended; (3) every added row ends exactly once, also when the
//! process shuts down; (4) `flush` returns only after all rows that were added before it have ended.
//!
//! Lock order: `state` is never held over an await, nor while results are told.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use uruk_base::Moment;
use uruk_proto::TabletId;
use uruk_proto::schema::TableSchema;

use crate::error::{Error, Outcome, Result};
use crate::locate::Wanted;
use crate::mutation::RowMutation;
use crate::table::Table;
use crate::write::Entry;

/// Failed rows that are kept until the next flush; beyond it they are only counted.
const FAILURES_MAX: usize = 100_000;
/// What a row costs beside its bytes.
const ROW_OVERHEAD_BYTES: usize = 128;

/// A buffered writer for one table.
///
/// Dropping it sends what is left, but then nobody learns how that ends: [`BatchWriter::flush`] first.
pub struct BatchWriter {
    shared: Arc<Shared>,
}

struct Shared {
    table: Table,
    bytes_max: usize,
    bytes: Arc<Semaphore>,
    calls: Semaphore,
    state: Mutex<State>,
    ended: Notify,
}

struct State {
    schema: Arc<TableSchema>,
    /// By tablet, as known when the row came; 0 while that is not known.
    buffers: BTreeMap<TabletId, Buffer>,
    /// Rows with a write in a buffer or in flight, and the writes that wait for it to end.
    busy: HashMap<Bytes, VecDeque<(TabletId, Waiting)>>,
    /// Flushes so far; rows carry the number they were added under.
    flushes: u64,
    /// Rows not ended, by that number.
    open: BTreeMap<u64, usize>,
    failures: Vec<RowFailure>,
    failed: u64,
    lingering: bool,
}

#[derive(Default)]
struct Buffer {
    rows: Vec<Waiting>,
    bytes: usize,
    since: Moment,
    calls: usize,
}

struct Waiting {
    entry: Entry,
    flushes: u64,
    receipt: Option<oneshot::Sender<Result<()>>>,
    _bytes: OwnedSemaphorePermit,
}

/// A row that could not be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RowFailure {
    /// The row key.
    pub key: Bytes,
    /// Why; its outcome says whether the row is certainly unchanged.
    pub error: Error,
}

/// Rows of a batch writer failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{failed} rows could not be written; the first: {}", self.first())]
pub struct BatchError {
    /// How many since the last flush.
    pub failed: u64,
    /// Which: all of them, or the first 100,000.
    pub failures: Vec<RowFailure>,
}

impl BatchError {
    fn first(&self) -> String {
        let first = self.failures.first();
        first.map_or_else(String::new, |row| format!("\"{}\": {}", row.key.escape_ascii(), row.error))
    }
}

/// Completes when its row has been written, or could not be.
#[derive(Debug)]
pub struct Receipt(oneshot::Receiver<Result<()>>);

impl Future for Receipt {
    type Output = Result<()>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let lost = Err(Error::ShutDown { outcome: Outcome::Unknown });
        self.0.poll_unpin(cx).map(|result| result.unwrap_or(lost))
    }
}

impl Table {
    /// A buffered writer for many rows.
    pub fn batch_writer(&self) -> BatchWriter {
        let config = &self.core.config;
        let state = State {
            schema: self.schema(),
            buffers: BTreeMap::new(),
            busy: HashMap::new(),
            flushes: 0,
            open: BTreeMap::new(),
            failures: Vec::new(),
            failed: 0,
            lingering: false,
        };
        let shared = Shared {
            table: self.clone(),
            bytes_max: config.writer_bytes_max,
            bytes: Arc::new(Semaphore::new(config.writer_bytes_max)),
            calls: Semaphore::new(config.writer_calls_max),
            state: Mutex::new(state),
            ended: Notify::new(),
        };
        BatchWriter { shared: Arc::new(shared) }
    }
}

impl BatchWriter {
    /// Adds a row's changes. Waits while too much is waiting or in flight. How the write ends is told
    /// by the next [`BatchWriter::flush`].
    ///
    /// # Errors
    /// A row that breaks a rule or names an unknown family; nothing was added then.
    pub async fn add(&self, row: RowMutation) -> Result<()> {
        self.shared.add(row, None).await
    }

    /// Adds a row's changes; the receipt tells how the write ends, and `flush` does not.
    ///
    /// # Errors
    /// As [`BatchWriter::add`].
    pub async fn add_with_receipt(&self, row: RowMutation) -> Result<Receipt> {
        let (sender, receiver) = oneshot::channel();
        self.shared.add(row, Some(sender)).await?;
        Ok(Receipt(receiver))
    }

    /// Sends what waits, and returns once all rows added before have ended.
    ///
    /// # Errors
    /// The rows (without receipts) that failed since the last flush.
    pub async fn flush(&self) -> Result<(), BatchError> {
        let flush = {
            let mut state = self.shared.state.lock();
            state.flushes += 1;
            state.flushes
        };
        self.shared.send_all();
        loop {
            let ended = self.shared.ended.notified();
            {
                let mut state = self.shared.state.lock();
                if state.open.range(..flush).next().is_none() {
                    let failures = std::mem::take(&mut state.failures);
                    let failed = std::mem::take(&mut state.failed);
                    return if failed == 0 { Ok(()) } else { Err(BatchError { failed, failures }) };
                }
            }
            ended.await;
        }
    }

    /// Bytes that wait or are in flight.
    pub fn bytes_held(&self) -> usize {
        self.shared.bytes_max - self.shared.bytes.available_permits()
    }
}

impl Drop for BatchWriter {
    fn drop(&mut self) {
        self.shared.send_all();
    }
}

impl fmt::Debug for BatchWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BatchWriter({:?}, {} bytes held)", self.shared.table, self.bytes_held())
    }
}

impl Shared {
    async fn add(self: &Arc<Shared>, row: RowMutation, receipt: Option<oneshot::Sender<Result<()>>>) -> Result<()> {
        let schema = self.state.lock().schema.clone();
        let (entry, schema) = self.table.pack_row(&schema, row).await?;
        // A single row beyond the limit is let in alone.
        let bytes = (entry.bytes() + ROW_OVERHEAD_BYTES).min(self.bytes_max) as u32;
        let permit = match self.bytes.clone().try_acquire_many_owned(bytes) {
            Ok(permit) => permit,
            Err(_) => {
                // What waits must be on its way before we wait for it to end.
                self.send_all();
                self.bytes.clone().acquire_many_owned(bytes).await.expect("the semaphore is never closed")
            }
        };
        let tablet = self.tablet_of(&entry.row).await;
        let mut state = self.state.lock();
        if schema.version > state.schema.version {
            state.schema = schema;
        }
        let flushes = state.flushes;
        *state.open.entry(flushes).or_default() += 1;
        let waiting = Waiting { entry, flushes, receipt, _bytes: permit };
        if let Some(queue) = state.busy.get_mut(&waiting.entry.key) {
            queue.push_back((tablet, waiting));
            return Ok(());
        }
        state.busy.insert(waiting.entry.key.clone(), VecDeque::new());
        self.buffer(&mut state, tablet, waiting);
        Ok(())
    }

    async fn tablet_of(&self, row: &[u8]) -> TabletId {
        let resolved = self.table.resolved();
        if let Some(location) = resolved.locations.known(row) {
            return location.tablet;
        }
        let within = self.table.core.config.call_deadline();
        match resolved.locations.find(&self.table.core, row, Wanted::default(), within).await {
            Ok(location) => location.tablet,
            // The write will find out itself.
            Err(_) => TabletId(0),
        }
    }

    /// Puts a row into its tablet's buffer, and sends that if it is full.
    fn buffer(self: &Arc<Shared>, state: &mut State, tablet: TabletId, row: Waiting) {
        let config = &self.table.core.config;
        let buffer = state.buffers.entry(tablet).or_default();
        if buffer.rows.is_empty() {
            buffer.since = self.table.now();
        }
        buffer.bytes += row.entry.bytes();
        buffer.rows.push(row);
        if buffer.rows.len() >= config.batch_rows_max || buffer.bytes >= config.batch_bytes_max {
            self.send(state, tablet);
        } else if !state.lingering {
            state.lingering = true;
            let shared = self.clone();
            self.table.core.env.tasks.spawn("client batch writer", async move { shared.linger().await });
        }
    }

    /// Sends rows that have waited long enough, until none waits.
    async fn linger(self: Arc<Shared>) {
        let clock = &self.table.core.env.clock;
        let linger = self.linger_time();
        loop {
            clock.sleep(linger).await;
            let now = clock.now();
            let mut state = self.state.lock();
            let due: Vec<TabletId> = state
                .buffers
                .iter()
                .filter(|(_, buffer)| buffer.calls == 0 && now.saturating_since(buffer.since) >= linger)
                .map(|(tablet, _)| *tablet)
                .collect();
            for tablet in due {
                self.send(&mut state, tablet);
            }
            if state.buffers.values().all(|buffer| buffer.rows.is_empty()) {
                state.lingering = false;
                return;
            }
        }
    }

    fn linger_time(&self) -> Duration {
        Duration::from_millis(self.table.core.config.writer_linger_ms)
    }

    fn send_all(self: &Arc<Shared>) {
        let mut state = self.state.lock();
        let tablets: Vec<TabletId> = state.buffers.keys().copied().collect();
        for tablet in tablets {
            self.send(&mut state, tablet);
        }
    }

    /// Sends a tablet's buffer.
    fn send(self: &Arc<Shared>, state: &mut State, tablet: TabletId) {
        let Some(buffer) = state.buffers.get_mut(&tablet).filter(|buffer| !buffer.rows.is_empty()) else { return };
        buffer.bytes = 0;
        buffer.calls += 1;
        let mut rows = std::mem::take(&mut buffer.rows);
        rows.sort_by(|a, b| a.entry.row.cmp(&b.entry.row));
        let entries = rows.iter().map(|row| row.entry.clone()).collect::<Vec<Entry>>();
        let schema = state.schema.clone();
        let mut batch = InFlight { shared: self.clone(), tablet, rows };
        self.table.core.env.tasks.spawn("client batch", async move {
            let shared = batch.shared.clone();
            let _permit = shared.calls.acquire().await.expect("the semaphore is never closed");
            let results = shared.table.write_sorted(&entries, &schema).await;
            drop(entries);
            batch.end(results);
        });
    }

    /// Rows of one request have ended.
    fn end(self: &Arc<Shared>, tablet: TabletId, rows: Vec<Waiting>, results: Vec<Result<()>>) {
        let mut told = Vec::new();
        let mut state = self.state.lock();
        for (row, result) in rows.into_iter().zip(results) {
            self.end_row(&mut state, row, result, &mut told);
        }
        let now = self.table.now();
        let buffer = state.buffers.get_mut(&tablet).expect("a buffer stays while its calls are in flight");
        buffer.calls -= 1;
        let is_due = now.saturating_since(buffer.since) >= self.linger_time();
        match (buffer.calls, buffer.rows.is_empty()) {
            (0, true) => drop(state.buffers.remove(&tablet)),
            (0, false) if is_due => self.send(&mut state, tablet),
            _ => {}
        }
        drop(state);
        self.ended.notify_waiters();
        for (receipt, result) in told {
            // Nobody may be waiting for it any more.
            let _ = receipt.send(result);
        }
    }

    fn end_row(
        self: &Arc<Shared>,
        state: &mut State,
        row: Waiting,
        result: Result<()>,
        told: &mut Vec<(oneshot::Sender<Result<()>>, Result<()>)>,
    ) {
        let Waiting { entry: Entry { key, .. }, flushes, receipt, _bytes } = row;
        let count = state.open.get_mut(&flushes).expect("the row was counted when it was added");
        *count -= 1;
        if *count == 0 {
            state.open.remove(&flushes);
        }
        match state.busy.get_mut(&key).and_then(VecDeque::pop_front) {
            Some((tablet, next)) => self.buffer(state, tablet, next),
            None => drop(state.busy.remove(&key)),
        }
        match (receipt, result) {
            (Some(receipt), result) => told.push((receipt, result)),
            (None, Ok(())) => {}
            (None, Err(error)) => {
                state.failed += 1;
                if state.failures.len() < FAILURES_MAX {
                    state.failures.push(RowFailure { key, error });
                }
            }
        }
    }
}

/// Rows on their way. However its task ends, they end.
struct InFlight {
    shared: Arc<Shared>,
    tablet: TabletId,
    rows: Vec<Waiting>,
}

impl InFlight {
    fn end(&mut self, results: Vec<Result<()>>) {
        let rows = std::mem::take(&mut self.rows);
        self.shared.end(self.tablet, rows, results);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.rows.is_empty() {
            let cut_off = Err(Error::ShutDown { outcome: Outcome::Unknown });
            self.end(vec![cut_off; self.rows.len()]);
        }
    }
}
