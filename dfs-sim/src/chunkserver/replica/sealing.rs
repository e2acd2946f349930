//! The end of a segment: completing it under a fence, cutting and sealing it, replacing a bad copy,
//! deleting it (DESIGN §6, steps 6 to 8).

use std::path::Path;

use bytes::Bytes;

use super::{LENGTH_MAX, Replica, SEALING};
use crate::chunkserver::error::StoreError;
use crate::chunkserver::map_cache::FileId;
use crate::format::block_sums::BlockSums;
use crate::format::replica_file::{DATA_OFFSET, Mode, Origin, ReplicaMeta, SealedMeta};
use crate::format::{SegmentKey, check_frames};

use super::Content;

/// What a recoverer announces before it sends bytes.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    pub(in crate::chunkserver) recovery: u64,
    pub(in crate::chunkserver) offset: u64,
    /// Length of the segment afterwards.
    pub(in crate::chunkserver) length: u64,
    pub(in crate::chunkserver) create: bool,
    pub(in crate::chunkserver) mode: Mode,
}

impl Replica {
    // --------------------------------------------------------------- complete

    /// Checks that the caller holds the fence, and makes the file where there is none. `false` when
    /// the segment is sealed at that length already: nothing to send.
    pub(in crate::chunkserver) async fn begin_completion(&self, asked: Completion) -> Result<bool, StoreError> {
        let Completion { recovery, offset, length, create, .. } = asked;
        if length > LENGTH_MAX || offset > length || recovery == 0 || recovery == SEALING {
            return Err(StoreError::Invalid(format!(
                "segment {}: bytes {offset}..{length} with fence {recovery}",
                self.id
            )));
        }
        let mut content = self.content.lock().await;
        self.host.check()?;
        if let Some(sealed) = content.meta.as_ref().and_then(|meta| meta.sealed.as_ref()) {
            return if sealed.length == length { Ok(false) } else { Err(self.fenced(&content)) };
        }
        if content.deleted || recovery < content.fence_wanted {
            return Err(self.fenced(&content));
        }
        if content.meta.is_none() && !create {
            return Err(StoreError::NotFound(format!("segment {}", self.id)));
        }
        if let Some(reason) = self.glance.lock().unvouched.clone() {
            return Err(StoreError::State(format!("segment {}: {reason}", self.id)));
        }
        let meta = content.meta.clone();
        let is_copy = meta.as_ref().is_none_or(|meta| meta.origin == Origin::Copy);
        let fence = meta.as_ref().map_or(0, |meta| meta.fence);
        if fence != recovery && !(is_copy && create) {
            return Err(StoreError::State(format!("segment {} is not fenced by {recovery} but {fence}", self.id)));
        }
        if offset > self.length() {
            return Err(StoreError::State(format!(
                "segment {} has {} bytes; a completion at offset {offset} leaves a gap",
                self.id,
                self.length()
            )));
        }
        self.prepare(&mut content, meta, asked).await?;
        Ok(true)
    }

    /// Makes meta and log file what the completion needs.
    async fn prepare(
        &self,
        content: &mut Content,
        meta: Option<ReplicaMeta>,
        asked: Completion,
    ) -> Result<(), StoreError> {
        content.fence_wanted = asked.recovery;
        let mut wanted = match meta {
            Some(meta) => meta,
            None => ReplicaMeta { mode: asked.mode, ..self.new_meta(Origin::Copy) },
        };
        wanted.fence = asked.recovery;
        if !wanted.has_log {
            self.host.space.take(DATA_OFFSET)?;
            return self.create_log_file(content, wanted).await;
        }
        if content.meta.as_ref() != Some(&wanted) {
            self.store_meta(content, wanted).await?;
        }
        Ok(())
    }

    pub(super) fn fenced(&self, content: &Content) -> StoreError {
        StoreError::Fenced { segment: self.id, fence: content.fence_wanted }
    }

    fn check_completion(&self, content: &Content, asked: Completion) -> Result<(), StoreError> {
        self.host.check()?;
        let current = content.meta.as_ref().is_some_and(|meta| meta.fence == asked.recovery && meta.sealed.is_none());
        if current && content.fence_wanted == asked.recovery && !content.deleted {
            Ok(())
        } else {
            Err(self.fenced(content))
        }
    }

    /// Writes bytes at `position`. They do not count before [`Replica::end_completion`]: a length
    /// never ends inside a frame.
    pub(in crate::chunkserver) async fn push_completion(
        &self,
        asked: Completion,
        position: u64,
        data: Bytes,
    ) -> Result<(), StoreError> {
        let content = self.content.lock().await;
        self.check_completion(&content, asked)?;
        let end = position + data.len() as u64;
        if end > asked.length {
            return Err(StoreError::Invalid(format!("segment {}: more than {} bytes", self.id, asked.length)));
        }
        let overlap = self.length().min(end).saturating_sub(position);
        if overlap > 0 {
            self.check_same(&content, position, &data[..overlap as usize]).await?;
        }
        let new = data.slice(overlap as usize..);
        if new.is_empty() {
            return Ok(());
        }
        self.host.space.take(new.len() as u64)?;
        let file = content.file.as_ref().expect("prepared with a file");
        file.write_at(DATA_OFFSET + position + overlap, new).await.map_err(|error| self.write_failed(error))
    }

    /// Checks what was sent, makes it durable, and counts it.
    pub(in crate::chunkserver) async fn end_completion(
        &self,
        asked: Completion,
        position: u64,
    ) -> Result<u64, StoreError> {
        if position != asked.length {
            return Err(StoreError::Invalid(format!(
                "segment {}: the bytes end at {position}, not {}",
                self.id, asked.length
            )));
        }
        let mut content = self.content.lock().await;
        self.check_completion(&content, asked)?;
        let length = self.length();
        if asked.length > length {
            let file = content.file.clone().expect("prepared with a file");
            let new = file.read_at(DATA_OFFSET + length, (asked.length - length) as usize).await;
            let new = new.map_err(StoreError::io(&self.log_path()))?;
            let log_id = content.meta.as_ref().map_or(0, |meta| meta.log_id);
            if log_id != 0 {
                check_frames(SegmentKey { log_id, segment_id: self.id }, length, &new)
                    .map_err(|error| StoreError::Invalid(format!("segment {}: {error}", self.id)))?;
            }
            content.sums.update(&new);
            self.length.send_replace(asked.length);
        }
        // Durable, in both modes: a seal counts on it.
        self.sync_distrusted(&mut content).await?;
        let length = self.length();
        let meta = content.meta.clone().expect("prepared with a meta file");
        self.store_meta(&mut content, ReplicaMeta { fence_length: length, ..meta }).await?;
        Ok(length)
    }

    // ----------------------------------------------------------------- finish

    /// Cuts to the sealed length and seals, for ever. The caller speaks for the controller, which
    /// recorded the seal first (I7); length and checksum must fit what is here.
    pub(in crate::chunkserver) async fn finish(&self, length: u64, crc: u32) -> Result<(), StoreError> {
        let mut content = self.content.lock().await;
        self.host.check()?;
        let Some(meta) = content.meta.clone().filter(|_| !content.deleted) else {
            return Err(StoreError::NotFound(format!("segment {}", self.id)));
        };
        if let Some(sealed) = &meta.sealed {
            return match sealed.length == length && sealed.crc == crc {
                true => Ok(()),
                false => Err(StoreError::State(format!("segment {} is sealed at {}", self.id, sealed.length))),
            };
        }
        if let Some(reason) = self.glance.lock().unvouched.clone() {
            return Err(StoreError::State(format!("segment {}: {reason}", self.id)));
        }
        let sealed = self.check_seal(&content, length, crc).await?;
        // Fenced first, then cut: no append passes from here on.
        let fence_before = std::mem::replace(&mut content.fence_wanted, SEALING);
        let stored = match self.settle(&mut content).await {
            Ok(()) => self.store_meta(&mut content, ReplicaMeta { sealed: Some(sealed), ..meta }).await,
            Err(error) => Err(error),
        };
        if let Err(error) = stored {
            content.fence_wanted = fence_before;
            return Err(error);
        }
        self.close(&mut content);
        self.cut(&mut content, length).await
    }

    async fn check_seal(&self, content: &Content, length: u64, crc: u32) -> Result<SealedMeta, StoreError> {
        let (held, committed) = (self.length(), self.committed());
        if length < committed {
            let what = format!("a seal at {length} would cut committed bytes; {committed} are committed");
            return Err(StoreError::Corrupt { file: self.log_path(), offset: DATA_OFFSET + length, what });
        }
        if length > held {
            return Err(StoreError::Behind { segment: self.id, held, length });
        }
        let cut;
        let sums = if length == held {
            &content.sums
        } else {
            let file = content.file.as_ref().expect("it has bytes");
            let bytes = file.read_at(DATA_OFFSET, length as usize).await.map_err(StoreError::io(&self.log_path()))?;
            cut = BlockSums::of(&bytes);
            &cut
        };
        match sums.total() {
            total if total == crc => Ok(SealedMeta { length, crc, blocks: sums.blocks() }),
            total => Err(StoreError::State(format!(
                "segment {} has CRC-32 {total:08x} at length {length}, sealed with {crc:08x}",
                self.id
            ))),
        }
    }

    /// After the seal is durable. A crash in between leaves a longer file, of which nobody reads more
    /// than is sealed.
    async fn cut(&self, content: &mut Content, length: u64) -> Result<(), StoreError> {
        self.length.send_replace(length);
        self.acked.send_replace(length);
        content.sums = BlockSums::new();
        content.rewrite_from = None;
        let mut sync = self.sync.lock().await;
        sync.file = None;
        let Some(file) = content.file.take() else { return Ok(()) };
        if let Err(error) = file.set_len(DATA_OFFSET + length).await {
            tracing::warn!(segment = self.id, %error, "cannot cut a sealed segment");
        }
        if let Err(error) = file.sync().await {
            sync.failed = true;
            self.distrust(format!("a sync failed: {error}")).await;
            return Err(StoreError::io(&self.log_path())(error));
        }
        Ok(())
    }

    // ------------------------------------------------------- replace, delete

    /// Puts a complete sealed copy (a log file under a temporary name, synced) in this one's place,
    /// unless a sound sealed one is here.
    pub(in crate::chunkserver) async fn install(&self, temporary: &Path, sealed: SealedMeta) -> Result<(), StoreError> {
        let mut content = self.content.lock().await;
        self.host.check()?;
        if content.deleted {
            return Err(self.fenced(&content));
        }
        let disk = &self.host.env.disk;
        let here = content.meta.as_ref().is_some_and(|meta| meta.sealed.is_some());
        if here && self.glance.lock().unvouched.is_none() {
            return disk.remove(temporary).await.map_err(StoreError::io(temporary));
        }
        content.fence_wanted = SEALING;
        self.close(&mut content);
        let meta = content.meta.clone().unwrap_or_else(|| self.new_meta(Origin::Copy));
        disk.rename(temporary, &self.log_path()).await.map_err(StoreError::io(&self.log_path()))?;
        self.maps.remove(FileId::Segment(self.id));
        content.file = None;
        self.sync.lock().await.file = None;
        let length = sealed.length;
        let meta = ReplicaMeta { has_log: true, distrusted: None, sealed: Some(sealed), ..meta };
        self.store_meta(&mut content, meta).await?;
        self.length.send_replace(length);
        self.acked.send_replace(length);
        let mut glance = self.glance.lock();
        (glance.damaged, glance.behind, glance.unvouched) = (None, false, None);
        Ok(())
    }

    /// Removes the files. The caller has made sure that the segment is never created again.
    pub(in crate::chunkserver) async fn delete(&self) -> Result<(), StoreError> {
        let mut content = self.content.lock().await;
        content.deleted = true;
        content.fence_wanted = SEALING;
        self.close(&mut content);
        // The meta file goes first: a log file without one is removed at the next start.
        for path in [self.meta_path(), self.log_path()] {
            match self.host.env.disk.remove(&path).await {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(StoreError::io(&path)(error)),
            }
        }
        self.maps.remove(FileId::Segment(self.id));
        content.file = None;
        content.sums = BlockSums::new();
        self.sync.lock().await.file = None;
        self.glance.lock().present = false;
        self.host.changes.segment(self.id);
        Ok(())
    }
}
