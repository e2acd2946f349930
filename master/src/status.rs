//! What the status page shows, as data. The JSON under `/api/v1/` is these structures, and a stable
//! interface: fields are added, never renamed; names are snake_case; units are last in a name.
//!
//! | path | holds |
//! |---|---|
//! | `status` | [`StatusView`]: everything below in short |
//! | `master` | [`MasterView`] |
//! | `tables` | `{"tables": [`[`TableView`]`]}` |
//! | `tablets`, `tablets/<table>` | `{"tablets": [`[`TabletView`]`]}` |
//! | `servers` | `{"servers": [`[`ServerView`]`]}`, dead ones too |
//! | `recoveries`, `recoveries/<server id>` | `{"recoveries": [`[`RecoveryView`]`]}`, oldest first |
//! | `balance` | [`BalanceView`]: the last decision of this leader |
//! | `check` | [`CheckView`]: what the last check found |
//! | `procedures` | [`ProceduresView`] |
//! | `history/<tablet id>` | [`HistoryView`] |
//! | `compactions` | [`CompactionsView`]: flushes, compactions, memory budgets |
//! | `storage` | [`StorageReport`], or whatever else the storage tells |

use std::time::Duration;

use serde::Serialize;

use crate::shared::Shared;

mod balance;
mod compactions;
mod procedures;
mod recoveries;
mod servers;
mod storage;
mod tables;

pub use balance::{BalanceView, BalancedServerView, CheckView, FindingView, HotRowView, PlannedMoveView};
pub use compactions::{BudgetView, CompactionsView, JobView, MaintenanceView, ServerCompactionsView};
pub use procedures::{EventView, HistoryView, ProcedureView, ProceduresView};
pub use recoveries::{RecoveryView, ReopenedView, StepView};
pub use servers::ServerView;
pub use storage::{NoHealth, StorageHealth, StorageReport, StorageServer};
pub use tables::{TableView, TabletView};

/// The storage answers within this time, or counts as silent.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(1);
/// Finished recoveries in the overview.
const RECOVERIES_SHOWN: usize = 10;
/// Jobs whose tables are looked up while commands wait.
const JOBS_NAMED_AT_A_TIME: usize = 200;

/// The cluster at a glance.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct StatusView {
    /// This master.
    pub master: MasterView,
    /// Tablets by state.
    pub tablets: TabletCounts,
    /// Recoveries that are not done.
    pub recoveries_unfinished: usize,
    /// Files that nothing names and that wait for deletion.
    pub files_to_delete: usize,
    /// Live servers, then those that died last.
    pub servers: Vec<ServerView>,
    /// Every table.
    pub tables: Vec<TableView>,
    /// The newest recoveries, newest first.
    pub recoveries: Vec<RecoveryView>,
    /// What the storage tells about itself; null when it tells nothing.
    pub storage: serde_json::Value,
}

/// One master.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct MasterView {
    /// Its number in the group.
    pub node: u64,
    /// Where it serves.
    pub address: String,
    /// Where its status page listens; null without one.
    pub http: Option<String>,
    /// Where the leader serves; null when none is known.
    pub leader: Option<String>,
    /// Whether it leads: only the leader knows leases and load.
    pub is_leader: bool,
    /// Raft term.
    pub term: u64,
    /// Index of the last applied entry of the Raft log.
    pub applied: u64,
    /// Since its start, in milliseconds.
    pub uptime_ms: u64,
    /// Wall time of this answer, in microseconds since 1970.
    pub now_micros: i64,
    /// The program's version.
    pub version: &'static str,
}

/// Tablets by state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct TabletCounts {
    /// All of them.
    pub total: usize,
    /// Served.
    pub open: usize,
    /// Being loaded.
    pub opening: usize,
    /// Being given up.
    pub closing: usize,
    /// Nobody's.
    pub waiting: usize,
}

impl StatusView {
    /// Tablet servers that are alive.
    pub fn live_servers(&self) -> usize {
        self.servers.iter().filter(|server| server.state != "dead").count()
    }

    /// Compactions that run, as reported.
    pub fn compactions_running(&self) -> u32 {
        self.servers.iter().filter_map(|server| server.load.as_ref()).map(|load| load.compactions_running).sum()
    }

    /// Compactions that wait, as reported.
    pub fn compactions_queued(&self) -> u32 {
        self.servers.iter().filter_map(|server| server.load.as_ref()).map(|load| load.compactions_queued).sum()
    }

    /// Recoveries some of whose tablets are not open again.
    pub fn recoveries_unserved(&self) -> usize {
        self.recoveries.iter().filter(|recovery| recovery.served_after_ms.is_none() && recovery.state != "done").count()
    }
}

/// The JSON of a path under `/api/v1/`; None when there is no such path.
pub async fn json(shared: &Shared, path: &str) -> Option<Vec<u8>> {
    let path = path.trim_matches('/');
    let (page, rest) = path.split_once('/').map_or((path, None), |(page, rest)| (page, Some(rest)));
    let value = match (page, rest) {
        ("status" | "", None) => serde_json::to_value(view(shared).await),
        ("master", None) => serde_json::to_value(master(shared)),
        ("tables", None) => Ok(serde_json::json!({ "tables": tables(shared) })),
        ("tablets", table) => Ok(serde_json::json!({ "tablets": tablets(shared, table) })),
        ("servers", None) => Ok(serde_json::json!({ "servers": servers(shared) })),
        ("recoveries", None) => Ok(serde_json::json!({ "recoveries": recoveries(shared) })),
        ("recoveries", Some(server)) => {
            let server: u64 = server.parse().ok()?;
            let found: Vec<_> = recoveries(shared).into_iter().filter(|view| view.server_id == server).collect();
            Ok(serde_json::json!({ "recoveries": found }))
        }
        ("balance", None) => serde_json::to_value(balance(shared)),
        ("check", None) => serde_json::to_value(check(shared)),
        ("procedures", None) => serde_json::to_value(procedures(shared)),
        ("history", Some(tablet)) => serde_json::to_value(history(shared, tablet.parse().ok()?)?),
        ("compactions", None) => serde_json::to_value(compactions(shared, usize::MAX)),
        ("storage", None) => Ok(storage(shared).await),
        _ => return None,
    };
    Some(serde_json::to_vec(&value.expect("plain data becomes JSON")).expect("JSON can be written"))
}

/// The cluster at a glance.
pub async fn view(shared: &Shared) -> StatusView {
    let storage = storage(shared).await;
    let (tablets, recoveries_unfinished, files_to_delete) = shared.consensus.read(|state| {
        let sum =
            |map: &std::collections::BTreeMap<_, std::collections::BTreeSet<_>>| map.values().map(|s| s.len()).sum();
        let (opening, closing) = (sum(state.index.opening()), sum(state.index.closing()));
        let (total, waiting) = (state.index.tablets(), state.index.waiting().len());
        let tablets = TabletCounts { total, open: total - opening - closing - waiting, opening, closing, waiting };
        (tablets, state.unfinished_recoveries().len(), state.deletions.entries().len())
    });
    let mut recoveries = recoveries(shared);
    recoveries.reverse();
    recoveries.truncate(RECOVERIES_SHOWN.max(recoveries_unfinished));
    StatusView {
        master: master(shared),
        tablets,
        recoveries_unfinished,
        files_to_delete,
        servers: servers(shared),
        tables: tables(shared),
        recoveries,
        storage,
    }
}

/// This master.
pub fn master(shared: &Shared) -> MasterView {
    let leadership = shared.consensus.leadership().borrow().clone();
    MasterView {
        node: shared.node,
        address: shared.address.clone(),
        http: shared.http_address.get().cloned(),
        leader: leadership.leader.map(|leader| leader.address),
        is_leader: leadership.is_leader,
        term: leadership.term.0,
        applied: *shared.consensus.applied().borrow(),
        uptime_ms: shared.env.clock.since(shared.started).as_millis() as u64,
        now_micros: shared.env.clock.wall_micros(),
        version: env!("CARGO_PKG_VERSION"),
    }
}

/// Live servers by id, then dead ones, the newest first.
pub fn servers(shared: &Shared) -> Vec<ServerView> {
    let now = shared.now();
    shared.consensus.read(|state| servers::all(state, &shared.volatile.lock(), &shared.tuning, now))
}

/// All tables, by name.
pub fn tables(shared: &Shared) -> Vec<TableView> {
    shared.consensus.read(|state| tables::all(state, &shared.volatile.lock()))
}

/// The tablets of one table, or of all, in order.
pub fn tablets(shared: &Shared, table: Option<&str>) -> Vec<TabletView> {
    shared.consensus.read(|state| tables::tablets(state, &shared.volatile.lock(), table))
}

/// All recoveries that are remembered, oldest first.
pub fn recoveries(shared: &Shared) -> Vec<RecoveryView> {
    shared.consensus.read(|state| recoveries::all(state, &shared.volatile.lock()))
}

/// All procedures that run or are remembered.
pub fn procedures(shared: &Shared) -> ProceduresView {
    shared.consensus.read(|state| procedures::all(state, &shared.volatile.lock()))
}

/// What the leader decided last about balance.
pub fn balance(shared: &Shared) -> BalanceView {
    balance::view(&shared.volatile.lock())
}

/// Flushes, compactions and memory budgets, as servers reported them last; the first `jobs_max` jobs.
pub fn compactions(shared: &Shared, jobs_max: usize) -> CompactionsView {
    // Made while renewals go on: the reports are shared, and locks are held for look-ups of names alone.
    let loads = shared.volatile.lock().loads.clone();
    let mut view = compactions::all(&loads, jobs_max);
    shared.consensus.read(|state| compactions::name_servers(&mut view.servers, state));
    for jobs in view.jobs.chunks_mut(JOBS_NAMED_AT_A_TIME) {
        shared.consensus.read(|state| compactions::name_tables(jobs, state));
    }
    view
}

/// Their sum.
pub fn compactions_total(shared: &Shared) -> MaintenanceView {
    let loads = shared.volatile.lock().loads.clone();
    compactions::total(&loads)
}

/// What the last check found.
pub fn check(shared: &Shared) -> CheckView {
    balance::check(&shared.volatile.lock())
}

/// What became of a tablet; None when nothing is known of it.
pub fn history(shared: &Shared, tablet: u64) -> Option<HistoryView> {
    shared.consensus.read(|state| procedures::history(state, uruk_proto::TabletId(tablet)))
}

/// What the storage tells about itself.
pub async fn storage(shared: &Shared) -> serde_json::Value {
    match shared.env.clock.timeout(HEALTH_TIMEOUT, shared.health.health()).await {
        Ok(health) => health,
        Err(_) => StorageReport::failed("storage", "does not answer").to_json(),
    }
}
