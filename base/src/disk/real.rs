//! The machine's file system.

#![allow(clippy::disallowed_methods)] // this file is what the rule points to
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{DirEntry, Disk, DiskFile, DiskLock, OpenMode};

/// Writes and reads go straight to the page cache on the caller's thread, which costs less than a
/// hand-over; what waits for the device (`sync`, folders) goes to a blocking thread.
#[derive(Clone, Copy, Debug)]
pub struct RealDisk;

#[derive(Debug)]
struct RealFile(Arc<File>);

#[derive(Debug)]
struct RealLock(#[allow(dead_code)] File); // held open: closing it releases the lock

impl DiskLock for RealLock {}

/// Runs `work` on a thread that may block.
async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[async_trait]
impl Disk for RealDisk {
    async fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let dir = dir.to_owned();
        on_thread(move || {
            std::fs::create_dir_all(&dir)?;
            match dir.parent() {
                Some(parent) if parent.as_os_str().is_empty() => File::open(".")?.sync_all(),
                Some(parent) => File::open(parent)?.sync_all(),
                None => Ok(()),
            }
        })
        .await
    }

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true);
        match mode {
            OpenMode::Read => {}
            OpenMode::Write => {
                options.write(true);
            }
            OpenMode::CreateNew => {
                options.write(true).create_new(true);
            }
            OpenMode::CreateOrWrite => {
                options.write(true).create(true).truncate(false);
            }
        }
        Ok(Arc::new(RealFile(Arc::new(options.open(path)?))))
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    async fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        let dir = dir.to_owned();
        on_thread(move || std::fs::remove_dir_all(dir)).await
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let dir = dir.to_owned();
        on_thread(move || {
            let mut entries = Vec::new();
            for entry in std::fs::read_dir(dir)? {
                let entry = entry?;
                let Ok(name) = entry.file_name().into_string() else { continue };
                match entry.metadata() {
                    Ok(meta) if meta.is_dir() => entries.push(DirEntry { name, len: 0, is_dir: true }),
                    Ok(meta) => entries.push(DirEntry { name, len: meta.len(), is_dir: false }),
                    // Removed since the folder was read.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            entries.sort();
            Ok(entries)
        })
        .await
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let dir = dir.to_owned();
        on_thread(move || File::open(dir)?.sync_all()).await
    }

    async fn map(&self, path: &Path) -> io::Result<Bytes> {
        let file = File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(Bytes::new());
        }
        // SAFETY: callers map only files that no process changes any more (sealed chunks), and the
        // folder is locked against other processes; a removed file stays mapped.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Bytes::from_owner(map))
    }

    async fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(stat.f_bavail * stat.f_frsize)
    }

    async fn lock_dir(&self, dir: &Path) -> io::Result<Box<dyn DiskLock>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(dir.join("LOCK"))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        Ok(Box::new(RealLock(file)))
    }

    fn boot_id(&self) -> String {
        match std::fs::read_to_string("/proc/sys/kernel/random/boot_id") {
            Ok(id) => id.trim().to_owned(),
            // Unknown boot: treat every start as a new one, the safe side.
            Err(_) => format!("process-{}", std::process::id()),
        }
    }

    async fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }
}

#[async_trait]
impl DiskFile for RealFile {
    async fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    async fn write_at(&self, offset: u64, data: Bytes) -> io::Result<()> {
        self.0.write_all_at(&data, offset)
    }

    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let mut buffer = vec![0; len];
        self.0.read_exact_at(&mut buffer, offset)?;
        Ok(buffer.into())
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    async fn sync(&self) -> io::Result<()> {
        let file = self.0.clone();
        on_thread(move || file.sync_data()).await
    }

    async fn reserve(&self, len: u64) -> io::Result<()> {
        let file = self.0.clone();
        on_thread(move || {
            let before = file.metadata()?.len();
            if before >= len {
                return Ok(());
            }
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), before, len - before) {
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
                result => Ok(result?),
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn written_bytes_are_read_and_mapped() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("a");
        let file = RealDisk.open(&path, OpenMode::CreateNew).await.expect("creates");
        file.write_at(3, Bytes::from_static(b"uruk")).await.expect("writes");
        file.sync().await.expect("syncs");
        assert_eq!(&RealDisk.map(&path).await.expect("maps")[..], b"\0\0\0uruk");
        assert_eq!(&file.read_at(4, 2).await.expect("reads")[..], b"ru");
        assert_eq!(file.read_at(4, 9).await.expect_err("too far").kind(), io::ErrorKind::UnexpectedEof);
        let again = RealDisk.open(&path, OpenMode::CreateNew).await.expect_err("exists");
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    }

    #[tokio::test]
    async fn reserving_extends_with_zeros_and_never_shortens() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("a");
        let file = RealDisk.open(&path, OpenMode::CreateNew).await.expect("creates");
        file.write_at(0, Bytes::from_static(b"uruk")).await.expect("writes");
        file.reserve(10_000).await.expect("reserves");
        let len = file.len().await.expect("has a length");
        // A file system that cannot leaves the file as it is.
        assert!(len == 10_000 || len == 4, "{len}");
        file.reserve(5).await.expect("is there");
        assert_eq!(file.len().await.expect("has a length"), len.max(5));
        let bytes = RealDisk.read(&path).await.expect("reads");
        assert_eq!(&bytes[..4], b"uruk");
        assert!(bytes[4..].iter().all(|byte| *byte == 0));
    }

    #[tokio::test]
    async fn replace_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("a");
        for content in ["one", "two, longer", "3"] {
            RealDisk.replace(&path, Bytes::from(content)).await.expect("replaces");
            assert_eq!(RealDisk.read(&path).await.expect("reads"), content);
        }
        assert_eq!(RealDisk.list(dir.path()).await.expect("lists").len(), 1);
    }

    #[tokio::test]
    async fn a_locked_folder_keeps_the_second_out() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let first = RealDisk.lock_dir(dir.path()).await.expect("first");
        let second = RealDisk.lock_dir(dir.path()).await.expect_err("second");
        assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
        drop(first);
        RealDisk.lock_dir(dir.path()).await.expect("free again");
    }
}
