//! Flushes: which tablet next (pure), one tablet's flush, and the trimming of the own log.
//!
//! Invariant: the log is let go only after the commit of the flush, never when it starts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use uruk_base::commit_log::Lsn;
use uruk_base::planted::{Planted, is_planted};
use uruk_proto::master::CommitFilesRequest;
use uruk_proto::{ErrorCode, RpcError, TabletId};

use super::Server;
use super::commit_files::CommitOutcome;
use super::jobs::Job;
use super::tablet::{FlushWork, Tablet, TabletState};
use crate::engine::{EngineError, Progress};

/// The log is trimmed when this many bytes more can go.
const TRIM_STEP_BYTES: u64 = 8 << 20;
/// Dead servers' logs are let go once no tablet was opened for this long.
const RECOVERY_QUIET: Duration = Duration::from_secs(1);
/// Idle tablets are looked for at least this often.
const LOOK_EVERY_MAX: Duration = Duration::from_secs(60);
/// Pause after a flush that failed.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// What decides whether a tablet is flushed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Which tablet.
    pub id: TabletId,
    /// Bytes of its memtables.
    pub memtable_bytes: u64,
    /// Since when it needs the own log for what a flush would write.
    pub since: Option<Lsn>,
    /// Dead servers' logs are needed for it.
    pub has_foreign_logs: bool,
    /// Nobody writes it any more, or it waits for long: [`IdleWatch`](super::idle::IdleWatch).
    pub is_idle: bool,
}

/// Which limits are passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pressure {
    /// The memtables are over their soft limit, by this many bytes.
    pub memtable: Option<u64>,
    /// So is the unflushed part of the log: what needs it from before this position has to go.
    pub log: Option<Lsn>,
    /// Tablets are being opened, or were a moment ago: what can wait must not compete with it.
    pub recovering: bool,
}

/// Why a tablet is flushed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlushReason {
    /// It holds back the own log.
    Log,
    /// It is large.
    Memtable,
    /// It holds back dead servers' logs.
    Recovery,
    /// Nobody writes it any more, or its writes wait for long.
    Idle,
    /// It is about to be given away, or replaced.
    Handover,
}

impl FlushReason {
    /// In a word, for people.
    pub fn word(self) -> &'static str {
        match self {
            FlushReason::Log => "log",
            FlushReason::Memtable => "memtable",
            FlushReason::Recovery => "recovery",
            FlushReason::Idle => "idle",
            FlushReason::Handover => "handover",
        }
    }
}

/// The tablets to flush, the next one first: those that hold back the oldest positions of the own log, else the
/// largest; without pressure those that free dead servers' logs, then those that are idle. As many as it takes until
/// the limits are kept.
pub fn order(candidates: &[Candidate], pressure: Pressure) -> Vec<(Candidate, FlushReason)> {
    let mut chosen: Vec<Candidate> = candidates.to_vec();
    let reason = match pressure {
        Pressure { log: Some(upto), .. } => {
            chosen.retain(|candidate| candidate.since.is_some());
            chosen.sort_by_key(|candidate| candidate.since);
            let needed = chosen.iter().take_while(|candidate| candidate.since <= Some(upto)).count();
            // The oldest in any case: what holds back the log more than it may be on its way to a memtable.
            chosen.truncate(needed.max(1));
            FlushReason::Log
        }
        Pressure { memtable: Some(excess), .. } => {
            chosen.retain(|candidate| candidate.memtable_bytes > 0);
            chosen.sort_by_key(|candidate| std::cmp::Reverse(candidate.memtable_bytes));
            let mut freed = 0;
            let is_over = |candidate: &&Candidate| {
                let was_over = freed <= excess;
                freed += candidate.memtable_bytes;
                was_over
            };
            let needed = chosen.iter().take_while(is_over).count();
            chosen.truncate(needed);
            FlushReason::Memtable
        }
        Pressure { memtable: None, log: None, recovering: true } => return Vec::new(),
        Pressure { memtable: None, log: None, recovering: false } => {
            let (foreign, others): (Vec<_>, Vec<_>) = chosen.into_iter().partition(|c| c.has_foreign_logs);
            let idle = others.into_iter().filter(|candidate| candidate.is_idle);
            let with = |reason| move |candidate| (candidate, reason);
            return foreign
                .into_iter()
                .map(with(FlushReason::Recovery))
                .chain(idle.map(with(FlushReason::Idle)))
                .collect();
        }
    };
    chosen.into_iter().map(|candidate| (candidate, reason)).collect()
}

/// How a flush ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlushEnd {
    /// There was nothing to flush.
    Clean,
    /// It is committed.
    Flushed,
    /// The tablet is not ours any more; it was dropped.
    Lost,
}

/// The task that keeps the budgets.
pub async fn run(server: Arc<Server>) {
    let mut running = FuturesUnordered::new();
    let mut busy: BTreeSet<TabletId> = BTreeSet::new();
    let (idle, age) = server.config.memtable_ages();
    let look_every = (idle.min(age) / 4).min(LOOK_EVERY_MAX);
    loop {
        while running.len() < server.config.flushes_max
            && let Some((tablet, reason)) = next_tablet(&server, &busy)
        {
            busy.insert(tablet.id);
            running.push(flush_and_rest(&server, tablet, reason));
        }
        tokio::select! {
            biased;
            Some(done) = running.next(), if !running.is_empty() => { busy.remove(&done); }
            () = server.budget.wake_flusher.notified(), if running.len() < server.config.flushes_max => {}
            () = server.env.clock.sleep(RECOVERY_QUIET), if has_foreign_logs(&server) => {}
            () = server.env.clock.sleep(look_every) => {}
        }
    }
}

async fn flush_and_rest(server: &Arc<Server>, tablet: Arc<Tablet>, reason: FlushReason) -> TabletId {
    match server.flush_tablet(&tablet, reason).await {
        Ok(FlushEnd::Clean | FlushEnd::Flushed | FlushEnd::Lost) => {}
        Err(error) => {
            tracing::warn!(tablet = %tablet.id, %error, "flush failed; trying again");
            server.env.clock.sleep(RETRY_DELAY).await;
        }
    }
    tablet.id
}

fn has_foreign_logs(server: &Server) -> bool {
    server.tablets.loaded().iter().any(|tablet| tablet.has_foreign_logs())
}

fn next_tablet(server: &Server, busy: &BTreeSet<TabletId>) -> Option<(Arc<Tablet>, FlushReason)> {
    server.measure();
    let tablets = server.tablets.loaded();
    let (next, reason) = order_now(server, &tablets, busy).into_iter().next()?;
    Some((tablets.into_iter().find(|tablet| tablet.id == next.id)?, reason))
}

/// The tablets that would be flushed if nothing were written any more, those under way (`busy`) apart; the server
/// has just been measured.
pub fn queue(server: &Server, busy: &BTreeSet<TabletId>) -> Vec<(Candidate, FlushReason)> {
    order_now(server, &server.tablets.loaded(), busy)
}

fn order_now(server: &Server, tablets: &[Arc<Tablet>], busy: &BTreeSet<TabletId>) -> Vec<(Candidate, FlushReason)> {
    let memtables = tablets.iter().map(|tablet| (tablet.id, tablet.store.memtable_bytes()));
    let idle = server.idle.lock().look(server.env.clock.now(), memtables, server.config.memtable_ages());
    let candidates: Vec<Candidate> = tablets
        .iter()
        .filter(|tablet| !busy.contains(&tablet.id) && tablet.state() == TabletState::Open)
        .map(|tablet| Candidate {
            id: tablet.id,
            memtable_bytes: tablet.store.memtable_bytes(),
            since: tablet.flush_frees_log_from(),
            has_foreign_logs: tablet.has_foreign_logs(),
            is_idle: idle.contains(&tablet.id),
        })
        .collect();
    // What is being flushed already will free memory: count it as gone.
    let flushing: u64 = tablets.iter().filter(|t| busy.contains(&t.id)).map(|t| t.store.memtable_bytes()).sum();
    let pressure = Pressure {
        memtable: server.budget.memtable_excess(flushing),
        log: server.budget.log_excess(),
        recovering: server.quiet_for() < RECOVERY_QUIET || server.tablets.is_opening(),
    };
    order(&candidates, pressure)
}

impl Server {
    /// Flushes all that is published in a tablet, and lets go of the log that it held.
    pub async fn flush_tablet(&self, tablet: &Arc<Tablet>, reason: FlushReason) -> Result<FlushEnd, RpcError> {
        let alone = tablet.maintenance.lock().await;
        self.flush_alone(tablet, reason, &alone).await
    }

    /// The same for who holds the tablet's `maintenance`.
    pub async fn flush_alone(
        &self,
        tablet: &Arc<Tablet>,
        reason: FlushReason,
        _alone: &tokio::sync::MutexGuard<'_, ()>,
    ) -> Result<FlushEnd, RpcError> {
        if tablet.state() == TabletState::Dropped {
            return Ok(FlushEnd::Lost);
        }
        let Some(work) = tablet.start_flush() else { return Ok(FlushEnd::Clean) };
        let started = self.env.clock.now();
        let running = self.jobs.start(&self.env, Job::flush(tablet.id, work.token.as_ref(), reason));
        if is_planted(Planted::ReleasedAtFlushStart) {
            self.commit_files(tablet, self.flush_request(tablet, &work), &[]).await;
        }
        let (request, files) = match self.write_flush(tablet, &work, &running.progress).await {
            Ok(written) => written,
            Err((error, files)) => {
                drop(running);
                // Never offered to the master: whatever was written is ours to delete.
                self.renounce(&files).await;
                return Err(error);
            }
        };
        match self.commit_files(tablet, request, &files).await {
            CommitOutcome::Committed(row) => {
                tablet.install(&row, Some(&work))?;
                drop(running);
                let took = self.env.clock.since(started);
                tracing::info!(tablet = %tablet.id, upto = %work.upto, ?took, "flushed");
                self.metrics.flushes.inc();
                self.measure();
                // The writers of a frozen tablet wait for this; the master trims what it frees, by the next load report.
                if reason != FlushReason::Handover {
                    self.trim_log().await;
                }
                self.wake_compactor.notify_one();
                Ok(FlushEnd::Flushed)
            }
            CommitOutcome::Refused(error) => Err(error),
            CommitOutcome::Lost(error) => {
                tracing::warn!(tablet = %tablet.id, epoch = %tablet.epoch, %error, "tablet is not ours any more");
                self.tablets.drop_tablet(tablet);
                Ok(FlushEnd::Lost)
            }
        }
    }

    /// Writes SSTables and the memory file: the request that commits them, and all paths; on an error
    /// the paths that may exist.
    async fn write_flush(
        &self,
        tablet: &Tablet,
        work: &FlushWork,
        progress: &Arc<Progress>,
    ) -> Result<(CommitFilesRequest, Vec<String>), (RpcError, Vec<String>)> {
        let paths = parking_lot::Mutex::new(Vec::new());
        let new_path = |extension: &str| {
            let path = self.file_name(tablet, extension);
            paths.lock().push(path.clone());
            path
        };
        let memory = async {
            if !work.memory_changed {
                return Ok(String::new());
            }
            let now = self.env.clock.wall_micros();
            let file = tablet.with_gate(|gate| {
                gate.memory.expire(now);
                gate.memory.encode(work.upto)
            });
            progress.wrote(file.len() as u64);
            self.write_file(new_path("mem"), file).await
        };
        let tables = async {
            let Some(token) = &work.token else { return Ok(Vec::new()) };
            let mut path = |_group: u32| new_path("sst");
            let result = tablet.store.flush(token, progress, &mut path).await;
            let result = result.map_err(|error: EngineError| RpcError::from(error))?;
            Ok(result.groups)
        };
        // Both run to their end, so that no write lands after its file was renounced.
        let (memory, tables) = futures::join!(memory, tables);
        let (memory_file, groups) = match (memory, tables) {
            (Ok(memory_file), Ok(groups)) => (memory_file, groups),
            (Err(error), _) | (_, Err(error)) => return Err((error, paths.into_inner())),
        };
        let request = CommitFilesRequest { memory_file, add: groups, ..self.flush_request(tablet, work) };
        Ok((request, paths.into_inner()))
    }

    /// Writes a small file; its path.
    pub async fn write_file(&self, path: String, file: bytes::Bytes) -> Result<String, RpcError> {
        match self.storage.objects.put(&Path::from(path.as_str()), file.into()).await {
            Ok(_) => Ok(path),
            Err(error) => Err(RpcError::new(ErrorCode::Unavailable, format!("cannot write {path}: {error}"))),
        }
    }

    /// What a flush changes in the row, its files apart.
    fn flush_request(&self, tablet: &Tablet, work: &FlushWork) -> CommitFilesRequest {
        CommitFilesRequest {
            server_id: self.incarnation.server_id.0,
            tablet: Some(tablet.key()),
            schema_version: tablet.store.schema().version,
            flushed_seq: work.upto.0,
            logs_done: work.logs_done.clone(),
            ..CommitFilesRequest::default()
        }
    }

    /// How long ago a tablet was opened last.
    fn quiet_for(&self) -> Duration {
        self.env.clock.since(*self.last_opened.lock())
    }

    /// Measures memtables, remembered calls and the log's trim point.
    pub fn measure(&self) {
        // First how far everything is applied: what is applied later starts behind it.
        let mut trim_point = self.log.applied();
        let (mut memtable_bytes, mut remembered_bytes) = (0, 0);
        for tablet in self.tablets.loaded() {
            memtable_bytes += tablet.store.memtable_bytes();
            remembered_bytes += tablet.with_gate(|gate| gate.memory.bytes()) as u64;
            trim_point = trim_point.min(tablet.needs_log_from().unwrap_or(trim_point));
        }
        self.budget.measured(memtable_bytes, remembered_bytes, trim_point);
    }

    /// Lets the log's store forget what is flushed and committed.
    async fn trim_log(&self) {
        let upto = self.budget.trim_point();
        let Ok(mut trimmed) = self.log_trimmed.try_lock() else { return };
        if upto.0 < trimmed.0 + TRIM_STEP_BYTES {
            return;
        }
        match self.storage.logs.trim(self.incarnation.log_id(), upto).await {
            Ok(()) => *trimmed = upto,
            Err(error) => tracing::warn!(%error, %upto, "cannot trim the log yet"),
        }
    }

    /// A path that was never used before.
    pub fn file_name(&self, tablet: &Tablet, extension: &str) -> String {
        let number = self.next_file.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let server = self.incarnation.server_id.0;
        format!("tables/{}/{}/{server}-{number}.{extension}", tablet.table.0, tablet.id.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: Pressure = Pressure { memtable: None, log: None, recovering: false };

    fn ids(candidates: &[Candidate], pressure: Pressure) -> Vec<(u64, FlushReason)> {
        order(candidates, pressure).into_iter().map(|(candidate, reason)| (candidate.id.0, reason)).collect()
    }

    fn candidate(id: u64, memtable_bytes: u64, since: Option<u64>) -> Candidate {
        Candidate { id: TabletId(id), memtable_bytes, since: since.map(Lsn), has_foreign_logs: false, is_idle: false }
    }

    #[test]
    fn flushes_the_oldest_for_the_log_and_the_largest_for_memory() {
        let tablets = [candidate(1, 10, Some(500)), candidate(2, 90, Some(700)), candidate(3, 0, None)];
        let (log, memtable) = (Some(Lsn(600)), Some(0));
        assert_eq!(ids(&tablets, CALM), []);
        assert_eq!(ids(&tablets, Pressure { log, memtable, ..CALM }), [(1, FlushReason::Log)]);
        assert_eq!(ids(&tablets, Pressure { memtable, ..CALM }), [(2, FlushReason::Memtable)]);
        assert_eq!(ids(&tablets[2..], Pressure { log, memtable, ..CALM }), []);
    }

    #[test]
    fn the_queue_ends_where_the_limits_are_kept() {
        let tablets = [candidate(1, 10, Some(500)), candidate(2, 90, Some(700)), candidate(3, 50, Some(600))];
        let memtable = |excess| ids(&tablets, Pressure { memtable: Some(excess), ..CALM });
        let all = [2, 3, 1].map(|id| (id, FlushReason::Memtable));
        for (excess, needed) in [(0, 1), (89, 1), (90, 2), (139, 2), (140, 3), (1000, 3)] {
            assert_eq!(memtable(excess), all[..needed], "{excess} too many");
        }
        let log = |upto| ids(&tablets, Pressure { log: Some(Lsn(upto)), ..CALM });
        let all = [1, 3, 2].map(|id| (id, FlushReason::Log));
        for (upto, needed) in [(0, 1), (500, 1), (599, 1), (600, 2), (700, 3)] {
            assert_eq!(log(upto), all[..needed], "before {upto}");
        }
    }

    #[test]
    fn frees_dead_servers_logs_when_there_is_time() {
        let recovered = Candidate { has_foreign_logs: true, ..candidate(4, 0, None) };
        let tablets = [candidate(1, 10, Some(1)), recovered];
        assert_eq!(ids(&tablets, CALM), [(4, FlushReason::Recovery)]);
        assert_eq!(ids(&tablets, Pressure { recovering: true, ..CALM }), []);
        let idle = Candidate { is_idle: true, ..candidate(5, 10, Some(3)) };
        let both = [(4, FlushReason::Recovery), (5, FlushReason::Idle)];
        assert_eq!(ids(&[idle, recovered], CALM), both);
        assert_eq!(ids(&[candidate(1, 10, Some(1)), idle], CALM), both[1..]);
        assert_eq!(ids(&[idle], Pressure { recovering: true, ..CALM }), []);
        let pressed = Pressure { memtable: Some(0), recovering: true, ..CALM };
        assert_eq!(ids(&tablets, pressed), [(1, FlushReason::Memtable)]);
    }
}
