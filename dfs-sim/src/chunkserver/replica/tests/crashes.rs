//! Kills at random points, against a model: what the writer sent, what was acknowledged to it, what
//! a fence answered.
//!
//! | checked after every restart | invariant |
//! |---|---|
//! | the replica's bytes are a prefix of what was sent, at least as long as what was acknowledged | I2, I6 |
//! | once a fence was answered, nothing beyond its length was or is acknowledged | I3 |
//! | a fence that was answered still refuses appends and lower fences, and has its length | I4 |
//! | in replicated mode a replica answers only under the boot it was opened under | DESIGN §6 |
//! | after a failed sync nothing is acknowledged, and whatever is vouched for later is durable | I9 |

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use super::super::*;
use super::{content, known};
use crate::chunkserver::testing::*;

/// What the outside world knows.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// Everything the writer sent, in order, accepted or not.
    sent: BytesMut,
    /// Highest length acknowledged.
    acked: u64,
    /// The fence that was asked for, and its length once answered.
    fence: Option<(u64, Option<u64>)>,
}

/// How one run goes.
#[derive(Clone, Copy, Debug)]
struct Plan {
    seed: u64,
    mode: Mode,
    power: bool,
    fences: bool,
    sync_fails: bool,
}

impl Plan {
    fn all(seeds: std::ops::Range<u64>, sync_fails: bool) -> impl Iterator<Item = Plan> {
        seeds.flat_map(move |seed| {
            let modes = if sync_fails { vec![Mode::Fsync] } else { vec![Mode::Fsync, Mode::Replicated] };
            modes.into_iter().flat_map(move |mode| {
                [(false, false), (false, true), (true, false), (true, true)].map(|(power, fences)| Plan {
                    seed,
                    mode,
                    power,
                    fences,
                    sync_fails,
                })
            })
        })
    }
}

/// Appends frames until it is refused; watches acknowledgements as the service does.
fn spawn_writer(machine: &Machine, process: &Process, replica: &Arc<Replica>, seen: &Arc<Mutex<Seen>>) {
    let (env, random) = (process.env.clone(), machine.random.clone());
    let (replica_too, seen_too) = (replica.clone(), seen.clone());
    let mut acked = replica.acked();
    process.env.tasks.spawn("acknowledgements", async move {
        while acked.changed().await.is_ok() {
            let length = *acked.borrow_and_update();
            let mut seen = seen_too.lock();
            if let Some((r, Some(fenced))) = seen.fence {
                assert!(length <= fenced, "fence {r} answered {fenced}, then {length} was acknowledged");
            }
            seen.acked = seen.acked.max(length);
        }
    });
    let seen = seen.clone();
    process.env.tasks.spawn("writer", async move {
        loop {
            let offset = seen.lock().sent.len() as u64;
            let data = random_frame(&random, offset, 3000);
            seen.lock().sent.extend_from_slice(&data);
            let acked = seen.lock().acked;
            if replica_too.append(offset, data.clone(), crc32fast::hash(&data), acked).await.is_err() {
                // It was not accepted. Bytes of it may be in the file all the same.
                return;
            }
            if random.range(0..3) == 0 {
                env.clock.sleep(Duration::from_micros(random.range(0..300))).await;
            }
        }
    });
}

use std::time::Duration;

fn spawn_fence(process: &Process, replica: &Arc<Replica>, seen: &Arc<Mutex<Seen>>, delay: u64, r: u64) {
    let (env, replica, seen) = (process.env.clone(), replica.clone(), seen.clone());
    process.env.tasks.spawn("fence", async move {
        env.clock.sleep(Duration::from_micros(delay)).await;
        seen.lock().fence = Some((r, None));
        if let Ok(FenceAnswer::Known { length, .. }) = replica.fence(r).await {
            let mut seen = seen.lock();
            assert!(length >= seen.acked, "fence answers {length}, {} was acknowledged", seen.acked);
            seen.fence = Some((r, Some(length)));
        }
    });
}

/// One life of the process under load, ended by a crash; what was seen until then.
async fn load_and_crash(machine: &Machine, plan: Plan) -> Seen {
    let process = machine.start().await;
    let replica = process.open(plan.mode).await;
    let seen = Arc::new(Mutex::new(Seen::default()));
    spawn_writer(machine, &process, &replica, &seen);
    let life = machine.random.range(0..6_000);
    if plan.fences {
        let delay = machine.random.range(0..life + 1);
        spawn_fence(&process, &replica, &seen, delay, 10);
    }
    if plan.sync_fails {
        process.sleep_micros(life / 2).await;
        machine.disk.faults(|f| f.sync_errors = 1);
        process.sleep_micros(life / 2).await;
    } else {
        process.sleep_micros(life).await;
    }
    let seen = seen.lock().clone();
    process.crash(machine, plan.power).await;
    machine.disk.faults(|f| f.sync_errors = 0);
    seen
}

/// What the replica vouches for under fence `r`, checked against what was seen.
async fn check(process: &Process, plan: Plan, seen: &Seen, r: u64) -> Option<(u64, Bytes)> {
    let replica = process.segments.get(SEGMENT).expect("creation was durable");
    if let Some((old, Some(_))) = seen.fence {
        let lower = replica.fence(old - 1).await;
        assert!(matches!(lower, Err(StoreError::Fenced { .. })), "{plan:?}: fence {} after {old}: {lower:?}", old - 1);
    }
    let late = frame(replica.length(), b"late");
    replica.append(replica.length(), late.clone(), crc32fast::hash(&late), 0).await.expect_err("an old incarnation");
    let answer = replica.fence(r).await.expect("fences");
    let FenceAnswer::Known { length, committed, crc } = answer else {
        let allowed = plan.mode == Mode::Replicated && plan.power || plan.sync_fails;
        assert!(allowed, "{plan:?}: {answer:?}");
        return None;
    };
    assert!(plan.mode == Mode::Fsync || !plan.power, "{plan:?}: nothing was synced, and it vouches for {length}");
    assert!(length >= seen.acked, "{plan:?}: {} acknowledged, {length} left", seen.acked);
    assert!(committed <= length, "{plan:?}: {committed} committed, {length} left");
    let bytes = content(&replica, r).await;
    assert_eq!(bytes.len() as u64, length);
    assert!(seen.sent.starts_with(&bytes), "{plan:?}: not what was sent");
    assert_eq!(crc, crc32fast::hash(&bytes));
    if let Some((_, Some(fenced))) = seen.fence {
        assert_eq!(length, fenced, "{plan:?}: the fence answered another length");
    }
    Some((length, bytes))
}

async fn run(plan: Plan) -> Seen {
    let machine = Machine::new(plan.seed);
    let seen = load_and_crash(&machine, plan).await;
    let process = machine.start().await;
    let first = check(&process, plan, &seen, 20).await;
    // What a fence vouched for is durable in fsync mode: it survives a loss of power at once.
    process.crash(&machine, plan.mode == Mode::Fsync).await;
    if let Some((length, bytes)) = first {
        let process = machine.start().await;
        let replica = process.segments.get(SEGMENT).expect("there");
        assert_eq!(known(replica.fence(20).await.expect("fences")).0, length, "{plan:?}");
        assert_eq!(content(&replica, 20).await, bytes, "{plan:?}");
        replica.finish(length, crc32fast::hash(&bytes)).await.expect("finishes");
        assert_eq!(content(&replica, 0).await, bytes, "{plan:?}");
    }
    seen
}

#[tokio::test(start_paused = true)]
async fn acknowledged_bytes_and_fences_survive_kills_at_random_points() {
    let (mut acked, mut fenced) = (0, 0);
    for plan in Plan::all(0..150, false) {
        let seen = run(plan).await;
        acked += u64::from(seen.acked > 0);
        fenced += u64::from(matches!(seen.fence, Some((_, Some(_)))));
    }
    assert!(acked > 300 && fenced > 100, "the runs reach what they test: {acked} acknowledged, {fenced} fenced");
}

#[tokio::test(start_paused = true)]
async fn after_a_failed_sync_only_what_is_durable_is_vouched_for() {
    let mut acked = 0;
    for plan in Plan::all(1000..1150, true) {
        acked += u64::from(run(plan).await.acked > 0);
    }
    assert!(acked > 100, "{acked}");
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_ends_the_process_and_marks_the_replica() {
    let machine = Machine::new(3);
    let process = machine.start().await;
    let replica = process.open(Mode::Fsync).await;
    machine.disk.faults(|f| f.sync_errors = 1);
    let data = frame(0, &[1; 100]);
    append(&replica, 0, &data).await;
    assert!(process.host.failed().await.contains("sync failed"));
    assert_eq!(*replica.acked().borrow(), 0);
    let refused = replica.append(112, frame(112, b"x"), 0, 0).await.expect_err("ending");
    assert!(matches!(refused, StoreError::Ending(_)), "{refused}");
    assert!(replica.fence(1).await.is_err());
    process.crash(&machine, false).await;
    let process = machine.start().await;
    let answer = process.segments.fence(SEGMENT, 1).await.expect("answers");
    assert!(matches!(&answer, FenceAnswer::Unknown { reason } if reason.contains("sync failed")), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_that_could_not_be_recorded_is_made_good_before_the_tail_counts() {
    // The record is written to the same failing disk: all syncs fail until the process is gone.
    for seed in 0..100 {
        let machine = Machine::new(seed);
        let process = machine.start().await;
        let replica = process.open(Mode::Fsync).await;
        let first = frame(0, &[1; 2000]);
        append(&replica, 0, &first).await;
        held(&replica, first.len() as u64).await;
        machine.disk.faults(|f| f.sync_error_chance = 1.0);
        let second = frame(first.len() as u64, &[2; 2000]);
        append(&replica, first.len() as u64, &second).await;
        process.host.failed().await;
        process.crash(&machine, false).await;
        machine.disk.faults(|f| f.sync_error_chance = 0.0);
        let process = machine.start().await;
        let (length, _) = known(process.segments.fence(SEGMENT, 1).await.expect("answers"));
        assert!(length >= first.len() as u64, "seed {seed}: {length}");
        process.crash(&machine, true).await;
        let process = machine.start().await;
        let again = known(process.segments.fence(SEGMENT, 1).await.expect("answers")).0;
        assert_eq!(again, length, "seed {seed}: what was vouched for is durable");
    }
}

#[tokio::test(start_paused = true)]
async fn replicated_mode_survives_a_killed_process_and_admits_a_reboot() {
    let machine = Machine::new(4);
    let process = machine.start().await;
    let replica = process.open(Mode::Replicated).await;
    let data = frame(0, &[1; 5000]);
    append(&replica, 0, &data).await;
    held(&replica, data.len() as u64).await;
    process.crash(&machine, false).await;
    let process = machine.start().await;
    assert_eq!(known(process.segments.fence(SEGMENT, 1).await.expect("answers")).0, data.len() as u64);
    process.crash(&machine, true).await;
    let process = machine.start().await;
    let answer = process.segments.fence(SEGMENT, 2).await.expect("answers");
    assert!(matches!(&answer, FenceAnswer::Unknown { reason } if reason.contains("restarted")), "{answer:?}");
}
