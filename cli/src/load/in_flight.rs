//! Calls made so many at a time, counted and timed.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use uruk_base::{Env, Moment};

/// Latencies are recorded from 1 µs to 10 minutes, three digits.
const LATENCY_US_MAX: u64 = 600_000_000;

/// What a workload did.
#[derive(Debug)]
pub struct Done {
    pub rows: u64,
    pub bytes: u64,
    pub latencies: Histogram<u64>,
}

impl Done {
    /// Nothing yet.
    pub fn nothing() -> Done {
        Done { rows: 0, bytes: 0, latencies: new_histogram() }
    }
}

/// When no further call is made.
#[derive(Clone, Copy, Debug)]
pub enum Stop {
    /// After so many.
    After(u64),
    /// From this moment on.
    At(Moment),
}

/// Makes calls, `callers` at a time. `call(caller, n)` returns rows and bytes.
pub async fn in_flight<F, R>(env: &Env, callers: u16, stop: Stop, call: F) -> Result<Done>
where
    F: Fn(usize, u64) -> R + Send + Sync + 'static,
    R: Future<Output = Result<(u64, u64)>> + Send + 'static,
{
    let call = Arc::new(call);
    let next = Arc::new(AtomicU64::new(0));
    let total = Arc::new(Mutex::new(Done::nothing()));
    let failure: Arc<Mutex<Option<anyhow::Error>>> = Arc::default();
    let tasks = env.tasks.child();
    let (sender, mut ended) = tokio::sync::mpsc::channel::<()>(1);
    for place in 0..usize::from(callers) {
        let (call, next, total, failure) = (call.clone(), next.clone(), total.clone(), failure.clone());
        let (clock, sender) = (env.clock.clone(), sender.clone());
        tasks.spawn("bench caller", async move {
            let mut mine = Done::nothing();
            loop {
                let (n, started) = (next.fetch_add(1, Ordering::Relaxed), clock.now());
                let is_over = match stop {
                    Stop::After(calls) => n >= calls,
                    Stop::At(moment) => started >= moment,
                };
                if is_over || failure.lock().is_some() {
                    break;
                }
                match call(place, n).await {
                    Ok((rows, bytes)) => {
                        mine.rows += rows;
                        mine.bytes += bytes;
                    }
                    Err(error) => {
                        failure.lock().get_or_insert(error);
                        break;
                    }
                }
                mine.latencies.saturating_record((clock.since(started).as_micros() as u64).max(1));
            }
            let mut total = total.lock();
            total.rows += mine.rows;
            total.bytes += mine.bytes;
            total.latencies.add(&mine.latencies).expect("equal bounds");
            drop(sender);
        });
    }
    drop(sender);
    let _ = ended.recv().await;
    tasks.shutdown().await?;
    if let Some(error) = failure.lock().take() {
        return Err(error);
    }
    Ok(Arc::into_inner(total).context("a caller still runs")?.into_inner())
}

/// For latencies in microseconds.
pub fn new_histogram() -> Histogram<u64> {
    let mut histogram = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("the bounds are valid");
    histogram.auto(false);
    histogram
}
