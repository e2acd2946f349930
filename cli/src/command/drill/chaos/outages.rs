//! How long key ranges were out: writes and reads a row in each of them, round after round.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use uruk_base::{Env, Tasks};
use uruk_client::Table;

use crate::load::availability::probe;

/// A round that takes longer is an outage; on a busy machine a calm one takes some ten milliseconds.
pub const OUTAGE_MIN: Duration = Duration::from_millis(250);
/// Pause between rounds.
const PAUSE: Duration = Duration::from_millis(200);
/// A round is given up after this; the drill has called the cluster dead long before.
const ROUND_MAX: Duration = Duration::from_secs(600);

/// The running measurement.
pub struct Outages {
    lengths: Arc<Mutex<Vec<Duration>>>,
    tasks: Tasks,
}

impl Outages {
    /// Starts it, with one key in each range; nobody else may write them.
    pub fn watch(env: &Env, table: Table, family: &'static str, keys: Vec<Bytes>) -> Outages {
        let outages = Outages { lengths: Arc::default(), tasks: env.tasks.child() };
        let (lengths, env) = (outages.lengths.clone(), env.with_tasks(outages.tasks.clone()));
        outages.tasks.spawn("outage watch", async move {
            loop {
                let begun = env.clock.now();
                let round = probe(&env, &table, family, keys.clone(), begun, ROUND_MAX).await;
                let length = if round.out.is_empty() { round.unavailable() } else { ROUND_MAX };
                if length >= OUTAGE_MIN {
                    lengths.lock().push(length);
                }
                env.clock.sleep(PAUSE).await;
            }
        });
        outages
    }

    /// Ends it. The times during which some range was not served, sorted.
    pub async fn stop(&self) -> Vec<Duration> {
        // Nothing in it panics but the client, which the load reports too.
        let _ = self.tasks.shutdown().await;
        let mut lengths = self.lengths.lock().clone();
        lengths.sort_unstable();
        lengths
    }
}
