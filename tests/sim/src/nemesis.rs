//! Who breaks things: draws faults from the seed, one after the other and several at once, and takes
//! them back again.
//!
//! What the design tolerates, and so what is drawn: any number of killed processes, machines without
//! power (everything synced stays), cut links, slow and full disks; data damaged on the disk of **one**
//! machine, the same one for the whole run.

use std::time::Duration;

use uruk_base::Random;
use uruk_base::commit_log::LogId;
use uruk_proto::TabletId;

use crate::cluster::Role;
use crate::scenario::Scenario;
use crate::tuning::DISK_RESERVE_BYTES;
use crate::world::{Link, World};

mod compose;
mod draw;
mod hit;
mod logs;

use draw::Draw;

/// A kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A process is killed.
    Crash,
    /// ... a tablet server's.
    CrashTabletServer,
    /// ... a controller's or chunk server's.
    CrashStorage,
    /// ... a master's.
    CrashMaster,
    /// A machine loses power.
    PowerLoss,
    /// ... one of the storage.
    PowerLossOfStorage,
    /// All machines but the clients' lose power within one tick.
    PowerLossOfAll,
    /// Two groups do not hear each other.
    Partition,
    /// One group does not hear another.
    OneWay,
    /// A tablet server is cut off from some of the others.
    CutTabletServer,
    /// A controller or chunk server is.
    CutStorage,
    /// A master is.
    CutMaster,
    /// Messages between two machines wait, and all come at once.
    Hold,
    /// A machine's connections break.
    Reset,
    /// Messages between two machines take long.
    SlowNetwork,
    /// A disk takes long for everything.
    SlowDisk,
    /// A disk does nothing for a while.
    StalledDisk,
    /// A disk is full.
    FullDisk,
    /// The damaged machine's disk fails some reads, writes or syncs.
    DamagedDisk,
    /// A bit flips in a finished file of the damaged machine.
    FlippedBit,
    /// A process stands still.
    Pause,
    /// ... a tablet server's.
    PauseTabletServer,
    /// ... a master's.
    PauseMaster,
    /// A tablet server is asked to end.
    PlannedEnd,
    /// The leading master hears of one tablet server only.
    LonelyLeader,
    /// What a tablet server and the masters say to each other waits for longer than a lease.
    HoldReports,
    /// ... for less than a lease.
    SlowCommits,
    /// A tablet server is killed soon after one of its log's replicas began to lag.
    LagThenKill,
    /// A tablet server ends, and another one cannot read for a while.
    Unreadable,
    /// A tablet server's end is reported when its successor serves, which is then cut off for less than a lease.
    LateDeath,
    /// A tablet is split, merged or moved while something happens to who takes part in it.
    Reshape,
    /// A tablet is split or merged, and its server does not hear the masters' answer.
    LostAnswer,
    /// A tablet server writes on while the masters do not hear of it; what it writes may be held, or slow.
    LivingWriter,
    /// ... while its segments' members restart.
    LivingWriterRestarts,
}

impl Fault {
    /// Whether it takes its time.
    fn has_steps(self) -> bool {
        use Fault::*;
        let living = matches!(self, LivingWriter | LivingWriterRestarts);
        living
            || matches!(
                self,
                HoldReports
                    | LagThenKill
                    | LateDeath
                    | LonelyLeader
                    | LostAnswer
                    | PlannedEnd
                    | SlowCommits
                    | Unreadable
            )
    }
}

/// What ends a fault, or goes on with it.
#[derive(Clone, Debug)]
enum Undo {
    Block(Vec<Link>, Duration),
    BlockOnceReplaced(ServedBy, Vec<Link>, Duration),
    Crash(String),
    Hold(Vec<Link>, Duration),
    HoldFirstMember(String, LogId, Duration),
    RestartOnceSealed(Vec<String>, LogId, Duration),
    PowerLoss(Vec<String>, Duration),
    Restart(String),
    Unblock(Vec<Link>),
    Release(Vec<Link>),
    Latency(Vec<Link>),
    Disk(String),
    Resume(String),
    ReportDeath(u64),
    ReportDeathOfPredecessor(u64, String, Duration),
}

/// A tablet, and the tablet server that serves it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct ServedBy {
    host: String,
    tablet: TabletId,
}

/// Faults to come, and faults to take back.
pub struct Nemesis {
    draw: Draw,
    faults: &'static [Fault],
    gap: Duration,
    deliberate: bool,
    /// No other fault of several steps before this.
    steps_until: Duration,
    next: Duration,
    end: Duration,
    undo: Vec<(Duration, Undo)>,
    /// How many faults have been done.
    pub done: u64,
}

/// A process that ended by itself is started again after this, at most.
const RESTART_DELAY_MAX: Duration = Duration::from_secs(1);
/// Among other faults, one of several steps comes this often at most.
const STEPS_TIME: Duration = Duration::from_secs(6);
/// What a fault waits for is looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(4);
/// No fault before this: the cluster starts.
const QUIET_START: Duration = Duration::from_secs(2);

impl Nemesis {
    /// Begins quietly, and stops at `end`. A scenario with a gap of its own gets one fault at a time.
    pub fn new(seed: u64, scenario: Scenario, gap: Duration, end: Duration) -> Nemesis {
        let draw = Draw(Random::from_seed(seed ^ 0x6e65_6d65));
        let deliberate = scenario.gap();
        Nemesis {
            draw,
            faults: scenario.faults(),
            gap: deliberate.unwrap_or(gap),
            deliberate: deliberate.is_some(),
            steps_until: Duration::ZERO,
            next: QUIET_START,
            end,
            undo: Vec::new(),
            done: 0,
        }
    }

    /// What is due now.
    pub fn step(&mut self, world: &mut World) {
        self.bury_ended(world);
        let now = world.now();
        while let Some(due) = self.undo.iter().position(|(at, _)| *at <= now) {
            let (_, undo) = self.undo.remove(due);
            self.apply(undo, world);
        }
        if now >= self.next && now < self.end && !self.faults.is_empty() {
            let fault = *self.draw.one(self.faults).expect("not empty");
            if fault.has_steps() && now < self.steps_until {
                return;
            }
            if fault.has_steps() && !self.deliberate {
                self.steps_until = now + STEPS_TIME;
            }
            self.hit(fault, world);
            self.done += 1;
            self.next = match self.deliberate {
                true => now + self.gap.mul_f64(0.7) + self.draw.up_to(self.gap.mul_f64(0.6)),
                // Sometimes two at once.
                false if self.draw.chance(0.2) => now,
                false => now + self.draw.about(self.gap),
            };
        }
    }

    /// Takes everything back, at once.
    pub fn heal(&mut self, world: &mut World) {
        for (_, undo) in std::mem::take(&mut self.undo) {
            if let Undo::ReportDeath(_) = undo {
                self.apply(undo, world);
            }
        }
        world.heal();
    }

    fn later(&mut self, world: &World, after: Duration, undo: Undo) {
        self.undo.push((world.now() + after, undo));
    }

    /// Processes that ended by themselves are started again, as a service manager would.
    pub fn bury_ended(&mut self, world: &mut World) {
        let registry = world.setting.registry.clone();
        while let Some((name, _)) = registry.take_ended() {
            if !world.is_up(&name) {
                continue;
            }
            world.bury(&name);
            self.report_death(world, &name);
            let after = self.draw.up_to(RESTART_DELAY_MAX);
            self.later(world, after, Undo::Restart(name));
        }
    }

    /// The parent of a dead tablet server says so: at once, late, or never.
    fn report_death(&mut self, world: &World, name: &str) {
        if world.role(name) != Role::TabletServer {
            return;
        }
        let Some(nonce) = world.setting.registry.nonce(name) else { return };
        let after = match self.draw.below(4) {
            0 | 1 => Duration::from_millis(1),
            2 => self.draw.up_to(Duration::from_secs(12)),
            _ => return,
        };
        self.later(world, after, Undo::ReportDeath(nonce));
    }
}

impl Nemesis {
    fn apply(&mut self, undo: Undo, world: &mut World) {
        match undo {
            Undo::Block(links, time) => {
                let blocked = world.block(&links);
                self.later(world, time, Undo::Unblock(blocked));
            }
            Undo::BlockOnceReplaced(served, links, patience) => match self.still_serves(world, &served) {
                false => self.apply(Undo::Block(links, self.less_than_a_lease()), world),
                true if patience.is_zero() => {}
                true => {
                    let left = patience.saturating_sub(LOOK_EVERY);
                    self.later(world, LOOK_EVERY, Undo::BlockOnceReplaced(served, links, left));
                }
            },
            Undo::Crash(name) => {
                if world.is_up(&name) {
                    world.crash(&name);
                    let nonce = world.setting.registry.nonce(&name);
                    nonce.into_iter().for_each(|nonce| world.setting.registry.report_death(nonce));
                    let after = self.draw.up_to(RESTART_DELAY_MAX);
                    self.later(world, after, Undo::Restart(name));
                }
            }
            Undo::Hold(links, time) => {
                let held = world.hold(&links);
                self.later(world, time, Undo::Release(held));
            }
            Undo::HoldFirstMember(writer, log, time) => {
                if let Some(first) = logs::members_of_open_segment(world, log).first() {
                    let held = world.hold(&[(writer, first.clone())]);
                    self.later(world, time, Undo::Release(held));
                }
            }
            Undo::RestartOnceSealed(names, log, patience) => match logs::is_sealed(world, log) {
                true => {
                    for name in names {
                        world.crash(&name);
                        self.later(world, Duration::from_millis(1), Undo::Restart(name));
                    }
                }
                false if patience.is_zero() => {}
                false => {
                    let left = patience.saturating_sub(LOOK_EVERY);
                    self.later(world, LOOK_EVERY, Undo::RestartOnceSealed(names, log, left));
                }
            },
            Undo::PowerLoss(names, restart) => {
                for name in names {
                    world.power_loss(&name);
                    self.later(world, restart, Undo::Restart(name));
                }
            }
            Undo::Restart(name) => world.restart(&name),
            Undo::Unblock(links) => world.unblock(&links),
            Undo::Release(links) => world.release(&links),
            Undo::Latency(links) => {
                links.iter().for_each(|link| world.set_usual_latency(link));
            }
            Undo::Disk(name) => world.host(&name).disk().faults(|faults| *faults = Default::default()),
            Undo::Resume(name) => world.host(&name).pause().resume(),
            Undo::ReportDeath(nonce) => world.setting.registry.report_death(nonce),
            Undo::ReportDeathOfPredecessor(nonce, name, cut_off) => {
                self.report_predecessor(world, nonce, name, cut_off)
            }
        }
    }
}

/// Bytes of a disk that is full but for its reserve.
fn full_but_reserve(used: u64) -> u64 {
    used + DISK_RESERVE_BYTES / 2
}
