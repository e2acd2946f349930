//! Writes: each exactly once, whatever happens, and the truth about how they ended.

mod fake;

use std::time::Duration;

use fake::{Cluster, Fault};
use futures::future::join_all;
use proptest::prelude::*;
use uruk_client::{ClientConfig, Error, ErrorCode, Filter, Mutation, Outcome, ReadModifyWriteRule, RowMutation};

fn run<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true).build().expect("a runtime").block_on(future)
}

fn set(value: impl Into<bytes::Bytes>) -> Vec<Mutation> {
    vec![Mutation::set("f", "q", value)]
}

const SPLITS: [&str; 3] = ["k05", "k10", "k15"];

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        3 => Just(Fault::None),
        1 => Just(Fault::Stale),
        1 => Just(Fault::Unavailable),
        1 => Just(Fault::Overloaded { retry_after_ms: 20 }),
        2 => Just(Fault::BreakBefore),
        3 => Just(Fault::BreakAfter { batches: 0 }),
        3 => Just(Fault::Unexplained { batches: 0 }),
        1 => Just(Fault::Slow { ms: 700 }),
        1 => Just(Fault::Move),
        3 => Just(Fault::Split),
        2 => Just(Fault::Merge),
        1 => (1u64..60).prop_map(|ms| Fault::FreezeAndSplit { ms }),
        2 => Just(Fault::RowFails(ErrorCode::Unavailable)),
        1 => Just(Fault::RowFails(ErrorCode::StaleLocation)),
        1 => Just(Fault::RowFails(ErrorCode::Unknown)),
        1 => (0u64..300).prop_map(|unserved_ms| Fault::Die { unserved_ms }),
        1 => (0u64..300).prop_map(|unserved_ms| Fault::Freeze { unserved_ms }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_schedule_of_faults_writes_every_row_exactly_once(
        faults in prop::collection::vec(fault(), 0..20),
        rows in prop::collection::btree_set(0usize..20, 1..20),
        batch_rows_max in 1usize..6,
        old_news in 0usize..4,
    ) {
        run(async move {
            let cluster = Cluster::start(4).await;
            let id = cluster.table("t", &SPLITS);
            let config = ClientConfig { batch_rows_max, ..ClientConfig::default() };
            let table = cluster.client_with(config).table("t").await.unwrap();
            // Something to split at.
            table.mutate_rows((0..20).map(|n| RowMutation::new(format!("k{n:02}"), set("old"))).collect()).await;
            cluster.faults(faults);
            {
                let mut state = cluster.lock();
                state.remember_before();
                state.old_news = old_news;
            }
            let batch = rows.iter().rev().map(|n| RowMutation::new(format!("k{n:02}"), set("new"))).collect();
            let results = table.mutate_rows(batch).await;
            assert!(results.iter().all(Result::is_ok), "{results:?}");
            for n in 0..20 {
                let expected = if rows.contains(&n) { "new" } else { "old" };
                assert_eq!(cluster.value(id, &format!("k{n:02}")).unwrap(), expected);
            }
            cluster.check();
        });
    }

    #[test]
    fn an_increment_counts_once_under_any_faults(faults in prop::collection::vec(fault(), 0..12)) {
        run(async move {
            let cluster = Cluster::start(4).await;
            cluster.table("t", &SPLITS);
            let table = cluster.client().table("t").await.unwrap();
            cluster.faults(faults);
            for expected in 1i64..=4 {
                let rules = vec![ReadModifyWriteRule::increment("f", "n", 1)];
                let row = table.read_modify_write("k07", rules).await.unwrap();
                assert_eq!(row.value("f", "n").unwrap(), &expected.to_be_bytes()[..]);
            }
            cluster.check();
        });
    }

    #[test]
    fn a_batch_writer_loses_no_row_and_keeps_the_order_within_a_row(
        faults in prop::collection::vec(fault(), 0..20),
        keys in prop::collection::vec(0usize..20, 1..80),
        batch_rows_max in 1usize..6,
    ) {
        run(async move {
            let cluster = Cluster::start(4).await;
            let id = cluster.table("t", &SPLITS);
            let config = ClientConfig { batch_rows_max, writer_bytes_max: 2_000, ..ClientConfig::default() };
            let table = cluster.client_with(config).table("t").await.unwrap();
            cluster.faults(faults);
            let writer = table.batch_writer();
            let mut last = std::collections::BTreeMap::new();
            for (n, key) in keys.iter().enumerate() {
                writer.add(RowMutation::new(format!("k{key:02}"), set(n.to_string()))).await.unwrap();
                last.insert(*key, n.to_string());
            }
            writer.flush().await.unwrap();
            assert_eq!(writer.bytes_held(), 0);
            for (key, value) in last {
                assert_eq!(cluster.value(id, &format!("k{key:02}")).unwrap(), value);
            }
            cluster.check();
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_carries_the_key_of_the_first_attempt() {
    let cluster = Cluster::start(2).await;
    let id = cluster.table("t", &[]);
    let table = cluster.client().table("t").await.unwrap();
    cluster.faults([Fault::BreakAfter { batches: 0 }, Fault::Unexplained { batches: 0 }]);
    table.mutate_row("k", set("v")).await.unwrap();
    assert_eq!(cluster.value(id, "k").unwrap(), "v");
    let keys = cluster.lock().keys.clone();
    assert_eq!(keys.len(), 3);
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    assert_eq!((keys[0].sequence, keys[0].first_incomplete), (1, 1));
    assert_eq!(cluster.lock().performed.len(), 1);
    table.mutate_row("k", set("w")).await.unwrap();
    let last = *cluster.lock().keys.last().unwrap();
    assert_eq!((last.sequence, last.first_incomplete), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn an_answer_remembered_by_the_tablet_counts() {
    let cluster = Cluster::start(2).await;
    cluster.table("t", &[]);
    let table = cluster.client().table("t").await.unwrap();
    table.mutate_row("k", set("old")).await.unwrap();
    // The first attempt matches and changes the row so that it would not match again.
    cluster.faults([Fault::BreakAfter { batches: 0 }]);
    let was_old = Filter::all().column("f", "q").cells_per_column(1).value("old");
    let matched = table.check_and_mutate("k", &was_old, set("new"), Vec::new()).await;
    assert_eq!(matched, Ok(true));
    assert_eq!(table.check_and_mutate("k", &was_old, set("never"), Vec::new()).await, Ok(false));
    cluster.check();
}

#[tokio::test(start_paused = true)]
async fn how_a_write_ended_is_told_truly() {
    let broken = Fault::BreakBefore;
    let refused = |code| Fault::Code(code);
    for (faults, outcome, code) in [
        (vec![refused(ErrorCode::FailedPrecondition)], Outcome::NotDone, ErrorCode::FailedPrecondition),
        (vec![refused(ErrorCode::InvalidArgument)], Outcome::NotDone, ErrorCode::InvalidArgument),
        (vec![refused(ErrorCode::Corrupt)], Outcome::Unknown, ErrorCode::Corrupt),
        (vec![refused(ErrorCode::Internal)], Outcome::Unknown, ErrorCode::Internal),
        (vec![broken, refused(ErrorCode::FailedPrecondition)], Outcome::Unknown, ErrorCode::FailedPrecondition),
        (vec![broken, refused(ErrorCode::InvalidArgument)], Outcome::NotDone, ErrorCode::InvalidArgument),
        (vec![Fault::Unavailable; 1_000], Outcome::NotDone, ErrorCode::Unavailable),
        (vec![Fault::Overloaded { retry_after_ms: 9 }; 1_000], Outcome::NotDone, ErrorCode::Overloaded),
        (vec![broken; 1_000], Outcome::Unknown, ErrorCode::DeadlineExceeded),
        ([vec![broken], vec![Fault::Unavailable; 1_000]].concat(), Outcome::Unknown, ErrorCode::DeadlineExceeded),
        (vec![Fault::Unexplained { batches: 0 }; 1_000], Outcome::Unknown, ErrorCode::DeadlineExceeded),
    ] {
        for batch in [false, true] {
            let cluster = Cluster::start(2).await;
            cluster.table("t", &[]);
            let table = cluster.client().table("t").await.unwrap().with_deadline(Duration::from_secs(3));
            cluster.faults(faults.clone());
            let result = match batch {
                true => table.mutate_rows(vec![RowMutation::new("k", set("v"))]).await.remove(0),
                false => table.mutate_row("k", set("v")).await,
            };
            let error = result.unwrap_err();
            let first: Vec<_> = faults.iter().take(2).collect();
            assert_eq!((error.outcome(), error.code()), (outcome, code), "{first:?}, batch {batch}: {error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_cannot_be_reached_has_done_nothing() {
    let cluster = Cluster::start(1).await;
    cluster.table("t", &[]);
    let table = cluster.client().table("t").await.unwrap().with_deadline(Duration::from_secs(1));
    cluster.net.kill(&Cluster::address(0));
    let error = table.mutate_row("k", set("v")).await.unwrap_err();
    assert_eq!((error.outcome(), error.code()), (Outcome::NotDone, ErrorCode::Unavailable), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_bad_row_fails_alone() {
    let cluster = Cluster::start(2).await;
    let id = cluster.table("t", &SPLITS);
    let table = cluster.client().table("t").await.unwrap();
    let rows = vec![
        RowMutation::new("k19", set("1")),
        RowMutation::new("", set("2")),
        RowMutation::new("k01", vec![]),
        RowMutation::new("k02", vec![Mutation::set("nope", "q", "v")]),
        RowMutation::new("k03", set("5")),
    ];
    let results = table.mutate_rows(rows).await;
    let told: Vec<_> = results.iter().map(|r| r.as_ref().err().map(ToString::to_string)).collect();
    assert_eq!(told[0], None);
    assert_eq!(told[1].as_deref(), Some("Row keys must be non-empty"));
    assert_eq!(told[2].as_deref(), Some("No mutations provided"));
    assert!(matches!(results[3], Err(Error::UnknownFamily { .. })));
    assert_eq!(told[4], None);
    assert_eq!((cluster.value(id, "k19").unwrap(), cluster.value(id, "k03").unwrap()), ("1".into(), "5".into()));
}

#[tokio::test(start_paused = true)]
async fn one_rows_refusal_says_nothing_about_the_others() {
    let cluster = Cluster::start(2).await;
    let id = cluster.table("t", &[]);
    let table = cluster.client().table("t").await.unwrap();
    cluster.faults([Fault::RowFails(ErrorCode::FailedPrecondition)]);
    let rows = ["a", "b", "c"].map(|key| RowMutation::new(key, set("v"))).to_vec();
    let results = table.mutate_rows(rows).await;
    assert_eq!(results[0].as_ref().unwrap_err().outcome(), Outcome::NotDone);
    assert!(results[1].is_ok() && results[2].is_ok());
    assert_eq!((cluster.value(id, "a"), cluster.value(id, "b")), (None, Some("v".into())));
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_one_request_per_tablet() {
    let cluster = Cluster::start(2).await;
    cluster.table("t", &SPLITS);
    let table = cluster.client().table("t").await.unwrap();
    let rows = (0..20).map(|n| RowMutation::new(format!("k{n:02}"), set("v"))).collect();
    assert!(table.mutate_rows(rows).await.iter().all(Result::is_ok));
    assert_eq!(cluster.lock().batch_rows, [5, 5, 5, 5]);
    assert_eq!(cluster.lock().locates, 1);
}

#[tokio::test(start_paused = true)]
async fn a_batch_writer_holds_no_more_than_its_limit_and_fills_its_batches() {
    let cluster = Cluster::start(2).await;
    cluster.table("t", &SPLITS);
    let config = ClientConfig {
        writer_bytes_max: 100_000,
        batch_bytes_max: 10_000,
        batch_rows_max: 8,
        ..ClientConfig::default()
    };
    let table = cluster.client_with(config).table("t").await.unwrap();
    cluster.faults(vec![Fault::Slow { ms: 40 }; 100_000]);
    let writer = table.batch_writer();
    for n in 0..2_000 {
        writer.add(RowMutation::new(format!("k{:02}-{n}", n % 20), set(vec![0; 1_000]))).await.unwrap();
        assert!(writer.bytes_held() <= 100_000);
    }
    writer.flush().await.unwrap();
    assert_eq!(writer.bytes_held(), 0);
    let state = cluster.lock();
    assert!(state.bytes_in_flight_max <= 100_000, "{}", state.bytes_in_flight_max);
    assert!(state.bytes_in_flight_max >= 50_000, "{}", state.bytes_in_flight_max);
    assert_eq!(state.performed.len(), 2_000);
    assert!(state.batch_rows.len() <= 500, "{} requests", state.batch_rows.len());
    assert!(state.batch_rows.iter().all(|rows| *rows <= 8));
}

#[tokio::test(start_paused = true)]
async fn a_row_beyond_the_writers_limit_goes_alone() {
    let cluster = Cluster::start(1).await;
    let id = cluster.table("t", &[]);
    let config = ClientConfig { writer_bytes_max: 1_000, ..ClientConfig::default() };
    let writer = cluster.client_with(config).table("t").await.unwrap().batch_writer();
    writer.add(RowMutation::new("small", set("v"))).await.unwrap();
    writer.add(RowMutation::new("large", set(vec![7; 50_000]))).await.unwrap();
    writer.flush().await.unwrap();
    assert_eq!(cluster.value(id, "large").unwrap().len(), 50_000);
}

#[tokio::test(start_paused = true)]
async fn rows_do_not_wait_for_a_flush() {
    let cluster = Cluster::start(1).await;
    let id = cluster.table("t", &[]);
    let writer = cluster.client().table("t").await.unwrap().batch_writer();
    let receipt = writer.add_with_receipt(RowMutation::new("k", set("v"))).await.unwrap();
    let started = cluster.now();
    receipt.await.unwrap();
    assert!(cluster.now() - started <= Duration::from_millis(10));
    assert_eq!(cluster.value(id, "k").unwrap(), "v");
}

#[tokio::test(start_paused = true)]
async fn a_flush_tells_which_rows_failed_and_receipts_tell_their_own() {
    let cluster = Cluster::start(1).await;
    cluster.table("t", &[]);
    let writer = cluster.client().table("t").await.unwrap().batch_writer();
    cluster.faults([Fault::RowFails(ErrorCode::FailedPrecondition)]);
    writer.add(RowMutation::new("a", set("v"))).await.unwrap();
    writer.add(RowMutation::new("b", set("v"))).await.unwrap();
    let error = writer.flush().await.unwrap_err();
    assert_eq!((error.failed, error.failures[0].key.as_ref()), (1, &b"a"[..]));
    assert_eq!(error.to_string(), "1 rows could not be written; the first: \"a\": as ordered");
    writer.flush().await.unwrap();
    cluster.faults([Fault::RowFails(ErrorCode::FailedPrecondition)]);
    let receipt = writer.add_with_receipt(RowMutation::new("c", set("v"))).await.unwrap();
    writer.flush().await.unwrap();
    assert_eq!(receipt.await.unwrap_err().outcome(), Outcome::NotDone);
}

#[tokio::test(start_paused = true)]
async fn a_shut_down_process_leaves_no_one_waiting() {
    let cluster = Cluster::start(1).await;
    cluster.table("t", &[]);
    let client_tasks = uruk_base::Tasks::simulated();
    let env = cluster.env.with_tasks(client_tasks.clone());
    let client = uruk_client::Client::connect(&env, &["master:1".to_owned()]).unwrap();
    let writer = client.table("t").await.unwrap().batch_writer();
    cluster.faults(vec![Fault::Slow { ms: 60_000 }; 10]);
    let receipt = writer.add_with_receipt(RowMutation::new("k", set("v"))).await.unwrap();
    cluster.env.clock.sleep(Duration::from_millis(50)).await;
    client_tasks.shutdown().await.unwrap();
    assert_eq!(receipt.await, Err(Error::ShutDown { outcome: Outcome::Unknown }));
    writer.flush().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn many_calls_keep_first_incomplete_right() {
    let cluster = Cluster::start(3).await;
    cluster.table("t", &SPLITS);
    let table = cluster.client().table("t").await.unwrap();
    let slow = (0..200).map(|n| if n % 7 == 0 { Fault::Slow { ms: 30 } } else { Fault::None });
    cluster.faults(slow);
    let writes = (0..200).map(|n| {
        let table = table.clone();
        async move { table.mutate_row(format!("k{:02}", n % 20), set(n.to_string())).await }
    });
    assert!(join_all(writes).await.iter().all(Result::is_ok));
    cluster.check();
    table.mutate_row("k", set("v")).await.unwrap();
    let last = *cluster.lock().keys.last().unwrap();
    assert_eq!(last.first_incomplete, last.sequence, "all before it are settled");
}
