//! Tables and tablets, as people see them.

use serde::Serialize;

use crate::assign::ActionKey;
use crate::state::State;
use crate::state::row::{MetaRow, TabletState};
use crate::state::tables::{Table, TableState};
use crate::volatile::Volatile;

/// A table.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct TableView {
    /// Its id.
    pub table_id: u64,
    /// Its name.
    pub name: String,
    /// `creating`, `ready` or `deleting`.
    pub state: &'static str,
    /// Raised by every change.
    pub schema_version: u64,
    /// Names of its families.
    pub families: Vec<String>,
    /// Tablets.
    pub tablets: u32,
    /// Tablets that are served.
    pub tablets_open: u32,
    /// In files.
    pub file_bytes: u64,
    /// In memory, as last reported.
    pub memtable_bytes: u64,
    /// Wall time, in microseconds since 1970.
    pub created_micros: i64,
}

/// A tablet.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct TabletView {
    /// Its id.
    pub tablet_id: u64,
    /// Its table's name.
    pub table: String,
    /// First row key, escaped as people read it; empty: from the first row.
    pub start: String,
    /// First row key beyond; empty: to the last row.
    pub end: String,
    /// 0: none.
    pub server_id: u64,
    /// Where it is served; empty: nowhere.
    pub address: String,
    /// Raised by every assignment.
    pub epoch: u64,
    /// `unassigned`, `opening`, `open`, `closing` or `failed`.
    pub state: &'static str,
    /// What is wrong with it; empty: nothing.
    pub failure: String,
    /// Bytes in files.
    pub file_bytes: u64,
    /// Files.
    pub files: usize,
    /// Bytes in memory, as last reported.
    pub memtable_bytes: u64,
    /// Rows read, between the last two reports.
    pub reads_per_s: f64,
    /// Rows written, between the last two reports.
    pub writes_per_s: f64,
    /// Servers whose logs may hold what is in no file.
    pub needed_logs: Vec<u64>,
}

pub fn all(state: &State, volatile: &Volatile) -> Vec<TableView> {
    let mut views: Vec<TableView> = state.tables.all().map(|table| view(state, volatile, table)).collect();
    views.sort_by(|a, b| a.name.cmp(&b.name));
    views
}

fn view(state: &State, volatile: &Volatile, table: &Table) -> TableView {
    let schema = &table.schema;
    let counts = state.index.counts(schema.id);
    let memtables = state.meta.rows_of(schema.id).map(|row| reported(volatile, row).0);
    TableView {
        table_id: schema.id.0,
        name: schema.name.clone(),
        state: match table.state {
            TableState::Creating => "creating",
            TableState::Ready => "ready",
            TableState::Deleting(_) => "deleting",
        },
        schema_version: schema.version,
        families: schema.families.iter().map(|family| family.name.clone()).collect(),
        tablets: counts.tablets,
        tablets_open: counts.open,
        file_bytes: counts.bytes,
        memtable_bytes: memtables.sum(),
        created_micros: table.created_micros,
    }
}

pub fn tablets(state: &State, volatile: &Volatile, table: Option<&str>) -> Vec<TabletView> {
    let mut tables: Vec<&Table> =
        state.tables.all().filter(|known| table.is_none_or(|name| known.schema.name == name)).collect();
    tables.sort_by(|a, b| a.schema.name.cmp(&b.schema.name));
    let rows = tables.into_iter().flat_map(|table| state.meta.rows_of(table.schema.id).map(move |row| (table, row)));
    rows.map(|(table, row)| tablet(state, volatile, table, row)).collect()
}

fn tablet(state: &State, volatile: &Volatile, table: &Table, row: &MetaRow) -> TabletView {
    let owner = row.owner();
    let (memtable_bytes, reads_per_s, writes_per_s) = reported(volatile, row);
    TabletView {
        tablet_id: row.tablet.0,
        table: table.schema.name.clone(),
        start: row.range.start.escape_ascii().to_string(),
        end: row.range.end.escape_ascii().to_string(),
        server_id: owner.unwrap_or_default().0,
        address: owner.and_then(|server| state.servers.address(server)).unwrap_or_default().to_owned(),
        epoch: row.epoch.0,
        state: match row.state {
            TabletState::Unassigned => "unassigned",
            TabletState::Opening(_) => "opening",
            TabletState::Open(_) => "open",
            TabletState::Closing(..) => "closing",
            TabletState::Failed => "failed",
        },
        failure: failure(volatile, row),
        file_bytes: row.bytes(),
        files: row.files().count(),
        memtable_bytes,
        reads_per_s,
        writes_per_s,
        needed_logs: row.needed_logs.iter().map(|server| server.0).collect(),
    }
}

/// Why it failed last; else what keeps the order to open it from its owner.
fn failure(volatile: &Volatile, row: &MetaRow) -> String {
    let order = match row.state {
        TabletState::Opening(server) => volatile.problem(&ActionKey::Open(server)),
        TabletState::Unassigned | TabletState::Open(_) | TabletState::Closing(..) | TabletState::Failed => None,
    };
    let failure = row.failure.as_ref().map(|failure| failure.reason.as_str());
    failure.or(order.as_deref()).unwrap_or_default().to_owned()
}

/// Bytes in memory, rows read and rows written per second, as its owner reported last.
fn reported(volatile: &Volatile, row: &MetaRow) -> (u64, f64, f64) {
    let load = row.owner().and_then(|server| volatile.loads.get(&server));
    let found = load.and_then(|load| Some((load.interval_ms, load.tablets.get(&row.tablet)?)));
    let Some((interval_ms, tablet)) = found.filter(|(_, tablet)| tablet.epoch == row.epoch.0) else {
        return (0, 0.0, 0.0);
    };
    let rate = |count: u64| if interval_ms == 0 { 0.0 } else { count as f64 * 1_000.0 / interval_ms as f64 };
    (tablet.memtable_bytes, rate(tablet.reads), rate(tablet.writes))
}
