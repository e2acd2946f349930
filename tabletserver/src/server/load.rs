//! What a lease renewal tells the master about this server's load.

use std::sync::atomic::{AtomicU64, Ordering};

use uruk_base::Metrics;
use uruk_base::metrics::{Counter, Gauge};
use uruk_proto::master::{MemoryBudget, ServerLoad, TabletLoad};

use super::Server;
use super::jobs;
use super::machine::{Limits, Usage};
use super::tablet::Tablet;

/// Processor time of a row written, of a batch read, and of their bytes: measured once, for a first guess.
const WRITE_MICROS: u64 = 12;
const READ_MICROS: u64 = 20;
const BYTES_PER_MICRO: u64 = 400;

/// Counters of this server.
#[derive(Debug)]
pub struct ServerMetrics {
    /// Flushes committed.
    pub flushes: Counter,
    /// Compactions committed.
    pub compactions: Counter,
    /// Tablets with a damaged file.
    pub corrupt_tablets: Counter,
    memtable_bytes: Gauge,
    compactions_queued: Gauge,
    write_amplification: Gauge<f64, AtomicU64>,
    space_amplification: Gauge<f64, AtomicU64>,
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
            corrupt_tablets: counter("uruk_tabletserver_corrupt_tablets", "Tablets found with a damaged file."),
            compactions_queued: gauge("uruk_tabletserver_compactions_queued", "Compactions that are due."),
            write_amplification: metrics.register(
                "uruk_tabletserver_write_amplification_ratio",
                "Bytes logged, flushed and written by compactions for each byte logged, since the start.",
                Gauge::default(),
            ),
            space_amplification: metrics.register(
                "uruk_tabletserver_space_amplification_ratio",
                "Bytes of files for each byte that compactions of all files would leave, estimated.",
                Gauge::default(),
            ),
            memtable_bytes: gauge("uruk_tabletserver_memtable_bytes", "Bytes of all memtables."),
            unflushed_log_bytes: gauge("uruk_tabletserver_unflushed_log_bytes", "Own log that is not flushed."),
            tablets: gauge("uruk_tabletserver_tablets", "Tablets in memory."),
        }
    }
}

/// What counts from the start of the process, or from the report before.
#[derive(Debug)]
pub struct Totals {
    limits: Limits,
    /// Processor time up to the last report.
    cpu_micros: AtomicU64,
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
}

impl Totals {
    /// Asks what the process may use, if the system is to be asked at all.
    pub fn new(process_metrics: bool) -> Totals {
        Totals {
            limits: if process_metrics { Limits::now() } else { Limits::default() },
            cpu_micros: AtomicU64::new(0),
            bytes_sent: AtomicU64::new(0),
            bytes_received: AtomicU64::new(0),
        }
    }
}

/// The report; rates count from the report before.
pub fn report(server: &Server) -> ServerLoad {
    server.measure();
    let loaded = server.tablets.loaded();
    let mut tablets: Vec<TabletLoad> = loaded.iter().map(|tablet| of_tablet(server, tablet)).collect();
    let cache = server.engine.cache();
    let budget = &server.budget;
    server.metrics.memtable_bytes.set(budget.memtable_bytes() as i64);
    server.metrics.unflushed_log_bytes.set(budget.unflushed_log_bytes() as i64);
    server.metrics.tablets.set(tablets.len() as i64);
    let (maintenance, compactions_running, compactions_queued) = jobs::report(server);
    server.metrics.compactions_queued.set(compactions_queued.into());
    let amplification = maintenance.totals.unwrap_or_default();
    server.metrics.write_amplification.set(amplification.write_amplification().unwrap_or(f64::NAN));
    server.metrics.space_amplification.set(amplification.space_amplification().unwrap_or(f64::NAN));
    let usage = if server.config.process_metrics { Usage::now() } else { Usage::default() };
    let totals = &server.totals;
    if server.config.process_metrics {
        let before = totals.cpu_micros.swap(usage.cpu_micros, Ordering::Relaxed);
        bound_cpu(&mut tablets, usage.cpu_micros.saturating_sub(before));
    }
    let sum = |of: fn(&TabletLoad) -> u64| tablets.iter().map(of).sum::<u64>();
    let add = |total: &AtomicU64, more: u64| total.fetch_add(more, Ordering::Relaxed) + more;
    ServerLoad {
        memory_bytes: usage.memory_bytes,
        memtable_bytes: budget.memtable_bytes(),
        unflushed_log_bytes: budget.unflushed_log_bytes(),
        cache_bytes: cache.bytes(),
        cache_hits: cache.hits(),
        cache_misses: cache.misses(),
        compactions_running,
        compactions_queued,
        reads: sum(|tablet| tablet.reads),
        writes: sum(|tablet| tablet.writes),
        cpu_micros: usage.cpu_micros,
        log_trim_lsn: budget.trim_point().0,
        pinned_files: server.pins.list(&server.tablets),
        memory_limit_bytes: totals.limits.memory_bytes,
        cpus_milli: totals.limits.cpus_milli,
        disk_bytes_written: usage.disk_bytes_written,
        network_bytes_sent: add(&totals.bytes_sent, sum(|tablet| tablet.bytes_read)),
        network_bytes_received: add(&totals.bytes_received, sum(|tablet| tablet.bytes_written)),
        tablets,
        maintenance: Some(maintenance),
        budget: Some(of_budget(server)),
    }
}

fn of_budget(server: &Server) -> MemoryBudget {
    let (budget, config, engine) = (&server.budget, &server.config, &server.engine);
    let (refused_for_memtables, refused_for_log, refused_for_calls) = budget.refused();
    MemoryBudget {
        memtable_bytes_soft: config.memtable_bytes_soft,
        memtable_bytes_hard: config.memtable_bytes_hard,
        memtable_bytes_peak: budget.memtable_bytes_peak(),
        unflushed_log_bytes_max: config.unflushed_log_bytes_max,
        cache_bytes_max: config.engine.block_cache_bytes,
        index_bytes: engine.index_pinned_bytes(),
        index_bytes_max: config.engine.index_pinned_bytes_max,
        in_memory_bytes: engine.in_memory_bytes(),
        in_memory_bytes_max: config.engine.in_memory_bytes_max,
        remembered_bytes: budget.remembered_bytes(),
        remembered_bytes_max: config.remembered_server_bytes_max as u64,
        refused_for_memtables,
        refused_for_log,
        refused_for_calls,
        refused_for_queue: server.log.refused(),
    }
}

/// What the tablets' requests have cost is at most what the process has used.
fn bound_cpu(tablets: &mut [TabletLoad], used_micros: u64) {
    let guessed: u64 = tablets.iter().map(|tablet| tablet.cpu_micros).sum();
    if guessed > used_micros {
        for tablet in tablets {
            tablet.cpu_micros = (u128::from(tablet.cpu_micros) * u128::from(used_micros) / u128::from(guessed)) as u64;
        }
    }
}

fn of_tablet(server: &Server, tablet: &Tablet) -> TabletLoad {
    let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
    let files = tablet.store.files();
    let files = files.iter().flat_map(|group| &group.files);
    let traffic = &tablet.traffic;
    let (reads, writes) = (take(&traffic.reads), take(&traffic.writes));
    let (bytes_read, bytes_written) = (take(&traffic.bytes_read), take(&traffic.bytes_written));
    tablet.samples.age(server.env.clock.now());
    let samples = tablet.samples.summary();
    TabletLoad {
        tablet_id: tablet.id.0,
        epoch: tablet.epoch.0,
        memtable_bytes: tablet.store.memtable_bytes(),
        file_bytes: files.clone().map(|file| file.bytes).sum(),
        files: files.count() as u32,
        reads,
        writes,
        bytes_read,
        bytes_written,
        cpu_micros: reads * READ_MICROS + writes * WRITE_MICROS + (bytes_read + bytes_written) / BYTES_PER_MICRO,
        load_median: samples.median,
        hottest_row: samples.hottest,
        hottest_row_permille: samples.hottest_permille,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guessed_cost_of_tablets_is_bounded_by_what_was_used() {
        let of = |cpu_micros| TabletLoad { cpu_micros, ..TabletLoad::default() };
        let mut tablets = [of(300), of(100), of(0)];
        bound_cpu(&mut tablets, 1000);
        assert_eq!(tablets.each_ref().map(|tablet| tablet.cpu_micros), [300, 100, 0]);
        bound_cpu(&mut tablets, 100);
        assert_eq!(tablets.each_ref().map(|tablet| tablet.cpu_micros), [75, 25, 0]);
        bound_cpu(&mut tablets[2..], 0);
    }
}
