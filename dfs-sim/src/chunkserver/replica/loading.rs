//! Finding a replica again after a restart.
//!
//! | state | length after the restart |
//! |---|---|
//! | sealed | the sealed length; its blocks are checked when they are read |
//! | written by its writer | all whole valid frames; the torn rest is cut |
//! | written by a recoverer only (no log id) | what was completed durably |
//! | only a fence | 0 |
//!
//! Valid frames that end below what was acknowledged are no torn tail but damage: such a replica does
//! not vouch for anything.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use uruk_base::DiskFile;
use uruk_base::disk::OpenMode;

use super::{Content, Replica};
use crate::chunkserver::error::StoreError;
use crate::chunkserver::host::Host;
use crate::chunkserver::map_cache::MapCache;
use crate::format::block_sums::BlockSums;
use crate::format::replica_file::{DATA_OFFSET, Mode, Origin, ReplicaMeta, Watermark, parse_header, parse_meta};
use crate::format::{SegmentKey, validated_length};

/// What the log file of an unsealed replica holds.
struct Found {
    length: u64,
    /// Nothing below it may be missing.
    floor: u64,
    committed: u64,
    sums: BlockSums,
    file: Arc<dyn DiskFile>,
}

impl Replica {
    /// Reads the replica that has a meta file. What is wrong with it ends up in its glance.
    pub(in crate::chunkserver) async fn load(
        id: u64,
        host: Arc<Host>,
        maps: Arc<MapCache>,
        dir: std::path::PathBuf,
        log_file_bytes: Option<u64>,
    ) -> Replica {
        let replica = Replica::absent(id, host, maps, dir);
        let mut content = Content::default();
        let meta = match replica.host.env.disk.read(&replica.meta_path()).await {
            Ok(bytes) => parse_meta(id, &bytes).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match meta {
            Ok(meta) => replica.load_state(&mut content, meta, log_file_bytes).await,
            Err(what) => {
                // A fence may replace the bad file; it must not make the replica look empty and sound.
                let distrusted = Some(what.clone());
                content.meta = Some(ReplicaMeta { distrusted, ..replica.new_meta(Origin::Member) });
                replica.mark_damaged(&what);
            }
        }
        replica.glance.lock().present = true;
        replica.sync.lock().await.file = content.file.clone();
        *replica.content.lock().await = content;
        replica
    }

    async fn load_state(&self, content: &mut Content, mut meta: ReplicaMeta, log_file_bytes: Option<u64>) {
        content.fence_wanted = meta.fence;
        let is_rebooted = meta.sealed.is_none() && meta.mode == Mode::Replicated && meta.boot_id != self.host.boot_id;
        if let Some(reason) = &meta.distrusted {
            self.glance.lock().unvouched = Some(reason.clone());
        }
        if let Some(sealed) = &meta.sealed {
            self.length.send_replace(sealed.length);
            self.acked.send_replace(sealed.length);
            self.glance.lock().sealed = Some(Arc::new(sealed.clone()));
            let bytes = log_file_bytes.unwrap_or(0);
            if meta.has_log && bytes < DATA_OFFSET + sealed.length {
                self.mark_damaged(&format!("the log file has {bytes} bytes; {} are sealed", sealed.length));
            } else if bytes > DATA_OFFSET + sealed.length {
                self.cut_beyond_seal(sealed.length).await;
            }
        } else if meta.has_log {
            match self.find(&meta).await {
                Ok(found) => self.adopt(content, &meta, found).await,
                // What was never synced may be gone: no damage, and nothing to vouch for either.
                Err(error) if is_rebooted => tracing::info!(segment = self.id, %error, "lost with the power"),
                Err(error) => {
                    meta.distrusted = Some(error.to_string());
                    self.mark_damaged(&error.to_string());
                }
            }
        }
        if is_rebooted {
            let reason = "the machine restarted since the segment was opened, and nothing was synced";
            self.glance.lock().unvouched.get_or_insert(reason.into());
        }
        content.meta = Some(meta);
    }

    /// The process ended between the seal and the cut: room that was reserved still follows.
    async fn cut_beyond_seal(&self, length: u64) {
        let cut = async {
            let file = self.host.env.disk.open(&self.log_path(), OpenMode::Write).await?;
            file.set_len(DATA_OFFSET + length).await
        };
        if let Err(error) = cut.await {
            tracing::warn!(segment = self.id, %error, "cannot cut a sealed segment");
        }
    }

    async fn find(&self, meta: &ReplicaMeta) -> Result<Found, StoreError> {
        let path = self.log_path();
        let corrupt = |offset, what: String| StoreError::Corrupt { file: self.log_path(), offset, what };
        let file = self.host.env.disk.open(&path, OpenMode::Write).await.map_err(|e| corrupt(0, e.to_string()))?;
        let bytes = file.len().await.map_err(StoreError::io(&path))?;
        let all = file.read_at(0, bytes as usize).await.map_err(|e| corrupt(0, e.to_string()))?;
        let watermark: Watermark = parse_header(self.id, &all).map_err(|e| corrupt(0, e.to_string()))?;
        let data = all.slice(DATA_OFFSET as usize..);
        let floor = watermark.acknowledged.max(meta.fence_length);
        let length = match meta.log_id {
            0 => floor.min(data.len() as u64),
            log_id => validated_length(SegmentKey { log_id, segment_id: self.id }, &data),
        };
        if length < floor {
            let what = format!("bytes are bad or missing here, and {floor} were acknowledged");
            return Err(corrupt(DATA_OFFSET + length, what));
        }
        let sums = BlockSums::of(&data[..length as usize]);
        Ok(Found { length, floor, committed: watermark.committed, sums, file })
    }

    async fn adopt(&self, content: &mut Content, meta: &ReplicaMeta, found: Found) {
        // The torn tail: never acknowledged, since everything acknowledged is valid.
        if let Err(error) = found.file.set_len(DATA_OFFSET + found.length).await {
            tracing::warn!(segment = self.id, %error, "cannot cut the torn tail");
        }
        self.length.send_replace(found.length);
        self.committed.store(found.committed, Ordering::Relaxed);
        let unsynced = meta.mode == Mode::Fsync && found.length > found.floor;
        self.acked.send_replace(if unsynced { found.floor } else { found.length });
        content.rewrite_from = unsynced.then_some(found.floor);
        content.sums = found.sums;
        content.file = Some(found.file);
    }
}
