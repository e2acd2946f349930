//! Each planted bug of the tablet server leads to something that a client can see.
//!
//! One bug is planted at a time, for the whole process: the tests wait for each other.

#[allow(dead_code, reason = "shared with the tests of the server without bugs")]
#[path = "../server/cluster.rs"]
mod cluster;
#[allow(dead_code, reason = "shared with the tests of the server without bugs")]
#[path = "../server/logs.rs"]
mod logs;
#[allow(dead_code, reason = "shared with the tests of the server without bugs")]
#[path = "../server/master.rs"]
mod master;
#[allow(dead_code, reason = "shared with the tests of the server without bugs")]
#[path = "../server/objects.rs"]
mod objects;

use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{Mutex, MutexGuard};
use uruk_base::planted::{Planted, plant};
use uruk_proto::master::TabletKey;
use uruk_proto::mutation::{self, Mutation};
use uruk_proto::tablet::{MutateRowsRequest, RowMutations};
use uruk_tabletserver::server::TabletServerConfig;

use cluster::*;

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

async fn planted(bug: Planted) -> MutexGuard<'static, ()> {
    let alone = ONE_AT_A_TIME.lock().await;
    plant(bug);
    alone
}

async fn delete(host: &Host, row: &str) {
    let entry = RowMutations { row: row.to_string().into(), mutations: mutation::pack([&Mutation::DeleteFromRow]) };
    let request = MutateRowsRequest { tablet: tablet_ref(TABLET), key: None, entries: vec![entry] };
    assert_eq!(host.mutate(request).await, Ok(vec![]));
}

async fn recover(cluster: &Cluster) -> Host {
    let next = cluster.start().await;
    let order = cluster.recover(&next, TABLET).await;
    next.order_open(vec![order]).await;
    next.until_serving(TABLET).await;
    next
}

/// Writes while the log keeps its acknowledgements; the write under way.
macro_rules! held_put {
    ($cluster:expr, $host:expr, $row:expr, $value:expr) => {{
        let frames = $cluster.logs.frames($host.log());
        let mut write = Box::pin($host.try_put(TABLET, $row, $value));
        let appended = $cluster.until("it is appended", || $cluster.logs.frames($host.log()) > frames);
        tokio::select! {
            biased;
            _ = &mut write => panic!("acknowledged"),
            () = appended => {}
        }
        write
    }};
}

#[tokio::test]
async fn read_without_lease_answers_with_what_the_next_owner_has_overwritten() {
    let _alone = planted(Planted::ReadWithoutLease).await;
    let cluster = Cluster::new().await;
    cluster.master.with(|state| state.lease_ms = 300);
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    host.put(TABLET, "a", "1").await;
    cluster.master.with(|state| state.hangs_renewals = true);
    let lapsed = cluster.env.clock.now() + Duration::from_secs(1);
    cluster.until("the lease lapses", || cluster.env.clock.now() > lapsed).await;
    assert_eq!(host.values(TABLET).await, pairs(&[("a", "1")]));
    host.try_put(TABLET, "a", "2").await.expect_err("writes are as before");
    assert_eq!(host.values(TABLET).await, pairs(&[("a", "1")]));
    assert!(host.server.wait().now_or_never().is_none(), "it lives on");
}

#[tokio::test]
async fn released_at_flush_start_loses_what_a_flush_was_about_to_write() {
    let _alone = planted(Planted::ReleasedAtFlushStart).await;
    let cluster = Cluster::new().await;
    cluster.master.with(|state| state.commits_max = Some(1));
    let host = cluster.start_with(TabletServerConfig { memtable_bytes_soft: 2_000, ..cluster.config() }).await;
    cluster.open(&host, TABLET).await;
    host.put(TABLET, "a", &"v".repeat(3_000)).await;
    cluster.until("a flush begins", || cluster.master.with(|state| !state.commits.is_empty())).await;
    host.server.shutdown().await.expect("stops");
    cluster.master.with(|state| state.commits_max = None);
    assert_eq!(recover(&cluster).await.values(TABLET).await, []);
}

#[tokio::test]
async fn reused_numbers_make_a_deletion_after_a_move_void() {
    let _alone = planted(Planted::SeqNosReused).await;
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    host.put(TABLET, "b", "1").await;
    host.put(TABLET, "a", "1").await;
    host.order_close(TabletKey { tablet_id: TABLET, epoch: 1 }, false).await;
    cluster.until("it is released", || !cluster.master.with(|state| state.released.is_empty())).await;
    cluster.master.with(|state| state.rows.get_mut(&TABLET).expect("row").needed_logs.clear());
    let next = cluster.start().await;
    cluster.open(&next, TABLET).await;
    delete(&next, "a").await;
    assert_eq!(next.values(TABLET).await, pairs(&[("a", "1"), ("b", "1")]), "still there");
    next.put(TABLET, "c", "1").await;
    next.server.shutdown().await.expect("stops");
    assert_eq!(recover(&cluster).await.values(TABLET).await, pairs(&[("a", "1"), ("b", "1")]), "c is lost");
}

#[tokio::test]
async fn acknowledged_before_durable_is_lost_by_a_crash() {
    let _alone = planted(Planted::AckBeforeDurable).await;
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    let frames = cluster.held(&host);
    host.put(TABLET, "a", "1").await;
    host.server.shutdown().await.expect("stops");
    cluster.logs.truncate(host.log(), frames);
    assert_eq!(recover(&cluster).await.values(TABLET).await, []);
}

#[tokio::test]
async fn visible_before_durable_is_read_and_then_gone() {
    let _alone = planted(Planted::VisibleBeforeDurable).await;
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    let frames = cluster.held(&host);
    let write = held_put!(cluster, host, "a", "1");
    assert_eq!(host.values(TABLET).await, pairs(&[("a", "1")]));
    drop(write);
    host.server.shutdown().await.expect("stops");
    cluster.logs.truncate(host.log(), frames);
    assert_eq!(recover(&cluster).await.values(TABLET).await, []);
}

#[tokio::test]
async fn visible_before_durable_lives_on_when_the_log_answers() {
    let _alone = planted(Planted::VisibleBeforeDurable).await;
    let cluster = Cluster::new().await;
    let host = cluster.start_with(TabletServerConfig { memtable_bytes_soft: 2_000, ..cluster.config() }).await;
    cluster.open(&host, TABLET).await;
    for i in 0..50 {
        host.put(TABLET, &format!("row-{i:02}"), &"v".repeat(1_000)).await;
    }
    assert_eq!(host.scan(TABLET).await.len(), 50);
}

#[tokio::test]
async fn replayed_twice_brings_back_what_was_deleted() {
    let _alone = planted(Planted::ReplayedTwice).await;
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    host.put(TABLET, "a", "1").await;
    delete(&host, "a").await;
    assert_eq!(host.values(TABLET).await, []);
    host.server.shutdown().await.expect("stops");
    let next = recover(&cluster).await;
    assert_eq!(next.values(TABLET).await, pairs(&[("a", "1")]));
    next.put(TABLET, "b", "1").await;
}

#[tokio::test]
async fn served_before_opened_has_two_owners() {
    let _alone = planted(Planted::ServesBeforeOpened).await;
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.master.with(|state| state.hangs_opened = true);
    cluster.open(&host, TABLET).await;
    // As after a failed attempt to open it, whose order comes a second time.
    let next = cluster.start().await;
    cluster.open(&next, TABLET).await;
    next.put(TABLET, "a", "1").await;
    assert_eq!(host.values(TABLET).await, []);
}

#[tokio::test]
async fn flushed_ahead_loses_a_write_that_was_under_way() {
    let _alone = planted(Planted::FlushedAhead).await;
    let cluster = Cluster::new().await;
    let config = TabletServerConfig { memtable_bytes_soft: 2_000, frame_bytes: 1, ..cluster.config() };
    let host = cluster.start_with(config).await;
    cluster.open(&host, TABLET).await;
    cluster.logs.hold(host.log());
    let value = "v".repeat(3_000);
    let first = held_put!(cluster, host, "a", &value);
    let second = held_put!(cluster, host, "b", "1");
    cluster.logs.release_upto(host.log(), 1);
    first.await.expect("writes");
    cluster.until("it is flushed", || !cluster.master.row(TABLET).groups.is_empty()).await;
    cluster.logs.release(host.log());
    second.await.expect("writes");
    assert_eq!(host.scan(TABLET).await.len(), 2);
    host.server.shutdown().await.expect("stops");
    assert_eq!(recover(&cluster).await.values(TABLET).await, pairs(&[("a", &value)]));
}

#[tokio::test]
async fn a_late_first_attempt_undoes_what_came_after_its_retry() {
    let _alone = planted(Planted::LateFirstAttempt).await;
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    let request = puts(TABLET, &[("a", "1")], call(&cluster, 1));
    assert_eq!(host.mutate(request.clone()).await, Ok(vec![]));
    host.put(TABLET, "a", "2").await;
    assert_eq!(host.mutate(request).await, Ok(vec![]));
    assert_eq!(host.values(TABLET).await, pairs(&[("a", "1")]));
    let add = increment(TABLET, "n", 1, call(&cluster, 2));
    for expected in [1, 2] {
        let answer = host.client().read_modify_write(add.clone()).await.expect("increments");
        assert_eq!(number(answer.into_inner().batch), expected);
    }
}

#[tokio::test]
async fn freezing_without_a_drain_loses_a_write_that_had_passed() {
    let _alone = planted(Planted::FreezeWithoutDrain).await;
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    host.put(TABLET, "a", "1").await;
    cluster.logs.hold(host.log());
    let write = held_put!(cluster, host, "z", "1");
    let [left, right] = host.split(&cluster, TABLET, "m").await;
    cluster.logs.release(host.log());
    write.await.expect("acknowledged");
    assert_eq!(host.values(left).await, pairs(&[("a", "1")]));
    assert_eq!(host.values(right).await, []);
}

#[tokio::test]
async fn a_split_without_a_final_flush_loses_what_is_in_no_file() {
    let _alone = planted(Planted::SplitWithoutFinalFlush).await;
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    host.put(TABLET, "a", "1").await;
    let [left, _] = host.split(&cluster, TABLET, "m").await;
    assert_eq!(host.values(left).await, []);
}

#[tokio::test]
async fn a_parent_that_thaws_when_a_reply_is_lost_takes_writes_that_nobody_finds() {
    let _alone = planted(Planted::SplitReplyLostThaws).await;
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    host.put(TABLET, "a", "1").await;
    cluster.master.with(|state| state.replacement_faults.push_back(master::Fault::LostAfter));
    let procedure = cluster.master.start(&[TABLET]);
    host.order_split(&cluster, TABLET, procedure, "m").await;
    cluster.until("the split is done", || cluster.master.results(procedure).is_some()).await;
    let deadline = cluster.env.clock.now() + Duration::from_secs(10);
    while host.try_put(TABLET, "b", "1").await.is_err() {
        assert!(cluster.env.clock.now() < deadline, "it stays frozen");
    }
    let halves = cluster.master.results(procedure).expect("done");
    let order = |row: &uruk_proto::master::MetaRow| uruk_proto::master::OpenTablet {
        row: Some(row.clone()),
        recovered: vec![],
        schema: Some(schema()),
    };
    host.order_open(halves.iter().map(order).collect()).await;
    host.until_serving(halves[0].tablet_id).await;
    assert_eq!(host.values(halves[0].tablet_id).await, pairs(&[("a", "1")]));
}

#[tokio::test]
async fn a_compaction_of_a_parent_is_sent_when_nobody_stops_it() {
    let _alone = planted(Planted::ParentCompactionCommits).await;
    let cluster = Cluster::new().await;
    let host = cluster.start_with(TabletServerConfig { memtable_bytes_soft: 20_000, ..cluster.config() }).await;
    cluster.open(&host, TABLET).await;
    for i in 0..200 {
        host.put(TABLET, &format!("{i:03}"), &"v".repeat(3_000)).await;
    }
    let [left, right] = host.split(&cluster, TABLET, "100").await;
    assert_eq!(host.scan(left).await.len() + host.scan(right).await.len(), 200);
}
