//! Tablet servers: one [`Server`] per incarnation.
//!
//! Invariant: a nonce is bound to at most one server for as long as it is remembered, and a nonce
//! that was reported dead is never bound.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use uruk_base::planted::{Planted, is_planted};
use uruk_proto::ServerId;

use super::row::{CloseKind, MetaRow, TabletState};
use super::{Applied, State};
use crate::command::{Reason, Refusal, Registration, Reply};

/// Dead servers kept for display and for late reports that name their nonce.
const DEAD_SERVERS_KEPT: usize = 200;
/// Dead nonces kept; a launch that registers after so many others died would come back from the dead
/// for one lease.
const DEAD_NONCES_KEPT: usize = 10_000;

/// One incarnation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Server {
    pub id: ServerId,
    pub registration: Registration,
    pub registered_micros: i64,
    pub life: Life,
}

/// Whether an incarnation goes on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Life {
    Live,
    Dead { how: String, noticed_micros: i64 },
}

/// All servers that are remembered.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Servers {
    by_id: BTreeMap<ServerId, Server>,
    by_nonce: BTreeMap<u64, ServerId>,
    live: BTreeSet<ServerId>,
    /// Oldest first.
    dead: VecDeque<ServerId>,
    dead_nonces: BTreeSet<u64>,
    /// The same, oldest first.
    dead_nonces_in_order: VecDeque<u64>,
    /// Live ones that are to be left by their tablets.
    draining: BTreeSet<ServerId>,
    /// The largest report number that each live server has named in a command.
    told: BTreeMap<ServerId, u64>,
}

impl Servers {
    pub fn get(&self, server: ServerId) -> Option<&Server> {
        self.by_id.get(&server)
    }

    pub fn is_live(&self, server: ServerId) -> bool {
        self.live.contains(&server)
    }

    pub fn live(&self) -> &BTreeSet<ServerId> {
        &self.live
    }

    /// Whether it is to be left by its tablets, by command.
    pub fn is_draining(&self, server: ServerId) -> bool {
        self.draining.contains(&server)
    }

    /// Those that are to be left by their tablets, by command.
    pub fn draining(&self) -> &BTreeSet<ServerId> {
        &self.draining
    }

    /// The largest report number that a live server has named in a command, if any: older reports do not list
    /// all files that it reads.
    pub fn told(&self, server: ServerId) -> Option<u64> {
        self.told.get(&server).copied()
    }

    pub(super) fn tell(&mut self, server: ServerId, report_number: u64) {
        if self.is_live(server) {
            let told = self.told.entry(server).or_default();
            *told = report_number.max(*told);
        }
    }

    /// Live ones, and the dead that are remembered.
    pub fn all(&self) -> impl Iterator<Item = &Server> {
        self.by_id.values()
    }

    /// Where a live server listens.
    pub fn address(&self, server: ServerId) -> Option<&str> {
        let server = self.by_id.get(&server).filter(|server| server.life == Life::Live)?;
        Some(&server.registration.address)
    }

    /// The newest incarnation at the address of this one.
    fn newest_there(&self, id: ServerId) -> ServerId {
        let address = |server: &Server| server.registration.address.clone();
        let there = self.by_id.get(&id).map(address);
        self.by_id.values().rev().find(|server| Some(address(server)) == there).map_or(id, |server| server.id)
    }

    fn add(&mut self, server: Server) {
        self.by_nonce.insert(server.registration.nonce, server.id);
        self.live.insert(server.id);
        self.by_id.insert(server.id, server);
    }

    fn kill(&mut self, id: ServerId, how: String, noticed_micros: i64) {
        self.live.remove(&id);
        self.draining.remove(&id);
        self.told.remove(&id);
        self.dead.push_back(id);
        self.by_id.get_mut(&id).expect("the caller checked that it lives").life = Life::Dead { how, noticed_micros };
        while self.dead.len() > DEAD_SERVERS_KEPT {
            let oldest = self.dead.pop_front().expect("it is longer than the limit");
            let server = self.by_id.remove(&oldest).expect("the dead are remembered in both places");
            self.by_nonce.remove(&server.registration.nonce);
            self.refuse_nonce(server.registration.nonce);
        }
    }

    fn refuse_nonce(&mut self, nonce: u64) {
        if self.dead_nonces.insert(nonce) {
            self.dead_nonces_in_order.push_back(nonce);
        }
        while self.dead_nonces_in_order.len() > DEAD_NONCES_KEPT {
            let oldest = self.dead_nonces_in_order.pop_front().expect("it is longer than the limit");
            self.dead_nonces.remove(&oldest);
        }
    }
}

impl State {
    pub(super) fn register(&mut self, registration: Registration, micros: i64) -> Applied {
        let nonce = registration.nonce;
        if let Some(id) = self.servers.by_nonce.get(&nonce) {
            self.require_live(*id)?;
            return Ok(Reply::Registered(*id));
        }
        if self.servers.dead_nonces.contains(&nonce) {
            return Err(Refusal::new(Reason::Fenced, format!("launch {nonce:016x} was reported dead")));
        }
        let id = self.ids.server();
        self.servers.add(Server { id, registration, registered_micros: micros, life: Life::Live });
        Ok(Reply::Registered(id))
    }

    pub(super) fn set_draining(&mut self, server: ServerId, draining: bool) -> Applied {
        if !self.servers.is_live(server) {
            return Err(Refusal::new(Reason::NotFound, format!("{server} does not live")));
        }
        match draining {
            true => self.servers.draining.insert(server),
            false => self.servers.draining.remove(&server),
        };
        Ok(Reply::Done)
    }

    pub(super) fn report_death(&mut self, nonce: u64, how: String, micros: i64) -> Applied {
        match self.servers.by_nonce.get(&nonce).copied() {
            Some(id) => {
                let id = if is_planted(Planted::DeathHitsSuccessor) { self.servers.newest_there(id) } else { id };
                self.declare_dead(id, how, None, micros)
            }
            None => {
                self.servers.refuse_nonce(nonce);
                Ok(Reply::Done)
            }
        }
    }

    /// Its tablets are nobody's from now on, and wait for its log; its recovery begins.
    pub(super) fn declare_dead(
        &mut self,
        server: ServerId,
        how: String,
        last_heard_micros: Option<i64>,
        micros: i64,
    ) -> Applied {
        if !self.servers.is_live(server) {
            return Ok(Reply::Done);
        }
        self.servers.kill(server, how.clone(), micros);
        let rows: Vec<&MetaRow> = self.index.owned(server).filter_map(|tablet| self.row(tablet)).collect();
        let discarded = |row: &&MetaRow| matches!(row.state, TabletState::Closing(_, CloseKind::Discard));
        let (gone, lost): (Vec<_>, Vec<_>) = rows.into_iter().partition(discarded);
        let gone: Vec<_> = gone.into_iter().map(|row| row.tablet).collect();
        let lost: Vec<_> = lost.into_iter().map(|row| row.tablet).collect();
        self.recoveries.begin(server, how, last_heard_micros, micros, &lost);
        self.confirm_all_schemas(server);
        for tablet in lost {
            self.lose_ground(tablet, || format!("{server} died"), Some(micros));
            self.change_row(tablet, |row| row.state = TabletState::Unassigned);
        }
        // Of a deleted table's tablet nothing is kept: its owner's death is as good as its release.
        for tablet in gone {
            self.remove_row(tablet);
        }
        Ok(Reply::Done)
    }
}
