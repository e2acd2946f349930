//! What must hold after every command (see [`super::State`]); O(everything), for tests, restores and tools.

use std::collections::BTreeSet;

use uruk_proto::TableId;

use super::State;
use super::index::Index;
use super::recoveries::Recovery;
use super::row::MetaRow;

impl State {
    /// What is broken, if anything.
    pub fn check(&self) -> Result<(), String> {
        self.meta.check()?;
        if self.index != Index::of(self.meta.rows()) {
            return Err("the index does not match the rows".into());
        }
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
        match row.files().find(|file| !row.range.covers(&file.range)) {
            Some(file) => Err(format!("{tablet} has a reference to {} that is wider than itself", file.path)),
            None => Ok(()),
        }
    }
}
