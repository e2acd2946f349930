//! Splits with lost replies, refusals, repeated and late orders, and everything else that happens meanwhile.

use std::time::Duration;

use uruk_proto::ErrorCode;
use uruk_proto::master::{OpenTablet, TabletKey};
use uruk_tabletserver::server::{Ended, TabletServerConfig};

use crate::cluster::*;
use crate::master::Fault;

const KEY: TabletKey = TabletKey { tablet_id: TABLET, epoch: 1 };

async fn with_rows(cluster: &Cluster) -> Host {
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    host.put(TABLET, "a", "1").await;
    host.put(TABLET, "z", "1").await;
    host
}

async fn until_attempted(cluster: &Cluster, attempts: usize) {
    cluster.until("it is attempted", || cluster.master.with(|state| state.attempts.len()) >= attempts).await;
}

async fn until_declined(cluster: &Cluster, procedure: u64) {
    let is_declined = || cluster.master.with(|state| state.declined.iter().any(|(id, _)| *id == procedure));
    cluster.until("it is declined", is_declined).await;
}

async fn until_writable(host: &Host, tablet: u64) {
    let deadline = host.env.clock.now() + Duration::from_secs(10);
    while let Err(error) = host.try_put(tablet, "a", "2").await {
        assert!(host.env.clock.now() < deadline, "not written: {error}");
    }
}

#[tokio::test]
async fn a_split_whose_reply_is_lost_is_done_once() {
    for fault in [Fault::LostBefore, Fault::LostAfter] {
        let cluster = Cluster::new().await;
        let host = with_rows(&cluster).await;
        cluster.master.with(|state| state.replacement_faults.push_back(fault));
        let [left, right] = host.split(&cluster, TABLET, "m").await;
        assert_eq!(host.values(left).await, pairs(&[("a", "1")]), "{fault:?}");
        assert_eq!(host.values(right).await, pairs(&[("z", "1")]), "{fault:?}");
        assert_eq!(cluster.master.with(|state| (state.attempts.len(), state.rows.len())), (2, 2), "{fault:?}");
    }
}

#[tokio::test]
async fn while_its_outcome_is_unknown_a_parent_is_neither_read_nor_written() {
    for is_done in [false, true] {
        let cluster = Cluster::new().await;
        let host = with_rows(&cluster).await;
        cluster.master.with(|state| {
            state.hangs_replacements = !is_done;
            state.hangs_replacement_replies = is_done;
        });
        let procedure = cluster.master.start(&[TABLET]);
        host.order_split(&cluster, TABLET, procedure, "m").await;
        until_attempted(&cluster, 3).await;
        assert!(host.is_closed_to_all(TABLET).await);
        cluster.let_time_pass().await;
        assert!(host.is_closed_to_all(TABLET).await, "silence thaws nothing");
        cluster.master.with(|state| {
            state.hangs_replacements = false;
            state.hangs_replacement_replies = false;
        });
        let [left, _] = host.until_split(&cluster, procedure).await;
        assert_eq!(host.values(left).await, pairs(&[("a", "1")]));
    }
}

#[tokio::test]
async fn halves_that_are_opened_by_order_serve_though_the_reply_is_lost() {
    let cluster = Cluster::new().await;
    let host = with_rows(&cluster).await;
    cluster.master.with(|state| state.hangs_replacement_replies = true);
    let procedure = cluster.master.start(&[TABLET]);
    host.order_split(&cluster, TABLET, procedure, "m").await;
    cluster.until("the split is done", || cluster.master.results(procedure).is_some()).await;
    let halves = cluster.master.results(procedure).expect("done");
    let order = |row: &uruk_proto::master::MetaRow| OpenTablet {
        row: Some(row.clone()),
        recovered: vec![],
        schema: Some(schema()),
    };
    host.order_open(halves.iter().map(order).collect()).await;
    let [left, right] = host.until_split(&cluster, procedure).await;
    host.put(left, "b", "2").await;
    assert!(host.is_closed_to_all(TABLET).await, "the parent does not show what is old");
    cluster.master.with(|state| state.hangs_replacement_replies = false);
    let is_gone = async || host.try_scan(TABLET).await.is_err_and(|error| error.code == ErrorCode::StaleLocation);
    let deadline = cluster.env.clock.now() + Duration::from_secs(10);
    while !is_gone().await {
        assert!(cluster.env.clock.now() < deadline, "the parent stays");
    }
    assert_eq!(host.values(left).await, pairs(&[("a", "1"), ("b", "2")]), "not replaced by an older one");
    assert_eq!(host.values(right).await, pairs(&[("z", "1")]));
}

#[tokio::test]
async fn a_refused_split_thaws_only_when_the_master_knows_that_it_is_over() {
    let cluster = Cluster::new().await;
    let host = with_rows(&cluster).await;
    cluster.master.with(|state| {
        state.replacement_faults.push_back(Fault::Refused);
        state.hangs_declines = true;
    });
    let procedure = cluster.master.start(&[TABLET]);
    host.order_split(&cluster, TABLET, procedure, "m").await;
    until_attempted(&cluster, 1).await;
    cluster.let_time_pass().await;
    assert!(host.is_closed_to_all(TABLET).await);
    cluster.master.with(|state| state.hangs_declines = false);
    until_writable(&host, TABLET).await;
    assert_eq!(cluster.master.with(|state| state.attempts.len()), 1);
    until_declined(&cluster, procedure).await;
    assert_eq!(host.values(TABLET).await, pairs(&[("a", "2"), ("z", "1")]));
    // Its ground is gone; the next one is done.
    host.split(&cluster, TABLET, "m").await;
}

#[tokio::test]
async fn repeated_orders_change_nothing_and_those_of_older_procedures_are_declined() {
    let cluster = Cluster::new().await;
    let host = with_rows(&cluster).await;
    let old = cluster.master.start(&[TABLET]);
    cluster.master.with(|state| state.hangs_replacements = true);
    let procedure = cluster.master.start(&[TABLET]);
    for _ in 0..3 {
        host.order_split(&cluster, TABLET, procedure, "m").await;
    }
    until_attempted(&cluster, 1).await;
    host.order_split(&cluster, TABLET, procedure, "c").await;
    host.order_split(&cluster, TABLET, old, "c").await;
    until_declined(&cluster, old).await;
    cluster.master.with(|state| state.hangs_replacements = false);
    let [_, right] = host.until_split(&cluster, procedure).await;
    assert_eq!(&cluster.master.row(right).start[..], b"m");
    // The parent is gone, and its order comes late.
    let declined = cluster.master.with(|state| state.declined.len());
    let late = uruk_proto::tablet::SplitTabletOrder {
        server_id: host.server.server_id().0,
        tablet: Some(KEY),
        procedure,
        ..Default::default()
    };
    host.control().split_tablet(late).await.expect("takes the order");
    cluster.until("it is declined", || cluster.master.with(|state| state.declined.len()) > declined).await;
    assert!(cluster.master.with(|state| state.attempts.iter().all(|id| *id == procedure)));
    host.put(right, "z", "2").await;
}

#[tokio::test]
async fn a_final_flush_that_does_not_end_lets_writers_in_again() {
    let cluster = Cluster::new().await;
    let host = with_rows(&cluster).await;
    cluster.master.with(|state| state.hangs_commits = true);
    let procedure = cluster.master.start(&[TABLET]);
    host.order_split(&cluster, TABLET, procedure, "m").await;
    let deadline = cluster.env.clock.now() + Duration::from_secs(10);
    while host.try_put(TABLET, "a", "2").await.is_ok() {
        assert!(cluster.env.clock.now() < deadline, "never frozen");
    }
    until_writable(&host, TABLET).await;
    assert!(cluster.master.with(|state| state.attempts.is_empty()));
    cluster.master.with(|state| state.hangs_commits = false);
    until_declined(&cluster, procedure).await;
    assert!(cluster.master.with(|state| state.attempts.is_empty()), "what was flushed late replaced a thawed tablet");
    host.split(&cluster, TABLET, "m").await;
}

#[tokio::test]
async fn a_close_that_is_ordered_meanwhile_comes_after_the_split_has_ended() {
    let cluster = Cluster::new().await;
    let host = with_rows(&cluster).await;
    cluster.master.with(|state| {
        state.replacement_faults.push_back(Fault::LostBefore);
        state.replacement_faults.push_back(Fault::LostBefore);
        state.replacement_faults.push_back(Fault::Refused);
    });
    let procedure = cluster.master.start(&[TABLET]);
    host.order_split(&cluster, TABLET, procedure, "m").await;
    until_attempted(&cluster, 1).await;
    host.order_close(KEY, false).await;
    cluster.until("it is released", || cluster.master.with(|state| state.released == [KEY])).await;
    assert!(cluster.master.with(|state| state.declined.iter().any(|(id, _)| *id == procedure)));
    assert_eq!(host.try_scan(TABLET).await.expect_err("gone").code, ErrorCode::StaleLocation);
}

#[tokio::test]
async fn a_table_that_is_deleted_meanwhile_is_dropped_at_once() {
    let cluster = Cluster::new().await;
    let host = with_rows(&cluster).await;
    cluster.master.with(|state| state.hangs_replacements = true);
    let procedure = cluster.master.start(&[TABLET]);
    host.order_split(&cluster, TABLET, procedure, "m").await;
    until_attempted(&cluster, 1).await;
    host.order_close(KEY, true).await;
    cluster.until("it is released", || cluster.master.with(|state| state.released == [KEY])).await;
    assert_eq!(host.try_scan(TABLET).await.expect_err("gone").code, ErrorCode::StaleLocation);
    cluster.master.with(|state| {
        state.rows.remove(&TABLET);
        state.hangs_replacements = false;
    });
    until_declined(&cluster, procedure).await;
    assert_eq!(host.try_scan(TABLET).await.expect_err("gone").code, ErrorCode::StaleLocation);
    host.server.stop().await.expect("nothing is left to wait for");
}

#[tokio::test]
async fn a_planned_end_during_a_split_releases_the_halves() {
    let cluster = Cluster::new().await;
    let host = with_rows(&cluster).await;
    cluster.master.with(|state| state.hangs_replacements = true);
    let procedure = cluster.master.start(&[TABLET]);
    host.order_split(&cluster, TABLET, procedure, "m").await;
    until_attempted(&cluster, 1).await;
    let go_on = async {
        cluster.until("the master knows", || !cluster.master.with(|state| state.draining.is_empty())).await;
        cluster.master.with(|state| state.hangs_replacements = false);
    };
    tokio::join!(host.server.stop(), go_on).0.expect("stops");
    let halves = cluster.master.results(procedure).expect("done");
    let mut released: Vec<u64> = cluster.master.with(|state| state.released.iter().map(|key| key.tablet_id).collect());
    released.sort_unstable();
    assert_eq!(released, [halves[0].tablet_id, halves[1].tablet_id]);
}

#[tokio::test]
async fn a_server_that_is_declared_dead_meanwhile_ends() {
    let cluster = Cluster::new().await;
    let host = with_rows(&cluster).await;
    cluster.master.with(|state| {
        state.hangs_replacements = true;
        state.hangs_renewals = true;
    });
    let procedure = cluster.master.start(&[TABLET]);
    host.order_split(&cluster, TABLET, procedure, "m").await;
    until_attempted(&cluster, 1).await;
    cluster.master.with(|state| {
        state.dead.insert(host.server.server_id().0);
    });
    let ended = cluster.env.clock.timeout(Duration::from_secs(10), host.server.wait()).await;
    assert!(matches!(ended, Ok(Ended::DeclaredDead(_))), "{ended:?}");
}

#[tokio::test]
async fn a_compaction_of_the_parent_is_not_committed_after_the_split() {
    let cluster = Cluster::new().await;
    let host = cluster.start_with(TabletServerConfig { memtable_bytes_soft: 20_000, ..cluster.config() }).await;
    cluster.open(&host, TABLET).await;
    cluster.master.with(|state| state.hangs_compactions = true);
    let mut rows = 0;
    while cluster.master.with(|state| state.compactions.is_empty()) {
        host.put(TABLET, &format!("row-{rows:04}"), &"v".repeat(3000)).await;
        rows += 1;
        assert!(rows < 5000, "no compaction");
    }
    // A commit under way ends before the freeze: the tablet is served until then.
    let procedure = cluster.master.start(&[TABLET]);
    host.order_split(&cluster, TABLET, procedure, "row-0003").await;
    cluster.let_time_pass().await;
    host.put(TABLET, "row-0000", "x").await;
    cluster.master.with(|state| state.hangs_compactions = false);
    let [left, right] = host.until_split(&cluster, procedure).await;
    assert_eq!(host.scan(left).await.len() + host.scan(right).await.len(), rows);
    cluster.let_time_pass().await;
    let tablets = cluster.master.with(|state| {
        let after = state.commits.iter().skip_while(|c| c.flushed_seq < state.rows[&left].flushed_seq);
        after.filter(|c| !c.remove.is_empty()).map(|c| c.tablet.expect("named").tablet_id).collect::<Vec<_>>()
    });
    assert!(!tablets.contains(&TABLET), "{tablets:?}");
}
