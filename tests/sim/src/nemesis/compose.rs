//! Faults made of several steps: situations in which one safeguard alone keeps data safe.

use std::time::Duration;

use uruk_base::commit_log::LogId;

use super::hit::{STORAGE, Ways, links, ms};
use super::{Nemesis, Undo, logs};
use crate::cluster::Role;
use crate::world::World;

impl Nemesis {
    /// One that runs.
    fn running(&self, world: &World, role: Role) -> Option<String> {
        let running: Vec<String> = world.names(&[role]).into_iter().filter(|name| world.is_up(name)).collect();
        self.draw.one(&running).cloned()
    }

    fn time_in(&self, least: Duration, most: Duration) -> Duration {
        least + self.draw.up_to(most - least)
    }

    pub(super) fn planned_end(&mut self, world: &World) {
        let Some(name) = self.running(world, Role::TabletServer) else { return };
        world.plan_end(&name);
    }

    /// For longer than an election and a lease. Whom it still hears of, it could go on granting leases to.
    pub(super) fn lonely_leader(&mut self, world: &mut World) {
        let masters = world.setting.registry.masters();
        let Some(leader) = masters.iter().find(|(_, master)| master.is_leader()).map(|(name, _)| name.clone()) else {
            return;
        };
        let Some(friend) = self.running(world, Role::TabletServer) else { return };
        let others = world.names(&[Role::Master, Role::TabletServer]);
        let others: Vec<String> = others.into_iter().filter(|name| *name != leader && *name != friend).collect();
        tracing::info!(leader, friend, "fault: a lonely leader");
        let blocked = world.block(&links(&[leader], &others, Ways::Both));
        let after = self.time_in(ms(5_000), ms(10_000));
        self.later(world, after, Undo::Unblock(blocked));
    }

    /// It has tablets to open or to release at that time, at times.
    pub(super) fn hold_reports(&mut self, world: &mut World) {
        let Some(name) = self.running(world, Role::TabletServer) else { return };
        let links = links(std::slice::from_ref(&name), &world.names(&[Role::Master]), Ways::One);
        let begin = self.draw.up_to(ms(600));
        let time = self.time_in(ms(3_200), ms(9_000));
        tracing::info!(name, "fault: late reports");
        match self.draw.below(3) {
            0 => world.plan_end(&name),
            1 => {
                let others = world.names(&[Role::TabletServer]).into_iter().filter(|other| *other != name);
                let others: Vec<String> = others.filter(|other| world.is_up(other)).collect();
                if let Some(other) = self.draw.one(&others) {
                    self.later(world, Duration::ZERO, Undo::Crash(other.clone()));
                }
            }
            _ => {}
        }
        self.later(world, begin, Undo::Hold(links, time));
    }

    /// Not for so long that it costs a lease.
    pub(super) fn slow_commits(&mut self, world: &mut World) {
        let Some(name) = self.running(world, Role::TabletServer) else { return };
        let held = world.hold(&links(&[name], &world.names(&[Role::Master]), Ways::One));
        let time = self.time_in(ms(200), ms(1_500));
        self.later(world, time, Undo::Release(held));
    }

    /// A replica is behind what the two others acknowledged; one of those may be gone, too.
    pub(super) fn lag_then_kill(&mut self, world: &mut World) {
        let Some(writer) = self.running(world, Role::TabletServer) else { return };
        let Some(behind) = self.running(world, Role::ChunkServer) else { return };
        tracing::info!(writer, behind, "fault: a replica lags, then its writer is killed");
        let time = self.time_in(ms(50), ms(700));
        if self.draw.chance(0.5) {
            let blocked = world.block(&links(std::slice::from_ref(&writer), &[behind], Ways::Both));
            self.later(world, time + ms(50), Undo::Unblock(blocked));
        } else {
            let held = world.hold(&links(std::slice::from_ref(&writer), &[behind], Ways::One));
            self.later(world, time + ms(2_000), Undo::Release(held));
        }
        self.later(world, time, Undo::Crash(writer));
        if self.draw.chance(0.3)
            && let Some(other) = self.running(world, Role::ChunkServer)
        {
            let down = self.draw.up_to(ms(1_000));
            self.later(world, time, Undo::PowerLoss(vec![other], down));
        }
    }

    /// What it should open goes elsewhere, unless it can be read soon.
    pub(super) fn unreadable(&mut self, world: &mut World) {
        let Some(dead) = self.running(world, Role::TabletServer) else { return };
        let others: Vec<String> = world.names(&[Role::TabletServer]).into_iter().filter(|name| *name != dead).collect();
        let Some(blind) = self.draw.one(&others).cloned() else { return };
        tracing::info!(dead, blind, "fault: a tablet server cannot read");
        let blocked = world.block(&links(&[blind], &world.names(&[Role::ChunkServer]), Ways::Both));
        let after = self.time_in(ms(1_500), ms(6_000));
        self.later(world, after, Undo::Unblock(blocked));
        self.later(world, Duration::ZERO, Undo::Crash(dead));
    }

    /// A tablet server that serves, mostly the one that has written most of late, and its log.
    fn writer(&self, world: &World) -> Option<(String, LogId)> {
        let now = world.now();
        let servers = world.setting.registry.tablet_servers().into_iter();
        let serving = servers.filter(|(host, server)| {
            world.is_up(host) && !server.serving_at(world.host(host).moment_at(now)).is_empty()
        });
        let all: Vec<(String, LogId)> = serving.map(|(host, server)| (host, LogId(server.server_id().0))).collect();
        let busiest = all.iter().max_by_key(|(_, log)| logs::kept_bytes(world, *log));
        if self.draw.chance(0.8) { busiest.cloned() } else { self.draw.one(&all).cloned() }
    }

    /// Its lease runs on by its own clock, long after the masters had its log sealed. What it appends in the
    /// meantime may wait in the network, or for a disk; members may restart; the sealing may be slow.
    pub(super) fn living_writer(&mut self, world: &mut World, restarts: bool) {
        let Some((writer, log)) = self.writer(world) else { return };
        tracing::info!(writer, "fault: a writer lives on");
        let masters = world.names(&[Role::Master]);
        let members = world.names(&[Role::ChunkServer]);
        let controllers = world.names(&[Role::Controller]);
        let blocked = world.block(&links(std::slice::from_ref(&writer), &masters, Ways::Both));
        let time = self.time_in(ms(4_500), ms(6_500));
        self.later(world, time, Undo::Unblock(blocked));
        if restarts {
            // A segment that it asked for is fenced, and sealed, before it hears of it. Then all that its
            // members know of the fence is what is on their disks. They are killed, which their peers notice: a
            // connection that nobody knows to be broken costs another segment.
            let delay = self.time_in(ms(250), ms(420));
            let slow = links(&[writer], &controllers, Ways::One);
            slow.iter().for_each(|link| world.set_delay(link, delay));
            self.later(world, time, Undo::Latency(slow));
            self.later(world, ms(1_000), Undo::RestartOnceSealed(members, log, ms(3_500)));
            return;
        }
        let which = self.draw.below(6);
        tracing::info!(writer, which, "it writes on");
        match which {
            0 => {
                let begin = self.time_in(ms(900), ms(2_200));
                let length = self.time_in(ms(600), ms(2_000));
                let held = if self.draw.chance(0.5) { members } else { self.draw.some(members) };
                self.later(world, begin, Undo::Hold(links(&[writer], &held, Ways::One), length));
            }
            1 | 5 => {
                let delay = self.time_in(ms(20), ms(150));
                for name in members {
                    world.host(&name).disk().faults(|faults| faults.sync_delay = delay);
                    self.later(world, time, Undo::Disk(name));
                }
            }
            2 => {
                // It does not hear that one member is fenced, and the seal takes its time.
                let delay = self.time_in(ms(20), ms(200));
                let slow = links(&masters, &controllers, Ways::One);
                slow.iter().for_each(|link| world.set_latency(link, delay));
                self.later(world, time, Undo::Latency(slow));
                let begin = self.time_in(ms(900), ms(1_700));
                self.later(world, begin, Undo::HoldFirstMember(writer, log, ms(2_000)));
            }
            _ => {
                let slow = links(&masters, &world.names(&STORAGE), Ways::One);
                slow.iter().for_each(|link| world.set_latency(link, ms(400)));
                self.later(world, time, Undo::Latency(slow));
            }
        }
    }
}
