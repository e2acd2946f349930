//! What load reports say about flushes, compactions, and the memory budget.

use uruk_proto::ErrorCode;
use uruk_proto::master::{Maintenance, MaintenanceJob, MaintenanceKind, ServerLoad};
use uruk_tabletserver::server::TabletServerConfig;

use crate::cluster::*;

/// Tiny memtables.
fn config(cluster: &Cluster) -> TabletServerConfig {
    TabletServerConfig { memtable_bytes_soft: 20_000, ..cluster.config() }
}

fn load(cluster: &Cluster, host: &Host) -> ServerLoad {
    cluster.master.with(|state| state.loads.get(&host.server.server_id().0).cloned()).unwrap_or_default()
}

fn maintenance(cluster: &Cluster, host: &Host) -> Maintenance {
    load(cluster, host).maintenance.unwrap_or_default()
}

fn compaction(jobs: &[MaintenanceJob]) -> Option<MaintenanceJob> {
    jobs.iter().find(|job| job.kind() != MaintenanceKind::Minor).cloned()
}

/// Text that no compression makes smaller by much.
fn noise(seed: u64) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'0' + (state >> 58) as u8)
    };
    (0..1_000).map(next).collect()
}

/// Writes until it holds, one row at a time.
async fn write_until(host: &Host, tablet: u64, mut holds: impl FnMut() -> bool) {
    for i in 0..5_000 {
        if holds() {
            return;
        }
        host.put(tablet, &format!("row-{:03}", i % 500), &noise(i)).await;
    }
    panic!("written in vain");
}

#[tokio::test]
async fn a_running_compaction_is_reported_with_progress_that_grows_until_it_is_over() {
    let cluster = Cluster::new().await;
    let mut config = config(&cluster);
    config.engine.block_bytes = 512;
    config.engine.merge_piece_bytes = 2_048;
    config.engine.compaction_bytes_per_second_max = 60_000;
    let host = cluster.start_with(config).await;
    cluster.open(&host, TABLET).await;
    // Three files of a known size, so that the compaction takes a known time.
    for round in 0..3 {
        for i in 0..20 {
            host.put(TABLET, &format!("row-{i:03}"), &noise(round * 20 + i)).await;
        }
        let files = || cluster.master.row(TABLET).groups.iter().map(|group| group.files.len() as u64).sum::<u64>();
        cluster.until("a flush is committed", || files() > round).await;
    }
    cluster.until("it is reported", || compaction(&maintenance(&cluster, &host).running).is_some()).await;
    let first = compaction(&maintenance(&cluster, &host).running).expect("just looked at");
    assert_eq!((first.tablet_id, &*first.reason, first.kind()), (TABLET, "ratio", MaintenanceKind::Major));
    assert!(first.input_files >= 3 && first.input_bytes > 20_000 && first.started_micros > 0, "{first:?}");
    let is_same = |job: &MaintenanceJob| job.started_micros == first.started_micros;
    let mut seen = vec![first.clone()];
    let is_over = || {
        let now = load(&cluster, &host);
        match now.maintenance.as_ref().and_then(|now| compaction(&now.running)).filter(|job| is_same(job)) {
            Some(job) => {
                assert_eq!((now.compactions_running, job.input_bytes), (1, first.input_bytes));
                seen.push(job);
                false
            }
            None => true,
        }
    };
    cluster.until("it is over", is_over).await;
    seen.dedup_by_key(|job| job.bytes_done);
    let done: Vec<u64> = seen.iter().map(|job| job.bytes_done).collect();
    assert!(done.len() > 2 && done.is_sorted() && *done.last().expect("some") <= first.input_bytes, "{done:?}");
    assert!(seen.is_sorted_by_key(|job| (job.bytes_written, job.running_ms)), "{seen:?}");
    let totals = maintenance(&cluster, &host).totals.expect("reported");
    assert!(totals.compactions >= 1 && totals.flushes >= 3, "{totals:?}");
    assert!(totals.compaction_read_bytes >= first.input_bytes && totals.compaction_written_bytes > 0, "{totals:?}");
    assert!(totals.log_bytes > totals.flushed_bytes / 2 && totals.flushed_bytes > 0, "{totals:?}");
    let amplification = totals.write_amplification().expect("something was written");
    assert!(amplification > 1.5 && amplification < 10.0, "{amplification}: {totals:?}");
    assert!(totals.space_amplification().is_some_and(|ratio| (1.0..16.0).contains(&ratio)), "{totals:?}");
    let metrics = host.env.metrics.encode();
    assert!(metrics.contains("uruk_tabletserver_compaction_written_bytes_total"), "{metrics}");
    assert!(!metrics.contains("uruk_tabletserver_flushed_bytes_total 0\n"), "{metrics}");
}

#[tokio::test]
async fn compactions_and_flushes_that_wait_are_reported_as_queued() {
    let cluster = Cluster::new().await;
    cluster.master.with(|state| state.hangs_compactions = true);
    let host = cluster.start_with(config(&cluster)).await;
    cluster.open(&host, TABLET).await;
    cluster.open(&host, TABLET + 1).await;
    write_until(&host, TABLET, || load(&cluster, &host).compactions_running == 1).await;
    write_until(&host, TABLET + 1, || load(&cluster, &host).compactions_queued == 1).await;
    let now = maintenance(&cluster, &host);
    let running = compaction(&now.running).expect("one runs");
    assert_eq!(running.tablet_id, TABLET);
    let queued = compaction(&now.queued).expect("one waits");
    assert_eq!((queued.tablet_id, queued.started_micros, queued.bytes_done), (TABLET + 1, 0, 0));
    assert!(queued.input_files >= 3 && queued.input_bytes > 0, "{queued:?}");
    // The flush of one tablet waits for the commit of its compaction, the other's runs and cannot be committed.
    cluster.master.with(|state| state.hangs_commits = true);
    let flushes = || {
        let now = maintenance(&cluster, &host);
        now.flushes_running == 1 && now.flushes_queued >= 1
    };
    for tablet in [TABLET, TABLET + 1].into_iter().cycle().take(400) {
        if flushes() {
            break;
        }
        host.put(tablet, "row", &noise(tablet)).await;
    }
    cluster.until("a flush runs and one waits", flushes).await;
    let now = maintenance(&cluster, &host);
    let flush = |jobs: &[MaintenanceJob]| jobs.iter().find(|job| job.kind() == MaintenanceKind::Minor).cloned();
    let (running, queued) = (flush(&now.running).expect("runs"), flush(&now.queued).expect("waits"));
    assert_ne!(running.tablet_id, queued.tablet_id);
    assert_eq!((&*running.reason, &*queued.reason), ("memtable", "memtable"));
    cluster.master.with(|state| (state.hangs_commits, state.hangs_compactions) = (false, false));
    let is_quiet = || {
        let now = load(&cluster, &host);
        let jobs = now.maintenance.unwrap_or_default();
        jobs.running.is_empty() && jobs.queued.is_empty() && now.compactions_running + now.compactions_queued == 0
    };
    cluster.until("nothing runs or waits", is_quiet).await;
}

#[tokio::test]
async fn memtables_stay_within_their_budget_and_refused_writes_are_counted() {
    let cluster = Cluster::new().await;
    let host = cluster.start_with(TabletServerConfig { memtable_bytes_hard: 60_000, ..config(&cluster) }).await;
    cluster.open(&host, TABLET).await;
    cluster.master.with(|state| state.hangs_commits = true);
    let mut refused = 0;
    for i in 0..100 {
        if let Err(error) = host.try_put(TABLET, &format!("row-{i}"), &noise(i)).await {
            assert_eq!(error.code, ErrorCode::Overloaded);
            refused += 1;
        }
    }
    assert!(refused > 0, "the hard limit rejects");
    cluster.let_time_pass().await;
    let budget = load(&cluster, &host).budget.expect("reported");
    assert_eq!((budget.memtable_bytes_soft, budget.memtable_bytes_hard), (20_000, 60_000));
    assert_eq!((budget.refused_for_memtables, budget.refused_for_log), (refused, 0));
    // One write more may be let in, since it is counted when it is applied.
    assert!((60_000..64_000).contains(&budget.memtable_bytes_peak), "{budget:?}");
    assert!(budget.cache_bytes_max > 0 && budget.remembered_bytes_max > 0 && budget.unflushed_log_bytes_max > 0);
}
