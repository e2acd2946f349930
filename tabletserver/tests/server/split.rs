//! A tablet in two: what is in the halves, and who may see what meanwhile.

use std::collections::BTreeSet;

use uruk_proto::master::TabletKey;
use uruk_proto::tablet::{ReadRequest, SplitTabletOrder};
use uruk_proto::{ErrorCode, cell_batch};
use uruk_tabletserver::server::TabletServerConfig;

use crate::cluster::*;

fn small(cluster: &Cluster) -> TabletServerConfig {
    TabletServerConfig { memtable_bytes_soft: 20_000, ..cluster.config() }
}

#[tokio::test]
async fn halves_hold_all_rows_of_their_side_and_serve_at_once() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    for row in ["a", "b", "m", "n", "z"] {
        host.put(TABLET, row, row).await;
    }
    let [left, right] = host.split(&cluster, TABLET, "m").await;
    assert_eq!(host.values(left).await, pairs(&[("a", "a"), ("b", "b")]));
    assert_eq!(host.values(right).await, pairs(&[("m", "m"), ("n", "n"), ("z", "z")]));
    assert_eq!(host.try_scan(TABLET).await.expect_err("gone").code, ErrorCode::StaleLocation);
    host.put(left, "a", "2").await;
    host.put(right, "y", "2").await;
    let errors = host.mutate(puts(left, &[("y", "x")], None)).await.expect("answers");
    assert_eq!(errors[0].code, ErrorCode::StaleLocation as u32);
    assert_eq!(host.values(left).await, pairs(&[("a", "2"), ("b", "b")]));
    let row = cluster.master.row(right);
    assert_eq!((row.epoch, &row.start[..], &row.end[..]), (2, &b"m"[..], &b""[..]));
    assert_eq!(cluster.master.with(|state| state.opened_calls.len()), 2, "both halves in one report");
    // A half of a half.
    let [last, _] = host.split(&cluster, right, "n").await;
    assert_eq!(host.values(last).await, pairs(&[("m", "m")]));
}

#[tokio::test]
async fn a_write_that_passed_before_the_freeze_is_in_its_half() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    host.put(TABLET, "a", "1").await;
    let frames = cluster.held(&host);
    let procedure = cluster.master.start(&[TABLET]);
    let write = host.try_put(TABLET, "z", "1");
    let split = async {
        cluster.appended(&host, frames).await;
        host.order_split(&cluster, TABLET, procedure, "m").await;
        cluster.let_time_pass().await;
        assert!(cluster.master.results(procedure).is_none(), "split before it was drained");
        cluster.logs.release(host.log());
        host.until_split(&cluster, procedure).await
    };
    let (written, [_, right]) = tokio::join!(write, split);
    written.expect("passed before the freeze");
    assert_eq!(host.values(right).await, pairs(&[("z", "1")]));
}

#[tokio::test]
async fn writers_go_on_through_splits_and_nothing_acknowledged_is_lost() {
    let cluster = Cluster::new().await;
    let host = cluster.start_with(small(&cluster)).await;
    cluster.open(&host, TABLET).await;
    let tablets = parking_lot::Mutex::new(vec![("".to_owned(), TABLET)]);
    let is_done = std::sync::atomic::AtomicBool::new(false);
    let owner = |row: &str| {
        let tablets = tablets.lock();
        tablets.iter().rev().find(|(start, _)| start.as_str() <= row).expect("the first starts with all").1
    };
    let writer = async |number: usize| {
        let mut acknowledged = BTreeSet::new();
        let mut i = number * 37;
        while !is_done.load(std::sync::atomic::Ordering::Relaxed) {
            i += 101;
            let (row, value) = (format!("{:03}", i % 1000), format!("{number}-{i}"));
            while let Err(error) = host.try_put(owner(&row), &row, &value).await {
                assert!(matches!(error.code, ErrorCode::StaleLocation | ErrorCode::Unavailable), "{error}");
                tokio::task::yield_now().await;
            }
            acknowledged.insert(row);
        }
        acknowledged
    };
    let splits = async {
        for at in ["500", "250", "750", "125", "875"] {
            let (start, parent) = {
                let tablets = tablets.lock();
                tablets.iter().rev().find(|(start, _)| start.as_str() <= at).expect("all").clone()
            };
            let [left, right] = host.split(&cluster, parent, at).await;
            let mut tablets = tablets.lock();
            tablets.retain(|(_, tablet)| *tablet != parent);
            tablets.extend([(start, left), (at.to_owned(), right)]);
            tablets.sort();
        }
        is_done.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let (first, second, ()) = tokio::join!(writer(1), writer(2), splits);
    let mut found = BTreeSet::new();
    let tablets = tablets.into_inner();
    for (_, tablet) in tablets {
        found.extend(host.values(tablet).await.into_iter().map(|(row, _)| row));
    }
    assert_eq!(found, first.union(&second).cloned().collect());
}

#[tokio::test]
async fn halves_remember_the_calls_of_their_parent() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    let add = increment(TABLET, "n", 1, call(&cluster, 7));
    let first = host.client().read_modify_write(add.clone()).await.expect("increments").into_inner();
    assert_eq!(number(first.batch), 1);
    host.put(TABLET, "a", "1").await;
    let [_, right] = host.split(&cluster, TABLET, "m").await;
    let again = uruk_proto::tablet::ReadModifyWriteRequest { tablet: tablet_ref(right), ..add.clone() };
    let answer = host.client().read_modify_write(again.clone()).await.expect("answers").into_inner();
    assert_eq!(number(answer.batch), 1, "not done again");
    // Also when the half is opened from its row, elsewhere.
    host.server.shutdown().await.expect("stops");
    let next = cluster.start().await;
    let order = cluster.recover(&next, right).await;
    next.order_open(vec![order]).await;
    next.until_serving(right).await;
    let answer = next.client().read_modify_write(again).await.expect("answers").into_inner();
    assert_eq!(number(answer.batch), 1);
}

#[tokio::test]
async fn halves_survive_a_crash_right_after_the_split() {
    let cluster = Cluster::new().await;
    let host = cluster.start_with(small(&cluster)).await;
    cluster.open(&host, TABLET).await;
    for i in 0..40 {
        host.put(TABLET, &format!("{i:02}"), &"v".repeat(1000)).await;
    }
    let [left, right] = host.split(&cluster, TABLET, "20").await;
    host.put(left, "05", "new").await;
    host.put(right, "25", "new").await;
    host.server.shutdown().await.expect("stops");
    let next = cluster.start().await;
    let orders = vec![cluster.recover(&next, left).await, cluster.recover(&next, right).await];
    next.order_open(orders).await;
    for (half, row) in [(left, 5), (right, 5)] {
        next.until_serving(half).await;
        let values = next.values(half).await;
        assert_eq!((values.len(), values[row].1.as_str()), (20, "new"));
    }
}

#[tokio::test]
async fn without_a_key_the_middle_of_the_bytes_is_chosen() {
    let cluster = Cluster::new().await;
    let host = cluster.start_with(small(&cluster)).await;
    cluster.open(&host, TABLET).await;
    for i in 0..90 {
        host.put(TABLET, &format!("a{i:02}"), "x").await;
    }
    for i in 0..20 {
        host.put(TABLET, &format!("b{i:02}"), &"v".repeat(2000)).await;
    }
    let [_, right] = host.split(&cluster, TABLET, "").await;
    let at = cluster.master.row(right).start;
    assert!(at[..] > *b"b05".as_slice() && at[..] < *b"b15".as_slice(), "{at:?}");
}

#[tokio::test]
async fn what_cannot_be_split_is_declined_and_served_on() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    let declined = async |tablet: u64, at: &str, by_load: bool| {
        let procedure = cluster.master.start(&[tablet]);
        let order = SplitTabletOrder {
            server_id: host.server.server_id().0,
            tablet: Some(TabletKey { tablet_id: tablet, epoch: 1 }),
            procedure,
            at: at.to_string().into(),
            by_load,
        };
        host.control().split_tablet(order).await.expect("takes the order");
        let reason = || {
            let declined = cluster.master.with(|state| state.declined.clone());
            declined.into_iter().find(|(id, _)| *id == procedure).map(|(_, reason)| reason)
        };
        cluster.until("it is declined", || reason().is_some()).await;
        reason().expect("just looked at")
    };
    assert!(declined(TABLET, "", false).await.contains("fewer than two rows"));
    host.put(TABLET, "a", "1").await;
    assert!(declined(TABLET, "", false).await.contains("fewer than two rows"));
    assert!(declined(TABLET, "", true).await.contains("too few recent requests"));
    for i in 0..100 {
        host.put(TABLET, "hot", &format!("{i}")).await;
    }
    assert!(declined(TABLET, "", true).await.contains("row \"hot\""));
    assert!(declined(TABLET + 7, "m", false).await.contains("is not here"));
    host.put(TABLET, "b", "1").await;
    assert_eq!(host.scan(TABLET).await.len(), 3);
    assert!(cluster.master.with(|state| state.split_requests.is_empty()));
}

#[tokio::test]
async fn by_load_the_key_is_where_the_requests_are() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    host.put(TABLET, "a", &"v".repeat(100_000)).await;
    for i in 0..300 {
        host.put(TABLET, &format!("z{:02}", i * 7 % 100), "x").await;
    }
    let procedure = cluster.master.start(&[TABLET]);
    let order = SplitTabletOrder {
        server_id: host.server.server_id().0,
        tablet: Some(TabletKey { tablet_id: TABLET, epoch: 1 }),
        procedure,
        at: Default::default(),
        by_load: true,
    };
    host.control().split_tablet(order).await.expect("takes the order");
    let [_, right] = host.until_split(&cluster, procedure).await;
    let at = cluster.master.row(right).start;
    assert!(at[..] > *b"z20".as_slice() && at[..] < *b"z80".as_slice(), "{at:?}");
}

#[tokio::test]
async fn a_scan_of_the_parent_goes_on_to_its_end_and_its_files_are_reported_as_read() {
    let cluster = Cluster::new().await;
    let mut config = TabletServerConfig { memtable_bytes_soft: 4 << 20, ..cluster.config() };
    config.engine.scan_batch_bytes = 1;
    let host = cluster.start_with(config).await;
    cluster.open(&host, TABLET).await;
    let value = "v".repeat(1 << 20);
    for i in 10..34 {
        host.put(TABLET, &format!("row-{i}"), &value).await;
    }
    let request = ReadRequest { tablet: tablet_ref(TABLET), ..ReadRequest::default() };
    let mut scan = host.client().read(request).await.expect("starts").into_inner();
    let first = scan.message().await.expect("goes on").expect("has rows");
    let [left, right] = host.split(&cluster, TABLET, "row-20").await;
    host.put(left, "row-19", "later").await;
    host.put(right, "row-33", "later").await;
    let files: Vec<String> =
        cluster.master.with(|state| state.split_requests[0].files.iter().map(|file| file.path.clone()).collect());
    let number = cluster.master.with(|state| state.reports.last().expect("has reported").1);
    let later = || {
        cluster
            .master
            .with(|state| state.reports.iter().find(|(_, n, _)| *n > number + 1).map(|report| report.2.clone()))
    };
    cluster.until("a later report", || later().is_some()).await;
    let pinned = later().expect("just looked at");
    assert!(files.iter().all(|file| pinned.contains(file)), "{files:?} are read, {pinned:?} reported");
    let mut rows = cell_batch::unpack(first.batch).expect("well formed").len();
    while let Some(response) = scan.message().await.expect("goes on to its end") {
        for piece in cell_batch::unpack(response.batch).expect("well formed") {
            rows += usize::from(!piece.goes_on_from_before);
            assert_eq!(piece.row.cells[0].value.len(), value.len(), "as when it began");
        }
    }
    assert_eq!(rows, 24);
    let is_free = || cluster.master.with(|state| state.reports.last().is_some_and(|(_, _, pinned)| pinned.is_empty()));
    cluster.until("nothing is pinned any more", is_free).await;
}

/// Of 3,000 bytes: more than one memtable of [`small`].
const ROWS_MIN: usize = 10;

#[tokio::test]
async fn a_half_does_not_name_what_holds_nothing_for_it() {
    let cluster = Cluster::new().await;
    let host = cluster.start_with(small(&cluster)).await;
    cluster.open(&host, TABLET).await;
    let commits = || cluster.master.with(|state| state.commits.len());
    for prefix in ["a", "z"] {
        // Rows of its own at any rate: a flush of the other prefix may end only now.
        let before = commits();
        let mut i = 0;
        while i < ROWS_MIN || commits() == before {
            host.put(TABLET, &format!("{prefix}{i:04}"), &"v".repeat(3000)).await;
            i += 1;
        }
    }
    let [left, right] = host.split(&cluster, TABLET, "m").await;
    let paths = |tablet: u64| -> BTreeSet<String> {
        let row = cluster.master.row(tablet);
        row.groups.iter().flat_map(|group| &group.files).map(|file| file.path.clone()).collect()
    };
    let (left, right) = (paths(left), paths(right));
    assert!(!left.is_empty() && !right.is_empty());
    let shared = left.intersection(&right).count();
    assert!(shared <= 1, "only what was flushed across both prefixes is shared: {left:?} {right:?}");
    assert!(left != right);
}
