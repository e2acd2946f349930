//! A row of a meta tablet: the only truth about one tablet.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uruk_base::planted::{Planted, is_planted};
use uruk_proto::{Epoch, RowRange, SeqNo, ServerId, TableId, TabletId, master};

use super::few::{FewMap, FewSet};
use super::procedures::ProcedureId;
use crate::command::{Reason, Refusal, TabletKey};

/// Commit numbers that a row remembers, to answer repeats. A tablet server has one commit of a tablet under
/// way at a time; those it has given up are late.
const COMMITS_KEPT: usize = 16;

/// Where a row sorts among all rows: by table, then by first row key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct RowKey {
    pub table: TableId,
    /// Empty: the table's first tablet.
    pub start: Bytes,
}

/// Whose a tablet is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum TabletState {
    /// Nobody's; to be assigned once all needed logs are sorted.
    Unassigned,
    /// Given to the server, which loads it.
    Opening(ServerId),
    /// Served by the server.
    Open(ServerId),
    /// The server was told to give it up.
    Closing(ServerId, CloseKind),
    /// Nobody's: the last owner could not load it. Assigned again after a delay.
    Failed,
}

/// What the owner does before it gives a tablet up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum CloseKind {
    /// Flush.
    Flush,
    /// Nothing: the table is deleted.
    Discard,
}

/// A file clipped to a row range. Never widened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileRef {
    pub path: Arc<str>,
    pub range: RowRange,
    pub bytes: u64,
    pub cells: u64,
    pub min_seq: SeqNo,
    pub max_seq: SeqNo,
    /// 0: flushed; rises with merges.
    pub level: u32,
}

/// Why a tablet could not be loaded, or what is wrong with it while it is served.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failure {
    pub reason: String,
    /// Failed openings in a row.
    pub openings: u32,
    /// Who reported it.
    pub server: ServerId,
    pub micros: i64,
}

/// A row of a meta tablet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MetaRow {
    pub tablet: TabletId,
    pub table: TableId,
    pub range: RowRange,
    pub epoch: Epoch,
    pub state: TabletState,
    /// By locality group; newest first by `max_seq`.
    pub groups: FewMap<u32, Vec<FileRef>>,
    pub flushed_seq: SeqNo,
    /// Logs (by their server) that may hold unflushed edits of this tablet.
    pub needed_logs: FewSet<ServerId>,
    pub memory_file: Option<Arc<str>>,
    pub failure: Option<Box<Failure>>,
    /// Numbers of the newest commits under this epoch, ascending.
    pub commits: Vec<u64>,
    /// The running procedure that has the tablet: at most one.
    pub procedure: Option<ProcedureId>,
    /// The split or merge that made the tablet; None: it came with its table.
    pub made_by: Option<ProcedureId>,
    /// When it was made, for display and for policies.
    pub born_micros: i64,
    /// Its first epoch.
    pub born_epoch: Epoch,
}

/// What a commit number says about a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommitNumber {
    New,
    Repeated,
    /// Smaller than one that was done: a late attempt at what its sender has given up. Its files may be
    /// deleted, its memory file may lack calls that the newer one has.
    Late,
}

impl MetaRow {
    /// A tablet that never had an owner.
    pub fn new(tablet: TabletId, table: TableId, range: RowRange) -> MetaRow {
        MetaRow {
            tablet,
            table,
            range,
            epoch: Epoch(0),
            state: TabletState::Unassigned,
            groups: FewMap::new(),
            flushed_seq: SeqNo::ZERO,
            needed_logs: FewSet::new(),
            memory_file: None,
            failure: None,
            commits: Vec::new(),
            procedure: None,
            made_by: None,
            born_micros: 0,
            born_epoch: Epoch(1),
        }
    }

    pub fn row_key(&self) -> RowKey {
        RowKey { table: self.table, start: self.range.start.clone() }
    }

    pub fn key(&self) -> TabletKey {
        TabletKey { tablet: self.tablet, epoch: self.epoch }
    }

    /// The server that the tablet is given to, whether or not it serves it yet.
    pub fn owner(&self) -> Option<ServerId> {
        match self.state {
            TabletState::Unassigned | TabletState::Failed => None,
            TabletState::Opening(server) | TabletState::Open(server) | TabletState::Closing(server, _) => Some(server),
        }
    }

    pub fn is_open(&self) -> bool {
        matches!(self.state, TabletState::Open(_))
    }

    /// Whether its owner made it, by a split or a merge, and did not get it by an order to open it.
    pub fn is_made_there(&self) -> bool {
        self.made_by.is_some() && self.epoch == self.born_epoch
    }

    /// Whether its owner may serve it already: it is open, or made there, and its maker serves it as soon as it
    /// knows of that.
    pub fn may_be_served(&self) -> bool {
        self.is_open() || matches!(self.state, TabletState::Opening(_)) && self.is_made_there()
    }

    /// Whether it is being opened, and surely not served before it is reported as opened: then it may be taken
    /// away, and nothing of it is in its owner's log.
    pub fn is_unserved_until_opened(&self) -> bool {
        matches!(self.state, TabletState::Opening(_)) && !self.is_made_there()
    }

    pub fn files(&self) -> impl Iterator<Item = &FileRef> {
        self.groups.values().flatten()
    }

    /// Bounds that are equal become one: of the row and its neighbour, whose end `before` is, and of its files.
    pub(super) fn share_bounds(&mut self, before: &Bytes) {
        let share = |bound: &mut Bytes, with: &Bytes| {
            if bound == with {
                *bound = with.clone();
            }
        };
        share(&mut self.range.start, before);
        for file in self.groups.values_mut().flatten() {
            share(&mut file.range.start, &self.range.start);
            share(&mut file.range.end, &self.range.end);
        }
    }

    /// Every file that the row names.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.files().map(|file| &file.path).chain(&self.memory_file)
    }

    /// Size in files, in bytes.
    pub fn bytes(&self) -> u64 {
        self.files().map(|file| file.bytes).sum()
    }

    /// Refuses whoever is not the owner under this epoch.
    pub fn check_owner(&self, server: ServerId, key: TabletKey) -> Result<(), Refusal> {
        assert_eq!(self.tablet, key.tablet, "the row was looked up by its tablet");
        let is_believed = is_planted(Planted::LateReport) && self.owner().is_some();
        if self.owner() == Some(server) && self.epoch == key.epoch || is_believed {
            return Ok(());
        }
        let message =
            format!("{} is not {server}'s at {}: it is {:?} at {}", self.tablet, key.epoch, self.state, self.epoch);
        Err(Refusal::new(Reason::StaleOwner, message))
    }

    pub fn commit_number(&self, number: u64) -> CommitNumber {
        match self.commits.binary_search(&number) {
            Ok(_) => CommitNumber::Repeated,
            Err(place) if place < self.commits.len() => CommitNumber::Late,
            Err(_) => CommitNumber::New,
        }
    }

    pub fn remember_commit(&mut self, number: u64) {
        if let Err(place) = self.commits.binary_search(&number) {
            self.commits.insert(place, number);
        }
        if self.commits.len() > COMMITS_KEPT {
            self.commits.remove(0);
        }
    }

    pub fn to_message(&self) -> master::MetaRow {
        let state = match self.state {
            TabletState::Unassigned => master::TabletState::Unassigned,
            TabletState::Opening(_) => master::TabletState::Opening,
            TabletState::Open(_) => master::TabletState::Open,
            TabletState::Closing(..) => master::TabletState::Closing,
            TabletState::Failed => master::TabletState::Failed,
        };
        let group = |(group, files): (&u32, &Vec<FileRef>)| master::LocalityGroupFiles {
            locality_group: *group,
            files: files.iter().map(FileRef::to_message).collect(),
        };
        master::MetaRow {
            tablet_id: self.tablet.0,
            table_id: self.table.0,
            start: self.range.start.clone(),
            end: self.range.end.clone(),
            epoch: self.epoch.0,
            state: state.into(),
            server_id: self.owner().unwrap_or_default().0,
            groups: self.groups.iter().map(group).collect(),
            flushed_seq: self.flushed_seq.0,
            needed_logs: self.needed_logs.iter().map(|server| server.0).collect(),
            memory_file: self.memory_file.as_deref().unwrap_or_default().to_owned(),
            failure: self.failure.as_ref().map(|failure| failure.reason.clone()).unwrap_or_default(),
            procedure: self.procedure.unwrap_or_default().0,
        }
    }
}

impl FileRef {
    pub fn to_message(&self) -> master::FileRef {
        master::FileRef {
            path: self.path.to_string(),
            low: self.range.start.clone(),
            high: self.range.end.clone(),
            bytes: self.bytes,
            cells: self.cells,
            min_seq: self.min_seq.0,
            max_seq: self.max_seq.0,
            level: self.level,
        }
    }

    pub fn from_message(message: master::FileRef) -> FileRef {
        FileRef {
            path: message.path.into(),
            range: RowRange::new(message.low, message.high),
            bytes: message.bytes,
            cells: message.cells,
            min_seq: SeqNo(message.min_seq),
            max_seq: SeqNo(message.max_seq),
            level: message.level,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commit_numbers_are_new_repeated_or_late() {
        let mut row = MetaRow::new(TabletId(1), TableId(1), RowRange::ALL);
        assert_eq!(row.commit_number(5), CommitNumber::New);
        (10..10 + COMMITS_KEPT as u64).for_each(|n| row.remember_commit(n));
        assert_eq!(row.commit_number(12), CommitNumber::Repeated);
        assert_eq!(row.commit_number(9), CommitNumber::Late);
        assert_eq!(row.commit_number(90), CommitNumber::New);
        row.remember_commit(90);
        assert_eq!(row.commit_number(10), CommitNumber::Late);
        assert_eq!(row.commit_number(89), CommitNumber::Late);
        assert_eq!(row.commits.len(), COMMITS_KEPT);
    }
}
