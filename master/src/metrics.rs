//! The master's metrics.

use std::sync::atomic::AtomicU64;

use uruk_base::Metrics;
use uruk_base::metrics::{Counter, Gauge, Histogram, exponential_buckets};

/// Handles on the master's metrics.
#[derive(Clone, Debug)]
pub struct MasterMetrics {
    pub leases_granted: Counter,
    pub leases_refused: Counter,
    pub deaths: Counter,
    pub actions_failed: Counter,
    pub files_deleted: Counter,
    pub orphans_deleted: Counter,
    pub servers_live: Gauge,
    pub tablets: Gauge,
    pub tablets_open: Gauge,
    pub tables: Gauge,
    pub recoveries_unfinished: Gauge,
    pub files_to_delete: Gauge,
    pub is_leader: Gauge,
    pub compactions_running: Gauge,
    pub compactions_queued: Gauge,
    pub write_amplification: Gauge<f64, AtomicU64>,
    pub space_amplification: Gauge<f64, AtomicU64>,
    pub recovery_seconds: Histogram,
}

impl MasterMetrics {
    pub fn register(metrics: &Metrics) -> MasterMetrics {
        let counter = |name, help| metrics.register(name, help, Counter::default());
        let gauge = |name, help| metrics.register(name, help, Gauge::default());
        MasterMetrics {
            leases_granted: counter("uruk_master_leases_granted", "Lease renewals granted"),
            leases_refused: counter("uruk_master_leases_refused", "Lease renewals refused: the server is dead"),
            deaths: counter("uruk_master_deaths_declared", "Servers declared dead because their leases lapsed"),
            actions_failed: counter("uruk_master_actions_failed", "Steps that failed and are tried again"),
            files_deleted: counter("uruk_master_files_deleted", "Files deleted that nothing names any more"),
            orphans_deleted: counter(
                "uruk_master_orphans_deleted",
                "Files deleted that nothing ever named, of dead servers and of sorts that were not heard of",
            ),
            servers_live: gauge("uruk_master_servers_live", "Live tablet servers"),
            tablets: gauge("uruk_master_tablets", "Tablets"),
            tablets_open: gauge("uruk_master_tablets_open", "Tablets that are served"),
            tables: gauge("uruk_master_tables", "Tables"),
            recoveries_unfinished: gauge("uruk_master_recoveries_unfinished", "Recoveries that are not done"),
            files_to_delete: gauge("uruk_master_files_to_delete", "Files that wait for deletion"),
            is_leader: gauge("uruk_master_is_leader", "1 on the leader, else 0"),
            compactions_running: gauge("uruk_master_compactions_running", "Compactions that tablet servers run"),
            compactions_queued: gauge("uruk_master_compactions_queued", "Compactions that are due on tablet servers"),
            write_amplification: metrics.register(
                "uruk_master_write_amplification_ratio",
                "Bytes logged, flushed and written by compactions for each byte logged, since the servers' starts",
                Gauge::default(),
            ),
            space_amplification: metrics.register(
                "uruk_master_space_amplification_ratio",
                "Bytes of files for each byte that compactions of all files would leave, estimated",
                Gauge::default(),
            ),
            recovery_seconds: metrics.register(
                "uruk_master_recovery_seconds",
                "From a server's death being noticed to all of its tablets being open",
                Histogram::new(exponential_buckets(0.01, 2.0, 14)),
            ),
        }
    }
}
