//! Large rows: cut into pieces in the log, and whole everywhere else.

use std::future::Future;
use std::time::Duration;

use uruk_proto::ErrorCode;
use uruk_proto::master::TabletKey;
use uruk_proto::tablet::{ReadModifyWriteRequest, ReadModifyWriteRule, RowMutations, read_modify_write_rule};
use uruk_tabletserver::server::TabletServerConfig;

use crate::cluster::*;

const LARGEST: usize = 100 << 20;

/// Many pieces, each in a frame of its own.
fn many_pieces(cluster: &Cluster) -> TabletServerConfig {
    TabletServerConfig { record_bytes_max: 8 << 10, frame_bytes: 1, ..cluster.config() }
}

/// A value of `bytes` bytes that tells its place by every 8 of them.
fn large(bytes: usize, seed: u64) -> String {
    let mut value = String::with_capacity(bytes + 8);
    let mut number = seed;
    while value.len() < bytes {
        number = number.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        value.push_str(&format!("{:08x}", number >> 32));
    }
    value.truncate(bytes);
    value
}

/// Starts a large write whose log is held, and waits until some of its pieces are appended.
async fn in_the_middle_of_a_write<T: std::fmt::Debug>(
    cluster: &Cluster,
    host: &Host,
    mut write: std::pin::Pin<&mut impl Future<Output = T>>,
) {
    let frames = cluster.logs.frames(host.log());
    let appended = cluster.until("pieces are appended", || cluster.logs.frames(host.log()) > frames + 2);
    tokio::select! {
        biased;
        outcome = &mut write => panic!("acknowledged: {outcome:?}"),
        () = appended => {}
    }
}

#[tokio::test]
async fn a_cell_of_100_mib_is_read_after_a_flush_and_after_a_crash() {
    // Before anything needs the only thread in time.
    let (first, second) = (large(LARGEST, 1), large(LARGEST, 2));
    let cluster = Cluster::with_segments(20 << 20).await;
    cluster.master.with(|state| state.lease_ms = 60_000);
    let config = TabletServerConfig { memtable_bytes_soft: 50 << 20, ..cluster.config() };
    let host = cluster.start_with(config.clone()).await;
    cluster.open(&host, TABLET).await;
    let reads = async |host: &Host, value: &String| {
        let values = host.values(TABLET).await;
        assert!(values.len() == 1 && values[0].0 == "row" && values[0].1 == *value, "another value");
    };
    host.put(TABLET, "row", &first).await;
    cluster.until("it is flushed", || !cluster.master.row(TABLET).groups.is_empty()).await;
    reads(&host, &first).await;
    cluster.master.with(|state| state.hangs_commits = true);
    host.put(TABLET, "row", &second).await;
    reads(&host, &second).await;
    assert!(cluster.logs.frames(host.log()) > 20, "in pieces");
    host.server.shutdown().await.expect("stops");
    cluster.master.with(|state| state.hangs_commits = false);
    let next = cluster.start_with(config).await;
    let order = cluster.recover(&next, TABLET).await;
    assert!(order.recovered.len() > 3, "over several segments");
    next.order_open(vec![order]).await;
    next.until_serving(TABLET).await;
    reads(&next, &second).await;
    cluster.until("it is flushed", || cluster.master.row(TABLET).needed_logs == [2]).await;
    reads(&next, &second).await;
}

#[tokio::test]
async fn what_is_too_large_is_refused_by_name_of_the_limit() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    let refused = host.mutate(puts(TABLET, &[("a", &"v".repeat(LARGEST + 1)), ("b", "1")], None)).await;
    let refused = refused.expect("answers");
    assert_eq!((refused.len(), refused[0].index, refused[0].code), (1, 0, ErrorCode::InvalidArgument as u32));
    assert!(refused[0].message.contains("value longer than 100 MiB"), "{}", refused[0].message);
    let half = set(&"v".repeat(61 << 20));
    let mut request = puts(TABLET, &[("c", "1")], None);
    request.entries.push(RowMutations { row: "d".into(), mutations: [half.clone(), half].concat().into() });
    let refused = host.mutate(request).await.expect("answers");
    assert_eq!((refused.len(), refused[0].index, refused[0].code), (1, 1, ErrorCode::InvalidArgument as u32));
    assert!(refused[0].message.contains("the limit is 125829120"), "{}", refused[0].message);
    assert_eq!(host.values(TABLET).await, pairs(&[("b", "1"), ("c", "1")]));
}

#[tokio::test]
async fn a_read_modify_write_is_no_larger_than_another_row_write() {
    let cluster = Cluster::new().await;
    cluster.master.with(|state| state.lease_ms = 60_000);
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    let half = bytes::Bytes::from(vec![b'v'; 61 << 20]);
    let append = |qualifier: &'static str| ReadModifyWriteRule {
        family_id: FAMILY.0,
        qualifier: qualifier.into(),
        rule: Some(read_modify_write_rule::Rule::Append(half.clone())),
    };
    let rules = vec![append("a"), append("b")];
    let request = ReadModifyWriteRequest { tablet: tablet_ref(TABLET), key: None, row: "r".into(), rules };
    let refused = uruk_proto::RpcError::from(host.client().read_modify_write(request).await.expect_err("too large"));
    assert_eq!(refused.code, ErrorCode::InvalidArgument);
    assert!(refused.message.contains("the limit is 125829120"), "{}", refused.message);
}

#[tokio::test]
async fn a_row_larger_than_a_record_is_whole_or_absent() {
    let cluster = Cluster::with_segments(10_000).await;
    let config = many_pieces(&cluster);
    let host = cluster.start_with(config.clone()).await;
    cluster.open(&host, TABLET).await;
    let (value, other) = (large(100_000, 1), large(100_000, 2));
    host.put(TABLET, "a", &value).await;
    host.mutate(puts(TABLET, &[("b", "1"), ("c", &value), ("d", "1")], call(&cluster, 1))).await.expect("writes");
    let expected = pairs(&[("a", &value), ("b", "1"), ("c", &value), ("d", "1")]);
    assert_eq!(host.values(TABLET).await, expected);
    // A crash in the middle of the pieces of a write that nobody was told about.
    let frames = cluster.held(&host);
    let mut write = Box::pin(host.try_put(TABLET, "a", &other));
    in_the_middle_of_a_write(&cluster, &host, write.as_mut()).await;
    drop(write);
    host.server.shutdown().await.expect("stops");
    cluster.logs.truncate(host.log(), frames + 2);
    let next = cluster.start_with(config.clone()).await;
    let order = cluster.recover(&next, TABLET).await;
    assert!(order.recovered.len() > 3, "over several segments");
    cluster.master.with(|state| state.hangs_commits = true);
    next.order_open(vec![order]).await;
    next.until_serving(TABLET).await;
    assert_eq!(next.values(TABLET).await, expected, "nothing of the unfinished write");
    // A second crash before the flush: the same pieces lie before the next owner's records.
    next.put(TABLET, "b", "2").await;
    next.server.shutdown().await.expect("stops");
    cluster.master.with(|state| state.hangs_commits = false);
    let last = cluster.start_with(config).await;
    let order = cluster.recover(&last, TABLET).await;
    last.order_open(vec![order]).await;
    last.until_serving(TABLET).await;
    last.put(TABLET, "a", "2").await;
    cluster.until("the flush is committed", || cluster.master.row(TABLET).needed_logs == [3]).await;
    assert_eq!(last.values(TABLET).await, pairs(&[("a", "2"), ("b", "2"), ("c", &value), ("d", "1")]));
}

#[tokio::test]
async fn a_repeated_large_write_is_done_once() {
    let cluster = Cluster::new().await;
    let config = many_pieces(&cluster);
    let host = cluster.start_with(config.clone()).await;
    cluster.open(&host, TABLET).await;
    let value = large(50_000, 1);
    let key = call(&cluster, 1);
    let request = puts(TABLET, &[("a", &value)], key);
    let check = put_if_absent(TABLET, "b", &value, call(&cluster, 2));
    for _ in 0..2 {
        assert_eq!(host.mutate(request.clone()).await, Ok(vec![]));
        assert!(!host.client().check_and_mutate(check.clone()).await.expect("answers").into_inner().matched);
    }
    host.put(TABLET, "a", "2").await;
    host.server.shutdown().await.expect("stops");
    let next = cluster.start_with(config).await;
    let order = cluster.recover(&next, TABLET).await;
    next.order_open(vec![order]).await;
    next.until_serving(TABLET).await;
    assert_eq!(next.mutate(request).await, Ok(vec![]), "a late repeat");
    assert!(!next.client().check_and_mutate(check).await.expect("answers").into_inner().matched);
    assert_eq!(next.values(TABLET).await, pairs(&[("a", "2"), ("b", &value)]));
}

#[tokio::test]
async fn a_flush_does_not_cut_a_row_that_is_in_pieces() {
    let cluster = Cluster::new().await;
    let config = TabletServerConfig { memtable_bytes_soft: 20_000, ..many_pieces(&cluster) };
    let host = cluster.start_with(config.clone()).await;
    cluster.open(&host, TABLET).await;
    cluster.logs.hold(host.log());
    let value = large(100_000, 1);
    let before = cluster.logs.end(host.log()).0;
    let mut write = Box::pin(host.try_put(TABLET, "large", &value));
    in_the_middle_of_a_write(&cluster, &host, write.as_mut()).await;
    // The first pieces are durable, the last is not.
    cluster.logs.release_upto(host.log(), 2);
    host.order_close(TabletKey { tablet_id: TABLET, epoch: 1 }, false).await;
    cluster.let_time_pass().await;
    assert_eq!(cluster.master.with(|state| state.loads[&1].log_trim_lsn), before, "the pieces are needed");
    cluster.logs.release(host.log());
    write.await.expect("writes");
    cluster.until("it is released", || !cluster.master.with(|state| state.released.is_empty())).await;
    let next = cluster.start_with(config).await;
    cluster.master.with(|state| state.rows.get_mut(&TABLET).expect("row").needed_logs.clear());
    cluster.open(&next, TABLET).await;
    assert_eq!(next.values(TABLET).await, pairs(&[("large", &value)]));
}

#[tokio::test]
async fn pieces_count_in_the_memtable_budget() {
    let cluster = Cluster::new().await;
    let config =
        TabletServerConfig { memtable_bytes_soft: 20_000, memtable_bytes_hard: 90_000, ..many_pieces(&cluster) };
    let host = cluster.start_with(config).await;
    cluster.open(&host, TABLET).await;
    cluster.master.with(|state| state.hangs_commits = true);
    host.put(TABLET, "a", &large(100_000, 1)).await;
    assert_eq!(host.try_put(TABLET, "b", "1").await.expect_err("full").code, ErrorCode::Overloaded);
    cluster.master.with(|state| state.hangs_commits = false);
    let deadline = cluster.env.clock.now() + Duration::from_secs(10);
    while host.try_put(TABLET, "b", "1").await.is_err() {
        assert!(cluster.env.clock.now() < deadline, "still rejects");
    }
}
