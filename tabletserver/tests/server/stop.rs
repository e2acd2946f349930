//! A planned end leaves nothing to recover.

use std::time::Duration;

use uruk_proto::ErrorCode;
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
async fn a_stopping_server_opens_nothing_more() {
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
        let deadline = cluster.env.clock.now() + Duration::from_millis(300);
        while cluster.env.clock.now() < deadline {
            let error = host.try_scan(TABLET + 1).await.expect_err("not opened");
            assert_eq!(error.code, ErrorCode::StaleLocation, "{error}");
        }
        cluster.master.with(|state| state.hangs_commits = false);
    };
    tokio::join!(stop, order).0.expect("stops");
    assert_eq!(cluster.master.with(|state| state.released.len()), 1);
}
