//! What happens to one tablet: assigned, opened, failed, flushed, closed, released.
//!
//! Who is ordered to open a tablet serves it once `opened` has committed. Who made it, by a split or a merge,
//! serves it once that command has: until it has said `opened` the row is OPENING, but nobody can take the
//! tablet away, except that its maker releases it, or dies.

use std::collections::BTreeSet;
use std::sync::Arc;

use uruk_base::planted::{Planted, is_planted};
use uruk_proto::{Epoch, SeqNo, ServerId, TableId, TabletId};

use super::files::{creator, tablet_of};
use super::history::Event;
use super::row::{CloseKind, CommitNumber, Failure, FileRef, MetaRow, TabletState};
use super::{Applied, State};
use crate::command::{Assignment, CommitFiles, Reason, Refusal, Reply, TabletKey};

impl State {
    /// Each assignment takes effect if its tablet can be opened as things stand now; the others are
    /// skipped, since they were planned from older news.
    pub(super) fn assign(&mut self, assignments: &[Assignment], micros: i64) -> Applied {
        let mut assigned = Vec::new();
        for assignment in assignments {
            let server = assignment.server;
            let Some(row) = self.row(assignment.key.tablet) else { continue };
            let ownerless = matches!(row.state, TabletState::Unassigned | TabletState::Failed);
            let current = row.epoch == assignment.key.epoch && row.epoch.0 < SeqNo::EPOCH_MAX;
            // Never without the logs: what is in them would be missing, or come back later.
            if !ownerless || !current || !self.servers.is_live(server) || !self.is_openable(row) {
                continue;
            }
            let mut row = row.clone();
            row.epoch = Epoch(row.epoch.0 + 1);
            row.state = TabletState::Opening(server);
            let is_new = row.needed_logs.insert(server);
            assert!(is_new, "a tablet without an owner needs only dead servers' logs");
            row.commits.clear();
            assigned.push(row.key());
            self.follow_epoch(row.procedure, row.key());
            self.put_row(row);
        }
        let tablets: BTreeSet<TabletId> = assigned.iter().map(|key| key.tablet).collect();
        self.recoveries.note_assigned(&tablets, micros);
        Ok(Reply::Assigned(assigned))
    }

    pub(super) fn opened(&mut self, server: ServerId, keys: &[TabletKey], micros: i64) -> Applied {
        self.require_live_reporter(server)?;
        let mut owned = Vec::new();
        let mut opened = BTreeSet::new();
        let mut tables: BTreeSet<TableId> = BTreeSet::new();
        for key in keys {
            let Some(row) = self.row(key.tablet).filter(|row| row.check_owner(server, *key).is_ok()) else { continue };
            match row.state {
                TabletState::Opening(_) => {
                    tables.insert(row.table);
                    opened.insert(key.tablet);
                    self.change_row(key.tablet, |row| {
                        row.state = TabletState::Open(server);
                        row.failure = None;
                    });
                    owned.push(*key);
                    self.arrived(key.tablet, server, micros);
                    if self.row(key.tablet).is_some_and(|row| row.epoch > row.born_epoch) {
                        self.history.add(key.tablet, micros, Event::Opened(server));
                    }
                }
                TabletState::Open(_) => owned.push(*key),
                TabletState::Closing(..) | TabletState::Unassigned | TabletState::Failed => {}
            }
        }
        self.recoveries.note_opened(&opened, server, micros);
        tables.into_iter().for_each(|table| self.finish_creation(table));
        Ok(Reply::Owned(owned))
    }

    pub(super) fn fail(
        &mut self,
        server: ServerId,
        key: TabletKey,
        reason: String,
        lost_recovery_files: &[Arc<str>],
        micros: i64,
    ) -> Applied {
        self.require_live_reporter(server)?;
        // Believed also of a tablet that has moved on: a lost file is lost whoever says so, its name never comes
        // again, and the next owner would find out only after the same wait.
        let lost: Vec<_> = lost_recovery_files.iter().filter_map(|path| self.recoveries.forget_sorted(path)).collect();
        let was_news = !lost.is_empty();
        lost.into_iter().for_each(|path| self.deletions.add(path));
        let row = match self.owned_row(server, key) {
            Err(_) if was_news => return Ok(Reply::Done),
            row => row?,
        };
        let openings = row.failure.as_ref().map_or(0, |failure| failure.openings);
        match row.state {
            TabletState::Opening(_) if row.is_unserved_until_opened() => {
                let failure = Failure { reason, openings: openings + 1, server, micros };
                self.lose_ground(key.tablet, || format!("{server} could not open it"), Some(micros));
                self.change_row(key.tablet, |row| {
                    // It was never served under this epoch: nothing of it is in this log.
                    row.needed_logs.remove(&server);
                    row.state = TabletState::Failed;
                    row.failure = Some(Box::new(failure));
                });
            }
            // Its log may hold what is in no file: it stays the owner, and the page shows what is wrong. So may
            // that of the maker of a tablet, which serves it before it has said so.
            TabletState::Opening(_) | TabletState::Open(_) | TabletState::Closing(..) => {
                let failure = Failure { reason, openings, server, micros };
                self.change_row(key.tablet, |row| row.failure = Some(Box::new(failure)));
            }
            TabletState::Unassigned | TabletState::Failed => unreachable!("the row has an owner"),
        }
        Ok(Reply::Done)
    }

    pub(super) fn commit_files(&mut self, commit: CommitFiles) -> Applied {
        self.require_live_reporter(commit.server)?;
        let commit = if is_planted(Planted::ParentCompactionCommits) { self.inherit(commit) } else { commit };
        let row = self.owned_row(commit.server, commit.key)?;
        match row.commit_number(commit.number) {
            CommitNumber::Repeated => return Ok(Reply::Row(Box::new(row.clone()))),
            CommitNumber::Late => {
                let message = format!("command {} of {} comes after a newer one", commit.number, commit.server);
                return Err(Refusal::new(Reason::FailedPrecondition, message));
            }
            CommitNumber::New => {}
        }
        self.check_commit(row, &commit)?;
        let mut row = row.clone();
        let removed: BTreeSet<&str> = commit.remove.iter().map(|path| &**path).collect();
        row.groups.values_mut().for_each(|files| files.retain(|file| !removed.contains(&*file.path)));
        for (group, files) in commit.add {
            // An unbounded reference means all of the file that lies in this tablet.
            let clip = |file: FileRef| FileRef { range: file.range.intersect(&row.range), ..file };
            row.groups.entry(group).extend(files.into_iter().map(clip));
        }
        row.groups.retain(|files| !files.is_empty());
        // Newest first; stable, so that equals stay in the order they came.
        row.groups.values_mut().for_each(|files| files.sort_by_key(|file| std::cmp::Reverse(file.max_seq)));
        row.flushed_seq = row.flushed_seq.max(commit.flushed_seq);
        row.memory_file = commit.memory_file.or(row.memory_file);
        commit.logs_done.iter().for_each(|log| {
            row.needed_logs.remove(log);
        });
        row.remember_commit(commit.number);
        self.put_row(row.clone());
        Ok(Reply::Row(Box::new(row)))
    }

    /// The bug: what a tablet that was split has compacted is put into its left half, and taken out of both.
    fn inherit(&mut self, commit: CommitFiles) -> CommitFiles {
        let Some((left, right)) = self.history.heirs(commit.key.tablet) else { return commit };
        let Some(key) = self.row(left).map(MetaRow::key) else { return commit };
        if self.row(right).is_some() {
            let is_removed = |file: &FileRef| commit.remove.contains(&file.path);
            self.change_row(right, |row| row.groups.values_mut().for_each(|files| files.retain(|f| !is_removed(f))));
        }
        CommitFiles { key, ..commit }
    }

    fn check_commit(&self, row: &MetaRow, commit: &CommitFiles) -> Result<(), Refusal> {
        let tablet = row.tablet;
        let refuse = |reason, message: String| Err(Refusal::new(reason, message));
        let version = self.tables.get(row.table).expect("every row's table exists").schema.version;
        if commit.schema_version != version {
            let message = format!("{tablet}: made under schema version {}, now {version}", commit.schema_version);
            return refuse(Reason::FailedPrecondition, message);
        }
        if let Some(path) = commit.remove.iter().find(|path| !row.files().any(|file| file.path == **path)) {
            return refuse(Reason::FailedPrecondition, format!("{tablet} does not name {path}"));
        }
        let added = || commit.add.iter().flat_map(|(_, files)| files);
        let named_anew = || added().map(|file: &FileRef| &file.path).chain(&commit.memory_file);
        let mut seen = BTreeSet::new();
        for path in named_anew() {
            let is_kept_memory = row.memory_file.as_ref() == Some(path);
            if path.is_empty() || !seen.insert(path) || (self.is_named(path) && !is_kept_memory) {
                return refuse(Reason::InvalidArgument, format!("{tablet}: file {path:?} is not new"));
            }
            // The sweep trusts names: a file's creator may have it named, for the tablet in its path.
            if !is_kept_memory && creator(path).is_some_and(|creator| creator != commit.server) {
                return refuse(Reason::InvalidArgument, format!("{tablet}: file {path} is not {}'s", commit.server));
            }
            if !is_kept_memory && tablet_of(path).is_some_and(|of| of != tablet) {
                return refuse(Reason::InvalidArgument, format!("{tablet}: file {path} is another tablet's"));
            }
        }
        if let Some(file) = added().find(|file| file.range.intersect(&row.range).is_empty()) {
            let message = format!("{tablet}: {:?} of {} lies outside of it", file.range, file.path);
            return refuse(Reason::InvalidArgument, message);
        }
        let is_flush = commit.flushed_seq != SeqNo::ZERO;
        if is_flush && (commit.flushed_seq < row.flushed_seq || commit.flushed_seq.epoch() > row.epoch) {
            let message = format!("{tablet}: flushed up to {}, row has {}", commit.flushed_seq, row.flushed_seq);
            return refuse(Reason::InvalidArgument, message);
        }
        if commit.logs_done.contains(&commit.server) {
            return refuse(Reason::InvalidArgument, format!("{tablet}: the owner's own log stays needed"));
        }
        Ok(())
    }

    /// Those that are given under just this epoch are to be given up. Not in the midst of a procedure.
    pub(super) fn close(&mut self, keys: &[TabletKey]) -> Applied {
        for key in keys {
            let Some(row) = self.row(key.tablet).filter(|row| row.epoch == key.epoch) else { continue };
            if row.procedure.is_none()
                && let TabletState::Open(server) = row.state
            {
                self.change_row(key.tablet, |row| row.state = TabletState::Closing(server, CloseKind::Flush));
            }
        }
        Ok(Reply::Done)
    }

    pub(super) fn release(&mut self, server: ServerId, key: TabletKey) -> Applied {
        self.require_live_reporter(server)?;
        let Some(row) = self.row(key.tablet) else { return Ok(Reply::Done) };
        if row.owner().is_none() && row.epoch == key.epoch {
            return Ok(Reply::Done); // a repeat: nobody else had this epoch
        }
        row.check_owner(server, key)?;
        if matches!(row.state, TabletState::Closing(_, CloseKind::Discard)) {
            self.remove_row(key.tablet);
            return Ok(Reply::Done);
        }
        if !self.may_be_released(self.row(key.tablet).expect("it was found")) {
            self.lose_ground(key.tablet, || format!("{server} has released it"), None);
        }
        self.change_row(key.tablet, |row| {
            // Flushed: its log holds nothing of it that is not in files. Older logs stay needed
            // until a flush has said otherwise.
            row.needed_logs.remove(&server);
            row.state = TabletState::Unassigned;
        });
        Ok(Reply::Done)
    }

    pub(super) fn owned_row(&self, server: ServerId, key: TabletKey) -> Result<&MetaRow, Refusal> {
        let Some(row) = self.row(key.tablet) else {
            return Err(Refusal::new(Reason::StaleOwner, format!("{} does not exist", key.tablet)));
        };
        row.check_owner(server, key)?;
        Ok(row)
    }
}
