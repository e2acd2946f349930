//! Commit logs on the chunk store: replicated segments, one open at a time.
//!
//! | file | holds |
//! |---|---|
//! | [`window`] | what the writer knows of its open segment: acknowledged prefixes, slow replicas (pure) |
//! | `writer` | the writer: streams frames to all members, rolls to a new segment |
//! | [`seal`] | the eight steps that end a log; what to conclude from the members' answers (pure) |
//! | `reader` | streams records of sealed segments |

#[cfg(test)]
mod model;
mod reader;
pub mod seal;
pub mod window;
mod writer;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use uruk_base::commit_log::{CommitLogStore, LogError, LogId, LogRecord, LogWriter, Lsn, SealedLog};
use uruk_proto::ErrorCode;
use uruk_proto::dfs::{
    CreateLogRequest, DeleteLogRequest, GetLogRequest, LogInfo, SegmentInfo, TrimLogRequest, segment_info,
};

use super::connection::{DfsClient, Shared};
use super::error::CallError;

/// The commit logs of one chunk store. Clones share the connection.
#[derive(Clone)]
pub struct DfsCommitLogs {
    shared: Arc<Shared>,
}

impl DfsCommitLogs {
    pub(super) fn new(client: &DfsClient) -> DfsCommitLogs {
        DfsCommitLogs { shared: client.shared.clone() }
    }
}

impl fmt::Debug for DfsCommitLogs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DfsCommitLogs").field("controllers", &self.shared.config.controllers).finish()
    }
}

#[async_trait]
impl CommitLogStore for DfsCommitLogs {
    async fn create(&self, id: LogId) -> Result<Box<dyn LogWriter>, LogError> {
        // Tells this create's retries from another writer's.
        let writer = self.shared.env.random.u64() | 1;
        let request = CreateLogRequest { log_id: id.0, writer, durability: self.shared.config.durability.to_wire() };
        let created = self
            .shared
            .controllers
            .call("create log", |mut controller| async move { controller.create_log(request).await })
            .await;
        let log = match created {
            Ok(log) => log,
            // The log may exist, with this nonce that nobody else knows: it will never have a writer.
            Err(error) if error.uncertain && error.is_unavailable() => {
                return Err(LogError::Indeterminate(id, error.to_string()));
            }
            Err(error) => return Err(refused(id, error)),
        };
        Ok(Box::new(writer::start(self.shared.clone(), id, writer, &log)?))
    }

    async fn seal(&self, id: LogId) -> Result<SealedLog, LogError> {
        seal::seal(&self.shared, id).await
    }

    fn read(&self, log: &SealedLog, range: Range<Lsn>) -> BoxStream<'static, Result<LogRecord, LogError>> {
        reader::read(self.shared.clone(), log, range)
    }

    async fn trim(&self, id: LogId, upto: Lsn) -> Result<(), LogError> {
        let request = TrimLogRequest { log_id: id.0, upto: upto.0 };
        self.shared
            .controllers
            .call("trim log", |mut controller| async move { controller.trim_log(request).await })
            .await
            .map(drop)
            .map_err(|e| refused(id, e))
    }

    async fn delete(&self, id: LogId) -> Result<(), LogError> {
        let request = DeleteLogRequest { log_id: id.0 };
        self.shared
            .controllers
            .call("delete log", |mut controller| async move { controller.delete_log(request).await })
            .await
            .map(drop)
            .map_err(|e| refused(id, e))
    }
}

/// A controller call about a log failed: refused because of the log's state, or unavailable.
fn refused(id: LogId, error: CallError) -> LogError {
    match error.code() {
        ErrorCode::Fenced | ErrorCode::AlreadyExists => LogError::Fenced(id),
        ErrorCode::Corrupt => LogError::Corrupt { log: id, lsn: Lsn::default(), what: error.to_string() },
        ErrorCode::NotLeader
        | ErrorCode::StaleLocation
        | ErrorCode::Unavailable
        | ErrorCode::Overloaded
        | ErrorCode::Unknown
        | ErrorCode::DeadlineExceeded
        | ErrorCode::NotFound
        | ErrorCode::FailedPrecondition
        | ErrorCode::InvalidArgument
        | ErrorCode::Internal => LogError::Unavailable(id, error.to_string()),
    }
}

async fn get_log(shared: &Shared, id: LogId) -> Result<LogInfo, CallError> {
    let request = GetLogRequest { log_id: id.0 };
    let answer =
        shared.controllers.call("get log", |mut controller| async move { controller.get_log(request).await }).await?;
    Ok(answer)
}

/// The segment's sealed length; None while it is not sealed.
fn sealed_length(segment: &SegmentInfo) -> Option<u64> {
    match &segment.state {
        Some(segment_info::State::Sealed(sealed)) => Some(sealed.length),
        Some(segment_info::State::Open(_) | segment_info::State::Recovering(_)) | None => None,
    }
}

/// The log as its readers see it; None while a segment is not sealed or the log is not closed.
fn sealed_log(log: &LogInfo) -> Option<SealedLog> {
    if !log.closed {
        return None;
    }
    let mut end = log.trimmed_to;
    let mut segments = Vec::new();
    for segment in &log.segments {
        let length = sealed_length(segment)?;
        end = end.max(segment.base + length);
        if length > 0 {
            segments.push(Lsn(segment.base)..Lsn(segment.base + length));
        }
    }
    Some(SealedLog { id: LogId(log.log_id), segments, end: Lsn(end) })
}

#[cfg(test)]
mod tests {
    use uruk_proto::dfs::{SegmentOpen, SegmentSealed};

    use super::*;

    fn sealed(index: u32, base: u64, length: u64) -> SegmentInfo {
        let state = Some(segment_info::State::Sealed(SegmentSealed { length, crc: 0 }));
        SegmentInfo { index, base, state, ..SegmentInfo::default() }
    }

    fn log(closed: bool, segments: Vec<SegmentInfo>) -> LogInfo {
        LogInfo { log_id: 7, closed, trimmed_to: 10, segments, ..LogInfo::default() }
    }

    #[test]
    fn a_sealed_log_lists_its_non_empty_segments() {
        let log = log(true, vec![sealed(1, 10, 5), sealed(2, 15, 0), sealed(3, 15, 7)]);
        let sealed = sealed_log(&log).expect("all segments are sealed");
        assert_eq!(sealed.segments, [Lsn(10)..Lsn(15), Lsn(15)..Lsn(22)]);
        assert_eq!(sealed.end, Lsn(22));
        assert_eq!(sealed.bytes(), 12);
    }

    #[test]
    fn a_log_with_nothing_left_ends_where_it_was_trimmed() {
        let sealed = sealed_log(&log(true, Vec::new())).expect("nothing is open");
        assert_eq!((sealed.segments.len(), sealed.end), (0, Lsn(10)));
    }

    #[test]
    fn a_log_that_is_open_anywhere_is_not_sealed() {
        assert_eq!(sealed_log(&log(false, vec![sealed(1, 10, 5)])), None);
        let open = SegmentInfo { state: Some(segment_info::State::Open(SegmentOpen {})), ..SegmentInfo::default() };
        assert_eq!(sealed_log(&log(true, vec![sealed(1, 10, 5), open])), None);
    }
}
