//! Recoveries and their timelines, to the millisecond.

use serde::Serialize;
use uruk_proto::ServerId;

use crate::assign::ActionKey;
use crate::state::State;
use crate::state::recoveries::{Phase, Recovery};
use crate::volatile::Volatile;

/// The recovery of a dead server.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct RecoveryView {
    /// Who died.
    pub server_id: u64,
    /// Where it served; empty when that is forgotten.
    pub address: String,
    /// How it died.
    pub how: String,
    /// `sealing`, `sorting`, `reassigning`, `collecting` or `done`.
    pub state: &'static str,
    /// What keeps it from going on, if anything; only the leader knows.
    pub problem: Option<String>,
    /// Wall time, in microseconds since 1970.
    pub noticed_micros: i64,
    /// Bytes in the sealed log; 0 before it is sealed.
    pub log_bytes: u64,
    /// Pieces of the sealed log.
    pub log_pieces: usize,
    /// Pieces that are sorted.
    pub log_pieces_sorted: usize,
    /// Records in the sorted pieces.
    pub records: u64,
    /// Tablets that it had.
    pub tablets: usize,
    /// Tablets that are open again.
    pub tablets_open: usize,
    /// From the death being noticed to each step, in milliseconds; null: not yet.
    pub sealed_after_ms: Option<f64>,
    /// See `sealed_after_ms`.
    pub sorted_after_ms: Option<f64>,
    /// See `sealed_after_ms`.
    pub assigned_after_ms: Option<f64>,
    /// All tablets open.
    pub served_after_ms: Option<f64>,
    /// Everything flushed, the log deleted.
    pub done_after_ms: Option<f64>,
    /// Every step in order.
    pub timeline: Vec<StepView>,
    /// Each tablet that is open again, by time.
    pub reopened: Vec<ReopenedView>,
}

/// One step of a recovery.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct StepView {
    /// What happened.
    pub what: String,
    /// Since the death was noticed, in milliseconds; negative before.
    pub after_ms: f64,
}

/// A tablet is open again.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ReopenedView {
    /// Which tablet.
    pub tablet_id: u64,
    /// Its new owner.
    pub server_id: u64,
    /// Since the death was noticed, in milliseconds.
    pub after_ms: f64,
}

pub fn all(state: &State, volatile: &Volatile) -> Vec<RecoveryView> {
    state.recoveries.all().map(|recovery| view(state, volatile, recovery)).collect()
}

fn view(state: &State, volatile: &Volatile, recovery: &Recovery) -> RecoveryView {
    let server = recovery.server;
    let after = |micros: i64| (micros - recovery.noticed_micros) as f64 / 1_000.0;
    let segments = recovery.seal.as_ref().map(|seal| seal.segments.as_slice()).unwrap_or_default();
    let sorted: Vec<_> = segments.iter().filter_map(|segment| segment.sorted.as_ref()).collect();
    let mut reopened: Vec<ReopenedView> = recovery
        .tablets
        .iter()
        .filter_map(|(tablet, reopened)| {
            let reopened = reopened.as_ref()?;
            let (tablet_id, server_id) = (tablet.0, reopened.server.0);
            Some(ReopenedView { tablet_id, server_id, after_ms: after(reopened.micros) })
        })
        .collect();
    reopened.sort_by(|a, b| a.after_ms.total_cmp(&b.after_ms));
    let phase = state.phase(recovery);
    RecoveryView {
        server_id: server.0,
        address: state.servers.get(server).map(|server| server.registration.address.clone()).unwrap_or_default(),
        how: recovery.how.clone(),
        state: match phase {
            Phase::Sealing => "sealing",
            Phase::Sorting => "sorting",
            Phase::Reassigning => "reassigning",
            Phase::Collecting => "collecting",
            Phase::Done => "done",
        },
        problem: problem(volatile, server),
        noticed_micros: recovery.noticed_micros,
        log_bytes: recovery.log_bytes(),
        log_pieces: segments.len(),
        log_pieces_sorted: sorted.len(),
        records: sorted.iter().map(|sorted| sorted.records).sum(),
        tablets: recovery.tablets.len(),
        tablets_open: reopened.len(),
        sealed_after_ms: recovery.seal.as_ref().map(|seal| after(seal.micros)),
        sorted_after_ms: recovery.sorted_micros.map(after),
        assigned_after_ms: recovery.assigned_micros.map(after),
        served_after_ms: recovery.served_micros.map(after),
        done_after_ms: recovery.done_micros.map(after),
        timeline: timeline(recovery, &reopened, after),
        reopened,
    }
}

/// Every step that has a time, by time.
fn timeline(recovery: &Recovery, reopened: &[ReopenedView], after: impl Fn(i64) -> f64) -> Vec<StepView> {
    let mut steps = Vec::new();
    let mut add = |micros: Option<i64>, what: String| {
        steps.extend(micros.map(|micros| StepView { what, after_ms: after(micros) }));
    };
    add(recovery.last_heard_micros, "heard from for the last time".to_owned());
    add(Some(recovery.noticed_micros), format!("noticed: {}", recovery.how));
    let mib = recovery.log_bytes() as f64 / (1 << 20) as f64;
    add(recovery.seal.as_ref().map(|seal| seal.micros), format!("log sealed: {mib:.1} MiB"));
    for (number, segment) in recovery.seal.iter().flat_map(|seal| &seal.segments).enumerate() {
        if let Some(sorted) = &segment.sorted {
            let what =
                format!("piece {} of the log sorted by {}: {} records", number + 1, sorted.sorter, sorted.records);
            add(Some(sorted.micros), what);
        }
    }
    add(recovery.sorted_micros, "log sorted".to_owned());
    add(recovery.assigned_micros, format!("{} tablets assigned", recovery.tablets.len()));
    for tablet in reopened {
        let what = format!("tablet-{} open on {}", tablet.tablet_id, ServerId(tablet.server_id));
        steps.push(StepView { what, after_ms: tablet.after_ms });
    }
    let mut add = |micros: Option<i64>, what: &str| {
        steps.extend(micros.map(|micros| StepView { what: what.to_owned(), after_ms: after(micros) }));
    };
    add(recovery.served_micros, "all tablets open");
    add(recovery.done_micros, "done: everything flushed, log deleted");
    // Stable: steps of the same moment stay in their order.
    steps.sort_by(|a, b| a.after_ms.total_cmp(&b.after_ms));
    steps
}

/// The last problem of any of its steps.
fn problem(volatile: &Volatile, server: ServerId) -> Option<String> {
    let own = |key: &&ActionKey| match key {
        ActionKey::Seal(log) | ActionKey::Sort(log, ..) | ActionKey::Finish(log) => *log == server,
        _ => false,
    };
    let problem = volatile.flights.keys().filter(own).find_map(|key| volatile.problem(key))?;
    Some(problem.to_string())
}
