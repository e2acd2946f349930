//! The loops that are measured. Their names and meanings are those of RocksDB's `db_bench`.
//!
//! | workload | an operation is |
//! |---|---|
//! | fillseq, fillrandom, overwrite | a write of one cell; ascending keys, or keys at random with repeats |
//! | fillsync | the same at random, durable before the next |
//! | readrandom, readmissing | a read of one row that is (perhaps), or never is there |
//! | readseq | a row of one scan of everything |
//! | seekrandom | a scan of `seek_rows` rows from a random key |
//! | mixed | nine reads to one write, at random |
//! | compact | everything flushed and merged into one file |

use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use hdrhistogram::Histogram;
use serde::Serialize;
use uruk_base::clock::Moment;
use uruk_proto::RowRange;

use super::data::{Choices, Values, key, missing_key};
use super::tablet::BenchTablet;
use super::{BenchError, BenchOptions, Measurement};
use crate::engine::{EngineError, Filter, ScanRequest, ScanTargets};

/// One operation of this many is timed.
const OPERATIONS_PER_SAMPLE: u64 = 8;
/// Latencies are recorded from 1 ns to 10 minutes, three digits.
const LATENCY_NS_MAX: u64 = 600_000_000_000;
/// Of ten operations of `mixed`, reads.
const MIXED_READS_OF_10: u64 = 9;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// Writes, keys ascending.
    Fillseq,
    /// Writes, keys at random.
    Fillrandom,
    /// Synced writes, keys at random.
    Fillsync,
    /// Writes, keys at random, over what is there.
    Overwrite,
    /// Point reads, keys at random.
    Readrandom,
    /// Point reads of absent keys.
    Readmissing,
    /// One scan of everything.
    Readseq,
    /// Short scans from random keys.
    Seekrandom,
    /// Nine point reads to one write.
    Mixed,
    /// A flush and a major compaction.
    Compact,
}

impl Workload {
    /// All, in an order that makes sense.
    pub const ALL: [Workload; 10] = [
        Workload::Fillseq,
        Workload::Fillrandom,
        Workload::Fillsync,
        Workload::Compact,
        Workload::Readrandom,
        Workload::Readmissing,
        Workload::Readseq,
        Workload::Seekrandom,
        Workload::Mixed,
        Workload::Overwrite,
    ];

    /// As it is written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Workload::Fillseq => "fillseq",
            Workload::Fillrandom => "fillrandom",
            Workload::Fillsync => "fillsync",
            Workload::Overwrite => "overwrite",
            Workload::Readrandom => "readrandom",
            Workload::Readmissing => "readmissing",
            Workload::Readseq => "readseq",
            Workload::Seekrandom => "seekrandom",
            Workload::Mixed => "mixed",
            Workload::Compact => "compact",
        }
    }

    /// The workload of this name.
    pub fn parse(name: &str) -> Option<Workload> {
        Workload::ALL.into_iter().find(|workload| workload.name() == name)
    }

    /// Whether it can start on an empty tablet.
    pub fn fills(self) -> bool {
        matches!(self, Workload::Fillseq | Workload::Fillrandom | Workload::Fillsync)
    }

    /// Whether it writes.
    fn writes(self) -> bool {
        self.fills() || matches!(self, Workload::Overwrite | Workload::Mixed)
    }

    fn operations(self, options: &BenchOptions) -> u64 {
        match self {
            Workload::Fillsync => options.sync_operations,
            Workload::Fillrandom | Workload::Overwrite if options.sync => options.sync_operations,
            // As long as the others: each reads a hundred rows.
            Workload::Seekrandom => (options.keys / 10).max(1),
            Workload::Readseq | Workload::Compact => 1,
            Workload::Fillseq
            | Workload::Fillrandom
            | Workload::Overwrite
            | Workload::Readrandom
            | Workload::Readmissing
            | Workload::Mixed => options.keys,
        }
    }
}

/// What one thread did.
struct Done {
    operations: u64,
    found: u64,
    latencies: Histogram<u64>,
}

impl Done {
    fn new() -> Done {
        let latencies = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("the bounds are valid");
        Done { operations: 0, found: 0, latencies }
    }

    fn add(&mut self, other: Done) {
        self.operations += other.operations;
        self.found += other.found;
        self.latencies.add(other.latencies).expect("equal bounds");
    }
}

/// Runs a workload on all threads.
pub async fn run(
    tablet: &Arc<BenchTablet>,
    workload: Workload,
    options: &BenchOptions,
) -> Result<Measurement, BenchError> {
    let env = tablet.env();
    let (log_bytes, log_records) = tablet.log.written();
    let started = env.clock.now();
    let threads = if matches!(workload, Workload::Readseq | Workload::Compact) { 1 } else { options.threads.max(1) };
    let mut done = Done::new();
    if workload == Workload::Compact {
        tablet.compact_all().await?;
        (done.operations, done.found) = (1, 1);
    } else {
        let runtime = tokio::runtime::Handle::current();
        let workers = (0..threads).map(|number| {
            let (tablet, options, runtime) = (tablet.clone(), options.clone(), runtime.clone());
            let worker = Worker { tablet, workload, threads: threads as u64, number: number as u64, options };
            env.tasks.blocking(move || runtime.block_on(worker.run()))
        });
        for result in join_all(workers).await {
            done.add(result?);
        }
    }
    let seconds = env.clock.since(started).as_secs_f64();
    if done.found == 0 && workload != Workload::Readmissing {
        return Err(BenchError::FoundNothing(workload));
    }
    let (log_bytes_after, log_records_after) = tablet.log.written();
    let groups = tablet.store.files();
    let files = || groups.iter().flat_map(|group| &group.files);
    let stored: u64 = files().map(|file| file.bytes).sum();
    let cells: u64 = files().map(|file| file.cells).sum();
    let (hits, misses) = (tablet.context.cache().hits(), tablet.context.cache().misses());
    let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    let us = |quantile: f64| done.latencies.value_at_quantile(quantile) as f64 / 1000.0;
    Ok(Measurement {
        workload,
        operations: done.operations,
        found: done.found,
        seconds,
        ops_per_s: done.operations as f64 / seconds,
        p50_us: us(0.5),
        p99_us: us(0.99),
        p999_us: us(0.999),
        threads,
        sync: workload.writes() && (options.sync || workload == Workload::Fillsync),
        value_bytes: options.value_bytes,
        stored_bytes_per_cell: share(stored, cells),
        log_bytes_per_write: share(log_bytes_after - log_bytes, log_records_after - log_records),
        write_amplification: share(tablet.written_bytes(), stored),
        files: files().count(),
        cache_hit_ratio: share(hits, hits + misses),
    })
}

/// One thread of a workload.
struct Worker {
    tablet: Arc<BenchTablet>,
    workload: Workload,
    threads: u64,
    number: u64,
    options: BenchOptions,
}

impl Worker {
    async fn run(self) -> Result<Done, BenchError> {
        let mut done = Done::new();
        let mut choices = Choices::new(self.workload as u64 * 1000 + self.number + 1);
        let mut values = Values::new(self.options.value_bytes, self.number + 1);
        if self.workload == Workload::Readseq {
            self.scan_all(&mut done).await?;
            return Ok(done);
        }
        let sync = self.options.sync || self.workload == Workload::Fillsync;
        let clock = self.tablet.env().clock.clone();
        let share = self.workload.operations(&self.options).div_ceil(self.threads);
        for i in 0..share {
            let started = i.is_multiple_of(OPERATIONS_PER_SAMPLE).then(|| clock.now());
            let n = match self.workload {
                Workload::Fillseq => i * self.threads + self.number,
                _ => choices.below(self.options.keys),
            };
            let found = match self.workload {
                Workload::Fillseq | Workload::Fillrandom | Workload::Fillsync | Workload::Overwrite => {
                    self.write(n, i, &mut values, sync)?
                }
                Workload::Mixed if choices.below(10) >= MIXED_READS_OF_10 => self.write(n, i, &mut values, sync)?,
                Workload::Mixed | Workload::Readrandom => self.read(&key(n)).await?,
                Workload::Readmissing => self.read(&missing_key(n)).await?,
                Workload::Seekrandom => self.seek(n).await?,
                Workload::Readseq | Workload::Compact => unreachable!("they have no loop"),
            };
            done.found += u64::from(found);
            if let Some(started) = started {
                record(&mut done.latencies, started, clock.now());
            }
        }
        done.operations = share;
        Ok(done)
    }

    fn write(&self, n: u64, i: u64, values: &mut Values, sync: bool) -> Result<bool, BenchError> {
        // Ascending times, as a server would give them.
        let timestamp = (i * self.threads + self.number) as i64 * 1000;
        self.tablet.write(&key(n), timestamp, values.value(), sync)?;
        Ok(true)
    }

    async fn read(&self, row: &[u8]) -> Result<bool, EngineError> {
        let targets = ScanTargets::Rows(vec![Bytes::copy_from_slice(row)]);
        Ok(self.rows(targets, 0).await? > 0)
    }

    async fn seek(&self, n: u64) -> Result<bool, EngineError> {
        let range = RowRange::new(Bytes::copy_from_slice(&key(n)), Bytes::new());
        self.rows(ScanTargets::Ranges(vec![range]), self.options.seek_rows + 1).await?;
        Ok(true)
    }

    async fn rows(&self, targets: ScanTargets, rows_limit: u64) -> Result<usize, EngineError> {
        let request = ScanRequest { targets, filter: Filter::all(), rows_limit, reverse: false, fill_cache: true };
        let mut scanner = self.tablet.store.snapshot().scan(request)?;
        let mut rows = 0;
        while let Some(batch) = scanner.next_batch().await? {
            rows += batch.rows;
        }
        Ok(rows)
    }

    async fn scan_all(&self, done: &mut Done) -> Result<(), EngineError> {
        let clock = &self.tablet.env().clock;
        let request = ScanRequest {
            targets: ScanTargets::Ranges(vec![RowRange::ALL]),
            filter: Filter::all(),
            rows_limit: 0,
            reverse: false,
            fill_cache: true,
        };
        let mut scanner = self.tablet.store.snapshot().scan(request)?;
        let mut before = clock.now();
        while let Some(batch) = scanner.next_batch().await? {
            done.operations += batch.rows as u64;
            // A row's share of its batch.
            let now = clock.now();
            let took = now.saturating_since(before).as_nanos() as u64;
            done.latencies.saturating_record((took / (batch.rows as u64).max(1)).max(1));
            before = now;
        }
        done.found = done.operations;
        Ok(())
    }
}

fn record(latencies: &mut Histogram<u64>, started: Moment, ended: Moment) {
    latencies.saturating_record((ended.saturating_since(started).as_nanos() as u64).max(1));
}
