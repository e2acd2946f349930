//! The chunks of one folder: immutable pieces of files.
//!
//! Invariants: (1) a file named `<id>.chunk` is complete: it was written under a temporary name,
//! synced (in fsync mode) and renamed; (2) a chunk that is here and not damaged is never replaced;
//! (3) in fsync mode a write is answered only after file and folder entry are synced.
//! Damage is remembered until the chunk is replaced or deleted, and found again after a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use uruk_base::DiskFile;
use uruk_base::disk::OpenMode;

use super::block_reader::{BlockReader, Source};
use super::error::StoreError;
use super::host::Host;
use super::map_cache::{FileId, MapCache};
use crate::format::CHUNK_BYTES_MAX;
use crate::format::block_sums::BlockSums;
use crate::format::chunk_file;
use crate::format::replica_file::Mode;

#[cfg(test)]
mod tests;

/// In fsync mode the disk is given this many bytes at a time while the rest of a chunk still arrives:
/// the last sync is short, and does not hold up the syncs of log segments.
const EARLY_SYNC_BYTES: u64 = 8 << 20;
const SUFFIX: &str = ".chunk";
const TEMPORARY_SUFFIX: &str = ".tmp";

/// What is known of one chunk without opening its file.
#[derive(Clone, Debug)]
pub(super) struct ChunkState {
    pub(super) bytes: u64,
    pub(super) damaged: Option<String>,
    /// Tells a replaced file from its predecessor.
    version: u64,
}

/// All chunks of a server.
#[derive(Debug)]
pub(super) struct ChunkStore {
    host: Arc<Host>,
    dir: PathBuf,
    maps: Arc<MapCache>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    chunks: BTreeMap<u64, ChunkState>,
    writing: BTreeSet<u64>,
    temporaries: u64,
}

impl ChunkStore {
    /// Lists the folder. File lengths tell chunk lengths; contents are checked when they are read.
    pub(super) async fn open(host: Arc<Host>, maps: Arc<MapCache>) -> Result<ChunkStore, StoreError> {
        let dir = host.folder("chunks");
        let disk = host.env.disk.clone();
        disk.create_dir_all(&dir).await.map_err(StoreError::io(&dir))?;
        let mut inner = Inner::default();
        for entry in disk.list(&dir).await.map_err(StoreError::io(&dir))? {
            let path = dir.join(&entry.name);
            if entry.name.ends_with(TEMPORARY_SUFFIX) {
                disk.remove(&path).await.map_err(StoreError::io(&path))?;
                continue;
            }
            let id = entry.name.strip_suffix(SUFFIX).and_then(|hex| u64::from_str_radix(hex, 16).ok());
            let Some(id) = id else {
                tracing::warn!(file = %path.display(), "not a file of this chunk server");
                continue;
            };
            let state = match chunk_file::data_bytes(entry.len) {
                Some(bytes) => ChunkState { bytes, damaged: None, version: 0 },
                None => {
                    let what = format!("no chunk file has {} bytes", entry.len);
                    tracing::warn!(file = %path.display(), what, "a chunk is damaged");
                    ChunkState { bytes: 0, damaged: Some(what), version: 0 }
                }
            };
            inner.chunks.insert(id, state);
        }
        Ok(ChunkStore { host, dir, maps, inner: Mutex::new(inner) })
    }

    fn path(&self, id: u64) -> PathBuf {
        self.dir.join(format!("{id:016x}{SUFFIX}"))
    }

    /// State of every chunk, by id.
    pub(super) fn states(&self) -> BTreeMap<u64, ChunkState> {
        self.inner.lock().chunks.clone()
    }

    pub(super) fn state(&self, id: u64) -> Option<ChunkState> {
        self.inner.lock().chunks.get(&id).cloned()
    }

    /// Chunks that are being written now.
    #[cfg(test)]
    pub(super) fn writing(&self) -> BTreeSet<u64> {
        self.inner.lock().writing.clone()
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.inner.lock().chunks.values().map(|chunk| chunk_file::file_bytes(chunk.bytes)).sum()
    }

    /// Starts to write a chunk of `bytes` bytes. A chunk that is here already is compared instead.
    pub(super) async fn begin(self: &Arc<Self>, id: u64, bytes: u64, mode: Mode) -> Result<ChunkWriter, StoreError> {
        if id == 0 {
            return Err(StoreError::Invalid("chunk id 0".into()));
        }
        if bytes > CHUNK_BYTES_MAX {
            return Err(StoreError::Invalid(format!("chunk of {bytes} bytes; at most {CHUNK_BYTES_MAX}")));
        }
        self.host.check()?;
        let (guard, temporary) = self.claim(id)?;
        let present = self.state(id).is_some_and(|chunk| chunk.damaged.is_none());
        let target = if present {
            None
        } else {
            self.host.space.take(chunk_file::file_bytes(bytes))?;
            let file = self.host.env.disk.open(&temporary, OpenMode::CreateNew).await;
            Some(file.map_err(StoreError::io(&temporary))?)
        };
        Ok(ChunkWriter {
            store: self.clone(),
            id,
            bytes,
            mode,
            target,
            temporary,
            sums: BlockSums::new(),
            early_sync: None,
            early_synced: 0,
            guard,
        })
    }

    fn claim(self: &Arc<Self>, id: u64) -> Result<(WritingGuard, PathBuf), StoreError> {
        let mut inner = self.inner.lock();
        if inner.writing.len() >= self.host.config.chunk_writes_max {
            return Err(StoreError::Busy(format!("{} chunks are being written", inner.writing.len())));
        }
        if !inner.writing.insert(id) {
            return Err(StoreError::Busy(format!("chunk {id} is being written")));
        }
        inner.temporaries += 1;
        let temporary = self.dir.join(format!("{id:016x}.{}{TEMPORARY_SUFFIX}", inner.temporaries));
        Ok((WritingGuard { store: self.clone(), id }, temporary))
    }

    /// A view for clients, mapped and kept. A damaged chunk is read call by call: its disk may answer
    /// with an error, which a map makes a signal that ends the process.
    pub(super) async fn reader(&self, id: u64) -> Result<BlockReader, StoreError> {
        if let Some(reader) = self.maps.get(FileId::Chunk(id)) {
            return Ok(reader);
        }
        let version = match self.state(id) {
            Some(chunk) if chunk.damaged.is_some() => return self.scrub_reader(id).await,
            Some(chunk) => chunk.version,
            None => return Err(StoreError::NotFound(format!("chunk {id}"))),
        };
        let path = self.path(id);
        let map = match self.host.env.disk.map(&path).await {
            Ok(map) => map,
            Err(error) => return Err(StoreError::Corrupt { file: path, offset: 0, what: error.to_string() }),
        };
        let reader = self.parse(id, map.len() as u64, &map, Source::Mapped(map.clone()))?;
        self.maps.insert(FileId::Chunk(id), reader.clone());
        // Replaced, deleted or found damaged while it was being mapped: the next reader looks again.
        if self.state(id).is_none_or(|chunk| chunk.version != version || chunk.damaged.is_some()) {
            self.maps.remove(FileId::Chunk(id));
        }
        Ok(reader)
    }

    /// A view for the check in the background, read call by call.
    pub(super) async fn scrub_reader(&self, id: u64) -> Result<BlockReader, StoreError> {
        let path = self.path(id);
        let corrupt =
            |error: std::io::Error| StoreError::Corrupt { file: path.clone(), offset: 0, what: error.to_string() };
        let file = self.host.env.disk.open(&path, OpenMode::Read).await.map_err(corrupt)?;
        let length = file.len().await.map_err(corrupt)?;
        let bytes = chunk_file::data_bytes(length).unwrap_or(length);
        let tail = file.read_at(bytes, (length - bytes) as usize).await.map_err(corrupt)?;
        self.parse(id, length, &tail, Source::File(file))
    }

    fn parse(&self, id: u64, length: u64, tail: &[u8], source: Source) -> Result<BlockReader, StoreError> {
        match chunk_file::parse_trailer(id, length, tail) {
            Ok(trailer) => Ok(BlockReader {
                file: self.path(id),
                source,
                base: 0,
                bytes: trailer.bytes,
                blocks: trailer.blocks.into(),
            }),
            Err(error) => {
                let offset = chunk_file::data_bytes(length).unwrap_or(0);
                Err(StoreError::Corrupt { file: self.path(id), offset, what: error.to_string() })
            }
        }
    }

    /// Remembers and reports that a chunk is damaged.
    pub(super) fn mark_damaged(&self, id: u64, what: &str) {
        let mut inner = self.inner.lock();
        if let Some(chunk) = inner.chunks.get_mut(&id)
            && chunk.damaged.is_none()
        {
            tracing::error!(chunk = id, what, "a chunk is damaged; it will be replaced from another server");
            chunk.damaged = Some(what.to_owned());
            self.maps.remove(FileId::Chunk(id));
            self.host.changes.chunk(id);
        }
    }

    /// Removes a chunk. What maps it goes on reading.
    pub(super) async fn delete(&self, id: u64) -> Result<(), StoreError> {
        if self.state(id).is_some() {
            let path = self.path(id);
            match self.host.env.disk.remove(&path).await {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(StoreError::io(&path)(error)),
            }
            self.inner.lock().chunks.remove(&id);
            self.maps.remove(FileId::Chunk(id));
        }
        self.host.changes.chunk(id);
        Ok(())
    }
}

/// Keeps a second writer of the same chunk out.
#[derive(Debug)]
struct WritingGuard {
    store: Arc<ChunkStore>,
    id: u64,
}

impl Drop for WritingGuard {
    fn drop(&mut self) {
        self.store.inner.lock().writing.remove(&self.id);
    }
}

/// A chunk on its way. Ends with [`ChunkWriter::finish`] or [`ChunkWriter::abort`].
#[derive(Debug)]
pub(super) struct ChunkWriter {
    store: Arc<ChunkStore>,
    id: u64,
    bytes: u64,
    mode: Mode,
    /// `None` when the chunk is here already and only compared.
    target: Option<Arc<dyn DiskFile>>,
    temporary: PathBuf,
    sums: BlockSums,
    /// The sync under way. Its failure must not be missed: the next sync would claim success.
    early_sync: Option<oneshot::Receiver<std::io::Result<()>>>,
    /// Bytes that were there when it began.
    early_synced: u64,
    #[allow(dead_code)] // held for its drop
    guard: WritingGuard,
}

impl ChunkWriter {
    /// Adds bytes at the end.
    pub(super) async fn push(&mut self, data: Bytes) -> Result<(), StoreError> {
        let offset = self.sums.bytes();
        if offset + data.len() as u64 > self.bytes {
            return Err(StoreError::Invalid(format!(
                "more than the announced {} bytes of chunk {}",
                self.bytes, self.id
            )));
        }
        self.sums.update(&data);
        let Some(file) = self.target.clone() else { return Ok(()) };
        file.write_at(offset, data).await.map_err(|error| self.write_failed(error))?;
        if self.mode == Mode::Fsync && self.sums.bytes() - self.early_synced >= EARLY_SYNC_BYTES {
            self.end_early_sync().await?;
            self.early_synced = self.sums.bytes();
            let (done, early_sync) = oneshot::channel();
            self.early_sync = Some(early_sync);
            self.store.host.env.tasks.spawn("chunkserver early sync", async move {
                let _ = done.send(file.sync().await); // the writer may have given up
            });
        }
        Ok(())
    }

    async fn end_early_sync(&mut self) -> Result<(), StoreError> {
        match self.early_sync.take() {
            Some(sync) => match sync.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(self.sync_failed(error)),
                Err(_) => Err(StoreError::Ending("shutting down".into())),
            },
            None => Ok(()),
        }
    }

    fn write_failed(&self, error: std::io::Error) -> StoreError {
        if error.kind() == std::io::ErrorKind::StorageFull {
            self.store.host.space.ran_out();
        }
        StoreError::io(&self.temporary)(error)
    }

    /// Makes the chunk appear and returns its CRC-32. In fsync mode it is durable then.
    /// With `expected`, nothing appears unless that is its CRC-32.
    pub(super) async fn finish(mut self, expected: Option<u32>) -> Result<u32, StoreError> {
        match self.complete(expected).await {
            Ok(crc) => Ok(crc),
            Err(error) => {
                self.abort().await;
                Err(error)
            }
        }
    }

    async fn complete(&mut self, expected: Option<u32>) -> Result<u32, StoreError> {
        self.end_early_sync().await?;
        let (got, crc) = (self.sums.bytes(), self.sums.total());
        if got != self.bytes {
            return Err(StoreError::Invalid(format!("chunk {} ends after {got} of {} bytes", self.id, self.bytes)));
        }
        if expected.is_some_and(|expected| expected != crc) {
            return Err(StoreError::State(format!("chunk {}: the bytes have CRC-32 {crc:08x}", self.id)));
        }
        let Some(file) = &self.target else { return self.compare(crc).await };
        file.write_at(got, chunk_file::encode_trailer(self.id, &self.sums)).await.map_err(|e| self.write_failed(e))?;
        let store = &self.store;
        let (disk, path) = (&store.host.env.disk, store.path(self.id));
        if self.mode == Mode::Fsync {
            file.sync().await.map_err(|error| self.sync_failed(error))?;
        }
        disk.rename(&self.temporary, &path).await.map_err(StoreError::io(&path))?;
        if self.mode == Mode::Fsync {
            // Durable: from here on the chunk survives a loss of power.
            disk.sync_dir(&store.dir).await.map_err(|error| self.sync_failed(error))?;
        }
        // Visible.
        {
            let mut inner = store.inner.lock();
            inner.temporaries += 1;
            let version = inner.temporaries;
            inner.chunks.insert(self.id, ChunkState { bytes: self.bytes, damaged: None, version });
        }
        store.maps.remove(FileId::Chunk(self.id));
        store.host.changes.chunk(self.id);
        Ok(crc)
    }

    async fn compare(&self, crc: u32) -> Result<u32, StoreError> {
        let present = self.store.reader(self.id).await?;
        let mut total = BlockSums::new();
        if present.bytes == self.bytes {
            total.update(&present.read(0, present.bytes).await?);
        }
        match present.bytes == self.bytes && total.total() == crc {
            true => Ok(crc),
            false => Err(StoreError::Exists(format!("chunk {} with other bytes", self.id))),
        }
    }

    fn sync_failed(&self, error: std::io::Error) -> StoreError {
        self.store.host.fail(format!("sync of {}: {error}", self.temporary.display()));
        StoreError::io(&self.temporary)(error)
    }

    /// Forgets what was written.
    pub(super) async fn abort(self) {
        if self.target.is_some()
            && let Err(error) = self.store.host.env.disk.remove(&self.temporary).await
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(file = %self.temporary.display(), %error, "cannot remove a temporary file");
        }
    }
}
