//! Opening tablets: meta row, memory file, recovered log slices; then the master's word.
//!
//! Invariants: (1) a tablet is served only after the master has answered that this server owns it: to the report
//! that it is opened, or to the command of a split or merge that made it, which is reported behind its back;
//! a report never takes away what is served; (2) every slice that the order names is read, or the tablet is reported as failed: nothing is
//! skipped "anyway"; (3) what cannot be read now is tried again for a while, then reported, so that the
//! master can give the tablet to another server; what is damaged is reported; (4) a report names all
//! recovery files that cannot be read: each one found alone would cost a read timeout of its own; (5) an
//! order that is over (its tablet closed, or assigned anew) is worked on no more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore};
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use uruk_base::planted::{Planted, is_planted};
use uruk_proto::master::{MetaRow, OpenTablet, RecoveredSegment, TabletFailedRequest, TabletKey, TabletsOpenedRequest};
use uruk_proto::mutation;
use uruk_proto::schema::TableSchema;
use uruk_proto::{Epoch, SeqNo, TableId, TabletId};

use super::Server;
use super::close::CloseKind;
use super::memory::Memory;
use super::record::{RawRecord, Record};
use super::recovery_file::{FOOTER_BYTES, SliceRef, parse_footer, parse_index, parse_slice};
use super::replay::{self, Pieces};
use super::tablet::{Tablet, TabletState, apply_rows};
use super::tablets::Presence;
use crate::engine::TabletStore;

/// Read from a recovery file's end at first: footer and, nearly always, the whole index.
const TAIL_BYTES: u64 = 64 << 10;
/// Slices of one tablet that are read at the same time: nearly always all, so that all which are lost are
/// found in one read timeout.
const SLICES_IN_FLIGHT_MAX: usize = 16;
/// Pause before what could not be read is tried again.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// What cannot be read for this long is reported, and its tablet not opened. A recovery file then counts as
/// lost: its few copies may be gone for good, while the log that it was sorted from is still there.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a tablet is not open.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    /// Storage does not answer; to be tried again.
    #[error("cannot read {0} now: {1}")]
    Unavailable(String, object_store::Error),
    /// All recovery files that cannot be read; they can be made anew from the log.
    #[error("{}", .0.iter().map(Unread::to_string).collect::<Vec<_>>().join("; "))]
    RecoveryFiles(Vec<Unread>),
    /// Something that cannot be made anew.
    #[error("{0}")]
    Damaged(String),
    /// The tablet was closed, or assigned anew.
    #[error("the order is over")]
    OrderOver,
}

/// A recovery file that cannot be read.
#[derive(Clone, Debug, thiserror::Error)]
#[error("recovery file {path}: {why}")]
struct Unread {
    path: String,
    why: String,
    /// Missing or damaged; else storage does not answer, and may do so later.
    is_lost: bool,
}

/// The indexes of recovery files, read once for all tablets of an order. One that cannot be read is so
/// for all tablets that wait for it, and read again by the next one that asks.
#[derive(Debug, Default)]
struct RecoveryFiles(Mutex<BTreeMap<String, Arc<IndexCell>>>);

type Index = BTreeMap<TabletId, SliceRef>;
type IndexCell = OnceCell<Result<Index, Unread>>;

impl Server {
    /// Takes an order; the work goes on in the background.
    pub fn order_open(self: &Arc<Self>, tablets: Vec<OpenTablet>) {
        if self.stop.is_asked() {
            // Released at once, or flushed first if we made it and serve it; in silence nobody would serve it until we end.
            let rows = tablets.into_iter().filter_map(|order| order.row);
            let keys = rows.map(|row| TabletKey { tablet_id: row.tablet_id, epoch: row.epoch }).collect();
            return self.order_close(keys, CloseKind::Flush);
        }
        // Its report may be lost for good: the order says that the master still waits for one.
        tablets.iter().filter_map(|order| order.row.as_ref()).for_each(|row| self.report_again(row));
        let files = Arc::new(RecoveryFiles::default());
        let fresh: Vec<OpenTablet> = tablets
            .into_iter()
            .filter(|order| {
                let row = order.row.as_ref();
                row.is_some_and(|row| self.tablets.start_opening(TabletId(row.tablet_id), Epoch(row.epoch)))
            })
            .collect();
        if fresh.is_empty() {
            return;
        }
        let server = self.clone();
        self.tasks.spawn("open tablets", async move {
            let opens = fresh.into_iter().map(|order| open_and_report(server.clone(), files.clone(), order));
            futures::stream::iter(opens).buffer_unordered(server.config.opens_max).collect::<()>().await;
        });
    }
}

async fn open_and_report(server: Arc<Server>, files: Arc<RecoveryFiles>, order: OpenTablet) {
    let Some(row) = order.row.clone() else { return };
    let (id, epoch) = (TabletId(row.tablet_id), Epoch(row.epoch));
    let started = server.env.clock.now();
    let mut failing_since = None;
    let result = loop {
        let slot = server.open_slots.acquire().await.expect("never closed");
        if !server.tablets.is_opening_at(id, epoch) {
            break Err(OpenError::OrderOver);
        }
        let result = open(&server, &files, &order, row.clone()).await;
        // Others may open while this one waits.
        drop(slot);
        let now = server.env.clock.now();
        let is_patient = now.saturating_since(*failing_since.get_or_insert(now)) < PATIENCE;
        match result {
            // It has to be opened again anyway: those that do not answer go with those that are lost.
            Err(OpenError::RecoveryFiles(files)) if files.iter().any(|file| file.is_lost) => {
                break Err(OpenError::RecoveryFiles(files));
            }
            Err(error @ (OpenError::Unavailable(..) | OpenError::RecoveryFiles(_))) if is_patient => {
                tracing::warn!(tablet = %id, %error, "cannot open the tablet yet");
                server.env.clock.sleep(RETRY_DELAY).await;
            }
            result => break result,
        }
    };
    match result {
        Ok(tablet) => {
            let (took_us, published) = (server.env.clock.since(started).as_micros() as u64, tablet.store.published());
            tracing::info!(tablet = %id, %epoch, %published, took_us, "tablet is loaded");
            let tablet = Arc::new(tablet);
            if server.tablets.finish_opening(tablet.clone()) {
                server.schemas.apply(&tablet);
                if is_planted(Planted::ServesBeforeOpened) {
                    tablet.transition(&[TabletState::Loaded], TabletState::Open);
                }
                server.opened.lock().push(tablet);
                server.wake_opened.notify_one();
            }
        }
        Err(error @ OpenError::OrderOver) => tracing::info!(tablet = %id, %epoch, %error, "tablet is not opened"),
        Err(error) => {
            tracing::error!(tablet = %id, %epoch, %error, "tablet cannot be opened");
            server.tablets.abort_opening(id, epoch);
            let lost_recovery_files = match &error {
                OpenError::RecoveryFiles(files) => files.iter().map(|file| file.path.clone()).collect(),
                OpenError::Unavailable(..) | OpenError::Damaged(_) | OpenError::OrderOver => vec![],
            };
            let key = TabletKey { tablet_id: row.tablet_id, epoch: row.epoch };
            report_failure(&server, key, error.to_string(), lost_recovery_files).await;
        }
    }
}

/// Tells the master what is wrong with a tablet, for people to see.
pub async fn report_failure(server: &Server, key: TabletKey, reason: String, lost_recovery_files: Vec<String>) {
    let request = TabletFailedRequest {
        server_id: server.incarnation.server_id.0,
        tablet: Some(key),
        reason,
        lost_recovery_files,
    };
    let call = |mut master: super::masters::Client| {
        let request = request.clone();
        async move { master.tablet_failed(request).await }
    };
    if let Err(error) = server.masters.call("tablet failed", call).await.result {
        tracing::warn!(tablet = key.tablet_id, %error, "the master does not take the report of a failed tablet");
    }
}

async fn open(server: &Server, files: &RecoveryFiles, order: &OpenTablet, row: MetaRow) -> Result<Tablet, OpenError> {
    let damaged = |error: &dyn std::fmt::Display| OpenError::Damaged(error.to_string());
    let schema = order.schema.as_ref().ok_or_else(|| damaged(&"the order has no schema"))?;
    let schema = Arc::new(TableSchema::try_from(schema).map_err(|error| damaged(&error))?);
    if schema.id != TableId(row.table_id) {
        return Err(damaged(&"the order's schema is another table's"));
    }
    // The order may be older than what the server was told since.
    let schema = server.schemas.learn(schema);
    let store = TabletStore::open(&server.engine, schema, &row).map_err(|error| damaged(&error))?;
    let store = Arc::new(store);
    let (memory, slices) = tokio::join!(read_memory(server, &row), read_slices(server, files, order, &row));
    let (records, memory) = (slices?, memory?);
    let records = replay::merge(records, SeqNo(row.flushed_seq)).map_err(|error| damaged(&error))?;
    let last = records.last().map_or(SeqNo(row.flushed_seq), |record| record.last);
    if last.epoch() >= Epoch(row.epoch) {
        return Err(damaged(&format!("{last} was written before epoch {}", row.epoch)));
    }
    let (memory, last) = if records.is_empty() {
        (memory, last)
    } else {
        // Processor work: more at a time would only make the first tablets wait for the last.
        let _slot = server.replay_slots.acquire().await.expect("never closed");
        if !server.tablets.is_opening_at(TabletId(row.tablet_id), Epoch(row.epoch)) {
            return Err(OpenError::OrderOver);
        }
        let store = store.clone();
        server.env.tasks.blocking(move || apply(&store, memory, records, last)).await?
    };
    store.publish(last);
    let own_log = server.incarnation.log_id().0;
    let foreign_logs = row.needed_logs.iter().copied().filter(|log| *log != own_log).collect();
    Ok(Tablet::new(store, &row, memory, foreign_logs, server.env.random.u64()))
}

/// Applies the records, of which `last` is the last number; tells up to which number all is applied.
fn apply(
    store: &TabletStore,
    mut memory: Memory,
    mut records: Vec<RawRecord>,
    mut last: SeqNo,
) -> Result<(Memory, SeqNo), OpenError> {
    let damaged = |error: uruk_proto::DecodeError| OpenError::Damaged(format!("recovered log: {error}"));
    let mut pieces = Pieces::default();
    let fresh = records.len();
    if is_planted(Planted::ReplayedTwice) {
        // As if an earlier attempt to open the tablet had got half way.
        records.extend_from_within(..fresh.div_ceil(2));
    }
    for (i, raw) in records.into_iter().enumerate() {
        let record = Record::parse(raw.body).map_err(damaged)?;
        let Some(mut record) = pieces.join(record).map_err(OpenError::Damaged)? else { continue };
        if i >= fresh {
            (record.first, record.last) = (SeqNo(last.0 + 1), SeqNo(last.0 + 1 + record.last.0 - record.first.0));
            last = record.last;
        }
        let rows = record.rows.iter().map(|row| mutation::unpack(row.mutations.clone()));
        let mutations = rows.collect::<Result<Vec<_>, _>>().map_err(damaged)?;
        let count: usize = mutations.iter().map(Vec::len).sum();
        if record.first.0 + count.max(1) as u64 != record.last.0 + 1 {
            return Err(OpenError::Damaged(format!("recovered log: record at {} miscounts", record.first)));
        }
        memory.replay(&record);
        apply_rows(store, &record, mutations);
    }
    Ok((memory, last))
}

async fn read_memory(server: &Server, row: &MetaRow) -> Result<Memory, OpenError> {
    let retention = server.config.retention();
    if row.memory_file.is_empty() {
        return Ok(Memory::new(retention));
    }
    let damaged = |what: String| OpenError::Damaged(format!("memory file {}: {what}", row.memory_file));
    let file = match read(server.storage.objects.as_ref(), &row.memory_file, None).await {
        Ok(file) => file,
        Err(ReadError::Missing) => return Err(damaged("is missing".into())),
        Err(ReadError::Unavailable(error)) => return Err(OpenError::Unavailable(row.memory_file.clone(), error)),
    };
    let (memory, upto) = Memory::decode(&file, retention).map_err(|error| damaged(error.to_string()))?;
    if upto > SeqNo(row.flushed_seq) {
        return Err(damaged(format!("is of {upto}, the row of {}", SeqNo(row.flushed_seq))));
    }
    Ok(memory)
}

async fn read_slices(
    server: &Server,
    files: &RecoveryFiles,
    order: &OpenTablet,
    row: &MetaRow,
) -> Result<Vec<RawRecord>, OpenError> {
    let tablet = TabletId(row.tablet_id);
    let named = order.recovered.iter().filter(|segment| !segment.path.is_empty());
    let reads: Vec<_> = named.map(|segment| read_slice(server, files, segment, tablet)).collect();
    let mut slices = futures::stream::iter(reads).buffered(SLICES_IN_FLIGHT_MAX);
    let (mut records, mut unread) = (Vec::new(), Vec::new());
    while let Some(slice) = slices.next().await {
        match slice {
            Ok(mut slice) => records.append(&mut slice),
            Err(file) => unread.push(file),
        }
    }
    if unread.is_empty() { Ok(records) } else { Err(OpenError::RecoveryFiles(unread)) }
}

async fn read_slice(
    server: &Server,
    files: &RecoveryFiles,
    segment: &RecoveredSegment,
    tablet: TabletId,
) -> Result<Vec<RawRecord>, Unread> {
    let path = &segment.path;
    let Some(slice) = files.slice(server, path, tablet).await? else { return Ok(Vec::new()) };
    let range = GetRange::Bounded(slice.offset..slice.offset + slice.len);
    let bytes = read_recovery(server, path, range).await?;
    parse_slice(tablet, &slice, bytes).map_err(|error| lost(path, error))
}

impl RecoveryFiles {
    /// Where the tablet's records are in the file, if there are any.
    async fn slice(&self, server: &Server, path: &str, tablet: TabletId) -> Result<Option<SliceRef>, Unread> {
        let cell = self.0.lock().entry(path.to_owned()).or_default().clone();
        match cell.get_or_init(|| read_index(server, path)).await {
            Ok(index) => Ok(index.get(&tablet).copied()),
            Err(unread) => {
                let mut cells = self.0.lock();
                if cells.get(path).is_some_and(|known| Arc::ptr_eq(known, &cell)) {
                    cells.remove(path);
                }
                Err(unread.clone())
            }
        }
    }
}

async fn read_index(server: &Server, path: &str) -> Result<Index, Unread> {
    let mut tail = read_recovery(server, path, GetRange::Suffix(TAIL_BYTES)).await?;
    let (_, index_len) = parse_footer(&tail).map_err(|error| lost(path, error))?;
    let wanted = index_len + FOOTER_BYTES;
    if wanted > tail.len() {
        tail = read_recovery(server, path, GetRange::Suffix(wanted as u64)).await?;
    }
    parse_index(&tail.slice(tail.len().saturating_sub(wanted)..)).map_err(|error| lost(path, error))
}

fn lost(path: &str, why: impl ToString) -> Unread {
    Unread { path: path.to_owned(), why: why.to_string(), is_lost: true }
}

async fn read_recovery(server: &Server, path: &str, range: GetRange) -> Result<Bytes, Unread> {
    match read(server.storage.recovery_objects.as_ref(), path, Some(range)).await {
        Ok(bytes) => Ok(bytes),
        Err(ReadError::Missing) => Err(lost(path, "is missing")),
        Err(ReadError::Unavailable(error)) => {
            Err(Unread { path: path.to_owned(), why: format!("cannot be read now: {error}"), is_lost: false })
        }
    }
}

enum ReadError {
    Missing,
    Unavailable(object_store::Error),
}

async fn read(objects: &dyn ObjectStore, path: &str, range: Option<GetRange>) -> Result<Bytes, ReadError> {
    let options = GetOptions { range, ..GetOptions::default() };
    let result = async { objects.get_opts(&Path::from(path), options).await?.bytes().await };
    result.await.map_err(|error| match error {
        object_store::Error::NotFound { .. } => ReadError::Missing,
        other => ReadError::Unavailable(other),
    })
}

impl Server {
    /// Serves what the answer to a split or merge has made; the report comes behind. Nobody can take it away
    /// meanwhile but by an order to close it, and nobody else gets it before that, or the end of this incarnation.
    pub fn serve_made(&self, made: Vec<Arc<Tablet>>) {
        for tablet in &made {
            if tablet.transition(&[TabletState::Loaded], TabletState::Open) {
                tracing::info!(tablet = %tablet.id, epoch = %tablet.epoch, "tablet is open, as it was made");
            }
        }
        // All in one report.
        self.opened.lock().extend(made);
        self.wake_opened.notify_one();
        self.budget.wake_flusher.notify_one();
        self.wake_compactor.notify_one();
    }

    /// Reports a tablet that is served though the master's row says that it is still to be opened.
    fn report_again(&self, row: &MetaRow) {
        if let Presence::Loaded(tablet) = self.tablets.at_epoch(TabletId(row.tablet_id), Epoch(row.epoch))
            && tablet.state() == TabletState::Open
        {
            let mut opened = self.opened.lock();
            if !opened.iter().any(|waiting| Arc::ptr_eq(waiting, &tablet)) {
                opened.push(tablet);
            }
            drop(opened);
            self.wake_opened.notify_one();
        }
    }
}

/// The task that reports loaded tablets, and serves those that the master says are ours. What is
/// loaded while one report is under way goes with the next.
pub async fn report_opened(server: Arc<Server>) {
    loop {
        let tablets = std::mem::take(&mut *server.opened.lock());
        match tablets.is_empty() {
            true => server.wake_opened.notified().await,
            false => report(&server, tablets).await,
        }
    }
}

/// Reports loaded tablets; those that are ours are served then, the others dropped. What is served already may
/// hold what is in no file: it stays until it is ordered to be closed, whatever the answer.
async fn report(server: &Server, tablets: Vec<Arc<Tablet>>) {
    if tablets.is_empty() {
        return;
    }
    let request = TabletsOpenedRequest {
        server_id: server.incarnation.server_id.0,
        tablets: tablets.iter().map(|tablet| tablet.key()).collect(),
    };
    let call = |mut master: super::masters::Client| {
        let request = request.clone();
        async move { master.tablets_opened(request).await }
    };
    let owned = match server.masters.call("tablets opened", call).await.result {
        Ok(response) => response.owned,
        Err(error) => {
            tracing::error!(%error, "the master refuses a report of opened tablets");
            Vec::new()
        }
    };
    *server.last_opened.lock() = server.env.clock.now();
    for tablet in tablets {
        if owned.contains(&tablet.key()) {
            if tablet.transition(&[TabletState::Loaded], TabletState::Open) {
                tracing::info!(tablet = %tablet.id, epoch = %tablet.epoch, "tablet is open");
            }
        } else if tablet.transition(&[TabletState::Loaded], TabletState::Dropped) {
            tracing::warn!(tablet = %tablet.id, epoch = %tablet.epoch, "tablet is not ours; dropped");
            server.tablets.drop_tablet(&tablet);
        } else {
            tracing::warn!(tablet = %tablet.id, epoch = %tablet.epoch, "tablet is not ours to report any more");
        }
    }
    server.budget.wake_flusher.notify_one();
    server.wake_compactor.notify_one();
}
