//! The master's replicated state: root and meta tables, servers, tables, recoveries, files to delete.
//!
//! Pure: [`State::apply`] sees neither clock nor network. Invariants, checked by [`State::check`]:
//!
//! 1. The rows of a table cover every key exactly once.
//! 2. A tablet is given (OPENING, OPEN, CLOSING) to a live server only, and that server's log is
//!    among its needed logs: the set is durable before anyone relies on it.
//! 3. Every other needed log is a dead server's whose recovery is not done.
//! 4. A tablet is assigned only when every log it needs is sealed and sorted.
//! 5. Epochs grow with each assignment; reports under another (server, epoch) are refused.
//! 6. Needed logs shrink only by a committed flush, or when their owner held the tablet without ever
//!    serving it (it was never OPEN under that epoch, so nothing of it is in that log).
//! 7. A file waits for deletion only if no row and no recovery names it.
//! 8. Identities only grow and are never reused.
//! 9. A tablet is in at most one procedure, and a running procedure has all of its tablets.
//! 10. Tablets are split and merged only when everything of them is in files, and no reference grows.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uruk_base::planted::{Planted, is_planted};
use uruk_consensus::{Captured, RestoreError, StateMachine};
use uruk_proto::{ServerId, TabletId};

use crate::command::{Command, Reason, Refusal, Reply};

pub mod alter;
pub mod few;
pub mod files;
pub mod history;
mod ids;
pub mod index;
mod invariants;
pub mod meta;
pub mod procedures;
pub mod recoveries;
mod reshape;
pub mod row;
pub mod servers;
pub mod survey;
pub mod tables;
mod tablets;
#[cfg(test)]
pub mod tests;

use files::DeletionQueue;
use history::History;
use ids::Ids;
use index::Index;
use meta::Meta;
use procedures::{Ask, Procedures};
use recoveries::Recoveries;
use row::{MetaRow, RowKey};
use servers::Servers;
use tables::Tables;

/// A row in a snapshot is smaller than this as a rule.
const SNAPSHOT_BYTES_PER_ROW: usize = 512;

/// The master's state.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct State {
    ids: Ids,
    pub servers: Servers,
    pub tables: Tables,
    pub meta: Meta,
    pub recoveries: Recoveries,
    pub deletions: DeletionQueue,
    pub procedures: Procedures,
    pub history: History,
    #[serde(skip)]
    pub index: Index,
}

/// What applying a command gives; `Err` means that nothing changed.
type Applied = Result<Reply, Refusal>;

impl State {
    /// No servers, no tables.
    pub fn new() -> State {
        State {
            ids: Ids::default(),
            servers: Servers::default(),
            tables: Tables::default(),
            meta: Meta::new(),
            recoveries: Recoveries::default(),
            deletions: DeletionQueue::default(),
            procedures: Procedures::default(),
            history: History::default(),
            index: Index::default(),
        }
    }

    /// The row of a tablet.
    pub fn row(&self, tablet: TabletId) -> Option<&MetaRow> {
        let key = self.index.key(tablet)?;
        Some(self.meta.get(key).expect("the index names only rows that exist"))
    }

    /// Whether this incarnation is over. Ids that were never issued are not dead.
    pub fn is_dead(&self, server: ServerId) -> bool {
        self.ids.was_issued(server) && !self.servers.is_live(server)
    }

    /// Whether no command that comes from now on can name this file, which nothing names: its creator is over,
    /// or does not own the tablet that it was made for. What it offered under an older epoch is refused.
    pub fn is_abandoned(&self, path: &str, creator: ServerId) -> bool {
        let is_owned = |tablet| self.row(tablet).is_some_and(|row| row.owner() == Some(creator));
        self.is_dead(creator) || files::tablet_of(path).is_some_and(|tablet| !is_owned(tablet))
    }

    /// Whether any row or recovery names the file.
    pub fn is_named(&self, path: &str) -> bool {
        self.index.is_named(path) || self.recoveries.names(path)
    }

    /// Puts a row in place of the one under the same key, or at its new place. The only way that
    /// rows change: index and deletion queue follow here.
    fn put_row(&mut self, row: MetaRow) {
        let old = self.meta.get(&row.row_key()).cloned();
        assert!(old.as_ref().is_none_or(|old| old.tablet == row.tablet), "a row replaces only its own tablet's");
        let unnamed = self.index.replace(old.as_deref(), Some(&row));
        self.meta.put(row);
        self.deletions.add_all(unnamed);
    }

    /// Changes a tablet's row, which exists.
    fn change_row(&mut self, tablet: TabletId, change: impl FnOnce(&mut MetaRow)) {
        let mut row = self.row(tablet).expect("the caller found the row").clone();
        change(&mut row);
        self.put_row(row);
    }

    /// Puts rows in place of others, which cover the same keys.
    fn replace_rows(&mut self, old: &[TabletId], new: Vec<MetaRow>) {
        let key = |tablet: &TabletId| self.index.key(*tablet).expect("the caller found the row").clone();
        let keys: Vec<RowKey> = old.iter().map(key).collect();
        let removed = keys.iter().map(|key| self.meta.remove(key).expect("the index names only rows that exist"));
        let old: Vec<MetaRow> = removed.map(Arc::unwrap_or_clone).collect();
        let unnamed = self.index.replace_all(&old, &new);
        new.into_iter().for_each(|row| {
            self.meta.put(row);
        });
        self.deletions.add_all(unnamed);
        old.iter().for_each(|row| self.recoveries.forget_tablet(row.tablet));
    }

    fn remove_row(&mut self, tablet: TabletId) {
        self.lose_ground(tablet, || "its table is deleted".to_owned(), None);
        self.history.bury(tablet);
        let key = self.index.key(tablet).expect("the caller found the row").clone();
        let row = self.meta.remove(&key).expect("the index names only rows that exist");
        let unnamed = self.index.replace(Some(&row), None);
        self.deletions.add_all(unnamed);
        self.recoveries.forget_tablet(tablet);
        self.finish_deletion(row.table);
    }

    /// Whoever reports on a tablet must live.
    fn require_live_reporter(&self, server: ServerId) -> Result<(), Refusal> {
        if is_planted(Planted::LateReport) {
            return Ok(());
        }
        self.require_live(server)
    }

    fn require_live(&self, server: ServerId) -> Result<(), Refusal> {
        if self.servers.is_live(server) {
            return Ok(());
        }
        Err(Refusal::new(Reason::Fenced, format!("{server} is dead or was never registered")))
    }

    /// Whether all of the log is sealed and sorted, so that whoever needs it can replay it.
    pub fn is_replayable(&self, log: ServerId) -> bool {
        self.recoveries.get(log).is_some_and(|recovery| recovery.is_sorted())
    }

    /// Whether every log that the tablet needs can be replayed, but for its owner's own.
    pub fn is_openable(&self, row: &MetaRow) -> bool {
        let owner = row.owner();
        row.needed_logs.iter().all(|log| Some(*log) == owner || self.is_replayable(*log))
    }

    /// Dead servers whose recovery is not done, in order of their deaths' ids.
    pub fn unfinished_recoveries(&self) -> &BTreeSet<ServerId> {
        self.recoveries.unfinished()
    }
}

impl StateMachine for State {
    type Command = Command;
    type Reply = Reply;

    fn apply(&mut self, command: Command) -> Reply {
        let applied = match command {
            Command::Register { registration, micros } => self.register(registration, micros),
            Command::ReportDeath { nonce, how, micros } => self.report_death(nonce, how, micros),
            Command::DeclareDead { server, how, last_heard_micros, micros } => {
                self.declare_dead(server, how, last_heard_micros, micros)
            }
            Command::RecordSeal { server, segments, end, micros } => self.record_seal(server, &segments, end, micros),
            Command::RecordSort { log, segment, sorter, path, records, bytes, micros } => {
                self.record_sort(log, segment, recoveries::Sorted { sorter, path, records, bytes, micros })
            }
            Command::FinishRecovery { server, micros } => self.finish_recovery(server, micros),
            Command::Assign { assignments, micros } => self.assign(&assignments, micros),
            Command::Opened { server, tablets, micros } => self.opened(server, &tablets, micros),
            Command::Fail { server, key, reason, lost_recovery_files, micros } => {
                self.fail(server, key, reason, &lost_recovery_files, micros)
            }
            Command::CommitFiles(commit) => self.commit_files(*commit),
            Command::Close { tablets } => self.close(&tablets),
            Command::Release { server, key } => self.release(server, key),
            Command::CreateTable { request, schema, splits, micros } => {
                self.create_table(request, schema, splits, micros)
            }
            Command::DeleteTable { request, name } => self.delete_table(request, &name),
            Command::StartSplit { tablet, at, by_load, reason, request, micros } => {
                self.start(Ask { reason, request, micros }, |state, ask| state.start_split((tablet, at, by_load), ask))
            }
            Command::TabletSplit(split) => self.tablet_split(*split),
            Command::StartMerge { left, right, reason, request, micros } => {
                self.start(Ask { reason, request, micros }, |state, ask| state.start_merge((left, right), ask))
            }
            Command::TabletsMerged(merged) => self.tablets_merged(*merged),
            Command::StartMove { tablet, target, reason, request, micros } => {
                self.start(Ask { reason, request, micros }, |state, ask| state.start_move((tablet, target), ask))
            }
            Command::DeclineProcedure { server, procedure, reason, micros } => {
                self.decline_procedure(server, procedure, reason, micros)
            }
            Command::EndProcedure { procedure, reason, micros } => self.give_up_procedure(procedure, reason, micros),
            Command::SetDraining { server, draining } => self.set_draining(server, draining),
            Command::StartAlter { request, name, changes, groups } => self.start_alter(request, &name, changes, groups),
            Command::ConfirmSchema { server, table, version } => self.confirm_schema(server, table, version),
            Command::SplitMeta { meta, rows_max } => {
                self.meta.split(meta, rows_max);
                Ok(Reply::Done)
            }
            Command::ForgetFiles { entries } => {
                self.deletions.forget(&entries);
                Ok(Reply::Done)
            }
            Command::Told { server, report_number, command } => {
                self.servers.tell(server, report_number);
                return self.apply(*command);
            }
        };
        applied.unwrap_or_else(Reply::Refused)
    }

    fn snapshot(&self) -> Vec<u8> {
        // Room that is not used takes no memory; room that grows is copied, and takes twice as much for a moment.
        let rows: usize = self.meta.sizes().map(|(_, rows)| rows).sum();
        let room = Vec::with_capacity(rows * SNAPSHOT_BYTES_PER_ROW);
        postcard::to_extend(self, room).expect("plain data in memory can be encoded")
    }

    fn capture(&self) -> Captured {
        // The index is not encoded.
        let captured = State {
            ids: self.ids,
            servers: self.servers.clone(),
            tables: self.tables.clone(),
            meta: self.meta.clone(),
            recoveries: self.recoveries.clone(),
            deletions: self.deletions.clone(),
            procedures: self.procedures.clone(),
            history: self.history.clone(),
            index: Index::default(),
        };
        Box::new(move || captured.snapshot())
    }

    fn restore(bytes: &[u8]) -> Result<State, RestoreError> {
        let mut state: State = postcard::from_bytes(bytes)?;
        state.meta.check().map_err(RestoreError)?;
        state.meta.share_bounds();
        state.index = Index::of(state.meta.rows());
        state.check_all_but_index().map_err(RestoreError)?;
        Ok(state)
    }
}
