//! The file system, as little of it as Uruk needs.
//!
//! | call | durable after |
//! |---|---|
//! | `write_at`, `set_len` | `DiskFile::sync` of the file |
//! | `open` that creates, `rename`, `remove` | `Disk::sync_dir` of the folder |
//!
//! A failed `sync` means that the file's unsynced bytes may be gone although the page cache still
//! shows them: whoever gets that error ends its process (I9).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

mod real;
mod sim;

pub use real::RealDisk;
pub use sim::{DiskFaults, SECTOR_BYTES, SimDisk};

/// How to open a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// It must exist; for reading only.
    Read,
    /// It must exist; for reading and writing.
    Write,
    /// It must not exist.
    CreateNew,
    /// It may exist; its content stays.
    CreateOrWrite,
}

/// One entry of a folder.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DirEntry {
    /// Name within the folder.
    pub name: String,
    /// Length in bytes; 0 for folders.
    pub len: u64,
    /// Whether it is a folder.
    pub is_dir: bool,
}

/// Keeps other processes out of a folder for as long as it lives.
pub trait DiskLock: Send + Sync + fmt::Debug {}

/// A file system.
#[async_trait]
pub trait Disk: Send + Sync + fmt::Debug {
    /// Creates a folder and its parents.
    async fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Opens a file.
    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;
    /// Replaces `to` by `from`, atomically.
    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    async fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a folder and all in it.
    async fn remove_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// The entries of a folder, by name.
    async fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>>;
    /// Makes creations, renames and removals in the folder durable.
    async fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// The whole content of a file that never changes any more, mapped into memory where possible.
    async fn map(&self, path: &Path) -> io::Result<Bytes>;
    /// Bytes free for new data on the file system that holds `dir`.
    async fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
    /// Keeps every other process out of `dir`; `WouldBlock` when one is in.
    async fn lock_dir(&self, dir: &Path) -> io::Result<Box<dyn DiskLock>>;
    /// Names this boot of the machine: unsynced data written under another one may be lost.
    fn boot_id(&self) -> String;

    /// Whether a file or folder exists. An error of the disk is an error, never a "no": who takes a file
    /// for absent may write a new one over it.
    async fn exists(&self, path: &Path) -> io::Result<bool> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(true) };
        match self.list(parent).await {
            Ok(entries) => Ok(entries.iter().any(|e| Some(e.name.as_str()) == name.to_str())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The whole content of a file.
    async fn read(&self, path: &Path) -> io::Result<Bytes> {
        let file = self.open(path, OpenMode::Read).await?;
        let len = file.len().await?;
        file.read_at(0, len as usize).await
    }

    /// Replaces a file's content so that after a crash it is wholly old or wholly new: writes
    /// `<path>.tmp`, syncs it, renames it over `path`, syncs the folder.
    async fn replace(&self, path: &Path, content: Bytes) -> io::Result<()> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".tmp");
        let temporary = PathBuf::from(temporary);
        let file = self.open(&temporary, OpenMode::CreateOrWrite).await?;
        file.set_len(0).await?;
        file.write_at(0, content).await?;
        file.sync().await?;
        self.rename(&temporary, path).await?;
        self.sync_dir(path.parent().expect("a file has a folder")).await
    }
}

/// An open file. Positions are given with every call, so one handle serves many tasks.
#[async_trait]
#[allow(clippy::len_without_is_empty)] // fallible and asynchronous
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Length in bytes.
    async fn len(&self) -> io::Result<u64>;
    /// Writes all of `data` at `offset`, into the page cache.
    async fn write_at(&self, offset: u64, data: Bytes) -> io::Result<()>;
    /// Reads exactly `len` bytes at `offset`; `UnexpectedEof` when the file is shorter.
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes>;
    /// Cuts or extends (with zeros) to `len` bytes.
    async fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes content and length durable (`fdatasync`).
    async fn sync(&self) -> io::Result<()>;

    /// Extends with zeros to at least `len` bytes, with room on the device where the file system can: a sync of
    /// bytes written below it later need not wait for the file system's journal. A file that stays as it is, is
    /// no error.
    async fn reserve(&self, len: u64) -> io::Result<()> {
        let _ = len;
        Ok(())
    }
}
