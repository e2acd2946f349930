//! A `CommitLogStore` in memory, with switches for its faults.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use tokio::sync::watch;
use uruk_base::commit_log::{CommitLogStore, LogError, LogId, LogRecord, LogWriter, Lsn, SealedLog};

#[derive(Debug)]
struct LogState {
    records: Vec<LogRecord>,
    end: Lsn,
    durable: watch::Sender<Result<Lsn, LogError>>,
    sealed: Option<Lsn>,
    is_held: bool,
    trimmed: Lsn,
}

impl LogState {
    fn tell(&self, durable: Result<Lsn, LogError>) {
        // What it was told before is of no interest.
        let _before = self.durable.send_replace(durable);
    }

    fn new() -> LogState {
        LogState {
            records: Vec::new(),
            end: Lsn(0),
            durable: watch::Sender::new(Ok(Lsn(0))),
            sealed: None,
            is_held: false,
            trimmed: Lsn(0),
        }
    }
}

/// All logs.
#[derive(Clone, Debug)]
pub struct MemoryLogs {
    logs: Arc<Mutex<BTreeMap<LogId, LogState>>>,
    segment_bytes: u64,
}

impl MemoryLogs {
    pub fn new(segment_bytes: u64) -> MemoryLogs {
        MemoryLogs { logs: Arc::default(), segment_bytes }
    }

    fn with<T>(&self, id: LogId, f: impl FnOnce(&mut LogState) -> T) -> T {
        f(self.logs.lock().entry(id).or_insert_with(LogState::new))
    }

    /// From now on appended frames are kept, but not acknowledged.
    pub fn hold(&self, id: LogId) {
        self.with(id, |log| log.is_held = true);
    }

    /// Acknowledges all that was held.
    pub fn release(&self, id: LogId) {
        self.with(id, |log| {
            log.is_held = false;
            log.tell(Ok(log.end));
        });
    }

    /// Acknowledges the first `frames` frames, and still holds the rest.
    pub fn release_upto(&self, id: LogId, frames: usize) {
        self.with(id, |log| log.tell(Ok(log.records[frames - 1].end)));
    }

    /// Poisons the writer: nobody knows what became of what it held.
    pub fn break_with(&self, id: LogId, error: LogError) {
        self.with(id, |log| log.tell(Err(error)));
    }

    /// Frames appended so far.
    pub fn frames(&self, id: LogId) -> usize {
        self.with(id, |log| log.records.len())
    }

    pub fn trimmed(&self, id: LogId) -> Lsn {
        self.with(id, |log| log.trimmed)
    }

    pub fn end(&self, id: LogId) -> Lsn {
        self.with(id, |log| log.end)
    }

    /// Overwrites a frame's bytes with garbage.
    pub fn corrupt_frame(&self, id: LogId, at: usize) {
        self.with(id, |log| log.records[at].payload = Bytes::from_static(b"\xffgarbage"));
    }

    /// Forgets all frames from `keep` on, as a crash may do with those that were not acknowledged.
    pub fn truncate(&self, id: LogId, keep: usize) {
        self.with(id, |log| {
            log.records.truncate(keep);
            log.end = log.records.last().map_or(Lsn(0), |record| record.end);
        });
    }

    /// Forgets a frame altogether, as no store may.
    pub fn lose_frame(&self, id: LogId, at: usize) {
        self.with(id, |log| drop(log.records.remove(at)));
    }
}

#[async_trait]
impl CommitLogStore for MemoryLogs {
    async fn create(&self, id: LogId) -> Result<Box<dyn LogWriter>, LogError> {
        let mut logs = self.logs.lock();
        if logs.contains_key(&id) {
            return Err(LogError::Fenced(id));
        }
        logs.insert(id, LogState::new());
        Ok(Box::new(Writer { store: self.clone(), id }))
    }

    async fn seal(&self, id: LogId) -> Result<SealedLog, LogError> {
        let segment_bytes = self.segment_bytes;
        Ok(self.with(id, |log| {
            let end = *log.sealed.get_or_insert(log.end);
            log.tell(Err(LogError::Fenced(id)));
            let mut segments = Vec::new();
            let mut start = log.trimmed;
            for record in log.records.iter().filter(|record| record.end > log.trimmed) {
                if record.end.0 - start.0 >= segment_bytes || record.end == end {
                    segments.push(start..record.end);
                    start = record.end;
                }
            }
            SealedLog { id, segments, end }
        }))
    }

    fn read(&self, log: &SealedLog, range: Range<Lsn>) -> BoxStream<'static, Result<LogRecord, LogError>> {
        let records: Vec<_> = self.with(log.id, |log| {
            log.records.iter().filter(|r| r.end > range.start && r.end <= range.end).cloned().map(Ok).collect()
        });
        futures::stream::iter(records).boxed()
    }

    async fn trim(&self, id: LogId, upto: Lsn) -> Result<(), LogError> {
        self.with(id, |log| log.trimmed = log.trimmed.max(upto));
        Ok(())
    }

    async fn delete(&self, id: LogId) -> Result<(), LogError> {
        self.with(id, |log| log.records.clear());
        Ok(())
    }
}

#[derive(Debug)]
struct Writer {
    store: MemoryLogs,
    id: LogId,
}

#[async_trait]
impl LogWriter for Writer {
    fn id(&self) -> LogId {
        self.id
    }

    async fn append(&self, payload: Bytes) -> Result<Lsn, LogError> {
        let id = self.id;
        self.store.with(id, |log| {
            if log.sealed.is_some() {
                return Err(LogError::Fenced(id));
            }
            log.end = Lsn(log.end.0 + payload.len() as u64);
            log.records.push(LogRecord { end: log.end, payload });
            if !log.is_held {
                log.tell(Ok(log.end));
            }
            Ok(log.end)
        })
    }

    async fn flush(&self) -> Result<Lsn, LogError> {
        let mut durable = self.durable();
        let end = self.store.end(self.id);
        let reached = durable.wait_for(|upto| upto.as_ref().map_or(true, |upto| *upto >= end)).await;
        reached.expect("the sender lives as long as the store").clone()
    }

    fn durable(&self) -> watch::Receiver<Result<Lsn, LogError>> {
        self.store.with(self.id, |log| log.durable.subscribe())
    }

    async fn close(&self) -> Result<SealedLog, LogError> {
        self.flush().await?;
        self.store.seal(self.id).await
    }
}
