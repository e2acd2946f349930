//! What decisions about the shape and the places of tablets are made from: all rows as they are at one moment.
//!
//! They look at every row, and nobody waits for them: a survey shares the rows with the state, and is taken in far
//! less time than it is looked at. Indexes are not in it; what is missing is counted on the way.

use std::collections::BTreeMap;

use uruk_proto::{ServerId, TabletId};

use super::State;
use super::meta::Meta;
use super::procedures::Procedures;
use super::row::MetaRow;
use super::servers::Servers;
use super::tables::Tables;

/// The committed state, as far as decisions need it.
#[derive(Clone, Debug)]
pub struct Survey {
    pub servers: Servers,
    pub tables: Tables,
    pub meta: Meta,
    pub procedures: Procedures,
    /// How many there are.
    pub tablets: usize,
    /// Of the tablets that a running procedure has.
    owners: BTreeMap<TabletId, ServerId>,
}

impl State {
    /// Everything as it is now.
    pub fn survey(&self) -> Survey {
        let keys = self.procedures.running().values().flat_map(|procedure| procedure.work.keys());
        let owner = |tablet| Some((tablet, self.row(tablet)?.owner()?));
        Survey {
            servers: self.servers.clone(),
            tables: self.tables.clone(),
            meta: self.meta.clone(),
            procedures: self.procedures.clone(),
            tablets: self.index.tablets(),
            owners: keys.filter_map(|key| owner(key.tablet)).collect(),
        }
    }
}

impl Survey {
    /// Where a tablet is that a running procedure has.
    pub fn owner_in_procedure(&self, tablet: TabletId) -> Option<ServerId> {
        self.owners.get(&tablet).copied()
    }

    /// See [`State::wanted_at`].
    pub fn wanted_at(&self, row: &MetaRow) -> Option<ServerId> {
        let procedure = self.procedures.running().get(&row.procedure?)?;
        procedure.work.wants_at(row.tablet, |tablet| self.owner_in_procedure(tablet))
    }
}
