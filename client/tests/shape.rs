//! Tablets that split, merge and move under calls, and the calls that make them.

mod fake;

use std::time::Duration;

use bytes::Bytes;
use fake::{Cluster, Fault};
use futures::{StreamExt, TryStreamExt};
use uruk_client::{
    BalanceMode, CheckDepth, ClientConfig, Error, ErrorCode, FamilyChange, FamilySpec, GcRule, Mutation, Outcome,
    ReadOptions, RowMutation, RowRange, ScanOptions, TableSpec, TabletChoice,
};
use uruk_proto::{ServerId, TabletId};

fn set(value: impl Into<Bytes>) -> Vec<Mutation> {
    vec![Mutation::set("f", "q", value)]
}

fn tablet_of(cluster: &Cluster, row: &str) -> u64 {
    let state = cluster.lock();
    let found = state.tablets.iter().find(|(_, tablet)| tablet.range.contains(row.as_bytes()));
    *found.expect("tablets cover all rows").0
}

#[tokio::test(start_paused = true)]
async fn a_frozen_tablet_costs_a_write_little_more_than_the_freeze() {
    for ms in [1, 5, 20, 80] {
        let cluster = Cluster::start(2).await;
        let id = cluster.table("t", &[]);
        cluster.fill(id, 10);
        let table = cluster.client().table("t").await.unwrap();
        table.mutate_row("row-001", set("before")).await.unwrap();
        cluster.faults([Fault::FreezeAndSplit { ms }]);
        let started = cluster.now();
        table.mutate_row("row-001", set("after")).await.unwrap();
        let took = cluster.now() - started;
        assert!(took >= Duration::from_millis(ms), "{ms}: {took:?}");
        assert!(took <= Duration::from_millis(ms + ms / 2 + 6), "{ms}: {took:?}");
        assert_eq!(cluster.lock().tablets.len(), 2, "it has split");
        cluster.check();
    }
}

#[tokio::test(start_paused = true)]
async fn a_split_merge_or_move_is_found_at_once_and_by_one_look_up() {
    let cluster = Cluster::start(3).await;
    let id = cluster.table("t", &["row-010", "row-020"]);
    cluster.fill(id, 30);
    let table = cluster.client().table("t").await.unwrap();
    for key in ["row-005", "row-015", "row-025"] {
        table.read_row(key, &ReadOptions::default()).await.unwrap().unwrap();
    }
    let changes: [fn(&mut fake::State, u64); 3] = [
        |state, tablet| assert!(state.merge(tablet).is_some()),
        |state, tablet| assert!(state.split(tablet)),
        |state, tablet| state.move_tablet(tablet, Duration::ZERO),
    ];
    for change in changes {
        let tablet = tablet_of(&cluster, "row-005");
        change(&mut cluster.lock(), tablet);
        let (started, locates) = (cluster.now(), cluster.lock().locates);
        for key in ["row-005", "row-015", "row-025"] {
            table.read_row(key, &ReadOptions::default()).await.unwrap().unwrap();
        }
        assert!(cluster.now() - started < Duration::from_millis(1), "nothing waited");
        // The neighbours' old locations went with the first answer.
        assert_eq!(cluster.lock().locates, locates + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_replica_with_news_from_before_a_split_is_not_believed() {
    let cluster = Cluster::start(2).await;
    let id = cluster.table("t", &[]);
    cluster.fill(id, 10);
    // One tablet a look-up, so that the other half stays unknown.
    let config = ClientConfig { locate_tablets: 1, ..ClientConfig::default() };
    let table = cluster.client_with(config).table("t").await.unwrap();
    let parent = tablet_of(&cluster, "row-000");
    assert!(cluster.lock().split(parent));
    table.read_row("row-009", &ReadOptions::default()).await.unwrap().unwrap();
    let reads = cluster.lock().reads;
    cluster.lock().old_news = 5;
    table.read_row("row-000", &ReadOptions::default()).await.unwrap().unwrap();
    assert_eq!(cluster.lock().reads, reads + 1, "the parent's server is not asked");
}

#[tokio::test(start_paused = true)]
async fn a_batch_whose_tablet_split_goes_to_both_halves() {
    let cluster = Cluster::start(2).await;
    let id = cluster.table("t", &[]);
    cluster.fill(id, 20);
    let table = cluster.client().table("t").await.unwrap();
    table.read_row("row-000", &ReadOptions::default()).await.unwrap().unwrap();
    cluster.faults([Fault::Split]);
    let rows = (0..20).map(|n| RowMutation::new(format!("row-{n:03}"), set("new"))).collect();
    assert!(table.mutate_rows(rows).await.iter().all(Result::is_ok));
    let state = cluster.lock();
    assert_eq!(state.tablets.len(), 2);
    assert_eq!(state.batch_rows, [20, 10, 10]);
    drop(state);
    cluster.check();
}

#[tokio::test(start_paused = true)]
async fn a_scan_goes_on_through_splits_merges_and_moves() {
    let cluster = Cluster::start(3).await;
    let id = cluster.table("t", &["row-010", "row-020"]);
    let keys = cluster.fill(id, 30);
    let table = cluster.client().table("t").await.unwrap();
    let mut rows = table.scan(RowRange::ALL, ScanOptions::default());
    let mut read: Vec<String> = Vec::new();
    while let Some(row) = rows.next().await {
        read.push(String::from_utf8(row.unwrap().key().to_vec()).unwrap());
        let next = format!("row-{:03}", read.len().min(29));
        let tablet = tablet_of(&cluster, &next);
        let mut state = cluster.lock();
        match read.len() % 3 {
            0 => {
                state.merge(tablet);
            }
            1 => {
                state.split(tablet);
            }
            _ => state.move_tablet(tablet, Duration::ZERO),
        }
        // What is on its way is cut off.
        state.faults.push_back(Fault::BreakAfter { batches: 1 });
    }
    assert_eq!(read, keys);
}

#[tokio::test(start_paused = true)]
async fn a_retried_split_finds_its_own_procedure() {
    let cluster = Cluster::start(2).await;
    let id = cluster.table("t", &[]);
    cluster.fill(id, 10);
    let client = cluster.client();
    cluster.faults([Fault::BreakAfter { batches: 0 }]);
    let choice = TabletChoice::row("t", "row-003");
    let split = client.split_tablet(&choice, Some("row-004".into())).await.unwrap();
    assert_eq!((split.kind.as_str(), split.tablets.len(), split.results.len()), ("split", 1, 2));
    assert_eq!(cluster.lock().tablets.len(), 2, "split once, not twice");
    assert_eq!(cluster.lock().procedures.len(), 1);
    let ends = client.table("t").await.unwrap().sample_row_keys().await.unwrap();
    assert_eq!(ends, ["row-004", ""]);

    let merge = client.merge_tablets(&TabletChoice::Id(split.results[0])).await.unwrap();
    assert_eq!((merge.kind.as_str(), merge.results.len()), ("merge", 1));
    let moved = client.move_tablet(&TabletChoice::Id(merge.results[0]), Some(ServerId(1))).await.unwrap();
    assert_eq!(moved.kind, "move");
}

#[tokio::test(start_paused = true)]
async fn a_procedure_that_was_given_up_is_an_error_that_says_why() {
    let cluster = Cluster::start(2).await;
    cluster.table("t", &[]);
    let client = cluster.client();
    cluster.lock().decline = Some("one row has all the load".into());
    let error = client.split_tablet(&TabletChoice::row("t", "a"), None).await.unwrap_err();
    assert!(error.to_string().contains("one row has all the load"), "{error}");
    assert_eq!((error.code(), error.outcome()), (ErrorCode::FailedPrecondition, Outcome::NotDone));
    let error = client.move_tablet(&TabletChoice::Id(TabletId(999)), None).await.unwrap_err();
    assert_eq!((error.code(), error.outcome()), (ErrorCode::NotFound, Outcome::NotDone));
    let error = client.merge_tablets(&TabletChoice::row("nowhere", "a")).await.unwrap_err();
    assert_eq!(error, Error::UnknownTable { table: "nowhere".into() });
}

#[tokio::test(start_paused = true)]
async fn servers_are_drained_and_the_balancer_and_the_check_are_asked() {
    let cluster = Cluster::start(2).await;
    let client = cluster.client();
    assert_eq!(client.drain_server(ServerId(2)).await, Ok(3));
    assert!(cluster.lock().draining.contains(&2));
    client.undrain_server(ServerId(2)).await.unwrap();
    assert!(cluster.lock().draining.is_empty());
    assert_eq!(client.drain_server(ServerId(9)).await.unwrap_err().code(), ErrorCode::NotFound);
    assert_eq!(client.balance(BalanceMode::DryRun).await.unwrap().verdict, "would be done");
    assert_eq!(client.balance(BalanceMode::Run).await.unwrap().verdict, "done");
    assert_eq!(client.check(CheckDepth::Rows).await.unwrap().files, 0);
    assert_eq!(client.check(CheckDepth::Storage).await.unwrap().files, 7);
}

#[tokio::test(start_paused = true)]
async fn families_are_added_changed_and_dropped_once_each() {
    let cluster = Cluster::start(2).await;
    cluster.table("t", &[]);
    let client = cluster.client();
    let old_handle = client.table("t").await.unwrap();
    cluster.faults([Fault::BreakAfter { batches: 0 }]);
    let changes = [
        FamilyChange::Create(FamilySpec::new("g").with_gc(GcRule::MaxVersions(1))),
        FamilyChange::Update(FamilySpec::new("f").with_gc(GcRule::MaxVersions(3))),
    ];
    let info = client.alter_table("t", &changes, &[]).await.unwrap();
    assert_eq!((info.schema.version, info.schema.families.len()), (2, 2));
    assert_eq!(info.schema.family("f").unwrap().gc, GcRule::MaxVersions(3));
    cluster.env.clock.sleep(Duration::from_secs(1)).await;
    old_handle.mutate_row("k", vec![Mutation::set("g", "q", "v")]).await.unwrap();
    client.alter_table("t", &[FamilyChange::Drop("g".into())], &[]).await.unwrap();
    let error = client.table("t").await.unwrap().mutate_row("k", vec![Mutation::set("g", "q", "v")]).await;
    assert!(matches!(error.unwrap_err(), Error::UnknownFamily { .. }));
    let error = client.alter_table("nowhere", &[FamilyChange::Drop("g".into())], &[]).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotDone);
}

#[tokio::test(start_paused = true)]
async fn a_salted_tablet_is_chosen_and_cut_behind_its_rows_prefix() {
    let cluster = Cluster::start(2).await;
    let client = cluster.client();
    let spec = TableSpec { name: "s".into(), families: vec![FamilySpec::new("f")], salt: 2, ..TableSpec::default() };
    client.create_table_with(&spec).await.unwrap();
    // "a" is stored behind 1, "b" behind 0 (docs/formats.md).
    let split = client.split_tablet(&TabletChoice::row("s", "a"), Some("m".into())).await.unwrap();
    let cut = cluster.lock().tablets[&split.results[1].0].range.start.clone();
    assert_eq!(cut, &b"\x01m"[..]);
    let rows: Vec<_> =
        client.table("s").await.unwrap().scan(RowRange::ALL, ScanOptions::default()).try_collect().await.unwrap();
    assert_eq!(rows, []);
}
