//! Each fault, done.

use std::time::Duration;

use uruk_base::disk::DiskFaults;

use super::{Fault, Nemesis, Undo, full_but_reserve};
use crate::cluster::Role;
use crate::world::{Link, World};

const SERVERS: [Role; 4] = [Role::Controller, Role::ChunkServer, Role::Master, Role::TabletServer];
pub(super) const STORAGE: [Role; 2] = [Role::Controller, Role::ChunkServer];

pub(super) const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl Nemesis {
    pub(super) fn hit(&mut self, fault: Fault, world: &mut World) {
        tracing::info!(?fault, "nemesis");
        match fault {
            Fault::Crash => self.crash(world, &SERVERS),
            Fault::CrashTabletServer => self.crash(world, &[Role::TabletServer]),
            Fault::CrashStorage => self.crash(world, &STORAGE),
            Fault::CrashMaster => self.crash(world, &[Role::Master]),
            Fault::PowerLoss => self.power_loss(world, &SERVERS),
            Fault::PowerLossOfStorage => self.power_loss(world, &STORAGE),
            Fault::PowerLossOfAll => {
                let spread = ms([50, 500, 4_000][self.draw.below(3) as usize]);
                for name in world.names(&SERVERS) {
                    world.power_loss(&name);
                    let after = self.draw.up_to(spread);
                    self.later(world, after, Undo::Restart(name));
                }
            }
            Fault::Partition => self.partition(world, Ways::Both),
            Fault::OneWay => self.partition(world, Ways::One),
            Fault::CutTabletServer => self.cut(world, &[Role::TabletServer]),
            Fault::CutStorage => self.cut(world, &STORAGE),
            Fault::CutMaster => self.cut(world, &[Role::Master]),
            Fault::Hold => {
                let links = self.between(world, Ways::Both);
                let held = world.hold(&links);
                self.until_later(world, ms(1_500), Undo::Release(held));
            }
            Fault::Reset => {
                if let Some(name) = self.draw.one(&world.everybody()) {
                    world.host(name).network().reset_all();
                }
            }
            Fault::SlowNetwork => {
                let links = self.between(world, Ways::One);
                let latency = ms([20, 100, 500][self.draw.below(3) as usize]);
                links.iter().for_each(|link| world.set_latency(link, latency));
                self.until_later(world, ms(3_000), Undo::Latency(links));
            }
            Fault::SlowDisk => {
                let (sync, access) = (self.draw.up_to(ms(200)), self.draw.up_to(ms(20)));
                self.disk(world, ms(5_000), |faults, _| (faults.sync_delay, faults.access_delay) = (sync, access));
            }
            Fault::StalledDisk => {
                let stall = self.draw.up_to(ms(6_000));
                self.disk(world, ms(1_000), |faults, _| (faults.sync_delay, faults.access_delay) = (stall, stall));
            }
            Fault::FullDisk => {
                self.disk(world, ms(3_000), |faults, used| faults.capacity_bytes = Some(full_but_reserve(used)));
            }
            Fault::DamagedDisk => self.damage(world),
            Fault::FlippedBit => self.flip_bit(world),
            Fault::Pause => self.pause(world, &SERVERS),
            Fault::PauseTabletServer => self.pause(world, &[Role::TabletServer]),
            Fault::PauseMaster => self.pause(world, &[Role::Master]),
            Fault::PlannedEnd => self.planned_end(world),
            Fault::LonelyLeader => self.lonely_leader(world),
            Fault::HoldReports => self.hold_reports(world),
            Fault::SlowCommits => self.slow_commits(world),
            Fault::LagThenKill => self.lag_then_kill(world),
            Fault::Unreadable => self.unreadable(world),
            Fault::LateDeath => self.late_death(world),
            Fault::Reshape => self.reshape(world),
            Fault::LostAnswer => self.lost_answer(world),
            Fault::LivingWriter => self.living_writer(world, false),
            Fault::LivingWriterRestarts => self.living_writer(world, true),
        }
    }

    fn until_later(&mut self, world: &World, mean: Duration, undo: Undo) {
        let after = self.draw.about(mean);
        self.later(world, after, undo);
    }

    fn crash(&mut self, world: &mut World, roles: &[Role]) {
        let running: Vec<String> = world.names(roles).into_iter().filter(|name| world.is_up(name)).collect();
        let Some(name) = self.draw.one(&running).cloned() else { return };
        world.crash(&name);
        self.report_death(world, &name);
        self.restart_sometime(world, name);
    }

    fn power_loss(&mut self, world: &mut World, roles: &[Role]) {
        let Some(name) = self.draw.one(&world.names(roles)).cloned() else { return };
        // The watching parent dies too: nobody reports anything.
        world.power_loss(&name);
        self.restart_sometime(world, name);
    }

    /// At once, later, or not before all is healed.
    fn restart_sometime(&mut self, world: &World, name: String) {
        let after = match self.draw.below(10) {
            0..=4 => self.draw.up_to(ms(50)),
            5..=8 => self.draw.up_to(ms(6_000)),
            _ => return,
        };
        self.later(world, after, Undo::Restart(name));
    }

    /// Links between some machines and some others.
    fn between(&self, world: &World, ways: Ways) -> Vec<Link> {
        let everybody = world.everybody();
        let some = self.draw.some(everybody.clone());
        let rest: Vec<String> = everybody.into_iter().filter(|name| !some.contains(name)).collect();
        let others = if self.draw.chance(0.5) { rest } else { self.draw.some(rest) };
        links(&some, &others, ways)
    }

    fn partition(&mut self, world: &mut World, ways: Ways) {
        let links = self.between(world, ways);
        let blocked = world.block(&links);
        self.until_later(world, ms(3_000), Undo::Unblock(blocked));
    }

    /// One machine is cut off from machines of one role, or of all.
    fn cut(&mut self, world: &mut World, roles: &[Role]) {
        let Some(name) = self.draw.one(&world.names(roles)).cloned() else { return };
        let groups: [&[Role]; 5] =
            [&[Role::Master], &[Role::TabletServer, Role::Client], &[Role::ChunkServer], &STORAGE, &SERVERS];
        let others = self.draw.one(&groups).expect("five");
        let others: Vec<String> = world.names(others).into_iter().filter(|other| *other != name).collect();
        let ways = if self.draw.chance(0.3) { Ways::One } else { Ways::Both };
        let blocked = world.block(&links(&[name], &others, ways));
        self.until_later(world, ms(3_500), Undo::Unblock(blocked));
    }

    fn disk(&mut self, world: &World, mean: Duration, change: impl FnOnce(&mut DiskFaults, u64)) {
        let Some(name) = self.draw.one(&world.names(&SERVERS)).cloned() else { return };
        let disk = world.host(&name).disk();
        let used = disk.files().iter().map(|(_, bytes)| bytes).sum();
        disk.faults(|faults| change(faults, used));
        tracing::info!(name, "fault: disk");
        self.until_later(world, mean, Undo::Disk(name));
    }

    /// The one machine whose disk may lose data.
    fn damage(&mut self, world: &World) {
        let name = format!("cs-{}", world.setting.plan.damaged);
        let which = self.draw.below(3);
        world.host(&name).disk().faults(|faults| match which {
            0 => faults.sync_errors = 1,
            1 => faults.read_error_chance = 0.05,
            _ => faults.write_error_chance = 0.05,
        });
        tracing::info!(name, which, "fault: disk errors");
        self.until_later(world, ms(1_500), Undo::Disk(name));
    }

    fn flip_bit(&mut self, world: &World) {
        let name = format!("cs-{}", world.setting.plan.damaged);
        let disk = world.host(&name).disk();
        let chunks: Vec<_> =
            disk.files().into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "chunk")).collect();
        let Some((path, bytes)) = self.draw.one(&chunks) else { return };
        let bit = self.draw.below((bytes * 8).max(1));
        tracing::info!(name, path = %path.display(), bit, "fault: flipped bit");
        if let Err(error) = disk.flip_bit(path, bit) {
            tracing::info!(%error, "no bit to flip");
        }
    }

    fn pause(&mut self, world: &World, roles: &[Role]) {
        let running: Vec<String> = world.names(roles).into_iter().filter(|name| world.is_up(name)).collect();
        let Some(name) = self.draw.one(&running).cloned() else { return };
        tracing::info!(name, "fault: paused");
        world.host(&name).pause().pause();
        let mean = ms([200, 2_000, 4_000][self.draw.below(3) as usize]);
        self.until_later(world, mean, Undo::Resume(name));
    }
}

/// In which directions.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ways {
    Both,
    One,
}

/// Links from each of some to each of others.
pub(super) fn links(from: &[String], to: &[String], ways: Ways) -> Vec<Link> {
    let forth = from.iter().flat_map(|a| to.iter().map(move |b| (a.clone(), b.clone())));
    let back = forth.clone().map(|(a, b)| (b, a)).filter(|_| ways == Ways::Both);
    forth.chain(back).collect()
}
