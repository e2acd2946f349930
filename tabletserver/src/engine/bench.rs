//! One tablet's engine in process on a local folder, under load: what `uruk bench engine` runs.
//!
//! | part | holds |
//! |---|---|
//! | [`folder`] | table files in a local folder, read through memory maps |
//! | [`log`] | a commit log in one local file: production's records, group commit, `fdatasync` when asked |
//! | [`tablet`] | the tablet with what a server does around it: freeze, flush, compact, stall |
//! | [`data`] | keys and values |
//! | [`workload`] | the loops that are measured |
//!
//! Every write is logged before it is applied and published, as in the server; there is no RPC, no
//! latch and no lease. Latencies are taken of every eighth operation. It runs on the real machine only.

pub mod data;
pub mod folder;
pub mod log;
pub mod tablet;
pub mod workload;

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, io};

use serde::Serialize;
use uruk_base::Env;

use super::sstable::format::Compression;
use super::{EngineConfig, EngineError};
use tablet::BenchTablet;
pub use workload::Workload;

/// The folder is removed in so many tries.
const REMOVE_TRIES: usize = 50;
/// Between two of them.
const REMOVE_PAUSE: Duration = Duration::from_millis(20);

/// What to measure.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// In this order, on one tablet.
    pub workloads: Vec<Workload>,
    /// Size of the key space, and operations of most workloads.
    pub keys: u64,
    /// Bytes of each value.
    pub value_bytes: usize,
    /// Threads that work at once; each does its share of the operations.
    pub threads: usize,
    /// Operations of synced writes in all.
    pub sync_operations: u64,
    /// Wait for `fdatasync` also in workloads that do not ask for it.
    pub sync: bool,
    /// Memtables freeze at this size.
    pub memtable_bytes: u64,
    /// Rows read after each seek of `seekrandom`.
    pub seek_rows: u64,
    /// Must not exist, or be empty; removed at the end.
    pub folder: PathBuf,
    /// The engine's limits.
    pub engine: EngineConfig,
}

impl Default for BenchOptions {
    fn default() -> BenchOptions {
        BenchOptions {
            workloads: Vec::new(),
            keys: 1_000_000,
            value_bytes: 400,
            threads: 1,
            sync_operations: 20_000,
            sync: false,
            memtable_bytes: 64 << 20,
            seek_rows: 100,
            folder: std::env::temp_dir().join("uruk-bench-engine"),
            engine: EngineConfig {
                block_bytes: 4 << 10,
                compression_major: Compression::Lz4,
                compaction_bytes_per_second_max: 0,
                compaction_file_bytes: u64::MAX,
                ..EngineConfig::default()
            },
        }
    }
}

/// What a workload did.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Measurement {
    /// Which one.
    pub workload: Workload,
    /// Operations; rows for `readseq`.
    pub operations: u64,
    /// Those that found their row (reads), or all.
    pub found: u64,
    /// Wall time, all threads together.
    pub seconds: f64,
    /// Operations a second.
    pub ops_per_s: f64,
    /// Half of the operations took at most this long (µs, fractions of it kept).
    pub p50_us: f64,
    /// 99 of 100 did.
    pub p99_us: f64,
    /// 999 of 1000 did.
    pub p999_us: f64,
    /// Threads at once.
    pub threads: usize,
    /// Whether each write waited for `fdatasync`.
    pub sync: bool,
    /// Bytes of each value.
    pub value_bytes: usize,
    /// Stored bytes of table files for each of their cells: keys, values, index, filter, compressed.
    pub stored_bytes_per_cell: f64,
    /// Commit-log bytes for each write; 0 in workloads that do not write.
    pub log_bytes_per_write: f64,
    /// Bytes of table files written since the start for each byte of them that is there.
    pub write_amplification: f64,
    /// Table files at the end.
    pub files: usize,
    /// Blocks found in the cache, of those asked for since the start.
    pub cache_hit_ratio: f64,
}

impl Measurement {
    /// One line of JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plain data becomes JSON")
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<12}{:>11.0}/s  p50 {:>7.2}  p99 {:>7.2}  p99.9 {:>8.2} us  found {} of {}, {} threads, sync {}, \
             {:.0} stored and {:.0} log bytes a cell, {} files, write amplification {:.1}, cache hits {:.2}",
            self.workload.name(),
            self.ops_per_s,
            self.p50_us,
            self.p99_us,
            self.p999_us,
            self.found,
            self.operations,
            self.threads,
            self.sync,
            self.stored_bytes_per_cell,
            self.log_bytes_per_write,
            self.files,
            self.write_amplification,
            self.cache_hit_ratio
        )
    }
}

/// Why a bench failed.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The folder or the log in it.
    #[error("cannot use the bench's folder: {0}")]
    Folder(#[from] io::Error),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Its limits.
    #[error(transparent)]
    Config(#[from] super::ConfigError),
    /// A reading workload found nothing.
    #[error("{0:?} found none of its rows")]
    FoundNothing(Workload),
}

/// Runs the workloads; `report` hears of each as it ends. Reads without a write before them fill the
/// tablet first, unmeasured.
pub async fn run(
    env: &Env,
    options: &BenchOptions,
    report: &mut (dyn FnMut(&Measurement) + Send),
) -> Result<(), BenchError> {
    if std::fs::read_dir(&options.folder).is_ok_and(|mut entries| entries.next().is_some()) {
        let error = io::Error::new(io::ErrorKind::AlreadyExists, format!("{} is not empty", options.folder.display()));
        return Err(error.into());
    }
    std::fs::create_dir_all(&options.folder)?;
    let result = run_in_folder(env, options, report).await;
    let removed = remove_folder(env, &options.folder).await;
    result?;
    Ok(removed?)
}

/// A write of a compaction that was cancelled at the end may still be under way, on a thread of its own.
async fn remove_folder(env: &Env, folder: &Path) -> io::Result<()> {
    for _ in 1..REMOVE_TRIES {
        match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => env.clock.sleep(REMOVE_PAUSE).await,
            result => return result,
        }
    }
    std::fs::remove_dir_all(folder)
}

async fn run_in_folder(
    env: &Env,
    options: &BenchOptions,
    report: &mut (dyn FnMut(&Measurement) + Send),
) -> Result<(), BenchError> {
    let tablet = BenchTablet::open(env, options)?;
    if options.workloads.first().is_some_and(|first| !first.fills()) {
        workload::run(&tablet, Workload::Fillrandom, options).await?;
        workload::run(&tablet, Workload::Compact, options).await?;
    }
    for workload in &options.workloads {
        let measurement = workload::run(&tablet, *workload, options).await?;
        report(&measurement);
    }
    tablet.close().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_workload_runs_and_reads_find_what_was_written() {
        let options = BenchOptions {
            workloads: Workload::ALL.to_vec(),
            keys: 4000,
            value_bytes: 100,
            threads: 2,
            sync_operations: 20,
            memtable_bytes: 200 << 10,
            seek_rows: 10,
            folder: std::env::temp_dir().join(format!("uruk-bench-engine-test-{}", std::process::id())),
            ..BenchOptions::default()
        };
        let mut measured = Vec::new();
        run(&Env::real(), &options, &mut |measurement| measured.push(measurement.clone())).await.unwrap();
        assert_eq!(measured.len(), Workload::ALL.len());
        for measurement in &measured {
            let found = measurement.found as f64 / measurement.operations as f64;
            match measurement.workload {
                Workload::Readmissing => assert_eq!(measurement.found, 0),
                _ => assert_eq!(found, 1.0, "fillseq ran first, so every key is there: {measurement:?}"),
            }
        }
        assert!(!options.folder.exists());
    }
}
