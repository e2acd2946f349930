//! Flushes, compactions and memory budgets, as people see them: what tablet servers reported last. Only the leader
//! hears reports.

use serde::Serialize;
use uruk_proto::limits::MAINTENANCE_JOBS_MAX;
use uruk_proto::master::{MaintenanceJob, MaintenanceKind, MaintenanceTotals, MemoryBudget};
use uruk_proto::{ServerId, TabletId};

use crate::state::State;
use crate::volatile::{Load, Loads};

/// Flushes and compactions of the whole cluster.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct CompactionsView {
    /// Those that run, and then those that wait; of each server at most 32 of either.
    pub jobs: Vec<JobView>,
    /// All servers together.
    pub total: MaintenanceView,
    /// Live servers that have reported.
    pub servers: Vec<ServerCompactionsView>,
}

/// A flush or compaction.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct JobView {
    /// `running` or `queued`.
    pub state: &'static str,
    /// Where.
    pub server_id: u64,
    /// Of which tablet.
    pub tablet_id: u64,
    /// Of which table; empty when the tablet is gone.
    pub table: String,
    /// `minor` (a flush), `merging` (some files of a locality group) or `major` (all of them).
    pub kind: &'static str,
    /// Of a compaction; null for a flush, which takes all groups.
    pub locality_group: Option<u32>,
    /// In a word.
    pub reason: String,
    /// Files to merge.
    pub input_files: u32,
    /// Their bytes; of a flush bytes of memtables.
    pub input_bytes: u64,
    /// Of those, merged by now.
    pub bytes_done: u64,
    /// The same in percent.
    pub percent: f64,
    /// Bytes of new files.
    pub bytes_written: u64,
    /// Wall time of the server, in microseconds since 1970; null while it waits.
    pub started_micros: Option<i64>,
    /// How long it had run when it was reported, in milliseconds.
    pub running_ms: u64,
}

impl JobView {
    /// How long it had run, in seconds with a tenth.
    pub fn running_s(&self) -> String {
        format!("{:.1}", self.running_ms as f64 / 1_000.0)
    }
}

/// What one server, or all together, has done and has to do.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct MaintenanceView {
    /// Under way.
    pub flushes_running: u32,
    /// Due.
    pub flushes_queued: u32,
    /// Under way.
    pub compactions_running: u32,
    /// Due, the first of each tablet.
    pub compactions_queued: u32,
    /// Done since the servers' starts, as all numbers up to `write_amplification`.
    pub flushes: u64,
    /// Done.
    pub compactions: u64,
    /// Bytes that users wrote, as logged.
    pub log_bytes: u64,
    /// Bytes that flushes wrote.
    pub flushed_bytes: u64,
    /// Bytes that compactions merged.
    pub compaction_read_bytes: u64,
    /// Bytes that compactions wrote.
    pub compaction_written_bytes: u64,
    /// (log + flushed + written by compactions) / log; null before the first write. Replicas are not counted.
    pub write_amplification: Option<f64>,
    /// Bytes of files now.
    pub file_bytes: u64,
    /// Bytes that compactions of all files would leave, estimated: of files whose keys overlap the largest.
    pub kept_bytes: u64,
    /// `file_bytes` / `kept_bytes`; null without files. An estimate.
    pub space_amplification: Option<f64>,
}

/// One server.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ServerCompactionsView {
    /// Which.
    pub server_id: u64,
    /// Where it serves.
    pub address: String,
    /// How fast its compactions may write, in bytes per second, as of the last one; 0: no limit.
    pub compaction_bytes_per_s: u64,
    /// What it has done and has to do.
    #[serde(flatten)]
    pub maintenance: MaintenanceView,
    /// What it may keep in memory.
    pub budget: Option<BudgetView>,
}

/// What a tablet server may keep in memory, and what it had to refuse for that.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct BudgetView {
    /// Bytes of memtables.
    pub memtable_bytes: u64,
    /// Beyond it they are flushed.
    pub memtable_bytes_soft: u64,
    /// Beyond it writes are refused.
    pub memtable_bytes_hard: u64,
    /// The most since the server's start.
    pub memtable_bytes_peak: u64,
    /// What a recovery would have to read.
    pub unflushed_log_bytes: u64,
    /// Beyond it writes are refused.
    pub unflushed_log_bytes_max: u64,
    /// Block cache.
    pub cache_bytes: u64,
    /// It holds no more.
    pub cache_bytes_max: u64,
    /// Index kept beside the cache.
    pub index_bytes: u64,
    /// Beyond it index goes through the cache.
    pub index_bytes_max: u64,
    /// Blocks of in-memory locality groups.
    pub in_memory_bytes: u64,
    /// Beyond it they go through the cache.
    pub in_memory_bytes_max: u64,
    /// Calls and results that are remembered for retries.
    pub remembered_bytes: u64,
    /// Beyond it calls are refused.
    pub remembered_bytes_max: u64,
    /// Writes refused, with a delay for their retry, since the server's start: memtables were full.
    pub refused_for_memtables: u64,
    /// Too much of the log was unflushed.
    pub refused_for_log: u64,
    /// Too much waited for the log.
    pub refused_for_queue: u64,
    /// Too much was remembered of calls.
    pub refused_for_calls: u64,
    /// Memory of the process.
    pub memory_bytes: u64,
    /// What the process may use; 0: unknown.
    pub memory_limit_bytes: u64,
}

impl BudgetView {
    /// Writes (calls, or pieces of them) refused for any reason.
    pub fn refused(&self) -> u64 {
        let refused =
            [self.refused_for_memtables, self.refused_for_log, self.refused_for_queue, self.refused_for_calls];
        refused.into_iter().fold(0, u64::saturating_add)
    }

    /// Memtables, of their hard limit.
    pub fn memtable_percent(&self) -> u64 {
        percent(self.memtable_bytes, self.memtable_bytes_hard)
    }

    /// Their soft limit, of the hard one.
    pub fn soft_percent(&self) -> u64 {
        percent(self.memtable_bytes_soft, self.memtable_bytes_hard)
    }

    /// `good` below the soft limit, `bad` at the hard one.
    pub fn class(&self) -> &'static str {
        match self.memtable_bytes {
            bytes if bytes >= self.memtable_bytes_hard => "bad",
            bytes if bytes >= self.memtable_bytes_soft => "busy",
            _ => "good",
        }
    }

    /// Its parts, for display: name, bytes, limit.
    pub fn parts(&self) -> [(&'static str, u64, u64); 5] {
        [
            ("unflushed log", self.unflushed_log_bytes, self.unflushed_log_bytes_max),
            ("block cache", self.cache_bytes, self.cache_bytes_max),
            ("index", self.index_bytes, self.index_bytes_max),
            ("in-memory groups", self.in_memory_bytes, self.in_memory_bytes_max),
            ("remembered calls", self.remembered_bytes, self.remembered_bytes_max),
        ]
    }
}

/// At most 100.
pub fn percent(part: u64, whole: u64) -> u64 {
    if whole == 0 { 0 } else { (u128::from(part.min(whole)) * 100 / u128::from(whole)) as u64 }
}

/// As reported: tables and addresses are not looked up yet.
pub fn all(loads: &Loads, jobs_max: usize) -> CompactionsView {
    let (mut running, mut queued, mut servers) = (Vec::new(), Vec::new(), Vec::new());
    for (id, load) in loads {
        let of_server = Counts::of(load);
        let Some(maintenance) = &load.report.maintenance else { continue };
        let job = |job| (*id, job);
        running.extend(maintenance.running.iter().take(MAINTENANCE_JOBS_MAX).map(job));
        queued.extend(maintenance.queued.iter().take(MAINTENANCE_JOBS_MAX).map(job));
        let own = maintenance.totals.unwrap_or_default();
        servers.push(ServerCompactionsView {
            server_id: id.0,
            address: String::new(),
            compaction_bytes_per_s: maintenance.compaction_bytes_per_second,
            maintenance: of_server.view(&own),
            budget: budget(load),
        });
    }
    running.sort_by_key(|(_, job): &(ServerId, &MaintenanceJob)| job.started_micros);
    let running = running.into_iter().map(|(server, job)| view(server, "running", job));
    let queued = queued.into_iter().map(|(server, job)| view(server, "queued", job));
    CompactionsView { jobs: running.chain(queued).take(jobs_max).collect(), total: total(loads), servers }
}

/// Looks up where they serve.
pub fn name_servers(servers: &mut [ServerCompactionsView], state: &State) {
    for server in servers {
        server.address = state.servers.address(ServerId(server.server_id)).unwrap_or_default().to_owned();
    }
}

/// Looks up of which tables their tablets are.
pub fn name_tables(jobs: &mut [JobView], state: &State) {
    for job in jobs {
        let table = state.row(TabletId(job.tablet_id)).and_then(|row| state.tables.get(row.table));
        job.table = table.map(|table| table.schema.name.clone()).unwrap_or_default();
    }
}

/// All servers together, without their jobs.
pub fn total(loads: &Loads) -> MaintenanceView {
    let reports = || loads.values();
    let counts = reports().map(|load| Counts::of(load)).fold(Counts::default(), Counts::plus);
    let totals = reports().filter_map(|load| load.report.maintenance.as_ref()?.totals);
    counts.view(&totals.fold(MaintenanceTotals::default(), |sum, own| sum.plus(&own)))
}

/// What a server may keep in memory; None when it does not tell.
pub fn budget(load: &Load) -> Option<BudgetView> {
    let report = &load.report;
    let budget: &MemoryBudget = report.budget.as_ref()?;
    Some(BudgetView {
        memtable_bytes: report.memtable_bytes,
        memtable_bytes_soft: budget.memtable_bytes_soft,
        memtable_bytes_hard: budget.memtable_bytes_hard,
        memtable_bytes_peak: budget.memtable_bytes_peak,
        unflushed_log_bytes: report.unflushed_log_bytes,
        unflushed_log_bytes_max: budget.unflushed_log_bytes_max,
        cache_bytes: report.cache_bytes,
        cache_bytes_max: budget.cache_bytes_max,
        index_bytes: budget.index_bytes,
        index_bytes_max: budget.index_bytes_max,
        in_memory_bytes: budget.in_memory_bytes,
        in_memory_bytes_max: budget.in_memory_bytes_max,
        remembered_bytes: budget.remembered_bytes,
        remembered_bytes_max: budget.remembered_bytes_max,
        refused_for_memtables: budget.refused_for_memtables,
        refused_for_log: budget.refused_for_log,
        refused_for_queue: budget.refused_for_queue,
        refused_for_calls: budget.refused_for_calls,
        memory_bytes: report.memory_bytes,
        memory_limit_bytes: report.memory_limit_bytes,
    })
}

fn view(server: ServerId, state: &'static str, job: &MaintenanceJob) -> JobView {
    let kind = job.kind();
    JobView {
        state,
        server_id: server.0,
        tablet_id: job.tablet_id,
        table: String::new(),
        kind: match kind {
            MaintenanceKind::Minor => "minor",
            MaintenanceKind::Merging => "merging",
            MaintenanceKind::Major => "major",
            MaintenanceKind::Unspecified => "unknown",
        },
        locality_group: (kind != MaintenanceKind::Minor).then_some(job.locality_group),
        reason: job.reason.clone(),
        input_files: job.input_files,
        input_bytes: job.input_bytes,
        bytes_done: job.bytes_done,
        percent: if job.input_bytes == 0 { 0.0 } else { job.bytes_done as f64 * 100.0 / job.input_bytes as f64 },
        bytes_written: job.bytes_written,
        started_micros: (job.started_micros != 0).then_some(job.started_micros),
        running_ms: job.running_ms,
    }
}

/// Jobs that run and wait.
#[derive(Clone, Copy, Default)]
struct Counts {
    flushes_running: u32,
    flushes_queued: u32,
    compactions_running: u32,
    compactions_queued: u32,
}

impl Counts {
    fn of(load: &Load) -> Counts {
        let maintenance = load.report.maintenance.as_ref();
        Counts {
            flushes_running: maintenance.map_or(0, |maintenance| maintenance.flushes_running),
            flushes_queued: maintenance.map_or(0, |maintenance| maintenance.flushes_queued),
            compactions_running: load.report.compactions_running,
            compactions_queued: load.report.compactions_queued,
        }
    }

    fn plus(self, other: Counts) -> Counts {
        Counts {
            flushes_running: self.flushes_running.saturating_add(other.flushes_running),
            flushes_queued: self.flushes_queued.saturating_add(other.flushes_queued),
            compactions_running: self.compactions_running.saturating_add(other.compactions_running),
            compactions_queued: self.compactions_queued.saturating_add(other.compactions_queued),
        }
    }

    fn view(self, totals: &MaintenanceTotals) -> MaintenanceView {
        MaintenanceView {
            flushes_running: self.flushes_running,
            flushes_queued: self.flushes_queued,
            compactions_running: self.compactions_running,
            compactions_queued: self.compactions_queued,
            flushes: totals.flushes,
            compactions: totals.compactions,
            log_bytes: totals.log_bytes,
            flushed_bytes: totals.flushed_bytes,
            compaction_read_bytes: totals.compaction_read_bytes,
            compaction_written_bytes: totals.compaction_written_bytes,
            write_amplification: totals.write_amplification(),
            file_bytes: totals.file_bytes,
            kept_bytes: totals.kept_bytes,
            space_amplification: totals.space_amplification(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use uruk_proto::master::{Maintenance, ServerLoad};

    use super::*;

    #[test]
    fn what_is_not_shown_is_not_made() {
        let job = |started_micros| MaintenanceJob { started_micros, ..MaintenanceJob::default() };
        let maintenance = |id: i64| Maintenance {
            running: (0..50).map(|i| job(1 + (i * 7 + id) % 100)).collect(),
            queued: vec![job(0); 50],
            ..Maintenance::default()
        };
        let load = |id| {
            let report = ServerLoad { maintenance: Some(maintenance(id)), ..ServerLoad::default() };
            (ServerId(id as u64), Arc::new(Load { report, ..Load::default() }))
        };
        let loads: Loads = (1..=10).map(load).collect();
        let all_jobs = all(&loads, usize::MAX).jobs;
        assert_eq!(all_jobs.len(), 10 * 2 * MAINTENANCE_JOBS_MAX);
        let running = all_jobs.iter().filter_map(|job| job.started_micros);
        assert!(running.clone().is_sorted() && running.count() == 10 * MAINTENANCE_JOBS_MAX);
        assert_eq!(all(&loads, 200).jobs, all_jobs[..200]);
        assert_eq!(all(&loads, 400).jobs, all_jobs[..400], "some that run, some that wait");
    }

    #[test]
    fn a_share_is_never_more_than_all() {
        for (part, whole, expected) in [(0, 0, 0), (5, 0, 0), (0, 9, 0), (1, 3, 33), (3, 3, 100), (9, 3, 100)] {
            assert_eq!(percent(part, whole), expected, "{part} of {whole}");
        }
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
    }
}
