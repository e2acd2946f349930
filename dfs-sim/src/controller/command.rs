//! What the controllers replicate, and what applying it answers.
//!
//! Commands name everything they need: time, randomness, placement and configuration were looked at
//! by the leader that proposed them, so that applying is the same on every replica. Encoded with
//! postcard into the Raft log: new variants and fields go to the end.
//!
//! | command | repeated by a caller that lost the answer |
//! |---|---|
//! | RegisterServer | same id |
//! | IssueIds | other ids; the first ones expire unused |
//! | ExpirePuts, DeleteFiles, CloseLog, TrimLog, DeleteLog | nothing left to do, answers done |
//! | CommitPut | done, under the same put id |
//! | CopyFile | done; `rename` and `must_be_new` see their own effect: not found, exists |
//! | CreateLog | done, by the same writer nonce, until the log closes |
//! | RollSegment | done, with the same index and length, even when the log has closed since |
//! | BeginRecovery | done, with the same r |
//! | SealSegment | done, whatever was sealed: the caller adopts it |

use std::ops::Range;

use serde::{Deserialize, Serialize};
use uruk_base::commit_log::LogId;
use uruk_proto::{ErrorCode, RpcError};

use super::id::{ChunkId, ChunkServerId, PieceId, PutId};

/// How much an acknowledgement of a log's writer promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LogDurability {
    /// Synced on the counted replicas.
    Fsync,
    /// Handed to the operating system on the counted replicas.
    Replicated,
}

/// Where a new segment goes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SegmentPlan {
    /// W servers.
    pub members: Vec<ChunkServerId>,
    /// A.
    pub ack_quorum: u8,
    /// Copies wanted once it is sealed.
    pub replicas: u8,
    /// W = 1 is accepted as long as only one server was ever registered.
    pub allow_single_replica: bool,
}

/// One chunk of a put, as its writer reports it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WrittenChunk {
    /// Which chunk.
    pub id: ChunkId,
    /// Its length.
    pub bytes: u64,
    /// CRC-32 of all of it.
    pub crc: u32,
    /// Servers that acknowledged it.
    pub servers: Vec<ChunkServerId>,
}

/// Names a file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CommitPut {
    /// From BeginPut.
    pub put: PutId,
    /// The file's name.
    pub path: String,
    /// Its content, in order.
    pub chunks: Vec<WrittenChunk>,
    /// Refuse when the path exists.
    pub must_be_new: bool,
    /// Modification time.
    pub modified_micros: i64,
    /// Copies wanted of each chunk.
    pub replicas: u8,
    /// One acknowledgement is enough as long as only one server was ever registered.
    pub allow_single_replica: bool,
}

/// Seals the open segment `index` at `length` and opens the next one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RollSegment {
    /// Which log.
    pub log: LogId,
    /// The writer's nonce.
    pub writer: u64,
    /// The segment that ends.
    pub index: u32,
    /// Its final length.
    pub length: u64,
    /// CRC-32 of all of it.
    pub crc: u32,
    /// The segment that begins.
    pub next: SegmentPlan,
}

/// A change of the controllers' state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Command {
    /// A chunk server's process started.
    RegisterServer {
        /// Identity of its data folder.
        folder_identity: u64,
        /// Where it listens.
        address: String,
        /// Its failure domain.
        zone: String,
        /// Of its process.
        incarnation: u64,
        /// Random; the store's first registration takes its id space from it.
        founding_seed: u64,
    },
    /// Issues a block of ids, for puts and their chunks.
    IssueIds {
        /// How many.
        count: u32,
    },
    /// Ends every put and chunk of a block that is not committed.
    ExpirePuts {
        /// First id of the block.
        block: u64,
    },
    /// Names a file.
    CommitPut(CommitPut),
    /// Removes names.
    DeleteFiles {
        /// Which.
        paths: Vec<String>,
    },
    /// Gives a file's content a second name.
    CopyFile {
        /// Existing name.
        from: String,
        /// New name.
        to: String,
        /// Refuse when `to` exists.
        must_be_new: bool,
        /// Remove `from`.
        rename: bool,
        /// Modification time of `to`.
        modified_micros: i64,
    },
    /// Creates a log with one open segment.
    CreateLog {
        /// Which log.
        log: LogId,
        /// The writer's nonce.
        writer: u64,
        /// How it acknowledges.
        durability: LogDurability,
        /// Its first segment.
        first: SegmentPlan,
    },
    /// Seals the open segment and opens the next one.
    RollSegment(RollSegment),
    /// Sealing, step 1.
    CloseLog {
        /// Which log.
        log: LogId,
    },
    /// Sealing, step 2.
    BeginRecovery {
        /// Which log.
        log: LogId,
        /// Which segment.
        index: u32,
        /// r.
        recovery: u64,
    },
    /// Sealing, step 7.
    SealSegment {
        /// Which log.
        log: LogId,
        /// Which segment.
        index: u32,
        /// r.
        recovery: u64,
        /// L.
        length: u64,
        /// CRC-32 of all of it.
        crc: u32,
    },
    /// Lets go of whole segments that end at or before `upto`.
    TrimLog {
        /// Which log.
        log: LogId,
        /// Position in the log.
        upto: u64,
    },
    /// Lets go of a sealed log's data; its fence stays.
    DeleteLog {
        /// Which log.
        log: LogId,
    },
}

/// What applying a command gave.
pub type Reply = Result<Applied, Refusal>;

/// A command took effect, now or when it came first.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Applied {
    /// The answer.
    pub outcome: Outcome,
    /// Pieces whose wanted copies changed: repair looks at them.
    pub touched: Vec<PieceId>,
}

/// The answer to a command that took effect.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Outcome {
    /// Nothing to tell.
    #[default]
    Done,
    /// The server's id.
    Server(ChunkServerId),
    /// The ids of a block: issued, or expired.
    Ids(Range<u64>),
    /// Paths that existed.
    Deleted(Vec<String>),
}

/// Why a command was refused. The state is as it was.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
pub enum Refusal {
    /// A plan or report names a server that was never registered.
    #[error("{0} is not registered")]
    NoSuchServer(ChunkServerId),
    /// No such path.
    #[error("file {0:?} does not exist")]
    NoSuchFile(String),
    /// The path is taken.
    #[error("file {0:?} exists")]
    FileExists(String),
    /// The put took too long, or its id was never issued; its chunks may be gone.
    #[error("{0} has expired or was never issued")]
    PutExpired(PutId),
    /// The chunk's id expired, was never issued, or is part of another file.
    #[error("{0} of {1} has expired, was never issued or is used already")]
    ChunkNotUsable(ChunkId, PutId),
    /// Too few servers hold the chunk.
    #[error("{chunk} is held by {copies} servers, {needed} are needed")]
    TooFewCopies {
        /// Which chunk.
        chunk: ChunkId,
        /// Acknowledgements of distinct registered servers.
        copies: u32,
        /// How many there must be.
        needed: u32,
    },
    /// Members and quorum do not fit: see DESIGN §6.
    #[error("a segment cannot have {members} members and acknowledge at {ack_quorum}")]
    BadQuorum {
        /// W.
        members: u32,
        /// A.
        ack_quorum: u32,
    },
    /// The log is closed, deleted, or another writer's.
    #[error("{0} is closed or has another writer")]
    LogFenced(LogId),
    /// Never created and never closed.
    #[error("{0} does not exist")]
    NoSuchLog(LogId),
    /// No such segment, or it was trimmed.
    #[error("{log} has no segment {index}")]
    NoSuchSegment {
        /// Which log.
        log: LogId,
        /// Which segment.
        index: u32,
    },
    /// A roll repeats with another length.
    #[error("segment {index} of {log} is sealed at length {sealed}, not {wanted}")]
    OtherLength {
        /// Which log.
        log: LogId,
        /// Which segment.
        index: u32,
        /// Its length.
        sealed: u64,
        /// The length in the command.
        wanted: u64,
    },
    /// Step 2 or 7 without the step before.
    #[error("{0} is not closed: close it before recovering its segments")]
    LogNotClosed(LogId),
    /// Step 7 without step 2.
    #[error("segment {index} of {log} is not recovering")]
    NotRecovering {
        /// Which log.
        log: LogId,
        /// Which segment.
        index: u32,
    },
    /// Another recoverer holds the segment.
    #[error("segment {index} of {log} is held by recovery {held}, not {wanted}")]
    OtherRecovery {
        /// Which log.
        log: LogId,
        /// Which segment.
        index: u32,
        /// r in the state.
        held: u64,
        /// r in the command.
        wanted: u64,
    },
    /// A log is deleted only once every segment is sealed.
    #[error("{0} is not sealed")]
    LogNotSealed(LogId),
}

impl Refusal {
    /// What the caller should do.
    pub fn code(&self) -> ErrorCode {
        use Refusal::*;
        match self {
            NoSuchFile(_) | NoSuchLog(_) | NoSuchSegment { .. } => ErrorCode::NotFound,
            FileExists(_) => ErrorCode::AlreadyExists,
            PutExpired(_)
            | ChunkNotUsable(..)
            | TooFewCopies { .. }
            | OtherLength { .. }
            | LogNotClosed(_)
            | NotRecovering { .. }
            | OtherRecovery { .. }
            | LogNotSealed(_) => ErrorCode::FailedPrecondition,
            // Placement changed between plan and command.
            BadQuorum { .. } => ErrorCode::Unavailable,
            NoSuchServer(_) => ErrorCode::InvalidArgument,
            LogFenced(_) => ErrorCode::Fenced,
        }
    }
}

impl From<Refusal> for RpcError {
    fn from(refusal: Refusal) -> RpcError {
        RpcError::new(refusal.code(), refusal.to_string())
    }
}
