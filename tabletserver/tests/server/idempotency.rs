//! A call repeated is a call done once: at once, in flight, across crashes and moves.

use std::time::Duration;

use uruk_proto::tablet::{IdempotencyKey, ReadModifyWriteRequest, ReadModifyWriteRule, read_modify_write_rule};
use uruk_proto::{ErrorCode, RpcError};

use uruk_tabletserver::server::TabletServerConfig;

use crate::cluster::*;

#[tokio::test]
async fn a_repeated_put_does_not_undo_what_came_after_it() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    let first = puts(TABLET, &[("a", "1"), ("b", "1")], call(&cluster, 10));
    assert_eq!(host.mutate(first.clone()).await, Ok(vec![]));
    assert_eq!(host.mutate(puts(TABLET, &[("a", "2")], call(&cluster, 12))).await, Ok(vec![]));
    assert_eq!(host.mutate(first).await, Ok(vec![]), "answered as done");
    assert_eq!(host.values(TABLET).await, pairs(&[("a", "2"), ("b", "1")]));
}

#[tokio::test]
async fn only_the_new_entries_of_a_partly_repeated_batch_are_written() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    assert_eq!(host.mutate(puts(TABLET, &[("b", "old")], call(&cluster, 11))).await, Ok(vec![]));
    let batch = puts(TABLET, &[("a", "new"), ("b", "new"), ("c", "new")], call(&cluster, 10));
    assert_eq!(host.mutate(batch).await, Ok(vec![]));
    assert_eq!(host.values(TABLET).await, pairs(&[("a", "new"), ("b", "old"), ("c", "new")]));
}

#[tokio::test]
async fn a_duplicate_of_a_call_in_flight_waits_for_it() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    let frames = cluster.held(&host);
    let request = increment(TABLET, "row", 5, call(&cluster, 1));
    let (mut one, mut two) = (host.client(), host.client());
    let put = puts(TABLET, &[("a", "1")], call(&cluster, 2));
    let release = async {
        cluster.appended(&host, frames).await;
        // Gives a duplicate that does not wait the time to be written.
        cluster.env.clock.sleep(std::time::Duration::from_millis(20)).await;
        assert_eq!(host.scan(TABLET).await, vec![], "nothing is done before it is durable");
        cluster.logs.release(host.log());
    };
    let (first, second, put_first, put_second, ()) = tokio::join!(
        one.read_modify_write(request.clone()),
        two.read_modify_write(request.clone()),
        host.mutate(put.clone()),
        host.mutate(put.clone()),
        release
    );
    assert_eq!(number(first.expect("done").into_inner().batch), 5);
    assert_eq!(number(second.expect("done").into_inner().batch), 5);
    assert_eq!((put_first, put_second), (Ok(vec![]), Ok(vec![])));
    let cells: Vec<usize> = host.scan(TABLET).await.iter().map(|row| row.cells.len()).collect();
    assert_eq!(cells, [1, 1], "each is written once");
}

#[tokio::test]
async fn results_are_remembered_across_crash_and_recovery() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    let add = increment(TABLET, "row", 5, call(&cluster, 1));
    let create = put_if_absent(TABLET, "lock", "mine", call(&cluster, 2));
    let miss = put_if_absent(TABLET, "lock", "other", call(&cluster, 3));
    let batch = puts(TABLET, &[("a", "1"), ("b", "1")], call(&cluster, 4));
    let results = async |host: &Host| {
        let mut client = host.client();
        let added = client.read_modify_write(add.clone()).await.expect("done").into_inner();
        let created = client.check_and_mutate(create.clone()).await.expect("done").into_inner().matched;
        let missed = client.check_and_mutate(miss.clone()).await.expect("done").into_inner().matched;
        (number(added.batch), created, missed, host.mutate(batch.clone()).await)
    };
    let expected = (5, false, true, Ok(vec![]));
    assert_eq!(results(&host).await, expected);
    host.server.shutdown().await.expect("stops");

    // Once from the log, then, flushed, from the memory file.
    let second = cluster.start().await;
    let order = cluster.recover(&second, TABLET).await;
    second.order_open(vec![order]).await;
    second.until_serving(TABLET).await;
    assert_eq!(results(&second).await, expected, "from the log");
    let own = second.log().0;
    cluster.until("the old log is let go", || cluster.master.row(TABLET).needed_logs == [own]).await;
    second.server.shutdown().await.expect("stops");

    let third = cluster.start().await;
    let order = cluster.recover(&third, TABLET).await;
    third.order_open(vec![order]).await;
    third.until_serving(TABLET).await;
    assert_eq!(results(&third).await, expected, "from the memory file");
    let expected = [("a", 1), ("b", 1), ("lock", 1), ("row", 1)].map(|(row, cells)| (row.to_string(), cells));
    let cells = third.scan(TABLET).await.into_iter();
    let cells: Vec<_> = cells.map(|row| (String::from_utf8_lossy(&row.key).into_owned(), row.cells.len())).collect();
    assert_eq!(cells, expected, "nothing was written twice");
}

#[tokio::test]
async fn old_and_settled_requests_are_refused() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    let mut old = puts(TABLET, &[("a", "1")], call(&cluster, 1));
    let key = old.key.as_mut().expect("has a key");
    key.issued_micros -= 6 * 60 * 1_000_000;
    assert_eq!(host.mutate(old).await.expect_err("old").code, ErrorCode::FailedPrecondition);
    let mut later = puts(TABLET, &[("b", "1")], call(&cluster, 9));
    later.key.as_mut().expect("has a key").first_incomplete = 9;
    assert_eq!(host.mutate(later).await, Ok(vec![]));
    let errors = host.mutate(puts(TABLET, &[("a", "1")], call(&cluster, 3))).await.expect("answers");
    assert_eq!(errors[0].code, ErrorCode::FailedPrecondition as u32);
    assert_eq!(host.values(TABLET).await, pairs(&[("b", "1")]));
}

#[tokio::test]
async fn a_full_memory_forgets_what_is_past_its_time_when_the_next_call_comes() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    // Every other row is bad, so that each good one is a run of its own.
    let rows: Vec<String> = (0..100_000).map(|i| if i % 2 == 0 { format!("row-{i}") } else { String::new() }).collect();
    let batch: Vec<_> = rows.iter().map(|row| (row.as_str(), "1")).collect();
    for round in 0..4 {
        let errors = host.mutate(puts(TABLET, &batch, call(&cluster, round * 200_000))).await.expect("writes");
        assert_eq!(errors.len(), 50_000);
    }
    let error = host.mutate(puts(TABLET, &[("a", "1")], call(&cluster, 2_000_000))).await.expect_err("full");
    assert_eq!(error.code, ErrorCode::Overloaded, "{error}");
    assert!(error.message.contains("calls are remembered"), "{error}");
    let later = Duration::from_secs(601);
    cluster.clock.jump_wall(later);
    let mut key = call(&cluster, 2_000_001);
    key.as_mut().expect("has a key").issued_micros += later.as_micros() as i64;
    assert_eq!(host.mutate(puts(TABLET, &[("a", "1")], key)).await, Ok(vec![]));
}

#[tokio::test]
async fn all_tablets_together_remember_results_within_the_server_s_limit() {
    let cluster = Cluster::new().await;
    let config = TabletServerConfig { remembered_server_bytes_max: 16 << 20, ..cluster.config() };
    let host = cluster.start_with(config).await;
    let other = TABLET + 1;
    cluster.open(&host, TABLET).await;
    cluster.open(&host, other).await;
    let append = async |tablet: u64, key: Option<IdempotencyKey>| {
        let rule = Some(read_modify_write_rule::Rule::Append(vec![b'v'; 9 << 20].into()));
        let rules = vec![ReadModifyWriteRule { family_id: FAMILY.0, qualifier: "q".into(), rule }];
        let request = ReadModifyWriteRequest { tablet: tablet_ref(tablet), key, row: "r".into(), rules };
        host.client().read_modify_write(request).await.map(drop).map_err(RpcError::from)
    };
    append(TABLET, call(&cluster, 1)).await.expect("has room");
    let refused = append(other, call(&cluster, 2)).await.expect_err("no room");
    assert_eq!(refused.code, ErrorCode::Overloaded, "{refused}");
    assert!(refused.message.contains("server's limit") && refused.retry_after_ms > 0, "{refused}");
    // A call of the first tablet says that its result has arrived.
    let mut settling = puts(TABLET, &[("a", "1")], call(&cluster, 3));
    settling.key.as_mut().expect("has a key").first_incomplete = 2;
    assert_eq!(host.mutate(settling).await, Ok(vec![]));
    append(other, call(&cluster, 2)).await.expect("has room again");
}

#[tokio::test]
async fn results_are_remembered_within_a_limit() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    let append = async |qualifier: &'static str, key: Option<IdempotencyKey>| {
        let value = vec![b'v'; 9 << 20].into();
        let rule = Some(read_modify_write_rule::Rule::Append(value));
        let rules = vec![ReadModifyWriteRule { family_id: FAMILY.0, qualifier: qualifier.into(), rule }];
        let request = ReadModifyWriteRequest { tablet: tablet_ref(TABLET), key, row: "r".into(), rules };
        host.client().read_modify_write(request).await.map(drop).map_err(RpcError::from)
    };
    append("a", call(&cluster, 1)).await.expect("has room");
    let refused = append("b", call(&cluster, 2)).await.expect_err("no room");
    assert_eq!(refused.code, ErrorCode::Overloaded, "{refused}");
    assert!(refused.retry_after_ms > 0);
    append("c", None).await.expect("nothing is remembered of it");
    let settled = call(&cluster, 3).map(|key| IdempotencyKey { first_incomplete: 2, ..key });
    append("b", settled).await.expect("has room again");
}
