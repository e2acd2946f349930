//! One row becomes two, two rows become one: each by exactly one command.
//!
//! Refused unless everything of the tablets is in files that the rows name, and the server that reports owns
//! them: from then on nobody can add anything to them under their old names. References are clipped or kept,
//! never widened: what a compaction has purged in one half must not come back through another's reference.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use uruk_base::planted::{Planted, is_planted};
use uruk_proto::{Epoch, RowRange, ServerId, TabletId};

use super::few::{FewMap, FewSet};
use super::files::creator;
use super::history::Event;
use super::procedures::{Ending, Found, ProcedureId, Work, check_split_key, require_neighbours};
use super::row::{FileRef, MetaRow, TabletState};
use super::{Applied, State};
use crate::command::{FileShare, Reason, Refusal, Reply, TabletKey, TabletSplit, TabletsMerged};

impl State {
    pub(super) fn tablet_split(&mut self, split: TabletSplit) -> Applied {
        let (server, id) = (split.server, split.procedure);
        self.require_live_reporter(server)?;
        if let Some(rows) = self.results(id, server)? {
            return match <[MetaRow; 2]>::try_from(rows) {
                Ok(rows) => Ok(Reply::Split(Box::new(rows))),
                Err(_) => Err(not_this(id, "a split")),
            };
        }
        match self.procedures.running().get(&id).map(|procedure| &procedure.work) {
            Some(Work::Split { tablet, at, .. }) if *tablet == split.key => {
                if at.as_ref().is_some_and(|at| *at != split.at) {
                    return Err(Refusal::new(Reason::InvalidArgument, format!("{id} has another split key")));
                }
            }
            _ => return Err(not_this(id, "the split of this tablet")),
        }
        let row = self.quiet_row(server, split.key, id)?.clone();
        check_split_key(&row, &split.at)?;
        require_flushed(&row, server, split.flushed_seq)?;
        let shares = shares(&row, &split.files)?;
        let left_range = RowRange { start: row.range.start.clone(), end: split.at.clone() };
        let right_range = RowRange { start: split.at, end: row.range.end.clone() };
        let left = self.half(&row, left_range, &shares, |share| (share.left_bytes, share.left_cells));
        let right = self.half(&row, right_range, &shares, |share| (share.right_bytes, share.right_cells));
        let made = self.reshape(&[row.tablet], [left?, right?].into(), server, id, split.micros);
        for tablet in &made {
            self.history.add(*tablet, split.micros, Event::SplitFrom(row.tablet));
        }
        self.history.add(row.tablet, split.micros, Event::SplitInto(made[0], made[1]));
        self.history.bury(row.tablet);
        let rows = made.iter().map(|tablet| self.row(*tablet).expect("it was just made").clone());
        let rows: Vec<MetaRow> = rows.collect();
        Ok(Reply::Split(Box::new(rows.try_into().expect("a split makes two"))))
    }

    pub(super) fn tablets_merged(&mut self, merged: TabletsMerged) -> Applied {
        let (server, id) = (merged.server, merged.procedure);
        self.require_live_reporter(server)?;
        if let Some(rows) = self.results(id, server)? {
            return match <[MetaRow; 1]>::try_from(rows) {
                Ok([row]) => Ok(Reply::Row(Box::new(row))),
                Err(_) => Err(not_this(id, "a merge")),
            };
        }
        match self.procedures.running().get(&id).map(|procedure| &procedure.work) {
            Some(Work::Merge { left, right }) if (*left, *right) == (merged.left, merged.right) => {}
            _ => return Err(not_this(id, "the merge of these tablets")),
        }
        let left = self.quiet_row(server, merged.left, id)?.clone();
        let right = self.quiet_row(server, merged.right, id)?.clone();
        require_neighbours(&left, &right)?;
        require_flushed(&left, server, merged.left_flushed_seq)?;
        require_flushed(&right, server, merged.right_flushed_seq)?;
        self.check_memory(&left, &right, server, merged.memory_file.as_ref())?;
        let range = RowRange { start: left.range.start.clone(), end: right.range.end.clone() };
        let mut groups: FewMap<u32, Vec<FileRef>> = FewMap::new();
        for (group, files) in left.groups.iter().chain(right.groups.iter()) {
            let widened = |file: &FileRef| FileRef { range: range.clone(), ..file.clone() };
            let files = files.iter().map(|file| match is_planted(Planted::MergeWidensAReference) {
                true => widened(file),
                false => file.clone(),
            });
            groups.entry(*group).extend(files);
        }
        groups.values_mut().for_each(|files| files.sort_by_key(|file| std::cmp::Reverse(file.max_seq)));
        let row = MetaRow {
            epoch: Epoch(left.epoch.0.max(right.epoch.0)),
            groups,
            flushed_seq: left.flushed_seq.max(right.flushed_seq),
            memory_file: merged.memory_file,
            ..MetaRow::new(self.ids.tablet(), left.table, range)
        };
        let halves = [left.tablet, right.tablet];
        let made = self.reshape(&halves, vec![row], server, id, merged.micros)[0];
        self.history.add(made, merged.micros, Event::MergedFrom(halves[0], halves[1]));
        for half in halves {
            self.history.add(half, merged.micros, Event::MergedInto(made));
            self.history.bury(half);
        }
        Ok(Reply::Row(Box::new(self.row(made).expect("it was just made").clone())))
    }

    /// The results of a procedure that is done, for a repeat; None while it runs.
    fn results(&self, id: ProcedureId, server: ServerId) -> Result<Option<Vec<MetaRow>>, Refusal> {
        let refuse = |reason, message| Err(Refusal::new(reason, message));
        match self.procedures.find(id) {
            None => refuse(Reason::FailedPrecondition, format!("{id} is over, or never was")),
            Some(Found::Running(_)) => Ok(None),
            Some(Found::Ended(ended)) => {
                let Ending::Done(results) = &ended.ending else {
                    return refuse(Reason::FailedPrecondition, format!("{id} is over: {}", ended.outcome()));
                };
                let rows = results.iter().filter_map(|tablet| self.row(*tablet).cloned());
                let rows: Vec<MetaRow> = rows.filter(|row| row.owner() == Some(server)).collect();
                if rows.len() < results.len() {
                    return refuse(Reason::StaleOwner, format!("{id} is done, and its results have moved on"));
                }
                Ok(Some(rows))
            }
        }
    }

    /// The row, served by the reporter under this epoch, in this procedure.
    fn quiet_row(&self, server: ServerId, key: TabletKey, id: ProcedureId) -> Result<&MetaRow, Refusal> {
        let row = self.owned_row(server, key)?;
        if row.state != TabletState::Open(server) || row.procedure != Some(id) {
            let message = format!("{} is {:?}, in {:?}", row.tablet, row.state, row.procedure);
            return Err(Refusal::new(Reason::FailedPrecondition, message));
        }
        Ok(row)
    }

    /// What both remember must be in one file: else retries of what one of them did would be done again.
    fn check_memory(
        &self,
        left: &MetaRow,
        right: &MetaRow,
        server: ServerId,
        memory: Option<&Arc<str>>,
    ) -> Result<(), Refusal> {
        let refuse = |message| Err(Refusal::new(Reason::InvalidArgument, message));
        let Some(path) = memory else {
            return match left.memory_file.is_some() || right.memory_file.is_some() {
                true => refuse(format!("{} and {} remember something", left.tablet, right.tablet)),
                false => Ok(()),
            };
        };
        if self.is_named(path) || creator(path).is_some_and(|creator| creator != server) {
            return refuse(format!("memory file {path} is not new, or not {server}'s"));
        }
        Ok(())
    }

    fn half(
        &mut self,
        row: &MetaRow,
        range: RowRange,
        shares: &BTreeMap<(&str, &[u8]), &FileShare>,
        part: impl Fn(&FileShare) -> (u64, u64),
    ) -> Result<MetaRow, Refusal> {
        let mut groups: FewMap<u32, Vec<FileRef>> = FewMap::new();
        for (group, files) in row.groups.iter() {
            let mut kept = Vec::new();
            for file in files {
                let (bytes, cells) = part(shares[&(&*file.path, &file.range.start[..])]);
                if bytes == 0 && cells == 0 {
                    continue;
                }
                let clipped = file.range.intersect(&range);
                if clipped.is_empty() {
                    let message = format!("{:?} of {} has nothing in {range:?}", file.range, file.path);
                    return Err(Refusal::new(Reason::InvalidArgument, message));
                }
                kept.push(FileRef { range: clipped, bytes, cells, ..file.clone() });
            }
            if !kept.is_empty() {
                *groups.entry(*group) = kept;
            }
        }
        Ok(MetaRow {
            epoch: row.epoch,
            groups,
            flushed_seq: row.flushed_seq,
            memory_file: row.memory_file.clone(),
            ..MetaRow::new(TabletId(0), row.table, range)
        })
    }

    /// Puts the new rows, OPENING at the server under the next epoch, in place of the old ones; ends the
    /// procedure. Gives the new tablets' ids.
    fn reshape(
        &mut self,
        old: &[TabletId],
        mut new: Vec<MetaRow>,
        server: ServerId,
        id: ProcedureId,
        micros: i64,
    ) -> Vec<TabletId> {
        for row in &mut new {
            if row.tablet == TabletId(0) {
                row.tablet = self.ids.tablet();
            }
            row.epoch = Epoch(row.epoch.0 + 1);
            row.state = TabletState::Opening(server);
            // Before anyone relies on it; of what came before nothing is needed: it is all flushed.
            row.needed_logs = FewSet::from([server]);
            row.made_by = Some(id);
            row.born_epoch = row.epoch;
            row.born_micros = micros;
        }
        let made: Vec<TabletId> = new.iter().map(|row| row.tablet).collect();
        for tablet in old {
            let row = self.row(*tablet).expect("the caller found the row");
            let born = row.made_by.is_none().then_some(row.born_micros);
            born.into_iter().for_each(|micros| self.history.add_birth(*tablet, micros));
        }
        self.replace_rows(old, new);
        self.end_procedure(id, Ending::Done(made.clone()), Some(micros));
        made
    }
}

fn not_this(id: ProcedureId, what: &str) -> Refusal {
    Refusal::new(Reason::FailedPrecondition, format!("{id} is not {what}"))
}

/// Everything up to `flushed` is in files, the reporter knows the row as it is, and no log but its own is needed.
fn require_flushed(row: &MetaRow, server: ServerId, flushed: uruk_proto::SeqNo) -> Result<(), Refusal> {
    if row.flushed_seq != flushed {
        let message = format!("{} is flushed up to {}, not {flushed}", row.tablet, row.flushed_seq);
        return Err(Refusal::new(Reason::FailedPrecondition, message));
    }
    if row.needed_logs != FewSet::from([server]) {
        let message = format!("{} needs the logs of {:?}", row.tablet, row.needed_logs);
        return Err(Refusal::new(Reason::FailedPrecondition, message));
    }
    Ok(())
}

/// The shares by reference: exactly one for each reference of the row.
fn shares<'a>(row: &MetaRow, files: &'a [FileShare]) -> Result<BTreeMap<(&'a str, &'a [u8]), &'a FileShare>, Refusal> {
    let shares: BTreeMap<(&str, &[u8]), &FileShare> =
        files.iter().map(|share| ((&*share.path, &share.low[..]), share)).collect();
    let named: BTreeSet<(&str, &[u8])> = row.files().map(|file| (&*file.path, &file.range.start[..])).collect();
    let is_exact = shares.len() == files.len() && named.len() == row.files().count();
    if is_exact && shares.keys().eq(named.iter()) {
        return Ok(shares);
    }
    let message = format!("{} names {} files, not the {} that are shared out", row.tablet, named.len(), files.len());
    Err(Refusal::new(Reason::FailedPrecondition, message))
}
