//! Sorting one piece of a dead server's log into a recovery file.

use std::sync::atomic::Ordering;

use futures::StreamExt;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use uruk_base::commit_log::{LogError, LogId, Lsn, SealedLog};
use uruk_proto::tablet::{SortSegmentRequest, SortSegmentResponse};
use uruk_proto::{DecodeError, ErrorCode, RpcError};

use super::Server;
use super::record::{RawRecord, parse_frame};
use super::recovery_file;

impl Server {
    /// Reads the piece, sorts it, writes one file under a name that was never used before.
    pub async fn sort_segment(&self, request: SortSegmentRequest) -> Result<SortSegmentResponse, RpcError> {
        let _slot = self.sort_slots.acquire().await.expect("never closed");
        let started = self.env.clock.now();
        let log = sealed_log(&request)?;
        let records = self.read_piece(&log, Lsn(request.start_lsn)..Lsn(request.end_lsn)).await?;
        let read = self.env.clock.since(started);
        let count = records.len() as u64;
        let Some(file) = self.env.tasks.blocking(move || recovery_file::build(records)).await else {
            return Ok(SortSegmentResponse { path: String::new(), records: 0, bytes: 0 });
        };
        let bytes = file.len() as u64;
        let number = self.next_file.fetch_add(1, Ordering::Relaxed);
        let path = format!("recovery/{}/{number}", self.incarnation.server_id.0);
        let written = self.storage.recovery_objects.put(&Path::from(path.as_str()), file.into()).await;
        written.map_err(|error| RpcError::new(ErrorCode::Unavailable, format!("cannot write {path}: {error}")))?;
        let took = self.env.clock.since(started);
        tracing::info!(log = %log.id, segment = request.segment, records = count, bytes, ?read, ?took, "log piece is sorted");
        Ok(SortSegmentResponse { path, records: count, bytes })
    }

    async fn read_piece(&self, log: &SealedLog, piece: std::ops::Range<Lsn>) -> Result<Vec<RawRecord>, RpcError> {
        let mut frames = self.storage.logs.read(log, piece.clone());
        let (mut records, mut end) = (Vec::new(), piece.start);
        while let Some(frame) = frames.next().await {
            let frame = frame.map_err(from_log)?;
            end = frame.end;
            records.append(&mut parse_frame(frame.payload).map_err(|error| damaged(log.id, end, &error))?);
        }
        if end != piece.end {
            let message = format!("{} ends at {end}, {} was sealed", log.id, piece.end);
            return Err(RpcError::new(ErrorCode::Corrupt, message));
        }
        Ok(records)
    }
}

fn sealed_log(request: &SortSegmentRequest) -> Result<SealedLog, RpcError> {
    let (pairs, rest) = request.log_segments.as_chunks::<2>();
    let invalid = |why: &str| RpcError::new(ErrorCode::InvalidArgument, format!("bad piece of a log: {why}"));
    if !rest.is_empty() || pairs.iter().any(|[start, end]| start > end) {
        return Err(invalid("segments are no ranges"));
    }
    if !pairs.contains(&[request.start_lsn, request.end_lsn]) {
        return Err(invalid("it is not one of the log's segments"));
    }
    let segments: Vec<_> = pairs.iter().map(|[start, end]| Lsn(*start)..Lsn(*end)).collect();
    let end = segments.last().map_or(Lsn(0), |segment| segment.end);
    Ok(SealedLog { id: LogId(request.log_id), segments, end })
}

fn damaged(log: LogId, end: Lsn, error: &DecodeError) -> RpcError {
    RpcError::new(ErrorCode::Corrupt, format!("{log}: frame that ends at {end}: {error}"))
}

fn from_log(error: LogError) -> RpcError {
    let code = match &error {
        LogError::Unavailable(..) | LogError::Indeterminate(..) => ErrorCode::Unavailable,
        LogError::Corrupt { .. } => ErrorCode::Corrupt,
        LogError::Fenced(_) | LogError::Trimmed(..) => ErrorCode::FailedPrecondition,
    };
    RpcError::new(code, error.to_string())
}
