//! The real disk, with faults.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use uruk_base::disk::{DirEntry, Disk, DiskFile, DiskLock, OpenMode, RealDisk};

/// Counts syncs, can fail them, and can stop all changes at some point, as the end of the process does.
#[derive(Clone, Debug)]
pub struct FaultyDisk {
    pub syncs: Arc<AtomicU64>,
    pub fail_syncs: Arc<AtomicBool>,
    /// So many changes are made yet; the one after them is torn, then there are none.
    pub writes_left: Arc<AtomicI64>,
}

impl Default for FaultyDisk {
    fn default() -> FaultyDisk {
        let writes_left = Arc::new(AtomicI64::new(i64::MAX));
        FaultyDisk { syncs: Arc::default(), fail_syncs: Arc::default(), writes_left }
    }
}

impl FaultyDisk {
    fn change(&self) -> io::Result<()> {
        match self.writes_left.fetch_sub(1, Ordering::SeqCst) > 0 {
            true => Ok(()),
            false => Err(io::Error::other("crashed on purpose")),
        }
    }
}

#[derive(Debug)]
struct FaultyFile {
    inner: Arc<dyn DiskFile>,
    disk: FaultyDisk,
}

#[async_trait]
impl Disk for FaultyDisk {
    async fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        RealDisk.create_dir_all(dir).await
    }

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        match mode {
            OpenMode::Read | OpenMode::Write => {}
            OpenMode::CreateNew | OpenMode::CreateOrWrite => self.change()?,
        }
        let inner = RealDisk.open(path, mode).await?;
        Ok(Arc::new(FaultyFile { inner, disk: self.clone() }))
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change()?;
        RealDisk.rename(from, to).await
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        self.change()?;
        RealDisk.remove(path).await
    }

    async fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.change()?;
        RealDisk.remove_dir_all(dir).await
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        RealDisk.list(dir).await
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.change()?;
        RealDisk.sync_dir(dir).await
    }

    async fn map(&self, path: &Path) -> io::Result<Bytes> {
        RealDisk.map(path).await
    }

    async fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        RealDisk.free_bytes(dir).await
    }

    async fn lock_dir(&self, dir: &Path) -> io::Result<Box<dyn DiskLock>> {
        RealDisk.lock_dir(dir).await
    }

    fn boot_id(&self) -> String {
        RealDisk.boot_id()
    }
}

#[async_trait]
impl DiskFile for FaultyFile {
    async fn len(&self) -> io::Result<u64> {
        self.inner.len().await
    }

    async fn write_at(&self, offset: u64, data: Bytes) -> io::Result<()> {
        if let Err(crashed) = self.disk.change() {
            // Only the first write behind the limit gets as far as this.
            if self.disk.writes_left.load(Ordering::SeqCst) == -1 {
                self.inner.write_at(offset, data.slice(..data.len() / 2)).await?;
            }
            return Err(crashed);
        }
        self.inner.write_at(offset, data).await
    }

    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.inner.read_at(offset, len).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.change()?;
        self.inner.set_len(len).await
    }

    async fn sync(&self) -> io::Result<()> {
        self.disk.change()?;
        self.disk.syncs.fetch_add(1, Ordering::SeqCst);
        match self.disk.fail_syncs.load(Ordering::SeqCst) {
            true => Err(io::Error::other("broken on purpose")),
            false => self.inner.sync().await,
        }
    }
}
