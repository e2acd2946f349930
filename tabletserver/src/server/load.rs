//! What a lease renewal tells the master about this server's load.

use std::sync::atomic::{AtomicU64, Ordering};

use uruk_base::Metrics;
use uruk_base::metrics::{Counter, Gauge};
use uruk_proto::master::{ServerLoad, TabletLoad};

use super::Server;
use super::tablet::Tablet;

/// Page size of every machine that we run on, in bytes.
const PAGE_BYTES: u64 = 4096;
/// Clock ticks of `/proc/self/stat`, in microseconds: `USER_HZ` is 100 on Linux.
const TICK_MICROS: u64 = 10_000;

/// Counters of this server.
#[derive(Debug)]
pub struct ServerMetrics {
    /// Flushes committed.
    pub flushes: Counter,
    /// Compactions committed.
    pub compactions: Counter,
    /// Compactions that run now.
    pub compactions_running: Gauge,
    /// Tablets with a damaged file.
    pub corrupt_tablets: Counter,
    memtable_bytes: Gauge,
    unflushed_log_bytes: Gauge,
    tablets: Gauge,
}

impl ServerMetrics {
    /// Registers all of them.
    pub fn new(metrics: &Metrics) -> ServerMetrics {
        let counter = |name: &str, help: &str| metrics.register(name, help, Counter::default());
        let gauge = |name: &str, help: &str| metrics.register(name, help, Gauge::default());
        ServerMetrics {
            flushes: counter("uruk_tabletserver_flushes", "Flushes committed."),
            compactions: counter("uruk_tabletserver_compactions", "Compactions committed."),
            compactions_running: gauge("uruk_tabletserver_compactions_running", "Compactions that run now."),
            corrupt_tablets: counter("uruk_tabletserver_corrupt_tablets", "Tablets found with a damaged file."),
            memtable_bytes: gauge("uruk_tabletserver_memtable_bytes", "Bytes of all memtables."),
            unflushed_log_bytes: gauge("uruk_tabletserver_unflushed_log_bytes", "Own log that is not flushed."),
            tablets: gauge("uruk_tabletserver_tablets", "Tablets in memory."),
        }
    }
}

/// The report; rates count from the report before.
pub fn report(server: &Server) -> ServerLoad {
    server.measure();
    let loaded = server.tablets.loaded();
    let tablets: Vec<TabletLoad> = loaded.iter().map(|tablet| of_tablet(server, tablet)).collect();
    let cache = server.engine.cache();
    let budget = &server.budget;
    server.metrics.memtable_bytes.set(budget.memtable_bytes() as i64);
    server.metrics.unflushed_log_bytes.set(budget.unflushed_log_bytes() as i64);
    server.metrics.tablets.set(tablets.len() as i64);
    let (memory_bytes, cpu_micros) = if server.config.process_metrics { of_process() } else { (0, 0) };
    ServerLoad {
        memory_bytes,
        memtable_bytes: budget.memtable_bytes(),
        unflushed_log_bytes: budget.unflushed_log_bytes(),
        cache_bytes: cache.bytes(),
        cache_hits: cache.hits(),
        cache_misses: cache.misses(),
        compactions_running: server.metrics.compactions_running.get().max(0) as u32,
        compactions_queued: 0,
        reads: tablets.iter().map(|tablet| tablet.reads).sum(),
        writes: tablets.iter().map(|tablet| tablet.writes).sum(),
        cpu_micros,
        log_trim_lsn: budget.trim_point().0,
        pinned_files: server.pins.list(&server.tablets),
        tablets,
        ..Default::default()
    }
}

fn of_tablet(server: &Server, tablet: &Tablet) -> TabletLoad {
    let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
    let files = tablet.store.files();
    let files = files.iter().flat_map(|group| &group.files);
    tablet.samples.age(server.env.clock.now());
    let samples = tablet.samples.summary();
    TabletLoad {
        load_median: samples.median,
        hottest_row: samples.hottest,
        hottest_row_permille: samples.hottest_permille,
        tablet_id: tablet.id.0,
        epoch: tablet.epoch.0,
        memtable_bytes: tablet.store.memtable_bytes(),
        file_bytes: files.clone().map(|file| file.bytes).sum(),
        files: files.count() as u32,
        reads: take(&tablet.traffic.reads),
        writes: take(&tablet.traffic.writes),
        bytes_read: take(&tablet.traffic.bytes_read),
        bytes_written: take(&tablet.traffic.bytes_written),
        ..Default::default()
    }
}

/// Resident bytes and processor time of this process; zeros where the system does not tell.
fn of_process() -> (u64, u64) {
    // Not through `Env::disk`: these are no files, and simulation leaves them out.
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, at: usize| text.split_whitespace().nth(at).and_then(|f| f.parse::<u64>().ok());
    let resident = field(&read("/proc/self/statm"), 1).unwrap_or(0) * PAGE_BYTES;
    let stat = read("/proc/self/stat");
    // The process's name may hold blanks; the fields are counted from behind its closing bracket.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = field(after_name, 11).unwrap_or(0) + field(after_name, 12).unwrap_or(0);
    (resident, ticks * TICK_MICROS)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_uses_memory() {
        assert!(super::of_process().0 > 1 << 20);
    }
}
