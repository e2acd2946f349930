//! Settings of the client, with their limits.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uruk_proto::dfs;

use crate::format::{CHUNK_BYTES_MAX, SEGMENT_BYTES_MAX};

/// Default length of a log segment, in bytes. A segment is what one server sorts after a crash: several
/// small ones are sorted side by side (docs/adr/0003), a roll costs one command.
const LOG_SEGMENT_BYTES: u64 = 16 << 20;

/// How much an acknowledgement promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// The counted replicas have called `fdatasync`: survives power loss of all machines.
    #[default]
    Fsync,
    /// The counted replicas have called `write`: survives killed processes, not two machines losing
    /// power at once.
    Replicated,
}

impl Durability {
    pub(super) fn to_wire(self) -> i32 {
        match self {
            Durability::Fsync => dfs::Durability::Fsync as i32,
            Durability::Replicated => dfs::Durability::Replicated as i32,
        }
    }
}

/// Settings of a [`DfsClient`](super::DfsClient).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DfsClientConfig {
    /// Addresses (`host:port`) of all controllers.
    pub controllers: Vec<String>,
    /// Durability of commit logs and of files.
    pub durability: Durability,

    /// One attempt of a controller call takes at most this long.
    pub controller_attempt_ms: u64,
    /// A controller call, retries included, takes at most this long.
    pub controller_deadline_ms: u64,
    /// First delay before a retry; doubles up to `backoff_max_ms`, with jitter.
    pub backoff_min_ms: u64,
    /// Longest delay before a retry.
    pub backoff_max_ms: u64,
    /// A chunk server that failed or was silent is asked last for this long.
    pub suspect_ms: u64,

    /// A chunk server must answer a read, and go on with it, within this time.
    pub read_attempt_ms: u64,
    /// A read, retries on other replicas included, makes progress within this time or fails.
    pub read_deadline_ms: u64,
    /// Files whose chunks and locations are remembered.
    pub cached_files_max: usize,

    /// One chunk must be written to one server within this time.
    pub chunk_write_ms: u64,
    /// A put, retries included, takes at most this long.
    pub put_deadline_ms: u64,
    /// Chunks of one file that are written at once.
    pub put_chunks_in_flight: usize,
    /// Longest chunk written, in bytes.
    pub chunk_bytes: u64,

    /// Frames of a log that are in flight at once.
    pub log_frames_in_flight: usize,
    /// A log segment takes no further frame once it is this long, in bytes.
    pub log_segment_bytes: u64,
    /// A replica that is this far behind while the others are done is left behind.
    pub log_slow_replica_ms: u64,
    /// Replicas that have not acknowledged a frame for this long count as failed.
    pub log_stalled_replica_ms: u64,
    /// The writer tells its replicas how far the log is committed when it had nothing to send for
    /// this long.
    pub log_idle_commit_ms: u64,
    /// A writer that makes no progress for this long gives up: the outcome is unknown.
    pub log_write_deadline_ms: u64,

    /// One fence, copy or finish request of a seal takes at most this long.
    pub seal_attempt_ms: u64,
    /// A seal waits this long for enough replicas.
    pub seal_deadline_ms: u64,
}

impl Default for DfsClientConfig {
    fn default() -> DfsClientConfig {
        DfsClientConfig {
            controllers: Vec::new(),
            durability: Durability::Fsync,
            controller_attempt_ms: 2_000,
            controller_deadline_ms: 15_000,
            backoff_min_ms: 5,
            backoff_max_ms: 250,
            suspect_ms: 5_000,
            read_attempt_ms: 1_000,
            read_deadline_ms: 15_000,
            cached_files_max: 16_384,
            chunk_write_ms: 15_000,
            put_deadline_ms: 60_000,
            put_chunks_in_flight: 2,
            chunk_bytes: CHUNK_BYTES_MAX,
            log_frames_in_flight: 4,
            log_segment_bytes: LOG_SEGMENT_BYTES,
            log_slow_replica_ms: 300,
            log_stalled_replica_ms: 2_000,
            log_idle_commit_ms: 10,
            log_write_deadline_ms: 30_000,
            seal_attempt_ms: 1_000,
            seal_deadline_ms: 30_000,
        }
    }
}

/// A setting is out of its limits.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("chunk store client: {0}")]
pub struct ConfigError(String);

impl DfsClientConfig {
    /// Default settings for the controllers at these addresses.
    pub fn new(controllers: Vec<String>) -> DfsClientConfig {
        DfsClientConfig { controllers, ..DfsClientConfig::default() }
    }

    /// Checks every limit.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let fail = |what: String| Err(ConfigError(what));
        if self.controllers.is_empty() {
            return fail("controllers must name at least one address".into());
        }
        if let Some(bad) = self.controllers.iter().find(|a| !a.contains(':')) {
            return fail(format!("controllers: {bad:?} is not host:port"));
        }
        for (name, value) in [
            ("controller_attempt_ms", self.controller_attempt_ms),
            ("controller_deadline_ms", self.controller_deadline_ms),
            ("backoff_min_ms", self.backoff_min_ms),
            ("read_attempt_ms", self.read_attempt_ms),
            ("read_deadline_ms", self.read_deadline_ms),
            ("chunk_write_ms", self.chunk_write_ms),
            ("put_deadline_ms", self.put_deadline_ms),
            ("log_slow_replica_ms", self.log_slow_replica_ms),
            ("log_idle_commit_ms", self.log_idle_commit_ms),
            ("log_write_deadline_ms", self.log_write_deadline_ms),
            ("seal_attempt_ms", self.seal_attempt_ms),
            ("seal_deadline_ms", self.seal_deadline_ms),
        ] {
            if value == 0 {
                return fail(format!("{name} must be at least 1"));
            }
        }
        if self.backoff_max_ms < self.backoff_min_ms {
            return fail("backoff_max_ms must be at least backoff_min_ms".into());
        }
        if self.log_stalled_replica_ms < self.log_slow_replica_ms {
            return fail("log_stalled_replica_ms must be at least log_slow_replica_ms".into());
        }
        if !(1..=1024).contains(&self.log_frames_in_flight) {
            return fail("log_frames_in_flight must be 1 to 1024".into());
        }
        if !(1..=64).contains(&self.put_chunks_in_flight) {
            return fail("put_chunks_in_flight must be 1 to 64".into());
        }
        if self.cached_files_max < 2 {
            return fail("cached_files_max must be at least 2".into());
        }
        if !(1..=CHUNK_BYTES_MAX).contains(&self.chunk_bytes) {
            return fail(format!("chunk_bytes must be 1 to {CHUNK_BYTES_MAX}"));
        }
        if !(1..=SEGMENT_BYTES_MAX).contains(&self.log_segment_bytes) {
            return fail(format!("log_segment_bytes must be 1 to {SEGMENT_BYTES_MAX}"));
        }
        Ok(())
    }

    /// The delay before retry number `attempt` (0 = the first), without jitter.
    pub(super) fn backoff(&self, attempt: u32) -> Duration {
        let factor = 1u64.checked_shl(attempt.min(16)).unwrap_or(u64::MAX);
        Duration::from_millis(self.backoff_min_ms.saturating_mul(factor).min(self.backoff_max_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_once_a_controller_is_named() {
        assert!(DfsClientConfig::default().validate().is_err());
        assert_eq!(DfsClientConfig::new(vec!["a:1".into()]).validate(), Ok(()));
    }

    #[test]
    fn settings_out_of_their_limits_are_refused() {
        let good = DfsClientConfig::new(vec!["a:1".into()]);
        for bad in [
            DfsClientConfig::new(vec!["nowhere".into()]),
            DfsClientConfig { log_frames_in_flight: 0, ..good.clone() },
            DfsClientConfig { seal_deadline_ms: 0, ..good.clone() },
            DfsClientConfig { chunk_bytes: CHUNK_BYTES_MAX + 1, ..good.clone() },
            DfsClientConfig { log_segment_bytes: 0, ..good.clone() },
            DfsClientConfig { backoff_max_ms: 1, ..good.clone() },
        ] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn backoff_doubles_up_to_its_limit() {
        let config = DfsClientConfig::default();
        assert_eq!(config.backoff(0), Duration::from_millis(5));
        assert_eq!(config.backoff(1), Duration::from_millis(10));
        assert_eq!(config.backoff(60), Duration::from_millis(250));
    }
}
