//! Group sync of a replica in fsync mode, and what happens when a sync fails (I9).

use std::sync::Arc;

use super::Replica;
use crate::chunkserver::error::StoreError;
use crate::format::replica_file::{ReplicaMeta, encode_meta, parse_meta};

impl Replica {
    /// Syncs whenever something new was written. All that is written while one sync runs is covered
    /// by the next one: that is the group commit.
    pub(super) async fn sync_as_it_grows(self: Arc<Self>) {
        let (mut length, mut closed) = (self.length.subscribe(), self.closed.subscribe());
        loop {
            tokio::select! {
                biased;
                _ = closed.wait_for(|closed| *closed) => return,
                _ = length.wait_for(|length| *length > *self.acked.borrow()) => {}
            }
            if self.sync_now().await.is_err() {
                return; // the process is ending
            }
        }
    }

    /// Makes everything written so far durable, then raises `acked`. One sync at a time: of two that
    /// run together only one may learn of a failure.
    pub(super) async fn sync_now(&self) -> Result<(), StoreError> {
        let mut sync = self.sync.lock().await;
        if sync.failed {
            return Err(self.sync_failed_before());
        }
        let target = self.length();
        let Some(file) = sync.file.clone().filter(|_| target > *self.acked.borrow()) else { return Ok(()) };
        // Durable.
        let synced = match file.sync().await {
            Ok(()) => self.write_watermark(&*file, target).await,
            Err(error) => Err(error),
        };
        if let Err(error) = synced {
            sync.failed = true;
            self.distrust(format!("a sync failed: {error}")).await;
            return Err(StoreError::io(&self.log_path())(error));
        }
        // Acknowledged: whoever watches `acked` answers the writer.
        self.acked.send_replace(target);
        Ok(())
    }

    pub(super) fn sync_failed_before(&self) -> StoreError {
        StoreError::Ending(format!("a sync of {} failed", self.log_path().display()))
    }

    /// I9. The record may fail too, on a disk that just failed: see invariant 5 for that case.
    pub(in crate::chunkserver) async fn distrust(&self, reason: String) {
        self.glance.lock().unvouched.get_or_insert(reason.clone());
        let disk = self.host.env.disk.clone();
        if let Ok(bytes) = disk.read(&self.meta_path()).await
            && let Ok(meta) = parse_meta(self.id, &bytes)
        {
            let meta = ReplicaMeta { distrusted: Some(reason.clone()), ..meta };
            if let Err(error) = disk.replace(&self.meta_path(), encode_meta(&meta)).await {
                tracing::error!(segment = self.id, %error, "cannot record that the replica is distrusted");
            }
        }
        self.host.fail(format!("{}: {reason}", self.log_path().display()));
    }
}
