//! One member alone.
#![allow(clippy::unwrap_used)] // the functions beside the tests, too

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::disk::FaultyDisk;
use common::{Command, Numbers, leads, until};
use uruk_base::disk::{Disk, RealDisk};
use uruk_base::{Env, Tasks};
use uruk_consensus::{Config, Consensus, ProposeError, StartError};

fn config() -> Config {
    Config::new("numbers", 1, BTreeMap::from([(1, "127.0.0.1:1".to_owned())]))
}

async fn start(env: &Env, config: Config, folder: &Path) -> Consensus<Numbers> {
    let member = Consensus::start(env, config, folder, Numbers::default()).await.unwrap();
    leads(&member).await;
    member
}

#[tokio::test]
async fn state_and_term_survive_restarts() {
    let (env, folder) = (Env::real(), tempfile::tempdir().unwrap());
    let mut term = Default::default();
    for round in 0..3u64 {
        let member = start(&env, config(), folder.path()).await;
        assert_eq!(member.read(|n| n.order.clone()), (0..round * 10).collect::<Vec<_>>());
        let confirmed = member.confirm_leadership().await.unwrap();
        assert!(confirmed > term, "terms grow");
        term = confirmed;
        for number in round * 10..round * 10 + 10 {
            assert_eq!(member.propose(Command::Add(number)).await, Ok(number as usize + 1));
        }
        member.shutdown().await;
        assert!(matches!(member.propose(Command::Add(0)).await, Err(ProposeError::ShutDown)));
        assert!(member.confirm_leadership().await.is_err());
    }
}

#[tokio::test]
async fn a_command_of_an_earlier_term_is_refused() {
    let (env, folder) = (Env::real(), tempfile::tempdir().unwrap());
    let member = start(&env, config(), folder.path()).await;
    let earlier = member.confirm_leadership().await.unwrap();
    assert_eq!(member.propose_in(earlier, Command::Add(1)).await, Ok(1));
    member.shutdown().await;
    // The same node leads again, in a later term.
    let member = start(&env, config(), folder.path()).await;
    let now = member.confirm_leadership().await.unwrap();
    assert!(now > earlier);
    let refused = member.propose_in(earlier, Command::Add(2)).await;
    assert!(matches!(refused, Err(ProposeError::NotLeader { .. })), "{refused:?}");
    assert_eq!(member.propose_in(now, Command::Add(3)).await, Ok(2));
    assert_eq!(member.read(|n| n.order.clone()), [1, 3]);
    member.shutdown().await;
}

#[tokio::test]
async fn state_survives_snapshots_and_the_log_stays_short() {
    let (env, folder) = (Env::real(), tempfile::tempdir().unwrap());
    let short = || Config { snapshot_every_entries: 20, entries_kept: 5, segment_bytes_max: 300, ..config() };
    for round in 0..3u64 {
        let member = start(&env, short(), folder.path()).await;
        assert_eq!(member.read(|n| n.order.clone()), (0..round * 100).collect::<Vec<_>>());
        for number in round * 100..round * 100 + 100 {
            member.propose(Command::Add(number)).await.unwrap();
        }
        member.shutdown().await;
    }
    let names: Vec<String> = RealDisk.list(folder.path()).await.unwrap().into_iter().map(|e| e.name).collect();
    assert_eq!(names.iter().filter(|name| name.starts_with("snapshot-")).count(), 1, "{names:?}");
    assert!(names.len() < 40, "{names:?}");
}

#[tokio::test]
async fn a_log_that_grows_in_bytes_is_replaced_by_a_snapshot() {
    let (env, folder) = (Env::real(), tempfile::tempdir().unwrap());
    let small = Config { log_bytes_max: 100_000, entries_kept: 1, segment_bytes_max: 50_000, ..config() };
    let member = start(&env, small, folder.path()).await;
    for _ in 0..20 {
        member.propose(Command::Ballast(vec![7; 20_000])).await.unwrap();
    }
    let path = folder.path().to_owned();
    until(&env, "a snapshot is written", || {
        std::fs::read_dir(&path).unwrap().any(|e| e.unwrap().file_name().to_string_lossy().starts_with("snapshot-"))
    })
    .await;
    member.shutdown().await;
}

#[tokio::test]
async fn a_command_that_is_too_large_is_refused() {
    let (env, folder) = (Env::real(), tempfile::tempdir().unwrap());
    let member = start(&env, Config { command_bytes_max: 1000, ..config() }, folder.path()).await;
    let refused = member.propose(Command::Ballast(vec![0; 1000])).await;
    assert_eq!(refused, Err(ProposeError::TooLarge { bytes: 1003, bytes_max: 1000 }));
    assert_eq!(member.propose(Command::Add(1)).await, Ok(1));
    member.shutdown().await;
}

#[tokio::test]
async fn another_group_or_other_members_are_refused() {
    let (env, folder) = (Env::real(), tempfile::tempdir().unwrap());
    start(&env, config(), folder.path()).await.shutdown().await;
    let renamed = Config { group: "letters".into(), ..config() };
    let error = Consensus::start(&env, renamed, folder.path(), Numbers::default()).await.unwrap_err();
    assert!(matches!(error, StartError::WrongOwner { .. }), "{error}");
    let grown = Config { members: (1..=3).map(|n| (n, format!("127.0.0.1:{n}"))).collect(), ..config() };
    let error = Consensus::start(&env, grown, folder.path(), Numbers::default()).await.unwrap_err();
    assert!(matches!(error, StartError::OtherMembers { .. }), "{error}");
    // Neither did any harm.
    start(&env, config(), folder.path()).await.shutdown().await;
}

#[tokio::test]
async fn a_command_that_panics_ends_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let env = Env::real();
    let member = start(&env, config(), folder.path()).await;
    let outcome = member.propose(Command::Panic).await;
    assert!(outcome.is_err(), "{outcome:?}");
    env.clock.timeout(common::PATIENCE, env.tasks.cancelled()).await.expect("the process is told to end");
    assert!(env.tasks.shutdown().await.is_err());
}

#[tokio::test]
async fn many_proposals_share_one_sync() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Arc::new(FaultyDisk::default());
    let env = Env { disk: disk.clone(), ..Env::real() };
    let member = start(&env, config(), folder.path()).await;
    let before = disk.syncs.load(Ordering::SeqCst);
    let proposals = (0..1000).map(|number| member.propose(Command::Add(number)));
    let replies = futures::future::join_all(proposals).await;
    assert!(replies.iter().all(Result::is_ok));
    let syncs = disk.syncs.load(Ordering::SeqCst) - before;
    assert!(syncs < 100, "{syncs} syncs for 1000 proposals");
    member.shutdown().await;
}

#[tokio::test]
async fn after_a_failed_sync_nothing_is_acknowledged_and_the_process_ends() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Arc::new(FaultyDisk::default());
    let env = Env { disk: disk.clone(), ..Env::real() };
    let member = start(&env, config(), folder.path()).await;
    member.propose(Command::Add(1)).await.unwrap();
    disk.fail_syncs.store(true, Ordering::SeqCst);
    assert!(member.propose(Command::Add(2)).await.is_err());
    disk.fail_syncs.store(false, Ordering::SeqCst);
    assert!(member.propose(Command::Add(3)).await.is_err());
    env.clock.timeout(common::PATIENCE, env.tasks.cancelled()).await.expect("the process is told to end");
    assert!(env.tasks.shutdown().await.is_err());
    // The next process starts from what is on the disk.
    let again = Env { tasks: Tasks::new(), ..env };
    let member = start(&again, config(), folder.path()).await;
    assert!(member.read(|n| n.seen.contains(&1) && !n.seen.contains(&3)));
    member.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_write_loses_nothing_acknowledged() {
    let short = || Config { snapshot_every_entries: 4, entries_kept: 1, segment_bytes_max: 150, ..config() };
    let mut crash_at = 0;
    loop {
        let folder = tempfile::tempdir().unwrap();
        let disk = Arc::new(FaultyDisk::default());
        disk.writes_left.store(crash_at, Ordering::SeqCst);
        let env = Env { disk: disk.clone(), ..Env::real() };
        let acknowledged = run_until_crash(&env, short(), folder.path()).await;
        let crashed = disk.writes_left.load(Ordering::SeqCst) < 0;
        // The crashed process is gone, whatever its tasks think of it.
        let _ = env.tasks.shutdown().await;

        let env = Env::real();
        let member = start(&env, short(), folder.path()).await;
        let seen = member.read(|n| n.order.clone());
        assert!(seen.len() as u64 >= acknowledged, "crash at write {crash_at}: {acknowledged} acknowledged, {seen:?}");
        assert_eq!(seen, (0..seen.len() as u64).collect::<Vec<_>>(), "crash at write {crash_at}");
        let next = member.propose(Command::Add(1000)).await;
        assert_eq!(next, Ok(seen.len() + 1), "crash at write {crash_at}");
        member.shutdown().await;
        if !crashed {
            assert!(crash_at > 100, "snapshots, purges and new segments were met");
            return;
        }
        crash_at += 1;
    }
}

/// Adds 0, 1, 2... up to 20 until the disk fails; returns how many were acknowledged.
async fn run_until_crash(env: &Env, config: Config, folder: &Path) -> u64 {
    let Ok(member) = Consensus::start(env, config, folder, Numbers::default()).await else { return 0 };
    let mut leadership = member.leadership();
    tokio::select! {
        biased;
        () = env.tasks.cancelled() => return 0,
        leads = leadership.wait_for(|l| l.is_leader) => if leads.is_err() { return 0 },
    }
    for number in 0..20 {
        if member.propose(Command::Add(number)).await.is_err() {
            return number;
        }
    }
    20
}
