//! The server's budgets: bytes of memtables, bytes of remembered calls, and bytes of the own log that are not
//! flushed.
//!
//! Over the soft limit the flusher is woken; at the hard one writes are refused, with a delay for
//! their retry. Nothing ever waits here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use uruk_base::Metrics;
use uruk_base::commit_log::Lsn;
use uruk_base::metrics::Counter;
use uruk_proto::RpcError;

use super::commit_log::CommitLog;
use super::config::TabletServerConfig;

/// The budgets of a server.
#[derive(Debug)]
pub struct Budget {
    memtable_soft: u64,
    memtable_hard: u64,
    remembered_max: u64,
    log_max: u64,
    retry_ms: u64,
    log: Arc<CommitLog>,
    /// Measured now and then, and counted up in between.
    memtable: AtomicU64,
    /// The most that was ever measured: in between it may be counted too high.
    memtable_peak: AtomicU64,
    /// Writes that were refused.
    refused_for_memtables: Counter,
    refused_for_log: Counter,
    refused_for_calls: Counter,
    /// The same of calls and their results.
    remembered: AtomicU64,
    /// The own log is not needed before this position.
    trim_point: AtomicU64,
    /// Wakes the flusher.
    pub wake_flusher: Notify,
}

impl Budget {
    /// Nothing is used.
    pub fn new(config: &TabletServerConfig, log: Arc<CommitLog>, metrics: &Metrics) -> Budget {
        let counter = |name: &str, help: &str| metrics.register(name, help, Counter::default());
        Budget {
            memtable_peak: AtomicU64::new(0),
            refused_for_memtables: counter(
                "uruk_tabletserver_writes_refused_for_memtables",
                "Writes refused because the memtables were full.",
            ),
            refused_for_log: counter(
                "uruk_tabletserver_writes_refused_for_log",
                "Writes refused because too much of the commit log was unflushed.",
            ),
            refused_for_calls: counter(
                "uruk_tabletserver_writes_refused_for_calls",
                "Writes refused because too much of calls and their results was remembered.",
            ),
            memtable_soft: config.memtable_bytes_soft,
            memtable_hard: config.memtable_bytes_hard,
            remembered_max: config.remembered_server_bytes_max as u64,
            log_max: config.unflushed_log_bytes_max,
            retry_ms: config.overload_retry_ms,
            log,
            memtable: AtomicU64::new(0),
            remembered: AtomicU64::new(0),
            trim_point: AtomicU64::new(0),
            wake_flusher: Notify::new(),
        }
    }

    /// Refuses a write when a hard limit is reached.
    pub fn check(&self) -> Result<(), RpcError> {
        if self.memtable_bytes() >= self.memtable_hard {
            self.refused_for_memtables.inc();
            self.wake_flusher.notify_one();
            return Err(RpcError::overloaded("the memtables are full; flushing", self.retry_ms));
        }
        if self.unflushed_log_bytes() >= self.log_max {
            self.refused_for_log.inc();
            self.wake_flusher.notify_one();
            return Err(RpcError::overloaded("too much of the commit log is unflushed; flushing", self.retry_ms));
        }
        Ok(())
    }

    /// Counts mutations that were just applied.
    pub fn applied(&self, bytes: u64) {
        self.memtable.fetch_add(bytes, Ordering::Relaxed);
        if self.is_over_soft() {
            self.wake_flusher.notify_one();
        }
    }

    /// Whether calls and results of so many bytes more can be remembered.
    pub fn has_room_to_remember(&self, bytes: usize) -> bool {
        self.remembered_bytes() + bytes as u64 <= self.remembered_max
    }

    /// Counts a call that is remembered from now on.
    pub fn remembers(&self, bytes: usize) {
        self.remembered.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes of all remembered calls and their results.
    pub fn remembered_bytes(&self) -> u64 {
        self.remembered.load(Ordering::Relaxed)
    }

    /// Corrects the counts by a measurement.
    pub fn measured(&self, memtable_bytes: u64, remembered_bytes: u64, trim_point: Lsn) {
        self.memtable.store(memtable_bytes, Ordering::Relaxed);
        self.memtable_peak.fetch_max(memtable_bytes, Ordering::Relaxed);
        self.remembered.store(remembered_bytes, Ordering::Relaxed);
        self.trim_point.fetch_max(trim_point.0, Ordering::Relaxed);
    }

    /// Bytes of all memtables.
    pub fn memtable_bytes(&self) -> u64 {
        self.memtable.load(Ordering::Relaxed)
    }

    /// The most bytes that memtables ever had when they were measured.
    pub fn memtable_bytes_peak(&self) -> u64 {
        self.memtable_peak.load(Ordering::Relaxed)
    }

    /// Writes refused because memtables, the unflushed log, or the memory of calls were full.
    pub fn refused(&self) -> (u64, u64, u64) {
        (self.refused_for_memtables.get(), self.refused_for_log.get(), self.refused_for_calls.get())
    }

    /// Counts a write that was refused because too much is remembered.
    pub fn refused_call(&self) {
        self.refused_for_calls.inc();
    }

    /// By how many bytes memtables are over their soft limit when `flushing` are as good as gone; None: they are
    /// below it.
    pub fn memtable_excess(&self, flushing: u64) -> Option<u64> {
        self.memtable_bytes().saturating_sub(flushing).checked_sub(self.memtable_soft)
    }

    /// What begins to be needed before this position must be flushed to bring the log below its soft limit;
    /// None: it is below.
    pub fn log_excess(&self) -> Option<Lsn> {
        self.is_log_over_soft().then(|| Lsn(self.log.appended().0.saturating_sub(self.log_max / 4 * 3)))
    }

    /// Where the own log begins to be needed.
    pub fn trim_point(&self) -> Lsn {
        Lsn(self.trim_point.load(Ordering::Relaxed))
    }

    /// Bytes of the own log that a recoverer would have to read.
    pub fn unflushed_log_bytes(&self) -> u64 {
        self.log.appended().0.saturating_sub(self.trim_point.load(Ordering::Relaxed))
    }

    /// Whether the memtables are over their soft limit.
    pub fn is_memtable_over_soft(&self) -> bool {
        self.memtable_bytes() >= self.memtable_soft
    }

    /// Whether so much of the log is unflushed that its oldest part should be let go.
    pub fn is_log_over_soft(&self) -> bool {
        self.unflushed_log_bytes() >= self.log_max / 4 * 3
    }

    fn is_over_soft(&self) -> bool {
        self.is_memtable_over_soft() || self.is_log_over_soft()
    }
}
