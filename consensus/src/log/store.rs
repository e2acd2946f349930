//! The log as the engine sees it: reads from memory, writes through the writer.
//!
//! Invariants:
//! 1. Entries in memory are consecutive, and begin right behind the purged ones.
//! 2. Memory and writer get the changes in the same order: only the engine's main task makes them.
//! 3. The vote in memory is one that is durable.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;

use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend, RaftLogReader};
use parking_lot::RwLock;
use tokio::sync::{Notify, mpsc, oneshot};
use uruk_base::Env;

use crate::config::Config;
use crate::error::StartError;
use crate::log::Segments;
use crate::log::format::ENTRY_OVERHEAD_BYTES;
use crate::log::writer::{self, Done, Op, Stop};
use crate::types::{Entry, LogId, Types, Vote};

/// So many writes wait for the writer, then the engine waits.
const OPS_WAITING_MAX: usize = 1024;
/// One read for a follower returns about this many bytes at most, and at least one entry.
const READ_BYTES_MAX: usize = 4 << 20;

/// Handle on the log. Clones mean the same log.
#[derive(Clone, Debug)]
pub(crate) struct LogStore {
    memory: Arc<RwLock<Memory>>,
    ops: mpsc::Sender<Op>,
    growth: Arc<Growth>,
}

#[derive(Debug, Default)]
struct Memory {
    purged: Option<LogId>,
    vote: Option<Vote>,
    entries: VecDeque<Entry>,
    /// Bytes appended since `growth` was last told.
    grown_bytes: usize,
}

/// Tells when the log has grown so much that a snapshot should be taken.
#[derive(Debug)]
struct Growth {
    bytes_max: usize,
    exceeded: Notify,
}

impl LogStore {
    /// Opens the log in `folder` and starts its writer.
    pub(crate) async fn open(env: &Env, config: &Config, folder: &Path) -> Result<(LogStore, Stop), StartError> {
        let Config { group, node, segment_bytes_max, .. } = config;
        let (segments, entries) = Segments::open(env.disk.clone(), folder, group, *node, *segment_bytes_max).await?;
        let memory = Memory {
            purged: segments.state().purged(),
            vote: segments.state().vote(),
            grown_bytes: entries.iter().map(entry_bytes).sum(),
            entries,
        };
        let (ops, receiver) = mpsc::channel(OPS_WAITING_MAX);
        env.tasks.spawn_to_end("raft log writer", writer::run(segments, receiver));
        let growth = Arc::new(Growth { bytes_max: config.log_bytes_max, exceeded: Notify::new() });
        let stop = Stop(ops.clone());
        Ok((LogStore { memory: Arc::new(RwLock::new(memory)), ops, growth }, stop))
    }

    /// The last entry that was purged.
    pub(crate) fn purged(&self) -> Option<LogId> {
        self.memory.read().purged
    }

    /// The last entry, purged or not.
    pub(crate) fn last(&self) -> Option<LogId> {
        let memory = self.memory.read();
        memory.entries.back().map(|entry| entry.log_id).or(memory.purged)
    }

    /// Completes when the log has grown by `log_bytes_max` since it last completed.
    pub(crate) async fn grown(&self) {
        self.growth.exceeded.notified().await;
    }

    async fn perform(&self, op: impl FnOnce(Done) -> Op) -> io::Result<()> {
        let (done, result) = oneshot::channel();
        self.ops.send(op(done)).await.map_err(|_| stopped())?;
        result.await.map_err(|_| stopped())?
    }

    fn copy(&self, from: u64, to: u64, bytes_max: usize) -> Vec<Entry> {
        let memory = self.memory.read();
        let Some(first) = memory.entries.front().map(|entry| entry.log_id.index) else { return Vec::new() };
        let mut bytes = 0;
        let skip = usize::try_from(from.saturating_sub(first)).unwrap_or(usize::MAX);
        let wanted = memory.entries.iter().skip(skip).take_while(|entry| entry.log_id.index < to);
        wanted
            .take_while(|entry| {
                let within = bytes == 0 || bytes + entry_bytes(entry) <= bytes_max;
                bytes += entry_bytes(entry);
                within
            })
            .cloned()
            .collect()
    }
}

/// Bytes that an entry takes, about.
pub(super) fn entry_bytes(entry: &Entry) -> usize {
    let payload = match &entry.payload {
        EntryPayload::Blank => 0,
        EntryPayload::Normal(command) => command.0.len(),
        EntryPayload::Membership(_) => 64,
    };
    ENTRY_OVERHEAD_BYTES + payload
}

fn stopped() -> io::Error {
    io::Error::other("the log writer has stopped")
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(last) => last + 1,
            Bound::Excluded(to) => *to,
            Bound::Unbounded => u64::MAX,
        };
        Ok(self.copy(from, to, usize::MAX))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        Ok(self.copy(start, end, READ_BYTES_MAX))
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.memory.read().vote)
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        Ok(LogState { last_purged_log_id: self.purged(), last_log_id: self.last() })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.perform(|done| Op::Vote(*vote, done)).await?;
        self.memory.write().vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        self.memory.write().append(&entries, &self.growth);
        self.ops.send(Op::Append(entries, callback)).await.map_err(|_| stopped())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let from = last.map_or(0, |last| last.index + 1);
        self.memory.write().cut(from);
        self.perform(|done| Op::Cut(from, done)).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let none_left = self.memory.write().purge(upto);
        self.perform(|done| Op::Purge(upto, none_left, done)).await
    }
}

impl Memory {
    fn append(&mut self, entries: &[Entry], growth: &Growth) {
        for entry in entries {
            let last = self.entries.back().map(|entry| entry.log_id).or(self.purged);
            assert_eq!(entry.log_id.index, last.map_or(0, |last| last.index + 1), "the log has no holes");
            self.grown_bytes += entry_bytes(entry);
            self.entries.push_back(entry.clone());
        }
        if self.grown_bytes > growth.bytes_max {
            self.grown_bytes = 0;
            growth.exceeded.notify_one();
        }
    }

    fn cut(&mut self, from: u64) {
        while self.entries.back().is_some_and(|entry| entry.log_id.index >= from) {
            self.entries.pop_back();
        }
    }

    /// Whether no entry is left.
    fn purge(&mut self, upto: LogId) -> bool {
        while self.entries.front().is_some_and(|entry| entry.log_id.index <= upto.index) {
            self.entries.pop_front();
        }
        self.purged = self.purged.max(Some(upto));
        self.entries.is_empty()
    }
}
