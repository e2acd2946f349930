//! A disk in memory that forgets and fails as real ones do, for tests and simulation.
//!
//! One [`SimDisk`] is the disk of one host. It outlives the host's processes: each of them works on
//! its own [`SimDisk::mount`].
//!
//! | event | what stays |
//! |---|---|
//! | [`SimDisk::process_crash`] | everything written, synced or not; locks are free; old handles are dead |
//! | [`SimDisk::power_loss`] | what was synced, and of the rest a random part: 512-byte sectors of contents, single folder changes, old or new length; another boot id |
//! | a failed sync | the unsynced sectors stay readable but no later sync makes them durable; after a crash some of them read as they were before |
//!
//! Invariants: (1) what a successful sync covered survives everything but [`SimDisk::flip_bit`];
//! (2) the same seed and the same calls give the same content; (3) a handle of a crashed process
//! changes nothing; (4) every write and every sync passes through an await before it takes effect,
//! so that a crash can land there.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use self::state::{InodeId, State};
use super::{DirEntry, Disk, DiskFile, DiskLock, OpenMode};
use crate::clock::Clock;
use crate::task::Pause;

mod state;
#[cfg(test)]
mod tests;

/// What a disk writes as one piece, in bytes.
pub const SECTOR_BYTES: u64 = 512;
/// A sync takes up to this long, [`DiskFaults::sync_delay`] not included.
const SYNC_TIME_MAX: Duration = Duration::from_micros(500);
/// Every byte of a simulated disk is a byte of memory, so that files grow ahead of their content by this much at most.
const RESERVED_BYTES_MAX: u64 = 16 << 10;

/// The faults of a disk. All off at first; chances are between 0 and 1.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct DiskFaults {
    /// Chance of EIO for each read and map.
    pub read_error_chance: f64,
    /// This many of the next lists of folders fail with EIO, and with them looks whether a file exists.
    pub list_errors: u32,
    /// Chance of EIO for each write.
    pub write_error_chance: f64,
    /// Chance that a sync of a file fails and drops what it should have written.
    pub sync_error_chance: f64,
    /// This many of the next syncs of files fail, whatever the chance.
    pub sync_errors: u32,
    /// Files together hold at most this many bytes; beyond it writes fail with `StorageFull`.
    pub capacity_bytes: Option<u64>,
    /// Every sync takes this much longer.
    pub sync_delay: Duration,
    /// Every read and write of a file takes this long.
    pub access_delay: Duration,
}

/// The disk of one host. Clones mean the same disk.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

impl SimDisk {
    /// An empty disk.
    pub fn new(seed: u64) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(State::new(seed))))
    }

    /// The disk as the process that starts now sees it, until the next crash. Delays run on `clock`.
    pub fn mount(&self, clock: Clock) -> Arc<dyn Disk> {
        self.mount_pausable(clock, Pause::new())
    }

    /// The same, for a process that `pause` may stop.
    pub fn mount_pausable(&self, clock: Clock, pause: Pause) -> Arc<dyn Disk> {
        let process = self.0.lock().process;
        Arc::new(Mounted { disk: self.clone(), clock, pause, process })
    }

    /// All processes of the host end; the machine runs on.
    pub fn process_crash(&self) {
        self.0.lock().process_crash();
    }

    /// The machine loses power and boots again.
    pub fn power_loss(&self) {
        self.0.lock().power_loss();
    }

    /// Switches faults on and off.
    pub fn faults(&self, change: impl FnOnce(&mut DiskFaults)) {
        change(&mut self.0.lock().faults);
    }

    /// Flips a bit of a file, on the device and in the page cache. `bit` counts from the file's start.
    pub fn flip_bit(&self, path: &Path, bit: u64) -> io::Result<()> {
        self.0.lock().flip_bit(path, bit)
    }

    /// A file's content, as the running process sees it.
    pub fn content(&self, path: &Path) -> Option<Bytes> {
        self.0.lock().content(path)
    }

    /// Files as the running process sees them, with their lengths.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        self.0.lock().list_all()
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimDisk")
    }
}

#[derive(Clone, Debug)]
struct Mounted {
    disk: SimDisk,
    clock: Clock,
    pause: Pause,
    process: u64,
}

impl Mounted {
    /// Runs `work` on the disk's state, unless this process has crashed.
    fn with<T>(&self, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.0.lock();
        if state.process != self.process {
            return Err(io::Error::other("the process of this handle has crashed"));
        }
        work(&mut state)
    }

    async fn breathe(&self) {
        let delay = self.disk.0.lock().faults.access_delay;
        if !delay.is_zero() {
            self.clock.sleep(delay).await;
        }
        tokio::task::yield_now().await;
        self.pause.running().await;
    }
}

#[derive(Debug)]
struct SimLock {
    disk: SimDisk,
    dir: PathBuf,
    id: u64,
}

impl DiskLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.0.lock().unlock(&self.dir, self.id);
    }
}

#[async_trait]
impl Disk for Mounted {
    async fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.breathe().await;
        self.with(|state| state.create_dir_all(dir))
    }

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        self.breathe().await;
        let inode = self.with(|state| state.open(path, mode))?;
        Ok(Arc::new(SimFile { mounted: self.clone(), inode, writable: mode != OpenMode::Read }))
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.breathe().await;
        self.with(|state| state.rename(from, to))
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        self.breathe().await;
        self.with(|state| state.remove(path))
    }

    async fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.breathe().await;
        self.with(|state| state.remove_dir_all(dir))
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.breathe().await;
        self.with(|state| state.list(dir))
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let delay = self.with(|state| state.sync_time(SYNC_TIME_MAX))?;
        self.clock.sleep(delay).await;
        self.with(|state| state.sync_dir(dir))
    }

    async fn map(&self, path: &Path) -> io::Result<Bytes> {
        self.breathe().await;
        self.with(|state| {
            let inode = state.open(path, OpenMode::Read)?;
            let len = state.len(inode);
            state.read(inode, 0, len as usize)
        })
    }

    async fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        self.with(|state| Ok(state.free_bytes()))
    }

    async fn lock_dir(&self, dir: &Path) -> io::Result<Box<dyn DiskLock>> {
        let id = self.with(|state| state.lock(dir))?;
        Ok(Box::new(SimLock { disk: self.disk.clone(), dir: dir.to_owned(), id }))
    }

    fn boot_id(&self) -> String {
        format!("simulated-boot-{}", self.disk.0.lock().boot)
    }
}

#[derive(Debug)]
struct SimFile {
    mounted: Mounted,
    inode: InodeId,
    writable: bool,
}

impl SimFile {
    fn check_writable(&self) -> io::Result<()> {
        if self.writable { Ok(()) } else { Err(io::Error::from(io::ErrorKind::PermissionDenied)) }
    }
}

#[async_trait]
impl DiskFile for SimFile {
    async fn len(&self) -> io::Result<u64> {
        self.mounted.with(|state| Ok(state.len(self.inode)))
    }

    async fn write_at(&self, offset: u64, data: Bytes) -> io::Result<()> {
        self.check_writable()?;
        self.mounted.breathe().await;
        self.mounted.with(|state| state.write(self.inode, offset, &data))
    }

    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.mounted.breathe().await;
        self.mounted.with(|state| state.read(self.inode, offset, len))
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_writable()?;
        self.mounted.breathe().await;
        self.mounted.with(|state| state.set_len(self.inode, len))
    }

    async fn sync(&self) -> io::Result<()> {
        let (delay, begun) =
            self.mounted.with(|state| Ok((state.sync_time(SYNC_TIME_MAX)?, state.begin_sync(self.inode))))?;
        self.mounted.clock.sleep(delay).await;
        self.mounted.with(|state| state.end_sync(self.inode, &begun))
    }

    async fn reserve(&self, len: u64) -> io::Result<()> {
        let now = self.len().await?;
        if len > now { self.set_len(len.min(now + RESERVED_BYTES_MAX)).await } else { Ok(()) }
    }
}
