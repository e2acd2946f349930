//! Every limit and deadline of the client, named.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Settings of a [`Client`](crate::Client). The defaults suit a cluster in one data centre.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientConfig {
    /// A data call (with all of its retries) ends after this; so does a scan that makes no progress.
    pub call_deadline_ms: u64,
    /// An admin call ends after this: making or deleting a table waits for all of its tablets.
    pub admin_deadline_ms: u64,
    /// A single attempt at a tablet server is given up after this.
    pub attempt_deadline_ms: u64,
    /// Large writes get more time: as much as they take at this many bytes a second, for the call as well as
    /// for each attempt.
    pub write_bytes_per_s_min: u64,
    /// A single attempt at a master is given up after this (admin calls that wait are exempt).
    pub master_attempt_deadline_ms: u64,
    /// While an attempt is unanswered, the client looks this often whether the tablet has another
    /// owner by now; if it has, the attempt is given up at once.
    pub slow_check_ms: u64,
    /// The first retry that waits at all waits about this long.
    pub retry_first_ms: u64,
    /// Each further wait is this times the one before.
    pub retry_factor: f64,
    /// No wait between retries is longer (unless a server asks for it).
    pub retry_wait_ms_max: u64,
    /// A server's wish for a longer wait is honoured up to this.
    pub retry_after_ms_max: u64,
    /// While nobody serves a tablet, the master is asked again this often.
    pub location_poll_ms: u64,
    /// One look-up asks for this many tablets, and so fetches those that follow.
    pub locate_tablets: u32,
    /// Locations remembered per table; beyond it, the others are forgotten.
    pub locations_max: usize,
    /// Connections to each tablet server for all but scans.
    pub channels_per_server: usize,
    /// Calls in flight to one tablet server, scans apart; the rest wait their turn.
    pub calls_per_server_max: usize,
    /// Open scan streams on one connection: a stalled one holds up to a quarter of its window.
    pub scans_per_channel_max: usize,
    /// Rows in one write request.
    pub batch_rows_max: usize,
    /// Bytes in one write request (a single larger row is sent alone).
    pub batch_bytes_max: usize,
    /// Write requests in flight for one call of `mutate_rows`.
    pub batch_calls_max: usize,
    /// Bytes that a batch writer holds, waiting or in flight; beyond it, adding waits.
    pub writer_bytes_max: usize,
    /// Write requests in flight of one batch writer.
    pub writer_calls_max: usize,
    /// A batch writer sends what it holds after this, even when no batch is full.
    pub writer_linger_ms: u64,
}

impl Default for ClientConfig {
    fn default() -> ClientConfig {
        ClientConfig {
            call_deadline_ms: 30_000,
            admin_deadline_ms: 120_000,
            attempt_deadline_ms: 10_000,
            write_bytes_per_s_min: 4 << 20,
            master_attempt_deadline_ms: 1_000,
            slow_check_ms: 250,
            retry_first_ms: 2,
            retry_factor: 1.5,
            retry_wait_ms_max: 200,
            retry_after_ms_max: 5_000,
            location_poll_ms: 3,
            locate_tablets: 64,
            locations_max: 100_000,
            channels_per_server: 2,
            calls_per_server_max: 512,
            scans_per_channel_max: 3,
            batch_rows_max: 2_000,
            batch_bytes_max: 1 << 20,
            batch_calls_max: 16,
            writer_bytes_max: 32 << 20,
            writer_calls_max: 32,
            writer_linger_ms: 5,
        }
    }
}

impl ClientConfig {
    /// Checks that every limit makes sense.
    pub fn validate(&self) -> Result<()> {
        let at_least_one = [
            ("call_deadline_ms", self.call_deadline_ms),
            ("admin_deadline_ms", self.admin_deadline_ms),
            ("attempt_deadline_ms", self.attempt_deadline_ms),
            ("write_bytes_per_s_min", self.write_bytes_per_s_min),
            ("master_attempt_deadline_ms", self.master_attempt_deadline_ms),
            ("slow_check_ms", self.slow_check_ms),
            ("retry_first_ms", self.retry_first_ms),
            ("location_poll_ms", self.location_poll_ms),
            ("locate_tablets", u64::from(self.locate_tablets)),
            ("locations_max", self.locations_max as u64),
            ("channels_per_server", self.channels_per_server as u64),
            ("calls_per_server_max", self.calls_per_server_max as u64),
            ("scans_per_channel_max", self.scans_per_channel_max as u64),
            ("batch_rows_max", self.batch_rows_max as u64),
            ("batch_bytes_max", self.batch_bytes_max as u64),
            ("batch_calls_max", self.batch_calls_max as u64),
            ("writer_bytes_max", self.writer_bytes_max as u64),
            ("writer_calls_max", self.writer_calls_max as u64),
            ("writer_linger_ms", self.writer_linger_ms),
        ];
        if let Some((name, _)) = at_least_one.into_iter().find(|(_, value)| *value == 0) {
            return Err(Error::invalid(format!("{name} must be at least 1")));
        }
        if !(self.retry_factor >= 1.0 && self.retry_factor <= 10.0) {
            return Err(Error::invalid(format!("retry_factor is {}; it must be within 1 and 10", self.retry_factor)));
        }
        if self.retry_wait_ms_max < self.retry_first_ms {
            return Err(Error::invalid("retry_wait_ms_max is below retry_first_ms"));
        }
        if self.batch_rows_max > uruk_proto::limits::BATCH_ROWS_MAX {
            return Err(Error::invalid(format!(
                "batch_rows_max is {}; servers take at most {}",
                self.batch_rows_max,
                uruk_proto::limits::BATCH_ROWS_MAX
            )));
        }
        if self.writer_bytes_max > u32::MAX as usize {
            return Err(Error::invalid("writer_bytes_max must be below 4 GiB"));
        }
        Ok(())
    }

    pub(crate) fn call_deadline(&self) -> Duration {
        Duration::from_millis(self.call_deadline_ms)
    }

    pub(crate) fn admin_deadline(&self) -> Duration {
        Duration::from_millis(self.admin_deadline_ms)
    }

    pub(crate) fn attempt_deadline(&self) -> Duration {
        Duration::from_millis(self.attempt_deadline_ms)
    }

    /// What a request of this many bytes gets on top of every deadline.
    pub(crate) fn transfer_time(&self, bytes: usize) -> Duration {
        Duration::from_millis(bytes as u64 * 1000 / self.write_bytes_per_s_min)
    }

    pub(crate) fn master_attempt_deadline(&self) -> Duration {
        Duration::from_millis(self.master_attempt_deadline_ms)
    }

    pub(crate) fn slow_check(&self) -> Duration {
        Duration::from_millis(self.slow_check_ms)
    }

    pub(crate) fn location_poll(&self) -> Duration {
        Duration::from_millis(self.location_poll_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        ClientConfig::default().validate().unwrap();
    }

    #[test]
    fn the_largest_row_gets_half_a_minute_more_and_a_small_one_nothing() {
        let config = ClientConfig::default();
        let time = |bytes| config.transfer_time(bytes).as_millis();
        assert_eq!((time(uruk_proto::limits::ROW_WRITE_BYTES_MAX), time(1_000)), (30_000, 0));
    }

    #[test]
    fn refuses_limits_that_make_no_sense() {
        let refused = |change: fn(&mut ClientConfig)| {
            let mut config = ClientConfig::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert_eq!(refused(|c| c.batch_rows_max = 0), "batch_rows_max must be at least 1");
        assert_eq!(refused(|c| c.retry_factor = f64::NAN), "retry_factor is NaN; it must be within 1 and 10");
        assert_eq!(refused(|c| c.retry_wait_ms_max = 1), "retry_wait_ms_max is below retry_first_ms");
        assert!(refused(|c| c.batch_rows_max = 1_000_000).starts_with("batch_rows_max is 1000000"));
    }
}
