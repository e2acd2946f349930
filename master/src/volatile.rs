//! What only the leader knows, and a new leader learns again: leases, load, what is under way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use uruk_base::Moment;
use uruk_proto::{Epoch, ServerId, TabletId, master};

use crate::assign::ActionKey;
use crate::lease::Leases;

/// A failure that did not recur for this long is forgotten.
const FAILURE_KEPT: Duration = Duration::from_secs(60);

/// The leader's memory.
#[derive(Debug)]
pub struct Volatile {
    pub leases: Leases,
    pub loads: BTreeMap<ServerId, Load>,
    pub flights: BTreeMap<ActionKey, Flight>,
    /// Orders that were taken: what the tablet server was told, when.
    pub opens_taken: BTreeMap<TabletId, (Epoch, Moment)>,
    pub closes_taken: BTreeMap<TabletId, (Epoch, Moment)>,
    /// Servers that end on their own.
    pub draining: BTreeSet<ServerId>,
    /// How far each live server's log was trimmed.
    pub trimmed: BTreeMap<ServerId, u64>,
    /// For each entry of the deletion queue, how many reports each server had made when it was first seen.
    pub unnamed_at: BTreeMap<u64, Arc<BTreeMap<ServerId, u64>>>,
    /// When the sweep for orphans started last; None: not since the election.
    pub swept: Option<Moment>,
    /// Recoveries whose duration was measured, or that were served before this node was elected.
    pub measured: BTreeSet<ServerId>,
    /// When this node was elected.
    pub elected: Moment,
}

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
    /// Reports since this node was elected.
    pub reports: u64,
    pub report: master::ServerLoad,
    /// CPU time used between the last two reports, in microseconds.
    pub cpu_micros: u64,
    pub tablets: BTreeMap<TabletId, master::TabletLoad>,
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
            draining: BTreeSet::new(),
            trimmed: BTreeMap::new(),
            unnamed_at: BTreeMap::new(),
            swept: None,
            measured: BTreeSet::new(),
            elected: Moment::default(),
        }
    }

    /// Forgets everything that an earlier leadership knew, but for the leases.
    pub fn forget(&mut self, now: Moment) {
        let leases = std::mem::replace(&mut self.leases, Leases::new(Default::default()));
        *self = Volatile { elected: now, ..Volatile::new(leases) };
    }

    /// Takes a tablet server's report.
    pub fn report(&mut self, server: ServerId, report: master::ServerLoad, now: Moment) {
        let load = self.loads.entry(server).or_default();
        if load.reports > 0 {
            load.interval_ms = u64::try_from(now.saturating_since(load.at).as_millis()).unwrap_or(u64::MAX).max(1);
            load.cpu_micros = report.cpu_micros.saturating_sub(load.report.cpu_micros);
        }
        load.at = now;
        load.reports += 1;
        load.tablets = report.tablets.iter().map(|tablet| (TabletId(tablet.tablet_id), *tablet)).collect();
        load.report = master::ServerLoad { tablets: Vec::new(), ..report };
    }

    /// Follows the committed state: forgets servers that are not alive.
    pub fn follow(&mut self, live: &BTreeSet<ServerId>, now: Moment) {
        self.leases.follow(live, now);
        self.loads.retain(|server, _| live.contains(server));
        self.draining.retain(|server| live.contains(server));
        self.trimmed.retain(|server, _| live.contains(server));
        self.flights.retain(|_, flight| match flight.state {
            FlightState::Running => true,
            FlightState::Resting { until, .. } => now.saturating_since(until) < FAILURE_KEPT,
        });
    }

    pub fn is_running(&self, key: &ActionKey) -> bool {
        self.flights.get(key).is_some_and(|flight| flight.state == FlightState::Running)
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
    pub fn begin(&mut self, key: ActionKey, now: Moment) {
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
