//! Sealing: with a living writer, by several at once, with replicas missing.

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use uruk_base::commit_log::{CommitLogStore, LogError, LogId, LogWriter, Lsn, SealedLog};

use super::cluster::{Cluster, append, eventually, numbers, payload};
use super::network::Mode;

const LOG: LogId = LogId(7);

/// Appends and flushes until an error comes; how far it was acknowledged, and the error.
async fn write_until_fenced(writer: Arc<dyn LogWriter>) -> (u64, LogError) {
    let mut acknowledged = 0;
    let mut durable = writer.durable();
    for n in 0.. {
        let appended = tokio::select! {
            biased;
            _ = durable.wait_for(Result::is_err) => Err(writer.durable().borrow().clone().unwrap_err()),
            appended = writer.append(payload(n, 200)) => appended,
        };
        if let Err(error) = appended {
            return (acknowledged, error);
        }
        if n % 3 == 2 {
            match writer.flush().await {
                Ok(lsn) => acknowledged = lsn.0,
                Err(error) => return (acknowledged, error),
            }
        }
    }
    unreachable!("the writer is fenced in the end")
}

#[tokio::test]
async fn sealing_fences_a_writer_that_lives() {
    let cluster = Cluster::start(3).await;
    let logs = cluster.logs();
    let writer = logs.create(LOG).await.unwrap();
    let ends = append(&*writer, 0..10, 100).await;
    writer.flush().await.unwrap();
    let sealed = cluster.logs().seal(LOG).await.unwrap();
    assert_eq!(sealed.end, ends[9]);
    // Whatever it accepts now, it never acknowledges.
    let late = writer.append(payload(10, 100)).await;
    if late.is_ok() {
        assert_eq!(writer.flush().await.unwrap_err(), LogError::Fenced(LOG));
    }
    assert_eq!(writer.append(payload(11, 100)).await.unwrap_err(), LogError::Fenced(LOG));
    assert_eq!(writer.flush().await.unwrap_err(), LogError::Fenced(LOG));
    let durable = writer.durable();
    assert_eq!(*durable.borrow(), Err(LogError::Fenced(LOG)));
    assert_eq!(cluster.logs().seal(LOG).await.unwrap(), sealed);
    assert_eq!(numbers(&logs, &sealed).await, (0..10).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_sealers_and_a_writer_agree_on_one_end_and_nothing_acknowledged_is_lost() {
    let cluster = Cluster::start(3).await;
    for round in 0..8u64 {
        let id = LogId(100 + round);
        // Some rounds roll all the time.
        let segment = if round % 2 == 0 { 1_000 } else { 1 << 20 };
        let writing = cluster.client_with(|c| c.log_segment_bytes = segment).commit_logs();
        let writer: Arc<dyn LogWriter> = writing.create(id).await.unwrap().into();
        let write = tokio::spawn(write_until_fenced(writer));
        let sealers: Vec<_> = (0..3u64)
            .map(|i| {
                let logs = cluster.logs();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(round * 7 + i * (round % 3))).await;
                    logs.seal(id).await.unwrap()
                })
            })
            .collect();
        let mut ends: Vec<SealedLog> = Vec::new();
        for sealer in sealers {
            ends.push(sealer.await.unwrap());
        }
        let (acknowledged, error) = write.await.unwrap();
        assert_eq!(error, LogError::Fenced(id));
        assert!(ends.iter().all(|end| *end == ends[0]), "{ends:?}");
        assert!(acknowledged <= ends[0].end.0, "{acknowledged} acknowledged, sealed at {}", ends[0].end);
        let found = numbers(&cluster.logs(), &ends[0]).await;
        assert_eq!(found, (0..found.len() as u64).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn sealing_works_with_one_member_down() {
    let mut cluster = Cluster::start(3).await;
    for index in 0..3 {
        let id = LogId(1 + index as u64);
        let logs = cluster.logs();
        let writer = logs.create(id).await.unwrap();
        append(&*writer, 0..20, 1_000).await;
        writer.flush().await.unwrap();
        drop(writer);
        cluster.stop_server(index).await;
        let sealed = logs.seal(id).await.unwrap();
        assert_eq!(numbers(&logs, &sealed).await, (0..20).collect::<Vec<_>>());
        cluster.start_server(index).await;
        cluster.wait_for_live(3).await;
    }
}

#[tokio::test]
async fn with_two_members_down_sealing_waits_and_succeeds_once_one_is_back() {
    let mut cluster = Cluster::start(3).await;
    let logs = cluster.client_with(|c| c.seal_deadline_ms = 400).commit_logs();
    let writer = logs.create(LOG).await.unwrap();
    let ends = append(&*writer, 0..20, 1_000).await;
    writer.flush().await.unwrap();
    drop(writer);
    cluster.stop_server(0).await;
    cluster.stop_server(1).await;
    let error = logs.seal(LOG).await.unwrap_err();
    assert!(matches!(error, LogError::Unavailable(..)), "{error}");
    let patient = cluster.logs();
    let (sealed, ()) = tokio::join!(patient.seal(LOG), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        cluster.start_server(1).await;
    });
    let sealed = sealed.unwrap();
    assert_eq!(sealed.end, ends[19]);
    assert_eq!(numbers(&patient, &sealed).await, (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn members_that_never_heard_of_the_segment_still_answer() {
    let cluster = Cluster::start(3).await;
    let logs = cluster.logs();
    for index in 0..3 {
        cluster.set(index, Mode::Stall);
    }
    let writer = logs.create(LOG).await.unwrap();
    drop(writer);
    for index in 0..3 {
        cluster.set(index, Mode::Pass);
    }
    let sealed = logs.seal(LOG).await.unwrap();
    assert_eq!((sealed.segments.len(), sealed.end), (0, Lsn(0)));
}

#[tokio::test]
async fn a_seal_copies_what_too_few_replicas_hold() {
    let mut cluster = Cluster::start(3).await;
    let logs = cluster.logs();
    let writer = cluster
        .client_with(|c| {
            c.log_slow_replica_ms = 60_000;
            c.log_stalled_replica_ms = 60_000;
        })
        .commit_logs()
        .create(LOG)
        .await
        .unwrap();
    append(&*writer, 0..5, 1_000).await;
    writer.flush().await.unwrap();
    // One replica falls behind what the other two acknowledge.
    cluster.set(2, Mode::Stall);
    append(&*writer, 5..10, 1_000).await;
    writer.flush().await.unwrap();
    drop(writer);
    cluster.set(2, Mode::Cut);
    cluster.set(2, Mode::Pass);
    // Of the two that are complete one dies: the seal must find the other's bytes and copy them.
    cluster.stop_server(0).await;
    let sealed = logs.seal(LOG).await.unwrap();
    assert_eq!(numbers(&logs, &sealed).await, (0..10).collect::<Vec<_>>());
    cluster.stop_server(1).await;
    assert_eq!(numbers(&logs, &sealed).await, (0..10).collect::<Vec<_>>(), "from the copy alone");
}

#[tokio::test]
async fn a_seal_asks_new_servers_when_the_short_members_disk_is_full() {
    let mut cluster = Cluster::start(3).await;
    let logs = cluster.client_with(|c| c.seal_deadline_ms = 10_000).commit_logs();
    let writer = cluster
        .client_with(|c| {
            c.log_slow_replica_ms = 60_000;
            c.log_stalled_replica_ms = 60_000;
        })
        .commit_logs()
        .create(LOG)
        .await
        .unwrap();
    append(&*writer, 0..5, 1_000).await;
    writer.flush().await.unwrap();
    cluster.set(2, Mode::Stall);
    append(&*writer, 5..10, 1_000).await;
    writer.flush().await.unwrap();
    drop(writer);
    cluster.set(2, Mode::Cut);
    cluster.set(2, Mode::Pass);
    // One member holds all, the short one takes nothing: the copy has to go to a server that is none.
    cluster.stop_server(0).await;
    cluster.restart_server_full(2).await;
    cluster.add_server().await;
    let client = cluster.client();
    eventually("the controllers know of the new server and of the full disk", || async {
        let servers = client.health().await.unwrap().servers;
        servers.iter().any(|s| s.live && s.address == cluster.servers[3].address)
            && servers.iter().any(|s| s.live && !s.refusing_writes.is_empty())
    })
    .await;
    let sealed = logs.seal(LOG).await.unwrap();
    assert_eq!(numbers(&logs, &sealed).await, (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_killed_server_under_load_loses_nothing() {
    let mut cluster = Cluster::start(4).await;
    let logs = cluster.client_with(|c| c.log_segment_bytes = 200_000).commit_logs();
    let writer: Arc<dyn LogWriter> = logs.create(LOG).await.unwrap().into();
    let load = {
        let writer = writer.clone();
        tokio::spawn(async move {
            for n in 0..2_000u64 {
                writer.append(payload(n, 1_000)).await.unwrap();
            }
            writer.flush().await.unwrap()
        })
    };
    for index in 0..3 {
        tokio::time::sleep(Duration::from_millis(30)).await;
        cluster.restart_server(index).await;
    }
    let end = load.await.unwrap();
    let sealed = writer.close().await.unwrap();
    assert_eq!(sealed.end, end);
    assert_eq!(numbers(&logs, &sealed).await, (0..2_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn sealed_segments_become_whole_on_all_servers() {
    let mut cluster = Cluster::start(3).await;
    let logs = cluster.logs();
    let writer = logs.create(LOG).await.unwrap();
    append(&*writer, 0..20, 1_000).await;
    writer.flush().await.unwrap();
    cluster.stop_server(2).await;
    append(&*writer, 20..40, 1_000).await;
    let sealed = writer.close().await.unwrap();
    cluster.start_server(2).await;
    cluster.wait_for_live(3).await;
    let (client, address) = (cluster.client(), cluster.servers[2].address.clone());
    eventually("repair made all copies", || async {
        let health = client.health().await.unwrap();
        let last = health.servers.iter().find(|s| s.address == address).unwrap();
        health.under_replicated == 0 && last.segments >= sealed.segments.len() as u64
    })
    .await;
    cluster.stop_server(0).await;
    cluster.stop_server(1).await;
    eventually("the last one alone has it all", || async {
        let records: Result<Vec<_>, _> = logs.read(&sealed, Lsn(0)..sealed.end).try_collect().await;
        records.is_ok_and(|records| records.len() == 40)
    })
    .await;
    assert_eq!(numbers(&logs, &sealed).await, (0..40).collect::<Vec<_>>());
}

#[tokio::test]
async fn damage_below_the_acknowledged_end_is_never_sealed_over() {
    // With two members both have acknowledged all that was flushed.
    let mut cluster = Cluster::start(2).await;
    let writer = cluster.logs().create(LOG).await.unwrap();
    append(&*writer, 0..20, 1_000).await;
    writer.flush().await.unwrap();
    drop(writer);
    for index in 0..2 {
        cluster.stop_server(index).await;
        cluster.damage_logs(index);
        cluster.start_server(index).await;
    }
    let error = cluster.client_with(|c| c.seal_deadline_ms = 500).commit_logs().seal(LOG).await.unwrap_err();
    assert!(matches!(error, LogError::Unavailable(..) | LogError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn one_damaged_member_of_three_does_not_matter() {
    let mut cluster = Cluster::start(3).await;
    let writer = cluster.logs().create(LOG).await.unwrap();
    append(&*writer, 0..20, 1_000).await;
    writer.flush().await.unwrap();
    drop(writer);
    cluster.stop_server(1).await;
    cluster.damage_logs(1);
    cluster.start_server(1).await;
    let logs = cluster.logs();
    let sealed = logs.seal(LOG).await.unwrap();
    assert_eq!(numbers(&logs, &sealed).await, (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn of_two_members_one_answers_and_a_new_server_gets_the_copy() {
    let mut cluster = Cluster::start(2).await;
    let writer = cluster.logs().create(LOG).await.unwrap();
    append(&*writer, 0..20, 1_000).await;
    writer.flush().await.unwrap();
    drop(writer);
    cluster.stop_server(0).await;
    cluster.add_server().await;
    let logs = cluster.logs();
    let sealed = logs.seal(LOG).await.unwrap();
    cluster.stop_server(1).await;
    eventually("the copy alone has it all", || async {
        let records: Result<Vec<_>, _> = logs.read(&sealed, Lsn(0)..sealed.end).try_collect().await;
        records.is_ok_and(|records| records.len() == 20)
    })
    .await;
}
