//! `uruk bench tablets`: what idle tablets cost, and how long a clean one takes to open.
//!
//! One tablet server serves a table of many tablets, each with a file. It is ended as planned (so all is in files)
//! and started again: then every tablet is clean, opened from its row and its file of remembered calls, and nobody
//! has read it yet. Memory is the worker's resident memory then; a reading of every tablet follows.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use rustix::process::Signal;
use serde::Serialize;
use uruk_base::Env;
use uruk_base::process::{Usage, usage_of};
use uruk_client::{Client, FamilySpec, Mutation, ReadOptions, RowMutation, Table};

use super::{FAMILY, QUALIFIER};
use crate::cluster::{ClusterSpec, LocalCluster};
use crate::command::dev::data_folder;
use crate::command::drill::stage::signal;
use crate::command::status::{ServerView, fetch_servers, fetch_tablets};
use crate::load::in_flight::{Stop, in_flight, new_histogram};
use crate::load::keyspace::hashed_splits;
use crate::load::record::WriteId;
use crate::process::Durability;

/// Pause between two looks at the cluster.
const POLL: Duration = Duration::from_millis(100);
/// All tablets must be served within this time, after each start.
const OPEN_TIMEOUT: Duration = Duration::from_secs(300);
/// After the last tablet is open, memory is looked at when so much time has passed.
const SETTLE: Duration = Duration::from_secs(3);
/// Rows of one write.
const BATCH_ROWS: usize = 1000;
/// Reads in flight: one, since it is the time of a tablet's first read that is wanted.
const READS_IN_FLIGHT: u16 = 1;
/// The bench's table.
const TABLE: &str = "tablets";
/// What the tablet server says of each tablet that it has opened, among its log.
const LOADED: &str = "tablet is loaded";

/// Measure a tablet server with many idle tablets: memory, and how long clean ones take to open
#[derive(Args, Debug)]
pub struct Tablets {
    /// Tablets on one tablet server
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=20_000))]
    tablets: u16,
    /// Rows in each tablet
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rows_per_tablet: u32,
    /// Size of each value in bytes
    #[arg(long, default_value_t = 1000)]
    value_bytes: usize,
    /// What an acknowledged write has survived
    #[arg(long, value_enum, default_value_t)]
    durability: Durability,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Measurement {
    tablets: u16,
    rows_per_tablet: u32,
    value_bytes: usize,
    durability: Durability,
    replicas: u32,
    /// Files of all tablets.
    files: u64,
    /// The worker's resident memory without tablets.
    rss_empty_bytes: u64,
    /// With all tablets open and none read.
    rss_idle_bytes: u64,
    /// After one row of each was read.
    rss_read_bytes: u64,
    /// Processor time of the idle worker, in thousandths of a core.
    idle_cpu_milli: f64,
    /// From the new tablet server's registration until it serves all, as a poll of the master finds it.
    all_open_ms: u64,
    open_p50_us: u64,
    open_p99_us: u64,
    open_max_us: u64,
    first_read_p50_us: u64,
    first_read_p99_us: u64,
    second_read_p50_us: u64,
    second_read_p99_us: u64,
}

/// Runs it and prints what was measured.
pub async fn run(env: &Env, options: Tablets) -> Result<()> {
    let (dir, _temporary) = data_folder(None)?;
    let spec = ClusterSpec {
        dir,
        masters: 1,
        controllers: 1,
        tablet_servers: 1,
        chunk_servers: 3,
        port_base: 0,
        durability: options.durability,
        // It says of each tablet how long it took.
        tabletserver_flags: vec!["-v".into()],
        // Tablets this small would be merged.
        master_flags: vec!["--tune=auto_merge=false".into(), "--tune=auto_balance=false".into()],
        restart: true,
    };
    let mut cluster = LocalCluster::start(env, spec).await?;
    let outcome = measure(env, &cluster, &options).await;
    cluster.stop().await;
    let measurement = outcome?;
    match options.json {
        true => println!("{}", serde_json::to_string(&measurement).expect("plain data becomes JSON")),
        false => print(&measurement),
    }
    Ok(())
}

async fn measure(env: &Env, cluster: &LocalCluster, options: &Tablets) -> Result<Measurement> {
    let masters = cluster.masters();
    let server = serving(env, &masters, 0, None).await?;
    env.clock.sleep(SETTLE).await;
    let rss_empty_bytes = process(server.pid)?.memory_bytes;
    let table = filled_table(env, &masters, options).await?;

    // The planned end flushes everything; the cluster starts the server again.
    let log_path = cluster.dir().join("logs").join("tabletserver-1.log");
    let log_before = env.disk.read(&log_path).await.context("cannot read the tablet server's log")?.len();
    let old = serving(env, &masters, u64::from(options.tablets), None).await?;
    signal(old.parent_pid, Signal::TERM)?;
    let (server, all_open) = {
        serving(env, &masters, 0, Some(old.server_id)).await?;
        let from = env.clock.now();
        (serving(env, &masters, u64::from(options.tablets), Some(old.server_id)).await?, env.clock.since(from))
    };
    env.clock.sleep(SETTLE).await;
    let rss_idle_bytes = process(server.pid)?.memory_bytes;
    let (cpu, from) = (process(server.pid)?.cpu, env.clock.now());
    env.clock.sleep(SETTLE).await;
    let idle = process(server.pid)?.cpu.saturating_sub(cpu);
    let idle_cpu_milli = idle.as_secs_f64() * 1000.0 / env.clock.since(from).as_secs_f64();
    let files = fetch_tablets(env, &masters).await?.iter().map(|tablet| tablet.files).sum();

    let log = env.disk.read(&log_path).await.context("cannot read the tablet server's log")?;
    let log = String::from_utf8_lossy(&log[log_before..]);
    let mut opens = new_histogram();
    let times = log.lines().filter(|line| line.contains(LOADED)).filter_map(took_us);
    times.for_each(|us| opens.saturating_record(us.max(1)));
    if opens.len() < u64::from(options.tablets) {
        bail!("the tablet server tells of {} of {} openings", opens.len(), options.tablets);
    }
    let first = read_all(env, &table, options).await?;
    let rss_read_bytes = process(server.pid)?.memory_bytes;
    let second = read_all(env, &table, options).await?;
    Ok(Measurement {
        tablets: options.tablets,
        rows_per_tablet: options.rows_per_tablet,
        value_bytes: options.value_bytes,
        durability: options.durability,
        replicas: super::REPLICAS,
        files,
        rss_empty_bytes,
        rss_idle_bytes,
        rss_read_bytes,
        idle_cpu_milli,
        all_open_ms: all_open.as_millis() as u64,
        open_p50_us: opens.value_at_quantile(0.5),
        open_p99_us: opens.value_at_quantile(0.99),
        open_max_us: opens.max(),
        first_read_p50_us: first.value_at_quantile(0.5),
        first_read_p99_us: first.value_at_quantile(0.99),
        second_read_p50_us: second.value_at_quantile(0.5),
        second_read_p99_us: second.value_at_quantile(0.99),
    })
}

/// The live tablet server (not `old`), once it has so many tablets of the table and all are open.
async fn serving(env: &Env, masters: &[String], tablets: u64, old: Option<u64>) -> Result<ServerView> {
    let wait = async {
        loop {
            let servers = fetch_servers(env, masters).await.unwrap_or_default();
            let live = servers.into_iter().find(|server| server.state == "live" && Some(server.server_id) != old);
            if let Some(server) = live {
                let all = fetch_tablets(env, masters).await.unwrap_or_default();
                let is_open = |state: &str, owner: u64| state == "open" && owner == server.server_id;
                let open = all.iter().filter(|tablet| is_open(&tablet.state, tablet.server_id)).count();
                if open as u64 >= tablets {
                    return server;
                }
            }
            env.clock.sleep(POLL).await;
        }
    };
    let waited = env.clock.timeout(OPEN_TIMEOUT, wait).await;
    waited.with_context(|| format!("{tablets} tablets are not open on one tablet server"))
}

fn process(pid: u32) -> Result<Usage> {
    usage_of(pid).context("the tablet server's worker is gone")
}

async fn filled_table(env: &Env, masters: &[String], options: &Tablets) -> Result<Table> {
    let client = Client::connect(env, masters)?;
    let splits: Vec<Bytes> = hashed_splits(usize::from(options.tablets)).into_iter().map(Bytes::from).collect();
    client.create_table(TABLE, &[FamilySpec::new(FAMILY)], &splits).await.context("cannot create the bench's table")?;
    let table = client.table(TABLE).await?;
    let tablets = usize::from(options.tablets);
    let rows = tablets * options.rows_per_tablet as usize;
    for from in (0..rows).step_by(BATCH_ROWS) {
        let row = |n: usize| {
            let value = Bytes::from(WriteId { writer: 0, n: n as u64 }.value(options.value_bytes));
            RowMutation::new(key(n % tablets, n / tablets, tablets), vec![Mutation::set(FAMILY, QUALIFIER, value)])
        };
        let batch = (from..rows.min(from + BATCH_ROWS)).map(row).collect();
        for result in table.mutate_rows(batch).await {
            result.context("cannot fill the bench's table")?;
        }
    }
    Ok(table)
}

/// Row `n` of a tablet: behind its first key.
fn key(tablet: usize, n: usize, tablets: usize) -> Vec<u8> {
    format!("{:04x}-{n:06}", tablet * 0x1_0000 / tablets).into_bytes()
}

/// Reads the first row of each tablet.
async fn read_all(env: &Env, table: &Table, options: &Tablets) -> Result<hdrhistogram::Histogram<u64>> {
    let (table, tablets) = (table.clone(), usize::from(options.tablets));
    let done = in_flight(env, READS_IN_FLIGHT, Stop::After(tablets as u64), move |_, tablet| {
        let table = table.clone();
        async move {
            let row = table.read_row(key(tablet as usize, 0, tablets), &ReadOptions::default()).await?;
            row.with_context(|| format!("tablet {tablet} has lost its row"))?;
            Ok((1, 0))
        }
    });
    Ok(done.await?.latencies)
}

/// The microseconds of a line of the tablet server's log.
fn took_us(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("took_us=")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn print(measured: &Measurement) {
    let mib = |bytes: u64| bytes >> 20;
    println!(
        "{} tablets with {} files of {} rows on one tablet server ({} replicas, durability {})",
        measured.tablets, measured.files, measured.rows_per_tablet, measured.replicas, measured.durability
    );
    println!(
        "memory {} MiB idle, {} MiB once each was read, {} MiB without tablets; {:.1} thousandths of a core when idle",
        mib(measured.rss_idle_bytes),
        mib(measured.rss_read_bytes),
        mib(measured.rss_empty_bytes),
        measured.idle_cpu_milli
    );
    println!(
        "open: p50 {} us, p99 {} us, max {} us; all of them {} ms",
        measured.open_p50_us, measured.open_p99_us, measured.open_max_us, measured.all_open_ms
    );
    println!(
        "first read p50 {} us, p99 {} us; second p50 {} us, p99 {} us",
        measured.first_read_p50_us,
        measured.first_read_p99_us,
        measured.second_read_p50_us,
        measured.second_read_p99_us
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_read_from_a_line_of_the_log() {
        assert_eq!(took_us("tablet is loaded tablet=tablet-3 took_us=417"), Some(417));
        assert_eq!(took_us("took_us=9 more=1"), Some(9));
        assert_eq!(took_us("tablet is loaded"), None);
    }

    #[test]
    fn each_key_lies_in_its_tablet() {
        let splits = hashed_splits(1000);
        for tablet in [0, 1, 17, 998, 999] {
            assert_eq!(splits.partition_point(|split| *split <= key(tablet, 5, 1000)), tablet);
        }
    }
}
