//! Open files and their blocks.
//!
//! A [`SstableFile`] is one file of the object store, shared by all tablets that name it; a
//! [`FileHandle`] is one tablet's reference to it, clipped to that tablet's rows. Opening is lazy: the
//! tail (properties, index root; before version 4 the filter) is read when the first reader needs it, in one ranged
//! read; index partitions, their filters and data blocks when they are needed.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt};
use parking_lot::{Mutex, RwLock};
use tokio::sync::OnceCell;
use uruk_proto::master::FileRef;
use uruk_proto::{DecodeError, key};

use super::super::cache::{BlockCache, BlockId, Piece, Priority};
use super::super::error::EngineError;
use super::block::Block;
use super::bloom::Bloom;
use super::format::{FOOTER_BYTES, Footer, Handle, unpack_block, unpack_payload};
use super::pins::{IndexPins, Resident};
use super::properties::Properties;
use super::row_filter::RowProbe;
use super::tail::{Answer, PartitionFilter, Tail};

/// What a first read takes of a file's end: index root, properties, footer. The root grows with the file, by an entry
/// for each partition.
const TAIL_EXTRA_BYTES: u64 = 8 << 10;
const TAIL_SHARE: u64 = 4096;
const TAIL_BYTES_MAX: u64 = 2 << 20;
/// Files written and not installed yet that are remembered.
const WRITTEN_MAX: usize = 64;

/// The files that some tablet of this process names.
pub struct FileTable {
    store: Arc<dyn ObjectStore>,
    cache: Arc<BlockCache>,
    pins: Arc<IndexPins>,
    resident: Arc<Resident>,
    next_number: AtomicU64,
    files: Mutex<HashMap<Path, Weak<SstableFile>>>,
    /// What was written here and is not named by a tablet yet, newest last.
    written: Mutex<VecDeque<(String, Properties)>>,
}

impl FileTable {
    /// Nobody names a file yet.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        cache: Arc<BlockCache>,
        pins: Arc<IndexPins>,
        resident: Arc<Resident>,
    ) -> FileTable {
        FileTable {
            store,
            cache,
            pins,
            resident,
            next_number: AtomicU64::new(1),
            files: Mutex::default(),
            written: Mutex::default(),
        }
    }

    /// Where the files are.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// Bytes of index partitions that are pinned.
    pub fn pinned_bytes(&self) -> u64 {
        self.pins.bytes()
    }

    /// Bytes of blocks of in-memory locality groups.
    pub fn resident_bytes(&self) -> u64 {
        self.resident.bytes()
    }

    /// A tablet's handle on a file. Reads nothing.
    pub fn handle(&self, reference: &FileRef) -> Result<FileHandle, EngineError> {
        let path = Path::parse(&reference.path)
            .map_err(|error| EngineError::Store { file: reference.path.clone(), why: error.to_string() })?;
        let mut files = self.files.lock();
        let file = match files.get(&path).and_then(Weak::upgrade) {
            Some(file) => file,
            None => {
                // Amortized: the table doubles before it is swept.
                if files.len() == files.capacity() {
                    files.retain(|_, file| file.strong_count() > 0);
                }
                let file = Arc::new(self.file(path.clone(), reference));
                files.insert(path, Arc::downgrade(&file));
                file
            }
        };
        Ok(FileHandle::new(file, reference.clone()))
    }

    /// Remembers what a file that was just written says about itself, so that the choice of compactions
    /// need not read it.
    pub fn note_written(&self, path: &str, properties: &Properties) {
        let mut written = self.written.lock();
        if written.len() == WRITTEN_MAX {
            written.pop_front();
        }
        written.push_back((path.to_owned(), properties.clone()));
    }

    fn take_written(&self, path: &str) -> Option<Properties> {
        let mut written = self.written.lock();
        let at = written.iter().position(|(other, _)| other == path)?;
        written.remove(at).map(|(_, properties)| properties)
    }

    fn file(&self, path: Path, reference: &FileRef) -> SstableFile {
        SstableFile {
            written: self.take_written(&reference.path),
            number: self.next_number.fetch_add(1, Ordering::Relaxed),
            path,
            bytes: reference.bytes,
            store: self.store.clone(),
            cache: self.cache.clone(),
            pins: self.pins.clone(),
            pinned_bytes: AtomicU64::new(0),
            resident: self.resident.clone(),
            is_resident: AtomicBool::new(false),
            resident_blocks: RwLock::default(),
            resident_bytes: AtomicU64::new(0),
            tail: OnceCell::new(),
        }
    }
}

impl fmt::Debug for FileTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileTable").field("files", &self.files.lock().len()).finish_non_exhaustive()
    }
}

/// One tablet's reference to a file.
#[derive(Debug)]
pub struct FileHandle {
    /// The file.
    pub file: Arc<SstableFile>,
    /// As the meta row names it.
    pub reference: FileRef,
    low: Vec<u8>,
    high: Vec<u8>,
}

impl FileHandle {
    fn new(file: Arc<SstableFile>, reference: FileRef) -> FileHandle {
        let (low, high) = (key::row_lower_bound(&reference.low), key::row_lower_bound(&reference.high));
        FileHandle { file, reference, low, high }
    }

    /// What filters in memory say of a look-up; None: the file is not open.
    #[inline]
    pub fn ask(&self, probe: &RowProbe) -> Option<Answer> {
        self.file.tail().map(|tail| self.file.ask(tail, probe))
    }

    /// Whether the reference covers a row, given its prefix.
    pub fn covers(&self, row_prefix: &[u8]) -> bool {
        *row_prefix >= self.low[..] && (self.high.is_empty() || *row_prefix < self.high[..])
    }

    /// First key that the reference covers; empty for no bound.
    pub fn low(&self) -> &[u8] {
        &self.low
    }

    /// First key beyond what the reference covers; empty for no bound.
    pub fn high(&self) -> &[u8] {
        &self.high
    }
}

/// One file, opened when first needed.
pub struct SstableFile {
    number: u64,
    path: Path,
    /// As the first reference says that was opened: of the whole file, or of a half's share of it.
    bytes: u64,
    store: Arc<dyn ObjectStore>,
    cache: Arc<BlockCache>,
    pins: Arc<IndexPins>,
    pinned_bytes: AtomicU64,
    resident: Arc<Resident>,
    /// Whether its blocks stay in memory.
    is_resident: AtomicBool,
    /// Those that do, by offset.
    resident_blocks: RwLock<BTreeMap<u64, Piece>>,
    resident_bytes: AtomicU64,
    /// Its properties, if this process wrote it.
    written: Option<Properties>,
    tail: OnceCell<Tail>,
}

impl Drop for SstableFile {
    fn drop(&mut self) {
        self.pins.bytes.dec_by(self.pinned_bytes.load(Ordering::Relaxed) as i64);
        self.resident.bytes.dec_by(self.resident_bytes.load(Ordering::Relaxed) as i64);
    }
}

impl SstableFile {
    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its tail, if it was opened.
    pub fn tail(&self) -> Option<&Tail> {
        self.tail.get()
    }

    /// What it says about itself, if that is known without reading it.
    pub fn properties(&self) -> Option<&Properties> {
        self.tail.get().map(|tail| &tail.properties).or(self.written.as_ref())
    }

    /// Opens it, once however many wait.
    pub async fn open(&self) -> Result<&Tail, EngineError> {
        self.tail.get_or_try_init(|| self.read_tail()).await
    }

    /// What its filters in memory say of a look-up.
    #[inline]
    pub fn ask(&self, tail: &Tail, probe: &RowProbe) -> Answer {
        tail.ask(probe, |filter, hash| self.knows(filter, hash))
    }

    /// Whether a filter knows a hash; None when it is not in memory.
    #[inline]
    fn knows(&self, filter: &PartitionFilter, hash: u64) -> Option<bool> {
        if let Some(filter) = filter.pinned.get() {
            return Some(filter.may_contain(hash));
        }
        match self.cached_piece(filter.handle)? {
            Piece::Filter(filter) => Some(filter.may_contain(hash)),
            Piece::Block(_) => None,
        }
    }

    /// Reads a filter: it is pinned if there is room, else in the cache.
    pub async fn read_filter(&self, filter: &PartitionFilter) -> Result<(), EngineError> {
        let handle = filter.handle;
        if !self.pins.has_room() {
            let load = async { Ok(Piece::Filter(Arc::new(self.load_filter(handle).await?))) };
            return self.piece(handle, Priority::High, load).await.map(drop);
        }
        let load = async {
            self.cache.count_miss();
            let filter = self.load_filter(handle).await?;
            self.note_pinned(filter.len());
            Ok(filter)
        };
        filter.pinned.get_or_try_init(|| load).await.map(drop)
    }

    async fn load_filter(&self, handle: Handle) -> Result<Bloom, EngineError> {
        let stored = self.read(handle.offset, u64::from(handle.len)).await?;
        let filter = unpack_payload(&stored, handle.offset).and_then(Bloom::parse);
        filter.map_err(|error| self.damaged(handle.offset, &error))
    }

    fn note_pinned(&self, bytes: usize) {
        self.pinned_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.pins.bytes.inc_by(bytes as i64);
    }

    /// A block that is in memory.
    #[inline]
    pub fn cached(&self, handle: Handle) -> Option<Block> {
        match self.cached_piece(handle)? {
            Piece::Block(block) => Some(block),
            Piece::Filter(_) => None,
        }
    }

    #[inline]
    fn cached_piece(&self, handle: Handle) -> Option<Piece> {
        if self.is_resident()
            && let Some(piece) = self.resident_blocks.read().get(&handle.offset)
        {
            return Some(piece.clone());
        }
        self.cache.get(self.block_id(handle))
    }

    /// A block, through the cache.
    pub async fn block(&self, handle: Handle) -> Result<Block, EngineError> {
        self.block_with(handle, Priority::Low).await
    }

    async fn block_with(&self, handle: Handle, priority: Priority) -> Result<Block, EngineError> {
        let load = async { Ok(Piece::Block(self.read_block(handle).await?)) };
        match self.piece(handle, priority, load).await? {
            Piece::Block(block) => Ok(block),
            Piece::Filter(_) => Err(self.corrupt(handle.offset, "the index names a filter as a block".to_owned())),
        }
    }

    /// A stored block of either sort, kept with the group if that is kept in memory, else through the cache.
    async fn piece(
        &self,
        handle: Handle,
        priority: Priority,
        load: impl Future<Output = Result<Piece, EngineError>>,
    ) -> Result<Piece, EngineError> {
        if self.is_resident() && self.resident.has_room() {
            self.cache.count_miss();
            let piece = load.await?;
            self.keep_resident(handle, &piece);
            return Ok(piece);
        }
        self.cache.get_or_load(self.block_id(handle), priority, load).await
    }

    /// Whether its blocks stay in memory once they were read.
    pub fn set_resident(&self, is_resident: bool) {
        if self.is_resident.swap(is_resident, Ordering::Relaxed) && !is_resident {
            let mut blocks = self.resident_blocks.write();
            blocks.clear();
            self.resident.bytes.dec_by(self.resident_bytes.swap(0, Ordering::Relaxed) as i64);
        }
    }

    fn is_resident(&self) -> bool {
        self.is_resident.load(Ordering::Relaxed)
    }

    fn keep_resident(&self, handle: Handle, piece: &Piece) {
        let mut blocks = self.resident_blocks.write();
        // Under the lock, so that nothing is kept behind a change of mind.
        if self.is_resident() && blocks.insert(handle.offset, piece.clone()).is_none() {
            self.resident_bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
            self.resident.bytes.inc_by(piece.len() as i64);
        }
    }

    /// An index partition that is in memory.
    pub fn cached_partition(&self, handle: Handle) -> Option<Block> {
        let pinned = self.tail.get().and_then(|tail| tail.partition_at(handle)).and_then(|it| it.pinned.get());
        pinned.cloned().or_else(|| self.cached(handle))
    }

    /// An index partition: pinned if there is room, else through the cache.
    pub async fn partition(&self, handle: Handle) -> Result<Block, EngineError> {
        match self.tail.get().and_then(|tail| tail.partition_at(handle)) {
            Some(partition) if self.pins.has_room() => {
                let load = async {
                    self.cache.count_miss();
                    let block = self.read_block(handle).await?;
                    self.note_pinned(block.len());
                    Ok(block)
                };
                partition.pinned.get_or_try_init(|| load).await.cloned()
            }
            Some(_) | None => self.block_with(handle, Priority::High).await,
        }
    }

    /// Counts a read around the cache.
    pub fn count_miss(&self) {
        self.cache.count_miss();
    }

    /// A block, around the cache.
    pub async fn block_uncached(&self, handle: Handle) -> Result<Block, EngineError> {
        self.cache.count_miss();
        self.read_block(handle).await
    }

    /// Adds a block that was read ahead to the cache.
    pub fn keep(&self, handle: Handle, block: Block) {
        if self.is_resident() && self.resident.has_room() {
            return self.keep_resident(handle, &Piece::Block(block));
        }
        self.cache.insert(self.block_id(handle), block);
    }

    /// Stored bytes at `offset`.
    pub async fn read(&self, offset: u64, len: u64) -> Result<Bytes, EngineError> {
        let end = offset + len;
        let bytes = self.store.get_range(&self.path, offset..end).await;
        let bytes = bytes.map_err(|error| EngineError::from_store(&self.path, error))?;
        if bytes.len() as u64 != len {
            return Err(self.corrupt(offset, format!("{} of {len} bytes are there", bytes.len())));
        }
        Ok(bytes)
    }

    /// Checks and unpacks a stored block.
    pub fn unpack(&self, handle: Handle, stored: &[u8]) -> Result<Block, EngineError> {
        unpack_block(stored, handle.offset).map_err(|error| self.damaged(handle.offset, &error))
    }

    /// The error for what cannot be decoded in the block at `offset`.
    pub fn damaged(&self, offset: u64, error: &DecodeError) -> EngineError {
        self.corrupt(offset, error.to_string())
    }

    fn corrupt(&self, offset: u64, what: String) -> EngineError {
        EngineError::Corrupt { file: self.path.to_string(), offset, what }
    }

    fn block_id(&self, handle: Handle) -> BlockId {
        BlockId { file: self.number, offset: handle.offset }
    }

    async fn read_block(&self, handle: Handle) -> Result<Block, EngineError> {
        let stored = self.read(handle.offset, u64::from(handle.len)).await?;
        self.unpack(handle, &stored)
    }

    /// What to read first of a file of this length.
    fn tail_range(file_bytes: u64) -> (u64, u64) {
        // A wrong guess (as of files before version 4, with their filter) costs a second read.
        let guess = (file_bytes / TAIL_SHARE + TAIL_EXTRA_BYTES).min(TAIL_BYTES_MAX);
        (file_bytes.saturating_sub(guess.max(FOOTER_BYTES as u64)), file_bytes)
    }

    /// Stored bytes in `[start, end)`, as far as they are there, and the length of the file.
    async fn read_sized(&self, start: u64, end: u64) -> Result<(Bytes, u64), EngineError> {
        let options = GetOptions { range: Some(GetRange::Bounded(start..end)), ..GetOptions::default() };
        let read = async {
            let result = self.store.get_opts(&self.path, options).await?;
            let file_bytes = result.meta.size;
            Ok((result.bytes().await?, file_bytes))
        };
        let (bytes, file_bytes) = read.await.map_err(|error| EngineError::from_store(&self.path, error))?;
        if file_bytes < self.bytes || bytes.len() as u64 != end.min(file_bytes) - start {
            return Err(self.corrupt(start, format!("{file_bytes} of {} bytes are there", self.bytes)));
        }
        Ok((bytes, file_bytes))
    }

    async fn read_tail(&self) -> Result<Tail, EngineError> {
        let (mut start, mut end) = Self::tail_range(self.bytes.max(FOOTER_BYTES as u64));
        let (mut tail, file_bytes) = self.read_sized(start, end).await?;
        if file_bytes != end {
            // The reference counts only what it covers of the file.
            (start, end) = Self::tail_range(file_bytes);
            (tail, _) = self.read_sized(start, end).await?;
        }
        let footer_at = end.saturating_sub(FOOTER_BYTES as u64);
        let footer = Footer::parse(&tail, end).map_err(|error| self.damaged(footer_at, &error))?;
        if footer.filter.offset < start {
            start = footer.filter.offset;
            tail = self.read(start, end - start).await?;
        }
        let payload = |handle: Handle| {
            let at = (handle.offset - start) as usize;
            unpack_payload(&tail[at..at + handle.len as usize], handle.offset)
                .map_err(|error| self.damaged(handle.offset, &error))
        };
        let damaged = |handle: Handle| move |error| self.damaged(handle.offset, &error);
        let filter = match footer.filter.len {
            0 => None,
            _ => Some(Bloom::parse(payload(footer.filter)?).map_err(damaged(footer.filter))?),
        };
        let root = Block::parse(payload(footer.root)?).map_err(damaged(footer.root))?;
        let properties = Properties::parse(payload(footer.properties)?).map_err(damaged(footer.properties))?;
        Tail::new(root, properties, filter, footer.filter.offset).map_err(damaged(footer.root))
    }
}

impl fmt::Debug for SstableFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SstableFile({})", self.path)
    }
}
