//! Flushes and compactions as the server's report shows them: what runs, what waits, totals.
//!
//! Invariants: (1) a job is listed from its start until its [`Running`] is dropped, however it ends; (2) totals
//! never fall: what a job has done is added in the step that takes it off the list; (3) a report lists at most
//! [`MAINTENANCE_JOBS_MAX`] jobs of either sort.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use uruk_base::metrics::{Counter, Gauge};
use uruk_base::{Env, Metrics, Moment};
use uruk_proto::TabletId;
use uruk_proto::limits::MAINTENANCE_JOBS_MAX;
use uruk_proto::master::{Maintenance, MaintenanceJob, MaintenanceKind, MaintenanceTotals};

use super::Server;
use super::compact;
use super::flush::{self, FlushReason};
use crate::engine::compaction::{Compaction, Kind};
use crate::engine::{FreezeToken, Progress};

/// A flush or compaction, not begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Job {
    tablet: TabletId,
    kind: MaintenanceKind,
    locality_group: u32,
    reason: &'static str,
    input_files: usize,
    input_bytes: u64,
    input_entries: u64,
}

impl Job {
    /// A flush of frozen memtables; without them only the memory of calls is written.
    pub fn flush(tablet: TabletId, token: Option<&FreezeToken>, reason: FlushReason) -> Job {
        let (bytes, entries) = token.map_or((0, 0), |token| (token.bytes(), token.entries()));
        Job { input_entries: entries, ..Job::queued_flush(tablet, bytes, reason) }
    }

    /// A flush that waits, of about so many bytes.
    fn queued_flush(tablet: TabletId, input_bytes: u64, reason: FlushReason) -> Job {
        let kind = MaintenanceKind::Minor;
        let reason = reason.word();
        Job { tablet, kind, locality_group: 0, reason, input_files: 0, input_bytes, input_entries: 0 }
    }

    /// A compaction.
    pub fn compaction(tablet: TabletId, compaction: &Compaction) -> Job {
        let (input_bytes, input_entries) = compaction.input_size();
        Job {
            tablet,
            kind: match compaction.kind {
                Kind::Merging => MaintenanceKind::Merging,
                Kind::Major => MaintenanceKind::Major,
            },
            locality_group: compaction.locality_group,
            reason: compaction.reason.word(),
            input_files: compaction.inputs.len(),
            input_bytes,
            input_entries,
        }
    }

    fn is_flush(&self) -> bool {
        self.kind == MaintenanceKind::Minor
    }

    fn to_message(self) -> MaintenanceJob {
        MaintenanceJob {
            tablet_id: self.tablet.0,
            kind: self.kind as i32,
            locality_group: self.locality_group,
            reason: self.reason.to_owned(),
            input_files: self.input_files as u32,
            input_bytes: self.input_bytes,
            ..MaintenanceJob::default()
        }
    }
}

#[derive(Debug)]
struct Entry {
    job: Job,
    started: Moment,
    started_micros: i64,
    progress: Arc<Progress>,
}

impl Entry {
    fn done_bytes(&self) -> u64 {
        self.progress.done_bytes(self.job.input_bytes, self.job.input_entries)
    }

    fn add_to(&self, totals: &mut MaintenanceTotals) {
        if self.job.is_flush() {
            totals.flushed_bytes += self.progress.written_bytes();
        } else {
            totals.compaction_read_bytes += self.done_bytes();
            totals.compaction_written_bytes += self.progress.written_bytes();
        }
    }

    fn to_message(&self, now: Moment) -> MaintenanceJob {
        MaintenanceJob {
            bytes_done: self.done_bytes(),
            bytes_written: self.progress.written_bytes(),
            started_micros: self.started_micros,
            running_ms: now.saturating_since(self.started).as_millis() as u64,
            ..self.job.to_message()
        }
    }
}

#[derive(Debug, Default)]
struct Board {
    last: u64,
    /// In the order of their starts.
    running: BTreeMap<u64, Entry>,
    /// Of those that have ended.
    totals: MaintenanceTotals,
}

/// The flushes and compactions of a server.
#[derive(Debug)]
pub struct Jobs {
    board: Mutex<Board>,
    flushes_running: Gauge,
    compactions_running: Gauge,
    flushed_bytes: Counter,
    compaction_read_bytes: Counter,
    compaction_written_bytes: Counter,
}

impl Jobs {
    /// Nothing runs.
    pub fn new(metrics: &Metrics) -> Jobs {
        let counter = |name: &str, help: &str| metrics.register(name, help, Counter::default());
        let gauge = |name: &str, help: &str| metrics.register(name, help, Gauge::default());
        Jobs {
            board: Mutex::default(),
            flushes_running: gauge("uruk_tabletserver_flushes_running", "Flushes that run now."),
            compactions_running: gauge("uruk_tabletserver_compactions_running", "Compactions that run now."),
            flushed_bytes: counter("uruk_tabletserver_flushed_bytes", "Bytes that flushes have written."),
            compaction_read_bytes: counter(
                "uruk_tabletserver_compaction_read_bytes",
                "Bytes of files that compactions have merged.",
            ),
            compaction_written_bytes: counter(
                "uruk_tabletserver_compaction_written_bytes",
                "Bytes of files that compactions have written.",
            ),
        }
    }

    /// Lists a job from now on.
    pub fn start<'a>(&'a self, env: &Env, job: Job) -> Running<'a> {
        let progress = Arc::<Progress>::default();
        let (started, started_micros) = (env.clock.now(), env.clock.wall_micros());
        let mut board = self.board.lock();
        board.last += 1;
        let number = board.last;
        board.running.insert(number, Entry { job, started, started_micros, progress: progress.clone() });
        self.running_gauge(&job).inc();
        Running { jobs: self, number, progress }
    }

    fn running_gauge(&self, job: &Job) -> &Gauge {
        if job.is_flush() { &self.flushes_running } else { &self.compactions_running }
    }

    fn end(&self, number: u64) {
        let mut board = self.board.lock();
        let Some(entry) = board.running.remove(&number) else { return };
        let before = board.totals;
        entry.add_to(&mut board.totals);
        self.running_gauge(&entry.job).dec();
        self.flushed_bytes.inc_by(board.totals.flushed_bytes - before.flushed_bytes);
        self.compaction_read_bytes.inc_by(board.totals.compaction_read_bytes - before.compaction_read_bytes);
        self.compaction_written_bytes.inc_by(board.totals.compaction_written_bytes - before.compaction_written_bytes);
    }

    /// Whether a compaction of this tablet runs.
    pub fn compacts(&self, tablet: TabletId) -> bool {
        self.board.lock().running.values().any(|entry| entry.job.tablet == tablet && !entry.job.is_flush())
    }

    /// Whether a flush of this tablet runs.
    pub fn flushes(&self, tablet: TabletId) -> bool {
        self.board.lock().running.values().any(|entry| entry.job.tablet == tablet && entry.job.is_flush())
    }

    /// Running flushes, running compactions, the first of both, and what all jobs so far have read and written.
    fn now(&self, now: Moment) -> (u32, u32, Vec<MaintenanceJob>, MaintenanceTotals) {
        let board = self.board.lock();
        let mut totals = board.totals;
        board.running.values().for_each(|entry| entry.add_to(&mut totals));
        let flushes = board.running.values().filter(|entry| entry.job.is_flush()).count();
        let listed = board.running.values().take(MAINTENANCE_JOBS_MAX).map(|entry| entry.to_message(now)).collect();
        (flushes as u32, (board.running.len() - flushes) as u32, listed, totals)
    }
}

/// Takes its job off the list when it is dropped.
#[derive(Debug)]
pub struct Running<'a> {
    jobs: &'a Jobs,
    number: u64,
    /// To be told how far it has come.
    pub progress: Arc<Progress>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.jobs.end(self.number);
    }
}

/// What a report says of flushes and compactions; and how many compactions run and wait.
pub fn report(server: &Server) -> (Maintenance, u32, u32) {
    let (flushes_running, compactions_running, running, done) = server.jobs.now(server.env.clock.now());
    let flushes = flush::queue(server);
    let compactions: Vec<_> =
        compact::due(server).into_iter().filter(|(tablet, _)| !server.jobs.compacts(tablet.id)).collect();
    let waiting_flushes = flushes
        .iter()
        .map(|(candidate, reason)| Job::queued_flush(candidate.id, candidate.memtable_bytes, *reason).to_message());
    let waiting = compactions.iter().map(|(tablet, compaction)| Job::compaction(tablet.id, compaction).to_message());
    let (mut file_bytes, mut kept_bytes) = (0, 0);
    for tablet in server.tablets.loaded() {
        let (bytes, kept) = tablet.store.space();
        file_bytes += bytes;
        kept_bytes += kept;
    }
    let totals = MaintenanceTotals {
        log_bytes: server.log.appended_bytes(),
        file_bytes,
        kept_bytes,
        flushes: server.metrics.flushes.get(),
        compactions: server.metrics.compactions.get(),
        ..done
    };
    let maintenance = Maintenance {
        running,
        // Flushes never wait for compactions.
        queued: waiting_flushes.chain(waiting).take(MAINTENANCE_JOBS_MAX).collect(),
        flushes_running,
        flushes_queued: flushes.len() as u32,
        totals: Some(totals),
        compaction_bytes_per_second: server.engine.compaction_bytes_per_second(),
    };
    (maintenance, compactions_running, compactions.len() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(tablet: u64) -> Job {
        let kind = MaintenanceKind::Merging;
        let tablet = TabletId(tablet);
        Job { tablet, kind, locality_group: 3, reason: "ratio", input_files: 4, input_bytes: 1000, input_entries: 10 }
    }

    #[test]
    fn jobs_are_listed_while_they_run_and_counted_after() {
        let (env, jobs) = (Env::real(), Jobs::new(&Metrics::new()));
        let flush = jobs.start(&env, Job::queued_flush(TabletId(1), 50, FlushReason::Memtable));
        let merge = jobs.start(&env, job(2));
        let (flushes, compactions, listed, _) = jobs.now(env.clock.now());
        assert_eq!((flushes, compactions), (1, 1));
        assert_eq!(listed.iter().map(|job| job.tablet_id).collect::<Vec<_>>(), [1, 2], "the oldest first");
        assert_eq!((&*listed[1].reason, listed[1].kind()), ("ratio", MaintenanceKind::Merging));
        assert!(jobs.compacts(TabletId(2)) && !jobs.compacts(TabletId(1)));
        drop((flush, merge));
        let (flushes, compactions, listed, _) = jobs.now(env.clock.now());
        assert_eq!((flushes, compactions, listed), (0, 0, vec![]));
    }

    #[test]
    fn a_report_lists_no_more_than_its_limit_and_counts_all() {
        let (env, jobs) = (Env::real(), Jobs::new(&Metrics::new()));
        let running: Vec<_> = (0..100).map(|tablet| jobs.start(&env, job(tablet))).collect();
        let (_, compactions, listed, _) = jobs.now(env.clock.now());
        assert_eq!((compactions, listed.len()), (100, MAINTENANCE_JOBS_MAX));
        drop(running);
    }
}
