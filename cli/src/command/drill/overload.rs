//! Writes faster than the disks take it, and watches memory, refusals and reads meanwhile.
//!
//! A write is refused once the memtables are full, with a delay after which the client repeats it; what was
//! admitted before and is on its way through the log still reaches them, so the peak is somewhat above the limit.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Args;
use hdrhistogram::Histogram;
use serde::Deserialize;
use serde_json::json;
use uruk_base::Env;
use uruk_client::{Mutation, ReadOptions, RowMutation, Table};

use super::Common;
use super::stage::{FAMILY, Stage};
use crate::command::status::fetch_json;
use crate::load::in_flight::{Stop, in_flight};
use crate::load::keyspace::Keyspace;
use crate::load::record::WriteId;
use crate::load::traffic::QUALIFIER;
use crate::output::{human_bytes, human_count, print_table};
use crate::process::Durability;

/// Between two looks at the servers' budgets.
const SAMPLE: Duration = Duration::from_millis(500);
/// Pause of each writer between batches in the calm before the flood.
const CALM_PAUSE: Duration = Duration::from_secs(2);
/// Rows that are read again and again; no writer of the flood has this number.
const HOT: WriteId = WriteId { writer: 0xFFFF, n: 0 };
const HOT_ROWS: u64 = 10_000;
/// Rows of one batch while those are written.
const BATCH_ROWS: u64 = 500;

/// Write faster than the disks take it; show memory, refusals, and what readers notice.
#[derive(Args, Debug)]
pub struct Options {
    /// Seconds of flood; half as many of calm before it
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(2..=86_400))]
    seconds: u64,
    /// Memory for memtables of each tablet server, in MiB
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(2..=65_536))]
    memtable_mib: u64,
    /// Concurrent writers, each of batches of 50 rows without a pause
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=256))]
    writers: u16,
    /// Concurrent readers of single rows out of 10,000 hot ones
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    readers: u16,
    /// Size of each value in bytes
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    value_bytes: u32,
    /// Tablets of the drill's table
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=4096))]
    tablets: u16,
    /// What an acknowledged write has survived
    #[arg(long, value_enum, default_value_t)]
    durability: Durability,
    /// Keep the cluster's data and logs in this folder [default: a temporary one]
    #[arg(long)]
    dir: Option<std::path::PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The part of `/api/v1/compactions` that is looked at.
#[derive(Deserialize)]
struct Servers {
    servers: Vec<Server>,
}

#[derive(Deserialize)]
struct Server {
    server_id: u64,
    budget: Option<Budget>,
}

/// A server's budget, or the most of each number that was seen.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct Budget {
    memtable_bytes_hard: u64,
    memtable_bytes_peak: u64,
    unflushed_log_bytes: u64,
    memory_bytes: u64,
    refused_for_memtables: u64,
    refused_for_log: u64,
    refused_for_queue: u64,
    refused_for_calls: u64,
}

impl Budget {
    fn refused(&self) -> u64 {
        self.refused_for_memtables + self.refused_for_log + self.refused_for_queue + self.refused_for_calls
    }

    fn raise(&mut self, other: &Budget) {
        let max = |mine: &mut u64, theirs: u64| *mine = theirs.max(*mine);
        max(&mut self.memtable_bytes_hard, other.memtable_bytes_hard);
        max(&mut self.memtable_bytes_peak, other.memtable_bytes_peak);
        max(&mut self.unflushed_log_bytes, other.unflushed_log_bytes);
        max(&mut self.memory_bytes, other.memory_bytes);
        max(&mut self.refused_for_memtables, other.refused_for_memtables);
        max(&mut self.refused_for_log, other.refused_for_log);
        max(&mut self.refused_for_queue, other.refused_for_queue);
        max(&mut self.refused_for_calls, other.refused_for_calls);
    }
}

/// What was seen.
struct Seen {
    calm: Histogram<u64>,
    flood: Histogram<u64>,
    rows_per_s: f64,
    /// By server.
    budgets: Vec<(u64, Budget)>,
}

/// Runs the drill; exit code 1 if a request failed, a row is lost or wrong, or no server told its budget.
pub async fn run(options: Options) -> Result<ExitCode> {
    let common = Common {
        times: 1,
        tablets: options.tablets,
        masters: 1,
        controllers: 1,
        durability: options.durability,
        writers: options.writers,
        readers: 0,
        value_bytes: options.value_bytes,
        dir: options.dir.clone(),
        json: options.json,
    };
    let stage = Stage::set(&common, vec![format!("--memtable-mib={}", options.memtable_mib)]).await?;
    let seen = watch(&stage, &options).await;
    stage.say("reading every acknowledged row back ...");
    let verdict = stage.end().await?;
    let seen = seen?;
    let failed = verdict.traffic.failed_requests;
    let quantiles = |latencies: &Histogram<u64>| {
        let ms = |quantile| latencies.value_at_quantile(quantile) as f64 / 1000.0;
        json!({"p50": ms(0.5), "p99": ms(0.99), "max": latencies.max() as f64 / 1000.0, "reads": latencies.len()})
    };
    let (calm, flood) = (quantiles(&seen.calm), quantiles(&seen.flood));
    if options.json {
        let budgets = seen.budgets.iter().map(|(server_id, budget)| {
            json!({
                "server_id": server_id, "memtable_bytes_hard": budget.memtable_bytes_hard,
                "memtable_bytes_peak": budget.memtable_bytes_peak,
                "unflushed_log_bytes_peak": budget.unflushed_log_bytes,
                "memory_bytes_peak": budget.memory_bytes, "refused": budget.refused(),
            })
        });
        println!(
            "{}",
            json!({
                "seconds": options.seconds, "rows_per_s": seen.rows_per_s, "lost": verdict.lost,
                "acknowledged": verdict.acknowledged, "failed_requests": failed,
                "wrong_answers": verdict.traffic.violations, "read_ms": {"calm": calm, "flood": flood},
                "servers": budgets.collect::<Vec<_>>(),
            })
        );
    } else {
        let rows = seen.budgets.iter().map(|(server_id, budget)| {
            vec![
                server_id.to_string(),
                human_bytes(budget.memtable_bytes_hard),
                human_bytes(budget.memtable_bytes_peak),
                human_bytes(budget.unflushed_log_bytes),
                human_bytes(budget.memory_bytes),
                human_count(budget.refused()),
            ]
        });
        print_table(&["SERVER", "MEMTABLES MAX", "PEAK", "UNFLUSHED LOG PEAK", "MEMORY PEAK", "WRITES REFUSED"], rows);
        verdict.traffic.failure_texts.iter().for_each(|text| println!("  failed: {text}"));
        println!(
            "reads p50 {} ms, p99 {} ms in the calm; p50 {} ms, p99 {} ms in the flood",
            calm["p50"], calm["p99"], flood["p50"], flood["p99"]
        );
        println!(
            "{} rows/s over {} s of flood, acknowledged {}, lost {}, failed requests {failed}",
            human_count(seen.rows_per_s as u64),
            options.seconds,
            human_count(verdict.acknowledged),
            verdict.lost
        );
    }
    anyhow::ensure!(!seen.budgets.is_empty(), "no server told its memory budget: no peak was seen");
    Ok(verdict.strict_exit_code())
}

async fn watch(stage: &Stage, options: &Options) -> Result<Seen> {
    stage.traffic.set_pause(CALM_PAUSE);
    write_hot_rows(&stage.table, options.value_bytes as usize).await?;
    stage.whole().await?;
    let flood = Duration::from_secs(options.seconds);
    stage.say("calm ...");
    let calm = read_hot_rows(stage, options, flood / 2).await?;
    stage.say("flood ...");
    let (before, started) = (stage.traffic.acknowledged(), stage.env.clock.now());
    stage.traffic.set_pause(Duration::ZERO);
    let (reads, budgets) = {
        let mut budgets = Budgets::default();
        let reads = read_hot_rows(stage, options, flood);
        tokio::pin!(reads);
        loop {
            tokio::select! {
                biased;
                reads = &mut reads => break (reads?, budgets),
                () = stage.env.clock.sleep(SAMPLE) => budgets.look(&stage.env, &stage.cluster.masters()).await,
            }
        }
    };
    let seconds = stage.env.clock.since(started).as_secs_f64();
    let rows_per_s = (stage.traffic.acknowledged() - before) as f64 / seconds;
    stage.traffic.set_pause(CALM_PAUSE);
    Ok(Seen { calm, flood: reads, rows_per_s, budgets: budgets.0 })
}

/// The most of each server's numbers.
#[derive(Default)]
struct Budgets(Vec<(u64, Budget)>);

impl Budgets {
    /// A look that fails is left out: the next one follows soon.
    async fn look(&mut self, env: &Env, masters: &[String]) {
        let Ok(json) = fetch_json(env, masters, "compactions").await else { return };
        let Ok(Servers { servers }) = serde_json::from_value(json) else { return };
        for Server { server_id, budget } in servers {
            let Some(budget) = budget else { continue };
            match self.0.iter_mut().find(|(known, _)| *known == server_id) {
                Some((_, most)) => most.raise(&budget),
                None => self.0.push((server_id, budget)),
            }
        }
    }
}

fn hot_key(n: u64) -> Vec<u8> {
    Keyspace::Hashed.key(WriteId { n, ..HOT })
}

async fn write_hot_rows(table: &Table, value_bytes: usize) -> Result<()> {
    for from in (0..HOT_ROWS).step_by(BATCH_ROWS as usize) {
        let row = |n| {
            let value = Bytes::from(WriteId { n, ..HOT }.value(value_bytes));
            RowMutation::new(hot_key(n), vec![Mutation::set(FAMILY, QUALIFIER, value)])
        };
        let batch = (from..from + BATCH_ROWS).map(row).collect();
        for result in table.mutate_rows(batch).await {
            result.context("cannot write the rows to read")?;
        }
    }
    Ok(())
}

async fn read_hot_rows(stage: &Stage, options: &Options, time: Duration) -> Result<Histogram<u64>> {
    let (table, value_bytes) = (stage.table.clone(), options.value_bytes as usize);
    let stop = Stop::At(stage.env.clock.now() + time);
    let done = in_flight(&stage.env, options.readers, stop, move |_, n| {
        let table = table.clone();
        async move {
            let n = WriteId { n, ..HOT }.hash() % HOT_ROWS;
            let row = table.read_row(hot_key(n), &ReadOptions::default()).await?;
            let row = row.with_context(|| format!("hot row {n} is not there"))?;
            anyhow::ensure!(
                row.value(FAMILY, QUALIFIER).is_some_and(|value| *value == WriteId { n, ..HOT }.value(value_bytes)),
                "hot row {n} has another value"
            );
            Ok((1, value_bytes as u64))
        }
    });
    Ok(done.await?.latencies)
}
