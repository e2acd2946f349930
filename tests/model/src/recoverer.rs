//! Those who seal a log. Each step is a transition, so that they may die between any two.
//!
//! | transition | step | mirrors `dfs-sim/src/client/logs/` |
//! |---|---|---|
//! | [`close`] | 1 | `seal.rs`: `close_log` |
//! | [`begin`] | 2 | `seal.rs`: `begin_recovery`; `seal/round.rs` |
//! | `replica::fence` | 3 | `seal/fence.rs` |
//! | [`decide`] | 4, 5 | `seal/decide.rs` |
//! | [`copy`] | 6 | `seal/copy.rs`; `chunkserver/replica/{sealing,acknowledging}.rs`: completions |
//! | [`seal`] | 7 | `seal.rs`: `seal_segment` |
//! | `replica::finish` | 8 | `seal.rs`: `finish_in_background`; the controllers do it too |
//! | [`give_result`] | | `seal.rs`: `seal` returns |
//! | [`die`] | | the caller starts anew, with a larger r |

use crate::SealModel;
use crate::controller;
use crate::mutations::Mutation;
use crate::replica::{Status, prefix};
use crate::state::{Broken, State};

/// A fenced member's answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Answer {
    /// Validated length.
    pub length: u8,
    /// Highest committed length that it knows.
    pub committed: u8,
}

/// How far a recoverer is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Step {
    /// Not begun, or died.
    #[default]
    Idle,
    /// Step 1 is done; looks for a segment that is not sealed.
    Closed,
    /// Step 2 is done: asks the members.
    Fencing {
        /// Its number.
        r: u8,
        /// Which segment.
        segment: u8,
    },
    /// Steps 3 to 5 are done: copies until enough hold it.
    Copying {
        /// Its number.
        r: u8,
        /// Which segment.
        segment: u8,
        /// Where it shall end.
        length: u8,
    },
    /// `seal` has returned.
    Done,
}

/// A recoverer. Answers and holders are kept with the servers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Recoverer {
    /// How far it is.
    pub step: Step,
}

/// Step 1.
pub fn close(state: &mut State, j: usize) -> Option<()> {
    if state.recoverers[j].step != Step::Idle {
        return None;
    }
    state.controller.close();
    state.recoverers[j].step = Step::Closed;
    Some(())
}

/// Step 2.
pub fn begin(model: &SealModel, state: &mut State, j: usize) -> Option<()> {
    if state.recoverers[j].step != Step::Closed {
        return None;
    }
    let segment = match state.controller.unsealed() {
        Some(segment) => segment,
        None if model.has(Mutation::SealedNotFinal) => 0,
        None => return None,
    };
    let r = state.controller.begin(model, segment)?;
    state.recoverers[j].step = Step::Fencing { r, segment: segment as u8 };
    state.forget_answers(j);
    Some(())
}

/// Steps 4 and 5: enough answers of members; the longest length; a contradiction is waited out.
pub fn decide(model: &SealModel, state: &mut State, j: usize) -> Option<()> {
    let Step::Fencing { r, segment } = state.recoverers[j].step else { return None };
    let answers: Vec<Answer> = state.servers.iter().filter_map(|s| s.answers[j]).collect();
    let spared = u8::from(model.has(Mutation::TooFewAnswers));
    let needed = model.bounds.members - model.bounds.quorum + 1 - spared;
    if answers.len() < needed as usize {
        return None;
    }
    let lengths = answers.iter().map(|a| a.length);
    let length = if model.has(Mutation::ShortestLength) { lengths.min() } else { lengths.max() }.unwrap_or(0);
    if answers.iter().any(|a| a.committed > length) {
        return None;
    }
    for server in &mut state.servers {
        server.holds[j] = server.answers[j].is_some_and(|a| a.length >= length);
        server.answers[j] = None;
    }
    state.recoverers[j].step = Step::Copying { r, segment, length };
    Some(())
}

/// Step 6: a fenced member that lacks the end gets it, or a server that never was a member gets all.
pub fn copy(model: &SealModel, state: &mut State, j: usize, server: usize) -> Option<()> {
    let Step::Copying { r, segment, length } = state.recoverers[j].step else { return None };
    let segment = segment as usize;
    if state.holders(j) >= model.bounds.quorum || state.servers[server].holds[j] {
        return None;
    }
    let unfenced = model.has(Mutation::NoFence) || model.has(Mutation::UnfencedCounts);
    let readable = |s: &&crate::state::Server| {
        let replica = &s.replicas[segment];
        let granted = replica.fence == r || replica.status == Status::Sealed || unfenced;
        s.holds[j] && !s.lost && !replica.distrusted && granted && replica.length() >= length
    };
    let source = state.servers.iter().find(readable)?.replicas[segment];
    let target = &mut state.servers[server];
    let replica = &mut target.replicas[segment];
    let may = match replica.status {
        Status::Absent | Status::Open | Status::Shut if target.member => replica.fence == r || unfenced,
        Status::Absent | Status::Open | Status::Shut => replica.fence <= r,
        Status::Sealed => replica.length() == length,
        Status::Deleted => false,
    };
    if !may || target.lost || replica.distrusted {
        return None;
    }
    if replica.status != Status::Sealed {
        let new = source.have & prefix(length) & !replica.have;
        replica.have |= new;
        replica.other |= source.other & new;
        if !replica.lying {
            replica.durable = replica.length();
        }
        replica.fence = r;
        match replica.status {
            Status::Absent => replica.status = Status::Shut,
            // The writer's stream would hear of what became durable, beyond what the fence returned.
            Status::Open if model.has(Mutation::AckAfterCompletion) => {
                replica.promised = replica.promised.max(replica.durable);
            }
            Status::Open | Status::Shut | Status::Sealed | Status::Deleted => {}
        }
    }
    target.holds[j] = true;
    Some(())
}

/// Step 6 on a new server begins: the file is there, and empty.
pub fn begin_copy(state: &mut State, j: usize, server: usize) -> Option<()> {
    let Step::Copying { r, segment, .. } = state.recoverers[j].step else { return None };
    let target = &mut state.servers[server];
    let replica = &mut target.replicas[segment as usize];
    if target.member || target.lost || replica.status != Status::Absent {
        return None;
    }
    replica.status = Status::Shut;
    replica.fence = r;
    Some(())
}

/// Step 8 before step 7.
pub fn cut_early(model: &SealModel, state: &mut State, j: usize, server: usize) -> Option<()> {
    let Step::Copying { segment, length, .. } = state.recoverers[j].step else { return None };
    if !model.has(Mutation::CutsBeforeSealed) {
        return None;
    }
    crate::replica::finish(state, server, segment as usize, length)
}

/// Step 7. The loser adopts the winner's result: it looks at the log again.
pub fn seal(model: &SealModel, state: &mut State, j: usize) -> Option<()> {
    let Step::Copying { r, segment, length } = state.recoverers[j].step else { return None };
    if state.holders(j) < model.bounds.quorum && !model.has(Mutation::NoCopies) {
        return None;
    }
    controller::seal(model, state, segment as usize, r, length);
    state.forget_answers(j);
    state.recoverers[j].step = Step::Closed;
    if model.has(Mutation::LoserKeepsItsResult) {
        let end = state.controller.base(segment as usize) + length;
        finish_with(state, j, end);
    }
    Some(())
}

/// `seal` returns the end.
pub fn give_result(state: &mut State, j: usize) -> Option<()> {
    if state.recoverers[j].step != Step::Closed {
        return None;
    }
    let end = state.controller.end()?;
    finish_with(state, j, end);
    Some(())
}

fn finish_with(state: &mut State, j: usize, end: u8) {
    state.recoverers[j].step = Step::Done;
    match state.returned {
        Some(returned) if returned != end => state.break_promise(Broken::S4),
        Some(_) => {}
        None => state.returned = Some(end),
    }
}

/// It dies, and may begin anew.
pub fn die(model: &SealModel, state: &mut State, j: usize) -> Option<()> {
    let alive = !matches!(state.recoverers[j].step, Step::Idle | Step::Done);
    if !alive || state.deaths == model.bounds.deaths {
        return None;
    }
    state.deaths += 1;
    state.recoverers[j].step = Step::Idle;
    state.forget_answers(j);
    Some(())
}

impl State {
    /// Servers that hold what recoverer `j` wants to seal, as far as it knows.
    pub fn holders(&self, j: usize) -> u8 {
        self.servers.iter().filter(|s| s.holds[j]).count() as u8
    }

    /// Recoverer `j` starts from nothing.
    pub fn forget_answers(&mut self, j: usize) {
        for server in &mut self.servers {
            server.answers[j] = None;
            server.holds[j] = false;
        }
    }
}
