//! One tablet as this server holds it.
//!
//! ```text
//!            TabletsOpened says "owned",
//!            or it is made by the answer       freeze            released
//!   Loaded ────────────────────────────▶ Open ◀─────────▶ Frozen ──────────▶ Dropped
//!      │                                   ▲    thaw         │                   ▲
//!      │                                   │                 │ split, merge sent │
//!      │               known not to be done└──── Replacing ◀─┘                   │
//!      │                                             └── done, or not ours ──────┤
//!      └──────────────── not owned, discarded, no longer ours ───────────────────┘
//! ```
//! Locks, in this order: `gate` (state, next SeqNo, memory) before the log's queue; `positions` alone
//! (what is applied, and since which log position). Neither is held over an await.
//!
//! Invariants: (1) a write gets its SeqNo and its place in the log's queue in one step, only while
//! the tablet is Open; (2) SeqNos of an epoch are consecutive from 1 on; (3) `applied` records are
//! consecutive, so the published watermark has no holes; (4) memtables freeze only between records;
//! (5) from the first sending of the command that replaces it until its outcome is known it starts no
//! read and no write: what takes its place may be served by another server already.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;
use uruk_base::commit_log::Lsn;
use uruk_base::planted::{Planted, is_planted};
use uruk_proto::master::{MetaRow, TabletKey};
use uruk_proto::mutation::{Mutation, SERVER_TIME};
use uruk_proto::{Epoch, ErrorCode, RowRange, RpcError, SeqNo, TableId, TabletId};

use super::memory::Memory;
use super::record::Record;
use super::samples::Samples;
use crate::engine::{FreezeToken, TabletStore};

/// Whether the tablet may be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TabletState {
    /// In memory, but the master has not said yet that it is ours.
    Loaded,
    /// Served.
    Open,
    /// Read, but not written: it is about to be released or replaced.
    Frozen,
    /// The command that replaces it (by halves, or by one with its neighbour) is on its way, or done:
    /// neither read nor written until that is known.
    Replacing,
    /// Not ours any more.
    Dropped,
}

/// What decides about a write, in one place.
#[derive(Debug)]
pub struct Gate {
    /// Whether the tablet may be used.
    pub state: TabletState,
    /// Counter of the next SeqNo.
    next_counter: u64,
    /// SeqNo of the last write that was enqueued.
    last_assigned: SeqNo,
    /// Calls done, and the highest timestamp.
    pub memory: Memory,
}

#[derive(Debug)]
struct Positions {
    /// Start of the first frame with a record that is applied but not frozen.
    active_since: Option<Lsn>,
    /// Start of the first frame with a piece of a row whose last piece is still to come.
    pieces_since: Option<Lsn>,
    /// Records of dead servers' logs were replayed and are not frozen.
    has_replayed: bool,
    /// Frozen and not committed as flushed, oldest first.
    frozen: VecDeque<Frozen>,
}

#[derive(Debug)]
struct Frozen {
    upto: SeqNo,
    memory_changed: bool,
    since: Option<Lsn>,
}

impl Positions {
    fn has_unfrozen(&self) -> bool {
        self.active_since.is_some() || self.has_replayed
    }

    /// The oldest position of the own log that a flush, or several, would let go.
    fn flush_frees_from(&self) -> Option<Lsn> {
        self.frozen.iter().filter_map(|frozen| frozen.since).chain(self.active_since).min()
    }

    /// The oldest position of the own log that is needed. No flush lets go of a row's pieces before its
    /// last one is applied.
    fn needed_from(&self) -> Option<Lsn> {
        self.flush_frees_from().into_iter().chain(self.pieces_since).min()
    }
}

/// Reads and writes since the last load report.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Rows read, or scans' batches.
    pub reads: AtomicU64,
    /// Rows written.
    pub writes: AtomicU64,
    /// Bytes sent to readers.
    pub bytes_read: AtomicU64,
    /// Bytes of mutations.
    pub bytes_written: AtomicU64,
}

/// What a flush has to write.
#[derive(Debug)]
pub struct FlushWork {
    /// Everything up to here will be flushed.
    pub upto: SeqNo,
    /// The frozen memtables; None when only the memory of calls changed.
    pub token: Option<FreezeToken>,
    /// Whether the memory of calls must be written too.
    pub memory_changed: bool,
    /// Logs of dead servers that it makes needless.
    pub logs_done: Vec<u64>,
}

/// What an order means for a tablet that has seen others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TakenUp {
    /// It is the first of its procedure, and newer than all: do it.
    New,
    /// A repeat: it is being done.
    Running,
    /// A repeat of what is over, or an order for an older procedure.
    Over,
}

/// The master's procedures that this tablet was ordered to take part in; their ids grow.
#[derive(Debug, Default)]
struct Procedures {
    newest: u64,
    over: u64,
}

/// One tablet.
#[derive(Debug)]
pub struct Tablet {
    /// Which.
    pub id: TabletId,
    /// Under which assignment.
    pub epoch: Epoch,
    /// Of which table.
    pub table: TableId,
    /// Its rows.
    pub range: RowRange,
    /// Its data.
    pub store: Arc<TabletStore>,
    /// Held by a flush, by a commit of a compaction, and by the end of a close: one at a time.
    pub maintenance: tokio::sync::Mutex<()>,
    /// Since the last report.
    pub traffic: Traffic,
    /// Where its recent requests lie.
    pub samples: Samples,
    /// A block of its files was found corrupt: no compaction until a person has looked.
    pub is_corrupt: AtomicBool,
    /// A close was ordered.
    pub is_closing: AtomicBool,
    /// Held by a close, a split, or a merge from beginning to end: one at a time. Before `maintenance`;
    /// of two tablets that of the one with the smaller keys first.
    pub operation: tokio::sync::Mutex<()>,
    procedures: Mutex<Procedures>,
    gate: Mutex<Gate>,
    /// What the gate says.
    state: watch::Sender<TabletState>,
    positions: Mutex<Positions>,
    published: watch::Sender<SeqNo>,
    foreign_logs: Mutex<Vec<u64>>,
}

impl Tablet {
    /// A tablet whose logs are replayed into `store` and `memory`. `foreign_logs` are the needed logs
    /// of dead servers; `seed` decides which requests are sampled.
    pub fn new(store: Arc<TabletStore>, row: &MetaRow, memory: Memory, foreign_logs: Vec<u64>, seed: u64) -> Tablet {
        let published = store.published();
        let has_replayed = published > SeqNo(row.flushed_seq);
        let epoch = Epoch(row.epoch);
        assert!(published.epoch() < epoch, "{published} was written before {epoch}");
        let gate = Gate {
            state: TabletState::Loaded,
            next_counter: super::record::FIRST_COUNTER,
            last_assigned: published,
            memory,
        };
        Tablet {
            id: TabletId(row.tablet_id),
            epoch,
            table: TableId(row.table_id),
            range: RowRange { start: row.start.clone(), end: row.end.clone() },
            store,
            maintenance: tokio::sync::Mutex::new(()),
            traffic: Traffic::default(),
            samples: Samples::new(seed),
            is_corrupt: AtomicBool::new(false),
            is_closing: AtomicBool::new(false),
            operation: tokio::sync::Mutex::new(()),
            procedures: Mutex::default(),
            gate: Mutex::new(gate),
            state: watch::Sender::new(TabletState::Loaded),
            positions: Mutex::new(Positions {
                active_since: None,
                pieces_since: None,
                has_replayed,
                frozen: VecDeque::new(),
            }),
            published: watch::Sender::new(published),
            foreign_logs: Mutex::new(foreign_logs),
        }
    }

    /// Id and epoch, as messages carry them.
    pub fn key(&self) -> TabletKey {
        TabletKey { tablet_id: self.id.0, epoch: self.epoch.0 }
    }

    /// Runs `decide` on state, numbers and memory, as one step.
    pub fn with_gate<T>(&self, decide: impl FnOnce(&mut Gate) -> T) -> T {
        decide(&mut self.gate.lock())
    }

    /// Whether it may be used.
    pub fn state(&self) -> TabletState {
        self.gate.lock().state
    }

    /// Moves on to `to`, if the state is one of `from`.
    pub fn transition(&self, from: &[TabletState], to: TabletState) -> bool {
        let mut gate = self.gate.lock();
        let allowed = from.contains(&gate.state);
        if allowed {
            gate.state = to;
            // Under the gate, so that the last word is the right one.
            self.state.send_replace(to);
        }
        allowed
    }

    /// Completes when the state is as wanted.
    pub async fn reached(&self, is_wanted: impl Fn(TabletState) -> bool) {
        let mut state = self.state.subscribe();
        let _ = state.wait_for(|state| is_wanted(*state)).await.expect("the sender is ours");
    }

    /// Takes up an order of the master's.
    pub fn take_up(&self, procedure: u64) -> TakenUp {
        let mut known = self.procedures.lock();
        if procedure > known.newest {
            known.newest = procedure;
            TakenUp::New
        } else if procedure == known.newest && known.over < procedure {
            TakenUp::Running
        } else {
            TakenUp::Over
        }
    }

    /// The procedure is over here: done, or declined with the master's knowledge.
    pub fn procedure_over(&self, procedure: u64) {
        let mut known = self.procedures.lock();
        known.over = known.over.max(procedure);
    }

    /// Whether reads may start.
    pub fn check_readable(&self) -> Result<(), RpcError> {
        match self.state() {
            TabletState::Open | TabletState::Frozen => Ok(()),
            TabletState::Loaded => Err(self.unavailable("is opening")),
            TabletState::Replacing => Err(self.unavailable("is about to be replaced")),
            TabletState::Dropped => Err(self.stale()),
        }
    }

    /// "Look its location up again."
    pub fn stale(&self) -> RpcError {
        RpcError::new(ErrorCode::StaleLocation, format!("{} is not here any more", self.id))
    }

    fn unavailable(&self, why: &str) -> RpcError {
        RpcError::new(ErrorCode::Unavailable, format!("{} {why}", self.id))
    }

    /// Applies a durable record and makes it visible. Called in the order of SeqNos.
    pub fn apply(&self, record: &Record, mutations: Vec<Vec<Mutation>>, frame_start: Lsn) {
        let mut positions = self.positions.lock();
        apply_rows(&self.store, record, mutations);
        let since = positions.pieces_since.take().unwrap_or(frame_start);
        positions.active_since.get_or_insert(since);
        self.store.publish(record.last);
        drop(positions);
        self.published.send_replace(record.last);
        self.traffic.writes.fetch_add(record.rows.len() as u64, Ordering::Relaxed);
        let bytes: usize = record.rows.iter().map(|row| row.row.len() + row.mutations.len()).sum();
        self.traffic.bytes_written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A piece of a row is durable: the log is needed from there on, but nothing is visible before the
    /// last piece, and no flush may cut between them.
    pub fn note_piece(&self, frame_start: Lsn) {
        self.positions.lock().pieces_since.get_or_insert(frame_start);
    }

    /// Waits until everything up to `seq` is published.
    pub async fn wait_published(&self, seq: SeqNo) {
        let mut published = self.published.subscribe();
        let _ = published.wait_for(|upto| *upto >= seq).await.expect("the sender is ours");
    }

    /// Waits until every write that passed the gate is published. The gate must be closed.
    pub async fn drain(&self) {
        let last = self.gate.lock().last_assigned;
        self.wait_published(last).await;
    }

    /// The oldest position of the own log that it still needs.
    pub fn needs_log_from(&self) -> Option<Lsn> {
        self.positions.lock().needed_from()
    }

    /// The oldest position of the own log that a flush of it lets go.
    pub fn flush_frees_log_from(&self) -> Option<Lsn> {
        self.positions.lock().flush_frees_from()
    }

    /// Whether dead servers' logs are still needed for it.
    pub fn has_foreign_logs(&self) -> bool {
        !self.foreign_logs.lock().is_empty()
    }

    /// Freezes what is published, or takes up the oldest frozen set again. None when all is flushed.
    /// The caller holds `maintenance`.
    pub fn start_flush(&self) -> Option<FlushWork> {
        let claimed = is_planted(Planted::FlushedAhead).then(|| self.gate.lock().last_assigned);
        // Under this lock nothing is applied: the watermark stands between two records.
        let mut positions = self.positions.lock();
        let logs_done = self.foreign_logs.lock().clone();
        if positions.frozen.is_empty() {
            if !positions.has_unfrozen() && logs_done.is_empty() {
                return None;
            }
            let frozen = Frozen {
                upto: self.store.published(),
                memory_changed: positions.has_unfrozen(),
                since: positions.active_since.take(),
            };
            positions.has_replayed = false;
            // None when the records held no mutations, only calls to remember.
            let _token = self.store.freeze(frozen.upto);
            positions.frozen.push_back(frozen);
        }
        let oldest = positions.frozen.front().expect("just made sure");
        let token = self.store.frozen().into_iter().find(|token| token.upto() == oldest.upto);
        let upto = claimed.map_or(oldest.upto, |claimed| claimed.max(oldest.upto));
        Some(FlushWork { upto, token, memory_changed: oldest.memory_changed, logs_done })
    }

    /// Takes over a committed row; `flushed` when a flush was part of it.
    pub fn install(&self, row: &MetaRow, flushed: Option<&FlushWork>) -> Result<(), crate::engine::EngineError> {
        self.store.install(row)?;
        if let Some(work) = flushed {
            let mut positions = self.positions.lock();
            while positions.frozen.front().is_some_and(|frozen| frozen.upto <= work.upto) {
                positions.frozen.pop_front();
            }
            drop(positions);
            self.foreign_logs.lock().retain(|log| !work.logs_done.contains(log));
        }
        Ok(())
    }
}

/// Applies a record's rows; timestamps left to the server become the record's.
pub fn apply_rows(store: &TabletStore, record: &Record, mutations: Vec<Vec<Mutation>>) {
    let mut seq = record.first;
    for (row, mut mutations) in record.rows.iter().zip(mutations) {
        for mutation in &mut mutations {
            if let Mutation::SetCell { timestamp, .. } = mutation
                && *timestamp == SERVER_TIME
            {
                *timestamp = record.timestamp;
            }
        }
        store.apply(seq, &row.row, &mutations);
        seq = SeqNo(seq.0 + mutations.len() as u64);
    }
    assert!(seq.0 <= record.last.0 + 1, "a record's SeqNos cover its mutations");
}

impl Gate {
    /// Refuses a write unless the tablet is open.
    pub fn check_writable(&self, tablet: &Tablet) -> Result<(), RpcError> {
        match self.state {
            TabletState::Open => Ok(()),
            TabletState::Loaded => Err(tablet.unavailable("is opening")),
            TabletState::Frozen => Err(tablet.unavailable("is about to move")),
            TabletState::Replacing => Err(tablet.unavailable("is about to be replaced")),
            TabletState::Dropped => Err(tablet.stale()),
        }
    }

    /// The next `count` SeqNos: first and last.
    pub fn assign(&mut self, tablet: &Tablet, count: u64) -> Result<(SeqNo, SeqNo), RpcError> {
        let epoch = if is_planted(Planted::SeqNosReused) { Epoch(1) } else { tablet.epoch };
        let numbers = SeqNo::new(epoch, self.next_counter)
            .zip(SeqNo::new(epoch, self.next_counter + count - 1))
            .ok_or_else(|| tablet.unavailable("has used up its sequence numbers and must be assigned anew"))?;
        self.next_counter += count;
        self.last_assigned = numbers.1;
        Ok(numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_pieces_hold_the_log_but_ask_for_no_flush() {
        let mut positions =
            Positions { active_since: None, pieces_since: Some(Lsn(5)), has_replayed: false, frozen: VecDeque::new() };
        assert_eq!((positions.needed_from(), positions.flush_frees_from()), (Some(Lsn(5)), None));
        positions.active_since = Some(Lsn(9));
        assert_eq!((positions.needed_from(), positions.flush_frees_from()), (Some(Lsn(5)), Some(Lsn(9))));
        positions.frozen.push_back(Frozen { upto: SeqNo(1), memory_changed: true, since: Some(Lsn(3)) });
        assert_eq!((positions.needed_from(), positions.flush_frees_from()), (Some(Lsn(3)), Some(Lsn(3))));
    }
}
