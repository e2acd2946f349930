//! A tablet server's settings. The lease's length comes from the master.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::EngineConfig;

/// Most bytes that a commit log takes as one record.
const LOG_RECORD_BYTES_MAX: usize = 64 << 20;
/// Most bytes of a call's answer that a tablet remembers; it goes into the log in one piece.
pub const RESULT_BYTES_MAX: usize = 16 << 20;
/// Most bytes of a record besides its rows and its result.
pub const RECORD_OVERHEAD_BYTES: usize = 128;

/// Settings of one launch of a tablet server.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TabletServerConfig {
    /// Where to listen, `host:port`; port 0 picks a free one.
    pub listen: String,
    /// Where others reach it; empty: the address that is listened on.
    pub advertise: String,
    /// All masters, `host:port`.
    pub masters: Vec<String>,
    /// Failure zone, for display and placement.
    pub zone: String,
    /// Names this launch, to bind the watching parent's report of death; never used twice.
    pub nonce: u64,
    /// Own process id, for the status page.
    pub pid: u32,
    /// The watching parent's process id; 0 without one.
    pub parent_pid: u32,
    /// Whether to read memory and processor use from `/proc` (off in simulation).
    pub process_metrics: bool,
    /// Memtables beyond this many bytes are flushed.
    pub memtable_bytes_soft: u64,
    /// Beyond this many bytes of memtables writes are refused.
    pub memtable_bytes_hard: u64,
    /// Most bytes of the own log that may be unflushed: what bounds recovery.
    pub unflushed_log_bytes_max: u64,
    /// A tablet with unflushed writes is flushed when it had none for this long.
    pub memtable_idle_ms: u64,
    /// Or when its oldest unflushed write is this old.
    pub memtable_age_ms: u64,
    /// Largest record in the log, results apart; a larger row is cut into several.
    pub record_bytes_max: usize,
    /// A frame takes further records while it is smaller than this.
    pub frame_bytes: usize,
    /// Frames that may be in flight to the log.
    pub frames_in_flight_max: usize,
    /// While so many frames are in flight, only one of at least `large_frame_bytes` follows: what comes meanwhile
    /// shares a frame, which costs each replica a write and a sync, instead of having several.
    pub small_frames_in_flight_max: usize,
    /// A frame of at least so many bytes does not wait for others in flight.
    pub large_frame_bytes: usize,
    /// Bytes of writes that may wait for the log.
    pub log_queue_bytes_max: usize,
    /// How long results of calls are remembered.
    pub retention_ms: u64,
    /// Bytes of results that a tablet remembers; calls whose results would go beyond it are refused.
    pub remembered_bytes_max: usize,
    /// Bytes of calls and their results that all tablets together remember; beyond them calls are refused.
    pub remembered_server_bytes_max: usize,
    /// Callers of an overloaded server are asked to wait this long.
    pub overload_retry_ms: u64,
    /// Tablets that are opened at the same time.
    pub opens_max: usize,
    /// Of those, tablets whose logs are replayed at the same time.
    pub replays_max: usize,
    /// Tablets that are closed at the same time; the others are served until it is their turn.
    pub closes_max: usize,
    /// Flushes that run at the same time.
    pub flushes_max: usize,
    /// Pieces of dead servers' logs that are sorted at the same time.
    pub sorts_max: usize,
    /// Reads that may run at the same time.
    pub reads_max: usize,
    /// A planned end takes at most this long; what is not released by then is recovered elsewhere.
    pub stop_ms_max: u64,
    /// One call to a master takes at most this long.
    pub master_call_ms: u64,
    /// Storage engine.
    pub engine: EngineConfig,
}

impl Default for TabletServerConfig {
    fn default() -> TabletServerConfig {
        TabletServerConfig {
            listen: "127.0.0.1:0".into(),
            advertise: String::new(),
            masters: Vec::new(),
            zone: "default".into(),
            nonce: 0,
            pid: 0,
            parent_pid: 0,
            process_metrics: false,
            memtable_bytes_soft: 192 << 20,
            memtable_bytes_hard: 384 << 20,
            unflushed_log_bytes_max: 256 << 20,
            memtable_idle_ms: 300_000,
            memtable_age_ms: 3_600_000,
            record_bytes_max: 8 << 20,
            frame_bytes: 1 << 20,
            frames_in_flight_max: 4,
            small_frames_in_flight_max: 1,
            large_frame_bytes: 128 << 10,
            log_queue_bytes_max: 128 << 20,
            retention_ms: 600_000,
            remembered_bytes_max: RESULT_BYTES_MAX,
            remembered_server_bytes_max: 128 << 20,
            overload_retry_ms: 50,
            opens_max: 8,
            replays_max: 2,
            closes_max: 8,
            flushes_max: 2,
            sorts_max: 2,
            reads_max: 4096,
            stop_ms_max: 10_000,
            master_call_ms: 2_000,
            engine: EngineConfig::default(),
        }
    }
}

/// A setting that makes no sense.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// One of the server's own.
    #[error("tabletserver.{0} {1}")]
    Server(&'static str, &'static str),
    /// One of the storage engine's.
    #[error(transparent)]
    Engine(#[from] crate::engine::ConfigError),
}

impl TabletServerConfig {
    /// Checks every limit.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let checks = [
            (!self.masters.is_empty(), "masters", "is empty"),
            (!self.listen.is_empty(), "listen", "is empty"),
            (self.memtable_bytes_soft > 0, "memtable_bytes_soft", "is 0"),
            (
                self.memtable_bytes_hard > self.memtable_bytes_soft,
                "memtable_bytes_hard",
                "is not above memtable_bytes_soft",
            ),
            (self.unflushed_log_bytes_max > 0, "unflushed_log_bytes_max", "is 0"),
            (self.memtable_idle_ms > 0, "memtable_idle_ms", "is 0"),
            (self.memtable_age_ms > 0, "memtable_age_ms", "is 0"),
            (self.record_bytes_max >= 8 << 10, "record_bytes_max", "is below 8 KiB"),
            (self.frame_bytes > 0, "frame_bytes", "is 0"),
            (
                // A frame that is nearly full may still take one record.
                self.frame_bytes + self.record_bytes_max + RESULT_BYTES_MAX + (1 << 10) <= LOG_RECORD_BYTES_MAX,
                "record_bytes_max",
                "and frame_bytes together are above 47 MiB",
            ),
            ((1..=64).contains(&self.frames_in_flight_max), "frames_in_flight_max", "is not within 1 and 64"),
            (self.small_frames_in_flight_max > 0, "small_frames_in_flight_max", "is 0"),
            (self.large_frame_bytes > 0, "large_frame_bytes", "is 0"),
            (self.log_queue_bytes_max >= self.record_bytes_max, "log_queue_bytes_max", "is below record_bytes_max"),
            (self.retention_ms >= 1000, "retention_ms", "is below a second"),
            (
                self.remembered_bytes_max >= RESULT_BYTES_MAX,
                "remembered_bytes_max",
                "is below 16 MiB, the largest result",
            ),
            (
                self.remembered_server_bytes_max >= self.remembered_bytes_max,
                "remembered_server_bytes_max",
                "is below remembered_bytes_max",
            ),
            (self.opens_max > 0, "opens_max", "is 0"),
            (self.replays_max > 0, "replays_max", "is 0"),
            (self.closes_max > 0, "closes_max", "is 0"),
            (self.flushes_max > 0, "flushes_max", "is 0"),
            (self.sorts_max > 0, "sorts_max", "is 0"),
            (self.reads_max > 0, "reads_max", "is 0"),
            (self.master_call_ms > 0, "master_call_ms", "is 0"),
        ];
        if let Some((_, field, why)) = checks.into_iter().find(|(holds, _, _)| !holds) {
            return Err(ConfigError::Server(field, why));
        }
        Ok(self.engine.validate()?)
    }

    /// How long a planned end may take.
    pub fn stop_limit(&self) -> Duration {
        Duration::from_millis(self.stop_ms_max)
    }

    /// For how long at most a memtable waits for a flush: without a write, and with writes.
    pub fn memtable_ages(&self) -> (Duration, Duration) {
        (Duration::from_millis(self.memtable_idle_ms), Duration::from_millis(self.memtable_age_ms))
    }

    /// How long results of calls are remembered.
    pub fn retention(&self) -> Duration {
        Duration::from_millis(self.retention_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_once_there_is_a_master() {
        let config = TabletServerConfig { masters: vec!["a:1".into()], ..TabletServerConfig::default() };
        config.validate().expect("valid");
        let error = TabletServerConfig::default().validate().expect_err("no master");
        assert_eq!(error.to_string(), "tabletserver.masters is empty");
    }

    #[test]
    fn a_hard_limit_below_the_soft_one_is_refused() {
        let config =
            TabletServerConfig { masters: vec!["a:1".into()], memtable_bytes_hard: 1, ..TabletServerConfig::default() };
        assert!(config.validate().is_err_and(|error| error.to_string().contains("memtable_bytes_hard")));
    }
}
