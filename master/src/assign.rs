//! The planner: what is to be done now. Pure: `plan(state, volatile, tuning, now)`.
//!
//! Level-triggered: it looks at what is, not at what happened, so that a new leader or a restarted
//! master goes on where the last one stopped. Whatever it decides is checked again where it takes
//! effect: commands when they are applied, orders by the tablet server, deletions by name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use uruk_base::Moment;
use uruk_proto::{Epoch, ServerId, TableId, TabletId};

use crate::balance::moves::PlannedMove;
use crate::command::{Assignment, TabletKey};
use crate::config::Tuning;
use crate::state::State;
use crate::state::meta::MetaTabletId;
use crate::state::procedures::ProcedureId;
use crate::state::row::{CloseKind, MetaRow, TabletState};
use crate::volatile::{FlightState, Volatile};

/// Servers that sort the same piece at the same time, at most.
const SORTERS_MAX: usize = 2;
/// Failed openings are tried again after 1 s, 2 s, 4 s ... up to this; the first one at once.
const REOPEN_DELAY_MAX: Duration = Duration::from_secs(64);
/// The time to open a tablet doubles with each failure in a row, so often at most.
const OPEN_PATIENCE_DOUBLINGS_MAX: u32 = 5;
/// A server with so many tablets to open gets the time to open them once more for each such number.
const OPENINGS_PER_PATIENCE: u32 = 1_000;
/// A server to which so many orders in a row could not be given gets no tablets while there are others.
const ORDERS_FAILED_MAX: u32 = 3;
/// The tail of a log is trimmed in steps of at least this many bytes.
const TRIM_STEP_BYTES: u64 = 1 << 20;

/// One thing to do.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Propose it: the lease has lapsed.
    DeclareDead(ServerId),
    /// Fence the dead server's log and record its end.
    Seal(ServerId),
    /// Have a piece of a dead server's log sorted.
    Sort { log: ServerId, segment: u32, sorter: ServerId },
    /// Delete the log's data and record that the recovery is done.
    Finish(ServerId),
    /// Propose it.
    Assign(Vec<Assignment>),
    /// Order it.
    Open { server: ServerId, tablets: Vec<TabletKey> },
    /// Propose that the server, which does not open them, has failed to.
    Abandon { server: ServerId, tablets: Vec<TabletKey>, reason: String },
    /// Order it.
    Close { server: ServerId, kind: CloseKind, tablets: Vec<TabletKey> },
    /// Propose that the draining server gives up what it serves.
    Drain { server: ServerId, tablets: Vec<TabletKey> },
    /// Order the split or merge.
    Reshape { server: ServerId, procedure: ProcedureId },
    /// Propose that the procedure ends: it has had its time.
    GiveUp { procedure: ProcedureId, reason: String },
    /// Tell the server the newest schema of the table; its answer is its confirmation.
    SetSchema { server: ServerId, table: TableId },
    /// Decide what to split, merge and move, and propose the first two.
    Decide,
    /// Propose it.
    StartMove(PlannedMove),
    /// Compare rows, reports and storage.
    Check,
    /// Propose it.
    SplitMeta(MetaTabletId),
    /// Let go of a live server's flushed log.
    Trim { server: ServerId, upto: u64 },
    /// Delete these entries of the deletion queue.
    DeleteFiles(Vec<(u64, Arc<str>)>),
    /// Look for files that nothing names.
    Sweep,
}

/// At most one action of each key is under way.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ActionKey {
    DeclareDead(ServerId),
    Seal(ServerId),
    Sort(ServerId, u32, ServerId),
    Finish(ServerId),
    Assign,
    Open(ServerId),
    Abandon(ServerId),
    Close(ServerId, CloseKind),
    Drain(ServerId),
    Reshape(ProcedureId),
    GiveUp(ProcedureId),
    SetSchema(ServerId, TableId),
    Decide,
    StartMove(TabletId),
    Check,
    SplitMeta(MetaTabletId),
    Trim(ServerId),
    DeleteFiles,
    Sweep,
}

impl Action {
    pub fn key(&self) -> ActionKey {
        match self {
            Action::DeclareDead(server) => ActionKey::DeclareDead(*server),
            Action::Seal(server) => ActionKey::Seal(*server),
            Action::Sort { log, segment, sorter } => ActionKey::Sort(*log, *segment, *sorter),
            Action::Finish(server) => ActionKey::Finish(*server),
            Action::Assign(_) => ActionKey::Assign,
            Action::Open { server, .. } => ActionKey::Open(*server),
            Action::Abandon { server, .. } => ActionKey::Abandon(*server),
            Action::Close { server, kind, .. } => ActionKey::Close(*server, *kind),
            Action::Drain { server, .. } => ActionKey::Drain(*server),
            Action::Reshape { procedure, .. } => ActionKey::Reshape(*procedure),
            Action::GiveUp { procedure, .. } => ActionKey::GiveUp(*procedure),
            Action::SetSchema { server, table } => ActionKey::SetSchema(*server, *table),
            Action::Decide => ActionKey::Decide,
            Action::StartMove(planned) => ActionKey::StartMove(planned.key.tablet),
            Action::Check => ActionKey::Check,
            Action::SplitMeta(meta) => ActionKey::SplitMeta(*meta),
            Action::Trim { server, .. } => ActionKey::Trim(*server),
            Action::DeleteFiles(_) => ActionKey::DeleteFiles,
            Action::Sweep => ActionKey::Sweep,
        }
    }
}

/// The time, on both clocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    pub moment: Moment,
    pub wall_micros: i64,
}

/// What is to be done now, in the order of urgency. Everything in it may be begun at once.
pub fn plan(state: &State, volatile: &Volatile, tuning: &Tuning, now: Now) -> Vec<Action> {
    let mut plan = Plan { state, volatile, tuning, now, actions: Vec::new() };
    plan.deaths();
    plan.recoveries();
    plan.assignments();
    plan.opens();
    plan.closes();
    plan.procedures();
    plan.schemas();
    plan.drains();
    plan.meta_splits();
    plan.trims();
    plan.files();
    plan.decisions();
    plan.actions
}

struct Plan<'a> {
    state: &'a State,
    volatile: &'a Volatile,
    tuning: &'a Tuning,
    now: Now,
    actions: Vec<Action>,
}

impl Plan<'_> {
    fn add(&mut self, action: Action) {
        if self.volatile.is_free(&action.key(), self.now.moment) {
            self.actions.push(action);
        }
    }

    fn deaths(&mut self) {
        let lapsed = self.volatile.leases.lapsed(self.now.moment);
        let condemned = self.volatile.leases.condemned().map(|(server, _)| server);
        for server in lapsed.into_iter().chain(condemned) {
            self.add(Action::DeclareDead(server));
        }
    }

    fn recoveries(&mut self) {
        let state = self.state;
        for server in state.unfinished_recoveries() {
            let recovery = state.recoveries.get(*server).expect("an unfinished recovery is remembered");
            let Some(seal) = &recovery.seal else {
                self.add(Action::Seal(*server));
                continue;
            };
            if state.index.log_users(*server).len() == 0 {
                self.add(Action::Finish(*server));
                continue;
            }
            for (segment, place) in seal.segments.iter().enumerate() {
                if place.sorted.is_none() {
                    let segment = u32::try_from(segment).expect("a log has far fewer pieces than 2^32");
                    self.sort(*server, segment);
                }
            }
        }
    }

    /// To the live server that has failed least at this piece and sorts least; to a second one when
    /// the first takes long.
    fn sort(&mut self, log: ServerId, segment: u32) {
        let flights = &self.volatile.flights;
        let live = self.state.servers.live();
        let attempts: BTreeMap<ServerId, _> = flights
            .range(ActionKey::Sort(log, segment, ServerId(0))..=ActionKey::Sort(log, segment, ServerId(u64::MAX)))
            .filter_map(|(key, flight)| match key {
                ActionKey::Sort(_, _, sorter) if live.contains(sorter) => Some((*sorter, flight)),
                _ => None,
            })
            .collect();
        let patience = Duration::from_millis(self.tuning.sort_patience_ms);
        let running = attempts.values().copied().filter(|flight| flight.state == FlightState::Running);
        let is_slow = |since: Moment| self.now.moment.saturating_since(since) >= patience;
        let (slow, quick): (Vec<_>, Vec<_>) = running.partition(|flight| is_slow(flight.since));
        if !quick.is_empty() || slow.len() >= SORTERS_MAX {
            return;
        }
        let planned: Vec<ServerId> = self.actions.iter().filter_map(Action::sorter).collect();
        let busy = |server: &ServerId| {
            let sorts = flights.iter().filter(|(key, flight)| {
                matches!(key, ActionKey::Sort(_, _, sorter) if sorter == server) && flight.state == FlightState::Running
            });
            sorts.count() + planned.iter().filter(|sorter| *sorter == server).count()
        };
        let failures = |server: &ServerId| attempts.get(server).map_or(0, |flight| flight.failures);
        let free =
            |server: &&ServerId| self.volatile.is_free(&ActionKey::Sort(log, segment, **server), self.now.moment);
        let best = live.iter().filter(free).min_by_key(|server| (failures(server), busy(server), **server));
        if let Some(sorter) = best {
            self.add(Action::Sort { log, segment, sorter: *sorter });
        }
    }

    /// Spread evenly over all live servers, since what is assigned together is loaded together; among
    /// servers with an equal part of it, to the one that has fewest.
    fn assignments(&mut self) {
        let state = self.state;
        let mut servers: BTreeSet<(usize, usize, ServerId)> = state
            .servers
            .live()
            .iter()
            .filter(|server| !self.is_draining(**server))
            .map(|server| (0, state.index.owned(*server).len(), *server))
            .collect();
        if servers.is_empty() || !self.volatile.is_free(&ActionKey::Assign, self.now.moment) {
            return;
        }
        let condemned: Vec<ServerId> = self.volatile.leases.condemned().map(|(server, _)| server).collect();
        servers.retain(|(_, _, server)| !condemned.contains(server));
        let is_reached = |server: &ServerId| {
            let orders = self.volatile.flights.get(&ActionKey::Open(*server));
            orders.is_none_or(|orders| orders.failures < ORDERS_FAILED_MAX)
        };
        if servers.iter().any(|(_, _, server)| is_reached(server)) {
            servers.retain(|(_, _, server)| is_reached(server));
        }
        let mut assignments = Vec::new();
        for tablet in state.index.waiting() {
            if assignments.len() == self.tuning.assign_tablets_max || servers.is_empty() {
                break;
            }
            let row = state.row(*tablet).expect("the index names only rows that exist");
            let failure = row.failure.as_ref();
            let rested = failure.is_none_or(|failure| {
                let delay = reopen_delay(failure.openings).as_micros() as i64;
                // A wall clock that was set back must not stop the tablet for ever.
                let waited = self.now.wall_micros - failure.micros;
                waited >= delay || waited < 0
            });
            if !rested || !state.is_openable(row) {
                continue;
            }
            let wanted = state.wanted_at(row);
            let wanted = wanted.and_then(|wanted| servers.iter().find(|(_, _, server)| *server == wanted));
            let avoided = failure.map(|failure| failure.server);
            let spread = || servers.iter().find(|(_, _, server)| Some(*server) != avoided).or_else(|| servers.first());
            let (given, owned, server) = *wanted.or_else(spread).expect("there is a server");
            servers.remove(&(given, owned, server));
            servers.insert((given + 1, owned, server));
            assignments.push(Assignment { key: row.key(), server });
        }
        if !assignments.is_empty() {
            self.add(Action::Assign(assignments));
        }
    }

    fn opens(&mut self) {
        for (server, tablets) in self.state.index.opening() {
            let rows = tablets.iter().map(|tablet| self.state.row(*tablet).expect("the index names only rows"));
            let queued = u32::try_from(tablets.len()).unwrap_or(u32::MAX);
            let (overdue, waiting): (Vec<_>, Vec<_>) =
                rows.filter(|row| self.state.is_openable(row)).partition(|row| self.is_overdue(row, queued));
            let due = |row: &&&MetaRow| {
                !self.is_being_made(row) && self.is_order_due(&self.volatile.opens_taken, row.tablet, row.epoch)
            };
            let keys = |row: &MetaRow| row.key();
            let orders_max = self.tuning.order_tablets_max;
            let due: Vec<TabletKey> = waiting.iter().filter(due).map(|row| keys(row)).take(orders_max).collect();
            let overdue: Vec<TabletKey> = overdue.into_iter().map(keys).take(orders_max).collect();
            if !due.is_empty() {
                self.add(Action::Open { server: *server, tablets: due });
            }
            if !overdue.is_empty() {
                let problem = self.volatile.problem(&ActionKey::Open(*server));
                let problem = problem.map_or_else(|| "it took the order".to_owned(), |problem| problem.to_string());
                let reason = format!("{server} has not opened it in time: {problem}");
                self.add(Action::Abandon { server: *server, tablets: overdue, reason });
            }
        }
    }

    /// Whether the owner has had its time to open the tablet: more of it after each failure in a row, since
    /// it may be the tablet that takes long, and with each thousand that wait for the same server. What it made
    /// it may serve: that is ordered again and again, but never taken away.
    fn is_overdue(&self, row: &MetaRow, queued: u32) -> bool {
        if !row.is_unserved_until_opened() {
            return false;
        }
        let failures = row.failure.as_ref().map_or(0, |failure| failure.openings);
        let doublings = failures.min(OPEN_PATIENCE_DOUBLINGS_MAX);
        let patience = Duration::from_millis(self.tuning.open_patience_ms) * 2_u32.pow(doublings);
        let patience = patience * (1 + queued / OPENINGS_PER_PATIENCE);
        let since = self.volatile.opening_since.get(&row.tablet);
        since.is_some_and(|(epoch, since)| *epoch == row.epoch && self.now.moment.saturating_since(*since) >= patience)
    }

    fn closes(&mut self) {
        for (server, tablets) in self.state.index.closing() {
            for kind in [CloseKind::Flush, CloseKind::Discard] {
                let rows = tablets.iter().map(|tablet| self.state.row(*tablet).expect("the index names only rows"));
                let due = rows.filter(|row| {
                    row.state == TabletState::Closing(*server, kind)
                        && self.is_order_due(&self.volatile.closes_taken, row.tablet, row.epoch)
                });
                let tablets: Vec<TabletKey> = due.map(|row| row.key()).take(self.tuning.order_tablets_max).collect();
                if !tablets.is_empty() {
                    self.add(Action::Close { server: *server, kind, tablets });
                }
            }
        }
    }

    /// Whether the order was not taken under this epoch, or so long ago that it is given again.
    fn is_order_due(&self, taken: &BTreeMap<TabletId, (Epoch, Moment)>, tablet: TabletId, epoch: Epoch) -> bool {
        let repeat = Duration::from_millis(self.tuning.order_repeat_ms);
        taken.get(&tablet).is_none_or(|(told, at)| *told != epoch || self.now.moment.saturating_since(*at) >= repeat)
    }

    fn meta_splits(&mut self) {
        for (meta, rows) in self.state.meta.sizes() {
            if rows > self.tuning.meta_tablet_rows_max {
                self.add(Action::SplitMeta(meta));
            }
        }
    }

    fn trims(&mut self) {
        for (server, load) in &self.volatile.loads {
            let trimmed = self.volatile.trimmed.get(server).copied().unwrap_or(0);
            let upto = load.report.log_trim_lsn;
            if self.state.servers.is_live(*server) && upto >= trimmed + TRIM_STEP_BYTES {
                self.add(Action::Trim { server: *server, upto });
            }
        }
    }

    /// A queued file goes once every live server has sent a report that was surely gathered after it was
    /// seen in the queue, and none says in its last one that it still reads the file. Files that were tried
    /// longest ago come first, so that some that cannot be deleted do not hold up the others.
    fn files(&mut self) {
        let live = self.state.servers.live();
        let pinned: BTreeSet<&str> =
            self.volatile.loads.values().flat_map(|load| &load.report.pinned_files).map(String::as_str).collect();
        let is_unread = |entry: &u64, path: &str| {
            let Some(told) = self.volatile.unnamed_at.get(entry) else { return false };
            let asked = live.iter().all(|server| self.volatile.has_reported_since(*server, told));
            asked && !pinned.contains(path)
        };
        let entries = self.state.deletions.entries();
        let tried = self.volatile.deletion_tried;
        let untried = entries.range(tried.map_or(0, |tried| tried + 1)..);
        let in_turn = untried.chain(tried.into_iter().flat_map(|tried| entries.range(..=tried)));
        let unread = in_turn.filter(|(entry, path)| is_unread(entry, path));
        let files: Vec<_> =
            unread.map(|(entry, path)| (*entry, path.clone())).take(self.tuning.delete_files_max).collect();
        if !files.is_empty() {
            self.add(Action::DeleteFiles(files));
        }
        let since = self.volatile.swept.unwrap_or(self.volatile.elected);
        if self.now.moment.saturating_since(since) >= Duration::from_millis(self.tuning.sweep_every_ms) {
            self.add(Action::Sweep);
        }
    }
}

impl Action {
    fn sorter(&self) -> Option<ServerId> {
        match self {
            Action::Sort { sorter, .. } => Some(*sorter),
            _ => None,
        }
    }
}

/// Where a tablet is best moved to: of the servers that take tablets, the other one that has fewest.
pub fn best_target(state: &State, volatile: &Volatile, row: &MetaRow) -> Option<ServerId> {
    let takes = |server: &&ServerId| {
        Some(**server) != row.owner() && !volatile.draining.contains(*server) && !state.servers.is_draining(**server)
    };
    state
        .servers
        .live()
        .iter()
        .filter(takes)
        .min_by_key(|server| (state.index.owned(**server).len(), **server))
        .copied()
}

/// How long a tablet that failed to open so many times in a row waits.
fn reopen_delay(openings: u32) -> Duration {
    match openings {
        0 | 1 => Duration::ZERO,
        n => Duration::from_secs(1 << (n - 2).min(10)).min(REOPEN_DELAY_MAX),
    }
}

mod procedures;
#[cfg(test)]
mod tests;
