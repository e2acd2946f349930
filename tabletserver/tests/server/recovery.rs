//! A dead server's tablets live on elsewhere, whole.

use std::sync::atomic::Ordering;
use std::time::Duration;

use uruk_base::commit_log::Lsn;
use uruk_proto::master::{OpenTablet, TabletKey};
use uruk_proto::tablet::SortSegmentRequest;
use uruk_proto::{ErrorCode, RpcError};

use crate::cluster::*;

async fn fill(host: &Host, tablet: u64, count: usize) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    for i in 0..count {
        let (row, value) = (format!("row-{i:04}"), format!("value-{tablet}-{i}"));
        host.put(tablet, &row, &value).await;
        rows.push((row, value));
    }
    rows
}

#[tokio::test]
async fn every_acknowledged_write_is_read_on_the_next_owner() {
    let cluster = Cluster::with_segments(500).await;
    let host = cluster.start().await;
    for tablet in [TABLET, TABLET + 1] {
        cluster.open(&host, tablet).await;
    }
    let rows = fill(&host, TABLET, 40).await;
    let others = fill(&host, TABLET + 1, 40).await;
    host.server.shutdown().await.expect("stops");
    let next = cluster.start().await;
    let orders = vec![cluster.recover(&next, TABLET).await, cluster.recover(&next, TABLET + 1).await];
    assert!(orders[0].recovered.len() > 3, "several pieces");
    next.order_open(orders).await;
    next.until_serving(TABLET).await;
    next.until_serving(TABLET + 1).await;
    assert_eq!(next.values(TABLET).await, rows);
    assert_eq!(next.values(TABLET + 1).await, others);
}

#[tokio::test]
async fn a_second_crash_before_the_flush_needs_both_logs() {
    let cluster = Cluster::new().await;
    let first = cluster.start().await;
    cluster.open(&first, TABLET).await;
    first.put(TABLET, "a", "1").await;
    first.server.shutdown().await.expect("stops");
    cluster.master.with(|state| state.hangs_commits = true);
    let second = cluster.start().await;
    let order = cluster.recover(&second, TABLET).await;
    second.order_open(vec![order]).await;
    second.until_serving(TABLET).await;
    second.put(TABLET, "b", "2").await;
    second.put(TABLET, "a", "2").await;
    second.server.shutdown().await.expect("stops");
    cluster.master.with(|state| state.hangs_commits = false);
    let third = cluster.start().await;
    let order = cluster.recover(&third, TABLET).await;
    assert_eq!(order.row.as_ref().expect("row").needed_logs, [1, 2, 3]);
    third.order_open(vec![order]).await;
    third.until_serving(TABLET).await;
    assert_eq!(third.values(TABLET).await, pairs(&[("a", "2"), ("b", "2")]));
}

#[tokio::test]
async fn replay_is_idempotent_and_skips_what_is_flushed() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    host.put(TABLET, "a", "1").await;
    host.put(TABLET, "b", "1").await;
    host.server.shutdown().await.expect("stops");
    let next = cluster.start().await;
    let mut order = cluster.recover(&next, TABLET).await;
    // The same records from two files, as after two sorts of one piece.
    let again = cluster.sort_log(&next, 1).await;
    order.recovered.extend(again);
    let recovered = order.recovered.clone();
    next.order_open(vec![order]).await;
    next.until_serving(TABLET).await;
    assert_eq!(next.scan(TABLET).await.iter().map(|row| row.cells.len()).collect::<Vec<_>>(), [1, 1]);
    cluster.until("the flush is committed", || cluster.master.row(TABLET).needed_logs == [2]).await;
    next.server.shutdown().await.expect("stops");
    let last = cluster.start().await;
    let mut order = cluster.recover(&last, TABLET).await;
    order.recovered.extend(recovered);
    last.order_open(vec![order]).await;
    last.until_serving(TABLET).await;
    assert_eq!(last.values(TABLET).await, pairs(&[("a", "1"), ("b", "1")]));
}

#[tokio::test]
async fn a_gap_in_the_log_fails_the_tablet_loudly() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    fill(&host, TABLET, 5).await;
    host.server.shutdown().await.expect("stops");
    cluster.logs.lose_frame(host.log(), 2);
    let next = cluster.start().await;
    let order = cluster.recover(&next, TABLET).await;
    next.order_open(vec![order]).await;
    cluster.until("it fails", || !cluster.master.with(|state| state.failed.is_empty())).await;
    let failed = cluster.master.with(|state| state.failed.remove(0));
    assert!(failed.reason.contains("gap in the recovered log"), "{}", failed.reason);
    assert!(failed.lost_recovery_files.is_empty());
    assert_eq!(next.try_scan(TABLET).await.expect_err("not open").code, ErrorCode::StaleLocation);
}

#[tokio::test]
async fn a_missing_or_damaged_recovery_file_is_named() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    fill(&host, TABLET, 5).await;
    host.server.shutdown().await.expect("stops");
    let next = cluster.start().await;
    for damage in [None, Some(0), Some(40)] {
        let order = cluster.recover(&next, TABLET).await;
        let path = order.recovered[0].path.clone();
        let location = object_store::path::Path::from(path.as_str());
        use object_store::ObjectStoreExt;
        let file = cluster.objects.get(&location).await.expect("written").bytes().await.expect("whole");
        cluster.objects.delete(&location).await.expect("deletes");
        if let Some(from_end) = damage {
            let mut bad = file.to_vec();
            let at = bad.len() - 1 - from_end;
            bad[at] ^= 1;
            cluster.objects.put(&location, bad.into()).await.expect("writes");
        }
        next.order_open(vec![order]).await;
        cluster.until("it fails", || !cluster.master.with(|state| state.failed.is_empty())).await;
        let failed = cluster.master.with(|state| state.failed.remove(0));
        assert_eq!(failed.lost_recovery_files, [path], "{}", failed.reason);
    }
    let order = cluster.recover(&next, TABLET).await;
    next.order_open(vec![order]).await;
    next.until_serving(TABLET).await;
    assert_eq!(next.scan(TABLET).await.len(), 5);
}

#[tokio::test]
async fn all_recovery_files_that_cannot_be_read_are_named_at_once() {
    let cluster = Cluster::with_segments(500).await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    fill(&host, TABLET, 40).await;
    host.server.shutdown().await.expect("stops");
    let next = cluster.start().await;
    let order = cluster.recover(&next, TABLET).await;
    let mut paths: Vec<_> = order.recovered.iter().map(|segment| segment.path.clone()).collect();
    assert!(paths.len() > 3, "several pieces");
    paths.remove(1);
    for path in &paths {
        use object_store::ObjectStoreExt;
        cluster.objects.delete(&path.as_str().into()).await.expect("deletes");
    }
    next.order_open(vec![order]).await;
    cluster.until("it fails", || !cluster.master.with(|state| state.failed.is_empty())).await;
    let failed = cluster.master.with(|state| state.failed.remove(0));
    assert_eq!(failed.lost_recovery_files, paths, "{}", failed.reason);
}

#[tokio::test]
async fn a_recovery_file_that_cannot_be_read_for_long_counts_as_lost() {
    let cluster = Cluster::new().await;
    cluster.master.with(|state| state.lease_ms = 60_000);
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    let rows = fill(&host, TABLET, 5).await;
    host.server.shutdown().await.expect("stops");
    let next = cluster.start().await;
    let order = cluster.recover(&next, TABLET).await;
    let path = order.recovered[0].path.clone();
    cluster.hides_recovery_files.store(true, Ordering::Relaxed);
    next.order_open(vec![order.clone()]).await;
    cluster.let_time_pass().await;
    assert!(cluster.master.with(|state| state.failed.is_empty()), "it is tried again for a while");
    cluster.clock.jump(Duration::from_secs(10));
    cluster.until("it fails", || !cluster.master.with(|state| state.failed.is_empty())).await;
    let failed = cluster.master.with(|state| state.failed.remove(0));
    assert_eq!(failed.lost_recovery_files, [path], "{}", failed.reason);
    cluster.hides_recovery_files.store(false, Ordering::Relaxed);
    next.order_open(vec![order]).await;
    next.until_serving(TABLET).await;
    assert_eq!(next.values(TABLET).await, rows);
}

#[tokio::test]
async fn sorting_refuses_garbage_and_short_logs() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    fill(&host, TABLET, 3).await;
    let end = cluster.logs.end(host.log());
    let request = |end: Lsn| SortSegmentRequest {
        server_id: host.server.server_id().0,
        log_id: host.log().0,
        segment: 0,
        start_lsn: 0,
        end_lsn: end.0,
        log_segments: vec![0, end.0],
    };
    let code = |status: tonic::Status| RpcError::from(status).code;
    let longer = Lsn(end.0 + 1);
    let short = host.control().sort_segment(request(longer)).await.expect_err("ends early");
    assert_eq!(code(short), ErrorCode::Corrupt);
    cluster.logs.corrupt_frame(host.log(), 1);
    let garbage = host.control().sort_segment(request(end)).await.expect_err("garbage");
    assert_eq!(code(garbage), ErrorCode::Corrupt);
}

#[tokio::test]
async fn an_empty_piece_makes_no_file() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    let request = SortSegmentRequest {
        server_id: host.server.server_id().0,
        log_id: 77,
        log_segments: vec![0, 0],
        ..SortSegmentRequest::default()
    };
    assert_eq!(host.control().sort_segment(request).await.expect("sorts").into_inner().path, "");
}

#[tokio::test]
async fn timestamps_do_not_fall_on_the_next_owner() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    host.put(TABLET, "a", "1").await;
    let before = host.scan(TABLET).await[0].cells[0].timestamp;
    host.server.shutdown().await.expect("stops");
    let next = cluster.start().await;
    let order = cluster.recover(&next, TABLET).await;
    next.order_open(vec![order]).await;
    next.until_serving(TABLET).await;
    next.put(TABLET, "a", "2").await;
    let after = next.scan(TABLET).await[0].cells[0].timestamp;
    assert!(after >= before);
    assert_eq!(after % 1000, 0, "milliseconds");
}

/// A tablet of which everything is in files, and the order for the next server.
async fn released_tablet(cluster: &Cluster) -> (Host, OpenTablet) {
    cluster.master.with(|state| state.lease_ms = 60_000);
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    host.put(TABLET, "a", "1").await;
    host.server.stop().await.expect("stops");
    cluster.master.with(|state| state.rows.get_mut(&TABLET).expect("row").needed_logs.clear());
    let next = cluster.start().await;
    let order = cluster.assign(&next, TABLET, vec![]);
    cluster.hides_files.store(true, Ordering::Relaxed);
    next.order_open(vec![order.clone()]).await;
    cluster.let_time_pass().await;
    assert!(cluster.master.with(|state| state.failed.is_empty()), "it is tried again for a while");
    (next, order)
}

#[tokio::test]
async fn a_tablet_whose_files_cannot_be_read_for_long_is_reported() {
    let cluster = Cluster::new().await;
    let (next, order) = released_tablet(&cluster).await;
    cluster.clock.jump(Duration::from_secs(10));
    cluster.until("it fails", || !cluster.master.with(|state| state.failed.is_empty())).await;
    let failed = cluster.master.with(|state| state.failed.remove(0));
    assert!(failed.lost_recovery_files.is_empty() && failed.reason.contains(".mem"), "{failed:?}");
    assert_eq!(next.try_scan(TABLET).await.expect_err("given up").code, ErrorCode::StaleLocation);
    cluster.hides_files.store(false, Ordering::Relaxed);
    next.order_open(vec![order]).await;
    next.until_serving(TABLET).await;
    assert_eq!(next.values(TABLET).await, pairs(&[("a", "1")]));
}

#[tokio::test]
async fn an_opening_that_is_closed_ends() {
    let cluster = Cluster::new().await;
    let (next, _) = released_tablet(&cluster).await;
    let key = TabletKey { tablet_id: TABLET, epoch: 2 };
    next.order_close(key, false).await;
    cluster.until("it is released", || cluster.master.with(|state| state.released.contains(&key))).await;
    cluster.clock.jump(Duration::from_secs(10));
    cluster.let_time_pass().await;
    assert!(cluster.master.with(|state| state.failed.is_empty()), "nobody works on it any more");
}
