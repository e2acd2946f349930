//! Writers that build the lists, walkers that follow them, and a scan over and over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use uruk_base::{Env, Tasks};
use uruk_client::{Mutation, ReadOptions, Row, RowMutation, RowRange, ScanOptions, Table};

use super::audit::Attendance;
use super::{Ledger, Lists, NodeId, Progress, parse_key, row_key};

/// Which node the row is.
const NODE: &[u8] = b"node";
/// The row key that it points at.
const PREVIOUS: &[u8] = b"prev";
/// Weight.
const FILL: &[u8] = b"fill";
/// The pointer of a chain's beginning.
const NOWHERE: &[u8] = b"-";
/// Timestamps of the first writing and of the change that closes a ring: fixed, so that writing
/// again is the same writing.
const WRITTEN_AT: i64 = 1_000;
const CLOSED_AT: i64 = 2_000;
/// A call that failed is repeated after this.
const ERROR_DELAY: Duration = Duration::from_millis(20);
/// A walker follows this many pointers.
const WALK_STEPS_MAX: usize = 12;
/// The long scan rests after this many rows.
const SCAN_ROWS_BETWEEN_PAUSES: u64 = 1_000;
/// One ring in this many is followed by a silence: constant load hides bugs.
const RINGS_BETWEEN_SILENCES: u64 = 8;
const SILENCE: Duration = Duration::from_secs(2);
/// Violations kept with their texts; more are only counted.
const VIOLATIONS_SHOWN_MAX: usize = 50;

/// How much of it.
#[derive(Clone, Debug)]
pub struct ListSpec {
    /// Family that holds the lists.
    pub family: &'static str,
    /// The lists.
    pub lists: Lists,
    /// Concurrent writers.
    pub writers: u32,
    /// Concurrent walkers.
    pub walkers: u32,
    /// Bytes of weight in each node.
    pub fill_bytes: usize,
    /// Pause of everyone between calls.
    pub pause: Duration,
}

/// The running load.
pub struct ListTraffic {
    shared: Arc<Shared>,
    tasks: Tasks,
}

struct Shared {
    env: Env,
    table: Table,
    spec: ListSpec,
    ledger: Mutex<Ledger>,
    reads: AtomicU64,
    scans: AtomicU64,
    violation_count: AtomicU64,
    violations: Mutex<Vec<String>>,
}

/// What the load saw.
#[derive(Clone, Debug, Default)]
pub struct ListReport {
    /// What was acknowledged.
    pub ledger: Ledger,
    /// Nodes read and compared.
    pub reads: u64,
    /// Whole scans done and compared.
    pub scans: u64,
    /// Wrong answers to walkers and scans.
    pub violations: u64,
    /// The first of them.
    pub violation_texts: Vec<String>,
}

impl ListTraffic {
    /// Starts it.
    pub fn start(env: &Env, table: Table, spec: ListSpec) -> ListTraffic {
        let tasks = env.tasks.child();
        let ledger: Ledger = (0..spec.writers).map(|writer| (writer, Progress::default())).collect();
        let shared = Arc::new(Shared {
            env: env.clone(),
            table,
            spec,
            ledger: Mutex::new(ledger),
            reads: AtomicU64::new(0),
            scans: AtomicU64::new(0),
            violation_count: AtomicU64::new(0),
            violations: Mutex::default(),
        });
        for writer in 0..shared.spec.writers {
            tasks.spawn_to_end("list writer", write(shared.clone(), tasks.clone(), writer));
        }
        for _ in 0..shared.spec.walkers {
            tasks.spawn("list walker", walk(shared.clone()));
        }
        tasks.spawn("list scan", scan(shared.clone()));
        ListTraffic { shared, tasks }
    }

    /// What it saw so far.
    pub fn report(&self) -> ListReport {
        ListReport {
            ledger: self.shared.ledger.lock().clone(),
            reads: self.shared.reads.load(Ordering::Relaxed),
            scans: self.shared.scans.load(Ordering::Relaxed),
            violations: self.shared.violation_count.load(Ordering::Relaxed),
            violation_texts: self.shared.violations.lock().clone(),
        }
    }

    /// Lets the writers finish the call in flight, ends the rest, and tells what was seen.
    pub async fn stop(&self) -> ListReport {
        // A panic in a task is reported by the group that owns it; here it is a violation.
        if let Err(panicked) = self.tasks.shutdown().await {
            self.shared.violation(panicked.to_string());
        }
        self.report()
    }
}

/// Number of acknowledged nodes.
pub fn acknowledged(ledger: &Ledger) -> u64 {
    ledger.values().map(Progress::acknowledged).sum()
}

impl Shared {
    fn violation(&self, text: String) {
        tracing::error!(text, "wrong answer");
        self.violation_count.fetch_add(1, Ordering::Relaxed);
        let mut violations = self.violations.lock();
        if violations.len() < VIOLATIONS_SHOWN_MAX {
            violations.push(text);
        }
    }

    fn note(&self, writer: u32, change: impl FnOnce(&mut Progress)) {
        change(self.ledger.lock().get_mut(&writer).expect("inserted at the start"));
    }

    fn pointer(&self, id: Option<NodeId>) -> Bytes {
        id.map_or(Bytes::from_static(NOWHERE), |id| Bytes::from(row_key(self.spec.lists.key(id))))
    }

    fn node(&self, id: NodeId) -> RowMutation {
        let (family, lists) = (self.spec.family, &self.spec.lists);
        let set = |qualifier, value: Bytes| Mutation::set(family, qualifier, value).at(WRITTEN_AT);
        let key = row_key(lists.key(id));
        let fill: Vec<u8> = key.iter().copied().cycle().take(self.spec.fill_bytes).collect();
        let mutations =
            vec![set(NODE, id.text().into()), set(PREVIOUS, self.pointer(lists.previous(id))), set(FILL, fill.into())];
        RowMutation::new(key, mutations)
    }

    fn closing(&self, id: NodeId) -> RowMutation {
        let pointer = self.pointer(self.spec.lists.closing(id));
        let mutation = Mutation::set(self.spec.family, PREVIOUS, pointer).at(CLOSED_AT);
        RowMutation::new(row_key(self.spec.lists.key(id)), vec![mutation])
    }
}

/// Batch after batch until the end; at the end of a ring, closes it.
async fn write(shared: Arc<Shared>, tasks: Tasks, writer: u32) {
    let lists = shared.spec.lists;
    for batch in 0.. {
        let first = batch * lists.width;
        let numbers: Vec<u64> = (first..first + lists.width).collect();
        let (node, more) = (|id| shared.node(id), |progress: &mut Progress, n| progress.flushed_more.insert(n));
        if !write_all(&shared, &tasks, writer, numbers, node, more).await {
            return;
        }
        shared.note(writer, |progress| {
            progress.flushed = first + lists.width;
            progress.flushed_more.clear();
        });
        if (batch + 1) % lists.depth == 0 {
            let ring = batch / lists.depth;
            let numbers = lists.first_batch(ring).collect();
            let (closing, more) =
                (|id| shared.closing(id), |progress: &mut Progress, n| progress.closed_more.insert(n));
            if !write_all(&shared, &tasks, writer, numbers, closing, more).await {
                return;
            }
            shared.note(writer, |progress| {
                progress.closed = ring + 1;
                progress.closed_more.clear();
            });
            if (ring + u64::from(writer) + 1).is_multiple_of(RINGS_BETWEEN_SILENCES) {
                pause(&shared, &tasks, shared.env.random.jitter(SILENCE)).await;
            }
        }
        // Jittered, or writers that one outage held up go on in step for ever.
        pause(&shared, &tasks, shared.env.random.jitter(shared.spec.pause)).await;
    }
}

/// Writes the rows, and again those that failed (whatever became of them: it is the same writing),
/// until all are acknowledged, each noted as it comes; false if the end came first.
async fn write_all(
    shared: &Shared,
    tasks: &Tasks,
    writer: u32,
    mut open: Vec<u64>,
    row: impl Fn(NodeId) -> RowMutation,
    acknowledged: impl Fn(&mut Progress, u64) -> bool,
) -> bool {
    while !open.is_empty() {
        if tasks.is_cancelled() {
            return false;
        }
        let rows = open.iter().map(|n| row(NodeId { writer, n: *n })).collect();
        let results = shared.table.mutate_rows(rows).await;
        let mut again = Vec::new();
        shared.note(writer, |progress| {
            for (n, result) in open.iter().zip(&results) {
                match result {
                    Ok(()) => {
                        acknowledged(progress, *n);
                    }
                    Err(_) => again.push(*n),
                }
            }
        });
        open = again;
        if !open.is_empty() {
            pause(shared, tasks, ERROR_DELAY).await;
        }
    }
    true
}

/// Ends early when the load ends.
async fn pause(shared: &Shared, tasks: &Tasks, length: Duration) {
    tokio::select! {
        biased;
        () = tasks.cancelled() => {}
        () = shared.env.clock.sleep(length) => {}
    }
}

/// Starts at any acknowledged node and follows the pointers: each must lead to a node.
async fn walk(shared: Arc<Shared>) {
    loop {
        let Some(start) = any_acknowledged(&shared) else {
            shared.env.clock.sleep(ERROR_DELAY).await;
            continue;
        };
        let (mut key, mut from) = (shared.spec.lists.key(start), format!("node {}", start.text()));
        for _ in 0..WALK_STEPS_MAX {
            let ledger = shared.ledger.lock().clone();
            let row = match shared.table.read_row(row_key(key), &ReadOptions::default()).await {
                Ok(row) => row,
                Err(error) => {
                    tracing::debug!(%error, "a walker waits");
                    shared.env.clock.sleep(ERROR_DELAY).await;
                    break;
                }
            };
            shared.reads.fetch_add(1, Ordering::Relaxed);
            let Some(row) = row else {
                shared.violation(format!("walk: {key:032x} is gone, from {from}"));
                break;
            };
            let (id, previous) = cells(&row, shared.spec.family);
            let mut attendance = Attendance::new(shared.spec.lists, &ledger);
            attendance.see(key, id, previous);
            if !attendance.torn.is_empty() {
                shared.violation(format!("walk: {key:032x} is {id:?} and points at {previous:x?}, from {from}"));
                break;
            }
            shared.env.clock.sleep(shared.spec.pause).await;
            let Some(Some(next)) = previous else { break };
            (from, key) = (format!("{key:032x}"), next);
        }
    }
}

fn any_acknowledged(shared: &Shared) -> Option<NodeId> {
    let writer = shared.env.random.range(0..u64::from(shared.spec.writers)) as u32;
    let flushed = shared.ledger.lock().get(&writer)?.flushed;
    (flushed > 0).then(|| NodeId { writer, n: shared.env.random.range(0..flushed) })
}

/// Scans the whole table over and over: rows ascend, and every node acknowledged before the scan
/// began is there as it was written.
async fn scan(shared: Arc<Shared>) {
    loop {
        let before = shared.ledger.lock().clone();
        let mut attendance = Attendance::new(shared.spec.lists, &before);
        let mut rows = shared.table.scan(RowRange::ALL, ScanOptions::default());
        let (mut last, mut rows_seen) = (Bytes::new(), 0u64);
        let mut is_whole = true;
        while let Some(row) = rows.next().await {
            let row = match row {
                Ok(row) => row,
                Err(error) => {
                    tracing::debug!(%error, "the long scan breaks off");
                    is_whole = false;
                    break;
                }
            };
            if *row.key() <= last {
                shared.violation(format!("scan: {} after {}", row.key().escape_ascii(), last.escape_ascii()));
            }
            last = row.key().clone();
            if let Some((key, id, previous)) = node_of(&row, shared.spec.family) {
                attendance.see(key, id, previous);
            }
            rows_seen += 1;
            if rows_seen % SCAN_ROWS_BETWEEN_PAUSES == 0 {
                shared.env.clock.sleep(shared.spec.pause).await;
            }
        }
        if !is_whole {
            shared.env.clock.sleep(ERROR_DELAY).await;
            continue;
        }
        shared.scans.fetch_add(1, Ordering::Relaxed);
        let lost = attendance.lost();
        if let Some(first) = lost.first() {
            let key = shared.spec.lists.key(*first);
            shared.violation(format!(
                "scan: misses {} acknowledged nodes, the first {} at {key:032x}",
                lost.len(),
                first.text()
            ));
        }
        for key in &attendance.torn {
            shared.violation(format!("scan: {key:032x} is not as it was written"));
        }
        shared.env.clock.sleep(shared.spec.pause).await;
    }
}

/// The key, name and pointer of a row that is a node.
pub fn node_of(row: &Row, family: &str) -> Option<(u128, Option<NodeId>, Option<Option<u128>>)> {
    let key = parse_key(row.key())?;
    let (id, previous) = cells(row, family);
    Some((key, id, previous))
}

fn cells(row: &Row, family: &str) -> (Option<NodeId>, Option<Option<u128>>) {
    let id = row.value(family, NODE).and_then(|cell| NodeId::parse(cell));
    let previous = row.value(family, PREVIOUS).map(|cell| parse_key(cell));
    (id, previous)
}

/// By writer, in words.
pub fn describe(ledger: &Ledger) -> BTreeMap<u32, String> {
    let text = |progress: &Progress| {
        format!(
            "flushed {} and {:?}, rings closed {} and {:?}",
            progress.flushed, progress.flushed_more, progress.closed, progress.closed_more
        )
    };
    ledger.iter().map(|(writer, progress)| (*writer, text(progress))).collect()
}
