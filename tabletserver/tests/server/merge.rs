//! Two tablets in one.

use std::time::Duration;

use object_store::ObjectStoreExt;
use object_store::path::Path;
use uruk_proto::ErrorCode;
use uruk_proto::master::TabletKey;
use uruk_proto::tablet::ReadModifyWriteRequest;

use crate::cluster::*;
use crate::master::Fault;

/// Two neighbours, split at "m", with a row each.
async fn neighbours(cluster: &Cluster) -> (Host, [u64; 2]) {
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    host.put(TABLET, "a", "1").await;
    host.put(TABLET, "z", "1").await;
    let halves = host.split(cluster, TABLET, "m").await;
    (host, halves)
}

async fn until_writable(host: &Host, tablet: u64, row: &str) {
    let deadline = host.env.clock.now() + Duration::from_secs(10);
    while let Err(error) = host.try_put(tablet, row, "2").await {
        assert!(host.env.clock.now() < deadline, "not written: {error}");
    }
}

async fn until_declined(cluster: &Cluster, procedure: u64) -> String {
    let reason = || {
        let declined = cluster.master.with(|state| state.declined.clone());
        declined.into_iter().find(|(id, _)| *id == procedure).map(|(_, reason)| reason)
    };
    cluster.until("it is declined", || reason().is_some()).await;
    reason().expect("just looked at")
}

#[tokio::test]
async fn a_merged_tablet_holds_the_rows_of_both_and_survives_a_crash() {
    let cluster = Cluster::new().await;
    let (host, [left, right]) = neighbours(&cluster).await;
    host.put(left, "b", "2").await;
    host.put(right, "y", "2").await;
    let merged = host.merge(&cluster, [left, right]).await;
    let before = pairs(&[("a", "1"), ("b", "2"), ("y", "2"), ("z", "1")]);
    assert_eq!(host.values(merged).await, before);
    for gone in [left, right] {
        assert_eq!(host.try_scan(gone).await.expect_err("gone").code, ErrorCode::StaleLocation);
    }
    assert_eq!(cluster.master.row(merged).epoch, 3);
    host.put(merged, "c", "3").await;
    // Again, and elsewhere.
    let halves = host.split(&cluster, merged, "b").await;
    let merged = host.merge(&cluster, halves).await;
    host.put(merged, "x", "4").await;
    host.server.shutdown().await.expect("stops");
    let next = cluster.start().await;
    let order = cluster.recover(&next, merged).await;
    next.order_open(vec![order]).await;
    next.until_serving(merged).await;
    let after = pairs(&[("a", "1"), ("b", "2"), ("c", "3"), ("x", "4"), ("y", "2"), ("z", "1")]);
    assert_eq!(next.values(merged).await, after);
}

#[tokio::test]
async fn writes_that_passed_before_the_freeze_are_in_the_merged_tablet() {
    let cluster = Cluster::new().await;
    let (host, [left, right]) = neighbours(&cluster).await;
    let frames = cluster.held(&host);
    let procedure = cluster.master.start(&[left, right]);
    let writes = async { tokio::join!(host.try_put(left, "b", "2"), host.try_put(right, "y", "2")) };
    let merge = async {
        cluster.appended(&host, frames).await;
        host.order_merge(&cluster, [left, right], procedure).await;
        cluster.let_time_pass().await;
        assert!(cluster.master.results(procedure).is_none(), "merged before both were drained");
        cluster.logs.release(host.log());
        host.until_merged(&cluster, procedure).await
    };
    let (written, merged) = tokio::join!(writes, merge);
    assert_eq!(written, (Ok(()), Ok(())));
    assert_eq!(host.scan(merged).await.len(), 4);
}

#[tokio::test]
async fn a_merged_tablet_remembers_the_calls_of_both() {
    let cluster = Cluster::new().await;
    let (host, [left, right]) = neighbours(&cluster).await;
    let calls = [(left, "b", 1), (right, "y", 2)];
    let add = |tablet: u64, row: &str, sequence: u64| increment(tablet, row, 1, call(&cluster, sequence));
    for (tablet, row, sequence) in calls {
        host.client().read_modify_write(add(tablet, row, sequence)).await.expect("increments");
    }
    let merged = host.merge(&cluster, [left, right]).await;
    for (_, row, sequence) in calls {
        let again: ReadModifyWriteRequest = add(merged, row, sequence);
        let answer = host.client().read_modify_write(again).await.expect("answers").into_inner();
        assert_eq!(number(answer.batch), 1, "not done again");
    }
    host.server.shutdown().await.expect("stops");
    let next = cluster.start().await;
    let order = cluster.recover(&next, merged).await;
    next.order_open(vec![order]).await;
    next.until_serving(merged).await;
    for (_, row, sequence) in calls {
        let answer = next.client().read_modify_write(add(merged, row, sequence)).await.expect("answers").into_inner();
        assert_eq!(number(answer.batch), 1, "not done again, elsewhere");
    }
}

#[tokio::test]
async fn a_merge_whose_reply_is_lost_is_done_once() {
    for fault in [Fault::LostBefore, Fault::LostAfter] {
        let cluster = Cluster::new().await;
        let (host, halves) = neighbours(&cluster).await;
        cluster.master.with(|state| state.replacement_faults.push_back(fault));
        let merged = host.merge(&cluster, halves).await;
        assert_eq!(host.values(merged).await, pairs(&[("a", "1"), ("z", "1")]), "{fault:?}");
        assert_eq!(cluster.master.with(|state| (state.merge_requests.len(), state.rows.len())), (2, 1), "{fault:?}");
    }
}

#[tokio::test]
async fn while_its_outcome_is_unknown_neither_tablet_is_read_or_written() {
    let cluster = Cluster::new().await;
    let (host, [left, right]) = neighbours(&cluster).await;
    cluster.master.with(|state| state.hangs_replacement_replies = true);
    let procedure = cluster.master.start(&[left, right]);
    host.order_merge(&cluster, [left, right], procedure).await;
    cluster.until("it is attempted", || cluster.master.with(|state| state.merge_requests.len()) >= 2).await;
    assert!(host.is_closed_to_all(left).await && host.is_closed_to_all(right).await);
    cluster.master.with(|state| state.hangs_replacement_replies = false);
    let merged = host.until_merged(&cluster, procedure).await;
    assert_eq!(host.values(merged).await, pairs(&[("a", "1"), ("z", "1")]));
}

#[tokio::test]
async fn a_refused_merge_thaws_both_once_it_is_known_to_be_over() {
    let cluster = Cluster::new().await;
    let (host, [left, right]) = neighbours(&cluster).await;
    cluster.master.with(|state| {
        state.replacement_faults.push_back(Fault::Refused);
        state.hangs_declines = true;
    });
    let procedure = cluster.master.start(&[left, right]);
    host.order_merge(&cluster, [left, right], procedure).await;
    cluster.until("it is attempted", || !cluster.master.with(|state| state.merge_requests.is_empty())).await;
    cluster.let_time_pass().await;
    assert!(host.is_closed_to_all(left).await && host.is_closed_to_all(right).await);
    cluster.master.with(|state| state.hangs_declines = false);
    until_writable(&host, left, "a").await;
    until_writable(&host, right, "z").await;
    let file = Path::from(cluster.master.with(|state| state.merge_requests[0].memory_file.clone()));
    let is_gone = async || cluster.objects.head(&file).await.is_err();
    let deadline = cluster.env.clock.now() + Duration::from_secs(10);
    while !is_gone().await {
        assert!(cluster.env.clock.now() < deadline, "its file stays");
        tokio::task::yield_now().await;
    }
    let merged = host.merge(&cluster, [left, right]).await;
    assert_eq!(host.values(merged).await, pairs(&[("a", "2"), ("z", "2")]));
}

#[tokio::test]
async fn what_cannot_be_merged_is_declined_and_served_on() {
    let cluster = Cluster::new().await;
    let (host, [left, right]) = neighbours(&cluster).await;
    cluster.open(&host, TABLET + 1).await;
    for (tablets, why) in [
        ([right, left], "no neighbours"),
        ([left, TABLET + 1], "no neighbours"),
        ([left, 4711], "is not here"),
        ([4711, right], "is not here"),
    ] {
        let procedure = cluster.master.start(&tablets);
        host.order_merge(&cluster, tablets, procedure).await;
        let reason = until_declined(&cluster, procedure).await;
        assert!(reason.contains(why), "{reason}");
    }
    host.put(left, "a", "2").await;
    host.put(right, "z", "2").await;
    assert!(cluster.master.with(|state| state.merge_requests.is_empty()));
    host.merge(&cluster, [left, right]).await;
}

#[tokio::test]
async fn one_of_two_that_is_discarded_meanwhile_leaves_the_other_served() {
    let cluster = Cluster::new().await;
    let (host, [left, right]) = neighbours(&cluster).await;
    cluster.master.with(|state| state.hangs_replacements = true);
    let procedure = cluster.master.start(&[left, right]);
    host.order_merge(&cluster, [left, right], procedure).await;
    cluster.until("it is attempted", || !cluster.master.with(|state| state.merge_requests.is_empty())).await;
    let key = TabletKey { tablet_id: right, epoch: 2 };
    host.order_close(key, true).await;
    cluster.until("it is released", || cluster.master.with(|state| state.released == [key])).await;
    cluster.master.with(|state| {
        state.rows.remove(&right);
        state.hangs_replacements = false;
    });
    until_writable(&host, left, "a").await;
    assert_eq!(host.try_scan(right).await.expect_err("gone").code, ErrorCode::StaleLocation);
}

#[tokio::test]
async fn a_planned_end_during_a_merge_releases_what_comes_of_it() {
    let cluster = Cluster::new().await;
    let (host, [left, right]) = neighbours(&cluster).await;
    cluster.master.with(|state| state.hangs_replacements = true);
    let procedure = cluster.master.start(&[left, right]);
    host.order_merge(&cluster, [left, right], procedure).await;
    cluster.until("it is attempted", || !cluster.master.with(|state| state.merge_requests.is_empty())).await;
    let go_on = async {
        cluster.until("the master knows", || !cluster.master.with(|state| state.draining.is_empty())).await;
        cluster.master.with(|state| state.hangs_replacements = false);
    };
    tokio::join!(host.server.stop(), go_on).0.expect("stops");
    let merged = cluster.master.results(procedure).expect("done")[0].tablet_id;
    let released: Vec<u64> = cluster.master.with(|state| state.released.iter().map(|key| key.tablet_id).collect());
    assert_eq!(released, [merged]);
}
