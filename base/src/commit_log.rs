//! Commit logs: the interface that `dfs-sim` and object stores implement.
//!
//! | rule | what it promises |
//! |---|---|
//! | S1 | one [`LogId`] has one writer for life: a second `create` fails, and `create` after `seal` fails |
//! | S2 | `flush = Ok(l)` means that every later `seal` ends at or after `l` |
//! | S3 | once `seal` has returned, no `flush` returns `Ok` beyond its end |
//! | S4 | `seal` is idempotent and safe to run concurrently: every caller gets the same end |
//! | S5 | unacknowledged records may survive a seal, in order and without gaps |
//! | S6 | unavailable and no-space are retried inside the writer, with identical bytes at the same place; any error that comes out poisons the writer and ends the incarnation |
//! | S7 | the fence outlives the data: `trim` never removes it |

use std::fmt;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Names one commit log, for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct LogId(pub u64);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "log-{}", self.0)
    }
}

/// Log sequence number: a byte position in a log, counted from its creation. A record's own number
/// is the position just *after* it, so "durable up to l" covers the record at l.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One record as it was appended. `end` is its number; it starts at its predecessor's end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogRecord {
    /// The record's number: the position just after it.
    pub end: Lsn,
    /// The bytes given to `append`.
    pub payload: Bytes,
}

/// A log that will never grow again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SealedLog {
    /// Which log.
    pub id: LogId,
    /// What can be read: from the trim point to the end, as consecutive pieces that can be read
    /// independently (segments; records never straddle two of them). Empty for an empty log.
    pub segments: Vec<Range<Lsn>>,
    /// The end of the log.
    pub end: Lsn,
}

impl SealedLog {
    /// Bytes that can be read.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.end.0 - s.start.0).sum()
    }
}

/// Why a log operation failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LogError {
    /// Somebody sealed the log (or it exists already, for `create`): this writer's incarnation is over.
    #[error("{0} is fenced: it was sealed, or has another writer")]
    Fenced(LogId),
    /// The outcome is not known; the incarnation must end, and a seal will tell.
    #[error("{0}: outcome unknown: {1}")]
    Indeterminate(LogId, String),
    /// Durable bytes are damaged on every replica that answered.
    #[error("{log} is corrupt at {lsn}: {what}")]
    Corrupt {
        /// Which log.
        log: LogId,
        /// Where the damage starts.
        lsn: Lsn,
        /// What was found, with file and offset where known.
        what: String,
    },
    /// The records were trimmed before.
    #[error("{0} is trimmed up to {1}")]
    Trimmed(LogId, Lsn),
    /// Not enough storage answers now; nothing was decided. Only `seal`, `read` and `trim` return it.
    #[error("{0} is unavailable: {1}")]
    Unavailable(LogId, String),
}

/// A place for commit logs.
#[async_trait]
pub trait CommitLogStore: Send + Sync + fmt::Debug {
    /// Creates the log and returns its only writer. [`LogError::Fenced`] when it exists or was sealed.
    async fn create(&self, id: LogId) -> Result<Box<dyn LogWriter>, LogError>;

    /// Fences the log, so that nothing more is ever acknowledged in it, and tells its end.
    ///
    /// Also fences a log that was never created. Waits while too few replicas answer, for at most
    /// the store's own deadline, then [`LogError::Unavailable`]; it may be called again.
    async fn seal(&self, id: LogId) -> Result<SealedLog, LogError>;

    /// The records in `range`, in order, without gaps. `range` starts at a segment's start or at a
    /// record's end, and may end at any record's end.
    fn read(&self, log: &SealedLog, range: Range<Lsn>) -> BoxStream<'static, Result<LogRecord, LogError>>;

    /// Lets go of every record that ends at or before `upto`, in whole segments.
    async fn trim(&self, id: LogId, upto: Lsn) -> Result<(), LogError>;

    /// Forgets a sealed log's data altogether; its fence stays. Idempotent.
    async fn delete(&self, id: LogId) -> Result<(), LogError>;
}

/// The only writer of one log.
///
/// `append` calls are made one at a time by one task; other tasks may wait on `durable`.
#[async_trait]
pub trait LogWriter: Send + Sync + fmt::Debug {
    /// Which log.
    fn id(&self) -> LogId;

    /// Hands one record (1 byte to 64 MiB) to the log and returns its number, without waiting for
    /// durability. Waits only while the window of frames in flight is full.
    async fn append(&self, payload: Bytes) -> Result<Lsn, LogError>;

    /// Waits until all that was appended before the call is durable; returns how far that is.
    async fn flush(&self) -> Result<Lsn, LogError>;

    /// Everything up to this number is durable; the error is final (S6).
    fn durable(&self) -> watch::Receiver<Result<Lsn, LogError>>;

    /// Flushes, then seals.
    async fn close(&self) -> Result<SealedLog, LogError>;
}
