//! The simulation from outside: what can be done to machines and to the network between them.
//!
//! Invariants: (1) a link is blocked as long as anybody who blocked it has not healed it; (2) a crashed
//! process's old handles change nothing on its disk; (3) a client is never crashed: it is the witness.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use turmoil::Sim;
use uruk_base::disk::DiskFaults;

use crate::cluster::{self, Machine, Role, Setting};
use crate::host::Host;

/// A one-way link: from, to.
pub type Link = (String, String);

/// The simulated cluster and the network around it.
pub struct World {
    sim: Sim<'static>,
    /// What the processes were told.
    pub setting: Arc<Setting>,
    machines: BTreeMap<String, Machine>,
    up: BTreeSet<String>,
    blocked: BTreeMap<Link, usize>,
    held: BTreeSet<Link>,
    slow: BTreeSet<Link>,
    /// Links that once had an exact latency: they always have one from then on.
    exact: BTreeSet<Link>,
}

impl World {
    /// A cluster whose processes are about to start.
    pub fn new(mut sim: Sim<'static>, setting: Arc<Setting>) -> World {
        let machines: BTreeMap<String, Machine> = cluster::build(&mut sim, &setting)
            .into_iter()
            .map(|machine| (machine.host.name().to_owned(), machine))
            .collect();
        let up = machines.keys().cloned().collect();
        World {
            sim,
            setting,
            machines,
            up,
            blocked: BTreeMap::new(),
            held: BTreeSet::new(),
            slow: BTreeSet::new(),
            exact: BTreeSet::new(),
        }
    }

    /// One tick of simulated time.
    pub fn step(&mut self) -> Result<()> {
        self.sim.step().map_err(|error| anyhow::anyhow!("{error}"))?;
        crate::trace::set_time_outside(self.sim.elapsed());
        Ok(())
    }

    /// True time.
    pub fn now(&self) -> Duration {
        self.sim.elapsed()
    }

    /// Names of the machines with one of these roles.
    pub fn names(&self, roles: &[Role]) -> Vec<String> {
        let of_role = self.machines.iter().filter(|(_, machine)| roles.contains(&machine.role));
        of_role.map(|(name, _)| name.clone()).collect()
    }

    /// Every machine that faults may hit, clients included.
    pub fn everybody(&self) -> Vec<String> {
        self.names(&[Role::Controller, Role::ChunkServer, Role::Master, Role::TabletServer, Role::Client])
    }

    /// What a machine is.
    pub fn role(&self, name: &str) -> Role {
        self.machines[name].role
    }

    /// A machine's disk, clock and network.
    pub fn host(&self, name: &str) -> &Host {
        &self.machines[name].host
    }

    /// Whether a process runs there.
    pub fn is_up(&self, name: &str) -> bool {
        self.up.contains(name)
    }

    /// Machines whose process does not run.
    pub fn down(&self) -> Vec<String> {
        self.machines.keys().filter(|name| !self.up.contains(*name)).cloned().collect()
    }

    // -------------------------------------------------------------- processes

    /// Kills a process; the machine runs on, and says goodbye for it.
    pub fn crash(&mut self, name: &str) {
        if !self.up.remove(name) {
            return;
        }
        tracing::info!(name, "fault: process killed");
        self.host(name).pause().resume();
        self.sim.crash(name);
        self.host(name).disk().process_crash();
    }

    /// Asks a tablet server to give up its tablets and end.
    pub fn plan_end(&self, name: &str) {
        tracing::info!(name, "fault: planned end");
        self.setting.registry.planned_end(name).notify_waiters();
    }

    /// The machine loses power: the network goes first, so that nobody hears a farewell.
    pub fn power_loss(&mut self, name: &str) {
        tracing::info!(name, "fault: power loss");
        self.host(name).pause().resume();
        let links = self.links_of(name);
        self.release(&links.iter().filter(|link| self.held.contains(*link)).cloned().collect::<Vec<_>>());
        self.block(&links);
        if self.up.remove(name) {
            self.sim.crash(name);
        }
        self.host(name).disk().power_loss();
        self.unblock(&links);
    }

    /// Starts the process of a machine that has none.
    pub fn restart(&mut self, name: &str) {
        if self.up.insert(name.to_owned()) {
            self.sim.bounce(name);
        }
    }

    /// A process has ended by itself: its machine cleans up.
    pub fn bury(&mut self, name: &str) {
        if self.up.remove(name) {
            self.sim.crash(name);
            self.host(name).disk().process_crash();
        }
    }

    // ---------------------------------------------------------------- network

    fn links_of(&self, name: &str) -> Vec<Link> {
        let others = self.machines.keys().filter(|other| *other != name);
        others.flat_map(|other| [(name.to_owned(), other.clone()), (other.clone(), name.to_owned())]).collect()
    }

    /// Nothing passes on these links any more. Returns those that were blocked: held ones stay as they are.
    pub fn block(&mut self, links: &[Link]) -> Vec<Link> {
        let free = links.iter().filter(|link| !self.held.contains(*link)).cloned().collect::<Vec<_>>();
        for link in &free {
            *self.blocked.entry(link.clone()).or_insert(0) += 1;
            self.sim.partition_oneway(link.0.as_str(), link.1.as_str());
        }
        free
    }

    /// Takes back one [`World::block`] of each.
    pub fn unblock(&mut self, links: &[Link]) {
        for link in links {
            let Some(count) = self.blocked.get_mut(link) else { continue };
            *count -= 1;
            if *count == 0 {
                self.blocked.remove(link);
                self.sim.repair_oneway(link.0.as_str(), link.1.as_str());
            }
        }
    }

    /// Messages on these links wait, in both directions. Returns those that were free.
    pub fn hold(&mut self, links: &[Link]) -> Vec<Link> {
        let mut taken = Vec::new();
        for (from, to) in links {
            let both = [(from.clone(), to.clone()), (to.clone(), from.clone())];
            if both.iter().any(|link| self.held.contains(link) || self.blocked.contains_key(link)) {
                continue;
            }
            self.sim.hold(from.as_str(), to.as_str());
            self.held.extend(both.clone());
            taken.extend(both);
        }
        taken
    }

    /// What was held is delivered.
    pub fn release(&mut self, links: &[Link]) {
        for link in links {
            let back = (link.1.clone(), link.0.clone());
            if self.held.remove(link) {
                self.held.remove(&back);
                self.sim.release(link.0.as_str(), link.1.as_str());
            }
        }
    }

    /// Messages on this link, in both directions, take up to this long.
    pub fn set_latency(&mut self, link: &Link, max: Duration) {
        self.sim.set_link_max_message_latency(link.0.as_str(), link.1.as_str(), max);
        self.slow.insert(link.clone());
    }

    /// Messages on this link, in both directions, take just this long.
    pub fn set_delay(&mut self, link: &Link, delay: Duration) {
        self.sim.set_link_latency(link.0.as_str(), link.1.as_str(), delay);
        self.slow.insert(link.clone());
        self.exact.insert(link.clone());
    }

    /// Messages on this link are as fast as they usually are.
    pub fn set_usual_latency(&mut self, link: &Link) {
        let latency = self.setting.plan.latency;
        let back = (link.1.clone(), link.0.clone());
        match self.exact.contains(link) || self.exact.contains(&back) {
            true => self.sim.set_link_latency(link.0.as_str(), link.1.as_str(), latency),
            false => self.sim.set_link_max_message_latency(link.0.as_str(), link.1.as_str(), latency),
        }
    }

    // ------------------------------------------------------------------- all

    /// Everything is good again: processes run, messages pass, disks work.
    pub fn heal(&mut self) {
        let blocked: Vec<Link> = std::mem::take(&mut self.blocked).into_keys().collect();
        for (from, to) in blocked {
            self.sim.repair_oneway(from.as_str(), to.as_str());
        }
        let held: Vec<Link> = self.held.iter().cloned().collect();
        self.release(&held);
        for link in std::mem::take(&mut self.slow) {
            self.set_usual_latency(&link);
        }
        for machine in self.machines.values() {
            machine.host.disk().faults(|faults| *faults = DiskFaults::default());
            machine.host.pause().resume();
        }
        for name in self.down() {
            self.restart(&name);
        }
        tracing::info!("healed");
    }
}
