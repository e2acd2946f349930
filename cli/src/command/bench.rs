//! `uruk bench`: throughput and latency through the client library.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use futures::StreamExt;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;
use uruk_base::Env;
use uruk_client::{Client, FamilySpec, Filter, Mutation, ReadOptions, RowMutation, RowRange, ScanOptions, Table};

use crate::cluster::{ClusterSpec, LocalCluster};
use crate::command::connect::Connect;
use crate::command::dev::data_folder;
use crate::load::keyspace::hashed_splits;
use crate::load::record::WriteId;
use crate::output::{human_count, print_table};
use crate::process::Durability;

mod engine;

const FAMILY: &str = "f";
const QUALIFIER: &[u8] = b"v";
/// Latencies are recorded from 1 µs to 10 minutes, three digits.
const LATENCY_US_MAX: u64 = 600_000_000;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Single-row writes, keys ascending
    SequentialWrite,
    /// Single-row writes, keys at random
    RandomWrite,
    /// Batches of rows, keys at random
    BatchWrite,
    /// Single-row reads, keys ascending
    SequentialRead,
    /// Single-row reads, keys at random
    RandomRead,
    /// A scan of the whole table
    Scan,
}

/// What can be measured by itself.
#[derive(Subcommand, Debug)]
enum Part {
    Engine(engine::Engine),
}

/// Measure throughput and latency.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Bench {
    #[command(subcommand)]
    part: Option<Part>,
    /// What to run, in this order; reads and scans read what the writes before them wrote
    #[arg(long, value_enum, value_delimiter = ',',
          default_values = ["batch-write", "sequential-write", "random-write", "sequential-read", "random-read", "scan"])]
    workload: Vec<Workload>,
    /// Rows in the table
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    rows: u64,
    /// Operations of single-row workloads [default: as many as rows, at most 100,000]
    #[arg(long)]
    operations: Option<u64>,
    /// Size of each value in bytes
    #[arg(long, default_value_t = 1000)]
    value_bytes: usize,
    /// Calls in flight
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    in_flight: u16,
    /// Client objects, each with connections of its own, that share the calls in flight
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    clients: u16,
    /// Rows per batch
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch_rows: u32,
    /// Tablets of the table
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=4096))]
    tablets: u16,
    /// What an acknowledged write has survived (of the cluster that the bench starts)
    #[arg(long, value_enum, default_value_t)]
    durability: Durability,
    /// Scans: tablets read at the same time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    scan_parallel: u16,
    /// Use a running cluster; say its durability with --durability, it is only reported
    #[command(flatten)]
    connect: Connect,
    /// Use the cluster at --master instead of starting one
    #[arg(long)]
    running: bool,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Measurement {
    workload: Workload,
    rows_per_s: f64,
    mb_per_s: f64,
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
    durability: Durability,
    replicas: u32,
    value_bytes: usize,
    in_flight: u16,
    clients: u16,
    batch_rows: u32,
    tablets: u16,
    rows: u64,
    seconds: f64,
}

/// Runs the workloads and prints what was measured.
pub async fn run(mut options: Bench) -> Result<ExitCode> {
    if let Some(Part::Engine(engine)) = options.part.take() {
        return engine::run(engine).await.map(|()| ExitCode::SUCCESS);
    }
    let env = Env::real();
    let (dir, _temporary) = data_folder(None)?;
    let (masters, mut cluster) = match options.running {
        true => (options.connect.masters()?, None),
        false => {
            let spec = ClusterSpec {
                dir,
                masters: 1,
                controllers: 1,
                tablet_servers: 3,
                chunk_servers: 3,
                port_base: 0,
                durability: options.durability,
                tabletserver_flags: vec![],
                master_flags: vec![],
                restart: false,
            };
            let cluster = LocalCluster::start(&env, spec).await?;
            (cluster.masters(), Some(cluster))
        }
    };
    let outcome = measure_all(&env, &masters, options).await;
    if let Some(cluster) = &mut cluster {
        cluster.stop().await;
    }
    outcome?;
    Ok(ExitCode::SUCCESS)
}

async fn measure_all(env: &Env, masters: &[String], options: Bench) -> Result<()> {
    let name = format!("bench_{:08x}", env.random.u64() as u32);
    let admin = Client::connect(env, masters)?;
    let splits: Vec<Bytes> = hashed_splits(usize::from(options.tablets)).into_iter().map(Bytes::from).collect();
    admin.create_table(&name, &[FamilySpec::new(FAMILY)], &splits).await.context("cannot create the bench's table")?;
    let mut tables = Vec::new();
    for _ in 0..options.clients {
        tables.push(Client::connect(env, masters)?.table(&name).await?);
    }
    let bench = Arc::new(Run { env: env.clone(), tables, options });
    let mut measurements = Vec::new();
    let mut filled = false;
    for workload in bench.options.workload.clone() {
        if !filled && matches!(workload, Workload::SequentialRead | Workload::RandomRead | Workload::Scan) {
            bench.clone().batch_write().await.context("filling the table")?;
        }
        filled = true;
        let measurement = bench.clone().measure(workload).await.with_context(|| format!("workload {workload:?}"))?;
        if bench.options.json {
            println!("{}", serde_json::to_string(&measurement).expect("plain data becomes JSON"));
        }
        measurements.push(measurement);
    }
    if !bench.options.json {
        print_measurements(&bench.options, &measurements);
    }
    admin.delete_table(&name).await.context("cannot delete the bench's table")
}

fn print_measurements(options: &Bench, measurements: &[Measurement]) {
    println!(
        "{} replicas, durability {}, {}-byte values, {} calls in flight over {} clients, {} rows, {} tablets, batches of {} rows",
        3,
        options.durability,
        options.value_bytes,
        options.in_flight,
        options.clients,
        options.rows,
        options.tablets,
        options.batch_rows
    );
    let rows = measurements.iter().map(|m| {
        let name = m.workload.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default();
        let ms = |us: u64| format!("{:.2}", us as f64 / 1000.0);
        let rate = human_count(m.rows_per_s as u64);
        vec![name, rate, format!("{:.1}", m.mb_per_s), ms(m.p50_us), ms(m.p99_us), ms(m.p999_us)]
    });
    print_table(&["WORKLOAD", "ROWS/S", "MB/S", "P50 MS", "P99 MS", "P99.9 MS"], rows);
}

/// One run of the bench: its table through each client.
struct Run {
    env: Env,
    tables: Vec<Table>,
    options: Bench,
}

/// What a workload did.
struct Done {
    rows: u64,
    bytes: u64,
    latencies: Histogram<u64>,
}

impl Run {
    fn table(&self, place: usize) -> &Table {
        &self.tables[place % self.tables.len()]
    }

    /// Key `n`: in ascending order of `n` over the whole key space, so that "sequential" means it.
    fn key(&self, n: u64) -> Vec<u8> {
        let place = u128::from(n) * 0x1_0000_0000 / u128::from(self.options.rows);
        format!("{place:08x}{}", WriteId { writer: 0, n }.suffix()).into_bytes()
    }

    fn row(&self, n: u64) -> RowMutation {
        let value = Bytes::from(WriteId { writer: 0, n }.value(self.options.value_bytes));
        RowMutation::new(self.key(n), vec![Mutation::set(FAMILY, QUALIFIER, value)])
    }

    fn operations(&self) -> u64 {
        self.options.operations.unwrap_or(self.options.rows.min(100_000))
    }

    async fn measure(self: Arc<Self>, workload: Workload) -> Result<Measurement> {
        let started = self.env.clock.now();
        let done = match workload {
            Workload::BatchWrite => self.clone().batch_write().await?,
            Workload::SequentialWrite | Workload::RandomWrite => self.clone().single_writes(workload).await?,
            Workload::SequentialRead | Workload::RandomRead => self.clone().single_reads(workload).await?,
            Workload::Scan => self.scan().await?,
        };
        let seconds = self.env.clock.since(started).as_secs_f64();
        let options = &self.options;
        Ok(Measurement {
            workload,
            rows_per_s: done.rows as f64 / seconds,
            mb_per_s: done.bytes as f64 / seconds / 1e6,
            p50_us: done.latencies.value_at_quantile(0.5),
            p99_us: done.latencies.value_at_quantile(0.99),
            p999_us: done.latencies.value_at_quantile(0.999),
            durability: options.durability,
            replicas: 3,
            value_bytes: options.value_bytes,
            in_flight: options.in_flight,
            clients: options.clients,
            batch_rows: if workload == Workload::BatchWrite { options.batch_rows } else { 1 },
            tablets: options.tablets,
            rows: done.rows,
            seconds,
        })
    }

    /// All rows once, in an order that looks random, in batches.
    async fn batch_write(self: Arc<Self>) -> Result<Done> {
        let (rows, batch) = (self.options.rows, u64::from(self.options.batch_rows));
        let step = coprime_step(rows);
        let row_bytes = self.options.value_bytes as u64;
        let run = self.clone();
        self.in_flight(rows.div_ceil(batch), move |place, call| {
            let run = run.clone();
            async move {
                let ns = (call * batch..rows.min((call + 1) * batch)).map(|n| scatter(n, step, rows));
                let batch: Vec<RowMutation> = ns.map(|n| run.row(n)).collect();
                let count = batch.len() as u64;
                for result in run.table(place).mutate_rows(batch).await {
                    result?;
                }
                Ok((count, count * row_bytes))
            }
        })
        .await
    }

    async fn single_writes(self: Arc<Self>, workload: Workload) -> Result<Done> {
        let run = self.clone();
        let (rows, bytes) = (self.options.rows, self.options.value_bytes as u64);
        self.in_flight(self.operations(), move |place, call| {
            let run = run.clone();
            async move {
                let n = if workload == Workload::RandomWrite { run.env.random.range(0..rows) } else { call % rows };
                let RowMutation { key, mutations } = run.row(n);
                run.table(place).mutate_row(key, mutations).await?;
                Ok((1, bytes))
            }
        })
        .await
    }

    async fn single_reads(self: Arc<Self>, workload: Workload) -> Result<Done> {
        let run = self.clone();
        let rows = self.options.rows;
        let read_options = ReadOptions::filter(Filter::all().cells_per_column(1));
        self.in_flight(self.operations(), move |place, call| {
            let (run, read_options) = (run.clone(), read_options.clone());
            async move {
                let n = if workload == Workload::RandomRead { run.env.random.range(0..rows) } else { call % rows };
                let row = run.table(place).read_row(&run.key(n), &read_options).await?;
                let Some(row) = row else { bail!("row {n} is missing") };
                Ok((1, row.cells().map(|cell| cell.value.len() as u64).sum()))
            }
        })
        .await
    }

    async fn scan(&self) -> Result<Done> {
        let mut done = Done { rows: 0, bytes: 0, latencies: new_histogram() };
        let options = ScanOptions {
            filter: Filter::all().cells_per_column(1),
            parallel: usize::from(self.options.scan_parallel),
            ..ScanOptions::default()
        };
        let mut rows = self.table(0).scan(RowRange::ALL, options);
        let mut before = self.env.clock.now();
        while let Some(row) = rows.next().await {
            let row = row?;
            done.rows += 1;
            done.bytes += row.cells().map(|cell| cell.value.len() as u64).sum::<u64>();
            if done.rows.is_multiple_of(1000) {
                // A scan's latency is the time between rows, taken over a thousand.
                let now = self.env.clock.now();
                done.latencies.saturating_record((now.saturating_since(before).as_micros() as u64 / 1000).max(1));
                before = now;
            }
        }
        if done.rows < self.options.rows {
            bail!("the scan found {} of {} rows", done.rows, self.options.rows);
        }
        Ok(done)
    }

    /// Makes `calls` calls, `in_flight` at a time. `call(client, n)` returns rows and bytes.
    async fn in_flight<F, R>(&self, calls: u64, call: F) -> Result<Done>
    where
        F: Fn(usize, u64) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(u64, u64)>> + Send + 'static,
    {
        let call = Arc::new(call);
        let next = Arc::new(AtomicU64::new(0));
        let total = Arc::new(Mutex::new(Done { rows: 0, bytes: 0, latencies: new_histogram() }));
        let failure: Arc<Mutex<Option<anyhow::Error>>> = Arc::default();
        let tasks = self.env.tasks.child();
        let (sender, mut ended) = tokio::sync::mpsc::channel::<()>(1);
        for place in 0..usize::from(self.options.in_flight) {
            let (call, next, total, failure) = (call.clone(), next.clone(), total.clone(), failure.clone());
            let (clock, sender) = (self.env.clock.clone(), sender.clone());
            tasks.spawn("bench caller", async move {
                let mut mine = Done { rows: 0, bytes: 0, latencies: new_histogram() };
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= calls {
                        break;
                    }
                    let started = clock.now();
                    match call(place, n).await {
                        Ok((rows, bytes)) => {
                            mine.rows += rows;
                            mine.bytes += bytes;
                        }
                        Err(error) => {
                            failure.lock().get_or_insert(error);
                            next.store(calls, Ordering::Relaxed);
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
        let done = Arc::into_inner(total).context("a caller still runs")?.into_inner();
        Ok(done)
    }
}

fn new_histogram() -> Histogram<u64> {
    let mut histogram = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("the bounds are valid");
    histogram.auto(false);
    histogram
}

/// A step that visits all of `0..rows` once: odd multiples are coprime to most sizes; take the next that is.
fn coprime_step(rows: u64) -> u64 {
    let mut step = (rows as f64 * 0.618_033_988_749) as u64 | 1;
    while gcd(step, rows) != 1 {
        step += 2;
    }
    step
}

fn scatter(n: u64, step: u64, rows: u64) -> u64 {
    (u128::from(n) * u128::from(step) % u128::from(rows)) as u64
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattering_visits_every_row_once() {
        for rows in [1, 2, 7, 100, 1000, 1024] {
            let step = coprime_step(rows);
            let mut seen: Vec<u64> = (0..rows).map(|n| scatter(n, step, rows)).collect();
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..rows), "{rows}");
        }
    }
}
