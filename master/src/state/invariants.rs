//! What must hold after every command (see [`super::State`]); O(everything), for tests, restores and tools.

use std::collections::BTreeSet;

use uruk_proto::TableId;

use super::State;
use super::index::Index;
use super::procedures::{Procedure, ProcedureId, Work};
use super::recoveries::Recovery;
use super::row::{CloseKind, FileRef, MetaRow, TabletState};
use crate::command::TabletKey;

impl State {
    /// What is broken, if anything.
    pub fn check(&self) -> Result<(), String> {
        self.meta.check()?;
        if self.index != Index::of(self.meta.rows()) {
            return Err("the index does not match the rows".into());
        }
        self.check_all_but_index()
    }

    /// The same of a state whose index was just made from its rows, which are in their places.
    pub(super) fn check_all_but_index(&self) -> Result<(), String> {
        self.check_coverage()?;
        self.meta.rows().try_for_each(|row| self.check_row(row))?;
        let dead_unfinished = |server: &&_| !self.servers.is_live(**server) && self.recoveries.get(**server).is_some();
        if !self.recoveries.unfinished().iter().all(|server| dead_unfinished(&server)) {
            return Err("a recovery of a live server".into());
        }
        let waiting = |recovery: &Recovery| recovery.tablets.values().filter(|reopened| reopened.is_none()).count();
        if let Some(recovery) = self.recoveries.all().find(|recovery| recovery.waiting != waiting(recovery)) {
            return Err(format!("the recovery of {} miscounts its tablets", recovery.server));
        }
        self.check_procedures()?;
        self.check_servers_of_tables()?;
        let mut queued = BTreeSet::new();
        for path in self.deletions.entries().values() {
            if self.is_named(path) || !queued.insert(path) {
                return Err(format!("file {path} waits for deletion, but is named or queued twice"));
            }
        }
        Ok(())
    }

    /// Files that a row or a recovery names.
    pub fn named_files(&self) -> BTreeSet<String> {
        let of_rows = self.meta.rows().flat_map(MetaRow::names).map(|path| path.to_string());
        let unfinished = self.recoveries.unfinished().iter().filter_map(|server| self.recoveries.get(*server));
        let of_recoveries = unfinished.flat_map(Recovery::names).map(|path| path.to_string());
        of_rows.chain(of_recoveries).filter(|path| !path.is_empty()).collect()
    }

    /// Files that nothing names any more and that wait for their deletion.
    pub fn unnamed_files(&self) -> BTreeSet<String> {
        self.deletions.entries().values().map(|path| path.to_string()).collect()
    }

    /// Tablets in all, and those of them that are open.
    pub fn open_tablets(&self) -> (usize, usize) {
        (self.meta.rows().count(), self.meta.rows().filter(|row| row.is_open()).count())
    }

    /// Every lock has a running procedure, every running procedure has its locks.
    fn check_procedures(&self) -> Result<(), String> {
        let has = |id: &ProcedureId, row: &MetaRow| {
            let running = self.procedures.running().get(id);
            running.is_some_and(|procedure| procedure.work.keys().contains(&row.key()))
        };
        let locked = |row: &&MetaRow| row.procedure.is_some_and(|id| !has(&id, row));
        if let Some(row) = self.meta.rows().find(locked) {
            return Err(format!("{} is in {:?}, which does not run or does not have it", row.tablet, row.procedure));
        }
        for (id, procedure) in self.procedures.running() {
            let is_locked = |key: &TabletKey| self.row(key.tablet).is_some_and(|row| row.procedure == Some(*id));
            if let Some(key) = procedure.work.keys().iter().find(|key| !is_locked(key)) {
                return Err(format!("{id} runs, but does not have {}", key.tablet));
            }
            self.check_ground(procedure)?;
        }
        Ok(())
    }

    /// Whether the procedure can still come to its end.
    fn check_ground(&self, procedure: &Procedure) -> Result<(), String> {
        let state = |key: &TabletKey| self.row(key.tablet).map(|row| row.state);
        let broken = || Err(format!("{} has lost its ground, but runs", procedure.id));
        let is_on_its_way = |state: Option<TabletState>| match state {
            Some(TabletState::Closing(_, CloseKind::Flush) | TabletState::Unassigned | TabletState::Opening(_)) => true,
            Some(TabletState::Open(_) | TabletState::Closing(_, CloseKind::Discard) | TabletState::Failed) | None => {
                false
            }
        };
        match &procedure.work {
            Work::Split { tablet, .. } => match state(tablet) {
                Some(TabletState::Open(_)) => Ok(()),
                _ => broken(),
            },
            Work::Move { tablet, .. } if is_on_its_way(state(tablet)) => Ok(()),
            Work::Move { .. } => broken(),
            Work::Merge { left, right } => match (state(left), state(right)) {
                (Some(TabletState::Open(left)), Some(TabletState::Open(right))) if left == right => Ok(()),
                (Some(TabletState::Open(_)), right) if is_on_its_way(right) => Ok(()),
                _ => broken(),
            },
        }
    }

    /// Those that are drained or waited for are alive.
    fn check_servers_of_tables(&self) -> Result<(), String> {
        let mut waited =
            self.tables.all().filter_map(|table| table.alteration.as_ref()).flat_map(|alter| &alter.waiting);
        match waited.find(|server| !self.servers.is_live(**server)) {
            Some(server) => Err(format!("{server} is dead, but a schema waits for it")),
            None if !self.servers.draining().is_subset(self.servers.live()) => Err("a dead server is drained".into()),
            None => Ok(()),
        }
    }

    fn check_coverage(&self) -> Result<(), String> {
        let mut covered: BTreeSet<TableId> = BTreeSet::new();
        let mut previous: Option<&MetaRow> = None;
        let deleting = |row: &&MetaRow| self.tables.get(row.table).is_some_and(|table| table.is_deleting());
        for row in self.meta.rows().filter(|row| !deleting(row)) {
            let hole = || Err(format!("{}: a hole or an overlap at {:?}", row.table, row.range));
            match previous.filter(|previous| previous.table == row.table) {
                Some(previous) if previous.range.end.is_empty() || previous.range.end != row.range.start => {
                    return hole();
                }
                None if !row.range.start.is_empty() || !covered.insert(row.table) => return hole(),
                Some(_) | None => {}
            }
            let ended = previous.is_none_or(|previous| previous.table == row.table || previous.range.end.is_empty());
            if row.range.is_empty() || !ended {
                return hole();
            }
            previous = Some(row);
        }
        if previous.is_some_and(|last| !last.range.end.is_empty()) {
            return Err("the last table does not reach its end".into());
        }
        match self.tables.all().find(|table| !covered.contains(&table.schema.id) && !table.is_deleting()) {
            Some(table) => Err(format!("table {} has no tablets", table.schema.name)),
            None => Ok(()),
        }
    }

    fn check_row(&self, row: &MetaRow) -> Result<(), String> {
        let tablet = row.tablet;
        if self.tables.get(row.table).is_none() {
            return Err(format!("{tablet} belongs to {}, which does not exist", row.table));
        }
        if let Some(owner) = row.owner() {
            if !self.servers.is_live(owner) {
                return Err(format!("{tablet} is given to {owner}, which is dead"));
            }
            if !row.needed_logs.contains(&owner) {
                return Err(format!("{tablet} does not need the log of its owner {owner}"));
            }
        }
        let others = row.needed_logs.iter().filter(|log| Some(**log) != row.owner());
        for log in others {
            if !self.recoveries.unfinished().contains(log) {
                return Err(format!("{tablet} needs the log of {log}, which is not being recovered"));
            }
        }
        // Sealing is never undone, though a sorted piece may be lost again.
        if row.owner().is_some()
            && !row.needed_logs.iter().all(|log| {
                Some(*log) == row.owner() || self.recoveries.get(*log).is_some_and(|recovery| recovery.seal.is_some())
            })
        {
            return Err(format!("{tablet} is given away, but needs a log that is not sealed"));
        }
        let refers_twice = |files: &Vec<FileRef>| {
            let mut seen: Vec<_> = files.iter().map(|file| (&file.path, &file.range.start)).collect();
            seen.sort_unstable();
            seen.windows(2).any(|pair| pair[0] == pair[1])
        };
        if row.groups.values().any(refers_twice) {
            return Err(format!("{tablet} has two references to the same part of a file"));
        }
        match row.files().find(|file| !row.range.covers(&file.range) || file.range.is_empty()) {
            Some(file) => Err(format!("{tablet} has a reference to {} that is wider than itself, or empty", file.path)),
            None => Ok(()),
        }
    }
}
