//! Which neighbours to merge: both small, cold, and old enough; together far below half of what would be split.

use uruk_proto::TableId;

use super::View;
use super::split::split_bytes;
use crate::command::TabletKey;
use crate::state::procedures::Work;
use crate::state::row::MetaRow;
use crate::state::tables::{Table, TableState};

/// Two neighbours.
#[derive(Clone, PartialEq, Debug)]
pub struct Merge {
    pub left: TabletKey,
    pub right: TabletKey,
    pub reason: String,
}

/// What to merge, in key order, as many as may run at a time.
pub fn merges(view: View<'_>) -> Vec<Merge> {
    let is_merge = |work: &Work| matches!(work, Work::Merge { .. });
    let running = view.survey.procedures.running().values().filter(|procedure| is_merge(&procedure.work)).count();
    let room = view.tuning.merges_max.saturating_sub(running);
    let mut merges = Vec::new();
    for table in view.survey.tables.all().filter(|table| table.state == TableState::Ready) {
        if merges.len() >= room {
            break;
        }
        merges.extend(of_table(view, table, room - merges.len()));
    }
    merges
}

fn of_table(view: View<'_>, table: &Table, room: usize) -> Vec<Merge> {
    let id: TableId = table.schema.id;
    let mut tablets = u64::from(view.survey.tablets(id));
    // The ranges of a salted table are there on purpose.
    let tablets_min = u64::from(table.schema.salt).max(1);
    let mut merges = Vec::new();
    let mut left: Option<&MetaRow> = None;
    for row in view.survey.meta.rows_of(id) {
        let is_candidate = is_quiet(view, row);
        if merges.len() == room || tablets <= tablets_min {
            break;
        }
        if let (Some(before), true) = (left, is_candidate) {
            // As it will be with one tablet fewer: else the merged one might be split again.
            let limit = split_bytes(view, table, tablets - 1) / 1_000 * view.tuning.merge_bytes_permille;
            let bytes = view.bytes(before) + view.bytes(row);
            if bytes < limit {
                let reason = format!("they are cold, and have {} of {} MiB together", bytes >> 20, limit >> 20);
                merges.push(Merge { left: before.key(), right: row.key(), reason });
                tablets -= 1;
                left = None;
                continue;
            }
        }
        left = is_candidate.then_some(row);
    }
    merges
}

/// Open, free, old, and hardly used, as its owner reports.
fn is_quiet(view: View<'_>, row: &MetaRow) -> bool {
    let is_known =
        row.owner().and_then(|server| view.volatile.loads.get(&server)).is_some_and(|load| load.interval_ms > 0);
    is_known
        && row.is_open()
        && row.procedure.is_none()
        && view.age_ms(row) >= view.tuning.merge_age_ms
        && view.volatile.heat(row).map_or(0.0, |heat| heat.requests_per_s) < view.tuning.merge_requests_per_s as f64
}
