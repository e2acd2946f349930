//! Scans over many tablets, with faults at every point.

mod fake;

use std::time::Duration;

use fake::{Cluster, Fault};
use futures::{StreamExt, TryStreamExt};
use proptest::prelude::*;
use uruk_client::{Client, ErrorCode, Filter, Order, Outcome, ReadOptions, RowRange, ScanOptions, Table};

/// Runs `future` on a runtime of its own with a clock that skips idle time.
fn run<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true).build().expect("a runtime").block_on(future)
}

async fn scanned(table: &Table, range: RowRange, options: ScanOptions) -> Vec<String> {
    let rows: Vec<_> = table.scan(range, options).try_collect().await.expect("the scan ends well");
    rows.iter()
        .map(|row| {
            let key = String::from_utf8(row.key().to_vec()).expect("keys are text");
            let values: Vec<_> = row.cells().map(|cell| cell.value.clone()).collect();
            assert_eq!(values, [format!("a of {key}"), format!("b of {key}")], "the whole row");
            key
        })
        .collect()
}

async fn table_of(cluster: &Cluster, client: &Client) -> (Table, Vec<String>) {
    let id = cluster.table("t", &["row-005", "row-010", "row-015", "row-020", "row-0205", "row-021"]);
    let keys = cluster.fill(id, 30);
    (client.table("t").await.expect("it exists"), keys)
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        3 => Just(Fault::None),
        1 => Just(Fault::Stale),
        1 => Just(Fault::Unavailable),
        1 => Just(Fault::Overloaded { retry_after_ms: 20 }),
        2 => Just(Fault::BreakBefore),
        4 => (0usize..5).prop_map(|batches| Fault::BreakAfter { batches }),
        3 => (0usize..5).prop_map(|batches| Fault::Unexplained { batches }),
        1 => Just(Fault::Slow { ms: 700 }),
        2 => Just(Fault::Move),
        3 => Just(Fault::Split),
        2 => Just(Fault::Merge),
        1 => (1u64..60).prop_map(|ms| Fault::FreezeAndSplit { ms }),
        1 => (0u64..300).prop_map(|unserved_ms| Fault::Die { unserved_ms }),
        1 => (0u64..300).prop_map(|unserved_ms| Fault::Freeze { unserved_ms }),
    ]
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![Just(Order::Ascending), Just(Order::Descending), Just(Order::Any)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_schedule_of_faults_gives_every_row_exactly_once(
        faults in prop::collection::vec(fault(), 0..25),
        order in order(),
        parallel in 1usize..5,
        prefetch in 0usize..3,
        cells_per_batch in 1usize..8,
        old_news in 0usize..4,
        bounds in prop::option::of((0usize..30, 0usize..31)),
    ) {
        run(async move {
            let cluster = Cluster::start(4).await;
            let client = cluster.client();
            let (table, keys) = table_of(&cluster, &client).await;
            cluster.faults(faults);
            {
                let mut state = cluster.lock();
                state.cells_per_batch = cells_per_batch;
                state.remember_before();
                state.old_news = old_news;
            }
            let (from, to) = bounds.unwrap_or((0, 30));
            let range = match bounds {
                None => RowRange::ALL,
                Some(_) => RowRange::new(format!("row-{from:03}"), format!("row-{to:03}")),
            };
            let options = ScanOptions { order, parallel, prefetch, ..ScanOptions::default() };
            let mut rows = scanned(&table, range, options).await;
            let mut expected = keys[from..to.max(from)].to_vec();
            match order {
                Order::Ascending => {}
                Order::Descending => expected.reverse(),
                Order::Any => rows.sort_unstable(),
            }
            assert_eq!(rows, expected);
            cluster.check();
        });
    }

    #[test]
    fn a_limit_gives_the_first_rows(limit in 1u64..40, order in order(), faults in prop::collection::vec(fault(), 0..8)) {
        run(async move {
            let cluster = Cluster::start(4).await;
            let client = cluster.client();
            let (table, mut keys) = table_of(&cluster, &client).await;
            cluster.faults(faults);
            let options = ScanOptions { order, limit, ..ScanOptions::default() };
            let rows = scanned(&table, RowRange::ALL, options).await;
            if order == Order::Descending {
                keys.reverse();
            }
            keys.truncate(limit as usize);
            match order {
                Order::Any => assert_eq!(rows.len(), keys.len()),
                Order::Ascending | Order::Descending => assert_eq!(rows, keys),
            }
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_scan_opens_the_next_tablet_ahead_and_no_more() {
    let cluster = Cluster::start(4).await;
    let (table, keys) = table_of(&cluster, &cluster.client()).await;
    let mut rows = table.scan(RowRange::ALL, ScanOptions::default());
    assert_eq!(rows.next().await.unwrap().unwrap().key(), &keys[0]);
    cluster.env.clock.sleep(Duration::from_secs(1)).await;
    assert_eq!(cluster.lock().reads, 2, "its own tablet and the next");
    drop(rows);
    let mut rows = table.scan(RowRange::ALL, ScanOptions { limit: 3, ..ScanOptions::default() });
    rows.next().await.unwrap().unwrap();
    assert_eq!(cluster.lock().reads, 3, "a limit: nothing ahead");
}

#[tokio::test(start_paused = true)]
async fn an_empty_range_and_an_empty_table_give_no_rows() {
    let cluster = Cluster::start(2).await;
    let (table, _) = table_of(&cluster, &cluster.client()).await;
    for range in [RowRange::new("b", "a"), RowRange::new("a", "a"), RowRange::new("zzz", "")] {
        assert_eq!(scanned(&table, range, ScanOptions::default()).await, Vec::<String>::new());
    }
    assert_eq!(cluster.lock().reads, 1, "only the range that is not empty is read");
}

#[tokio::test(start_paused = true)]
async fn a_scan_asks_only_the_tablets_it_needs() {
    let cluster = Cluster::start(2).await;
    let (table, keys) = table_of(&cluster, &cluster.client()).await;
    let range = RowRange::new("row-010", "row-020");
    assert_eq!(scanned(&table, range, ScanOptions::default()).await, keys[10..20]);
    assert_eq!(cluster.lock().reads, 2);
    // No tablet starts at the prefix itself: its keys begin in the tablet before.
    assert_eq!(scanned(&table, RowRange::prefix(b"row-01"), ScanOptions::default()).await, keys[10..20]);
    assert_eq!(cluster.lock().reads, 2 + 3);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_pauses_goes_on_where_it_was() {
    let cluster = Cluster::start(4).await;
    let (table, keys) = table_of(&cluster, &cluster.client()).await;
    let mut rows = table.scan(RowRange::ALL, ScanOptions::default());
    let mut read = Vec::new();
    while let Some(row) = rows.next().await {
        read.push(String::from_utf8(row.unwrap().key().to_vec()).unwrap());
        // Longer than any deadline; meanwhile the tablet it reads goes elsewhere.
        cluster.env.clock.sleep(Duration::from_secs(100)).await;
        let mut state = cluster.lock();
        let tablet = *state.tablets.keys().next().unwrap();
        state.move_tablet(tablet, Duration::ZERO);
        state.faults.push_back(Fault::BreakAfter { batches: 1 });
    }
    assert_eq!(read, keys);
}

#[tokio::test(start_paused = true)]
async fn a_scan_that_makes_no_progress_ends_at_the_deadline() {
    let cluster = Cluster::start(1).await;
    let (table, keys) = table_of(&cluster, &cluster.client()).await;
    let table = table.with_deadline(Duration::from_secs(3));
    cluster.faults([Fault::None].into_iter().chain(vec![Fault::Unavailable; 10_000]));
    let options = ScanOptions { prefetch: 0, ..ScanOptions::default() };
    let mut rows = table.scan(RowRange::ALL, options);
    let mut read = Vec::new();
    let error = loop {
        match rows.next().await.expect("an error comes before the end") {
            Ok(row) => read.push(String::from_utf8(row.key().to_vec()).unwrap()),
            Err(error) => break error,
        }
    };
    assert_eq!(read, keys[..5]);
    assert_eq!((error.code(), error.outcome()), (ErrorCode::Unavailable, Outcome::NotDone));
    assert!(rows.next().await.is_none(), "an error is the end");
}

#[tokio::test(start_paused = true)]
async fn a_damaged_tablet_ends_the_scan_in_its_place() {
    let cluster = Cluster::start(2).await;
    let (table, keys) = table_of(&cluster, &cluster.client()).await;
    cluster.faults([Fault::None, Fault::Code(ErrorCode::Corrupt)]);
    let rows: Vec<_> = table.scan(RowRange::ALL, ScanOptions::default()).collect().await;
    let (last, good) = rows.split_last().unwrap();
    assert_eq!(last.as_ref().unwrap_err().code(), ErrorCode::Corrupt);
    assert_eq!(good.iter().map(|row| row.as_ref().unwrap().key().clone()).collect::<Vec<_>>(), keys[..5]);
}

#[tokio::test(start_paused = true)]
async fn stalled_scans_hold_up_neither_each_other_nor_point_reads() {
    let cluster = Cluster::start(1).await;
    let id = cluster.table("t", &[]);
    cluster.fill(id, 1);
    {
        // More than a connection's window: 24 MiB in one row each.
        let mut state = cluster.lock();
        let cell = state.rows.values().next().unwrap()[0].clone();
        for n in 0..24 {
            let cell = uruk_proto::cell_batch::Cell { value: vec![0; 1 << 20].into(), ..cell.clone() };
            state.rows.insert((id, format!("big-{n:02}").into()), vec![cell]);
        }
        state.cells_per_batch = 1;
    }
    let table = cluster.client().table("t").await.unwrap();
    let mut stalled = Vec::new();
    for _ in 0..12 {
        let mut rows = table.scan(RowRange::ALL, ScanOptions::default());
        rows.next().await.unwrap().unwrap();
        stalled.push(rows);
    }
    assert!(table.read_row("row-000", &Default::default()).await.unwrap().is_some());
    let last: Vec<_> = stalled.pop().unwrap().try_collect().await.unwrap();
    assert_eq!(last.len(), 24);
    let first: Vec<_> = stalled.swap_remove(0).try_collect().await.unwrap();
    assert_eq!(first.len(), 24);
}

#[tokio::test(start_paused = true)]
async fn batches_hold_whole_rows_and_the_filter_is_sent() {
    let cluster = Cluster::start(2).await;
    let (table, keys) = table_of(&cluster, &cluster.client()).await;
    cluster.lock().cells_per_batch = 5;
    let options = ScanOptions { filter: Filter::all().column("f", "a").strip_values(), ..ScanOptions::default() };
    let batches: Vec<_> = table.scan_batches(RowRange::ALL, options).try_collect().await.unwrap();
    let rows: Vec<_> = batches.iter().flat_map(|batch| &batch.rows).collect();
    assert_eq!(rows.iter().map(|row| row.key.clone()).collect::<Vec<_>>(), keys);
    assert!(rows.iter().all(|row| row.cells.len() == 1 && row.cells[0].value.is_empty()));
}

#[tokio::test(start_paused = true)]
async fn a_scan_that_is_not_read_on_in_the_middle_of_a_look_up_holds_up_no_other_call() {
    let cluster = Cluster::start(2).await;
    let (table, keys) = table_of(&cluster, &cluster.client()).await;
    let mut scan = table.scan(RowRange::ALL, ScanOptions::default());
    assert!(futures::poll!(scan.next()).is_pending(), "it asks the master where the tablets are");
    let options = ReadOptions::default();
    let read = cluster.env.clock.timeout(Duration::from_secs(60), table.read_row("row-007", &options));
    assert!(read.await.expect("it does not wait for the reader of the scan").unwrap().is_some());
    assert_eq!(scan.count().await, keys.len());
}
