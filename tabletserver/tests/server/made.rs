//! What a split or a merge has made is served at the master's answer, before it is reported as opened.

use uruk_proto::ErrorCode;
use uruk_proto::master::{MetaRow, OpenTablet, TabletKey, TabletState};

use crate::cluster::*;

async fn with_rows(cluster: &Cluster) -> Host {
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    host.put(TABLET, "a", "1").await;
    host.put(TABLET, "z", "1").await;
    host
}

/// A split that the master has begun; its halves are served, but not reported.
async fn split(cluster: &Cluster, host: &Host) -> [u64; 2] {
    let procedure = cluster.master.start(&[TABLET]);
    host.order_split(cluster, TABLET, procedure, "m").await;
    host.until_split(cluster, procedure).await
}

fn key_of(row: &MetaRow) -> TabletKey {
    TabletKey { tablet_id: row.tablet_id, epoch: row.epoch }
}

fn order(row: MetaRow) -> OpenTablet {
    OpenTablet { row: Some(row), recovered: vec![], schema: Some(schema()) }
}

#[tokio::test]
async fn halves_are_read_and_written_before_they_are_reported() {
    let cluster = Cluster::new().await;
    let host = with_rows(&cluster).await;
    cluster.master.with(|state| state.hangs_opened = true);
    let [left, right] = split(&cluster, &host).await;
    host.put(left, "b", "2").await;
    host.put(right, "y", "2").await;
    assert_eq!(host.values(left).await, pairs(&[("a", "1"), ("b", "2")]));
    assert_eq!(host.values(right).await, pairs(&[("y", "2"), ("z", "1")]));
    assert_eq!(host.try_scan(TABLET).await.expect_err("gone").code, ErrorCode::StaleLocation);
    for half in [left, right] {
        assert_eq!(cluster.master.row(half).state, TabletState::Opening as i32);
    }
    cluster.master.with(|state| state.hangs_opened = false);
    cluster.until_reported(&[left, right]).await;
    assert_eq!(host.values(left).await, pairs(&[("a", "1"), ("b", "2")]));
}

#[tokio::test]
async fn a_merged_tablet_is_read_and_written_before_it_is_reported() {
    let cluster = Cluster::new().await;
    let host = with_rows(&cluster).await;
    let halves = host.split(&cluster, TABLET, "m").await;
    cluster.master.with(|state| state.hangs_opened = true);
    let procedure = cluster.master.start(&halves);
    host.order_merge(&cluster, halves, procedure).await;
    let merged = host.until_merged(&cluster, procedure).await;
    host.put(merged, "n", "2").await;
    assert_eq!(host.values(merged).await, pairs(&[("a", "1"), ("n", "2"), ("z", "1")]));
    cluster.master.with(|state| state.hangs_opened = false);
    cluster.until_reported(&[merged]).await;
}

#[tokio::test]
async fn a_half_that_is_not_ours_to_report_any_more_is_flushed_before_it_is_released() {
    let cluster = Cluster::new().await;
    let host = with_rows(&cluster).await;
    // As when the first report has committed without an answer, and it was ordered to be closed since.
    cluster.master.with(|state| state.owns_nothing = true);
    let [left, right] = split(&cluster, &host).await;
    cluster.until("it is reported", || cluster.master.with(|state| state.opened_calls.len()) >= 2).await;
    cluster.let_time_pass().await;
    host.put(left, "b", "2").await;
    host.put(right, "y", "2").await;
    let key = key_of(&cluster.master.row(left));
    host.order_close(key, false).await;
    cluster.until("it is released", || cluster.master.with(|state| state.released.contains(&key))).await;
    // Released: its log is not needed.
    cluster.master.with(|state| {
        state.owns_nothing = false;
        state.rows.get_mut(&left).expect("is there").needed_logs.clear();
    });
    let next = cluster.start().await;
    cluster.open(&next, left).await;
    assert_eq!(next.values(left).await, pairs(&[("a", "1"), ("b", "2")]));
}

#[tokio::test]
async fn a_half_whose_report_is_refused_stays_and_is_reported_again_when_it_is_ordered_to_be_opened() {
    let cluster = Cluster::new().await;
    let host = with_rows(&cluster).await;
    cluster.master.with(|state| state.refuses_opened = true);
    let [left, right] = split(&cluster, &host).await;
    cluster.until("it is reported", || cluster.master.with(|state| state.opened_calls.len()) >= 2).await;
    cluster.let_time_pass().await;
    host.put(left, "b", "2").await;
    cluster.master.with(|state| state.refuses_opened = false);
    let orders = [left, right].map(|half| order(cluster.master.row(half)));
    host.order_open(orders.to_vec()).await;
    cluster.until_reported(&[left, right]).await;
    assert_eq!(host.values(left).await, pairs(&[("a", "1"), ("b", "2")]), "not read from its files anew");
}

#[tokio::test]
async fn an_answer_that_tells_of_later_times_is_no_word_that_the_halves_may_be_served() {
    let cluster = Cluster::new().await;
    let host = with_rows(&cluster).await;
    cluster.master.with(|state| state.hangs_replacement_replies = true);
    let procedure = cluster.master.start(&[TABLET]);
    host.order_split(&cluster, TABLET, procedure, "m").await;
    cluster.until("the split is done", || cluster.master.results(procedure).is_some()).await;
    // The halves went to another server and came back; nobody has said `opened` since.
    let halves = cluster.master.with(|state| {
        let halves = state.procedures.get_mut(&procedure).and_then(|known| known.results.as_mut()).expect("done");
        halves.iter_mut().for_each(|half| half.epoch += 2);
        let halves = halves.clone();
        state.rows.extend(halves.iter().map(|row| (row.tablet_id, row.clone())));
        state.hangs_replacement_replies = false;
        halves
    });
    let is_gone = async || host.try_scan(TABLET).await.is_err_and(|error| error.code == ErrorCode::StaleLocation);
    let deadline = cluster.env.clock.now() + std::time::Duration::from_secs(10);
    while !is_gone().await {
        assert!(cluster.env.clock.now() < deadline, "the parent stays");
    }
    for half in &halves {
        assert_eq!(host.try_scan(half.tablet_id).await.expect_err("waits").code, ErrorCode::StaleLocation);
    }
    assert!(cluster.master.with(|state| state.opened_calls.len()) == 1, "only the parent was ever reported");
    host.order_open(halves.iter().cloned().map(order).collect()).await;
    for half in &halves {
        host.until_serving(half.tablet_id).await;
    }
}
