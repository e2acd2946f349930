//! What only the leader knows, and a new leader learns again: leases, load, what is under way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use uruk_base::Moment;
use uruk_proto::limits::REPORTS_IN_FLIGHT_MAX;
use uruk_proto::{Epoch, ServerId, TabletId, master};

use crate::assign::{Action, ActionKey};
use crate::balance::Decision;
use crate::balance::moves::PlannedMove;
use crate::lease::Leases;
use crate::reports::{TabletLoads, Unreported};
use crate::state::State;
use crate::state::procedures::ProcedureId;
use crate::state::row::MetaRow;

/// A failure that did not recur for this long is forgotten.
const FAILURE_KEPT: Duration = Duration::from_secs(60);

/// The leader's memory.
#[derive(Debug)]
pub struct Volatile {
    pub leases: Leases,
    pub loads: Loads,
    pub flights: BTreeMap<ActionKey, Flight>,
    /// Orders that were taken: what the tablet server was told, when.
    pub opens_taken: BTreeMap<TabletId, (Epoch, Moment)>,
    pub closes_taken: BTreeMap<TabletId, (Epoch, Moment)>,
    /// When orders to split or merge were taken.
    pub reshapes_taken: BTreeMap<ProcedureId, Moment>,
    /// Since when each procedure runs, as far as this leader saw.
    pub running_since: BTreeMap<ProcedureId, Moment>,
    /// How busy those tablets are that no report names.
    pub unreported: Unreported,
    /// Since when each hot tablet is hot, as of the last decision.
    pub hot_since: BTreeMap<TabletId, Moment>,
    /// When splits, merges and moves were decided last; and what.
    pub decided: Option<Moment>,
    pub decision: Decision,
    /// Moves that wait for their turn.
    pub moves: VecDeque<PlannedMove>,
    /// When the balancer moved a tablet last.
    pub moved_at: BTreeMap<TabletId, Moment>,
    /// When the last check began; and what it found, when.
    pub checked: Option<Moment>,
    pub findings: Option<(i64, master::CheckResponse)>,
    /// Servers that end on their own.
    pub draining: BTreeSet<ServerId>,
    /// How far each live server's log was trimmed.
    pub trimmed: BTreeMap<ServerId, u64>,
    /// Since when each tablet is being opened, as far as this leader saw.
    pub opening_since: BTreeMap<TabletId, (Epoch, Moment)>,
    /// The largest report number that each server has given, as far as it told.
    pub told: BTreeMap<ServerId, u64>,
    /// For each entry of the deletion queue, what the live servers had told when it was first seen.
    pub unnamed_at: BTreeMap<u64, Arc<Told>>,
    /// The entry of the deletion queue that was tried last.
    pub deletion_tried: Option<u64>,
    /// When the sweep for orphans started last; None: not since the election.
    pub swept: Option<Moment>,
    /// Recoveries whose duration was measured, or that were served before this node was elected.
    pub measured: BTreeSet<ServerId>,
    /// When this node was elected.
    pub elected: Moment,
}

/// Each tablet server's last report, shared with those who look at all of them.
pub type Loads = BTreeMap<ServerId, Arc<Load>>;

/// The largest report number that each live server had told, if any.
pub type Told = BTreeMap<ServerId, Option<u64>>;

/// An action that was begun.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flight {
    pub since: Moment,
    /// How often it failed in a row.
    pub failures: u32,
    pub state: FlightState,
}

/// Where an action stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FlightState {
    Running,
    /// It failed, for this reason, and is tried again at this moment at the earliest.
    Resting {
        until: Moment,
        problem: Arc<str>,
    },
}

/// A tablet server's last report.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Load {
    pub at: Moment,
    /// Time between the last two reports, in milliseconds; 0 before the second.
    pub interval_ms: u64,
    /// Its number; and that of the first report since this node was elected.
    pub number: u64,
    pub first_number: u64,
    pub report: master::ServerLoad,
    /// CPU time used between the last two reports, in microseconds.
    pub cpu_micros: u64,
    pub tablets: TabletLoads,
}

impl Volatile {
    /// Of a node that does not lead.
    pub fn new(leases: Leases) -> Volatile {
        Volatile {
            leases,
            loads: BTreeMap::new(),
            flights: BTreeMap::new(),
            opens_taken: BTreeMap::new(),
            closes_taken: BTreeMap::new(),
            reshapes_taken: BTreeMap::new(),
            running_since: BTreeMap::new(),
            unreported: Unreported::new(),
            hot_since: BTreeMap::new(),
            decided: None,
            decision: Decision::default(),
            moves: VecDeque::new(),
            moved_at: BTreeMap::new(),
            checked: None,
            findings: None,
            draining: BTreeSet::new(),
            trimmed: BTreeMap::new(),
            opening_since: BTreeMap::new(),
            told: BTreeMap::new(),
            unnamed_at: BTreeMap::new(),
            deletion_tried: None,
            swept: None,
            measured: BTreeSet::new(),
            elected: Moment::default(),
        }
    }

    /// What decisions are made from, as it is now.
    pub fn survey(&self) -> Volatile {
        Volatile {
            loads: self.loads.clone(),
            unreported: self.unreported.clone(),
            hot_since: self.hot_since.clone(),
            moved_at: self.moved_at.clone(),
            draining: self.draining.clone(),
            elected: self.elected,
            ..Volatile::new(self.leases.clone())
        }
    }

    /// Forgets everything that an earlier leadership knew, but for the leases.
    pub fn forget(&mut self, now: Moment) {
        let leases = std::mem::replace(&mut self.leases, Leases::new(Default::default()));
        *self = Volatile { elected: now, ..Volatile::new(leases) };
    }

    /// The server has given report numbers up to this one.
    pub fn tell(&mut self, server: ServerId, number: u64) {
        let told = self.told.entry(server).or_default();
        *told = number.max(*told);
    }

    /// Takes a tablet server's report, unless a newer one came before it.
    pub fn report(&mut self, server: ServerId, number: u64, mut report: master::ServerLoad, now: Moment) {
        self.tell(server, number);
        let before = self.loads.get(&server);
        if before.is_some_and(|before| number <= before.number) {
            return;
        }
        let passed = before.map(|before| now.saturating_since(before.at).as_millis());
        let interval_ms = passed.map_or(0, |ms| u64::try_from(ms).unwrap_or(u64::MAX).max(1));
        let tablets = std::mem::take(&mut report.tablets);
        let tablets =
            TabletLoads::take(tablets, interval_ms, before.map(|before| &before.tablets), &mut self.unreported);
        let load = Load {
            at: now,
            interval_ms,
            number,
            first_number: before.map_or(number, |before| before.first_number),
            cpu_micros: before.map_or(0, |before| report.cpu_micros.saturating_sub(before.report.cpu_micros)),
            tablets,
            report,
        };
        self.loads.insert(server, Arc::new(load));
    }

    /// Takes what was decided: moves that are planned anew take the place of those that wait.
    pub fn decide(&mut self, state: &State, decision: Decision, start_moves: bool) {
        self.unreported.retain(|tablet, _| state.row(*tablet).is_some());
        self.moved_at.retain(|tablet, _| state.row(*tablet).is_some());
        self.hot_since.clone_from(&decision.hot_since);
        self.moves.clear();
        if start_moves {
            self.moves.extend(decision.plan.moves.iter().cloned());
        }
        self.decision = decision;
    }

    /// Whether what the server reported last was gathered after it had told no more than `told`.
    pub fn has_reported_since(&self, server: ServerId, told: &Told) -> bool {
        // It registered later.
        let Some(told) = told.get(&server) else { return true };
        // Without a word from it then, its first report may have been under way for just as long.
        let is_later = |load: &Arc<Load>| load.number > told.unwrap_or(load.first_number) + REPORTS_IN_FLIGHT_MAX;
        self.loads.get(&server).is_some_and(is_later)
    }

    /// Follows the committed state: forgets servers that are not alive, notes what is new.
    pub fn follow(&mut self, state: &State, now: Moment) {
        let live = state.servers.live();
        self.leases.follow(live, now);
        self.follow_loads(state);
        self.told.retain(|server, _| live.contains(server));
        self.draining.retain(|server| live.contains(server));
        self.trimmed.retain(|server, _| live.contains(server));
        self.flights.retain(|_, flight| match flight.state {
            FlightState::Running => true,
            FlightState::Resting { until, .. } => now.saturating_since(until) < FAILURE_KEPT,
        });
        let running = state.procedures.running();
        self.reshapes_taken.retain(|id, _| running.contains_key(id));
        self.running_since.retain(|id, _| running.contains_key(id));
        running.keys().for_each(|id| {
            self.running_since.entry(*id).or_insert(now);
        });
        self.note_openings(state, now);
        self.note_unnamed(state);
    }

    /// Of servers that are gone the heat of their tablets stays.
    fn follow_loads(&mut self, state: &State) {
        let live = state.servers.live();
        self.loads.retain(|server, load| {
            let is_live = live.contains(server);
            if !is_live {
                self.unreported.extend(load.tablets.heats().map(|(tablet, heat)| (*tablet, heat.clone())));
            }
            is_live
        });
    }

    fn note_openings(&mut self, state: &State, now: Moment) {
        let opening = state.index.opening().values().flatten().filter_map(|tablet| state.row(*tablet));
        let since = |row: &MetaRow| match self.opening_since.get(&row.tablet) {
            // While a piece of a log is sorted anew nobody could open it.
            Some((epoch, since)) if *epoch == row.epoch && state.is_openable(row) => *since,
            Some(_) | None => now,
        };
        self.opening_since = opening.map(|row| (row.tablet, (row.epoch, since(row)))).collect();
    }

    /// Remembers what servers had told when a file was first seen to be let go.
    fn note_unnamed(&mut self, state: &State) {
        let entries = state.deletions.entries();
        self.unnamed_at.retain(|entry, _| entries.contains_key(entry));
        // Also what was committed under earlier leaders: reports from before may arrive only now.
        let told = |server: &ServerId| (*server, self.told.get(server).copied().max(state.servers.told(*server)));
        let told: Arc<Told> = Arc::new(state.servers.live().iter().map(told).collect());
        for entry in entries.keys() {
            self.unnamed_at.entry(*entry).or_insert_with(|| told.clone());
        }
    }

    pub fn is_running(&self, key: &ActionKey) -> bool {
        self.flights.get(key).is_some_and(|flight| flight.state == FlightState::Running)
    }

    /// Whether the server sorts a piece of a log, and its answer is waited for.
    pub fn is_sorting(&self, server: ServerId) -> bool {
        self.flights.iter().any(|(key, flight)| {
            matches!(key, ActionKey::Sort(_, _, sorter) if *sorter == server) && flight.state == FlightState::Running
        })
    }

    /// Whether the action may be begun: it is neither running nor resting.
    pub fn is_free(&self, key: &ActionKey, now: Moment) -> bool {
        match self.flights.get(key).map(|flight| &flight.state) {
            None => true,
            Some(FlightState::Running) => false,
            Some(FlightState::Resting { until, .. }) => now >= *until,
        }
    }

    /// When the next resting action may be begun again.
    pub fn next_retry(&self, now: Moment) -> Option<Moment> {
        let resting = self.flights.values().filter_map(|flight| match flight.state {
            FlightState::Running => None,
            FlightState::Resting { until, .. } => Some(until),
        });
        resting.filter(|until| *until > now).min()
    }

    /// The action is under way from now on.
    pub fn begin(&mut self, action: &Action, now: Moment) {
        let key = action.key();
        match action {
            // Before it is tried: a renewal that arrives from now on is too late.
            Action::DeclareDead(server) => self.leases.condemn(*server),
            Action::DeleteFiles(entries) => self.deletion_tried = entries.last().map(|(entry, _)| *entry),
            Action::Sweep => self.swept = Some(now),
            Action::Decide => self.decided = Some(now),
            Action::Check => self.checked = Some(now),
            Action::StartMove(planned) => {
                self.moved_at.insert(planned.key.tablet, now);
                self.moves.retain(|waiting| waiting.key != planned.key);
            }
            _ => {}
        }
        let failures = self.flights.get(&key).map_or(0, |flight| flight.failures);
        self.flights.insert(key, Flight { since: now, failures, state: FlightState::Running });
    }

    /// The action has ended; returns how often in a row it has failed.
    pub fn end(&mut self, key: ActionKey, result: Result<(), Arc<str>>, until: impl FnOnce(u32) -> Moment) -> u32 {
        let Err(problem) = result else {
            self.flights.remove(&key);
            return 0;
        };
        // Absent when another leadership has begun meanwhile.
        let Some(flight) = self.flights.get_mut(&key) else { return 0 };
        flight.failures += 1;
        flight.state = FlightState::Resting { until: until(flight.failures), problem };
        flight.failures
    }

    /// The problem that keeps an action from succeeding.
    pub fn problem(&self, key: &ActionKey) -> Option<Arc<str>> {
        match &self.flights.get(key)?.state {
            FlightState::Running => None,
            FlightState::Resting { problem, .. } => Some(problem.clone()),
        }
    }
}
