//! Commit logs: the writer, and reading what it wrote.

use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use uruk_base::commit_log::{CommitLogStore, LogError, LogId, Lsn};
use uruk_dfs_sim::client::Durability;

use super::cluster::{Cluster, append, eventually, number, numbers, payload, read_all};
use super::network::Mode;

const LOG: LogId = LogId(7);

#[tokio::test]
async fn what_was_flushed_is_read_back_after_close() {
    let cluster = Cluster::start(3).await;
    for durability in [Durability::Fsync, Durability::Replicated] {
        let id = LogId(1 + durability as u64);
        let logs = cluster.client_with(|c| c.durability = durability).commit_logs();
        let writer = logs.create(id).await.unwrap();
        let ends = append(&*writer, 0..100, 1_000).await;
        assert_eq!(writer.flush().await.unwrap(), ends[99]);
        let sealed = writer.close().await.unwrap();
        assert_eq!(sealed.end, ends[99]);
        assert_eq!(sealed.segments, [Lsn(0)..ends[99]]);
        assert_eq!(numbers(&logs, &sealed).await, (0..100).collect::<Vec<_>>());
        assert!(matches!(writer.append(payload(1, 8)).await, Err(LogError::Fenced(_))));
    }
}

#[tokio::test]
async fn records_of_every_size_survive_messages_and_segments() {
    let cluster = Cluster::start(3).await;
    let logs = cluster.client_with(|c| c.log_segment_bytes = 3 << 20).commit_logs();
    let writer = logs.create(LOG).await.unwrap();
    let sizes = [8, 100, 70_000, 1 << 20, 5 << 20, 12, (1 << 20) - 12, 9, 2_500_000, 65_536, 8, 3_000_000, 11];
    let mut ends = Vec::new();
    for (n, bytes) in sizes.iter().enumerate() {
        ends.push(writer.append(payload(n as u64, *bytes)).await.unwrap());
    }
    let sealed = writer.close().await.unwrap();
    assert!(sealed.segments.len() > 2, "{:?}", sealed.segments);
    assert_eq!(numbers(&logs, &sealed).await, (0..sizes.len() as u64).collect::<Vec<_>>());
    let records = read_all(&logs, &sealed).await;
    assert_eq!(records.iter().map(|r| r.payload.len()).collect::<Vec<_>>(), sizes);
    // From any record's end to any other.
    let part: Vec<_> = logs.read(&sealed, ends[2]..ends[9]).try_collect().await.unwrap();
    assert_eq!(part.iter().map(number).collect::<Vec<_>>(), (3..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_full_segment_ends_and_positions_go_on() {
    let cluster = Cluster::start(3).await;
    let logs = cluster.client_with(|c| c.log_segment_bytes = 10_000).commit_logs();
    let writer = logs.create(LOG).await.unwrap();
    let ends = append(&*writer, 0..200, 500).await;
    assert!(ends.windows(2).all(|w| w[1].0 == w[0].0 + 512));
    let sealed = writer.close().await.unwrap();
    // A segment takes no further frame once it holds 10,000 bytes: 20 frames of 512.
    assert_eq!(sealed.segments.len(), 10, "{:?}", sealed.segments);
    assert_eq!(numbers(&logs, &sealed).await, (0..200).collect::<Vec<_>>());
}

#[tokio::test]
async fn one_log_has_one_writer_for_life() {
    let cluster = Cluster::start(3).await;
    let logs = cluster.logs();
    let writer = logs.create(LOG).await.unwrap();
    assert!(matches!(logs.create(LOG).await, Err(LogError::Fenced(LOG))));
    writer.close().await.unwrap();
    assert!(matches!(logs.create(LOG).await, Err(LogError::Fenced(LOG))));
    let never = logs.seal(LogId(8)).await.unwrap();
    assert_eq!((never.segments.len(), never.end), (0, Lsn(0)));
    assert!(matches!(logs.create(LogId(8)).await, Err(LogError::Fenced(_))));
}

#[tokio::test]
async fn a_dead_replica_is_left_behind() {
    let mut cluster = Cluster::start(4).await;
    let logs = cluster.logs();
    let writer = logs.create(LOG).await.unwrap();
    for index in 0..2 {
        let first = index as u64 * 50;
        append(&*writer, first..first + 25, 2_000).await;
        cluster.stop_server(index).await;
        append(&*writer, first + 25..first + 50, 2_000).await;
        writer.flush().await.unwrap();
    }
    let sealed = writer.close().await.unwrap();
    assert!(sealed.segments.len() > 1, "the writer never rolled");
    assert_eq!(numbers(&logs, &sealed).await, (0..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_slow_replica_delays_no_acknowledgement_and_is_left_behind() {
    let cluster = Cluster::start(4).await;
    let logs = cluster.logs();
    let writer = logs.create(LOG).await.unwrap();
    append(&*writer, 0..1, 100).await;
    writer.flush().await.unwrap();
    let mut rolled = 0;
    for slow in 0..4 {
        cluster.set(slow, Mode::Stall);
        let start = Instant::now();
        let mut next = 1 + rolled;
        // Until well past the time after which a replica counts as slow.
        while start.elapsed() < Duration::from_millis(500) {
            let appended = Instant::now();
            append(&*writer, next..next + 1, 100).await;
            writer.flush().await.unwrap();
            assert!(appended.elapsed() < Duration::from_millis(290), "took {:?}", appended.elapsed());
            next += 1;
        }
        rolled = next - 1;
        cluster.set(slow, Mode::Pass);
    }
    let sealed = writer.close().await.unwrap();
    assert!((2..6).contains(&sealed.segments.len()), "{} segments", sealed.segments.len());
    assert_eq!(numbers(&logs, &sealed).await, (0..=rolled).collect::<Vec<_>>());
}

#[tokio::test]
async fn with_too_few_servers_the_writer_waits_and_goes_on() {
    let mut cluster = Cluster::start(3).await;
    let logs = cluster.logs();
    let writer = logs.create(LOG).await.unwrap();
    append(&*writer, 0..10, 100).await;
    writer.flush().await.unwrap();
    cluster.stop_server(0).await;
    cluster.stop_server(1).await;
    append(&*writer, 10..12, 100).await;
    let flushed = tokio::time::timeout(Duration::from_millis(700), writer.flush()).await;
    assert!(flushed.is_err(), "one replica is not enough: {flushed:?}");
    cluster.start_server(1).await;
    writer.flush().await.unwrap();
    let sealed = writer.close().await.unwrap();
    assert_eq!(numbers(&logs, &sealed).await, (0..12).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_writer_without_progress_gives_up_and_says_that_it_does_not_know() {
    let mut cluster = Cluster::start(3).await;
    let logs = cluster.client_with(|c| c.log_write_deadline_ms = 500).commit_logs();
    let writer = logs.create(LOG).await.unwrap();
    append(&*writer, 0..1, 100).await;
    writer.flush().await.unwrap();
    for index in 0..3 {
        cluster.stop_server(index).await;
    }
    append(&*writer, 1..2, 100).await;
    let error = writer.flush().await.unwrap_err();
    assert!(matches!(error, LogError::Indeterminate(..)), "{error}");
    assert_eq!(writer.append(payload(2, 8)).await.unwrap_err(), error);
}

#[tokio::test]
async fn a_restarted_controller_does_not_disturb_the_writer() {
    let mut cluster = Cluster::start(3).await;
    let logs = cluster.client_with(|c| c.log_segment_bytes = 20_000).commit_logs();
    let writer = logs.create(LOG).await.unwrap();
    append(&*writer, 0..10, 1_000).await;
    cluster.stop_controller().await;
    let blocked = async {
        append(&*writer, 10..60, 1_000).await;
        writer.flush().await.unwrap();
    };
    let restart = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        cluster.start_controller().await;
    };
    tokio::join!(blocked, restart);
    let sealed = writer.close().await.unwrap();
    assert_eq!(numbers(&logs, &sealed).await, (0..60).collect::<Vec<_>>());
}

#[tokio::test]
async fn trimmed_records_are_gone_and_the_rest_stays() {
    let cluster = Cluster::start(3).await;
    let logs = cluster.client_with(|c| c.log_segment_bytes = 5_000).commit_logs();
    let writer = logs.create(LOG).await.unwrap();
    let ends = append(&*writer, 0..50, 500).await;
    writer.flush().await.unwrap();
    logs.trim(LOG, ends[24]).await.unwrap();
    let sealed = writer.close().await.unwrap();
    let first = sealed.segments[0].start;
    assert!(first > Lsn(0) && first <= ends[24], "{first}");
    let left = numbers(&logs, &sealed).await;
    assert_eq!(left.last(), Some(&49));
    assert!(left[0] > 0 && left[0] <= 25, "{left:?}");
    assert!(matches!(logs.trim(LOG, ends[49]).await, Err(LogError::Fenced(_))), "no trims once closed");
    let mut before = logs.read(&sealed, Lsn(0)..ends[49]);
    assert!(matches!(before.next().await, Some(Err(LogError::Trimmed(..)))));

    logs.delete(LOG).await.unwrap();
    logs.delete(LOG).await.unwrap();
    let gone: Result<Vec<_>, _> = logs.read(&sealed, first..sealed.end).try_collect().await;
    assert!(matches!(gone, Err(LogError::Trimmed(..))), "{gone:?}");
    assert!(matches!(logs.create(LOG).await, Err(LogError::Fenced(_))), "the fence outlives the data");
    let end = logs.seal(LOG).await;
    assert!(matches!(end, Err(LogError::Trimmed(..))), "nobody knows any more where it ended: {end:?}");
}

#[tokio::test]
async fn acknowledged_records_outlive_a_restart_of_everything() {
    let mut cluster = Cluster::start(3).await;
    let writer = cluster.logs().create(LOG).await.unwrap();
    append(&*writer, 0..100, 300).await;
    writer.flush().await.unwrap();
    drop(writer);
    cluster.stop_controller().await;
    for index in 0..3 {
        cluster.stop_server(index).await;
    }
    cluster.start_controller().await;
    for index in 0..3 {
        cluster.start_server(index).await;
    }
    let logs = cluster.logs();
    let sealed = logs.seal(LOG).await.unwrap();
    assert_eq!(numbers(&logs, &sealed).await, (0..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn reading_goes_on_with_another_replica_when_servers_break() {
    let cluster = Cluster::start(3).await;
    let logs = cluster.client_with(|c| c.read_attempt_ms = 200).commit_logs();
    let writer = logs.create(LOG).await.unwrap();
    append(&*writer, 0..40, 500_000).await;
    let sealed = writer.close().await.unwrap();
    let mut records = logs.read(&sealed, Lsn(0)..sealed.end);
    let mut seen = 0;
    while let Some(record) = records.next().await {
        assert_eq!(number(&record.unwrap()), seen);
        seen += 1;
        if seen % 10 == 0 && seen <= 30 {
            let index = (seen / 10 - 1) as usize;
            cluster.set(index, if index == 1 { Mode::Stall } else { Mode::Cut });
            if index != 1 {
                cluster.set(index, Mode::Pass);
            }
        }
    }
    assert_eq!(seen, 40);
}

#[tokio::test]
async fn dropping_the_writer_ends_its_waiters() {
    let cluster = Cluster::start(3).await;
    let writer = cluster.logs().create(LOG).await.unwrap();
    let durable = writer.durable();
    drop(writer);
    eventually("waiters see the end", || async { durable.borrow().is_err() }).await;
}
