//! Nothing is served without the lease.

use std::time::Duration;

use uruk_proto::ErrorCode;
use uruk_proto::tablet::ReadRequest;
use uruk_tabletserver::server::Ended;

use crate::cluster::*;

#[tokio::test]
async fn nothing_is_served_before_the_first_grant() {
    let cluster = Cluster::new().await;
    cluster.master.with(|state| state.hangs_renewals = true);
    let host = cluster.start().await;
    let error = host.try_scan(TABLET).await.expect_err("no lease yet");
    assert_eq!(error.code, ErrorCode::Unavailable);
    cluster.master.with(|state| state.hangs_renewals = false);
    cluster.open(&host, TABLET).await;
}

#[tokio::test]
async fn a_lost_lease_ends_the_incarnation_and_stops_reads_in_the_middle() {
    let cluster = Cluster::new().await;
    cluster.master.with(|state| state.lease_ms = 400);
    let mut config = cluster.config();
    config.engine.scan_batch_bytes = 1;
    let host = cluster.start_with(config).await;
    cluster.open(&host, TABLET).await;
    // More than the flow-control windows hold, so that the scan cannot finish unread.
    let value = "v".repeat(1 << 20);
    for i in 0..24 {
        host.put(TABLET, &format!("row-{i}"), &value).await;
    }
    let request = ReadRequest { tablet: tablet_ref(TABLET), ..ReadRequest::default() };
    let mut scan = host.client().read(request).await.expect("starts").into_inner();
    scan.message().await.expect("goes on").expect("has rows");
    cluster.master.with(|state| state.hangs_renewals = true);
    assert_eq!(host.server.wait().await, Ended::LeaseLost);
    let mut rest = 0;
    let end = loop {
        match scan.message().await {
            Ok(Some(_)) => rest += 1,
            Ok(None) => break Ok(()),
            Err(status) => break Err(status),
        }
    };
    end.expect_err("a scan that is cut off ends with an error, not as complete");
    assert!(rest < 23, "{rest} batches were sent");
    host.try_put(TABLET, "x", "1").await.expect_err("no lease, no write");
}

/// A lease whose loop sleeps for a while, so that only the requests' own checks can notice.
async fn with_sleepy_loop() -> (Cluster, Host) {
    let cluster = Cluster::new().await;
    cluster.master.with(|state| (state.lease_ms, state.renewal_ms) = (20_000, 10_000));
    let mut config = cluster.config();
    config.engine.scan_batch_bytes = 1;
    let host = cluster.start_with(config).await;
    cluster.open(&host, TABLET).await;
    (cluster, host)
}

#[tokio::test]
async fn a_server_that_wakes_after_its_lease_answers_no_read_and_takes_no_write() {
    let (cluster, host) = with_sleepy_loop().await;
    host.put(TABLET, "a", "1").await;
    cluster.clock.jump(Duration::from_secs(30));
    let frames = cluster.logs.frames(host.log());
    host.try_scan(TABLET).await.expect_err("no lease");
    host.try_put(TABLET, "a", "2").await.expect_err("no lease");
    assert_eq!(cluster.logs.frames(host.log()), frames, "nothing was written");
    assert_eq!(host.server.wait().await, Ended::LeaseLost);
}

#[tokio::test]
async fn a_scan_that_outlives_the_lease_is_cut_off() {
    let (cluster, host) = with_sleepy_loop().await;
    let value = "v".repeat(1 << 20);
    for i in 0..24 {
        host.put(TABLET, &format!("row-{i}"), &value).await;
    }
    let request = ReadRequest { tablet: tablet_ref(TABLET), ..ReadRequest::default() };
    let mut scan = host.client().read(request).await.expect("starts").into_inner();
    scan.message().await.expect("goes on").expect("has rows");
    cluster.clock.jump(Duration::from_secs(30));
    while let Some(_batch) = match scan.message().await {
        Ok(message) => message,
        Err(_) => return,
    } {}
    panic!("the scan went on to its end");
}

#[tokio::test]
async fn a_write_that_outlives_the_lease_is_not_acknowledged() {
    let (cluster, host) = with_sleepy_loop().await;
    cluster.logs.hold(host.log());
    let write = host.try_put(TABLET, "a", "1");
    let lapse = async {
        cluster.appended(&host, 0).await;
        cluster.clock.jump(Duration::from_secs(30));
        cluster.logs.release(host.log());
    };
    let (outcome, ()) = tokio::join!(write, lapse);
    assert_eq!(outcome.expect_err("durable, but who knows for whom").code, ErrorCode::Unknown);
}

#[tokio::test]
async fn a_server_that_is_declared_dead_ends() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    cluster.master.with(|state| state.refuses_renewals = true);
    assert!(matches!(host.server.wait().await, Ended::DeclaredDead(_)));
}

#[tokio::test]
async fn a_renewal_that_hangs_does_not_hold_up_the_next() {
    let cluster = Cluster::new().await;
    cluster.master.with(|state| state.lease_ms = 2000);
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    cluster.master.with(|state| state.hangs_renewals = true);
    // Long enough for a renewal to be sent and to hang.
    cluster.env.clock.sleep(Duration::from_millis(250)).await;
    cluster.master.with(|state| {
        state.hangs_renewals = false;
        state.loads.clear();
    });
    cluster.until("a later renewal arrives", || !cluster.master.with(|state| state.loads.is_empty())).await;
    host.put(TABLET, "a", "1").await;
}

#[tokio::test]
async fn orders_for_another_incarnation_are_refused() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    let mut request = uruk_proto::tablet::OpenTabletsRequest { server_id: 99, tablets: vec![] };
    let status = host.control().open_tablets(request.clone()).await.expect_err("another's");
    assert_eq!(uruk_proto::RpcError::from(status).code, ErrorCode::Fenced);
    request.server_id = host.server.server_id().0;
    host.control().open_tablets(request).await.expect("its own");
}

#[tokio::test]
async fn shutdown_is_an_end_without_error() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    host.server.shutdown().await.expect("no task panicked");
    assert_eq!(host.server.wait().await, Ended::Shutdown);
}
