//! How long writes to a key range pause while its tablet splits, merges or moves.
//!
//! A few rows of the range are written over and over, each by a task of its own, with a client that does
//! nothing else. The **gap** of a row is the time between two successive acknowledged writes of it. What is
//! usual is the median of the gaps before the operation; the **pause** is the longest gap of any of the rows
//! that reaches into the time from the start of the operation until a moment after its end, less the usual.
//! The longest gap before the operation, less the usual, is the **noise**: what the machine does without it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use uruk_base::task::TaskPanicked;
use uruk_base::{Env, Moment, Tasks};
use uruk_client::{Mutation, Table};

/// Between two writes of a row.
const WRITE_PAUSE: Duration = Duration::from_millis(1);
/// The column that is written.
const QUALIFIER: &[u8] = b"probe";

/// Writes that run.
pub struct Probes {
    env: Env,
    tasks: Tasks,
    /// When each row was acknowledged, in order.
    acknowledged: Arc<Mutex<BTreeMap<Bytes, Vec<Moment>>>>,
}

/// What the probes found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pause {
    /// The longest gap of the operation, less the usual one.
    pub pause: Duration,
    /// The longest gap before it, less the usual one.
    pub noise: Duration,
    /// The median gap before it.
    pub usual: Duration,
}

impl Probes {
    /// Starts to write the rows.
    pub fn start(env: &Env, table: &Table, family: &'static str, rows: Vec<Bytes>) -> Probes {
        let tasks = env.tasks.child();
        let none_yet = rows.iter().map(|row| (row.clone(), Vec::new())).collect();
        let acknowledged: Arc<Mutex<BTreeMap<Bytes, Vec<Moment>>>> = Arc::new(Mutex::new(none_yet));
        for row in rows {
            let (env, table, acknowledged) = (env.clone(), table.clone(), acknowledged.clone());
            tasks.spawn("pause probe", async move {
                loop {
                    let value = Bytes::copy_from_slice(&env.random.u64().to_be_bytes());
                    // A write that fails is no acknowledged one: the gap goes on.
                    if table.mutate_row(&row, vec![Mutation::set(family, QUALIFIER, value)]).await.is_ok() {
                        acknowledged.lock().entry(row.clone()).or_default().push(env.clock.now());
                    }
                    env.clock.sleep(WRITE_PAUSE).await;
                }
            });
        }
        Probes { env: env.clone(), tasks, acknowledged }
    }

    /// Ends the writes; the operation ran from `begun` to `ended`. None: a row was never written, or not
    /// often enough before to tell what is usual.
    pub async fn stop(self, begun: Moment, ended: Moment) -> Result<Option<Pause>, TaskPanicked> {
        let now = self.env.clock.now();
        self.tasks.shutdown().await?;
        let acknowledged = self.acknowledged.lock();
        let rows: Vec<&[Moment]> = acknowledged.values().map(Vec::as_slice).collect();
        Ok(measure(&rows, begun, ended, now))
    }
}

/// Gaps before an operation that it takes to know what is usual.
const USUAL_GAPS_MIN: usize = 5;

fn measure(rows: &[&[Moment]], begun: Moment, ended: Moment, now: Moment) -> Option<Pause> {
    let (mut before, mut longest) = (Vec::new(), Duration::ZERO);
    for row in rows {
        for pair in row.windows(2) {
            let gap = pair[1].saturating_since(pair[0]);
            if pair[1] <= begun {
                before.push(gap);
            } else if pair[0] <= ended {
                longest = longest.max(gap);
            }
        }
        // A row that waits still has waited so long at least.
        let last = row.last().copied()?;
        if last <= ended {
            longest = longest.max(now.saturating_since(last));
        }
    }
    if before.len() < USUAL_GAPS_MIN {
        return None;
    }
    before.sort_unstable();
    let usual = before[before.len() / 2];
    let noise = before.last().copied().unwrap_or_default();
    Some(Pause { pause: longest.saturating_sub(usual), noise: noise.saturating_sub(usual), usual })
}

/// The value at this quantile (0 to 1) of some times, by nearest rank; zero without any.
pub fn quantile(times: &[Duration], quantile: f64) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let rank = (quantile * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_start(Duration::from_millis(ms))
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_pause_is_the_longest_gap_of_the_operation_less_the_usual_one() {
        let calm: Vec<Moment> = (0..40).map(|n| at(n * 5)).collect();
        let mut paused: Vec<Moment> = (0..=20).map(|n| at(n * 5)).collect();
        paused.extend([at(130), at(135), at(140), at(145)]);
        let found = measure(&[&calm, &paused], at(100), at(140), at(200)).unwrap();
        assert_eq!(found, Pause { pause: ms(25), noise: ms(0), usual: ms(5) });
        // A hiccup before the operation is noise, not pause; one long after it is neither.
        let mut uneven: Vec<Moment> = (0..10).map(|n| at(n * 5)).collect();
        uneven.extend((0..12).map(|n| at(60 + n * 5)));
        uneven.push(at(190));
        let found = measure(&[&uneven], at(100), at(110), at(195)).unwrap();
        assert_eq!(found, Pause { pause: ms(0), noise: ms(10), usual: ms(5) });
    }

    #[test]
    fn a_row_that_still_waits_counts() {
        let stuck: Vec<Moment> = (0..20).map(|n| at(n * 5)).collect();
        assert_eq!(measure(&[&stuck], at(95), at(100), at(395)).unwrap().pause, ms(295));
        assert_eq!(measure(&[&stuck, &[]], at(95), at(100), at(395)), None, "a row was never written");
        assert_eq!(measure(&[&stuck], at(10), at(100), at(395)), None, "too little is known");
    }

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        let times: Vec<Duration> = (1..=50).map(ms).collect();
        assert_eq!((quantile(&times, 0.5), quantile(&times, 0.99), quantile(&times, 1.0)), (ms(25), ms(50), ms(50)));
        assert_eq!(quantile(&[], 0.5), ms(0));
        assert_eq!(quantile(&[ms(3)], 0.01), ms(3));
    }
}
