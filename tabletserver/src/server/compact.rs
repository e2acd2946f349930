//! The compaction task: one at a time, what the engine's policy asks for.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use uruk_base::planted::{Planted, is_planted};
use uruk_proto::RpcError;
use uruk_proto::master::CommitFilesRequest;

use super::Server;
use super::commit_files::CommitOutcome;
use super::jobs::Job;
use super::tablet::{Tablet, TabletState};
use crate::engine::EngineError;
use crate::engine::compaction::Compaction;

/// Pause after a compaction that failed.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Runs until the incarnation ends.
pub async fn run(server: Arc<Server>) {
    loop {
        server.wake_compactor.notified().await;
        while let Some((tablet, compaction)) = pick(&server) {
            if let Err(error) = server.compact_tablet(&tablet, &compaction).await {
                tracing::warn!(tablet = %tablet.id, %error, "compaction failed");
                server.env.clock.sleep(RETRY_DELAY).await;
            }
        }
    }
}

/// The tablet with the most files among those where a compaction is due.
fn pick(server: &Server) -> Option<(Arc<Tablet>, Compaction)> {
    due(server).into_iter().next()
}

/// The compactions that are due, the first one of each tablet, in the order in which they would run.
pub fn due(server: &Server) -> Vec<(Arc<Tablet>, Compaction)> {
    let due = server.tablets.loaded().into_iter().filter_map(|tablet| {
        let is_able = tablet.state() == TabletState::Open && !tablet.is_corrupt.load(Ordering::Relaxed);
        let compaction = is_able.then(|| tablet.store.pick_compaction()).flatten()?;
        Some((tablet, compaction))
    });
    let mut due: Vec<_> = due.collect();
    due.sort_by_cached_key(|(tablet, compaction)| {
        (Reverse((tablet.store.file_count(), compaction.inputs.len())), tablet.id)
    });
    due
}

impl Server {
    async fn compact_tablet(self: &Arc<Self>, tablet: &Arc<Tablet>, compaction: &Compaction) -> Result<(), RpcError> {
        let started = self.env.clock.now();
        let running = self.jobs.start(&self.env, Job::compaction(tablet.id, compaction));
        let mut paths = Vec::new();
        let mut path = |_| {
            paths.push(self.file_name(tablet, "sst"));
            paths[paths.len() - 1].clone()
        };
        let compacted = tokio::select! {
            biased;
            // It is about to be given away; what comes after it begins anew.
            () = tablet.reached(|state| state != TabletState::Open) => None,
            result = tablet.store.compact(compaction, &running.progress, &mut path) => Some(result),
        };
        let result = match compacted {
            Some(Ok(result)) => result,
            None => {
                tracing::info!(tablet = %tablet.id, "compaction is cancelled");
                drop(running);
                self.renounce(&paths).await;
                return Ok(());
            }
            Some(Err(error)) => {
                self.note_engine_error(tablet, &error);
                drop(running);
                // Nothing was offered to the master: whatever was written is ours to delete.
                self.renounce(&paths).await;
                return Err(RpcError::from(error));
            }
        };
        let files = paths;
        let _alone = tablet.maintenance.lock().await;
        if tablet.state() != TabletState::Open && !is_planted(Planted::ParentCompactionCommits) {
            self.renounce(&files).await;
            return Ok(());
        }
        let request = CommitFilesRequest {
            server_id: self.incarnation.server_id.0,
            tablet: Some(tablet.key()),
            schema_version: result.schema_version,
            remove: result.remove,
            add: result.add,
            ..CommitFilesRequest::default()
        };
        // Also while the row is installed: for a moment no view names what it has replaced.
        let _pinned = self.pins.hold(&request.remove);
        match self.commit_files(tablet, request, &files).await {
            CommitOutcome::Committed(row) => {
                tablet.install(&row, None)?;
                drop(running);
                let took = self.env.clock.since(started);
                tracing::info!(tablet = %tablet.id, inputs = compaction.inputs.len(), ?took, "compacted");
                self.metrics.compactions.inc();
                Ok(())
            }
            CommitOutcome::Refused(error) => Err(error),
            CommitOutcome::Lost(error) => {
                self.tablets.drop_tablet(tablet);
                Err(error)
            }
        }
    }

    /// Marks a tablet with damaged files: it is served on, but a person must look.
    pub fn note_engine_error(self: &Arc<Self>, tablet: &Tablet, error: &EngineError) {
        if let EngineError::Corrupt { .. } = error
            && !tablet.is_corrupt.swap(true, Ordering::Relaxed)
        {
            tracing::error!(tablet = %tablet.id, %error, "tablet has a damaged file");
            self.metrics.corrupt_tablets.inc();
            let (server, key, reason) = (self.clone(), tablet.key(), error.to_string());
            self.tasks.spawn("report a damaged file", async move {
                super::open::report_failure(&server, key, reason, vec![]).await;
            });
        }
    }
}
