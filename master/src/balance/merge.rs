//! Which neighbours to merge: both small, cold, and old enough; together far below half of what would be split.

use super::View;
use super::look::{Look, Seen};
use super::split::split_bytes;
use crate::command::TabletKey;
use crate::state::procedures::Work;
use crate::state::tables::{Table, TableState};

/// Two neighbours.
#[derive(Clone, PartialEq, Debug)]
pub struct Merge {
    pub left: TabletKey,
    pub right: TabletKey,
    pub reason: String,
}

/// What to merge, in key order, as many as may run at a time.
pub fn merges(view: View<'_>, look: &Look<'_>) -> Vec<Merge> {
    let is_merge = |work: &Work| matches!(work, Work::Merge { .. });
    let running = view.survey.procedures.running().values().filter(|procedure| is_merge(&procedure.work)).count();
    let room = view.tuning.merges_max.saturating_sub(running);
    let mut merges = Vec::new();
    for (table, tablets) in look.tables() {
        if merges.len() >= room {
            break;
        }
        let Some(table) = view.survey.tables.get(table).filter(|table| table.state == TableState::Ready) else {
            continue;
        };
        merges.extend(of_table(view, table, tablets, look.takers.len(), room - merges.len()));
    }
    merges
}

fn of_table(view: View<'_>, table: &Table, all: &[Seen<'_>], takers: usize, room: usize) -> Vec<Merge> {
    let mut tablets = all.len() as u64;
    // The ranges of a salted table are there on purpose.
    let tablets_min = u64::from(table.schema.salt).max(1);
    let mut merges = Vec::new();
    let mut left: Option<&Seen<'_>> = None;
    for tablet in all {
        if merges.len() == room || tablets <= tablets_min {
            break;
        }
        let is_candidate = is_quiet(view, tablet);
        if let (Some(before), true) = (left, is_candidate) {
            // As it will be with one tablet fewer: else the merged one might be split again.
            let limit = split_bytes(view, table, tablets - 1, takers) / 1_000 * view.tuning.merge_bytes_permille;
            let bytes = before.bytes + tablet.bytes;
            if bytes < limit {
                let reason = format!("they are cold, and have {} of {} MiB together", bytes >> 20, limit >> 20);
                merges.push(Merge { left: before.row.key(), right: tablet.row.key(), reason });
                tablets -= 1;
                left = None;
                continue;
            }
        }
        left = is_candidate.then_some(tablet);
    }
    merges
}

/// Open, free, old, and hardly used, as its owner reports.
fn is_quiet(view: View<'_>, tablet: &Seen<'_>) -> bool {
    tablet.is_known && tablet.is_free && tablet.is_cold && view.age_ms(tablet.row) >= view.tuning.merge_age_ms
}
