//! Three members over TCP on this machine.
#![allow(clippy::unwrap_used)] // the functions beside the tests, too

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{Command, Group, until};
use uruk_consensus::{Config, NotLeader, ProposeError};
use uruk_proto::raft::raft_client::RaftClient;
use uruk_proto::raft::{Address, RaftRequest};

fn quick(config: &mut Config) {
    config.confirm_deadline = Duration::from_millis(300);
    config.propose_deadline = Duration::from_secs(1);
}

fn short_log(config: &mut Config) {
    quick(config);
    config.snapshot_every_entries = 20;
    config.entries_kept = 5;
    config.segment_bytes_max = 400;
    config.snapshot_chunk_bytes = 1000;
}

fn others(leader: u64) -> Vec<u64> {
    (1..=3).filter(|node| *node != leader).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_applies_the_same_in_the_same_order() {
    let group = Group::start(3, quick).await;
    let leader = group.leader().await;
    let member = group.get(leader);
    futures::future::join_all((0..200).map(|number| member.propose(Command::Add(number)))).await;
    let expected = group.seen(leader);
    assert_eq!(expected.len(), 200);
    for node in others(leader) {
        until(&group.env, "the follower has all", || group.seen(node) == expected).await;
        let leadership = group.leadership(node);
        assert_eq!(leadership.leader.map(|l| l.node), Some(leader));
        assert!(!leadership.is_leader);
        let address = Some(group.addresses[&leader].clone());
        assert_eq!(
            group.get(node).propose(Command::Add(1)).await,
            Err(ProposeError::NotLeader { leader: address.clone() })
        );
        assert_eq!(group.get(node).confirm_leadership().await, Err(NotLeader { leader: address }));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_leaders_die() {
    let mut group = Group::start(3, quick).await;
    let mut acknowledged = BTreeSet::new();
    for round in 0..4 {
        let leader = group.leader().await;
        let term = group.leadership(leader).term;
        let member = group.get(leader).clone();
        // Its outcome is open: the leader ends while these are under way.
        let proposals = (0..300).map(|i| {
            let member = member.clone();
            async move { member.propose(Command::Add(round * 1000 + i)).await.map(|_| round * 1000 + i) }
        });
        let (outcomes, ()) = tokio::join!(futures::future::join_all(proposals), async {
            let clock = group.env.clock.clone();
            clock.sleep(Duration::from_millis(3 * round)).await;
            group.stop(leader).await;
        });
        acknowledged.extend(outcomes.into_iter().flatten());
        let successor = group.leader_among(&others(leader)).await;
        assert!(group.leadership(successor).term > term);
        group.get(successor).read_linearizable().await.unwrap();
        let seen: BTreeSet<u64> = group.seen(successor).into_iter().collect();
        assert!(seen.is_superset(&acknowledged), "lost {:?}", acknowledged.difference(&seen).collect::<Vec<_>>());
        group.restart(leader).await;
    }
    group.add(&[1, 2, 3], 999_999).await;
    let all = || [1, 2, 3].map(|node| group.seen(node));
    until(&group.env, "all agree", || all().iter().all(|seen| seen.contains(&999_999) && *seen == all()[0])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_away_gets_a_snapshot() {
    let mut group = Group::start(3, short_log).await;
    let leader = group.leader().await;
    group.add(&[leader], 1).await;
    let away = others(leader)[0];
    group.stop(away).await;
    let present: Vec<u64> = (1..=3).filter(|node| *node != away).collect();
    for number in 1000..1300 {
        group.add(&present, number).await;
    }
    group.restart(away).await;
    let expected = group.seen(group.leader_among(&present).await);
    assert_eq!(expected.len(), 301);
    until(&group.env, "it has caught up", || group.seen(away) == expected).await;
    // It is a full member again: with it and one more the group goes on.
    let leader = group.leader().await;
    let gone = present.into_iter().find(|node| *node == leader || *node != away).unwrap_or(leader);
    group.stop(gone).await;
    let rest: Vec<u64> = (1..=3).filter(|node| *node != gone).collect();
    group.add(&rest, 5000).await;
    // And what it received survives its own restart.
    group.stop(away).await;
    group.restart(away).await;
    group.restart(gone).await;
    until(&group.env, "it has all", || group.seen(away).len() == 302).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_can_prove_nothing() {
    let group = Group::start(3, quick).await;
    let old = group.leader().await;
    let term = group.get(old).confirm_leadership().await.unwrap();
    group.members[&old].cable.cut();
    assert_eq!(group.get(old).confirm_leadership().await, Err(NotLeader { leader: None }));
    let asked = (0..50).map(|_| group.get(old).confirm_leadership());
    assert!(futures::future::join_all(asked).await.iter().all(Result::is_err));
    let proposed = group.get(old).propose(Command::Add(1)).await;
    assert!(proposed.is_err(), "{proposed:?}");

    let new = group.leader_among(&others(old)).await;
    assert!(group.get(new).confirm_leadership().await.unwrap() > term);
    group.add(&others(old), 2).await;
    assert!(group.get(old).read_linearizable().await.is_err());

    group.members[&old].cable.mend();
    until(&group.env, "the old leader has caught up", || group.seen(old) == group.seen(new)).await;
    assert!(group.seen(old).contains(&2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_cut_off_does_not_depose_the_leader_when_it_is_back() {
    let group = Group::start(3, quick).await;
    let leader = group.leader().await;
    group.add(&[leader], 1).await;
    let term = group.leadership(leader).term;
    let away = others(leader)[0];
    until(&group.env, "the follower follows", || group.seen(away) == [1]).await;
    group.members[&away].cable.cut();
    // Several elections would have begun in that time.
    let election_max = Config::new("numbers", 1, group.addresses.clone()).election_max;
    group.env.clock.sleep(election_max * 6).await;
    group.add(&[leader], 2).await;
    group.members[&away].cable.mend();
    until(&group.env, "it has caught up", || group.seen(away) == [1, 2]).await;
    group.add(&[leader], 3).await;
    until(&group.env, "it follows again", || group.seen(away) == [1, 2, 3]).await;
    assert_eq!((group.leadership(leader).term, group.leadership(away).term), (term, term), "nobody was elected");
    assert!(group.leadership(leader).is_leader);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_acknowledges_nothing() {
    let mut group = Group::start(3, quick).await;
    let leader = group.leader().await;
    for node in others(leader) {
        group.stop(node).await;
    }
    let proposed = group.get(leader).propose(Command::Add(1)).await;
    assert!(proposed.is_err(), "{proposed:?}");
    assert!(group.get(leader).read_linearizable().await.is_err());
    // It soon says so at once, and sends nobody anywhere.
    let nobody = Err(ProposeError::NotLeader { leader: None });
    let clock = &group.env.clock;
    let start = clock.now();
    while group.get(leader).propose(Command::Add(1)).await != nobody {
        assert!(clock.since(start) < common::PATIENCE, "still takes proposals");
    }
    for node in others(leader) {
        group.restart(node).await;
    }
    group.add(&[1, 2, 3], 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_members_restart_with_everything_acknowledged() {
    let mut group = Group::start(3, short_log).await;
    for number in 0..100 {
        group.add(&[1, 2, 3], number).await;
    }
    for node in 1..=3 {
        group.stop(node).await;
    }
    for node in 1..=3 {
        group.restart(node).await;
    }
    let leader = group.leader().await;
    group.get(leader).read_linearizable().await.unwrap();
    assert_eq!(group.seen(leader), (0..100).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_for_another_group_or_node_are_refused() {
    let group = Group::start(3, quick).await;
    let channels = uruk_base::rpc::Channels::new(group.env.transport.clone());
    let mut client = RaftClient::new(channels.get(&group.addresses[&1]));
    let mut code = async |group: &str, node| {
        let to = Some(Address { group: group.to_owned(), node });
        client.vote(RaftRequest { to, payload: vec![0xff; 9].into() }).await.unwrap_err().code()
    };
    assert_eq!(code("letters", 1).await, tonic::Code::FailedPrecondition);
    assert_eq!(code("numbers", 2).await, tonic::Code::FailedPrecondition);
    // This one is for it, and makes no sense.
    assert_eq!(code("numbers", 1).await, tonic::Code::InvalidArgument);
}
