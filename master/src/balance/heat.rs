//! How busy a tablet is: what its owner reported, smoothed, so that one busy second decides nothing.

use std::time::Duration;

use bytes::Bytes;
use uruk_proto::master::TabletLoad;

/// After this long a change has come through to about two thirds.
const SMOOTHING: Duration = Duration::from_secs(10);

/// How busy a tablet is.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Heat {
    pub requests_per_s: f64,
    pub bytes_per_s: f64,
    /// Of one core, in thousandths.
    pub cpu_permille: f64,
    pub memtable_bytes: u64,
    /// The row with most of the requests, and its share.
    pub hottest_row: Bytes,
    pub hottest_row_permille: u32,
}

impl Heat {
    /// Takes in what was reported for the time since the last report.
    pub fn add(&mut self, load: &TabletLoad, interval_ms: u64) {
        if interval_ms == 0 {
            return;
        }
        let seconds = interval_ms as f64 / 1_000.0;
        let part = 1.0 - (-seconds / SMOOTHING.as_secs_f64()).exp();
        let smooth = |old: &mut f64, amount: u64, unit: f64| *old += (amount as f64 / unit / seconds - *old) * part;
        smooth(&mut self.requests_per_s, load.reads + load.writes, 1.0);
        smooth(&mut self.bytes_per_s, load.bytes_read + load.bytes_written, 1.0);
        smooth(&mut self.cpu_permille, load.cpu_micros, 1_000.0);
        self.memtable_bytes = load.memtable_bytes;
        self.hottest_row = load.hottest_row.clone();
        self.hottest_row_permille = load.hottest_row_permille;
    }

    /// At least as busy as that.
    pub fn raise(&mut self, other: &Heat) {
        let more = |mine: &mut f64, others: f64| *mine = mine.max(others);
        more(&mut self.requests_per_s, other.requests_per_s);
        more(&mut self.bytes_per_s, other.bytes_per_s);
        more(&mut self.cpu_permille, other.cpu_permille);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_second_is_smoothed_and_a_busy_minute_comes_through() {
        let mut heat = Heat::default();
        let load = TabletLoad { reads: 600, writes: 400, cpu_micros: 500_000, ..TabletLoad::default() };
        heat.add(&load, 0);
        assert_eq!(heat, Heat::default(), "without a time there is no rate");
        heat.add(&load, 1_000);
        assert!((50.0..150.0).contains(&heat.requests_per_s), "{heat:?}");
        (0..60).for_each(|_| heat.add(&load, 1_000));
        assert!((990.0..1_001.0).contains(&heat.requests_per_s) && (495.0..501.0).contains(&heat.cpu_permille));
    }
}
