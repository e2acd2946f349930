//! Files under faults.

use bytes::Bytes;
use futures::StreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use uruk_base::lost_file::is_lost;
use uruk_dfs_sim::client::Durability;

use super::cluster::{Cluster, PATIENCE, eventually};
use super::network::Mode;

fn content(bytes: usize) -> Bytes {
    (0..bytes as u64).map(|i| (i.wrapping_mul(2_654_435_761) >> 7) as u8).collect::<Vec<_>>().into()
}

#[tokio::test]
async fn a_file_of_many_chunks_reads_back_whole_and_in_ranges() {
    let cluster = Cluster::start(3).await;
    let store = cluster.client_with(|c| c.chunk_bytes = 100_000).object_store();
    let (path, data) = (Path::from("many/chunks"), content(1_234_567));
    store.put(&path, data.clone().into()).await.unwrap();
    assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), data);
    for range in [0..1, 99_999..100_001, 150_000..950_000, 1_234_566..1_234_567] {
        let expected = data.slice(range.start as usize..range.end as usize);
        assert_eq!(store.get_range(&path, range.clone()).await.unwrap(), expected, "{range:?}");
    }
    let ranges = [700_000..700_010, 5..15, 199_990..200_020];
    let got = store.get_ranges(&path, &ranges).await.unwrap();
    for (range, bytes) in ranges.iter().zip(got) {
        assert_eq!(bytes, data.slice(range.start as usize..range.end as usize));
    }
}

#[tokio::test]
async fn one_dead_server_of_three_is_tolerated_for_writes_and_reads() {
    let mut cluster = Cluster::start(3).await;
    let store = cluster.client().object_store();
    let (before, after, data) = (Path::from("before"), Path::from("after"), content(300_000));
    store.put(&before, data.clone().into()).await.unwrap();
    cluster.stop_server(0).await;
    store.put(&after, data.clone().into()).await.unwrap();
    for path in [&before, &after] {
        assert_eq!(store.get(path).await.unwrap().bytes().await.unwrap(), data);
    }
}

#[tokio::test]
async fn a_silent_server_delays_but_does_not_fail() {
    let cluster = Cluster::start(3).await;
    let store = cluster.client_with(|c| c.read_attempt_ms = 100).object_store();
    let (path, data) = (Path::from("silent"), content(3_000_000));
    for index in 0..3 {
        cluster.set(index, Mode::Stall);
        store.put(&path, data.clone().into()).await.unwrap();
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), data);
        cluster.set(index, Mode::Pass);
    }
}

#[tokio::test]
async fn a_small_file_does_not_wait_for_its_third_replica_which_comes_all_the_same() {
    let cluster = Cluster::start(3).await;
    let store = cluster.client_without_time().object_store();
    let (path, data) = (Path::from("small"), content(1 << 20));
    cluster.set(2, Mode::Stall);
    let put = store.put(&path, data.clone().into());
    tokio::time::timeout(PATIENCE, put).await.expect("waits for no time").expect("two replicas are enough");
    assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), data);
    cluster.set(2, Mode::Pass);
    eventually("the third has it too", || async {
        let health = cluster.client().health().await.unwrap();
        health.servers.iter().map(|server| server.chunks).sum::<u64>() == 3
    })
    .await;
}

#[tokio::test]
async fn a_read_goes_on_with_another_replica_when_its_server_breaks_in_the_middle() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client();
    let store = client.object_store();
    let (path, data) = (Path::from("middle"), content(30 << 20));
    store.put(&path, data.clone().into()).await.unwrap();
    // Every server breaks once, wherever the stream comes from.
    let mut stream = store.get(&path).await.unwrap().into_stream();
    let mut got = Vec::new();
    let mut broken = 0;
    while let Some(piece) = stream.next().await {
        got.extend_from_slice(&piece.unwrap());
        if broken < 3 && got.len() > (broken + 1) * (6 << 20) {
            cluster.set(broken, Mode::Cut);
            cluster.set(broken, Mode::Pass);
            broken += 1;
        }
    }
    assert_eq!(broken, 3);
    assert!(got == data, "the content differs");
}

#[tokio::test]
async fn known_files_are_read_without_the_controller() {
    let mut cluster = Cluster::start(3).await;
    let store = cluster.client().object_store();
    let (path, data) = (Path::from("known"), content(500_000));
    store.put(&path, data.clone().into()).await.unwrap();
    store.get_range(&path, 0..10).await.unwrap();
    cluster.stop_controller().await;
    assert_eq!(store.get_range(&path, 100_000..116_384).await.unwrap(), data.slice(100_000..116_384));
}

#[tokio::test]
async fn a_replica_that_has_moved_away_is_asked_once() {
    let mut cluster = Cluster::start(5).await;
    let store = cluster.client().object_store();
    let paths: Vec<Path> = (0..6).map(|n| Path::from(format!("moved/{n}"))).collect();
    for path in &paths {
        store.put(path, content(10_000).into()).await.unwrap();
    }
    eventually("the servers have told what they hold", || async {
        let health = cluster.client().health().await.unwrap();
        health.servers.iter().map(|server| server.chunks).sum::<u64>() == 3 * paths.len() as u64
    })
    .await;
    for path in &paths {
        store.get(path).await.unwrap().bytes().await.unwrap();
    }
    // Two servers are replaced by empty ones; the client remembers what they had.
    for index in 0..2 {
        cluster.stop_server(index).await;
    }
    cluster.wait_for_live(3).await;
    eventually("all is copied to the others", || async {
        let health = cluster.client().health().await.unwrap();
        health.copies_known && health.under_replicated == 0 && health.copies_in_flight == 0
    })
    .await;
    for index in 0..2 {
        cluster.lose_chunks(index);
        cluster.start_server(index).await;
    }
    cluster.wait_for_live(5).await;
    eventually("the new ones have told that they hold nothing", || async {
        let health = cluster.client().health().await.unwrap();
        let new = |address: &String| cluster.servers[..2].iter().any(|server| server.address == *address);
        health.servers.iter().filter(|server| new(&server.address)).all(|server| server.chunks == 0)
    })
    .await;
    let before = cluster.read_failovers();
    let read_all = || async {
        for path in &paths {
            store.get(path).await.unwrap().bytes().await.unwrap();
        }
    };
    for _ in 0..20 {
        read_all().await;
    }
    let failovers = cluster.read_failovers() - before;
    assert!(failovers > 0, "no read went to a replica that was not there");
    assert!(failovers <= 2 * paths.len() as u64, "{failovers} reads of replicas that are not there");
}

#[tokio::test]
async fn of_many_racing_creators_exactly_one_wins() {
    let cluster = Cluster::start(3).await;
    let path = Path::from("race");
    let puts = (0..8u8).map(|i| {
        let (store, path) = (cluster.client().object_store(), path.clone());
        async move {
            let options = PutOptions::from(PutMode::Create);
            (i, store.put_opts(&path, Bytes::from(vec![i; 1_000]).into(), options).await)
        }
    });
    let results = futures::future::join_all(puts).await;
    let winners: Vec<u8> = results.iter().filter(|(_, r)| r.is_ok()).map(|(i, _)| *i).collect();
    assert_eq!(winners.len(), 1, "{results:?}");
    for (_, result) in results.iter().filter(|(_, r)| r.is_err()) {
        assert!(matches!(result, Err(Error::AlreadyExists { .. })), "{result:?}");
    }
    let stored = cluster.client().object_store().get(&path).await.unwrap().bytes().await.unwrap();
    assert_eq!(stored, vec![winners[0]; 1_000]);
}

#[tokio::test]
async fn temporary_files_may_be_written_with_fewer_guarantees() {
    let cluster = Cluster::start(3).await;
    let store = cluster.client().object_store().with_durability(Durability::Replicated).with_replicas(2);
    let (path, data) = (Path::from("temporary"), content(100_000));
    store.put(&path, data.clone().into()).await.unwrap();
    assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), data);
}

#[tokio::test]
async fn a_file_deleted_by_another_client_is_not_found_in_the_end() {
    let cluster = Cluster::start(3).await;
    let (ours, theirs) = (cluster.client().object_store(), cluster.client().object_store());
    let path = Path::from("deleted");
    ours.put(&path, content(1_000).into()).await.unwrap();
    ours.get(&path).await.unwrap().bytes().await.unwrap();
    theirs.delete(&path).await.unwrap();
    assert!(matches!(ours.head(&path).await, Err(Error::NotFound { .. })));
    // The look above also made the cache forget it.
    assert!(matches!(ours.get(&path).await, Err(Error::NotFound { .. })));
}

#[tokio::test]
async fn a_read_of_a_lost_file_fails_at_once_when_all_servers_are_heard_of() {
    let mut cluster = Cluster::start(3).await;
    // A client that would wait for as long as the test may run.
    let store = cluster.client_with(|c| c.read_deadline_ms = 600_000).object_store();
    let path = Path::from("lost");
    store.put(&path, content(1_000).into()).await.unwrap();
    cluster.stop_controller().await;
    for index in 0..3 {
        cluster.stop_server(index).await;
        cluster.lose_chunks(index);
    }
    cluster.start_controller().await;
    for index in 0..3 {
        cluster.start_server(index).await;
    }
    let read = async { store.get(&path).await.unwrap().bytes().await };
    let error = tokio::time::timeout(super::cluster::PATIENCE, read).await.expect("at once").expect_err("lost");
    assert!(is_lost(&error) && error.to_string().contains("no live server holds it"), "{error}");
}

#[tokio::test]
async fn files_outlive_a_restart_of_everything() {
    let mut cluster = Cluster::start(3).await;
    let (path, data) = (Path::from("restart"), content(200_000));
    cluster.client().object_store().put(&path, data.clone().into()).await.unwrap();
    cluster.stop_controller().await;
    for index in 0..3 {
        cluster.stop_server(index).await;
    }
    cluster.start_controller().await;
    for index in 0..3 {
        cluster.start_server(index).await;
    }
    cluster.wait_for_live(3).await;
    let store = cluster.client().object_store();
    eventually("the file is read again", || async {
        match store.get(&path).await {
            Ok(got) => got.bytes().await.is_ok_and(|bytes| bytes == data),
            Err(_) => false,
        }
    })
    .await;
}
