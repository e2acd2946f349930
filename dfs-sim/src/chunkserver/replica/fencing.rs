//! The fence of a replica: step 3 of sealing (I3, I4, I5).

use uruk_base::planted::{Planted, is_planted};

use super::{Content, Replica, SEALING};
use crate::chunkserver::error::StoreError;
use crate::format::replica_file::{DATA_OFFSET, Mode, Origin, ReplicaMeta};

/// Bytes rewritten after a restart start at a multiple of this: whole pages become dirty.
const REWRITE_ALIGNMENT: u64 = 4096;

/// A member's answer to a fence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FenceAnswer {
    /// It vouches for `length` bytes with this CRC-32.
    Known { length: u64, committed: u64, crc: u32 },
    /// It is fenced but does not count.
    Unknown { reason: String },
}

impl Replica {
    /// Stops appends for ever, stores `r`, and answers with the length that this replica vouches for.
    /// A lower `r` than seen is refused; the same one gets the same answer.
    pub(in crate::chunkserver) async fn fence(&self, r: u64) -> Result<FenceAnswer, StoreError> {
        if r == 0 && is_planted(Planted::UnfencedReplica) {
            let content = self.content.lock().await;
            return Ok(self.answer(&content, self.length(), content.sums.total()));
        }
        if r == 0 || r == SEALING {
            return Err(StoreError::Invalid(format!("fence {r}")));
        }
        let mut content = self.content.lock().await;
        self.host.check()?;
        if content.deleted {
            return Ok(FenceAnswer::Unknown { reason: "it was deleted here".into() });
        }
        if let Some(sealed) = content.meta.as_ref().and_then(|meta| meta.sealed.as_ref()) {
            let (length, crc) = (sealed.length, sealed.crc);
            return Ok(self.answer(&content, length, crc));
        }
        if r < content.fence_wanted {
            return Err(StoreError::Fenced { segment: self.id, fence: content.fence_wanted });
        }
        content.fence_wanted = r;
        let (length, crc) = if is_planted(Planted::AckAfterFence) {
            self.durable_so_far(&content).await?
        } else {
            self.settle(&mut content).await?;
            (self.length(), content.sums.total())
        };
        let meta = content.meta.clone().unwrap_or_else(|| self.new_meta(Origin::Member));
        if meta.fence != r || meta.fence_length != length || content.meta.is_none() {
            self.store_meta(&mut content, ReplicaMeta { fence: r, fence_length: length, ..meta }).await?;
        }
        if !is_planted(Planted::FenceNotChecked) {
            self.close(&mut content);
        }
        Ok(self.answer(&content, length, crc))
    }

    /// What a fence answers that does not wait for the sync under way ([`Planted::AckAfterFence`]).
    async fn durable_so_far(&self, content: &Content) -> Result<(u64, u32), StoreError> {
        let length = *self.acked.borrow();
        let Some(file) = content.file.as_ref().filter(|_| length > 0) else { return Ok((0, crc32fast::hash(&[]))) };
        let bytes = file.read_at(DATA_OFFSET, length as usize).await.map_err(StoreError::io(&self.log_path()))?;
        Ok((length, crc32fast::hash(&bytes)))
    }

    fn answer(&self, content: &Content, length: u64, crc: u32) -> FenceAnswer {
        let copy = content.meta.as_ref().is_some_and(|meta| meta.origin == Origin::Copy);
        match self.glance.lock().unvouched.clone() {
            Some(reason) => FenceAnswer::Unknown { reason },
            None if copy => FenceAnswer::Unknown { reason: "a copy, not a member".into() },
            None => FenceAnswer::Known { length, committed: self.committed(), crc },
        }
    }

    /// Waits for pending syncs, so that all of `length` is as durable as the mode promises.
    pub(super) async fn settle(&self, content: &mut Content) -> Result<(), StoreError> {
        if self.sync.lock().await.failed {
            return Err(self.sync_failed_before());
        }
        if content.meta.as_ref().is_none_or(|meta| meta.mode == Mode::Replicated || !meta.has_log)
            || self.glance.lock().unvouched.is_some()
        {
            return Ok(());
        }
        self.sync_distrusted(content).await
    }

    /// Writes again what was found after a restart and may never have been synced, then syncs: a sync
    /// alone would claim success for pages that a failed one before it has dropped (I9).
    pub(super) async fn sync_distrusted(&self, content: &mut Content) -> Result<(), StoreError> {
        if let Some(from) = content.rewrite_from {
            let file = content.file.as_ref().expect("a replica with a log has a file");
            let from = DATA_OFFSET + from / REWRITE_ALIGNMENT * REWRITE_ALIGNMENT;
            let bytes = (DATA_OFFSET + self.length() - from) as usize;
            let again = file.read_at(from, bytes).await.map_err(StoreError::io(&self.log_path()))?;
            file.write_at(from, again).await.map_err(|error| self.write_failed(error))?;
        }
        self.sync_now().await?;
        content.rewrite_from = None;
        Ok(())
    }

    /// Nothing is appended or acknowledged any more: the syncing task and the writer's streams end.
    pub(super) fn close(&self, content: &mut Content) {
        if content.open {
            content.open = false;
            self.glance.lock().open = false;
        }
        self.closed.send_replace(true);
    }
}
