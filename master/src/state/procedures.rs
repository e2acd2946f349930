//! Procedures: what changes the shape or the place of a tablet, one at a time for each tablet.
//!
//! Invariants: (1) a running procedure has its tablets' rows, and only those, locked (`row.procedure`), under
//! the rows' epochs; (2) what has ended never runs again, so that whatever is still under way of it is refused;
//! (3) a request that is remembered finds its procedure.
//!
//! | work | ends with |
//! |---|---|
//! | Split | `TabletSplit` |
//! | Merge | `TabletsMerged`; the right tablet is brought to the left one's server before |
//! | Move | `Opened` of the tablet |
//!
//! or declined by the server, or because its ground is gone, or because the leader gives it up.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uruk_base::planted::{Planted, is_planted};
use uruk_proto::schema::validate_row_key;
use uruk_proto::{SeqNo, ServerId, TabletId};

use super::row::{CloseKind, MetaRow, TabletState};
use super::tables::TableState;
use super::{Applied, State};
use crate::command::{Reason, Refusal, Reply, TabletKey};

/// Ended procedures that are remembered.
pub const ENDED_KEPT: usize = 1_000;

/// Names a procedure, for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct ProcedureId(pub u64);

impl fmt::Display for ProcedureId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "procedure-{}", self.0)
    }
}

/// What a procedure does, to which tablets under which assignment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Work {
    Split {
        tablet: TabletKey,
        /// First row of the right half; None: the server chooses.
        at: Option<Bytes>,
        /// The server chooses where the load is, not where the bytes are.
        by_load: bool,
    },
    /// `right` follows `left` in its table.
    Merge {
        left: TabletKey,
        right: TabletKey,
    },
    Move {
        tablet: TabletKey,
        target: ServerId,
    },
}

impl Work {
    pub fn name(&self) -> &'static str {
        match self {
            Work::Split { .. } => "split",
            Work::Merge { .. } => "merge",
            Work::Move { .. } => "move",
        }
    }

    /// The tablets that it has.
    pub fn keys(&self) -> Vec<TabletKey> {
        match self {
            Work::Split { tablet, .. } | Work::Move { tablet, .. } => vec![*tablet],
            Work::Merge { left, right } => vec![*left, *right],
        }
    }

    /// The tablet that is to go to another server in the course of it, if any.
    fn moving(&self) -> Option<TabletId> {
        match self {
            Work::Split { .. } => None,
            Work::Merge { right, .. } => Some(right.tablet),
            Work::Move { tablet, .. } => Some(tablet.tablet),
        }
    }

    /// Where it wants the tablet, which it has, if that has to go anywhere; `owner` knows where those are that it has.
    pub(super) fn wants_at(&self, tablet: TabletId, owner: impl Fn(TabletId) -> Option<ServerId>) -> Option<ServerId> {
        match self {
            Work::Move { target, .. } => Some(*target),
            Work::Merge { left, right } if right.tablet == tablet => owner(left.tablet),
            Work::Split { .. } | Work::Merge { .. } => None,
        }
    }

    /// The tablet is under another assignment now.
    fn follow(&mut self, new: TabletKey) {
        match self {
            Work::Split { tablet, .. } | Work::Move { tablet, .. } => *tablet = new,
            Work::Merge { left, right } => {
                let place = if left.tablet == new.tablet { left } else { right };
                *place = new;
            }
        }
    }
}

/// A procedure.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Procedure {
    pub id: ProcedureId,
    pub work: Work,
    /// Why it was started.
    pub reason: String,
    /// The caller's random number; 0: nobody asks again.
    pub request: u64,
    pub started_micros: i64,
}

/// What comes with the order to start a procedure.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ask {
    pub reason: String,
    /// See [`Procedure::request`].
    pub request: u64,
    pub micros: i64,
}

/// How a procedure ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Ending {
    /// With these tablets.
    Done(Vec<TabletId>),
    /// The server does not do it.
    Declined(String),
    /// It can not be done any more.
    GroundGone(String),
}

/// A procedure that is over.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ended {
    pub procedure: Procedure,
    pub ending: Ending,
    pub ended_micros: i64,
}

impl Ended {
    /// For people and callers.
    pub fn outcome(&self) -> String {
        match &self.ending {
            Ending::Done(_) => "done".to_owned(),
            Ending::Declined(reason) => format!("declined: {reason}"),
            Ending::GroundGone(reason) => format!("given up: {reason}"),
        }
    }
}

/// A procedure, wherever it stands.
#[derive(Clone, Copy, Debug)]
pub enum Found<'a> {
    Running(&'a Procedure),
    Ended(&'a Ended),
}

/// All procedures that run or are remembered.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Procedures {
    last: u64,
    running: BTreeMap<ProcedureId, Procedure>,
    /// Oldest first.
    ended: VecDeque<Ended>,
    /// The latest time that any of it was told: for what ends without one.
    latest_micros: i64,
}

impl Procedures {
    pub fn running(&self) -> &BTreeMap<ProcedureId, Procedure> {
        &self.running
    }

    /// Oldest first.
    pub fn ended(&self) -> impl DoubleEndedIterator<Item = &Ended> {
        self.ended.iter()
    }

    pub fn find(&self, id: ProcedureId) -> Option<Found<'_>> {
        let running = self.running.get(&id).map(Found::Running);
        running.or_else(|| self.ended.iter().rev().find(|ended| ended.procedure.id == id).map(Found::Ended))
    }

    /// The procedure that this request started, if it is remembered.
    pub fn by_request(&self, request: u64) -> Option<ProcedureId> {
        let ended = self.ended.iter().map(|ended| &ended.procedure);
        let mut all = self.running.values().chain(ended);
        all.find(|procedure| request != 0 && procedure.request == request).map(|procedure| procedure.id)
    }

    fn note(&mut self, micros: i64) {
        self.latest_micros = self.latest_micros.max(micros);
    }
}

impl State {
    /// The running procedure that has the tablet.
    pub fn procedure_of(&self, row: &MetaRow) -> Option<&Procedure> {
        self.procedures.running.get(&row.procedure?)
    }

    /// Where the procedure wants its tablet, if it has to go anywhere.
    pub fn wanted_at(&self, row: &MetaRow) -> Option<ServerId> {
        self.procedure_of(row)?.work.wants_at(row.tablet, |tablet| self.row(tablet)?.owner())
    }

    /// The row of a tablet that a procedure may take now.
    fn free_row(&self, key: TabletKey) -> Result<&MetaRow, Refusal> {
        let refuse = |reason, message| Err(Refusal::new(reason, message));
        let tablet = key.tablet;
        let Some(row) = self.row(tablet) else {
            return refuse(Reason::NotFound, format!("{tablet} does not exist"));
        };
        if row.epoch != key.epoch || !row.is_open() {
            let message = format!("{tablet} is {:?} at {}, not open at {}", row.state, row.epoch, key.epoch);
            return refuse(Reason::FailedPrecondition, message);
        }
        if let Some(other) = row.procedure
            && !is_planted(Planted::TwoProceduresOnOneTablet)
        {
            return refuse(Reason::FailedPrecondition, format!("{tablet} is in {other}"));
        }
        if self.tables.get(row.table).is_none_or(|table| table.state != TableState::Ready) {
            return refuse(Reason::FailedPrecondition, format!("the table of {tablet} is not ready"));
        }
        if row.epoch.0 + 2 > SeqNo::EPOCH_MAX {
            return refuse(Reason::FailedPrecondition, format!("{tablet} has no epochs left"));
        }
        Ok(row)
    }

    /// Starts a procedure, unless its request is remembered: then it is that one's.
    pub(super) fn start(&mut self, ask: Ask, start: impl FnOnce(&mut State, Ask) -> Applied) -> Applied {
        match self.procedures.by_request(ask.request) {
            Some(id) => Ok(Reply::Procedure(id)),
            None => start(self, ask),
        }
    }

    fn begin(&mut self, work: Work, ask: Ask) -> ProcedureId {
        let Ask { reason, request, micros } = ask;
        self.procedures.note(micros);
        self.procedures.last += 1;
        let id = ProcedureId(self.procedures.last);
        for key in work.keys() {
            self.change_row(key.tablet, |row| row.procedure = Some(id));
        }
        self.procedures.running.insert(id, Procedure { id, work, reason, request, started_micros: micros });
        id
    }

    /// The procedure is over, and its locks go. Rows that are gone have none.
    pub(super) fn end_procedure(&mut self, id: ProcedureId, ending: Ending, micros: Option<i64>) {
        let Some(procedure) = self.procedures.running.remove(&id) else { return };
        self.procedures.note(micros.unwrap_or_default());
        for key in procedure.work.keys() {
            if self.row(key.tablet).is_some_and(|row| row.procedure == Some(id)) {
                self.change_row(key.tablet, |row| row.procedure = None);
            }
        }
        let ended_micros = self.procedures.latest_micros;
        self.procedures.ended.push_back(Ended { procedure, ending, ended_micros });
        while self.procedures.ended.len() > ENDED_KEPT {
            self.procedures.ended.pop_front();
        }
    }

    /// What has the tablet cannot go on.
    pub(super) fn lose_ground(&mut self, tablet: TabletId, why: impl FnOnce() -> String, micros: Option<i64>) {
        if let Some(id) = self.row(tablet).and_then(|row| row.procedure) {
            self.end_procedure(id, Ending::GroundGone(why()), micros);
        }
    }

    /// The tablet has a new epoch: its procedure goes on under that.
    pub(super) fn follow_epoch(&mut self, id: Option<ProcedureId>, key: TabletKey) {
        if let Some(procedure) = id.and_then(|id| self.procedures.running.get_mut(&id)) {
            procedure.work.follow(key);
        }
    }

    /// Whether the tablet may be without an owner in the course of what has it.
    pub(super) fn may_be_released(&self, row: &MetaRow) -> bool {
        self.procedure_of(row).is_some_and(|procedure| procedure.work.moving() == Some(row.tablet))
    }

    /// The tablet was opened: a move has arrived; so may have the right tablet of a merge.
    pub(super) fn arrived(&mut self, tablet: TabletId, server: ServerId, micros: i64) {
        let Some(procedure) = self.row(tablet).and_then(|row| self.procedure_of(row)) else { return };
        let (id, ending) = match &procedure.work {
            Work::Split { .. } => return,
            Work::Move { .. } => (procedure.id, Ending::Done(vec![tablet])),
            Work::Merge { left, .. } => {
                if self.row(left.tablet).and_then(MetaRow::owner) == Some(server) {
                    return;
                }
                let why = format!("{tablet} was opened on {server}, not beside {}", left.tablet);
                (procedure.id, Ending::GroundGone(why))
            }
        };
        self.end_procedure(id, ending, Some(micros));
    }

    pub(super) fn start_split(&mut self, (tablet, at, by_load): (TabletKey, Option<Bytes>, bool), ask: Ask) -> Applied {
        let row = self.free_row(tablet)?;
        if let Some(at) = &at {
            check_split_key(row, at)?;
        }
        Ok(Reply::Procedure(self.begin(Work::Split { tablet, at, by_load }, ask)))
    }

    pub(super) fn start_merge(&mut self, (left, right): (TabletKey, TabletKey), ask: Ask) -> Applied {
        let (left_row, right_row) = (self.free_row(left)?, self.free_row(right)?);
        require_neighbours(left_row, right_row)?;
        let (to, from) = (left_row.owner(), right_row.owner().expect("it is open"));
        let id = self.begin(Work::Merge { left, right }, ask);
        if to != Some(from) {
            self.change_row(right.tablet, |row| row.state = TabletState::Closing(from, CloseKind::Flush));
        }
        Ok(Reply::Procedure(id))
    }

    pub(super) fn start_move(&mut self, (tablet, target): (TabletKey, ServerId), ask: Ask) -> Applied {
        let owner = self.free_row(tablet)?.owner().expect("it is open");
        if !self.servers.is_live(target) || self.servers.is_draining(target) {
            let message = format!("{target} does not live, or is drained");
            return Err(Refusal::new(Reason::FailedPrecondition, message));
        }
        if owner == target {
            let message = format!("{} is on {target} already", tablet.tablet);
            return Err(Refusal::new(Reason::InvalidArgument, message));
        }
        let id = self.begin(Work::Move { tablet, target }, ask);
        self.change_row(tablet.tablet, |row| row.state = TabletState::Closing(owner, CloseKind::Flush));
        Ok(Reply::Procedure(id))
    }

    /// Answered alike once it is over, however it ended: what is under way of it is refused from now on.
    pub(super) fn decline_procedure(
        &mut self,
        server: ServerId,
        id: ProcedureId,
        reason: String,
        micros: i64,
    ) -> Applied {
        self.require_live_reporter(server)?;
        let Some(procedure) = self.procedures.running.get(&id) else { return Ok(Reply::Done) };
        let key = procedure.work.keys()[0];
        self.owned_row(server, key)?;
        if matches!(procedure.work, Work::Move { .. }) {
            return Err(Refusal::new(Reason::InvalidArgument, format!("{id} is a move")));
        }
        self.end_procedure(id, Ending::Declined(reason), Some(micros));
        Ok(Reply::Done)
    }

    /// The leader gives it up.
    pub(super) fn give_up_procedure(&mut self, id: ProcedureId, reason: String, micros: i64) -> Applied {
        self.end_procedure(id, Ending::GroundGone(reason), Some(micros));
        Ok(Reply::Done)
    }
}

/// Refuses a key that would leave one half empty.
pub(super) fn check_split_key(row: &MetaRow, at: &[u8]) -> Result<(), Refusal> {
    validate_row_key(at)?;
    if row.range.contains(at) && row.range.start[..] != *at {
        return Ok(());
    }
    let message = format!("\"{}\" is not strictly inside of {}", at.escape_ascii(), row.tablet);
    Err(Refusal::new(Reason::InvalidArgument, message))
}

pub(super) fn require_neighbours(left: &MetaRow, right: &MetaRow) -> Result<(), Refusal> {
    let touch = !left.range.end.is_empty() && left.range.end == right.range.start;
    if left.table == right.table && touch {
        return Ok(());
    }
    let message = format!("{} does not follow {}", right.tablet, left.tablet);
    Err(Refusal::new(Reason::InvalidArgument, message))
}
