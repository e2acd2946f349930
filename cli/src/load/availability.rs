//! How long each key range was out: from the kill until a read and a write of it were served again.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use uruk_base::task::TaskPanicked;
use uruk_base::{Env, Moment};
use uruk_client::{Mutation, ReadOptions, Table};

/// A probe that failed is repeated after this.
const RETRY_DELAY: Duration = Duration::from_millis(3);
/// A range that is served is probed again after this.
const PROBE_PAUSE: Duration = Duration::from_millis(20);
/// The column that probes write.
const QUALIFIER: &[u8] = b"probe";

/// When each probed range was served again, counted from the kill.
#[derive(Clone, Debug, Default)]
pub struct Availability {
    /// By the range's probe key: the first write and the first read served, in that order.
    pub served: BTreeMap<Bytes, (Duration, Duration)>,
    /// Ranges that were not served within the limit.
    pub out: Vec<Bytes>,
}

impl Availability {
    /// The time until every range was read and written again.
    pub fn unavailable(&self) -> Duration {
        self.served.values().map(|(write, read)| *write.max(read)).max().unwrap_or_default()
    }

    /// The time until the first range was served again.
    pub fn first_served(&self) -> Duration {
        self.served.values().map(|(write, read)| *write.max(read)).min().unwrap_or_default()
    }
}

/// Writes and reads one row in each range until both are served; gives up after `limit`.
///
/// Call it right after the kill: a probe that starts then cannot be answered by the dead.
pub async fn probe(
    env: &Env,
    table: &Table,
    family: &'static str,
    keys: Vec<Bytes>,
    killed: Moment,
    limit: Duration,
) -> Availability {
    let result: Arc<Mutex<Availability>> = Arc::default();
    let tasks = env.tasks.child();
    let (done, mut all_done) = tokio::sync::mpsc::channel::<()>(1);
    for key in keys {
        let (env, table, family, result, done) = (env.clone(), table.clone(), family, result.clone(), done.clone());
        tasks.spawn("probe", async move {
            match env.clock.timeout(limit, probe_one(&env, &table, family, &key, killed)).await {
                Ok(times) => {
                    result.lock().served.insert(key, times);
                }
                Err(_) => result.lock().out.push(key),
            }
            drop(done);
        });
    }
    drop(done);
    let _ = all_done.recv().await;
    result.lock().clone()
}

/// Writes and reads one row in each range over and over until `until` completes; returns the longest time that
/// a range was not served, and what `until` told.
pub async fn longest_gap<T>(
    env: &Env,
    table: &Table,
    family: &'static str,
    keys: Vec<Bytes>,
    until: impl Future<Output = T>,
) -> Result<(Duration, T), TaskPanicked> {
    let begun = env.clock.now();
    // By range: when it was served last, and the longest gap before.
    let start = keys.iter().map(|key| (key.clone(), (begun, Duration::ZERO))).collect();
    let gaps: Arc<Mutex<BTreeMap<Bytes, (Moment, Duration)>>> = Arc::new(Mutex::new(start));
    let tasks = env.tasks.child();
    for key in keys {
        let (env, table, gaps) = (env.clone(), table.clone(), gaps.clone());
        tasks.spawn("probe", async move {
            loop {
                probe_one(&env, &table, family, &key, begun).await;
                let now = env.clock.now();
                if let Some((served, longest)) = gaps.lock().get_mut(&key) {
                    *longest = now.saturating_since(*served).max(*longest);
                    *served = now;
                }
                env.clock.sleep(PROBE_PAUSE).await;
            }
        });
    }
    let told = until.await;
    tasks.shutdown().await?;
    let now = env.clock.now();
    let gaps = gaps.lock();
    let longest = gaps.values().map(|(served, longest)| now.saturating_since(*served).max(*longest)).max();
    Ok((longest.unwrap_or_default(), told))
}

async fn probe_one(
    env: &Env,
    table: &Table,
    family: &'static str,
    key: &Bytes,
    killed: Moment,
) -> (Duration, Duration) {
    let value = Bytes::from(env.random.u64().to_be_bytes().to_vec());
    loop {
        let mutation = Mutation::set(family, QUALIFIER, value.clone());
        match table.mutate_row(key.clone(), vec![mutation]).await {
            Ok(()) => break,
            Err(_) => env.clock.sleep(RETRY_DELAY).await,
        }
    }
    let written = env.clock.since(killed);
    loop {
        match table.read_row(key, &ReadOptions::default()).await {
            Ok(Some(row)) if row.value(family, QUALIFIER) == Some(&value) => break,
            // A probe's own write that is not read back would be a lost write; keep asking, and
            // let the limit call it an outage that never ended.
            Ok(_) | Err(_) => env.clock.sleep(RETRY_DELAY).await,
        }
    }
    (written, env.clock.since(killed))
}
