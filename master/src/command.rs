//! What the master group replicates: one variant is one decision.
//!
//! Encoded with postcard into the Raft log: add variants at the end, never reorder. Every check that
//! matters happens when a command is applied; what is checked before proposing it is only advice.
//! Times are wall-clock microseconds of the leader that proposed, for display alone.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uruk_proto::schema::{Family, LocalityGroup, TableSchema};
use uruk_proto::{Epoch, ErrorCode, RpcError, SeqNo, ServerId, TableId, TabletId};

use crate::state::meta::MetaTabletId;
use crate::state::procedures::ProcedureId;
use crate::state::row::{FileRef, MetaRow};

/// A tablet under one assignment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct TabletKey {
    pub tablet: TabletId,
    pub epoch: Epoch,
}

/// What a launch tells about itself when it registers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Registration {
    /// Random number of the launch: bound to one [`ServerId`], for ever.
    pub nonce: u64,
    pub address: String,
    pub zone: String,
    pub version: String,
    pub pid: u32,
    /// The watching parent's pid; 0 without one.
    pub parent_pid: u32,
}

/// One tablet to one server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Assignment {
    /// The tablet and the epoch that its row has *before* the assignment.
    pub key: TabletKey,
    pub server: ServerId,
}

/// Files out, files in: a flush or a compaction.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CommitFiles {
    pub server: ServerId,
    pub key: TabletKey,
    pub schema_version: u64,
    /// Within a server, larger for every new command and the same for its retries.
    pub number: u64,
    /// Everything up to it is in files; zero for a compaction.
    pub flushed_seq: SeqNo,
    /// None: as before.
    pub memory_file: Option<Arc<str>>,
    pub remove: Vec<Arc<str>>,
    /// By locality group.
    pub add: Vec<(u32, Vec<FileRef>)>,
    /// Logs whose replayed edits are all flushed.
    pub logs_done: Vec<ServerId>,
}

/// How one file reference of a tablet is shared out between its halves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileShare {
    pub path: Arc<str>,
    /// Where the reference begins.
    pub low: Bytes,
    /// Nothing on one side: that half does not name it.
    pub left_bytes: u64,
    pub left_cells: u64,
    pub right_bytes: u64,
    pub right_cells: u64,
}

/// A frozen, flushed tablet becomes two.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TabletSplit {
    pub server: ServerId,
    pub key: TabletKey,
    pub procedure: ProcedureId,
    /// First row of the right half.
    pub at: Bytes,
    /// One for each reference of the row.
    pub files: Vec<FileShare>,
    /// The row's.
    pub flushed_seq: SeqNo,
    pub micros: i64,
}

/// Two frozen, flushed neighbours become one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TabletsMerged {
    pub server: ServerId,
    pub left: TabletKey,
    pub right: TabletKey,
    pub procedure: ProcedureId,
    /// The rows'.
    pub left_flushed_seq: SeqNo,
    pub right_flushed_seq: SeqNo,
    /// What both remember; None: nothing.
    pub memory_file: Option<Arc<str>>,
    pub micros: i64,
}

/// A change of one family.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FamilyChange {
    /// Its id is issued anew.
    Create(Family),
    /// The one of this name gets the rule and the group.
    Update(Family),
    /// The one of this name goes, and its data with it.
    Drop(String),
}

/// A change of the master's state.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Command {
    /// Binds a launch's nonce to a new server id.
    Register { registration: Registration, micros: i64 },
    /// The watching parent saw its child end.
    ReportDeath { nonce: u64, how: String, micros: i64 },
    /// The lease has lapsed.
    DeclareDead { server: ServerId, how: String, last_heard_micros: Option<i64>, micros: i64 },
    /// The dead server's log will never grow again; these are its pieces.
    RecordSeal { server: ServerId, segments: Vec<Range<u64>>, end: u64, micros: i64 },
    /// One piece of a sealed log lies sorted in a file. An empty path: it held no records.
    RecordSort { log: ServerId, segment: u32, sorter: ServerId, path: Arc<str>, records: u64, bytes: u64, micros: i64 },
    /// No row needs the log any more, and its data is deleted.
    FinishRecovery { server: ServerId, micros: i64 },
    /// OPENING(server, epoch + 1), and the server's log is needed from now on.
    Assign { assignments: Vec<Assignment>, micros: i64 },
    /// The tablets are loaded.
    Opened { server: ServerId, tablets: Vec<TabletKey>, micros: i64 },
    /// The tablet could not be loaded.
    Fail { server: ServerId, key: TabletKey, reason: String, lost_recovery_files: Vec<Arc<str>>, micros: i64 },
    /// A flush or a compaction.
    CommitFiles(Box<CommitFiles>),
    /// The owners are to give these up, flushed.
    Close { tablets: Vec<TabletKey> },
    /// The owner has given the tablet up.
    Release { server: ServerId, key: TabletKey },
    /// A new table; ids in the schema are ignored. `request` is the caller's random number.
    CreateTable { request: u64, schema: TableSchema, splits: Vec<Bytes>, micros: i64 },
    /// The table goes, with all of its data.
    DeleteTable { request: u64, name: String },
    /// The meta tablet is cut in two when it has more rows than this.
    SplitMeta { meta: MetaTabletId, rows_max: usize },
    /// These entries of the deletion queue are gone from storage.
    ForgetFiles { entries: Vec<u64> },
    /// The tablet is to become two; without `at` its server chooses where.
    StartSplit { tablet: TabletKey, at: Option<Bytes>, by_load: bool, reason: String, request: u64, micros: i64 },
    /// It has.
    TabletSplit(Box<TabletSplit>),
    /// The tablet and the one that follows it are to become one.
    StartMerge { left: TabletKey, right: TabletKey, reason: String, request: u64, micros: i64 },
    /// They have.
    TabletsMerged(Box<TabletsMerged>),
    /// The tablet is to go to another server.
    StartMove { tablet: TabletKey, target: ServerId, reason: String, request: u64, micros: i64 },
    /// The server will not do it.
    DeclineProcedure { server: ServerId, procedure: ProcedureId, reason: String, micros: i64 },
    /// The leader gives it up.
    EndProcedure { procedure: ProcedureId, reason: String, micros: i64 },
    /// The server is to be left by its tablets, or not any more.
    SetDraining { server: ServerId, draining: bool },
    /// Families and groups change.
    StartAlter { request: u64, name: String, changes: Vec<FamilyChange>, groups: Vec<LocalityGroup> },
    /// All that the server has of the table goes by this version of the schema.
    ConfirmSchema { server: ServerId, table: TableId, version: u64 },
    /// What a server commands, with the number of the last report that it gave before: files that the command
    /// un-names are missing from that report and older ones though the server may read them.
    Told { server: ServerId, report_number: u64, command: Box<Command> },
}

/// What the proposer of a command learns.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Registered(ServerId),
    /// Those that took effect.
    Assigned(Vec<TabletKey>),
    /// Those that the server owns.
    Owned(Vec<TabletKey>),
    Row(Box<MetaRow>),
    Table(TableId),
    Refused(Refusal),
    /// Both halves.
    Split(Box<[MetaRow; 2]>),
    Procedure(ProcedureId),
    /// The version that this alteration made.
    Altered(TableId, u64),
}

/// Why a command changed nothing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Refusal {
    pub reason: Reason,
    pub message: String,
}

/// What the caller should make of a refusal.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Reason {
    /// The command is wrong in itself.
    InvalidArgument,
    NotFound,
    AlreadyExists,
    /// Not in this state.
    FailedPrecondition,
    /// The tablet is not the caller's, or not under this epoch: drop it.
    StaleOwner,
    /// The caller's incarnation is dead: end.
    Fenced,
}

impl Refusal {
    pub fn new(reason: Reason, message: impl Into<String>) -> Refusal {
        Refusal { reason, message: message.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<RpcError> for Refusal {
    fn from(error: RpcError) -> Refusal {
        Refusal::new(Reason::InvalidArgument, error.message)
    }
}

impl From<Refusal> for RpcError {
    fn from(refusal: Refusal) -> RpcError {
        let code = match refusal.reason {
            Reason::InvalidArgument => ErrorCode::InvalidArgument,
            Reason::NotFound => ErrorCode::NotFound,
            Reason::AlreadyExists => ErrorCode::AlreadyExists,
            // Not StaleLocation, which tells clients to try again: a retry does not help an old owner.
            Reason::FailedPrecondition | Reason::StaleOwner => ErrorCode::FailedPrecondition,
            Reason::Fenced => ErrorCode::Fenced,
        };
        RpcError::new(code, refusal.message)
    }
}
