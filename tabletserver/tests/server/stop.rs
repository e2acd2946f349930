//! A planned end leaves nothing to recover.

use std::sync::atomic::Ordering;
use std::time::Duration;

use uruk_proto::ErrorCode;
use uruk_proto::master::TabletKey;
use uruk_tabletserver::server::{Ended, TabletServerConfig};

use crate::cluster::*;

#[tokio::test]
async fn a_server_that_is_stopped_flushes_and_releases_its_tablets() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    for tablet in [TABLET, TABLET + 1] {
        cluster.open(&host, tablet).await;
        host.put(tablet, "a", "1").await;
    }
    cluster.open(&host, TABLET + 2).await;
    host.server.stop().await.expect("stops");
    assert_eq!(host.server.wait().await, Ended::Shutdown);
    let (mut released, draining) = cluster.master.with(|state| {
        (state.released.iter().map(|key| key.tablet_id).collect::<Vec<_>>(), state.released_draining.clone())
    });
    released.sort_unstable();
    assert_eq!(released, [TABLET, TABLET + 1, TABLET + 2]);
    assert_eq!(draining, [true; 3], "the master knew before, so it does not assign them to us again");
    let next = cluster.start().await;
    for tablet in [TABLET, TABLET + 1] {
        cluster.master.with(|state| state.rows.get_mut(&tablet).expect("row").needed_logs.clear());
        cluster.open(&next, tablet).await;
        assert_eq!(next.values(tablet).await, pairs(&[("a", "1")]));
    }
}

#[tokio::test]
async fn a_stop_that_cannot_flush_ends_all_the_same() {
    let cluster = Cluster::new().await;
    let host = cluster.start_with(TabletServerConfig { stop_ms_max: 500, ..cluster.config() }).await;
    cluster.open(&host, TABLET).await;
    host.put(TABLET, "a", "1").await;
    cluster.master.with(|state| state.hangs_commits = true);
    host.server.stop().await.expect("stops");
    assert_eq!(host.server.wait().await, Ended::Shutdown);
    assert!(cluster.master.with(|state| state.released.is_empty()), "unflushed, so not released");
    cluster.master.with(|state| state.hangs_commits = false);
    let next = cluster.start().await;
    let order = cluster.recover(&next, TABLET).await;
    next.order_open(vec![order]).await;
    next.until_serving(TABLET).await;
    assert_eq!(next.values(TABLET).await, pairs(&[("a", "1")]));
}

#[tokio::test]
async fn a_stopping_server_gives_back_at_once_what_it_is_told_to_open() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    host.put(TABLET, "a", "1").await;
    cluster.master.with(|state| state.hangs_commits = true);
    let stop = host.server.stop();
    let order = async {
        cluster.until("the master knows", || !cluster.master.with(|state| state.draining.is_empty())).await;
        let order = cluster.assign(&host, TABLET + 1, vec![]);
        host.order_open(vec![order]).await;
        let given_back = TabletKey { tablet_id: TABLET + 1, epoch: 1 };
        cluster.until("it is given back", || cluster.master.with(|state| state.released == [given_back])).await;
        let error = host.try_scan(TABLET + 1).await.expect_err("not opened");
        assert_eq!(error.code, ErrorCode::StaleLocation, "{error}");
        cluster.master.with(|state| state.hangs_commits = false);
    };
    tokio::join!(stop, order).0.expect("stops");
    assert_eq!(cluster.master.with(|state| state.released.len()), 2);
}

#[tokio::test]
async fn a_stopping_server_gives_back_what_it_was_opening() {
    let cluster = Cluster::new().await;
    cluster.master.with(|state| state.lease_ms = 60_000);
    let host = cluster.start().await;
    let mut order = cluster.assign(&host, TABLET, vec![]);
    order.row.as_mut().expect("row").memory_file = "tables/1/100/77-1.mem".into();
    cluster.hides_files.store(true, Ordering::Relaxed);
    host.order_open(vec![order]).await;
    let error = host.try_scan(TABLET).await.expect_err("opening");
    assert_eq!(error.code, ErrorCode::Unavailable);
    host.server.stop().await.expect("stops");
    let given_back = TabletKey { tablet_id: TABLET, epoch: 1 };
    assert_eq!(cluster.master.with(|state| state.released.clone()), [given_back]);
}

#[tokio::test]
async fn at_a_planned_end_tablets_are_served_until_it_is_their_turn() {
    let cluster = Cluster::new().await;
    let host = cluster.start_with(TabletServerConfig { closes_max: 1, ..cluster.config() }).await;
    let tablets = [TABLET, TABLET + 1, TABLET + 2];
    for tablet in tablets {
        cluster.open(&host, tablet).await;
        host.put(tablet, "a", "1").await;
    }
    cluster.master.with(|state| state.hangs_commits = true);
    let frozen = async || {
        let mut frozen = 0;
        for tablet in tablets {
            frozen += usize::from(host.try_put(tablet, "b", "2").await.is_err());
        }
        frozen
    };
    let stop = host.server.stop();
    let look = async {
        let deadline = cluster.env.clock.now() + Duration::from_secs(5);
        while frozen().await == 0 {
            assert!(cluster.env.clock.now() < deadline, "none is frozen");
        }
        cluster.let_time_pass().await;
        assert_eq!(frozen().await, 1);
        cluster.master.with(|state| state.hangs_commits = false);
    };
    tokio::join!(stop, look).0.expect("stops");
    assert_eq!(cluster.master.with(|state| state.released.len()), 3);
}

#[tokio::test]
async fn a_planned_end_does_not_outlive_the_tasks_that_do_its_work() {
    let cluster = Cluster::new().await;
    let host = cluster.start_with(TabletServerConfig { stop_ms_max: 60_000, ..cluster.config() }).await;
    cluster.open(&host, TABLET).await;
    host.put(TABLET, "a", "1").await;
    cluster.master.with(|state| state.hangs_commits = true);
    let stop = cluster.env.clock.timeout(Duration::from_secs(10), host.server.stop());
    let cancel = async {
        cluster.until("the master knows", || !cluster.master.with(|state| state.draining.is_empty())).await;
        host.env.tasks.cancel();
    };
    tokio::join!(stop, cancel).0.expect("in time").expect("no task panicked");
}
