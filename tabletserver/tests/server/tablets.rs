//! A tablet's life on a server: opened, flushed, closed, discarded.

use std::sync::atomic::Ordering;

use futures::{FutureExt, StreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use uruk_proto::ErrorCode;
use uruk_proto::master::TabletKey;
use uruk_tabletserver::server::{Ended, TabletServerConfig};

use crate::cluster::*;
use crate::master::{Fault, State};

fn small(cluster: &Cluster) -> TabletServerConfig {
    TabletServerConfig { memtable_bytes_soft: 20_000, ..cluster.config() }
}

async fn write_until_flushed(cluster: &Cluster, host: &Host, commits: usize) -> usize {
    let value = "v".repeat(3000);
    let mut rows = 0;
    while cluster.master.with(|state| state.commits.len()) < commits {
        host.put(TABLET, &format!("row-{rows:04}"), &value).await;
        rows += 1;
        assert!(rows < 5000, "no flush");
    }
    rows
}

#[tokio::test]
async fn a_tablet_is_served_only_once_the_master_says_so() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.master.with(|state| state.hangs_opened = true);
    let order = cluster.assign(&host, TABLET, vec![]);
    host.order_open(vec![order]).await;
    cluster.until("it is reported", || !cluster.master.with(|state| state.opened_calls.is_empty())).await;
    assert_eq!(host.try_scan(TABLET).await.expect_err("not ours yet").code, ErrorCode::Unavailable);
    assert_eq!(host.try_put(TABLET, "a", "1").await.expect_err("not ours yet").code, ErrorCode::Unavailable);
    assert_eq!(cluster.logs.frames(host.log()), 0);
    cluster.master.with(|state| state.hangs_opened = false);
    host.until_serving(TABLET).await;
    host.put(TABLET, "a", "1").await;
}

#[tokio::test]
async fn a_clean_tablet_opens_without_reading_its_files_and_a_row_takes_little_of_them() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    let mut random = 1_u64;
    let mut letter = |_| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b' ' + (random >> 58) as u8)
    };
    for row in 0..300 {
        // It hardly compresses.
        let value: String = (0..4000).map(&mut letter).collect();
        host.put(TABLET, &format!("row-{row:04}"), &value).await;
    }
    host.order_close(TabletKey { tablet_id: TABLET, epoch: 1 }, false).await;
    cluster.until("it is released", || !cluster.master.with(|state| state.released.is_empty())).await;
    let file_bytes: u64 = cluster.master.with(|state| {
        let files = state.rows[&TABLET].groups.iter().flat_map(|group| &group.files);
        files.map(|file| file.bytes).sum()
    });
    assert!(file_bytes > 500_000, "{file_bytes}");

    let next = cluster.start().await;
    cluster.master.with(|state| state.rows.get_mut(&TABLET).expect("row").needed_logs.clear());
    cluster.bytes_read.store(0, Ordering::Relaxed);
    let order = cluster.assign(&next, TABLET, vec![]);
    next.order_open(vec![order]).await;
    // Unlike a scan, which tells too that it serves, this reads no more of the files than it must.
    let deadline = cluster.env.clock.now() + std::time::Duration::from_secs(10);
    let rows = loop {
        match next.try_row(TABLET, "row-0123").await {
            Ok(rows) => break rows,
            Err(error) => assert!(cluster.env.clock.now() < deadline, "not served: {error}"),
        }
        cluster.env.clock.sleep(std::time::Duration::from_millis(2)).await;
    };
    assert_eq!(rows.len(), 1);
    let read = cluster.bytes_read.load(Ordering::Relaxed);
    assert!(read > 0 && read < file_bytes / 10, "{read} of {file_bytes} bytes");
}

#[tokio::test]
async fn a_tablet_that_is_not_owned_is_dropped() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.master.with(|state| state.owns_nothing = true);
    let order = cluster.assign(&host, TABLET, vec![]);
    host.order_open(vec![order]).await;
    cluster.until("it is reported", || !cluster.master.with(|state| state.opened_calls.is_empty())).await;
    let deadline = cluster.env.clock.now() + std::time::Duration::from_secs(10);
    loop {
        let error = host.try_scan(TABLET).await.expect_err("never served");
        if error.code == ErrorCode::StaleLocation {
            break;
        }
        assert_eq!(error.code, ErrorCode::Unavailable);
        assert!(cluster.env.clock.now() < deadline, "not dropped");
    }
}

#[tokio::test]
async fn many_tablets_are_reported_in_few_calls() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    let orders: Vec<_> = (0..30).map(|i| cluster.assign(&host, 200 + i, vec![])).collect();
    host.order_open(orders).await;
    for i in 0..30 {
        host.until_serving(200 + i).await;
    }
    let calls = cluster.master.with(|state| state.opened_calls.clone());
    assert_eq!(calls.iter().map(Vec::len).sum::<usize>(), 30);
    assert!(calls.len() < 30, "{} calls", calls.len());
}

#[tokio::test]
async fn a_flush_is_committed_and_then_releases_the_log() {
    let cluster = Cluster::new().await;
    let host = cluster.start_with(small(&cluster)).await;
    cluster.open(&host, TABLET).await;
    let rows = write_until_flushed(&cluster, &host, 3).await;
    let row = cluster.master.row(TABLET);
    assert!(row.flushed_seq > 0 && !row.memory_file.is_empty());
    assert_eq!(row.needed_logs, [host.log().0], "the own log stays needed");
    let trim_lsn = || cluster.master.with(|state| state.loads[&host.log().0].log_trim_lsn);
    cluster.until("the trim point is reported", || trim_lsn() > 0).await;
    assert!(trim_lsn() <= cluster.logs.end(host.log()).0);
    assert_eq!(host.scan(TABLET).await.len(), rows);
    let named: Vec<_> = row.groups.iter().flat_map(|group| &group.files).map(|file| file.path.clone()).collect();
    assert!(named.iter().all(|path| path.starts_with("tables/1/100/1-") && path.ends_with(".sst")), "{named:?}");
    // What was flushed is there without any log.
    host.server.shutdown().await.expect("stops");
    let next = cluster.start().await;
    let order = cluster.recover(&next, TABLET).await;
    next.order_open(vec![order]).await;
    next.until_serving(TABLET).await;
    assert_eq!(next.scan(TABLET).await.len(), rows);
}

#[tokio::test]
async fn the_log_is_not_let_go_before_the_commit() {
    let cluster = Cluster::new().await;
    let host = cluster.start_with(small(&cluster)).await;
    cluster.open(&host, TABLET).await;
    cluster.master.with(|state| state.hangs_commits = true);
    for i in 0..20 {
        host.put(TABLET, &format!("row-{i}"), &"v".repeat(3000)).await;
    }
    let files = || cluster.objects.list(None).count().now_or_never().expect("in memory");
    cluster.until("the files are written", || files() >= 2).await;
    cluster.let_time_pass().await;
    assert_eq!(cluster.master.with(|state| state.loads[&1].log_trim_lsn), 0);
    assert_eq!(cluster.logs.trimmed(host.log()).0, 0);
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_done_once() {
    for fault in [Fault::LostBefore, Fault::LostAfter] {
        let cluster = Cluster::new().await;
        let host = cluster.start_with(small(&cluster)).await;
        cluster.open(&host, TABLET).await;
        cluster.master.with(|state| state.commit_faults.push_back(fault));
        let rows = write_until_flushed(&cluster, &host, 2).await;
        let commands: Vec<u64> = cluster.master.with(|state| state.commits.iter().map(|c| c.command).collect());
        assert_eq!(commands[..2], [1, 2], "{fault:?}");
        assert_eq!(host.scan(TABLET).await.len(), rows, "{fault:?}");
    }
}

#[tokio::test]
async fn a_tablet_that_nobody_writes_any_more_is_flushed() {
    let cluster = Cluster::new().await;
    let host = cluster.start_with(TabletServerConfig { memtable_idle_ms: 100, ..cluster.config() }).await;
    cluster.open(&host, TABLET).await;
    host.put(TABLET, "a", "1").await;
    cluster.until("it is flushed", || cluster.master.with(|state| state.commits.len() == 1)).await;
    assert_eq!(host.scan(TABLET).await.len(), 1);
}

#[tokio::test]
async fn a_refused_flush_is_renounced_and_tried_again() {
    let cluster = Cluster::new().await;
    let host = cluster.start_with(small(&cluster)).await;
    cluster.open(&host, TABLET).await;
    cluster.master.with(|state| state.commit_faults.push_back(Fault::Refused));
    let rows = write_until_flushed(&cluster, &host, 2).await;
    let refused = cluster.master.with(|state| state.commits[0].clone());
    let path = object_store::path::Path::from(refused.add[0].files[0].path.as_str());
    assert!(matches!(cluster.objects.head(&path).await, Err(object_store::Error::NotFound { .. })), "deleted");
    assert_eq!(host.scan(TABLET).await.len(), rows);
}

#[tokio::test]
async fn a_refused_flush_keeps_the_files_that_the_row_names() {
    let cluster = Cluster::new().await;
    let host = cluster.start_with(small(&cluster)).await;
    cluster.open(&host, TABLET).await;
    cluster.master.with(|state| state.commit_faults.push_back(Fault::RefusedButNamed));
    let rows = write_until_flushed(&cluster, &host, 2).await;
    let refused = cluster.master.with(|state| state.commits[0].clone());
    let path = Path::from(refused.add[0].files[0].path.as_str());
    cluster.objects.head(&path).await.expect("the live row names it");
    assert_eq!(host.scan(TABLET).await.len(), rows);
}

/// The flush of `host` takes effect unheard; then the tablet gets another owner, who flushes too, and
/// `change` happens. Tells the files of the first flush.
async fn flush_unheard_then_change_owner(cluster: &Cluster, host: &Host, change: impl FnOnce(&mut State)) -> Vec<Path> {
    cluster.open(host, TABLET).await;
    cluster.master.with(|state| {
        state.commit_faults.push_back(Fault::LostAfter);
        state.commits_max = Some(1);
    });
    write_until_flushed(cluster, host, 1).await;
    cluster.master.with(|state| {
        let row = state.rows.get_mut(&TABLET).expect("row");
        assert!(!row.memory_file.is_empty());
        let mut files = vec![Path::from(row.memory_file.as_str())];
        files.extend(row.groups.iter().flat_map(|group| &group.files).map(|file| Path::from(file.path.as_str())));
        (row.server_id, row.epoch, row.memory_file) = (99, row.epoch + 1, "tables/1/100/99-1.mem".into());
        state.answers.clear();
        state.commits_max = None;
        change(state);
        files
    })
}

#[tokio::test]
async fn files_that_the_next_owner_reads_are_not_deleted_by_the_one_that_lost_the_tablet() {
    let cluster = Cluster::new().await;
    let host = cluster.start_with(small(&cluster)).await;
    let files = flush_unheard_then_change_owner(&cluster, &host, |_| {}).await;
    let is_gone = async || host.try_scan(TABLET).await.is_err_and(|error| error.code == ErrorCode::StaleLocation);
    let deadline = cluster.env.clock.now() + std::time::Duration::from_secs(10);
    while !is_gone().await {
        assert!(cluster.env.clock.now() < deadline, "served on");
    }
    cluster.let_time_pass().await;
    for file in &files[1..] {
        cluster.objects.head(file).await.expect("the live row names it");
    }
}

#[tokio::test]
async fn a_commit_that_is_fenced_ends_the_incarnation_and_deletes_nothing() {
    let cluster = Cluster::new().await;
    let host = cluster.start_with(small(&cluster)).await;
    let fence = |state: &mut State| state.dead.extend([state.last_server]);
    let files = flush_unheard_then_change_owner(&cluster, &host, fence).await;
    let ended = cluster.env.clock.timeout(std::time::Duration::from_secs(10), host.server.wait()).await;
    assert!(matches!(ended, Ok(Ended::DeclaredDead(_))), "{ended:?}");
    for file in &files {
        cluster.objects.head(file).await.expect("not this server's to delete");
    }
}

#[tokio::test]
async fn a_close_drains_flushes_and_releases_and_the_next_owner_sees_everything() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    host.put(TABLET, "a", "1").await;
    let frames = cluster.held(&host);
    let key = TabletKey { tablet_id: TABLET, epoch: 1 };
    let write = host.try_put(TABLET, "b", "2");
    let close = async {
        cluster.appended(&host, frames).await;
        host.order_close(key, false).await;
        let deadline = cluster.env.clock.now() + std::time::Duration::from_secs(10);
        loop {
            // Writes that came before the freeze stay unanswered while the log is held.
            let attempt = host.try_put(TABLET, "late", "x");
            match cluster.env.clock.timeout(std::time::Duration::from_millis(400), attempt).await {
                Ok(Err(error)) => break assert_eq!(error.code, ErrorCode::Unavailable),
                Ok(Ok(())) => panic!("acknowledged while the log is held"),
                Err(_) => assert!(cluster.env.clock.now() < deadline, "never frozen"),
            }
        }
        assert_eq!(host.values(TABLET).await, pairs(&[("a", "1")]), "reads go on");
        cluster.let_time_pass().await;
        assert!(cluster.master.with(|state| state.released.is_empty()), "released before it was drained");
        cluster.logs.release(host.log());
    };
    let (written, ()) = tokio::join!(write, close);
    written.expect("passed before the freeze");
    cluster.until("it is released", || cluster.master.with(|state| state.released == [key])).await;
    assert_eq!(host.try_scan(TABLET).await.expect_err("gone").code, ErrorCode::StaleLocation);
    let next = cluster.start().await;
    cluster.master.with(|state| state.rows.get_mut(&TABLET).expect("row").needed_logs.clear());
    cluster.open(&next, TABLET).await;
    let values = next.values(TABLET).await;
    assert_eq!(values[..2], pairs(&[("a", "1"), ("b", "2")]));
    // Back on the first server under a higher epoch: numbers go on growing.
    next.put(TABLET, "a", "2").await;
    next.order_close(TabletKey { tablet_id: TABLET, epoch: 2 }, false).await;
    cluster.until("it is released", || cluster.master.with(|state| state.released.len() == 2)).await;
    cluster.master.with(|state| state.rows.get_mut(&TABLET).expect("row").needed_logs.clear());
    cluster.open(&host, TABLET).await;
    host.put(TABLET, "a", "3").await;
    assert_eq!(host.values(TABLET).await[0], ("a".to_string(), "3".to_string()));
    host.order_close(TabletKey { tablet_id: TABLET, epoch: 1 }, false).await;
    host.put(TABLET, "a", "4").await;
}

#[tokio::test]
async fn the_target_of_a_move_replays_nothing_and_reads_only_what_the_tablet_remembers() {
    let cluster = Cluster::new().await;
    let host = cluster.start_with(small(&cluster)).await;
    cluster.open(&host, TABLET).await;
    let rows = write_until_flushed(&cluster, &host, 2).await;
    host.order_close(TabletKey { tablet_id: TABLET, epoch: 1 }, false).await;
    cluster.until("it is released", || !cluster.master.with(|state| state.released.is_empty())).await;
    cluster.master.with(|state| state.rows.get_mut(&TABLET).expect("row").needed_logs.clear());
    let next = cluster.start().await;
    cluster.reads.lock().clear();
    let order = cluster.assign(&next, TABLET, vec![]);
    next.order_open(vec![order]).await;
    let is_open = || cluster.master.with(|state| state.opened_calls.len() == 2);
    cluster.until("it is open", is_open).await;
    assert_eq!(
        *cluster.reads.lock(),
        [cluster.master.row(TABLET).memory_file],
        "index and blocks when they are needed"
    );
    next.until_serving(TABLET).await;
    assert_eq!(next.scan(TABLET).await.len(), rows);
}

#[tokio::test]
async fn a_close_flushes_until_little_is_left_before_it_freezes() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    host.put(TABLET, "a", &"v".repeat(1 << 20)).await;
    cluster.master.with(|state| state.hangs_commits = true);
    host.order_close(TabletKey { tablet_id: TABLET, epoch: 1 }, false).await;
    let files = || cluster.objects.list(None).count().now_or_never().expect("in memory");
    cluster.until("the files are written", || files() >= 2).await;
    cluster.let_time_pass().await;
    host.put(TABLET, "b", "written while the bulk is flushed").await;
    cluster.master.with(|state| state.hangs_commits = false);
    cluster.until("it is released", || !cluster.master.with(|state| state.released.is_empty())).await;
    assert_eq!(cluster.master.with(|state| state.commits.len()), 2);
}

#[tokio::test]
async fn a_closed_epoch_is_released_as_often_as_asked_and_never_comes_back() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    let unknown = TabletKey { tablet_id: 555, epoch: 1 };
    for (asked, key) in [TabletKey { tablet_id: TABLET, epoch: 1 }, unknown].into_iter().enumerate() {
        for repeat in 1..=2 {
            host.order_close(key, false).await;
            let is_released = || cluster.master.with(|state| state.released.len() == asked * 2 + repeat);
            cluster.until("it is released", is_released).await;
        }
        assert!(cluster.master.with(|state| state.released[asked * 2..] == [key, key]));
        let mut late = cluster.assign(&host, key.tablet_id, vec![]);
        late.row.as_mut().expect("row").epoch = 1;
        host.order_open(vec![late]).await;
        assert_eq!(host.try_scan(key.tablet_id).await.expect_err("stays closed").code, ErrorCode::StaleLocation);
    }
}

#[tokio::test]
async fn a_tablet_that_is_closed_before_the_master_said_so_is_never_served() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.master.with(|state| state.hangs_opened = true);
    let order = cluster.assign(&host, TABLET, vec![]);
    host.order_open(vec![order]).await;
    cluster.until("it is reported", || !cluster.master.with(|state| state.opened_calls.is_empty())).await;
    host.order_close(TabletKey { tablet_id: TABLET, epoch: 1 }, false).await;
    cluster.until("it is released", || !cluster.master.with(|state| state.released.is_empty())).await;
    let calls = cluster.master.with(|state| {
        state.hangs_opened = false;
        state.opened_calls.len()
    });
    cluster.until("it is reported again", || cluster.master.with(|state| state.opened_calls.len() > calls)).await;
    assert_eq!(host.try_put(TABLET, "a", "1").await.expect_err("closed").code, ErrorCode::StaleLocation);
}

#[tokio::test]
async fn a_discarded_tablet_is_dropped_without_a_flush() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    host.put(TABLET, "a", "1").await;
    host.order_close(TabletKey { tablet_id: TABLET, epoch: 1 }, true).await;
    cluster.until("it is released", || !cluster.master.with(|state| state.released.is_empty())).await;
    assert_eq!(host.try_scan(TABLET).await.expect_err("gone").code, ErrorCode::StaleLocation);
    assert!(cluster.master.with(|state| state.commits.is_empty()));
}

#[tokio::test]
async fn compaction_keeps_the_number_of_files_small() {
    let cluster = Cluster::new().await;
    let host = cluster.start_with(small(&cluster)).await;
    cluster.open(&host, TABLET).await;
    let rows = write_until_flushed(&cluster, &host, 12).await;
    let compacted = || cluster.master.with(|state| state.commits.iter().any(|c| !c.remove.is_empty()));
    cluster.until("a compaction is committed", compacted).await;
    assert_eq!(host.scan(TABLET).await.len(), rows);
}

#[tokio::test]
async fn a_damaged_file_is_named_and_the_server_lives_on() {
    let cluster = Cluster::new().await;
    let host = cluster.start_with(small(&cluster)).await;
    cluster.open(&host, TABLET).await;
    cluster.open(&host, TABLET + 1).await;
    write_until_flushed(&cluster, &host, 1).await;
    host.server.shutdown().await.expect("stops");
    let row = cluster.master.row(TABLET);
    let path = object_store::path::Path::from(row.groups[0].files[0].path.as_str());
    let mut bad = cluster.objects.get(&path).await.expect("there").bytes().await.expect("whole").to_vec();
    bad[100] ^= 1;
    cluster.objects.put(&path, bad.into()).await.expect("writes");
    let next = cluster.start().await;
    let orders = vec![cluster.recover(&next, TABLET).await, cluster.recover(&next, TABLET + 1).await];
    next.order_open(orders).await;
    next.until_serving(TABLET + 1).await;
    let deadline = cluster.env.clock.now() + std::time::Duration::from_secs(10);
    let error = loop {
        let error = next.try_scan(TABLET).await.expect_err("damaged");
        if error.code != ErrorCode::Unavailable {
            break error;
        }
        assert!(cluster.env.clock.now() < deadline, "{error}");
    };
    assert_eq!(error.code, ErrorCode::Corrupt);
    assert!(error.message.contains(path.as_ref()) && error.message.contains("byte"), "{error}");
    next.put(TABLET + 1, "a", "1").await;
    assert!(next.env.metrics.encode().contains("uruk_tabletserver_corrupt_tablets_total 1"));
    cluster.until("the master is told", || !cluster.master.with(|state| state.failed.is_empty())).await;
    assert!(cluster.master.with(|state| state.failed[0].reason.contains(path.as_ref())));
}
