//! The log's writer. All of its records are sent at once: one that is not sent yet and one that has
//! not arrived yet look the same.
//!
//! | transition | mirrors `dfs-sim/src/client/logs/` |
//! |---|---|
//! | [`acknowledgement`] | `window.rs`: `on_ack`, `advance`; `writer/task.rs`: `on_committed` |
//! | [`ask_roll`], [`hear_roll`] | `writer/task.rs`: `start_roll`, `on_rolled`; `writer/roll.rs` |
//! | [`tell_committed`] | `writer/task.rs`: `tell_committed_if_idle` |

use crate::SealModel;
use crate::controller::SegmentState;
use crate::mutations::Mutation;
use crate::replica::Status;
use crate::state::{Broken, State};

/// What the writer is doing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Phase {
    /// Appending.
    Running,
    /// A roll at this length was asked for: nothing more is acknowledged in this segment.
    Rolling {
        /// Lc.
        length: u8,
    },
    /// An error came out (S6).
    Ended,
}

/// The writer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Writer {
    /// What it is doing.
    pub phase: Phase,
    /// The segment that it writes.
    pub segment: u8,
    /// Acknowledged in this segment.
    pub committed: u8,
    /// What `flush` has returned, from the start of the log.
    pub acknowledged: u8,
}

impl Writer {
    /// Nothing acknowledged yet.
    pub fn new() -> Writer {
        Writer { phase: Phase::Running, segment: 0, committed: 0, acknowledged: 0 }
    }
}

impl Default for Writer {
    fn default() -> Writer {
        Writer::new()
    }
}

/// `server` is heard to hold `length` records of the writer's segment.
pub fn acknowledgement(model: &SealModel, state: &mut State, server: usize, length: u8) -> Option<()> {
    let segment = state.writer.segment as usize;
    let takes = match state.writer.phase {
        Phase::Running => true,
        Phase::Rolling { .. } => model.has(Mutation::AcksAfterRollRequest),
        Phase::Ended => model.has(Mutation::AcksAfterError),
    };
    let target = &mut state.servers[server];
    if !takes || length <= target.heard || length > target.replicas[segment].promised {
        return None;
    }
    target.heard = length;
    let mut heard: Vec<u8> = state.servers.iter().filter(|s| s.member).map(|s| s.heard).collect();
    heard.sort_unstable_by(|a, b| b.cmp(a));
    let quorum = if model.has(Mutation::AckByOne) { 1 } else { model.bounds.quorum as usize };
    let committed = heard[quorum - 1];
    if committed > state.writer.committed {
        state.writer.committed = committed;
        acknowledge(state, state.controller.base(segment) + committed);
    }
    Some(())
}

/// `flush` returns `upto`.
fn acknowledge(state: &mut State, upto: u8) {
    if upto <= state.writer.acknowledged {
        return;
    }
    state.writer.acknowledged = upto;
    if state.writer.phase == Phase::Ended {
        state.break_promise(Broken::S6);
    }
    // S3. Between the last SEALED and the first return of a seal it would be a breach all the same:
    // that seal is about to return.
    let ended = state.returned.or(state.controller.end().filter(|_| state.controller.closed));
    if ended.is_some_and(|end| upto > end) {
        state.break_promise(Broken::S3);
    }
}

/// The segment is full, or a replica is slow: asks to seal it at what is acknowledged.
pub fn ask_roll(model: &SealModel, state: &mut State) -> Option<()> {
    if state.writer.phase != Phase::Running || state.writer.segment + 1 >= model.bounds.segments {
        return None;
    }
    state.writer.phase = Phase::Rolling { length: state.writer.committed };
    Some(())
}

/// The controller's answer to the roll: the next segment, or that the log is closed.
pub fn hear_roll(model: &SealModel, state: &mut State) -> Option<()> {
    if !matches!(state.writer.phase, Phase::Rolling { .. }) {
        return None;
    }
    let next = state.writer.segment as usize + 1;
    let rolled = state.controller.segments[next] != SegmentState::None;
    let closed = state.controller.refuses_rolls(model);
    if rolled && !closed {
        state.writer.phase = Phase::Running;
        state.writer.segment += 1;
        state.writer.committed = 0;
        state.servers.iter_mut().for_each(|s| s.heard = 0);
        return Some(());
    }
    let refused = closed || state.controller.segments[next - 1] != SegmentState::Open;
    refused.then(|| state.writer.phase = Phase::Ended)
}

/// A message tells a replica how far the segment is committed.
pub fn tell_committed(model: &SealModel, state: &mut State, server: usize) -> Option<()> {
    let (segment, committed) = (state.writer.segment as usize, state.writer.committed);
    let target = &mut state.servers[server];
    let replica = &mut target.replicas[segment];
    let takes = replica.status == Status::Open && replica.fence == 0 && !replica.distrusted && !target.lost;
    if !model.bounds.readers || !takes || replica.committed >= committed {
        return None;
    }
    replica.committed = committed;
    Some(())
}
