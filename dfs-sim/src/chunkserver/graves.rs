//! Ids of segments that were deleted here, for ever.
//!
//! A writer that was stopped before it created a segment may wake after the log was sealed and
//! deleted: its create must still be refused, so the fence outlives the data (S7).
//! The file `GRAVES` is a row of 16-byte records: id u64 LE, CRC-32 of the id, zero. A torn
//! record belongs to a deletion that was not carried out.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use uruk_base::DiskFile;
use uruk_base::disk::OpenMode;

use super::error::StoreError;
use super::host::Host;

const RECORD_BYTES: usize = 16;

/// The set of deleted segments.
#[derive(Debug)]
pub(super) struct Graves {
    host: Arc<Host>,
    path: PathBuf,
    ids: Mutex<BTreeSet<u64>>,
    /// The file and where its next record goes.
    file: tokio::sync::Mutex<(Arc<dyn DiskFile>, u64)>,
}

impl Graves {
    pub(super) async fn open(host: Arc<Host>, dir: &Path) -> Result<Graves, StoreError> {
        let path = dir.join("GRAVES");
        let disk = host.env.disk.clone();
        let file = disk.open(&path, OpenMode::CreateOrWrite).await.map_err(StoreError::io(&path))?;
        disk.sync_dir(dir).await.map_err(StoreError::io(dir))?;
        let bytes = file.len().await.map_err(StoreError::io(&path))?;
        let all = file.read_at(0, bytes as usize).await.map_err(StoreError::io(&path))?;
        let mut ids = BTreeSet::new();
        let mut end = 0;
        for (index, record) in all.chunks(RECORD_BYTES).enumerate() {
            match parse(record) {
                Some(id) => {
                    ids.insert(id);
                    end = ((index + 1) * RECORD_BYTES) as u64;
                }
                // Torn, or a bit flipped: the other records still count.
                None => tracing::warn!(file = %path.display(), offset = index * RECORD_BYTES, "a record is damaged"),
            }
        }
        Ok(Graves { host, path, ids: Mutex::new(ids), file: tokio::sync::Mutex::new((file, end)) })
    }

    pub(super) fn contains(&self, id: u64) -> bool {
        self.ids.lock().contains(&id)
    }

    /// Adds ids, durably. Effective for [`Graves::contains`] before it is durable.
    pub(super) async fn add(&self, ids: &[u64]) -> Result<(), StoreError> {
        let mut file = self.file.lock().await;
        let new: Vec<u64> = {
            let mut known = self.ids.lock();
            ids.iter().copied().filter(|id| known.insert(*id)).collect()
        };
        let mut records = BytesMut::with_capacity(new.len() * RECORD_BYTES);
        for id in &new {
            records.put_slice(&encode(*id));
        }
        let bytes = records.len() as u64;
        if let Err(error) = file.0.write_at(file.1, records.freeze()).await {
            // Not durable: the order's retry must write them again before anything is deleted.
            self.ids.lock().retain(|id| !new.contains(id));
            return Err(StoreError::io(&self.path)(error));
        }
        file.1 += bytes;
        if let Err(error) = file.0.sync().await {
            self.host.fail(format!("sync of {}: {error}", self.path.display()));
            return Err(StoreError::io(&self.path)(error));
        }
        Ok(())
    }
}

fn encode(id: u64) -> Bytes {
    let mut record = BytesMut::with_capacity(RECORD_BYTES);
    record.put_u64_le(id);
    record.put_u32_le(crc32fast::hash(&id.to_le_bytes()));
    record.put_u32_le(0);
    record.freeze()
}

fn parse(record: &[u8]) -> Option<u64> {
    let id = u64::from_le_bytes(record.get(0..8)?.try_into().ok()?);
    let crc = u32::from_le_bytes(record.get(8..12)?.try_into().ok()?);
    (record.len() == RECORD_BYTES && crc == crc32fast::hash(&id.to_le_bytes())).then_some(id)
}
