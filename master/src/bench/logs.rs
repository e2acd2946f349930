//! Commit logs without records, for the synthetic servers.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use uruk_base::commit_log::{CommitLogStore, LogError, LogId, LogRecord, LogWriter, Lsn, SealedLog};

/// Seals at once: one piece, in which a sorter finds nothing.
#[derive(Debug, Default)]
pub struct EmptyLogs {
    /// While set, sealing fails and is tried again.
    pub is_held: AtomicBool,
}

#[async_trait]
impl CommitLogStore for EmptyLogs {
    async fn create(&self, id: LogId) -> Result<Box<dyn LogWriter>, LogError> {
        Err(LogError::Fenced(id))
    }

    async fn seal(&self, id: LogId) -> Result<SealedLog, LogError> {
        if self.is_held.load(Ordering::Relaxed) {
            return Err(LogError::Unavailable(id, "the bench holds it up".to_owned()));
        }
        Ok(SealedLog { id, segments: vec![Lsn(0)..Lsn(100)], end: Lsn(100) })
    }

    fn read(&self, _: &SealedLog, _: Range<Lsn>) -> BoxStream<'static, Result<LogRecord, LogError>> {
        futures::stream::empty().boxed()
    }

    async fn trim(&self, _: LogId, _: Lsn) -> Result<(), LogError> {
        Ok(())
    }

    async fn delete(&self, _: LogId) -> Result<(), LogError> {
        Ok(())
    }
}
