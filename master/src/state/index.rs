//! What can be computed from the rows, kept at hand. Not in snapshots: rebuilt from the rows.
//!
//! Invariant: after every command the index equals [`Index::of`] all rows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use uruk_proto::{ServerId, TableId, TabletId};

use super::row::{MetaRow, RowKey, TabletState};

type TabletsByServer = BTreeMap<ServerId, BTreeSet<TabletId>>;

/// Numbers about one table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TableCounts {
    pub tablets: u32,
    pub open: u32,
    /// In files.
    pub bytes: u64,
}

/// Ways to find rows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Index {
    keys: BTreeMap<TabletId, RowKey>,
    owned: TabletsByServer,
    opening: TabletsByServer,
    closing: TabletsByServer,
    waiting: BTreeSet<TabletId>,
    log_users: TabletsByServer,
    names: BTreeMap<Arc<str>, u32>,
    tables: BTreeMap<TableId, TableCounts>,
}

impl Index {
    /// The index of these rows.
    pub fn of<'a>(rows: impl Iterator<Item = &'a MetaRow>) -> Index {
        let mut index = Index::default();
        for row in rows {
            index.add(row);
        }
        index
    }

    /// Follows the change of one row; returns the files that no row names any more.
    pub fn replace(&mut self, old: Option<&MetaRow>, new: Option<&MetaRow>) -> Vec<Arc<str>> {
        self.replace_all(
            old.map(std::slice::from_ref).unwrap_or_default(),
            new.map(std::slice::from_ref).unwrap_or_default(),
        )
    }

    /// Follows the change of several rows at once; returns the files that no row names any more.
    pub fn replace_all(&mut self, old: &[MetaRow], new: &[MetaRow]) -> Vec<Arc<str>> {
        // Names go in before others go out, so that a file that stays named never counts as let go.
        new.iter().flat_map(MetaRow::names).for_each(|name| *self.names.entry(name.clone()).or_default() += 1);
        let mut unnamed = Vec::new();
        for name in old.iter().flat_map(MetaRow::names) {
            let count = self.names.get_mut(name).expect("every name of a row is counted");
            *count -= 1;
            if *count == 0 {
                self.names.remove(name);
                unnamed.push(name.clone());
            }
        }
        old.iter().for_each(|old| self.remove_places(old));
        new.iter().for_each(|new| self.add_places(new));
        unnamed
    }

    fn add(&mut self, row: &MetaRow) {
        row.names().for_each(|name| *self.names.entry(name.clone()).or_default() += 1);
        self.add_places(row);
    }

    fn add_places(&mut self, row: &MetaRow) {
        let tablet = row.tablet;
        let into = |map: &mut TabletsByServer, server: ServerId| {
            map.entry(server).or_default().insert(tablet);
        };
        self.keys.insert(tablet, row.row_key());
        match row.state {
            TabletState::Unassigned | TabletState::Failed => {
                self.waiting.insert(tablet);
            }
            TabletState::Opening(server) => into(&mut self.opening, server),
            TabletState::Open(_) => {}
            TabletState::Closing(server, _) => into(&mut self.closing, server),
        }
        row.owner().into_iter().for_each(|server| into(&mut self.owned, server));
        row.needed_logs.iter().for_each(|log| into(&mut self.log_users, *log));
        let counts = self.tables.entry(row.table).or_default();
        counts.tablets += 1;
        counts.open += u32::from(row.is_open());
        counts.bytes += row.bytes();
    }

    fn remove_places(&mut self, row: &MetaRow) {
        let tablet = row.tablet;
        let out_of = |map: &mut TabletsByServer, server: ServerId| {
            let tablets = map.get_mut(&server).expect("every row is in the index");
            tablets.remove(&tablet);
            if tablets.is_empty() {
                map.remove(&server);
            }
        };
        self.keys.remove(&tablet);
        match row.state {
            TabletState::Unassigned | TabletState::Failed => {
                self.waiting.remove(&tablet);
            }
            TabletState::Opening(server) => out_of(&mut self.opening, server),
            TabletState::Open(_) => {}
            TabletState::Closing(server, _) => out_of(&mut self.closing, server),
        }
        row.owner().into_iter().for_each(|server| out_of(&mut self.owned, server));
        row.needed_logs.iter().for_each(|log| out_of(&mut self.log_users, *log));
        let counts = self.tables.get_mut(&row.table).expect("every row is in the index");
        counts.tablets -= 1;
        counts.open -= u32::from(row.is_open());
        counts.bytes -= row.bytes();
        if counts.tablets == 0 {
            self.tables.remove(&row.table);
        }
    }

    /// Where the tablet's row is.
    pub fn key(&self, tablet: TabletId) -> Option<&RowKey> {
        self.keys.get(&tablet)
    }

    /// Tablets given to the server, in any state.
    pub fn owned(&self, server: ServerId) -> impl ExactSizeIterator<Item = TabletId> {
        tablets(&self.owned, server)
    }

    /// Servers that have tablets to open, with those.
    pub fn opening(&self) -> &TabletsByServer {
        &self.opening
    }

    /// Servers that have tablets to close, with those.
    pub fn closing(&self) -> &TabletsByServer {
        &self.closing
    }

    /// Tablets without an owner.
    pub fn waiting(&self) -> &BTreeSet<TabletId> {
        &self.waiting
    }

    /// Tablets that need the server's log.
    pub fn log_users(&self, log: ServerId) -> impl ExactSizeIterator<Item = TabletId> {
        tablets(&self.log_users, log)
    }

    pub fn is_named(&self, path: &str) -> bool {
        self.names.contains_key(path)
    }

    pub fn counts(&self, table: TableId) -> TableCounts {
        self.tables.get(&table).copied().unwrap_or_default()
    }

    /// All tablets.
    pub fn tablets(&self) -> usize {
        self.keys.len()
    }
}

fn tablets(map: &TabletsByServer, server: ServerId) -> impl ExactSizeIterator<Item = TabletId> {
    static NONE: BTreeSet<TabletId> = BTreeSet::new();
    map.get(&server).unwrap_or(&NONE).iter().copied()
}
