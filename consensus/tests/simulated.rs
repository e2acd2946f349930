//! Three members in simulated time, on a simulated network and simulated disks, under random crashes,
//! losses of power and cuts of the network. Checked: nothing acknowledged is ever lost, and a
//! linearizable read sees everything that was acknowledged before it began.
//!
//! The engine draws its own randomness, so a seed fixes the faults but not every step.
#![allow(clippy::unwrap_used)] // the functions beside the tests, too

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{Command, Numbers};
use parking_lot::Mutex;
use tonic::service::Routes;
use uruk_base::clock::{Clock, SimulatedClock};
use uruk_base::disk::SimDisk;
use uruk_base::transport::{SimulatedTransport, Transport};
use uruk_base::{Env, Metrics, Random, Tasks, rpc};
use uruk_consensus::{Config, Consensus};

const NODES: u64 = 3;
const PORT: u16 = 7000;
/// Steps of one simulated millisecond.
const STEPS_WITH_FAULTS: u64 = 20_000;
const STEPS_TO_HEAL: u64 = 20_000;
const SEEDS: u64 = 4;

/// What the members tell the test.
#[derive(Default)]
struct Book {
    next: u64,
    acknowledged: BTreeSet<u64>,
    reads: u64,
    state: BTreeMap<u64, Vec<u64>>,
}

fn host(node: u64) -> String {
    format!("n{node}")
}

async fn run(node: u64, disk: SimDisk, random: Random, book: Arc<Mutex<Book>>) {
    let clock = Clock::from_source(Arc::new(SimulatedClock::new(0.98 + 0.01 * node as f64, 0)));
    let env = Env {
        disk: disk.mount(clock.clone()),
        clock,
        random: random.clone(),
        transport: Arc::new(SimulatedTransport),
        tasks: Tasks::simulated(),
        metrics: Metrics::new(),
    };
    let members = (1..=NODES).map(|n| (n, format!("{}:{PORT}", host(n)))).collect();
    let config = Config {
        snapshot_every_entries: 30,
        entries_kept: 5,
        segment_bytes_max: 500,
        snapshot_chunk_bytes: 500,
        confirm_deadline: Duration::from_millis(500),
        propose_deadline: Duration::from_secs(1),
        ..Config::new("numbers", node, members)
    };
    let consensus = Consensus::start(&env, config, Path::new("/raft"), Numbers::default()).await.unwrap();
    let listener = SimulatedTransport.listen(&format!("0.0.0.0:{PORT}")).await.unwrap();
    let routes = Routes::new(consensus.service());
    let served = env.clone();
    env.tasks.spawn_to_end("server", async move {
        rpc::serve(&served, listener, routes, &served.tasks).await.unwrap();
    });
    for _ in 0..3 {
        env.tasks.spawn("writer", write(env.clone(), consensus.clone(), random.clone(), book.clone()));
        env.tasks.spawn("reader", read(env.clone(), consensus.clone(), random.clone(), book.clone()));
    }
    let mut applied = consensus.applied();
    loop {
        tokio::select! {
            biased;
            // A task found something wrong and panicked; so does the whole simulation.
            () = env.tasks.cancelled() => panic!("node {node} failed"),
            changed = applied.changed() => changed.unwrap(),
        }
        book.lock().state.insert(node, consensus.read(|numbers| numbers.order.clone()));
    }
}

async fn write(env: Env, consensus: Consensus<Numbers>, random: Random, book: Arc<Mutex<Book>>) {
    loop {
        env.clock.sleep(Duration::from_millis(random.range(1..60))).await;
        let number = {
            let mut book = book.lock();
            book.next += 1;
            book.next
        };
        if consensus.propose(Command::Add(number)).await.is_ok() {
            book.lock().acknowledged.insert(number);
        }
    }
}

async fn read(env: Env, consensus: Consensus<Numbers>, random: Random, book: Arc<Mutex<Book>>) {
    loop {
        env.clock.sleep(Duration::from_millis(random.range(1..60))).await;
        let before = book.lock().acknowledged.clone();
        if consensus.read_linearizable().await.is_ok() {
            let seen = consensus.read(|numbers| numbers.seen.clone());
            let missing: Vec<_> = before.difference(&seen).collect();
            assert!(missing.is_empty(), "{consensus:?} read without {missing:?}");
            book.lock().reads += 1;
        }
    }
}

fn simulate(seed: u64) {
    let random = Random::from_seed(seed);
    let book = Arc::new(Mutex::new(Book::default()));
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .simulation_duration(Duration::from_secs(3600))
        .max_message_latency(Duration::from_millis(20))
        .tcp_capacity(4096)
        .build();
    let disks: BTreeMap<u64, SimDisk> = (1..=NODES).map(|node| (node, SimDisk::new(seed * 10 + node))).collect();
    for (node, disk) in &disks {
        let (node, disk, book, random) = (*node, disk.clone(), book.clone(), random.clone());
        sim.host(host(node), move || {
            let (disk, random, book) = (disk.clone(), random.clone(), book.clone());
            async move {
                run(node, disk, random, book).await;
                Ok(())
            }
        });
    }
    let mut down = BTreeMap::new();
    let mut cut_until = None;
    for step in 0..STEPS_WITH_FAULTS {
        sim.step().unwrap();
        down.retain(|node, until| {
            let stays = *until > step;
            if !stays {
                sim.bounce(host(*node));
            }
            stays
        });
        if cut_until.is_some_and(|(_, until)| until <= step) {
            let (node, _) = cut_until.take().unwrap();
            others(node).for_each(|other| sim.repair(host(node), host(other)));
        }
        let node = 1 + random.range(0..NODES);
        if random.range(0..1500) == 0 && !down.contains_key(&node) {
            sim.crash(host(node));
            match random.range(0..2) {
                0 => disks[&node].process_crash(),
                _ => disks[&node].power_loss(),
            }
            down.insert(node, step + random.range(1..2000));
        }
        if random.range(0..3000) == 0 && cut_until.is_none() {
            others(node).for_each(|other| sim.partition(host(node), host(other)));
            cut_until = Some((node, step + random.range(1..3000)));
        }
    }
    down.keys().for_each(|node| sim.bounce(host(*node)));
    if let Some((node, _)) = cut_until {
        others(node).for_each(|other| sim.repair(host(node), host(other)));
    }
    let (number_before, reads_before) = {
        let book = book.lock();
        (book.next, book.reads)
    };
    for _ in 0..STEPS_TO_HEAL {
        sim.step().unwrap();
    }
    let book = book.lock();
    println!("seed {seed}: {} of {} acknowledged, {} reads", book.acknowledged.len(), book.next, book.reads);
    assert!(book.reads > reads_before, "reads go on after the faults");
    assert!(book.acknowledged.range(number_before..).count() > 10, "writes go on after the faults");
    for (node, order) in &book.state {
        let seen: BTreeSet<u64> = order.iter().copied().collect();
        // The newest may still be on their way to the followers.
        let settled = book.acknowledged.range(..number_before).filter(|number| !seen.contains(number));
        assert_eq!(settled.count(), 0, "node {node} lacks what was acknowledged");
    }
    let shortest = book.state.values().map(Vec::len).min().unwrap();
    let prefixes: BTreeSet<_> = book.state.values().map(|order| &order[..shortest]).collect();
    assert_eq!(prefixes.len(), 1, "all members applied the same in the same order");
}

fn others(node: u64) -> impl Iterator<Item = u64> {
    (1..=NODES).filter(move |other| *other != node)
}

#[test]
fn nothing_acknowledged_is_lost_and_no_read_is_stale_under_crashes_and_cuts() {
    let first: u64 = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let seeds: u64 = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS);
    for seed in first..first + seeds {
        simulate(seed);
    }
}
