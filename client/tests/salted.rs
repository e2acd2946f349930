//! Salted tables: to their callers they are tables like any other, but for the order in which they are stored.

mod fake;

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use fake::{Cluster, Fault};
use futures::TryStreamExt;
use proptest::prelude::*;
use uruk_client::{
    Client, ErrorCode, FamilySpec, Filter, Mutation, Order, Outcome, ReadModifyWriteRule, ReadOptions, RowMutation,
    RowRange, ScanOptions, Table, TableSpec,
};

/// Virtual time after which a case is one that never ends.
const CASE_LIMIT: Duration = Duration::from_secs(600);

fn run<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true).build().expect("a runtime").block_on(future)
}

fn set(value: impl Into<Bytes>) -> Vec<Mutation> {
    vec![Mutation::set("f", "q", value)]
}

async fn salted(client: &Client, salt: u32, splits: &[&'static str]) -> Table {
    let splits = splits.iter().map(|split| Bytes::from_static(split.as_bytes())).collect();
    let families = vec![FamilySpec::new("f")];
    let spec = TableSpec { name: "s".into(), families, salt, splits, ..TableSpec::default() };
    client.create_table_with(&spec).await.expect("it is made");
    client.table("s").await.expect("it exists")
}

async fn keys(table: &Table, range: RowRange, options: ScanOptions) -> Vec<Bytes> {
    let rows: Vec<_> = table.scan(range, options).try_collect().await.expect("the scan ends well");
    let key_of = |row: &uruk_client::Row| {
        assert_eq!(row.value("f", "q"), Some(row.key()), "each row holds its own key");
        row.key().clone()
    };
    rows.iter().map(key_of).collect()
}

async fn fill(table: &Table, keys: impl IntoIterator<Item = Bytes>) {
    let rows = keys.into_iter().map(|key| RowMutation::new(key.clone(), set(key))).collect();
    assert!(table.mutate_rows(rows).await.iter().all(Result::is_ok));
}

#[tokio::test(start_paused = true)]
async fn rows_are_written_read_changed_and_deleted_by_their_own_keys() {
    let cluster = Cluster::start(3).await;
    let table = salted(&cluster.client(), 8, &[]).await;
    assert_eq!(cluster.lock().tablets.len(), 8, "a tablet for each prefix");
    table.mutate_row("k", set("v")).await.unwrap();
    let row = table.read_row("k", &ReadOptions::default()).await.unwrap().unwrap();
    assert_eq!((row.key().clone(), row.value("f", "q").unwrap().clone()), ("k".into(), "v".into()));
    let rules = vec![ReadModifyWriteRule::append("f", "q", "w")];
    let row = table.read_modify_write("k", rules).await.unwrap();
    assert_eq!((row.key().clone(), row.value("f", "q").unwrap().clone()), ("k".into(), "vw".into()));
    let is = Filter::all().column("f", "q").cells_per_column(1).value("vw");
    assert_eq!(table.check_and_mutate("k", &is, vec![Mutation::delete_row()], vec![]).await, Ok(true));
    assert_eq!(table.read_row("k", &ReadOptions::default()).await, Ok(None));
    assert!(cluster.lock().rows.is_empty());
}

#[tokio::test(start_paused = true)]
async fn sequential_keys_go_to_every_tablet_by_every_way_of_writing() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client();
    let table = salted(&client, 8, &[]).await;
    fill(&table, (0..100).map(|n| Bytes::from(format!("row-{n:03}")))).await;
    let writer = table.batch_writer();
    for n in 100..200 {
        let key = format!("row-{n:03}");
        writer.add(RowMutation::new(key.clone(), set(key))).await.unwrap();
    }
    writer.flush().await.unwrap();
    let prefixes: BTreeSet<u8> = cluster.lock().rows.keys().map(|(_, row)| row[0]).collect();
    assert_eq!(prefixes, (0..8).collect());
    // Another client, which knows the salt from the schema alone.
    let other = cluster.client().table("s").await.unwrap();
    let all: Vec<Bytes> = (0..200).map(|n| Bytes::from(format!("row-{n:03}"))).collect();
    assert_eq!(keys(&other, RowRange::ALL, ScanOptions::default()).await, all);
    for key in &all {
        assert!(other.read_row(key, &ReadOptions::default()).await.unwrap().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn the_longest_key_is_one_byte_shorter() {
    let cluster = Cluster::start(1).await;
    let table = salted(&cluster.client(), 2, &[]).await;
    table.mutate_row(vec![b'k'; 4095], set("v")).await.unwrap();
    for result in [
        table.mutate_row(vec![b'k'; 4096], set("v")).await,
        table.read_row(vec![b'k'; 4096], &ReadOptions::default()).await.map(drop),
        table.mutate_rows(vec![RowMutation::new(vec![b'k'; 4096], set("v"))]).await.remove(0),
        table.batch_writer().add(RowMutation::new(vec![b'k'; 4096], set("v"))).await,
    ] {
        let error = result.unwrap_err();
        assert_eq!((error.code(), error.outcome()), (ErrorCode::InvalidArgument, Outcome::NotDone));
        assert!(error.to_string().contains("the limit is 4095 in a salted table"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn sampled_keys_cut_the_rows_of_all_prefixes() {
    let cluster = Cluster::start(2).await;
    let table = salted(&cluster.client(), 3, &["h", "p"]).await;
    assert_eq!(cluster.lock().tablets.len(), 9);
    assert_eq!(table.sample_row_keys().await.unwrap(), ["h", "p", ""]);
}

#[tokio::test(start_paused = true)]
async fn what_was_begun_for_one_salt_does_not_reach_a_table_with_another() {
    let cluster = Cluster::start(2).await;
    let client = cluster.client();
    let table = salted(&client, 4, &[]).await;
    table.mutate_row("k", set("v")).await.unwrap();
    let writer = table.batch_writer();
    client.delete_table("s").await.unwrap();
    let anew = salted(&client, 0, &[]).await;
    // A single row finds its new place; a batch and a scan that were made for the old one are refused.
    table.mutate_row("k", set("w")).await.unwrap();
    assert_eq!(anew.read_row("k", &ReadOptions::default()).await.unwrap().unwrap().value("f", "q").unwrap(), "w");
    writer.add(RowMutation::new("other", set("x"))).await.unwrap();
    let failed = writer.flush().await.unwrap_err();
    assert_eq!(failed.failures[0].key, "other");
    assert_eq!(failed.failures[0].error.outcome(), Outcome::NotDone);
    assert!(failed.to_string().contains("another salt"), "{failed}");
    assert_eq!(cluster.lock().rows.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_prefix_with_rows_to_give_out_holds_up_no_look_up_of_another() {
    for skipped in 0..6 {
        for faults in [[Fault::Merge, Fault::Move], [Fault::Split, Fault::Move], [Fault::Stale, Fault::Stale]] {
            let cluster = Cluster::start(4).await;
            let table = salted(&cluster.client(), 2, &["a", "b"]).await;
            fill(&table, [Bytes::from_static(&[0])]).await;
            cluster.lock().cells_per_batch = 1;
            cluster.faults([Fault::None].repeat(skipped).into_iter().chain(faults));
            let options = ScanOptions { parallel: 3, ..ScanOptions::default() };
            let scan = cluster.env.clock.timeout(CASE_LIMIT, keys(&table, RowRange::ALL, options));
            assert_eq!(scan.await.expect("the scan ends"), [Bytes::from_static(&[0])]);
        }
    }
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        3 => Just(Fault::None),
        1 => Just(Fault::Stale),
        1 => Just(Fault::Unavailable),
        2 => Just(Fault::BreakBefore),
        3 => (0usize..5).prop_map(|batches| Fault::BreakAfter { batches }),
        2 => (0usize..5).prop_map(|batches| Fault::Unexplained { batches }),
        2 => Just(Fault::Move),
        3 => Just(Fault::Split),
        3 => Just(Fault::Merge),
        1 => (0u64..300).prop_map(|unserved_ms| Fault::Die { unserved_ms }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_scan_of_a_salted_table_is_that_of_a_plain_one(
        salt in prop_oneof![Just(0u32), Just(2), Just(5), Just(16), Just(256)],
        rows in prop::collection::btree_set(prop::collection::vec(prop_oneof![Just(0u8), Just(b'a'), Just(b'b'), Just(0xFF)], 1..4), 0..40),
        start in prop::collection::vec(prop_oneof![Just(0u8), Just(b'a'), Just(b'b'), Just(0xFF)], 0..3),
        end in prop::collection::vec(prop_oneof![Just(0u8), Just(b'a'), Just(b'b'), Just(0xFF)], 0..3),
        is_prefix in any::<bool>(),
        order in prop_oneof![Just(Order::Ascending), Just(Order::Descending), Just(Order::Any)],
        limit in prop_oneof![2 => Just(0u64), 1 => 1u64..20],
        parallel in 1usize..5,
        cells_per_batch in 1usize..5,
        faults in prop::collection::vec(fault(), 0..12),
    ) {
        let told = format!("{salt} {rows:?} {start:?} {end:?} {is_prefix} {order:?} {limit} {parallel} {cells_per_batch} {faults:?}");
        let case = |cluster: Cluster| async move {
            let table = salted(&cluster.client(), salt, &["a", "b"]).await;
            fill(&table, rows.iter().map(|row| Bytes::from(row.clone()))).await;
            cluster.lock().cells_per_batch = cells_per_batch;
            cluster.faults(faults);
            let range = if is_prefix { RowRange::prefix(&start) } else { RowRange::new(start, end) };
            let mut expected: Vec<Bytes> = rows.into_iter().map(Bytes::from).filter(|row| range.contains(row)).collect();
            let options = ScanOptions { order, limit, parallel, ..ScanOptions::default() };
            let mut found = keys(&table, range, options).await;
            let wanted = if limit == 0 { expected.len() } else { expected.len().min(limit as usize) };
            match order {
                Order::Ascending => {}
                Order::Descending => expected.reverse(),
                Order::Any => {
                    found.sort_unstable();
                    found.dedup();
                    assert_eq!(found.len(), wanted);
                    assert!(found.iter().all(|key| expected.contains(key)));
                    return;
                }
            }
            expected.truncate(wanted);
            assert_eq!(found, expected);
        };
        let ended = run(async move {
            let cluster = Cluster::start(4).await;
            let clock = cluster.env.clock.clone();
            clock.timeout(CASE_LIMIT, case(cluster)).await
        });
        assert!(ended.is_ok(), "the case hangs: {told}");
    }
}
