//! What Raft makes atomic: one transition per command.
//!
//! | transition | step | mirrors `dfs-sim/src/controller/state/logs.rs` |
//! |---|---|---|
//! | [`Controller::close`] | 1 | `close_log` |
//! | [`Controller::begin`] | 2 | `begin_recovery` |
//! | [`seal`] | 7 | `seal_segment` |
//! | [`roll`] | roll | `roll_segment` |
//! | [`trim`], [`delete`] | trim | `trim_log`, `delete_log` |

use crate::SealModel;
use crate::mutations::Mutation;
use crate::state::{Broken, SEGMENTS_MAX, State};
use crate::writer::Phase;

/// Where a segment is between open and sealed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum SegmentState {
    /// Not created.
    #[default]
    None,
    /// Its writer appends.
    Open,
    /// A recoverer with this r holds it.
    Recovering(u8),
    /// Final.
    Sealed(u8),
}

/// The log's record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Controller {
    /// No new segments, no trims.
    pub closed: bool,
    /// By index.
    pub segments: [SegmentState; SEGMENTS_MAX],
    /// Segments before this one may be gone.
    pub trimmed: u8,
    /// All of them may be gone.
    pub deleted: bool,
    /// Largest r drawn.
    pub recovery: u8,
}

impl Controller {
    /// A log with its first segment.
    pub fn new() -> Controller {
        let mut segments = [SegmentState::None; SEGMENTS_MAX];
        segments[0] = SegmentState::Open;
        Controller { closed: false, segments, trimmed: 0, deleted: false, recovery: 0 }
    }

    /// Records before the segment: segments are continuous.
    pub fn base(&self, segment: usize) -> u8 {
        let length = |state: &SegmentState| match state {
            SegmentState::Sealed(length) => *length,
            SegmentState::None | SegmentState::Open | SegmentState::Recovering(_) => 0,
        };
        self.segments[..segment].iter().map(length).sum()
    }

    /// The first segment that is not sealed.
    pub fn unsealed(&self) -> Option<usize> {
        self.segments.iter().position(|s| matches!(s, SegmentState::Open | SegmentState::Recovering(_)))
    }

    /// Where the log ends, if no segment is open.
    pub fn end(&self) -> Option<u8> {
        self.unsealed().is_none().then(|| self.base(SEGMENTS_MAX))
    }

    /// Whether the segment's data may go.
    pub fn is_trimmed(&self, segment: usize) -> bool {
        self.deleted || segment < self.trimmed as usize
    }

    /// Step 1.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Whether rolls are refused.
    pub fn refuses_rolls(&self, model: &SealModel) -> bool {
        self.closed && !model.has(Mutation::LogNotClosed) && !model.has(Mutation::SegmentAfterClosing)
    }

    /// Whether trims are refused.
    fn refuses_trims(&self, model: &SealModel) -> bool {
        self.closed && !model.has(Mutation::LogNotClosed) && !model.has(Mutation::TrimAfterClosing)
    }

    /// Step 2: the segment is held under a new largest r. Numbers are drawn when the command is
    /// carried out: one that was drawn earlier and is lower by then would be refused.
    pub fn begin(&mut self, model: &SealModel, segment: usize) -> Option<u8> {
        if self.recovery == model.bounds.rounds {
            return None;
        }
        let may = match self.segments[segment] {
            SegmentState::None => false,
            SegmentState::Open | SegmentState::Recovering(_) => true,
            SegmentState::Sealed(_) => model.has(Mutation::SealedNotFinal),
        };
        if !may {
            return None;
        }
        self.recovery += 1;
        if !model.has(Mutation::NoRecoveringMark) {
            self.segments[segment] = SegmentState::Recovering(self.recovery);
        }
        Some(self.recovery)
    }
}

/// Step 7. `true` when the segment is sealed now, by whomever.
pub fn seal(model: &SealModel, state: &mut State, segment: usize, r: u8, length: u8) -> bool {
    let may = match state.controller.segments[segment] {
        SegmentState::None => false,
        SegmentState::Open => model.has(Mutation::NoRecoveringMark),
        SegmentState::Recovering(held) => held == r || model.has(Mutation::AnyRecovererSeals),
        SegmentState::Sealed(_) if model.has(Mutation::SealedNotFinal) => true,
        SegmentState::Sealed(_) => return true,
    };
    if may {
        seal_at(model, state, segment, length);
    }
    may
}

fn seal_at(model: &SealModel, state: &mut State, segment: usize, length: u8) {
    if let SegmentState::Sealed(before) = state.controller.segments[segment]
        && before != length
        && model.checked == crate::Checked::All
    {
        state.break_promise(Broken::I7);
    }
    state.controller.segments[segment] = SegmentState::Sealed(length);
    let end = state.controller.base(segment) + length;
    if end < state.writer.acknowledged {
        state.break_promise(Broken::S2);
    }
}

/// The writer's roll arrives: seals its segment and creates the next one.
pub fn roll(model: &SealModel, state: &mut State) -> Option<()> {
    let Phase::Rolling { length } = state.writer.phase else { return None };
    let (segment, next) = (state.writer.segment as usize, state.writer.segment as usize + 1);
    if state.controller.segments[segment] != SegmentState::Open || state.controller.refuses_rolls(model) {
        return None;
    }
    state.controller.segments[next] = SegmentState::Open;
    seal_at(model, state, segment, length);
    Some(())
}

/// The writer's trim arrives: everything before its open segment may go.
pub fn trim(model: &SealModel, state: &mut State) -> Option<()> {
    let upto = state.writer.segment;
    if !model.bounds.trims || state.controller.trimmed >= upto || state.controller.refuses_trims(model) {
        return None;
    }
    state.controller.trimmed = upto;
    if state.controller.closed {
        state.break_promise(Broken::S7);
    }
    Some(())
}

/// The sealed log was read and is let go of.
pub fn delete(model: &SealModel, state: &mut State) -> Option<()> {
    if !model.bounds.trims || state.controller.deleted || state.returned.is_none() {
        return None;
    }
    state.controller.end().filter(|_| state.controller.closed)?;
    state.controller.deleted = true;
    Some(())
}

impl Default for Controller {
    fn default() -> Controller {
        Controller::new()
    }
}
