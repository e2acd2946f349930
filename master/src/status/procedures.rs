//! Procedures and histories, as people see them.

use serde::Serialize;
use uruk_proto::TabletId;

use crate::assign::ActionKey;
use crate::state::State;
use crate::state::history::Event;
use crate::state::procedures::{Ended, Ending, Procedure, Work};
use crate::volatile::Volatile;

/// Everything that changes the shape or place of tablets.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ProceduresView {
    /// Under way, oldest first.
    pub running: Vec<ProcedureView>,
    /// Over, newest first.
    pub ended: Vec<ProcedureView>,
}

/// A split, merge or move.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ProcedureView {
    /// Its id.
    pub procedure_id: u64,
    /// `split`, `merge` or `move`.
    pub kind: &'static str,
    /// The table's name; empty when that is gone.
    pub table: String,
    /// The tablets that it has.
    pub tablets: Vec<u64>,
    /// What they became.
    pub results: Vec<u64>,
    /// Of a move; else 0.
    pub target_server_id: u64,
    /// Why it was started.
    pub reason: String,
    /// `running`, or how it ended.
    pub outcome: String,
    /// What keeps it from going on; only the leader knows.
    pub problem: Option<String>,
    /// Wall time, in microseconds since 1970.
    pub started_micros: i64,
    /// Null while it runs.
    pub ended_micros: Option<i64>,
}

/// What became of a tablet.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct HistoryView {
    /// Which tablet.
    pub tablet_id: u64,
    /// Whether it is still there.
    pub exists: bool,
    /// Oldest first; older ones are forgotten.
    pub events: Vec<EventView>,
}

/// Something that happened to a tablet.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct EventView {
    /// Wall time, in microseconds since 1970.
    pub micros: i64,
    /// What happened.
    pub what: String,
}

pub fn all(state: &State, volatile: &Volatile) -> ProceduresView {
    let running = state.procedures.running().values();
    ProceduresView {
        running: running.map(|procedure| view(state, volatile, procedure, None)).collect(),
        ended: state
            .procedures
            .ended()
            .rev()
            .map(|ended| view(state, volatile, &ended.procedure, Some(ended)))
            .collect(),
    }
}

fn view(state: &State, volatile: &Volatile, procedure: &Procedure, ended: Option<&Ended>) -> ProcedureView {
    let tablets: Vec<u64> = procedure.work.keys().iter().map(|key| key.tablet.0).collect();
    let results: Vec<u64> = match ended.map(|ended| &ended.ending) {
        Some(Ending::Done(results)) => results.iter().map(|tablet| tablet.0).collect(),
        Some(Ending::Declined(_) | Ending::GroundGone(_)) | None => Vec::new(),
    };
    let known = tablets.iter().chain(&results).find_map(|tablet| state.row(TabletId(*tablet)));
    let table = known.and_then(|row| state.tables.get(row.table)).map(|table| table.schema.name.clone());
    ProcedureView {
        procedure_id: procedure.id.0,
        kind: procedure.work.name(),
        table: table.unwrap_or_default(),
        tablets,
        results,
        target_server_id: match &procedure.work {
            Work::Move { target, .. } => target.0,
            Work::Split { .. } | Work::Merge { .. } => 0,
        },
        reason: procedure.reason.clone(),
        outcome: ended.map_or_else(|| "running".to_owned(), Ended::outcome),
        problem: volatile.problem(&ActionKey::Reshape(procedure.id)).map(|problem| problem.to_string()),
        started_micros: procedure.started_micros,
        ended_micros: ended.map(|ended| ended.ended_micros),
    }
}

/// None: nothing is known of it.
pub fn history(state: &State, tablet: TabletId) -> Option<HistoryView> {
    let row = state.row(tablet);
    let events = state.history.of(tablet);
    if row.is_none() && events.is_empty() {
        return None;
    }
    let came = row.filter(|row| row.made_by.is_none());
    let came = came.map(|row| EventView { micros: row.born_micros, what: tell(Event::Born) });
    let events = events.iter().map(|(micros, event)| EventView { micros: *micros, what: tell(*event) });
    Some(HistoryView { tablet_id: tablet.0, exists: row.is_some(), events: came.into_iter().chain(events).collect() })
}

fn tell(event: Event) -> String {
    match event {
        Event::Born => "born with its table".to_owned(),
        Event::SplitFrom(parent) => format!("split from {parent}"),
        Event::MergedFrom(left, right) => format!("merged from {left} and {right}"),
        Event::Opened(server) => format!("moved to {server}"),
        Event::SplitInto(left, right) => format!("split into {left} and {right}"),
        Event::MergedInto(tablet) => format!("merged into {tablet}"),
    }
}
