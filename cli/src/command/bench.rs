//! `uruk bench`: throughput and latency through the client library, on a cluster of its own, beside a server
//! that answers the same calls without doing anything.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use uruk_base::Env;
use uruk_client::{Client, ClientConfig, FamilySpec};

use self::echo::{EchoServer, Shape};
use self::workload::Run;
use crate::cluster::{ClusterSpec, LocalCluster};
use crate::command::connect::Connect;
use crate::command::dev::data_folder;
use crate::load::in_flight::Done;
use crate::load::keyspace::hashed_splits;
use crate::output::{human_count, print_table};
use crate::process::Durability;

mod echo;
mod engine;
mod master;
mod tablets;
mod usage;
mod workload;

const FAMILY: &str = "f";
const QUALIFIER: &[u8] = b"v";
/// Of a cluster with three chunk servers.
const REPLICAS: u32 = 3;

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
    Tablets(tablets::Tablets),
    Master(master::MasterAlone),
    Echo(echo::Echo),
    #[command(hide = true)]
    EchoServer(echo::Serve),
}

/// Measure throughput and latency
///
/// Starts a cluster of its own (1 master, 1 controller, 3 tablet servers, 3 chunk servers; three replicas) for
/// each durability, in a temporary folder. After each workload an echo server that does nothing answers calls of
/// the same sizes, so that a figure can be read as a share of what the RPC layer can do on this machine just then.
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
    /// What an acknowledged write has survived; several are measured one after the other, each on a cluster of
    /// its own
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Durability::Fsync])]
    durability: Vec<Durability>,
    /// Memory for memtables of each tablet server of the cluster that the bench starts, in MiB
    #[arg(long)]
    memtable_mib: Option<u64>,
    /// Connections of each client to each tablet server [default: the client library's]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: Option<u16>,
    /// A flag for each tablet server of the cluster that the bench starts; may be given several times
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    tabletserver_flag: Vec<String>,
    /// Measure no echo beside the workloads
    #[arg(long)]
    no_echo: bool,
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
    /// Processor time of this process.
    client_cpu_us_per_row: f64,
    /// Processor time of all processes of the cluster that the bench started.
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_cpu_us_per_row: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    echo_rows_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    echo_ratio: Option<f64>,
}

/// Runs the workloads and prints what was measured.
pub async fn run(mut options: Bench) -> Result<ExitCode> {
    let env = Env::real();
    match options.part.take() {
        Some(Part::Engine(engine)) => engine::run(engine).await?,
        Some(Part::Tablets(tablets)) => tablets::run(&env, tablets).await?,
        Some(Part::Master(alone)) => master::run(&env, alone).await?,
        Some(Part::Echo(echo)) => echo::run(&env, echo).await?,
        Some(Part::EchoServer(serve)) => return echo::serve(&env, serve).await,
        None => {
            let options = Arc::new(options);
            for durability in &options.durability {
                measure_on(&env, *durability, &options).await?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure_on(env: &Env, durability: Durability, options: &Arc<Bench>) -> Result<()> {
    let (dir, _temporary) = data_folder(None)?;
    let (masters, mut cluster) = match options.running {
        true => (options.connect.masters()?, None),
        false => {
            let memtable = options.memtable_mib.map(|mib| format!("--memtable-mib={mib}"));
            let spec = ClusterSpec {
                dir,
                masters: 1,
                controllers: 1,
                tablet_servers: 3,
                chunk_servers: 3,
                port_base: 0,
                durability,
                tabletserver_flags: memtable.into_iter().chain(options.tabletserver_flag.iter().cloned()).collect(),
                master_flags: vec![],
                restart: false,
            };
            let cluster = LocalCluster::start(env, spec).await?;
            (cluster.masters(), Some(cluster))
        }
    };
    let groups: Vec<u32> = cluster.iter().flat_map(LocalCluster::processes).map(|process| process.pid).collect();
    let outcome = measure_all(env, &masters, &groups, durability, options).await;
    if let Some(cluster) = &mut cluster {
        cluster.stop().await;
    }
    outcome
}

async fn measure_all(
    env: &Env,
    masters: &[String],
    groups: &[u32],
    durability: Durability,
    options: &Arc<Bench>,
) -> Result<()> {
    let name = format!("bench_{:08x}", env.random.u64() as u32);
    let admin = Client::connect(env, masters)?;
    let splits: Vec<Bytes> = hashed_splits(usize::from(options.tablets)).into_iter().map(Bytes::from).collect();
    admin.create_table(&name, &[FamilySpec::new(FAMILY)], &splits).await.context("cannot create the bench's table")?;
    let mut tables = Vec::new();
    for _ in 0..options.clients {
        let mut config = ClientConfig::default();
        config.channels_per_server = options.connections.map_or(config.channels_per_server, usize::from);
        let client = Client::builder().masters(masters).config(config).connect(env)?;
        tables.push(client.table(&name).await?);
    }
    let echo =
        if options.no_echo { None } else { Some(EchoServer::start(env, options.connections.map(usize::from)).await?) };
    let bench = Arc::new(Run { env: env.clone(), tables, options: options.clone() });
    let mut measurements = Vec::new();
    let mut filled = false;
    for workload in options.workload.clone() {
        if !filled && matches!(workload, Workload::SequentialRead | Workload::RandomRead | Workload::Scan) {
            bench.clone().batch_write().await.context("filling the table")?;
        }
        filled = true;
        let measured = measure(&bench, workload, groups, durability).await;
        let mut measurement = measured.with_context(|| format!("workload {workload:?}"))?;
        if let Some(echo) = &echo {
            let rate = echo.measure(env, Shape::of(workload, options), options.in_flight).await?.rows_per_s();
            measurement.echo_rows_per_s = Some(rate);
            measurement.echo_ratio = Some(measurement.rows_per_s / rate);
        }
        if options.json {
            println!("{}", serde_json::to_string(&measurement).expect("plain data becomes JSON"));
        }
        measurements.push(measurement);
    }
    if let Some(echo) = echo {
        echo.stop(env).await;
    }
    if !options.json {
        print_measurements(durability, options, &measurements);
    }
    admin.delete_table(&name).await.context("cannot delete the bench's table")
}

async fn measure(bench: &Arc<Run>, workload: Workload, groups: &[u32], durability: Durability) -> Result<Measurement> {
    let cluster_cpu = || usage::cpu_of_groups(groups);
    let (clock, options) = (&bench.env.clock, &bench.options);
    let (own_before, cluster_before, started) = (usage::own_cpu(), cluster_cpu(), clock.now());
    let Done { rows, bytes, latencies } = bench.clone().perform(workload).await?;
    let seconds = clock.since(started).as_secs_f64();
    let us_per_row = |cpu: Duration| cpu.as_secs_f64() * 1e6 / rows as f64;
    let cluster_used = cluster_cpu().saturating_sub(cluster_before);
    Ok(Measurement {
        workload,
        rows_per_s: rows as f64 / seconds,
        mb_per_s: bytes as f64 / seconds / 1e6,
        p50_us: latencies.value_at_quantile(0.5),
        p99_us: latencies.value_at_quantile(0.99),
        p999_us: latencies.value_at_quantile(0.999),
        durability,
        replicas: REPLICAS,
        value_bytes: options.value_bytes,
        in_flight: options.in_flight,
        clients: options.clients,
        batch_rows: if workload == Workload::BatchWrite { options.batch_rows } else { 1 },
        tablets: options.tablets,
        rows,
        seconds,
        client_cpu_us_per_row: us_per_row(usage::own_cpu().saturating_sub(own_before)),
        cluster_cpu_us_per_row: (!groups.is_empty()).then(|| us_per_row(cluster_used)),
        echo_rows_per_s: None,
        echo_ratio: None,
    })
}

fn print_measurements(durability: Durability, options: &Bench, measurements: &[Measurement]) {
    println!(
        "{REPLICAS} replicas, durability {durability}, {}-byte values, {} calls in flight over {} clients, {} rows, {} tablets, batches of {} rows",
        options.value_bytes, options.in_flight, options.clients, options.rows, options.tablets, options.batch_rows
    );
    let rows = measurements.iter().map(|m| {
        let name = m.workload.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default();
        let ms = |us: u64| format!("{:.2}", us as f64 / 1000.0);
        let rate = human_count(m.rows_per_s as u64);
        let cpu = m.cluster_cpu_us_per_row.map_or(String::new(), |us| format!("{us:.1}"));
        let echo = m.echo_rows_per_s.map_or(String::new(), |rate| human_count(rate as u64));
        let share = m.echo_ratio.map_or(String::new(), |ratio| format!("{:.0} %", ratio * 100.0));
        let cells = [name, rate, format!("{:.1}", m.mb_per_s), ms(m.p50_us), ms(m.p99_us), ms(m.p999_us)];
        let rest = [format!("{:.1}", m.client_cpu_us_per_row), cpu, echo, share];
        cells.into_iter().chain(rest).collect()
    });
    let head = ["WORKLOAD", "ROWS/S", "MB/S", "P50 MS", "P99 MS", "P99.9 MS"];
    print_table(&[&head[..], &["CLIENT US/ROW", "CLUSTER US/ROW", "ECHO/S", "OF ECHO"]].concat(), rows);
}
