//! The commit log task: group commit for all tablets of the server.
//!
//! Writers enqueue a [`Submission`] while they hold their tablet's gate, so the log's order of one
//! tablet's records is the order of their SeqNos. The task drains the queue into one frame (no
//! timer: what piles up while frames are in flight forms the next one), appends it, and once the log
//! says that it is durable, applies its records in order. A frame costs every replica a write, a sync and an answer,
//! however little it holds: small ones wait for those in flight, and become fewer.
//!
//! Invariants: (1) durable first: nothing is applied before the log has acknowledged its frame;
//! (2) visible second: a record is applied and published as a whole, in log order; (3) acknowledged
//! last: its caller hears of it only after it is published; (4) an error of the log ends the
//! incarnation, and what was not published by then is never acknowledged.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use uruk_base::Metrics;
use uruk_base::commit_log::{LogError, LogWriter, Lsn};
use uruk_base::metrics::Counter;
use uruk_base::planted::{Planted, is_planted};
use uruk_proto::RpcError;
use uruk_proto::mutation::Mutation;

use super::latch::Latched;
use super::record::{Record, start_frame};
use super::tablet::Tablet;

/// A record on its way through the log.
#[derive(Debug)]
pub struct Submission {
    /// Whose it is.
    pub tablet: Arc<Tablet>,
    /// What goes into the log.
    pub record: Record,
    /// The rows' mutations, unpacked, one list for each row of the record.
    pub mutations: Vec<Vec<Mutation>>,
    /// What its caller gets back once it is published; None for a piece that is not the last.
    pub end: Option<SubmissionEnd>,
}

/// What is given back when a record is published.
#[derive(Debug)]
pub struct SubmissionEnd {
    /// Held until it is published.
    pub latches: Option<Arc<Latched>>,
    /// Room in the queue.
    pub permit: QueuePermit,
    /// Told once it is published.
    pub done: oneshot::Sender<()>,
}

/// Room in the log's queue, given back when the record is applied (or dropped).
#[derive(Debug)]
pub struct QueuePermit {
    log: Arc<CommitLog>,
    bytes: usize,
}

impl Drop for QueuePermit {
    fn drop(&mut self) {
        self.log.queued_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Limits of the commit log task.
#[derive(Clone, Copy, Debug)]
pub struct CommitLogLimits {
    /// Bytes of writes that may wait.
    pub queue_bytes_max: usize,
    /// A frame takes further records while it is smaller.
    pub frame_bytes: usize,
    /// Frames in flight.
    pub frames_in_flight_max: usize,
    /// While so many are in flight, only a large frame follows them.
    pub small_frames_in_flight_max: usize,
    /// A frame is large from this many bytes on.
    pub large_frame_bytes: usize,
    /// Told to callers when the queue is full.
    pub retry_ms: u64,
}

/// The queue into the log, shared by all writers.
#[derive(Debug)]
pub struct CommitLog {
    limits: CommitLogLimits,
    queue: Mutex<Queue>,
    wake: Notify,
    queued_bytes: AtomicUsize,
    /// End of the last frame whose records are all applied.
    applied: AtomicU64,
    /// End of the last frame appended.
    appended: AtomicU64,
    frames: Counter,
    records: Counter,
    bytes: Counter,
    /// Writes that found the queue full.
    refused: Counter,
}

/// What waits for a frame.
#[derive(Debug, Default)]
struct Queue {
    submissions: VecDeque<Submission>,
    /// At most so many bytes of a frame.
    bytes: usize,
}

struct Frame {
    start: Lsn,
    end: Lsn,
    submissions: Vec<Submission>,
}

impl CommitLog {
    /// An empty queue.
    pub fn new(limits: CommitLogLimits, metrics: &Metrics) -> Arc<CommitLog> {
        let counter = |name: &str, help: &str| metrics.register(name, help, Counter::default());
        Arc::new(CommitLog {
            limits,
            queue: Mutex::default(),
            wake: Notify::new(),
            queued_bytes: AtomicUsize::new(0),
            applied: AtomicU64::new(0),
            appended: AtomicU64::new(0),
            frames: counter("uruk_tabletserver_log_frames", "Frames appended to the commit log."),
            records: counter("uruk_tabletserver_log_records", "Records appended to the commit log."),
            bytes: counter("uruk_tabletserver_log_bytes", "Bytes appended to the commit log."),
            refused: counter(
                "uruk_tabletserver_writes_refused_for_queue",
                "Writes refused because the log's queue was full.",
            ),
        })
    }

    /// Room for `bytes` in the queue; refused when it is full, without waiting.
    pub fn reserve(self: &Arc<Self>, bytes: usize) -> Result<QueuePermit, RpcError> {
        let before = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let permit = QueuePermit { log: self.clone(), bytes };
        if before > 0 && before + bytes > self.limits.queue_bytes_max {
            self.refused.inc();
            return Err(RpcError::overloaded("too many bytes of writes wait for the commit log", self.limits.retry_ms));
        }
        Ok(permit)
    }

    /// Enqueues a record. The caller holds the tablet's gate.
    pub fn push(&self, submission: Submission) {
        let mut queue = self.queue.lock();
        let before = queue.bytes;
        queue.bytes += submission.record.bytes_max();
        queue.submissions.push_back(submission);
        let becomes_large = before < self.limits.large_frame_bytes && queue.bytes >= self.limits.large_frame_bytes;
        if before == 0 || becomes_large {
            self.wake.notify_one();
        }
    }

    /// End of what is applied: records behind it are in memtables or files.
    pub fn applied(&self) -> Lsn {
        Lsn(self.applied.load(Ordering::Acquire))
    }

    /// End of what was handed to the log.
    pub fn appended(&self) -> Lsn {
        Lsn(self.appended.load(Ordering::Acquire))
    }

    /// Bytes of all frames so far.
    pub fn appended_bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Writes refused because the queue was full.
    pub fn refused(&self) -> u64 {
        self.refused.get()
    }

    /// Runs until the log fails. `after_apply` is called with the bytes of mutations just applied.
    pub async fn run(&self, writer: &dyn LogWriter, after_apply: impl Fn(u64)) -> LogError {
        let mut durable = writer.durable();
        let mut in_flight: VecDeque<Frame> = VecDeque::new();
        let mut log_end = Lsn::default();
        loop {
            let durable_upto = match durable.borrow_and_update().clone() {
                Ok(upto) => upto,
                Err(error) => return error,
            };
            // 1. Durable first: only frames that the log has acknowledged go on.
            while in_flight.front().is_some_and(|frame| frame.end <= durable_upto) {
                let frame = in_flight.pop_front().expect("just looked at");
                let end = frame.end;
                after_apply(apply(frame));
                self.applied.store(end.0, Ordering::Release);
            }
            let has_room = in_flight.len() < self.limits.frames_in_flight_max;
            if has_room && let Some((payload, submissions)) = self.drain(in_flight.len()) {
                self.frames.inc();
                self.bytes.inc_by(payload.len() as u64);
                match writer.append(payload.freeze()).await {
                    Ok(end) => {
                        let mut frame = Frame { start: log_end, end, submissions };
                        if is_planted(Planted::VisibleBeforeDurable) {
                            make_visible(&mut frame);
                        }
                        in_flight.push_back(frame);
                        log_end = end;
                        self.appended.store(end.0, Ordering::Release);
                    }
                    Err(error) => return error,
                }
                continue;
            }
            tokio::select! {
                biased;
                changed = durable.changed() => if changed.is_err() {
                    return LogError::Indeterminate(writer.id(), "the log writer is gone".into());
                },
                () = self.wake.notified(), if has_room => {}
            }
        }
    }

    /// What waits, packed into one frame; None when that is nothing, or too little to follow those in flight.
    fn drain(&self, in_flight: usize) -> Option<(BytesMut, Vec<Submission>)> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        {
            let mut queue = self.queue.lock();
            if in_flight >= self.limits.small_frames_in_flight_max && queue.bytes < self.limits.large_frame_bytes {
                return None;
            }
            while bytes < self.limits.frame_bytes
                && let Some(submission) = queue.submissions.pop_front()
            {
                bytes += submission.record.bytes_max();
                taken.push(submission);
            }
            queue.bytes -= bytes;
            if !queue.submissions.is_empty() {
                self.wake.notify_one();
            }
        }
        if taken.is_empty() {
            return None;
        }
        let mut frame = BytesMut::with_capacity(bytes + 1);
        start_frame(&mut frame);
        for submission in &taken {
            submission.record.put(&mut frame);
        }
        self.records.inc_by(taken.len() as u64);
        Some((frame, taken))
    }

    /// Drops what waits, at the end of the incarnation: its callers hear that the outcome is unknown.
    pub fn abandon(&self) {
        *self.queue.lock() = Queue::default();
    }
}

/// The planted bug: readers see what may still be lost. Applying it again adds nothing.
fn make_visible(frame: &mut Frame) {
    for submission in frame.submissions.iter_mut().filter(|submission| submission.end.is_some()) {
        submission.tablet.apply(&submission.record, std::mem::take(&mut submission.mutations), frame.start);
    }
}

fn apply(frame: Frame) -> u64 {
    let mut bytes = 0;
    for submission in frame.submissions {
        let Submission { tablet, record, mutations, end } = submission;
        let Some(SubmissionEnd { latches, permit, done }) = end else {
            tablet.note_piece(frame.start);
            continue;
        };
        bytes += permit.bytes as u64;
        // 2. Visible second.
        tablet.apply(&record, mutations, frame.start);
        drop(latches);
        drop(permit);
        // 3. Acknowledged last. A caller that went away needs no answer.
        let _ = done.send(());
    }
    bytes
}
