//! `uruk bench engine`: one tablet's engine in this process, on a local folder; no cluster, no network.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use uruk_base::Env;
use uruk_tabletserver::engine::bench::{self, BenchOptions, Measurement, Workload};

/// Measure one tablet's engine in this process, on a local folder
///
/// Writes go to a commit log in that folder first (in the page cache, or synced by `fdatasync` with group
/// commit), then to the memtable; flushes and compactions run beside them. Workloads are named as in
/// RocksDB's db_bench; `bench/engine-vs-rocksdb` runs both.
#[derive(Args, Debug)]
pub struct Engine {
    /// What to run, in this order, on one tablet; reads fill it first if nothing else did
    #[arg(long, value_delimiter = ',', value_parser = parse_workload,
          default_values = ["fillseq", "fillrandom", "compact", "readrandom", "readmissing", "readseq", "seekrandom"])]
    workload: Vec<Workload>,
    /// Size of the key space, and operations of most workloads
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// Size of each value in bytes
    #[arg(long, default_value_t = 400)]
    value_bytes: usize,
    /// Threads at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Writes of fillsync, in all
    #[arg(long, default_value_t = 20_000)]
    sync_operations: u64,
    /// Sync also the writes of fillseq, fillrandom, overwrite, mixed
    #[arg(long)]
    sync: bool,
    /// Target size of a block of a table file
    #[arg(long, default_value_t = 4096)]
    block_bytes: usize,
    /// Size of the block cache
    #[arg(long, default_value_t = 256 << 20)]
    cache_bytes: u64,
    /// Size at which the memtable is flushed
    #[arg(long, default_value_t = 64 << 20)]
    memtable_bytes: u64,
    /// Where to put the files; must be empty or not exist [default: in the temporary folder]
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Print one JSON object per workload
    #[arg(long)]
    json: bool,
}

fn parse_workload(name: &str) -> Result<Workload, String> {
    let names = || Workload::ALL.map(Workload::name).join(", ");
    Workload::parse(name).ok_or_else(|| format!("no such workload; there are {}", names()))
}

pub async fn run(options: Engine) -> Result<()> {
    let mut bench = BenchOptions {
        workloads: options.workload,
        keys: options.keys,
        value_bytes: options.value_bytes,
        threads: usize::from(options.threads),
        sync_operations: options.sync_operations,
        sync: options.sync,
        memtable_bytes: options.memtable_bytes,
        ..BenchOptions::default()
    };
    bench.folder = options.folder.unwrap_or_else(|| bench.folder.with_extension(std::process::id().to_string()));
    bench.engine.block_bytes = options.block_bytes;
    bench.engine.block_cache_bytes = options.cache_bytes;
    let mut report = |done: &Measurement| match options.json {
        true => println!("{}", done.to_json()),
        false => println!("{done}"),
    };
    bench::run(&Env::real(), &bench, &mut report).await.context("the bench failed")
}
