//! A process's data folder: kept by one process, marked with its role and format.
//!
//! The file `URUK` in the folder is TOML-like text, three lines: `format = <number>`,
//! `role = <name>`, `identity = <16 hex digits>`. It is written once, when the folder is new.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::disk::DiskLock;
use crate::env::Env;

/// Version of the data folders' layout that this program writes; it reads this one and older ones.
pub const FORMAT_VERSION: u32 = 1;
const MARKER: &str = "URUK";

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataFolderError {
    /// Another process is in it.
    #[error("data folder {0} is in use by another process; stop it or choose another folder")]
    InUse(PathBuf),
    /// It belongs to another kind of process.
    #[error("data folder {folder} belongs to a {found}, this is a {wanted}; choose another folder")]
    OtherRole {
        /// The folder.
        folder: PathBuf,
        /// The role in its marker.
        found: String,
        /// The role that was asked for.
        wanted: &'static str,
    },
    /// A newer program wrote it.
    #[error(
        "data folder {folder} has format {found}, this program knows formats up to {FORMAT_VERSION}; use a newer uruk"
    )]
    Newer {
        /// The folder.
        folder: PathBuf,
        /// The format in its marker.
        found: u32,
    },
    /// It has no marker, but other files.
    #[error("folder {0} is not empty and not a data folder of uruk; choose an empty one")]
    Foreign(PathBuf),
    /// Its marker cannot be read.
    #[error("data folder {folder}: damaged marker file {MARKER}: {what}")]
    Damaged {
        /// The folder.
        folder: PathBuf,
        /// What was found.
        what: String,
    },
    /// The file system refused.
    #[error("data folder {folder}: {error}")]
    Io {
        /// The folder.
        folder: PathBuf,
        /// What the file system said.
        error: io::Error,
    },
}

/// A data folder that this process holds for as long as the value lives.
pub struct DataFolder {
    path: PathBuf,
    identity: u64,
    is_new: bool,
    _lock: Box<dyn DiskLock>,
}

impl DataFolder {
    /// Opens the folder for `role`, creating and marking it when it is new.
    pub async fn open(env: &Env, path: &Path, role: &'static str) -> Result<DataFolder, DataFolderError> {
        let io = |error| DataFolderError::Io { folder: path.to_owned(), error };
        env.disk.create_dir_all(path).await.map_err(io)?;
        let lock = env.disk.lock_dir(path).await.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => DataFolderError::InUse(path.to_owned()),
            _ => io(error),
        })?;
        let entries = env.disk.list(path).await.map_err(io)?;
        let marker = path.join(MARKER);
        if entries.iter().any(|e| e.name == MARKER) {
            let text = env.disk.read(&marker).await.map_err(io)?;
            let identity = check_marker(path, role, &text)?;
            return Ok(DataFolder { path: path.to_owned(), identity, is_new: false, _lock: lock });
        }
        // A crash before the marker was renamed into place leaves only its temporary file.
        if entries.iter().any(|e| e.name != "LOCK" && e.name != "URUK.tmp") {
            return Err(DataFolderError::Foreign(path.to_owned()));
        }
        let identity = env.random.u64();
        let text = format!("format = {FORMAT_VERSION}\nrole = {role}\nidentity = {identity:016x}\n");
        env.disk.replace(&marker, Bytes::from(text)).await.map_err(io)?;
        Ok(DataFolder { path: path.to_owned(), identity, is_new: true, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A random number that this folder got when it was made: names the disk, not the process.
    pub fn identity(&self) -> u64 {
        self.identity
    }

    /// Whether this `open` made it.
    pub fn is_new(&self) -> bool {
        self.is_new
    }
}

impl fmt::Debug for DataFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataFolder({})", self.path.display())
    }
}

fn check_marker(folder: &Path, role: &'static str, text: &[u8]) -> Result<u64, DataFolderError> {
    let damaged = |what: &str| DataFolderError::Damaged { folder: folder.to_owned(), what: what.to_owned() };
    let text = std::str::from_utf8(text).map_err(|_| damaged("not text"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('='));
        line.map(str::trim).ok_or_else(|| damaged(&format!("no {name}")))
    };
    let format: u32 = field("format")?.parse().map_err(|_| damaged("format is not a number"))?;
    if format > FORMAT_VERSION {
        return Err(DataFolderError::Newer { folder: folder.to_owned(), found: format });
    }
    let found = field("role")?;
    if found != role {
        return Err(DataFolderError::OtherRole { folder: folder.to_owned(), found: found.to_owned(), wanted: role });
    }
    u64::from_str_radix(field("identity")?, 16).map_err(|_| damaged("identity is not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keeps_its_identity_and_its_role() {
        let env = Env::real();
        let dir = tempfile::tempdir().expect("temporary folder");
        let first = DataFolder::open(&env, dir.path(), "chunkserver").await.expect("new");
        assert!(first.is_new());
        let identity = first.identity();
        let busy = DataFolder::open(&env, dir.path(), "chunkserver").await.expect_err("held");
        assert!(matches!(busy, DataFolderError::InUse(_)), "{busy}");
        drop(first);
        let other = DataFolder::open(&env, dir.path(), "master").await.expect_err("role");
        assert!(matches!(other, DataFolderError::OtherRole { .. }), "{other}");
        let again = DataFolder::open(&env, dir.path(), "chunkserver").await.expect("again");
        assert_eq!((again.identity(), again.is_new()), (identity, false));
    }

    #[tokio::test]
    #[allow(clippy::disallowed_methods)] // plants files that no part of uruk would write
    async fn refuses_newer_damaged_and_foreign_folders() {
        let env = Env::real();
        for (marker, wanted) in [
            ("format = 99\nrole = master\nidentity = 0\n", "format 99"),
            ("role = master\nidentity = 0\n", "no format"),
            ("format = 1\nrole = master\nidentity = x\n", "not a number"),
        ] {
            let dir = tempfile::tempdir().expect("temporary folder");
            std::fs::write(dir.path().join(MARKER), marker).expect("writes");
            let error = DataFolder::open(&env, dir.path(), "master").await.expect_err("refused");
            assert!(error.to_string().contains(wanted), "{error}");
        }
        let dir = tempfile::tempdir().expect("temporary folder");
        std::fs::write(dir.path().join("thesis.tex"), "precious").expect("writes");
        let error = DataFolder::open(&env, dir.path(), "master").await.expect_err("refused");
        assert!(matches!(error, DataFolderError::Foreign(_)), "{error}");
    }
}
