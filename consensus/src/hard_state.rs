//! What a member must never forget besides its log: its vote, and how far its log was purged.
//!
//! File `state`, replaced atomically. Numbers are little-endian.
//!
//! | bytes | |
//! |---|---|
//! | 8 | magic `URUKRSTA` |
//! | 4 | version, 1 |
//! | 4 | CRC-32 of what follows |
//! | n | postcard of [`HardState`] |
//!
//! It exists from the first start on: a folder with a log but without it was tampered with, and a
//! member that forgot its vote could vote twice.

use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::impls::leader_id_std::LeaderId;
use serde::{Deserialize, Serialize};
use uruk_base::Disk;

use crate::error::StartError;
use crate::types::{LogId, Vote, log_id};

const NAME: &str = "state";
const MAGIC: &[u8; 8] = b"URUKRSTA";
const VERSION: u32 = 1;
/// Bytes before the state; the last four are its checksum.
pub(crate) const HEADER_BYTES: usize = 16;

/// The content of the file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct HardState {
    group: String,
    node: u64,
    vote: Option<StoredVote>,
    /// Term and index of the last entry that was purged.
    purged: Option<(u64, u64)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct StoredVote {
    term: u64,
    node: u64,
    /// Whether a quorum granted it.
    committed: bool,
}

impl HardState {
    /// Of a member that has never voted.
    pub(crate) fn new(group: &str, node: u64) -> HardState {
        HardState { group: group.to_owned(), node, vote: None, purged: None }
    }

    pub(crate) fn vote(&self) -> Option<Vote> {
        let StoredVote { term, node, committed } = self.vote?;
        Some(Vote { leader_id: LeaderId { term, voted_for: node }, committed })
    }

    pub(crate) fn set_vote(&mut self, vote: &Vote) {
        let LeaderId { term, voted_for } = vote.leader_id;
        self.vote = Some(StoredVote { term, node: voted_for, committed: vote.committed });
    }

    pub(crate) fn purged(&self) -> Option<LogId> {
        self.purged.map(|(term, index)| log_id(term, index))
    }

    pub(crate) fn set_purged(&mut self, purged: LogId) {
        self.purged = Some((purged.leader_id.term, purged.index));
    }

    /// Makes it durable.
    pub(crate) async fn write(&self, disk: &dyn Disk, folder: &Path) -> std::io::Result<()> {
        disk.replace(&folder.join(NAME), self.encode()).await
    }

    /// The state of the member `node` of `group` in `folder`, if there is one.
    pub(crate) async fn read(
        disk: &dyn Disk,
        folder: &Path,
        group: &str,
        node: u64,
    ) -> Result<Option<HardState>, StartError> {
        let path = folder.join(NAME);
        let exists = disk.exists(&path).await;
        if !exists.map_err(|source| StartError::Disk { path: path.clone(), source })? {
            return Ok(None);
        }
        let bytes = disk.read(&path).await.map_err(|source| StartError::Disk { path: path.clone(), source })?;
        let state = decode(&bytes).map_err(|problem| StartError::Corrupt { path: path.clone(), offset: 0, problem })?;
        if state.group != group || state.node != node {
            return Err(StartError::WrongOwner { path, found_node: state.node, found_group: state.group });
        }
        Ok(Some(state))
    }

    pub(crate) fn encode(&self) -> Bytes {
        let body = postcard::to_stdvec(self).expect("memory has room and the types have lengths");
        let mut out = BytesMut::with_capacity(HEADER_BYTES + body.len());
        out.put_slice(MAGIC);
        out.put_u32_le(VERSION);
        out.put_u32_le(crc32fast::hash(&body));
        out.put_slice(&body);
        out.freeze()
    }

    /// Where the file is, for error messages.
    pub(crate) fn path(folder: &Path) -> PathBuf {
        folder.join(NAME)
    }
}

pub(crate) fn decode(bytes: &[u8]) -> Result<HardState, String> {
    let Some((mut header, body)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Err(format!("only {} bytes", bytes.len()));
    };
    if !header.starts_with(MAGIC) {
        return Err("not a raft state file".into());
    }
    header.advance(MAGIC.len());
    let (version, crc) = (header.get_u32_le(), header.get_u32_le());
    if version != VERSION {
        return Err(format!("version {version} is not known to this program"));
    }
    if crc32fast::hash(body) != crc {
        return Err("checksum is wrong".into());
    }
    postcard::from_bytes(body).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voted() -> HardState {
        let mut state = HardState::new("controllers", 2);
        state.set_vote(&Vote { leader_id: LeaderId { term: 7, voted_for: 3 }, committed: true });
        state.set_purged(log_id(6, 1000));
        state
    }

    #[test]
    fn reads_back_what_was_written() {
        for state in [HardState::new("g", 1), voted()] {
            assert_eq!(decode(&state.encode()), Ok(state));
        }
        assert_eq!(voted().vote().unwrap().leader_id.term, 7);
        assert_eq!(voted().purged(), Some(log_id(6, 1000)));
    }

    #[test]
    fn any_flipped_bit_is_an_error() {
        let good = voted().encode();
        for bit in 0..good.len() * 8 {
            let mut bad = good.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad).is_err(), "bit {bit}");
        }
    }
}
