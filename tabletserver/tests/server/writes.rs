//! Durable first, visible second, acknowledged last; batches; latches.

use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use uruk_base::commit_log::{CommitLogStore, LogError};
use uruk_proto::master::TabletKey;
use uruk_proto::tablet::RowMutations;
use uruk_proto::{ErrorCode, FamilyId, RpcError};
use uruk_tabletserver::server::Ended;

use crate::cluster::*;

#[tokio::test]
async fn a_write_is_visible_and_acknowledged_only_once_it_is_durable() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    host.put(TABLET, "a", "1").await;
    let frames = cluster.held(&host);
    let mut write = Box::pin(host.try_put(TABLET, "b", "2"));
    let appended = cluster.appended(&host, frames);
    tokio::select! {
        biased;
        outcome = &mut write => panic!("acknowledged before it was durable: {outcome:?}"),
        () = appended => {}
    }
    assert_eq!(host.values(TABLET).await, pairs(&[("a", "1")]), "not visible yet");
    assert!((&mut write).now_or_never().is_none(), "not acknowledged yet");
    cluster.logs.release(host.log());
    write.await.expect("acknowledged");
    assert_eq!(host.values(TABLET).await, pairs(&[("a", "1"), ("b", "2")]));
}

#[tokio::test]
async fn small_writes_share_the_frame_that_follows_the_one_in_flight() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    let frames = cluster.held(&host);
    let first = host.try_put(TABLET, "first", "1");
    let rows: Vec<String> = (0..20).map(|n| format!("row-{n:02}")).collect();
    let release = async {
        cluster.appended(&host, frames).await;
        cluster.let_time_pass().await;
        let others = join_all(rows.iter().map(|row| host.try_put(TABLET, row, "2")));
        let release = async {
            cluster.let_time_pass().await;
            assert_eq!(cluster.logs.frames(host.log()), frames + 1, "nothing small follows the frame in flight");
            cluster.logs.release(host.log());
        };
        tokio::join!(others, release).0
    };
    let (first, others) = tokio::join!(first, release);
    first.expect("acknowledged");
    others.into_iter().for_each(|outcome| outcome.expect("acknowledged"));
    let after = cluster.logs.frames(host.log()) - frames;
    // Its own, theirs, and perhaps one for whoever came late.
    assert!(after <= 3, "{after} frames for {} writes", rows.len() + 1);
}

#[tokio::test]
async fn a_large_write_does_not_wait_for_the_frame_in_flight() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    let frames = cluster.held(&host);
    let large = "v".repeat(cluster.config().large_frame_bytes);
    let first = host.try_put(TABLET, "a", "1");
    let second = async {
        cluster.appended(&host, frames).await;
        let second = host.try_put(TABLET, "b", &large);
        let release = async {
            cluster.appended(&host, frames + 1).await;
            cluster.logs.release(host.log());
        };
        tokio::join!(second, release).0
    };
    let (first, second) = tokio::join!(first, second);
    first.and(second).expect("acknowledged");
}

#[tokio::test]
async fn a_fenced_log_ends_the_incarnation_and_nothing_is_acknowledged() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    let frames = cluster.held(&host);
    let write = host.try_put(TABLET, "b", "2");
    let fence = async {
        cluster.appended(&host, frames).await;
        cluster.logs.seal(host.log()).await.expect("seals");
    };
    let (outcome, ()) = tokio::join!(write, fence);
    assert_eq!(outcome.expect_err("fenced").code, ErrorCode::Unknown);
    assert_eq!(host.server.wait().await, Ended::LogFailed(LogError::Fenced(host.log())));
    host.try_put(TABLET, "c", "3").await.expect_err("serves nothing any more");
    host.try_scan(TABLET).await.expect_err("serves nothing any more");
}

#[tokio::test]
async fn an_indeterminate_log_ends_the_incarnation() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    let error = LogError::Indeterminate(host.log(), "on purpose".into());
    cluster.logs.break_with(host.log(), error.clone());
    let ended = host.server.wait().await;
    assert_eq!(ended, Ended::LogFailed(error));
    assert_ne!(ended.exit_code(), 0);
}

#[tokio::test]
async fn a_bad_entry_of_a_batch_fails_alone() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    let mut request = puts(TABLET, &[("a", "1"), ("", "2"), ("c", "3")], None);
    request.entries.push(RowMutations { row: "d".into(), mutations: set_in(FamilyId(99), "x") });
    request.entries.push(RowMutations { row: "e".into(), mutations: Default::default() });
    request.entries.push(RowMutations { row: "f".into(), mutations: "\u{ff}".into() });
    request.entries.push(RowMutations { row: vec![b'k'; 4097].into(), mutations: set("x") });
    let errors = host.mutate(request).await.expect("answers");
    let codes: Vec<_> = errors.iter().map(|e| (e.index, ErrorCode::from_u32(e.code).expect("known"))).collect();
    let invalid = ErrorCode::InvalidArgument;
    assert_eq!(codes, [(1, invalid), (3, ErrorCode::NotFound), (4, invalid), (5, invalid), (6, invalid)]);
    assert!(errors[1].message.starts_with("Requested column family not found"), "{}", errors[1].message);
    assert_eq!(errors[0].message, "Row keys must be non-empty");
    assert_eq!(errors[2].message, "No mutations provided");
    assert_eq!(host.values(TABLET).await, pairs(&[("a", "1"), ("c", "3")]));
}

#[tokio::test]
async fn a_batch_larger_than_a_record_is_written_in_pieces() {
    let cluster = Cluster::new().await;
    let mut config = cluster.config();
    config.record_bytes_max = 8 << 10;
    let host = cluster.start_with(config).await;
    cluster.open(&host, TABLET).await;
    let value = "v".repeat(500);
    let rows: Vec<String> = (0..200).map(|i| format!("row-{i:03}")).collect();
    let batch: Vec<_> = rows.iter().map(|row| (row.as_str(), value.as_str())).collect();
    assert_eq!(host.mutate(puts(TABLET, &batch, call(&cluster, 1))).await, Ok(vec![]));
    assert_eq!(host.values(TABLET).await, pairs(&batch));
}

#[tokio::test]
async fn concurrent_increments_are_all_counted() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    let one = || async {
        let answer = host.client().read_modify_write(increment(TABLET, "row", 1, None)).await;
        number(answer.expect("increments").into_inner().batch)
    };
    let mut seen = join_all((0..64).map(|_| one())).await;
    seen.sort_unstable();
    assert_eq!(seen, (1..=64).collect::<Vec<i64>>());
}

#[tokio::test]
async fn exactly_one_of_many_put_if_absent_wins() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    let one = |i: u64| {
        let (mut client, value) = (host.client(), i.to_string());
        async move {
            let answer = client.check_and_mutate(put_if_absent(TABLET, "row", &value, None)).await;
            !answer.expect("answers").into_inner().matched
        }
    };
    let wins = join_all((0..32).map(one)).await.into_iter().filter(|won| *won).count();
    assert_eq!(wins, 1);
    assert_eq!(host.scan(TABLET).await[0].cells.len(), 1);
}

#[tokio::test]
async fn a_read_modify_write_waits_for_the_put_before_it() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    let frames = cluster.held(&host);
    let write = host.try_put(TABLET, "row", "1");
    let check = async {
        cluster.appended(&host, frames).await;
        let mut client = host.client();
        let check = client.check_and_mutate(put_if_absent(TABLET, "row", "2", None));
        let release = async {
            // Gives a check that did not wait the time to be wrong.
            cluster.env.clock.sleep(Duration::from_millis(20)).await;
            cluster.logs.release(host.log());
        };
        tokio::join!(check, release).0.expect("answers").into_inner().matched
    };
    let (put, matched) = tokio::join!(write, check);
    put.expect("writes");
    assert!(matched, "saw the put");
}

#[tokio::test]
async fn a_check_that_writes_nothing_is_not_answered_once_the_tablet_has_gone() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    let frames = cluster.held(&host);
    let write = host.try_put(TABLET, "row", "1");
    let check = async {
        cluster.appended(&host, frames).await;
        let mut client = host.client();
        // It waits for the put, matches, and has nothing to write then.
        let check = client.check_and_mutate(put_if_absent(TABLET, "row", "2", None));
        let discard = async {
            cluster.let_time_pass().await;
            host.order_close(TabletKey { tablet_id: TABLET, epoch: 1 }, true).await;
            cluster.logs.release(host.log());
        };
        tokio::join!(check, discard).0
    };
    let (_put, check) = tokio::join!(write, check);
    let error = RpcError::from(check.expect_err("who knows what the next owner has written"));
    assert_eq!(error.code, ErrorCode::StaleLocation, "{error}");
    assert!(error.message.contains("not here any more"), "it had begun before: {error}");
}

#[tokio::test]
async fn increments_of_what_is_no_number_are_refused() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    host.put(TABLET, "row", "abc").await;
    let mut request = increment(TABLET, "row", 1, None);
    request.rules[0].qualifier = "q".into();
    let status = host.client().read_modify_write(request).await.expect_err("refused");
    assert_eq!(uruk_proto::RpcError::from(status).code, ErrorCode::FailedPrecondition);
}

#[tokio::test]
async fn a_full_memtable_budget_rejects_and_a_flush_frees_it() {
    let cluster = Cluster::new().await;
    let mut config = cluster.config();
    (config.memtable_bytes_soft, config.memtable_bytes_hard) = (20_000, 60_000);
    let host = cluster.start_with(config).await;
    cluster.open(&host, TABLET).await;
    cluster.master.with(|state| state.hangs_commits = true);
    let value = "v".repeat(5000);
    let mut rejected = None;
    for i in 0..100 {
        if let Err(error) = host.try_put(TABLET, &format!("row-{i}"), &value).await {
            rejected = Some(error);
            break;
        }
    }
    let error = rejected.expect("the hard limit rejects");
    assert_eq!(error.code, ErrorCode::Overloaded);
    assert!(error.retry_after_ms > 0);
    assert!(!host.scan(TABLET).await.is_empty(), "reads go on");
    cluster.master.with(|state| state.hangs_commits = false);
    cluster.until("the flush is committed", || !cluster.master.row(TABLET).groups.is_empty()).await;
    let deadline = cluster.env.clock.now() + Duration::from_secs(10);
    while host.try_put(TABLET, "after", &value).await.is_err() {
        assert!(cluster.env.clock.now() < deadline, "still rejects");
    }
}

#[tokio::test]
async fn a_full_log_budget_rejects() {
    let cluster = Cluster::new().await;
    let mut config = cluster.config();
    config.unflushed_log_bytes_max = 50_000;
    let host = cluster.start_with(config).await;
    cluster.open(&host, TABLET).await;
    cluster.master.with(|state| state.hangs_commits = true);
    let value = "v".repeat(5000);
    let mut codes = Vec::new();
    for i in 0..20 {
        codes.extend(host.try_put(TABLET, &format!("row-{i}"), &value).await.err().map(|error| error.code));
    }
    assert!(!codes.is_empty() && codes.iter().all(|code| *code == ErrorCode::Overloaded), "{codes:?}");
}
