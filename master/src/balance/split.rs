//! Which tablets to split: too large, or hot for a while.
//!
//! A tablet that is hot because of one row is not split in vain: it is reported. What was declined rests.

use std::collections::BTreeMap;

use uruk_base::Moment;
use uruk_proto::{ServerId, TabletId};

use super::View;
use super::heat::Heat;
use super::look::Look;
use crate::command::TabletKey;
use crate::state::procedures::{Ending, Work};
use crate::state::tables::{Table, TableState};

/// A table is to have so many tablets for each server before tablets reach their full size: with fewer they
/// cannot be spread evenly.
const TABLETS_PER_SERVER: u64 = 4;

/// A tablet to split.
#[derive(Clone, PartialEq, Debug)]
pub struct Split {
    pub key: TabletKey,
    pub by_load: bool,
    pub reason: String,
}

/// A tablet that is hot, and that no split helps.
#[derive(Clone, PartialEq, Debug)]
pub struct HotRow {
    pub tablet: TabletId,
    pub row: bytes::Bytes,
    /// Of the tablet's requests; 0: unknown.
    pub permille: u32,
    pub requests_per_s: f64,
    /// Why it is not split.
    pub why: String,
}

/// The size at which a tablet of the table is split: smaller while the table has few tablets for the servers.
pub fn split_bytes(view: View<'_>, table: &Table, tablets: u64, takers: usize) -> u64 {
    let full = if table.schema.split_bytes > 0 { table.schema.split_bytes } else { view.tuning.split_bytes };
    let wanted = takers as u64 * TABLETS_PER_SERVER;
    if takers < 2 || tablets >= wanted {
        return full;
    }
    let part = tablets as f64 / wanted as f64;
    ((full as f64 * part * part) as u64).max(view.tuning.split_bytes_min.min(full))
}

/// Since when each tablet that is hot now is hot.
pub fn hot_since(view: View<'_>) -> BTreeMap<TabletId, Moment> {
    let before = &view.volatile.hot_since;
    let reported = view.volatile.loads.values().flat_map(|load| load.tablets.heats());
    let hot = reported.chain(&view.volatile.unreported).filter(|(_, heat)| view.is_hot(heat));
    hot.map(|(tablet, _)| (*tablet, before.get(tablet).copied().unwrap_or(view.now.moment))).collect()
}

/// What to split, the largest excess first, and the rows that are too hot.
pub fn splits(view: View<'_>, look: &Look<'_>, hot_since: &BTreeMap<TabletId, Moment>) -> (Vec<Split>, Vec<HotRow>) {
    let declined = declined(view);
    let mut found: Vec<(f64, ServerId, Split)> = Vec::new();
    let mut hot_rows = Vec::new();
    for (table, tablets) in look.tables() {
        let Some(table) = view.survey.tables.get(table).filter(|table| table.state == TableState::Ready) else {
            continue;
        };
        let bytes_max = split_bytes(view, table, tablets.len() as u64, look.takers.len());
        for tablet in tablets.iter().filter(|tablet| tablet.is_free) {
            let Some(server) = tablet.owner else { continue };
            let heat = tablet.heat.filter(|_| tablet.is_hot && is_lasting(view, hot_since, tablet.row.tablet));
            if tablet.bytes <= bytes_max && heat.is_none() {
                continue;
            }
            let (key, refusal) = (tablet.row.key(), declined.get(&tablet.row.tablet));
            if let Some(why) = heat.and_then(|heat| in_vain(view, key.tablet, heat, refusal)) {
                hot_rows.push(why);
            }
            if refusal.is_some() {
                continue;
            }
            if tablet.bytes > bytes_max {
                let mib = |bytes: u64| bytes >> 20;
                let reason = format!("it has {} MiB; the limit is {} MiB", mib(tablet.bytes), mib(bytes_max));
                found.push((tablet.bytes as f64 / bytes_max as f64, server, Split { key, by_load: false, reason }));
            } else if let Some(heat) = heat.filter(|heat| look.takers.len() > 1 && !is_one_row(view, heat)) {
                found.push((1.0, server, Split { key, by_load: true, reason: hot(heat) }));
            }
        }
    }
    (bounded(view, found), hot_rows)
}

fn is_lasting(view: View<'_>, hot_since: &BTreeMap<TabletId, Moment>, tablet: TabletId) -> bool {
    let hot_for = u128::from(view.tuning.hot_for_ms);
    hot_since.get(&tablet).is_some_and(|since| view.now.moment.saturating_since(*since).as_millis() >= hot_for)
}

fn hot(heat: &Heat) -> String {
    format!(
        "it is hot: {:.0} requests/s, {:.1} MiB/s, {:.0} % of a core",
        heat.requests_per_s,
        heat.bytes_per_s / f64::from(1 << 20),
        heat.cpu_permille / 10.0
    )
}

fn is_one_row(view: View<'_>, heat: &Heat) -> bool {
    heat.hottest_row_permille >= view.tuning.hot_row_permille
}

/// Why splitting the hot tablet would not help, if so.
fn in_vain(view: View<'_>, tablet: TabletId, heat: &Heat, refusal: Option<&String>) -> Option<HotRow> {
    let why = match refusal {
        Some(refusal) => refusal.clone(),
        None if is_one_row(view, heat) => "one row has most of its requests".to_owned(),
        None => return None,
    };
    Some(HotRow {
        tablet,
        row: heat.hottest_row.clone(),
        permille: heat.hottest_row_permille,
        requests_per_s: heat.requests_per_s,
        why,
    })
}

/// Tablets whose last split was not done, not long ago, and why.
fn declined(view: View<'_>) -> BTreeMap<TabletId, String> {
    let rest = i64::try_from(view.tuning.split_rest_ms).unwrap_or(i64::MAX).saturating_mul(1_000);
    let recent = view.survey.procedures.ended().filter(|ended| {
        let since = view.now.wall_micros - ended.ended_micros;
        (0..rest).contains(&since)
    });
    let refused = recent.filter_map(|ended| match (&ended.procedure.work, &ended.ending) {
        (Work::Split { tablet, .. }, Ending::Declined(_) | Ending::GroundGone(_)) => {
            Some((tablet.tablet, ended.outcome()))
        }
        _ => None,
    });
    refused.collect()
}

/// The most urgent ones, as many as may run at a time, one for each server.
fn bounded(view: View<'_>, mut found: Vec<(f64, ServerId, Split)>) -> Vec<Split> {
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.2.key.cmp(&b.2.key)));
    let running = view.survey.procedures.running().values();
    let splitting: Vec<TabletKey> = running
        .filter_map(|procedure| match &procedure.work {
            Work::Split { tablet, .. } => Some(*tablet),
            Work::Merge { .. } | Work::Move { .. } => None,
        })
        .collect();
    let owner = |key: &TabletKey| view.survey.owner_in_procedure(key.tablet);
    let mut busy: Vec<ServerId> = splitting.iter().filter_map(owner).collect();
    let mut chosen = Vec::new();
    for (_, server, split) in found {
        if splitting.len() + chosen.len() < view.tuning.splits_max && !busy.contains(&server) {
            busy.push(server);
            chosen.push(split);
        }
    }
    chosen
}
