//! One replica of a commit-log segment: appends, syncs and the fence (DESIGN §6, I1 to I9).
//!
//! | length | means |
//! |---|---|
//! | `length` | whole valid frames in the file, as far as the page cache |
//! | `acked` | held: synced (fsync mode) or written (replicated mode); acknowledged unless there is a fence |
//! | `committed` | what the writer said that enough members acknowledged |
//!
//! Invariants:
//! 1. `acked <= length`; both grow by whole appends only, and what they cover never changes (I1, I2).
//! 2. `acked` is raised in one place per mode, after the watermark in the file says so. So after a
//!    restart the watermark is at least every length that was acknowledged (after a loss of power,
//!    at least every length acknowledged before the last sync).
//! 3. Appends and the fence hold `content`; once `fence_wanted` is set, no append passes, and the
//!    fence's answer is made before `content` is free again (I3). By then the replica is `closed`: a
//!    completion may still raise `acked`, and the writer is not told of it (`acknowledging.rs`).
//! 4. A fence is answered only after the meta file that names it was replaced and synced (I4).
//! 5. A failed sync sets `sync.failed` before anything else can ask for a sync, ends the process,
//!    and is recorded in the meta file as far as the disk still allows (I9). A replica so marked
//!    answers `known = false`. One that could not be marked trusts after the restart only what the
//!    watermark covers, and writes the rest again before it vouches for it: a second sync of the
//!    same dirty pages would claim success without having written them.
//! 6. A replica of an earlier incarnation takes no appends: its writer rolls.
//!
//! Lock order: `content`, then `sync`, then `glance`. The first two are asynchronous and are meant to
//! be held while the disk works: that is what makes the fence atomic.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use uruk_base::DiskFile;
use uruk_base::disk::OpenMode;
use uruk_base::planted::{Planted, is_planted};

use super::error::StoreError;
use super::host::Host;
use super::map_cache::{FileId, MapCache};
use crate::format::block_sums::BlockSums;
use crate::format::replica_file::{
    DATA_OFFSET, Mode, Origin, ReplicaMeta, SealedMeta, WATERMARK_OFFSET, Watermark, encode_header, encode_meta,
    encode_watermark,
};
use crate::format::{FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX, SEGMENT_BYTES_MAX, SegmentKey, check_frames};

mod acknowledging;
mod fencing;
mod loading;
mod reading;
mod sealing;
mod syncing;

pub(super) use self::acknowledging::Acknowledgements;
pub(super) use self::fencing::FenceAnswer;
pub(super) use self::sealing::Completion;
#[cfg(test)]
mod tests;

/// No honest length is beyond it: the last frame may start just below `SEGMENT_BYTES_MAX`.
pub(super) const LENGTH_MAX: u64 = SEGMENT_BYTES_MAX + (FRAME_HEADER_BYTES + FRAME_PAYLOAD_BYTES_MAX) as u64;
/// In fsync mode the file grows ahead of its content in steps of this size, so that nearly every sync writes data
/// alone: a sync after the file has grown waits for the file system's journal too. Zeros are no valid frame, so a
/// restart finds the end as it finds a torn tail.
const RESERVE_BYTES: u64 = 4 << 20;
/// Stands for "sealed, no fence is higher" while the seal is being stored.
const SEALING: u64 = u64::MAX;

/// How a writer opens a replica.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenAppend {
    pub(super) log_id: u64,
    pub(super) mode: Mode,
    pub(super) create: bool,
}

/// One replica. It exists in memory before it does on disk, so that whoever comes first (the
/// writer or a fence) decides under `content`.
#[derive(Debug)]
pub(super) struct Replica {
    id: u64,
    host: Arc<Host>,
    maps: Arc<MapCache>,
    dir: PathBuf,
    content: tokio::sync::Mutex<Content>,
    sync: tokio::sync::Mutex<SyncState>,
    length: watch::Sender<u64>,
    acked: watch::Sender<u64>,
    committed: AtomicU64,
    /// Ends the syncing task and the acknowledgements.
    closed: watch::Sender<bool>,
    glance: Mutex<Glance>,
}

#[derive(Debug, Default)]
struct Content {
    /// As stored; `None` = nothing on disk.
    meta: Option<ReplicaMeta>,
    file: Option<Arc<dyn DiskFile>>,
    sums: BlockSums,
    /// Highest fence asked for; appends stop when it is set, before it is stored.
    fence_wanted: u64,
    /// Opened by its writer in this incarnation.
    open: bool,
    deleted: bool,
    /// Bytes from here to the end were found after a restart: maybe never synced.
    rewrite_from: Option<u64>,
    /// Room was asked for up to here: where the file system gives it, the file is this long, and zeros follow what was
    /// written.
    reserved: u64,
}

#[derive(Debug, Default)]
struct SyncState {
    file: Option<Arc<dyn DiskFile>>,
    failed: bool,
}

/// What reports and readers see without waiting.
#[derive(Clone, Debug, Default)]
pub(super) struct Glance {
    /// Something is on disk.
    pub(super) present: bool,
    pub(super) open: bool,
    pub(super) sealed: Option<Arc<SealedMeta>>,
    /// The content is known to be bad.
    pub(super) damaged: Option<String>,
    /// What is bad is only that the end of what was sealed is missing.
    pub(super) behind: bool,
    /// Why it may not answer for its content; damage included.
    pub(super) unvouched: Option<String>,
}

impl Replica {
    /// A replica of which nothing is on disk.
    pub(super) fn absent(id: u64, host: Arc<Host>, maps: Arc<MapCache>, dir: PathBuf) -> Replica {
        Replica {
            id,
            host,
            maps,
            dir,
            content: tokio::sync::Mutex::default(),
            sync: tokio::sync::Mutex::default(),
            length: watch::Sender::new(0),
            acked: watch::Sender::new(0),
            committed: AtomicU64::new(0),
            closed: watch::Sender::new(false),
            glance: Mutex::default(),
        }
    }

    pub(super) fn log_path(&self) -> PathBuf {
        self.dir.join(format!("{:016x}.log", self.id))
    }

    pub(super) fn meta_path(&self) -> PathBuf {
        self.dir.join(format!("{:016x}.meta", self.id))
    }

    pub(super) fn glance(&self) -> Glance {
        self.glance.lock().clone()
    }

    pub(super) fn length(&self) -> u64 {
        *self.length.borrow()
    }

    fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// What is held, as it grows. For the writer: [`Replica::acknowledgements`].
    #[cfg(test)]
    pub(super) fn acked(&self) -> watch::Receiver<u64> {
        self.acked.subscribe()
    }

    // ----------------------------------------------------------------- append

    /// Opens the replica for its writer, creating it on demand. Creation is durable in both modes:
    /// a member without the file has never acknowledged a byte.
    pub(super) async fn open_for_append(self: &Arc<Self>, open: OpenAppend) -> Result<(), StoreError> {
        let mut content = self.content.lock().await;
        self.host.check()?;
        if content.meta.is_none() && open.create && content.fence_wanted == 0 && !content.deleted {
            return self.create(&mut content, open).await;
        }
        self.check_open(&content)?;
        let meta = content.meta.as_ref().expect("an open replica has one");
        if meta.log_id != open.log_id || meta.mode != open.mode {
            return Err(StoreError::Invalid(format!(
                "segment {} belongs to log {} in {:?} mode",
                self.id, meta.log_id, meta.mode
            )));
        }
        Ok(())
    }

    async fn create(self: &Arc<Self>, content: &mut Content, open: OpenAppend) -> Result<(), StoreError> {
        if open.log_id == 0 {
            return Err(StoreError::Invalid("log id 0".into()));
        }
        self.host.space.take(DATA_OFFSET)?;
        let meta = ReplicaMeta { log_id: open.log_id, mode: open.mode, ..self.new_meta(Origin::Member) };
        self.create_log_file(content, meta).await?;
        content.open = true;
        self.glance.lock().open = true;
        self.host.changes.segment(self.id);
        if open.mode == Mode::Fsync {
            let replica = self.clone();
            self.host.env.tasks.spawn("chunkserver segment sync", async move { replica.sync_as_it_grows().await });
        }
        Ok(())
    }

    fn check_open(&self, content: &Content) -> Result<(), StoreError> {
        let sealed = content.meta.as_ref().is_some_and(|meta| meta.sealed.is_some());
        let fenced = content.fence_wanted > 0 && !is_planted(Planted::FenceNotChecked);
        if fenced || sealed || content.deleted {
            return Err(StoreError::Fenced { segment: self.id, fence: content.fence_wanted });
        }
        if content.meta.is_none() {
            return Err(StoreError::NotFound(format!("segment {}", self.id)));
        }
        if !content.open {
            return Err(StoreError::State(format!(
                "segment {} was opened before this chunk server restarted; continue in a new segment",
                self.id
            )));
        }
        if let Some(reason) = &self.glance.lock().unvouched {
            return Err(StoreError::State(format!("segment {}: {reason}", self.id)));
        }
        Ok(())
    }

    /// Writes whole frames at `offset`. Bytes that are here already must be the same ones.
    /// They count as held once [`Replica::acked`] covers them.
    pub(super) async fn append(&self, offset: u64, data: Bytes, crc: u32, committed: u64) -> Result<(), StoreError> {
        self.host.check()?;
        if offset.max(committed).max(data.len() as u64) > LENGTH_MAX {
            return Err(StoreError::Invalid(format!("segment {} never reaches offset {offset}", self.id)));
        }
        if crc32fast::hash(&data) != crc {
            return Err(StoreError::Invalid(format!(
                "segment {}: data at offset {offset} fails its checksum",
                self.id
            )));
        }
        let mut content = self.content.lock().await;
        self.check_open(&content)?;
        let length = self.length();
        if offset > length {
            return Err(StoreError::State(format!(
                "segment {} has {length} bytes; an append at offset {offset} leaves a gap",
                self.id
            )));
        }
        let overlap = (data.len() as u64).min(length - offset);
        if overlap > 0 {
            self.check_same(&content, offset, &data[..overlap as usize]).await?;
        }
        let new = data.slice(overlap as usize..);
        self.hear_committed(committed)?;
        if new.is_empty() {
            return Ok(());
        }
        self.write_frames(&mut content, length, new).await
    }

    /// Takes note of what the writer says is committed, without data.
    pub(super) fn hear_committed(&self, committed: u64) -> Result<(), StoreError> {
        if committed > LENGTH_MAX {
            return Err(StoreError::Invalid(format!("segment {} never reaches {committed}", self.id)));
        }
        self.committed.fetch_max(committed, Ordering::Relaxed);
        Ok(())
    }

    /// I1: never different bytes at one offset.
    async fn check_same(&self, content: &Content, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        let file = content.file.as_ref().expect("an open replica has a file");
        let present = file.read_at(DATA_OFFSET + offset, data.len()).await.map_err(StoreError::io(&self.log_path()))?;
        match present == data {
            true => Ok(()),
            false => Err(StoreError::State(format!("segment {} has other bytes at offset {offset}", self.id))),
        }
    }

    async fn write_frames(&self, content: &mut Content, length: u64, new: Bytes) -> Result<(), StoreError> {
        if length >= SEGMENT_BYTES_MAX || length + new.len() as u64 > LENGTH_MAX {
            return Err(StoreError::Invalid(format!("segment {} is full", self.id)));
        }
        let meta = content.meta.as_ref().expect("an open replica has one");
        let (mode, key) = (meta.mode, SegmentKey { log_id: meta.log_id, segment_id: self.id });
        // What is acknowledged must be found valid again after a restart.
        check_frames(key, length, &new)
            .map_err(|error| StoreError::Invalid(format!("segment {}: {error}", self.id)))?;
        self.host.space.take(new.len() as u64)?;
        let file = content.file.clone().expect("an open replica has a file");
        let end = DATA_OFFSET + length + new.len() as u64;
        if mode == Mode::Fsync && end > content.reserved && self.host.space.take_ahead(RESERVE_BYTES) {
            // Without it the write is only slower; if there is no room, the write says so.
            match file.reserve(end + RESERVE_BYTES).await {
                Ok(()) => content.reserved = end + RESERVE_BYTES,
                Err(error) => tracing::debug!(segment = self.id, %error, "cannot reserve room"),
            }
        }
        file.write_at(DATA_OFFSET + length, new.clone()).await.map_err(|error| self.write_failed(error))?;
        let length = length + new.len() as u64;
        if mode == Mode::Replicated {
            self.write_watermark(&*file, length).await.map_err(|error| self.write_failed(error))?;
        }
        // Together, after all that may fail: a fence answers with both.
        content.sums.update(&new);
        self.length.send_replace(length);
        if mode == Mode::Replicated || is_planted(Planted::NoFsync) {
            // Held by the page cache, which is what this mode promises.
            self.acked.send_replace(length);
        }
        Ok(())
    }

    fn write_failed(&self, error: std::io::Error) -> StoreError {
        if error.kind() == std::io::ErrorKind::StorageFull {
            self.host.space.ran_out();
        }
        StoreError::io(&self.log_path())(error)
    }

    async fn write_watermark(&self, file: &dyn DiskFile, acknowledged: u64) -> std::io::Result<()> {
        let watermark = Watermark { acknowledged, committed: self.committed() };
        file.write_at(WATERMARK_OFFSET, encode_watermark(watermark)).await
    }

    // ------------------------------------------------------------------ files

    fn new_meta(&self, origin: Origin) -> ReplicaMeta {
        ReplicaMeta {
            segment_id: self.id,
            log_id: 0,
            origin,
            mode: Mode::Fsync,
            boot_id: self.host.boot_id.clone(),
            has_log: false,
            fence: 0,
            fence_length: 0,
            distrusted: None,
            sealed: None,
        }
    }

    /// A new log file with its header; its name becomes durable with the meta file that follows.
    /// Makes the log file, then the meta file that names it. Without the second nothing of the first stays.
    async fn create_log_file(&self, content: &mut Content, meta: ReplicaMeta) -> Result<(), StoreError> {
        let made = async {
            let file = self.empty_log_file().await?;
            self.store_meta(content, ReplicaMeta { has_log: true, ..meta }).await?;
            Ok(file)
        };
        match made.await {
            Ok(file) => {
                self.sync.lock().await.file = Some(file.clone());
                content.file = Some(file);
                Ok(())
            }
            Err(error) => {
                self.remove_unnamed_log_file().await;
                Err(error)
            }
        }
    }

    async fn empty_log_file(&self) -> Result<Arc<dyn DiskFile>, StoreError> {
        let path = self.log_path();
        let file = self.host.env.disk.open(&path, OpenMode::CreateOrWrite).await.map_err(StoreError::io(&path))?;
        let filled = async {
            file.set_len(0).await?;
            file.write_at(0, encode_header(self.id)).await
        };
        filled.await.map_err(|error| self.write_failed(error))?;
        if let Err(error) = file.sync().await {
            self.host.fail(format!("sync of {}: {error}", path.display()));
            return Err(StoreError::io(&path)(error));
        }
        Ok(file)
    }

    /// Not when the process is about to end: then nobody knows which meta file a restart will find, and
    /// the restart removes what is unnamed.
    async fn remove_unnamed_log_file(&self) {
        if self.host.check().is_err() {
            return;
        }
        let path = self.log_path();
        match self.host.env.disk.remove(&path).await {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(path = %path.display(), %error, "cannot remove what no meta file names"),
        }
    }

    /// Replaces the meta file. When that fails half-way nobody knows what a restart will find, so
    /// anything but a full disk ends the process.
    async fn store_meta(&self, content: &mut Content, meta: ReplicaMeta) -> Result<(), StoreError> {
        let path = self.meta_path();
        let is_empty = meta.sealed.as_ref().is_some_and(|sealed| sealed.length == 0);
        let is_fence = is_empty || meta.fence != content.meta.as_ref().map_or(0, |old| old.fence) || !meta.has_log;
        let stored = match is_fence && is_planted(Planted::FenceForgotten) {
            true => Ok(()),
            false => self.host.env.disk.replace(&path, encode_meta(&meta)).await,
        };
        if let Err(error) = stored {
            if error.kind() == std::io::ErrorKind::StorageFull {
                self.host.space.ran_out();
            } else {
                self.host.fail(format!("{}: {error}", path.display()));
            }
            return Err(StoreError::io(&path)(error));
        }
        let mut glance = self.glance.lock();
        glance.present = true;
        glance.sealed = meta.sealed.clone().map(Arc::new);
        drop(glance);
        content.meta = Some(meta);
        self.host.changes.segment(self.id);
        Ok(())
    }

    /// Remembers and reports that the content is bad; it no longer counts as anybody's answer.
    pub(super) fn mark_damaged(&self, what: &str) {
        if self.replace_for(what, false) {
            tracing::error!(segment = self.id, what, "a replica is damaged");
        }
    }

    /// Remembers and reports that the end of what was sealed is missing: no seal can finish it. To be
    /// expected of a replica that was away or slow.
    pub(super) fn mark_behind(&self, what: &str) {
        if self.replace_for(what, true) {
            tracing::info!(segment = self.id, what, "a replica is behind; it will be replaced from another server");
        }
    }

    /// Whether it is news.
    fn replace_for(&self, what: &str, behind: bool) -> bool {
        let mut glance = self.glance.lock();
        let is_news = glance.damaged.is_none();
        if is_news {
            glance.behind = behind;
            glance.damaged = Some(what.to_owned());
            glance.unvouched.get_or_insert_with(|| what.to_owned());
            self.maps.remove(FileId::Segment(self.id));
            self.host.changes.segment(self.id);
        }
        is_news
    }
}
