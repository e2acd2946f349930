//! Faults made of several steps: situations in which one safeguard alone keeps data safe.

use std::time::Duration;

use uruk_base::commit_log::LogId;
use uruk_proto::TabletId;

use super::hit::{STORAGE, Ways, links, ms};
use super::{Nemesis, ServedBy, Undo, logs};
use crate::cluster::Role;
use crate::workload::Reshaping;
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

    /// What each running tablet server serves, if anything.
    fn serving(&self, world: &World) -> Vec<(String, Vec<TabletId>)> {
        let now = world.now();
        let running = world.setting.registry.tablet_servers().into_iter().filter(|(host, _)| world.is_up(host));
        let served = running.map(|(host, server)| {
            let served = server.serving_at(world.host(&host).moment_at(now));
            (host, served.into_iter().map(|tablet| tablet.tablet).collect())
        });
        served.filter(|(_, tablets): &(String, Vec<TabletId>)| !tablets.is_empty()).collect()
    }

    /// For longer than an election, a lease and a recovery. The one tablet server that it still hears of hears
    /// of no other master, and, before its log is sealed, of no storage: nothing but its lease tells it to stop.
    pub(super) fn lonely_leader(&mut self, world: &mut World) {
        let masters = world.setting.registry.masters();
        let Some(leader) = masters.iter().find(|(_, master)| master.is_leader()).map(|(name, _)| name.clone()) else {
            return;
        };
        let serving = self.serving(world);
        let Some((friend, _)) = serving.into_iter().max_by_key(|(_, tablets)| tablets.len()) else { return };
        let others = world.names(&[Role::Master, Role::TabletServer]);
        let others: Vec<String> = others.into_iter().filter(|name| *name != leader && *name != friend).collect();
        let rivals: Vec<String> = world.names(&[Role::Master]).into_iter().filter(|name| *name != leader).collect();
        tracing::info!(leader, friend, "fault: a lonely leader");
        let mut cut = links(&[leader], &others, Ways::Both);
        cut.extend(links(std::slice::from_ref(&friend), &rivals, Ways::Both));
        let blocked = world.block(&cut);
        let after = self.time_in(ms(9_000), ms(11_000));
        self.later(world, after, Undo::Unblock(blocked));
        let storage = links(&[friend], &world.names(&STORAGE), Ways::Both);
        let begin = self.time_in(ms(1_500), ms(2_500));
        self.later(world, begin, Undo::Block(storage, after - begin));
    }

    /// A tablet server is killed, and nobody says so. Its successor starts at once, and has tablets when the
    /// silence has lasted for a lease. Then comes the word of the first one's end.
    pub(super) fn late_death(&mut self, world: &mut World) {
        let serving = self.serving(world);
        let Some((name, _)) = self.draw.one(&serving).cloned() else { return };
        let Some(nonce) = world.setting.registry.nonce(&name) else { return };
        tracing::info!(name, nonce, "fault: a late word of a death");
        world.crash(&name);
        let start = self.draw.up_to(ms(50));
        self.later(world, start, Undo::Restart(name.clone()));
        let (after, cut_off) = (self.time_in(ms(4_500), ms(6_500)), self.time_in(ms(1_700), ms(2_500)));
        self.later(world, after, Undo::ReportDeathOfPredecessor(nonce, name, cut_off));
    }

    /// The successor does not hear what is made of this, neither from the masters nor from its log.
    pub(super) fn report_predecessor(&mut self, world: &mut World, nonce: u64, name: String, cut_off: Duration) {
        let others = world.names(&[Role::Master, Role::Controller, Role::ChunkServer]);
        let blocked = world.block(&links(&[name], &others, Ways::Both));
        self.later(world, cut_off, Undo::Unblock(blocked));
        world.setting.registry.report_death(nonce);
    }

    /// One of the workload's clients does it, and soon after that something goes wrong: an order, an answer or
    /// a report is lost or late, somebody dies, or what is to be flushed is slow.
    pub(super) fn reshape(&mut self, world: &mut World) {
        let serving = self.serving(world);
        let Some((host, tablets)) = self.draw.one(&serving).cloned() else { return };
        let Some(tablet) = self.draw.one(&tablets).copied() else { return };
        let work = [Reshaping::Split, Reshaping::Split, Reshaping::Merge, Reshaping::Move, Reshaping::Two];
        let work = work[self.draw.below(5) as usize];
        let which = self.draw.below(8);
        tracing::info!(host, %tablet, ?work, which, "fault: a tablet changes its shape");
        world.setting.shared.ask(tablet, work);
        let masters = world.names(&[Role::Master]);
        let soon = self.draw.up_to(ms([20, 100, 400][self.draw.below(3) as usize]));
        match which {
            0 | 1 => {
                let time = self.less_than_a_lease();
                self.later(world, soon, Undo::Block(links(&masters, &[host], Ways::One), time));
            }
            2 => {
                let time = self.time_in(ms(1_100), ms(2_500));
                self.later(world, soon, Undo::Block(links(&[host], &masters, Ways::One), time));
            }
            3 => {
                let time = self.time_in(ms(200), ms(2_500));
                self.later(world, soon, Undo::Hold(links(&[host], &masters, Ways::One), time));
            }
            4 => self.later(world, soon, Undo::Crash(host)),
            5 => {
                let leader = world.setting.registry.masters().into_iter().find(|(_, master)| master.is_leader());
                leader.into_iter().for_each(|(name, _)| self.later(world, soon, Undo::Crash(name)));
            }
            6 => {
                let delay = self.time_in(ms(20), ms(250));
                for name in world.names(&[Role::ChunkServer]) {
                    world.host(&name).disk().faults(|faults| faults.sync_delay = delay);
                    self.later(world, ms(2_000), Undo::Disk(name));
                }
            }
            _ => {
                let held = links(&[host], &world.names(&[Role::ChunkServer]), Ways::One);
                let time = self.time_in(ms(50), ms(800));
                self.later(world, soon / 4, Undo::Hold(held, time));
            }
        }
    }

    /// Longer than an order or a report may take.
    pub(super) fn less_than_a_lease(&self) -> Duration {
        self.time_in(ms(2_100), ms(2_900))
    }

    /// The halves, or what two tablets became, are the masters' before their server knows.
    pub(super) fn lost_answer(&mut self, world: &mut World) {
        let Some((host, tablets)) = self.draw.one(&self.serving(world)).cloned() else { return };
        let Some(tablet) = self.draw.one(&tablets).copied() else { return };
        let work = [Reshaping::Split, Reshaping::Split, Reshaping::Merge];
        let work = work[self.draw.below(work.len() as u64) as usize];
        tracing::info!(host, %tablet, ?work, "fault: an answer is lost");
        world.setting.shared.ask(tablet, work);
        let answers = links(&world.names(&[Role::Master]), std::slice::from_ref(&host), Ways::One);
        self.later(world, ms(1), Undo::BlockOnceReplaced(ServedBy { host, tablet }, answers, ms(3_000)));
    }

    /// A tablet whose change has been asked for is no longer served once the masters are told to replace it.
    pub(super) fn still_serves(&self, world: &World, served: &ServedBy) -> bool {
        self.serving(world).iter().any(|(host, tablets)| *host == served.host && tablets.contains(&served.tablet))
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
