//! What decisions need of each tablet: its row, how busy it is, how large it is. Looked up once for all of them, since
//! rows and reports of a million tablets are too much for a processor's cache.

use uruk_proto::{ServerId, TableId};

use super::View;
use super::heat::Heat;
use crate::reports::TabletLoads;
use crate::state::row::MetaRow;

/// A tablet.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    pub row: &'a MetaRow,
    pub table: TableId,
    /// None: no report tells.
    pub heat: Option<&'a Heat>,
    /// In files and in memory.
    pub bytes: u64,
    pub owner: Option<ServerId>,
    /// Open, and no procedure has it.
    pub is_free: bool,
    /// Its owner has reported for a while.
    pub is_known: bool,
    pub is_hot: bool,
    /// So few requests that it may be merged.
    pub is_cold: bool,
}

/// All tablets, in key order, and who may get some.
pub struct Look<'a> {
    pub tablets: Vec<Seen<'a>>,
    /// Ascending.
    pub takers: Vec<ServerId>,
}

/// A server's report. Tablets were mostly made in the order of their keys: the next is likely to be the next.
struct Reported<'a> {
    tablets: &'a TabletLoads,
    is_known: bool,
    next: usize,
}

impl<'a> Look<'a> {
    pub fn at(view: View<'a>) -> Look<'a> {
        let loads = &view.volatile.loads;
        let servers: Vec<ServerId> = loads.keys().copied().collect();
        let reported =
            loads.values().map(|load| Reported { tablets: &load.tablets, is_known: load.interval_ms > 0, next: 0 });
        let mut reported: Vec<Reported<'a>> = reported.collect();
        let mut tablets = Vec::with_capacity(view.survey.tablets);
        for row in view.survey.meta.rows() {
            let owner = row.owner();
            let place = owner.and_then(|owner| servers.binary_search(&owner).ok());
            let report = place.map(|place| &mut reported[place]);
            let is_known = report.as_ref().is_some_and(|report| report.is_known);
            let heat = report.and_then(|report| report.tablets.heat_from(&mut report.next, &row.tablet));
            let heat = heat.or_else(|| view.volatile.unreported.get(&row.tablet));
            let bytes = row.bytes() + heat.map_or(0, |heat| heat.memtable_bytes);
            let is_free = row.is_open() && row.procedure.is_none();
            let is_hot = heat.is_some_and(|heat| view.is_hot(heat));
            let requests = heat.map_or(0.0, |heat| heat.requests_per_s);
            let is_cold = requests < view.tuning.merge_requests_per_s as f64;
            tablets.push(Seen { row, table: row.table, heat, bytes, owner, is_free, is_known, is_hot, is_cold });
        }
        Look { tablets, takers: view.takers() }
    }

    /// The tablets of each table that has any, by table.
    pub fn tables(&self) -> impl Iterator<Item = (TableId, &[Seen<'a>])> {
        self.tablets.chunk_by(|a, b| a.table == b.table).map(|tablets| (tablets[0].table, tablets))
    }
}
