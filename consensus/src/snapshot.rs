//! Snapshots on disk: the whole state after some entry.
//!
//! File `snapshot-<index>-<term>` of the last entry that it includes (20 digits each), written under
//! another name, synced and renamed. Numbers are little-endian.
//!
//! | bytes | |
//! |---|---|
//! | 8 | magic `URUKRSNP` |
//! | 4 | version, 1 |
//! | 4 | length of the header |
//! | n | header: postcard of [`Header`] |
//! | 4 | CRC-32 of all of the above |
//! | m | content: what `StateMachine::snapshot` returned |
//!
//! Invariants: (1) a file under its final name is complete; (2) the older ones go only after a newer
//! one is durable; (3) the newest is the current one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use uruk_base::disk::{Disk, OpenMode};

use crate::log::format::{decode_membership, encode_membership};
use crate::types::{LogId, SnapshotMeta, StoredMembership, log_id};

const PREFIX: &str = "snapshot-";
const TEMPORARY: &str = ".tmp";
const MAGIC: &[u8; 8] = b"URUKRSNP";
const VERSION: u32 = 1;
/// Magic, version, length of the header.
pub(crate) const FIXED_BYTES: usize = 16;
/// Reading gives up after so many snapshots that were replaced meanwhile.
const READ_ATTEMPTS: u32 = 5;

/// What a snapshot file says about its content.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Header {
    /// Term and index of the last entry.
    last: (u64, u64),
    /// Term and index of the entry that set the membership.
    membership_at: Option<(u64, u64)>,
    membership: Vec<u8>,
    pub(crate) content_bytes: u64,
    pub(crate) content_crc: u32,
}

/// Why there is no snapshot to be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error("{0}: {1}")]
    Disk(PathBuf, io::Error),
    #[error("corrupt snapshot {path} at offset {offset}: {problem}")]
    Corrupt { path: PathBuf, offset: u64, problem: String },
}

impl From<SnapshotError> for io::Error {
    fn from(error: SnapshotError) -> io::Error {
        match error {
            SnapshotError::Disk(path, error) => io::Error::new(error.kind(), format!("{}: {error}", path.display())),
            SnapshotError::Corrupt { .. } => io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
        }
    }
}

impl From<SnapshotError> for crate::StartError {
    fn from(error: SnapshotError) -> crate::StartError {
        match error {
            SnapshotError::Disk(path, source) => crate::StartError::Disk { path, source },
            SnapshotError::Corrupt { path, offset, problem } => crate::StartError::Corrupt { path, offset, problem },
        }
    }
}

/// The snapshots of one member. Clones mean the same ones.
#[derive(Clone, Debug)]
pub(crate) struct Snapshots {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    /// Tells temporary files apart: a snapshot may be built while another is received.
    temporaries: Arc<AtomicU64>,
}

impl Snapshots {
    pub(crate) fn new(disk: Arc<dyn Disk>, folder: &Path) -> Snapshots {
        Snapshots { disk, folder: folder.to_owned(), temporaries: Arc::default() }
    }

    /// Removes what a crash left behind.
    pub(crate) async fn clean(&self) -> Result<(), SnapshotError> {
        for entry in self.list().await? {
            if entry.starts_with(PREFIX) && entry.ends_with(TEMPORARY) {
                let path = self.folder.join(&entry);
                self.disk.remove(&path).await.map_err(|e| SnapshotError::Disk(path.clone(), e))?;
            }
        }
        Ok(())
    }

    /// Makes a snapshot durable, then removes those it replaces.
    pub(crate) async fn write(&self, meta: &SnapshotMeta, content: Bytes) -> Result<(), SnapshotError> {
        let last = meta.last_log_id.expect("a snapshot includes at least the membership's entry");
        let path = self.path(last);
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        let temporary = self.folder.join(format!("{}{number}{TEMPORARY}", file_name(last)));
        let header = encode_header(meta, last, &content);
        self.write_durably(&temporary, &path, header, content).await.map_err(|e| SnapshotError::Disk(path, e))?;
        for name in self.list().await? {
            if parse_name(&name).is_some_and(|other| other < last) {
                let old = self.folder.join(name);
                match self.disk.remove(&old).await {
                    // A snapshot may be built while another is received: both remove what is older.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    removed => removed.map_err(|e| SnapshotError::Disk(old, e))?,
                }
            }
        }
        Ok(())
    }

    async fn write_durably(&self, temporary: &Path, path: &Path, header: Bytes, content: Bytes) -> io::Result<()> {
        let file = self.disk.open(temporary, OpenMode::CreateOrWrite).await?;
        file.set_len(0).await?;
        let header_bytes = header.len() as u64;
        file.write_at(0, header).await?;
        file.write_at(header_bytes, content).await?;
        file.sync().await?;
        self.disk.rename(temporary, path).await?;
        self.disk.sync_dir(&self.folder).await // durable
    }

    /// The current snapshot, if there is one.
    pub(crate) async fn read(&self) -> Result<Option<(SnapshotMeta, Bytes)>, SnapshotError> {
        let mut attempt = 1;
        loop {
            match self.try_read().await {
                // It was replaced between listing and opening.
                Err(SnapshotError::Disk(_, error))
                    if error.kind() == io::ErrorKind::NotFound && attempt < READ_ATTEMPTS =>
                {
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    async fn try_read(&self) -> Result<Option<(SnapshotMeta, Bytes)>, SnapshotError> {
        let Some(last) = self.list().await?.iter().filter_map(|name| parse_name(name)).max() else {
            return Ok(None);
        };
        let path = self.path(last);
        let bytes = self.disk.read(&path).await.map_err(|e| SnapshotError::Disk(path.clone(), e))?;
        match decode(bytes) {
            Ok((meta, content)) if meta.last_log_id == Some(last) => Ok(Some((meta, content))),
            Ok(_) => Err(SnapshotError::Corrupt { path, offset: 0, problem: "its name names another entry".into() }),
            Err((offset, problem)) => Err(SnapshotError::Corrupt { path, offset, problem }),
        }
    }

    async fn list(&self) -> Result<Vec<String>, SnapshotError> {
        let entries = self.disk.list(&self.folder).await.map_err(|e| SnapshotError::Disk(self.folder.clone(), e))?;
        Ok(entries.into_iter().map(|entry| entry.name).collect())
    }

    fn path(&self, last: LogId) -> PathBuf {
        self.folder.join(file_name(last))
    }
}

fn file_name(last: LogId) -> String {
    format!("{PREFIX}{:020}-{:020}", last.index, last.leader_id.term)
}

fn parse_name(name: &str) -> Option<LogId> {
    let (index, term) = name.strip_prefix(PREFIX)?.split_once('-')?;
    Some(log_id(term.parse().ok()?, index.parse().ok()?))
}

pub(crate) fn encode_header(meta: &SnapshotMeta, last: LogId, content: &[u8]) -> Bytes {
    let header = Header {
        last: (last.leader_id.term, last.index),
        membership_at: meta.last_membership.log_id().map(|at| (at.leader_id.term, at.index)),
        membership: encode_membership(meta.last_membership.membership()),
        content_bytes: content.len() as u64,
        content_crc: crc32fast::hash(content),
    };
    let header = postcard::to_stdvec(&header).expect("memory has room and the types have lengths");
    let mut out = BytesMut::with_capacity(FIXED_BYTES + header.len() + 4);
    out.put_slice(MAGIC);
    out.put_u32_le(VERSION);
    out.put_u32_le(u32::try_from(header.len()).expect("a group has few members"));
    out.put_slice(&header);
    out.put_u32_le(crc32fast::hash(&out));
    out.freeze()
}

pub(crate) fn decode(mut bytes: Bytes) -> Result<(SnapshotMeta, Bytes), (u64, String)> {
    let short = || (0, "the file ends within the header".to_owned());
    let mut fixed = bytes.get(..FIXED_BYTES).ok_or_else(short)?;
    if !fixed.starts_with(MAGIC) {
        return Err((0, "not a raft snapshot".into()));
    }
    fixed.advance(MAGIC.len());
    let (version, header_bytes) = (fixed.get_u32_le(), fixed.get_u32_le() as usize);
    if version != VERSION {
        return Err((8, format!("version {version} is not known to this program")));
    }
    let checked = bytes.get(..FIXED_BYTES + header_bytes).ok_or_else(short)?;
    let mut crc = bytes.get(FIXED_BYTES + header_bytes..FIXED_BYTES + header_bytes + 4).ok_or_else(short)?;
    if crc.get_u32_le() != crc32fast::hash(checked) {
        return Err((0, "checksum of the header is wrong".into()));
    }
    let header: Header = postcard::from_bytes(&checked[FIXED_BYTES..]).map_err(|e| (16, e.to_string()))?;
    bytes.advance(FIXED_BYTES + header_bytes + 4);
    let content_at = (FIXED_BYTES + header_bytes + 4) as u64;
    if bytes.len() as u64 != header.content_bytes {
        return Err((content_at, format!("the content has {} bytes instead of {}", bytes.len(), header.content_bytes)));
    }
    if crc32fast::hash(&bytes) != header.content_crc {
        return Err((content_at, "checksum of the content is wrong".into()));
    }
    let membership = decode_membership(&header.membership).map_err(|problem| (16, problem))?;
    let at = header.membership_at.map(|(term, index)| log_id(term, index));
    let last_log_id = Some(log_id(header.last.0, header.last.1));
    Ok((SnapshotMeta { last_log_id, last_membership: StoredMembership::new(at, membership) }, bytes))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use openraft::BasicNode;
    use uruk_base::disk::RealDisk;

    use super::*;
    use crate::types::Membership;

    fn meta(index: u64) -> SnapshotMeta {
        let nodes: BTreeMap<u64, BasicNode> = [(1, BasicNode { addr: "a:1".into() })].into();
        let membership = Membership::new(vec![BTreeSet::from([1])], nodes).unwrap();
        SnapshotMeta {
            last_log_id: Some(log_id(3, index)),
            last_membership: StoredMembership::new(Some(log_id(0, 0)), membership),
        }
    }

    #[tokio::test]
    async fn the_newest_snapshot_is_read_and_the_older_ones_are_gone() {
        let folder = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::new(Arc::new(RealDisk), folder.path());
        assert!(snapshots.read().await.unwrap().is_none());
        for (index, content) in [(10, "ten"), (200, "two hundred")] {
            snapshots.write(&meta(index), content.into()).await.unwrap();
            assert_eq!(snapshots.read().await.unwrap(), Some((meta(index), content.into())));
        }
        assert_eq!(snapshots.list().await.unwrap().len(), 1);
        // One that was built slowly does not replace what was received meanwhile.
        snapshots.write(&meta(50), "fifty".into()).await.unwrap();
        assert_eq!(snapshots.read().await.unwrap().unwrap().1, "two hundred");
    }

    #[test]
    fn any_flipped_bit_is_an_error() {
        let mut good = encode_header(&meta(7), log_id(3, 7), b"content").to_vec();
        good.extend_from_slice(b"content");
        assert_eq!(decode(good.clone().into()), Ok((meta(7), "content".into())));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(bad.into()).is_err(), "bit {bit}");
        }
        for len in 0..good.len() {
            assert!(decode(good[..len].to_vec().into()).is_err(), "length {len}");
        }
    }
}
