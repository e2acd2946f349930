//! Flushes and compactions as the server's report shows them: what runs, what waits, totals.
//!
//! Invariants: (1) a job is listed from its start until its [`Running`] is dropped, however it ends; (2) totals
//! never fall: what a job has done is added in the step that takes it off the list; (3) a report lists at most
//! [`MAINTENANCE_JOBS_MAX`] jobs of either sort.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

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

/// What waits is looked up again after this time at the earliest: it takes a look at every tablet, and a server
/// whose master does not answer tries to report many times a second.
const WAITING_EVERY: Duration = Duration::from_millis(200);

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
    /// What the counters show.
    counted: MaintenanceTotals,
}

/// The flushes and compactions of a server.
#[derive(Debug)]
pub struct Jobs {
    board: Mutex<Board>,
    /// What waited at the last look.
    waiting: Mutex<Option<(Moment, Waiting)>>,
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
            waiting: Mutex::default(),
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
        entry.add_to(&mut board.totals);
        self.running_gauge(&entry.job).dec();
        self.count(&mut board);
    }

    /// Takes the counters to what all jobs so far have read and written, which it returns.
    fn count(&self, board: &mut Board) -> MaintenanceTotals {
        let mut totals = board.totals;
        board.running.values().for_each(|entry| entry.add_to(&mut totals));
        let counted = std::mem::replace(&mut board.counted, totals);
        // No difference is negative: what a job has done never falls, on the list or off it.
        self.flushed_bytes.inc_by(totals.flushed_bytes - counted.flushed_bytes);
        self.compaction_read_bytes.inc_by(totals.compaction_read_bytes - counted.compaction_read_bytes);
        self.compaction_written_bytes.inc_by(totals.compaction_written_bytes - counted.compaction_written_bytes);
        totals
    }

    fn now(&self, now: Moment) -> Now {
        let mut board = self.board.lock();
        let totals = self.count(&mut board);
        let listed = board.running.values().take(MAINTENANCE_JOBS_MAX).map(|entry| entry.to_message(now)).collect();
        let jobs = |is_flush: bool| {
            let entries = board.running.values().filter(move |entry| entry.job.is_flush() == is_flush);
            entries.map(|entry| entry.job.tablet).collect::<Vec<_>>()
        };
        Now { flushes: jobs(true), compactions: jobs(false), listed, totals }
    }
}

/// What runs at one moment.
struct Now {
    /// The tablets that are flushed.
    flushes: Vec<TabletId>,
    /// The tablets that are compacted.
    compactions: Vec<TabletId>,
    /// The first jobs of both sorts.
    listed: Vec<MaintenanceJob>,
    /// What all jobs so far have read and written.
    totals: MaintenanceTotals,
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
    let now = server.env.clock.now();
    let at_present = server.jobs.now(now);
    let waiting = server.jobs.waiting(server, now, &at_present);
    let totals = MaintenanceTotals {
        log_bytes: server.log.appended_bytes(),
        file_bytes: waiting.file_bytes,
        kept_bytes: waiting.kept_bytes,
        flushes: server.metrics.flushes.get(),
        compactions: server.metrics.compactions.get(),
        ..at_present.totals
    };
    let maintenance = Maintenance {
        running: at_present.listed,
        queued: waiting.listed,
        flushes_running: at_present.flushes.len() as u32,
        flushes_queued: waiting.flushes,
        totals: Some(totals),
        compaction_bytes_per_second: server.engine.compaction_bytes_per_second(),
    };
    (maintenance, at_present.compactions.len() as u32, waiting.compactions)
}

impl Jobs {
    /// What waits beside what runs: looked up now, or a moment ago.
    fn waiting(&self, server: &Server, now: Moment, at_present: &Now) -> Waiting {
        let last = self.waiting.lock().clone();
        if let Some((at, waiting)) = last
            && now.saturating_since(at) < WAITING_EVERY
        {
            return waiting;
        }
        let waiting = Waiting::look(server, at_present);
        // What became due as time went by, nobody has told their tasks.
        if waiting.flushes > 0 {
            server.budget.wake_flusher.notify_one();
        }
        if waiting.compactions > 0 && at_present.compactions.is_empty() {
            server.wake_compactor.notify_one();
        }
        *self.waiting.lock() = Some((now, waiting.clone()));
        waiting
    }
}

/// What waits, and how much room it all takes.
#[derive(Clone, Debug)]
struct Waiting {
    flushes: u32,
    compactions: u32,
    listed: Vec<MaintenanceJob>,
    file_bytes: u64,
    kept_bytes: u64,
}

impl Waiting {
    fn look(server: &Server, at_present: &Now) -> Waiting {
        let flushes = flush::queue(server, &at_present.flushes.iter().copied().collect());
        let is_waiting = |tablet: TabletId| !at_present.compactions.contains(&tablet);
        let compactions: Vec<_> =
            compact::due(server).into_iter().filter(|(tablet, _)| is_waiting(tablet.id)).collect();
        let listed_flushes = flushes
            .iter()
            .take(MAINTENANCE_JOBS_MAX / 2)
            .map(|(candidate, reason)| Job::queued_flush(candidate.id, candidate.memtable_bytes, *reason).to_message());
        let listed = compactions.iter().map(|(tablet, compaction)| Job::compaction(tablet.id, compaction).to_message());
        let tablets = server.tablets.loaded();
        let space = tablets.iter().map(|tablet| tablet.store.space());
        let (file_bytes, kept_bytes) = space.fold((0, 0), |sum, tablet| (sum.0 + tablet.0, sum.1 + tablet.1));
        Waiting {
            flushes: flushes.len() as u32,
            compactions: compactions.len() as u32,
            // Flushes never wait for compactions.
            listed: listed_flushes.chain(listed).take(MAINTENANCE_JOBS_MAX).collect(),
            file_bytes,
            kept_bytes,
        }
    }
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
        let Now { flushes, compactions, listed, .. } = jobs.now(env.clock.now());
        assert_eq!((flushes, compactions), (vec![TabletId(1)], vec![TabletId(2)]));
        assert_eq!(listed.iter().map(|job| job.tablet_id).collect::<Vec<_>>(), [1, 2], "the oldest first");
        assert_eq!((&*listed[1].reason, listed[1].kind()), ("ratio", MaintenanceKind::Merging));
        merge.progress.wrote(70);
        assert_eq!(
            (jobs.now(env.clock.now()).totals.compaction_written_bytes, jobs.compaction_written_bytes.get()),
            (70, 70)
        );
        merge.progress.wrote(30);
        drop((flush, merge));
        assert_eq!(jobs.compaction_written_bytes.get(), 100, "also what was written since the last report");
        let Now { flushes, compactions, listed, totals } = jobs.now(env.clock.now());
        assert_eq!((flushes, compactions, listed), (vec![], vec![], vec![]));
        assert_eq!(totals.compaction_written_bytes, 100);
    }

    #[test]
    fn a_report_lists_no_more_than_its_limit_and_counts_all() {
        let (env, jobs) = (Env::real(), Jobs::new(&Metrics::new()));
        let running: Vec<_> = (0..100).map(|tablet| jobs.start(&env, job(tablet))).collect();
        let Now { compactions, listed, .. } = jobs.now(env.clock.now());
        assert_eq!((compactions.len(), listed.len()), (100, MAINTENANCE_JOBS_MAX));
        drop(running);
    }
}
