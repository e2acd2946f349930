//! What the simulation knows of the processes inside it: an observer outside of simulated time.
//!
//! Processes put themselves in; they vanish from here when they are dropped, as a crash does.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Notify;
use uruk_dfs_sim::controller::Controller;
use uruk_master::Master;
use uruk_tabletserver::server::TabletServer;

/// Handle on the observations. Clones mean the same run.
#[derive(Clone, Default)]
pub struct Registry(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    tablet_servers: BTreeMap<String, Weak<TabletServer>>,
    masters: BTreeMap<String, Weak<Master>>,
    controllers: BTreeMap<String, Weak<Controller>>,
    nonces: BTreeMap<String, u64>,
    ended: VecDeque<(String, String)>,
    clients: BTreeMap<String, Progress>,
    reports: VecDeque<u64>,
    may_verify: bool,
    planned_ends: BTreeMap<String, Arc<Notify>>,
}

/// How far a client is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Its workloads run.
    Running,
    /// They have ended as they were asked to.
    Ran,
    /// It has read everything back.
    Verified,
    /// It cannot go on.
    Failed(String),
}

impl Registry {
    /// A tablet server runs on this host.
    pub fn tablet_server(&self, host: &str, server: &Arc<TabletServer>) {
        self.0.lock().tablet_servers.insert(host.to_owned(), Arc::downgrade(server));
    }

    /// The tablet servers that run, by host.
    pub fn tablet_servers(&self) -> Vec<(String, Arc<TabletServer>)> {
        let inner = self.0.lock();
        inner.tablet_servers.iter().filter_map(|(host, server)| Some((host.clone(), server.upgrade()?))).collect()
    }

    /// A master runs on this host.
    pub fn master(&self, host: &str, master: &Arc<Master>) {
        self.0.lock().masters.insert(host.to_owned(), Arc::downgrade(master));
    }

    /// The masters that run, by host.
    pub fn masters(&self) -> Vec<(String, Arc<Master>)> {
        let inner = self.0.lock();
        inner.masters.iter().filter_map(|(host, master)| Some((host.clone(), master.upgrade()?))).collect()
    }

    /// A controller runs on this host.
    pub fn controller(&self, host: &str, controller: &Arc<Controller>) {
        self.0.lock().controllers.insert(host.to_owned(), Arc::downgrade(controller));
    }

    /// The controllers that run, by host.
    pub fn controllers(&self) -> Vec<(String, Arc<Controller>)> {
        let inner = self.0.lock();
        inner.controllers.iter().filter_map(|(host, one)| Some((host.clone(), one.upgrade()?))).collect()
    }

    /// A launch of a tablet server on this host has this nonce.
    pub fn launched(&self, host: &str, nonce: u64) {
        self.0.lock().nonces.insert(host.to_owned(), nonce);
    }

    /// The nonce of the newest launch on this host.
    pub fn nonce(&self, host: &str) -> Option<u64> {
        self.0.lock().nonces.get(host).copied()
    }

    /// What wakes the process on this host when its end is planned.
    pub fn planned_end(&self, host: &str) -> Arc<Notify> {
        self.0.lock().planned_ends.entry(host.to_owned()).or_default().clone()
    }

    /// A process has ended on its own.
    pub fn ended(&self, host: &str, why: String) {
        tracing::info!(host, why, "process ends");
        self.0.lock().ended.push_back((host.to_owned(), why));
    }

    /// The next process that ended on its own, and why.
    pub fn take_ended(&self) -> Option<(String, String)> {
        self.0.lock().ended.pop_front()
    }

    /// A client has come so far.
    pub fn progress(&self, host: &str, progress: Progress) {
        self.0.lock().clients.insert(host.to_owned(), progress);
    }

    /// How far every client is.
    pub fn clients(&self) -> BTreeMap<String, Progress> {
        self.0.lock().clients.clone()
    }

    /// Everything serves: from now on it may be read back.
    pub fn allow_verification(&self) {
        self.0.lock().may_verify = true;
    }

    /// Whether it may be read back.
    pub fn may_verify(&self) -> bool {
        self.0.lock().may_verify
    }

    /// Asks the watching parents to report the end of this launch.
    pub fn report_death(&self, nonce: u64) {
        self.0.lock().reports.push_back(nonce);
    }

    /// The next launch whose end is to be reported.
    pub fn take_report(&self) -> Option<u64> {
        self.0.lock().reports.pop_front()
    }
}
