//! The controllers' replicated state, pure: namespace, reference counts, logs, segments, servers.
//!
//! Invariants, checked by the property tests beside this file:
//! 1. Ids are below `ids.next` and `next_server`; both only grow. So nothing is issued twice.
//! 2. `chunks[c].references` = how many times files name c; it is never 0.
//! 3. A chunk is committed at most once: its block is alive then, and it is neither in `chunks` nor
//!    in the block's `freed`. A block that expired never comes back. So a chunk that no file and no
//!    living block knows can be deleted: nothing can name it any more.
//! 4. Segments of a log: `base[i + 1] = base[i] + length[i]`, all but the last are SEALED, and once
//!    the log is closed there are no new ones. SEALED is final (I7), so the log's end is too (S4).
//! 5. A log id that was created, closed or deleted stays known for ever (S7).
//! 6. `trimmed_to` only grows, and not once the log is closed.
//!
//! Where copies are is not in here: chunk servers report it (see [`super::fleet`]).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use uruk_base::commit_log::LogId;
use uruk_consensus::{RestoreError, StateMachine};

use super::command::{Applied, Command, Outcome, Refusal, Reply};
use super::id::{ChunkId, ChunkServerId, PutId, SegmentId};

mod files;
mod logs;
mod want;

#[cfg(test)]
mod tests;

pub use files::{ChunkRecord, FileRecord, etag};
pub use logs::{Log, LogRecord, Segment, SegmentState};
pub use want::{Want, WantedCopies};

/// Version of the snapshot's encoding: its first byte.
const SNAPSHOT_VERSION: u8 = 1;
/// A store's ids start at a random multiple of 2^40 below 2^52. A controller that lost its disk thus
/// knows the pieces of its former life as foreign, and leaves them alone instead of deleting them.
const FOUNDING_SHIFT: u32 = 40;
const FOUNDING_BITS: u32 = 12;

/// A chunk server that registered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServerRecord {
    /// Identity of its data folder.
    pub folder_identity: u64,
    /// Where it listens.
    pub address: String,
    /// Its failure domain.
    pub zone: String,
    /// Its latest process.
    pub incarnation: u64,
}

/// Ids issued together. They die together, unless committed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct IdBlock {
    end: u64,
    /// Puts of this block that committed: a repeated commit finds itself.
    committed: BTreeSet<PutId>,
    /// Chunks of this block that were part of a file and are no longer.
    freed: BTreeSet<ChunkId>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct IdSpace {
    /// First id of this store; 0 until it is founded.
    first: u64,
    next: u64,
}

/// Everything that the controllers agree on.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ControllerState {
    ids: IdSpace,
    next_server: u64,
    servers: BTreeMap<ChunkServerId, ServerRecord>,
    blocks: BTreeMap<u64, IdBlock>,
    files: BTreeMap<String, FileRecord>,
    /// Sum over `files`.
    file_bytes: u64,
    chunks: BTreeMap<ChunkId, ChunkRecord>,
    logs: BTreeMap<LogId, LogRecord>,
    /// Which segment of which log; follows from `logs`.
    #[serde(skip)]
    segments: BTreeMap<SegmentId, (LogId, u32)>,
}

impl ControllerState {
    /// All chunk servers ever registered.
    pub fn servers(&self) -> &BTreeMap<ChunkServerId, ServerRecord> {
        &self.servers
    }

    /// First ids of the blocks whose puts may still commit.
    pub fn blocks(&self) -> impl Iterator<Item = u64> {
        self.blocks.keys().copied()
    }

    /// First id of the living block that issued `id`.
    pub fn block_of(&self, id: u64) -> Option<u64> {
        let (first, block) = self.blocks.range(..=id).next_back()?;
        (id < block.end).then_some(*first)
    }

    /// Whether the put may still commit, or extend.
    pub fn is_put_open(&self, put: PutId) -> bool {
        let block = self.block_of(put.0).map(|first| &self.blocks[&first]);
        block.is_some_and(|block| !block.committed.contains(&put))
    }

    fn issue(&mut self, count: u64) -> std::ops::Range<u64> {
        assert!(self.ids.first > 0, "ids are issued after the first server registered");
        let first = self.ids.next;
        self.ids.next = first.checked_add(count).expect("2^40 ids outlast the store");
        first..self.ids.next
    }

    fn register_server(&mut self, record: ServerRecord, founding_seed: u64) -> Reply {
        if self.ids.first == 0 {
            let founding = (founding_seed % ((1 << FOUNDING_BITS) - 1)) + 1;
            let first = founding << FOUNDING_SHIFT;
            self.ids = IdSpace { first, next: first };
        }
        let known = self.servers.iter().find(|(_, s)| s.folder_identity == record.folder_identity);
        let id = match known {
            Some((id, _)) => *id,
            None => {
                self.next_server += 1;
                ChunkServerId(self.next_server)
            }
        };
        self.servers.insert(id, record);
        Ok(Applied { outcome: Outcome::Server(id), touched: Vec::new() })
    }

    fn issue_ids(&mut self, count: u32) -> Reply {
        if self.ids.first == 0 {
            return Err(Refusal::NoSuchServer(ChunkServerId(1)));
        }
        let ids = self.issue(u64::from(count.max(1)));
        let block = IdBlock { end: ids.end, committed: BTreeSet::new(), freed: BTreeSet::new() };
        self.blocks.insert(ids.start, block);
        Ok(Applied { outcome: Outcome::Ids(ids), touched: Vec::new() })
    }

    fn expire_puts(&mut self, first: u64) -> Applied {
        let block = self.blocks.remove(&first);
        let outcome = block.map_or(Outcome::Done, |block| Outcome::Ids(first..block.end));
        Applied { outcome, touched: Vec::new() }
    }

    fn index_segments(&mut self) {
        self.segments.clear();
        for (log_id, record) in &self.logs {
            if let LogRecord::Kept(log) = record {
                self.segments.extend(log.segments.iter().map(|(index, segment)| (segment.id, (*log_id, *index))));
            }
        }
    }
}

impl StateMachine for ControllerState {
    type Command = Command;
    type Reply = Reply;

    fn apply(&mut self, command: Command) -> Reply {
        match command {
            Command::RegisterServer { folder_identity, address, zone, incarnation, founding_seed } => {
                self.register_server(ServerRecord { folder_identity, address, zone, incarnation }, founding_seed)
            }
            Command::IssueIds { count } => self.issue_ids(count),
            Command::ExpirePuts { block } => Ok(self.expire_puts(block)),
            Command::CommitPut(put) => self.commit_put(put),
            Command::DeleteFiles { paths } => self.delete_files(paths),
            Command::CopyFile { from, to, must_be_new, rename, modified_micros } => {
                self.copy_file(&from, to, must_be_new, rename, modified_micros)
            }
            Command::CreateLog { log, writer, durability, first } => self.create_log(log, writer, durability, first),
            Command::RollSegment(roll) => self.roll_segment(roll),
            Command::CloseLog { log } => self.close_log(log),
            Command::BeginRecovery { log, index, recovery } => self.begin_recovery(log, index, recovery),
            Command::SealSegment { log, index, recovery, length, crc } => {
                self.seal_segment(log, index, recovery, length, crc)
            }
            Command::TrimLog { log, upto } => self.trim_log(log, upto),
            Command::DeleteLog { log } => self.delete_log(log),
        }
    }

    fn snapshot(&self) -> Vec<u8> {
        let header = vec![SNAPSHOT_VERSION];
        postcard::to_extend(self, header).expect("a state without maps of floats encodes")
    }

    fn restore(bytes: &[u8]) -> Result<ControllerState, RestoreError> {
        let (version, body) = bytes.split_first().ok_or_else(|| RestoreError("the snapshot is empty".into()))?;
        if *version != SNAPSHOT_VERSION {
            return Err(RestoreError(format!("controller snapshot version {version}, known is {SNAPSHOT_VERSION}")));
        }
        let mut state: ControllerState = postcard::from_bytes(body)?;
        state.index_segments();
        Ok(state)
    }
}
