//! Writers, readers and a long scan that run while things break, and check all they see.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use uruk_base::{Env, Tasks};
use uruk_client::{Error, Mutation, Outcome, ReadOptions, RowMutation, RowRange, ScanOptions, Table};

use super::keyspace::Keyspace;
use super::ledger::{Ledger, WriterLedger};
use super::record::WriteId;

/// The column that holds the load.
pub const QUALIFIER: &[u8] = b"load";
/// A writer or reader whose call failed rests this long.
const ERROR_DELAY: Duration = Duration::from_millis(20);
/// The long scan rests after this many rows.
const SCAN_ROWS_BETWEEN_PAUSES: u64 = 200;
/// Violations and failures kept with their texts; more are only counted.
const TEXTS_SHOWN_MAX: usize = 20;

/// What kind of traffic.
#[derive(Clone, Debug)]
pub struct TrafficSpec {
    /// Family that holds the load.
    pub family: &'static str,
    /// Where rows go.
    pub keyspace: Keyspace,
    /// Concurrent writers.
    pub writers: u32,
    /// Rows per batch.
    pub batch_rows: usize,
    /// Size of each value in bytes.
    pub value_bytes: usize,
    /// Concurrent readers of single rows.
    pub readers: u32,
    /// Pause of each writer and reader between calls; keeps a drill from becoming a benchmark.
    pub pause: Duration,
    /// Whether a scan of the whole table runs over and over.
    pub scan: bool,
}

/// Running traffic.
pub struct Traffic {
    shared: Arc<Shared>,
    tasks: Tasks,
}

struct Shared {
    env: Env,
    table: Table,
    spec: TrafficSpec,
    ledgers: Mutex<BTreeMap<u32, WriterLedger>>,
    reads: AtomicU64,
    scans: AtomicU64,
    violations: Mutex<Vec<String>>,
    violation_count: AtomicU64,
    failures: Mutex<Vec<String>>,
    failure_count: AtomicU64,
    pause_micros: AtomicU64,
}

/// What traffic saw.
#[derive(Clone, Debug, Default)]
pub struct TrafficReport {
    /// What was acknowledged.
    pub ledger: Ledger,
    /// Single rows read and compared.
    pub reads: u64,
    /// Whole scans done and checked.
    pub scans: u64,
    /// Wrong answers: an acknowledged row absent, another value, a scan with a gap or out of order.
    pub violations: u64,
    /// The first of them.
    pub violation_texts: Vec<String>,
    /// Calls that ended with an error, in spite of the client's retries.
    pub failed_requests: u64,
    /// The first of them.
    pub failure_texts: Vec<String>,
}

impl Traffic {
    /// Starts it.
    pub fn start(env: &Env, table: Table, spec: TrafficSpec) -> Traffic {
        let tasks = env.tasks.child();
        let pause = spec.pause;
        let shared = Arc::new(Shared {
            env: env.clone(),
            table,
            spec,
            ledgers: Mutex::default(),
            reads: AtomicU64::new(0),
            scans: AtomicU64::new(0),
            violations: Mutex::default(),
            violation_count: AtomicU64::new(0),
            failures: Mutex::default(),
            failure_count: AtomicU64::new(0),
            pause_micros: AtomicU64::new(pause.as_micros() as u64),
        });
        for writer in 0..shared.spec.writers {
            shared.ledgers.lock().insert(writer, WriterLedger::default());
            tasks.spawn_to_end("load writer", write(shared.clone(), tasks.clone(), writer));
        }
        for reader in 0..shared.spec.readers {
            tasks.spawn("load reader", read(shared.clone(), reader));
        }
        if shared.spec.scan {
            tasks.spawn("load scan", scan(shared.clone()));
        }
        Traffic { shared, tasks }
    }

    /// Sets the pause between calls from now on.
    pub fn set_pause(&self, pause: Duration) {
        self.shared.pause_micros.store(pause.as_micros() as u64, Ordering::Relaxed);
    }

    /// Lets the writers finish what is in flight, ends the rest, and tells what was seen.
    pub async fn stop(self) -> TrafficReport {
        // A panic in a task is reported by the group that owns it; here it is a violation.
        if let Err(panicked) = self.tasks.shutdown().await {
            self.shared.violation(panicked.to_string());
        }
        TrafficReport {
            ledger: self.shared.ledger(),
            reads: self.shared.reads.load(Ordering::Relaxed),
            scans: self.shared.scans.load(Ordering::Relaxed),
            violations: self.shared.violation_count.load(Ordering::Relaxed),
            violation_texts: self.shared.violations.lock().clone(),
            failed_requests: self.shared.failure_count.load(Ordering::Relaxed),
            failure_texts: self.shared.failures.lock().clone(),
        }
    }

    /// Rows acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.ledger().acknowledged()
    }
}

impl Shared {
    fn ledger(&self) -> Ledger {
        Ledger { writers: self.ledgers.lock().clone() }
    }

    fn violation(&self, text: String) {
        self.violation_count.fetch_add(1, Ordering::Relaxed);
        let mut violations = self.violations.lock();
        if violations.len() < TEXTS_SHOWN_MAX {
            violations.push(text);
        }
    }

    fn failure(&self, what: &str, error: &Error) {
        self.failure_count.fetch_add(1, Ordering::Relaxed);
        let mut failures = self.failures.lock();
        if failures.len() < TEXTS_SHOWN_MAX {
            failures.push(format!("{what}: {error}"));
        }
    }

    fn settle(&self, writer: u32, settled: u64, unknown: impl Iterator<Item = u64>) {
        let mut ledgers = self.ledgers.lock();
        let ledger = ledgers.get_mut(&writer).expect("inserted at the start");
        ledger.settled = settled;
        ledger.unknown.extend(unknown);
    }

    async fn pause(&self) {
        match self.pause_micros.load(Ordering::Relaxed) {
            0 => tokio::task::yield_now().await,
            micros => self.env.clock.sleep(Duration::from_micros(micros)).await,
        }
    }

    fn row(&self, id: WriteId) -> RowMutation {
        let value = Bytes::from(id.value(self.spec.value_bytes));
        RowMutation::new(self.spec.keyspace.key(id), vec![Mutation::set(self.spec.family, QUALIFIER, value)])
    }
}

/// Writes `0, 1, 2, ...`: a batch is repeated, row by row, until each row is acknowledged or nobody
/// can tell; an unknown row is never written again, so that its fate stays its own.
async fn write(shared: Arc<Shared>, tasks: Tasks, writer: u32) {
    let mut next = 0u64;
    while !tasks.is_cancelled() {
        let mut open: Vec<u64> = (next..next + shared.spec.batch_rows as u64).collect();
        next += shared.spec.batch_rows as u64;
        let mut unknown = Vec::new();
        while !open.is_empty() && !tasks.is_cancelled() {
            let rows = open.iter().map(|n| shared.row(WriteId { writer, n: *n })).collect();
            let results = shared.table.mutate_rows(rows).await;
            if let Some(Err(error)) = results.iter().find(|result| result.is_err()) {
                shared.failure("a write", error);
            }
            let mut again = Vec::new();
            for (n, result) in open.iter().zip(&results) {
                match result.as_ref().map_err(Error::outcome) {
                    Ok(()) => {}
                    Err(Outcome::Unknown) => unknown.push(*n),
                    Err(Outcome::NotDone) => again.push(*n),
                }
            }
            open = again;
            if !open.is_empty() {
                shared.env.clock.sleep(ERROR_DELAY).await;
            }
        }
        // Rows still open at the end were never acknowledged.
        shared.settle(writer, next, unknown.into_iter().chain(open));
        shared.pause().await;
    }
}

/// Reads acknowledged rows, chosen at random, and compares them.
async fn read(shared: Arc<Shared>, reader: u32) {
    let writers = u64::from(shared.spec.writers.max(1));
    let mut turn = u64::from(reader);
    loop {
        turn += 1;
        let writer = (turn % writers) as u32;
        let settled = shared.ledgers.lock().get(&writer).map_or(0, |ledger| ledger.settled);
        if settled == 0 {
            shared.env.clock.sleep(ERROR_DELAY).await;
            continue;
        }
        let id = WriteId { writer, n: shared.env.random.range(0..settled) };
        let acknowledged = shared.ledger_has(id);
        let key = shared.spec.keyspace.key(id);
        match shared.table.read_row(&key, &ReadOptions::default()).await {
            Ok(row) => {
                shared.reads.fetch_add(1, Ordering::Relaxed);
                let value = row.as_ref().and_then(|row| row.value(shared.spec.family, QUALIFIER));
                match value.map(|value| &value[..]) {
                    Some(value) if value == id.value(shared.spec.value_bytes) => {}
                    Some(_) => shared.violation(format!("{} has another value", key.escape_ascii())),
                    None if acknowledged => shared.violation(format!("{} is gone", key.escape_ascii())),
                    None => {}
                }
            }
            Err(error) => {
                tracing::debug!(%error, "a reader waits");
                shared.failure("a read", &error);
                shared.env.clock.sleep(ERROR_DELAY).await;
            }
        }
        shared.pause().await;
    }
}

impl Shared {
    fn ledger_has(&self, id: WriteId) -> bool {
        let ledgers = self.ledgers.lock();
        ledgers.get(&id.writer).is_some_and(|ledger| id.n < ledger.settled && !ledger.unknown.contains(&id.n))
    }
}

/// Scans the whole table over and over: rows ascend, and every row acknowledged before the scan
/// began is there.
async fn scan(shared: Arc<Shared>) {
    loop {
        let before = shared.ledger();
        let mut rows = shared.table.scan(RowRange::ALL, ScanOptions::default());
        let mut audit = super::ledger::Audit::new(&before, shared.spec.value_bytes);
        let (mut last, mut rows_seen) = (Bytes::new(), 0u64);
        let mut whole = true;
        while let Some(row) = rows.next().await {
            let row = match row {
                Ok(row) => row,
                Err(error) => {
                    tracing::debug!(%error, "the long scan breaks off");
                    shared.failure("the long scan", &error);
                    whole = false;
                    break;
                }
            };
            if *row.key() <= last {
                shared.violation(format!("scan: {} after {}", row.key().escape_ascii(), last.escape_ascii()));
            }
            last = row.key().clone();
            rows_seen += 1;
            if rows_seen % SCAN_ROWS_BETWEEN_PAUSES == 0 {
                // A long scan, not a benchmark: it must not take the machine from what is measured.
                shared.pause().await;
            }
            if let Some(value) = row.value(shared.spec.family, QUALIFIER) {
                audit.see(row.key(), value);
            }
        }
        if whole {
            shared.scans.fetch_add(1, Ordering::Relaxed);
            if let (1.., lost) = (audit.lost(), audit.missing()) {
                shared.violation(format!(
                    "a scan misses {} acknowledged rows, the first {:?}",
                    lost.len(),
                    lost.first()
                ));
            }
        } else {
            shared.env.clock.sleep(ERROR_DELAY).await;
        }
    }
}
