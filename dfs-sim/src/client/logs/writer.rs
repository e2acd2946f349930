//! The only writer of one log.
//!
//! A task owns the open segment; callers hand it frames through a queue that the window's permits
//! bound. Invariants:
//! 1. Positions are assigned in the order of `append` and never change: a frame that must be sent again
//!    in the next segment keeps its place in the log, since segments are continuous.
//! 2. Durable first, acknowledged last: `durable` moves only when the quorum of the open segment holds
//!    a prefix, and never after a roll or the end of the segment was requested.
//! 3. An error, once shown, is final: the writer does nothing any more.

mod replica;
mod roll;
mod task;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use uruk_base::commit_log::{LogError, LogId, LogWriter, Lsn, SealedLog};
use uruk_base::planted::{Planted, is_planted};
use uruk_proto::dfs::{LogInfo, SegmentInfo, segment_info};

use self::task::WriterTask;
use super::super::connection::Shared;
use super::seal;
use super::window::Patience;
use crate::format::{FRAME_PAYLOAD_BYTES_MAX, frame_bytes};

/// What the task is asked.
enum Command {
    Append(Pending),
    /// End without sealing; answered when nothing is sent or acknowledged any more.
    Stop(oneshot::Sender<()>),
}

/// A frame that is not durable yet.
struct Pending {
    start: u64,
    end: u64,
    payload: Bytes,
    /// Its place in the window of frames in flight.
    _permit: OwnedSemaphorePermit,
}

struct DfsLogWriter {
    shared: Arc<Shared>,
    id: LogId,
    commands: mpsc::UnboundedSender<Command>,
    permits: Arc<Semaphore>,
    /// Where the next frame starts. Held while a frame is queued, so that order is that of positions.
    next: Mutex<u64>,
    durable: watch::Receiver<Result<Lsn, LogError>>,
}

/// Starts the writer of a log that was just created.
pub(super) fn start(
    shared: Arc<Shared>,
    id: LogId,
    nonce: u64,
    log: &LogInfo,
) -> Result<impl LogWriter + 'static, LogError> {
    let Some(segment) = open_segment(log, None) else {
        // Closed: a retry of our own create that came after somebody's seal.
        let odd = || LogError::Indeterminate(id, format!("created without an open segment: {log:?}"));
        return Err(if log.closed { LogError::Fenced(id) } else { odd() });
    };
    let (commands, queue) = mpsc::unbounded_channel();
    let permits = Arc::new(Semaphore::new(shared.config.log_frames_in_flight));
    let (show, durable) = watch::channel(Ok(Lsn(segment.base)));
    let next = Mutex::new(segment.base);
    let task = WriterTask::new(shared.clone(), id, nonce, segment.clone(), queue, permits.clone(), show);
    shared.env.tasks.spawn("dfs-log-writer", task.run());
    Ok(DfsLogWriter { shared, id, commands, permits, next, durable })
}

/// The segment to write to, if the log is still open and the segment makes sense.
fn open_segment(log: &LogInfo, index: Option<u32>) -> Option<&SegmentInfo> {
    let segment = log.segments.last()?;
    let open = matches!(segment.state, Some(segment_info::State::Open(_)));
    let quorum_exists = (1..=segment.members.len()).contains(&(segment.ack_quorum as usize));
    let ended = log.closed && !is_planted(Planted::SegmentAfterClosing);
    (open && quorum_exists && !ended && index.is_none_or(|i| i == segment.index)).then_some(segment)
}

fn patience(shared: &Shared) -> Patience {
    Patience {
        slow: Duration::from_millis(shared.config.log_slow_replica_ms),
        stalled: Duration::from_millis(shared.config.log_stalled_replica_ms),
    }
}

impl DfsLogWriter {
    /// The error that ended the writer.
    fn error(&self) -> LogError {
        match &*self.durable.borrow() {
            Err(error) => error.clone(),
            Ok(_) => LogError::Indeterminate(self.id, "the writer has stopped".into()),
        }
    }
}

impl fmt::Debug for DfsLogWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DfsLogWriter").field("id", &self.id).field("durable", &*self.durable.borrow()).finish()
    }
}

#[async_trait]
impl LogWriter for DfsLogWriter {
    fn id(&self) -> LogId {
        self.id
    }

    async fn append(&self, payload: Bytes) -> Result<Lsn, LogError> {
        assert!(
            !payload.is_empty() && payload.len() <= FRAME_PAYLOAD_BYTES_MAX,
            "a record has 1 to {FRAME_PAYLOAD_BYTES_MAX} bytes, not {}",
            payload.len()
        );
        let Ok(permit) = self.permits.clone().acquire_owned().await else { return Err(self.error()) };
        let mut next = self.next.lock();
        let (start, end) = (*next, *next + frame_bytes(payload.len()));
        let pending = Pending { start, end, payload, _permit: permit };
        if self.commands.send(Command::Append(pending)).is_err() {
            return Err(self.error());
        }
        *next = end;
        Ok(Lsn(end))
    }

    async fn flush(&self) -> Result<Lsn, LogError> {
        let appended = Lsn(*self.next.lock());
        let mut durable = self.durable.clone();
        match durable.wait_for(|d| d.as_ref().map_or(true, |lsn| *lsn >= appended)).await {
            Ok(reached) => reached.clone(),
            Err(_) => Err(self.error()),
        }
    }

    fn durable(&self) -> watch::Receiver<Result<Lsn, LogError>> {
        self.durable.clone()
    }

    async fn close(&self) -> Result<SealedLog, LogError> {
        self.flush().await?;
        let (done, stopped) = oneshot::channel();
        if self.commands.send(Command::Stop(done)).is_ok() {
            // An error here means that the task has ended already.
            let _ = stopped.await;
        }
        seal::seal(&self.shared, self.id).await
    }
}
