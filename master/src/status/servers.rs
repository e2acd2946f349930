//! Tablet servers, as people see them.

use serde::Serialize;

use super::compactions::{self, BudgetView};
use crate::assign::Now;
use crate::config::Tuning;
use crate::state::State;
use crate::state::servers::{Life, Server};
use crate::volatile::Volatile;

/// A tablet server. What only the leader knows is null elsewhere, and for the dead.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ServerView {
    /// One incarnation.
    pub server_id: u64,
    /// Where it serves.
    pub address: String,
    /// Where it stands.
    pub zone: String,
    /// Its program's version.
    pub version: String,
    /// `live`, `lapsed` (about to be declared dead), `draining` or `dead`.
    pub state: &'static str,
    /// How it died; null while it lives.
    pub how: Option<String>,
    /// Its process.
    pub pid: u32,
    /// Its watching parent; 0 without one.
    pub parent_pid: u32,
    /// Wall time, in microseconds since 1970.
    pub registered_micros: i64,
    /// When its death was noticed.
    pub died_micros: Option<i64>,
    /// Since its last renewal arrived (or the leader's election), in milliseconds.
    pub lease_age_ms: Option<u64>,
    /// How long a lease is, in milliseconds.
    pub lease_ms: u32,
    /// Tablets given to it.
    pub tablets: usize,
    /// What it reported last; null before the first report.
    pub load: Option<LoadView>,
    /// Of the process, as reported.
    pub memory_bytes: u64,
    /// Unflushed, in memory.
    pub memtable_bytes: u64,
    /// What a recovery would have to read.
    pub unflushed_log_bytes: u64,
    /// What it may keep in memory; null before the first report.
    pub budget: Option<BudgetView>,
}

/// Load of a tablet server between its last two reports.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct LoadView {
    /// Rows read.
    pub reads_per_s: f64,
    /// Rows written.
    pub writes_per_s: f64,
    /// Bytes read.
    pub read_bytes_per_s: f64,
    /// Bytes written.
    pub written_bytes_per_s: f64,
    /// Of one core, in percent.
    pub cpu_percent: f64,
    /// Block cache.
    pub cache_bytes: u64,
    /// Hits among its lookups, in percent; since the server's start.
    pub cache_hit_percent: f64,
    /// Under way.
    pub compactions_running: u32,
    /// Waiting.
    pub compactions_queued: u32,
}

pub fn all(state: &State, volatile: &Volatile, tuning: &Tuning, now: Now) -> Vec<ServerView> {
    let (live, mut dead): (Vec<_>, Vec<_>) = state.servers.all().partition(|server| server.life == Life::Live);
    dead.reverse();
    live.into_iter().chain(dead).map(|server| view(state, volatile, tuning, now, server)).collect()
}

fn view(state: &State, volatile: &Volatile, tuning: &Tuning, now: Now, server: &Server) -> ServerView {
    let id = server.id;
    let registration = &server.registration;
    let is_condemned = volatile.leases.condemned().any(|(condemned, _)| condemned == id);
    let (life, how, died_micros) = match &server.life {
        Life::Live if is_condemned => ("lapsed", None, None),
        Life::Live if volatile.draining.contains(&id) || state.servers.is_draining(id) => ("draining", None, None),
        Life::Live => ("live", None, None),
        Life::Dead { how, noticed_micros } => ("dead", Some(how.clone()), Some(*noticed_micros)),
    };
    let age = |renewed| now.moment.saturating_since(renewed).as_millis() as u64;
    let report = volatile.loads.get(&id).map(|load| &load.report);
    ServerView {
        server_id: id.0,
        address: registration.address.clone(),
        zone: registration.zone.clone(),
        version: registration.version.clone(),
        state: life,
        how,
        pid: registration.pid,
        parent_pid: registration.parent_pid,
        registered_micros: server.registered_micros,
        died_micros,
        lease_age_ms: volatile.leases.session(id).map(|session| age(session.renewed)),
        lease_ms: tuning.lease_ms,
        tablets: state.index.owned(id).len(),
        load: load(volatile, id),
        memory_bytes: report.map_or(0, |report| report.memory_bytes),
        memtable_bytes: report.map_or(0, |report| report.memtable_bytes),
        unflushed_log_bytes: report.map_or(0, |report| report.unflushed_log_bytes),
        budget: volatile.loads.get(&id).and_then(|load| compactions::budget(load)),
    }
}

fn load(volatile: &Volatile, server: uruk_proto::ServerId) -> Option<LoadView> {
    let load = volatile.loads.get(&server)?;
    let seconds = load.interval_ms as f64 / 1_000.0;
    let rate = |count: u64| if load.interval_ms == 0 { 0.0 } else { count as f64 / seconds };
    let sum = |of: fn(&uruk_proto::master::TabletLoad) -> u64| rate(load.tablets.values().map(of).sum());
    let report = &load.report;
    let lookups = report.cache_hits + report.cache_misses;
    Some(LoadView {
        reads_per_s: sum(|tablet| tablet.reads),
        writes_per_s: sum(|tablet| tablet.writes),
        read_bytes_per_s: sum(|tablet| tablet.bytes_read),
        written_bytes_per_s: sum(|tablet| tablet.bytes_written),
        cpu_percent: rate(load.cpu_micros) / 10_000.0,
        cache_bytes: report.cache_bytes,
        cache_hit_percent: if lookups == 0 { 0.0 } else { report.cache_hits as f64 * 100.0 / lookups as f64 },
        compactions_running: report.compactions_running,
        compactions_queued: report.compactions_queued,
    })
}
