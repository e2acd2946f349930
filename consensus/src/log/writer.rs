//! The one task that writes the log: operations in their order, one sync for all appends that wait.

use std::io;

use openraft::storage::IOFlushed;
use tokio::sync::{mpsc, oneshot};

use crate::log::format::EntriesBody;
use crate::log::segments::Segments;
use crate::types::{Entry, LogId, Types, Vote};

/// A frame is closed once it has this many bytes, so that one sync covers not much more.
const FRAME_BYTES: usize = 4 << 20;

/// A write to the log.
pub(super) enum Op {
    /// More entries; the callback hears when they are durable.
    Append(Vec<Entry>, IOFlushed<Types>),
    /// Void the entries at this index and behind it.
    Cut(u64, Done),
    /// Remember a vote.
    Vote(Vote, Done),
    /// Forget the entries up to this one; true: none remains.
    Purge(LogId, bool, Done),
    /// End the writer.
    Stop,
}

pub(super) type Done = oneshot::Sender<io::Result<()>>;

/// Ends the writer once nobody writes any more.
#[derive(Debug)]
pub(crate) struct Stop(pub(super) mpsc::Sender<Op>);

impl Stop {
    pub(crate) async fn stop(self) {
        // It fails when the writer has ended already.
        let _ = self.0.send(Op::Stop).await;
    }
}

/// Performs the operations until it is stopped. After the first error it performs none: the page
/// cache may show bytes that the disk never got, so nothing more may be acknowledged.
pub(super) async fn run(mut segments: Segments, mut ops: mpsc::Receiver<Op>) {
    let mut failed: Option<String> = None;
    let mut ahead = None;
    loop {
        let Some(op) = (match ahead.take() {
            Some(op) => Some(op),
            None => ops.recv().await,
        }) else {
            return;
        };
        let refused = failed.as_ref().map(|error| Err(io::Error::other(format!("the log failed before: {error}"))));
        let (result, acknowledge): (io::Result<()>, Acknowledge) = match op {
            Op::Stop => return,
            Op::Append(entries, callback) => {
                let (entries, callbacks) = gather(entries, callback, &mut ops, &mut ahead);
                (perform(refused, append(&mut segments, &entries)).await, Acknowledge::Flushed(callbacks))
            }
            Op::Cut(from, done) => (perform(refused, segments.cut(from)).await, Acknowledge::Done(done)),
            Op::Vote(vote, done) => (perform(refused, segments.save_vote(&vote)).await, Acknowledge::Done(done)),
            Op::Purge(upto, all, done) => (perform(refused, segments.purge(upto, all)).await, Acknowledge::Done(done)),
        };
        if let Err(error) = &result
            && failed.is_none()
        {
            tracing::error!(%error, "cannot write the raft log; this member stops");
            failed = Some(error.to_string());
        }
        acknowledge.send(result);
    }
}

async fn perform(refused: Option<io::Result<()>>, work: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    match refused {
        Some(refused) => refused,
        None => work.await,
    }
}

/// Who waits for an operation.
enum Acknowledge {
    Done(Done),
    Flushed(Vec<IOFlushed<Types>>),
}

impl Acknowledge {
    fn send(self, result: io::Result<()>) {
        match self {
            // Nobody waits any more when the engine has stopped.
            Acknowledge::Done(done) => drop(done.send(result)),
            Acknowledge::Flushed(callbacks) => {
                for callback in callbacks {
                    let result = match &result {
                        Ok(()) => Ok(()),
                        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
                    };
                    callback.io_completed(result);
                }
            }
        }
    }
}

/// Joins the appends that are waiting already, up to about one frame; another operation that was
/// met goes to `ahead`.
fn gather(
    mut entries: Vec<Entry>,
    callback: IOFlushed<Types>,
    ops: &mut mpsc::Receiver<Op>,
    ahead: &mut Option<Op>,
) -> (Vec<Entry>, Vec<IOFlushed<Types>>) {
    let size = |entries: &[Entry]| entries.iter().map(super::store::entry_bytes).sum::<usize>();
    let mut bytes = size(&entries);
    let mut callbacks = vec![callback];
    while bytes < FRAME_BYTES {
        match ops.try_recv() {
            Ok(Op::Append(more, callback)) => {
                bytes += size(&more);
                entries.extend(more);
                callbacks.push(callback);
            }
            Ok(other) => {
                *ahead = Some(other);
                break;
            }
            Err(_) => break,
        }
    }
    (entries, callbacks)
}

async fn append(segments: &mut Segments, entries: &[Entry]) -> io::Result<()> {
    let mut body = EntriesBody::new();
    for (at, entry) in entries.iter().enumerate() {
        body.push(entry);
        if body.len() >= FRAME_BYTES || at + 1 == entries.len() {
            let full = std::mem::replace(&mut body, EntriesBody::new());
            segments.append(full, entry.log_id.index).await?;
        }
    }
    Ok(())
}
