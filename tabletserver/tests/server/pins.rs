//! What load reports say about files that are still read.

use uruk_proto::master::{CommitFilesRequest, TabletKey};
use uruk_proto::tablet::ReadRequest;
use uruk_tabletserver::server::TabletServerConfig;

use crate::cluster::*;

/// Waits for `count` reports with a number above `after`, and answers with what each lists.
async fn reports_after(cluster: &Cluster, after: u64, count: usize) -> Vec<Vec<String>> {
    let later = || {
        cluster.master.with(|state| {
            let later = state.reports.iter().filter(|(_, number, _)| *number > after);
            later.map(|(_, _, pinned)| pinned.clone()).collect::<Vec<_>>()
        })
    };
    cluster.until("later reports", || later().len() >= count).await;
    later()
}

fn last_report(cluster: &Cluster) -> u64 {
    cluster.master.with(|state| state.reports.last().expect("has reported").1)
}

#[tokio::test]
async fn every_report_has_a_number_of_its_own() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    reports_after(&cluster, 0, 3).await;
    // Numbers of reports that nobody hears of are not used again.
    cluster.master.with(|state| state.hangs_renewals = true);
    cluster.env.clock.sleep(std::time::Duration::from_millis(250)).await;
    let seen = last_report(&cluster);
    cluster.master.with(|state| state.hangs_renewals = false);
    reports_after(&cluster, seen, 2).await;
    let numbers: Vec<u64> = cluster.master.with(|state| state.reports.iter().map(|(_, number, _)| *number).collect());
    assert!(numbers[0] >= 1 && numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    assert!(numbers.iter().any(|number| *number > seen + 1), "{seen}: {numbers:?}");
}

#[tokio::test]
async fn a_scan_of_a_tablet_that_was_closed_pins_its_files() {
    let cluster = Cluster::new().await;
    let mut config = TabletServerConfig { memtable_bytes_soft: 4 << 20, ..cluster.config() };
    config.engine.scan_batch_bytes = 1;
    let host = cluster.start_with(config).await;
    cluster.open(&host, TABLET).await;
    // More than the flow-control windows hold, so that the scan cannot finish unread.
    let value = "v".repeat(1 << 20);
    for i in 0..24 {
        host.put(TABLET, &format!("row-{i}"), &value).await;
    }
    cluster.until("a flush is committed", || !cluster.master.row(TABLET).groups.is_empty()).await;
    let files: Vec<String> = cluster.master.row(TABLET).groups[0].files.iter().map(|file| file.path.clone()).collect();
    let request = ReadRequest { tablet: tablet_ref(TABLET), ..ReadRequest::default() };
    let mut scan = host.client().read(request).await.expect("starts").into_inner();
    scan.message().await.expect("goes on").expect("has rows");
    host.order_close(TabletKey { tablet_id: TABLET, epoch: 1 }, false).await;
    cluster.until("it is released", || !cluster.master.with(|state| state.released.is_empty())).await;
    let released = cluster.master.with(|state| state.released_reports[0]);
    for pinned in reports_after(&cluster, released, 3).await {
        assert!(files.iter().all(|file| pinned.contains(file)), "{files:?} are read, {pinned:?} reported");
    }
    drop(scan);
    let is_free = || cluster.master.with(|state| state.reports.last().is_some_and(|(_, _, pinned)| pinned.is_empty()));
    cluster.until("nothing is pinned any more", is_free).await;
}

#[tokio::test]
async fn a_compaction_pins_its_inputs_until_its_outcome_is_known() {
    let cluster = Cluster::new().await;
    cluster.master.with(|state| state.hangs_compactions = true);
    let host = cluster.start_with(TabletServerConfig { memtable_bytes_soft: 20_000, ..cluster.config() }).await;
    cluster.open(&host, TABLET).await;
    let value = "v".repeat(3_000);
    let attempted = || cluster.master.with(|state| state.compactions.first().cloned());
    let mut rows = 0;
    let commit: CommitFilesRequest = loop {
        if let Some(commit) = attempted() {
            break commit;
        }
        host.put(TABLET, &format!("row-{rows:04}"), &value).await;
        rows += 1;
        assert!(rows < 5000, "no compaction");
    };
    assert!(!commit.remove.is_empty());
    for pinned in reports_after(&cluster, commit.report_number, 3).await {
        assert!(commit.remove.iter().all(|path| pinned.contains(path)), "{:?}: {pinned:?}", commit.remove);
    }
    cluster.master.with(|state| state.hangs_compactions = false);
    let is_free = || {
        cluster.master.with(|state| {
            let (_, _, pinned) = state.reports.last().expect("has reported");
            commit.remove.iter().all(|path| !pinned.contains(path))
        })
    };
    cluster.until("the inputs are free", is_free).await;
    assert!(!cluster.master.row(TABLET).groups[0].files.iter().any(|file| commit.remove.contains(&file.path)));
}
