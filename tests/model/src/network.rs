//! The transitions: what may happen next, which is mostly what may arrive.
//!
//! Nothing is queued. The writer's records, once their segment exists, may arrive at any time, again,
//! out of order, or never; acknowledgements likewise, up to the highest that was sent; a fence with any r
//! that was ever drawn, also when its recoverer is dead. [`candidates`] lists what might be; [`apply`]
//! leaves to each part what it takes, so that every guard stands in one place.

use crate::SealModel;
use crate::controller::{self, SegmentState};
use crate::mutations::Mutation;
use crate::recoverer::{self, Step};
use crate::replica;
use crate::state::{SERVERS, State};
use crate::writer;

/// A transition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names of the fields say it all")]
pub enum Action {
    /// A record arrives.
    Append { server: usize, segment: usize, record: u8, other: bool },
    /// A sync ends well.
    Sync { server: usize, segment: usize },
    /// An acknowledgement goes out unsynced.
    EarlyAck { server: usize, segment: usize },
    /// An acknowledgement arrives.
    Acknowledgement { server: usize, length: u8 },
    /// The writer asks for a roll.
    AskRoll,
    /// The roll is carried out.
    Roll,
    /// The writer hears of it.
    HearRoll,
    /// A replica hears how far the segment is committed.
    TellCommitted { server: usize },
    /// The writer trims.
    Trim,
    /// The sealed log is deleted.
    Delete,
    /// A trimmed replica goes.
    Drop { server: usize, segment: usize },
    /// Somebody reads what he may.
    Read { server: usize, segment: usize },
    /// Step 1.
    Close { recoverer: usize },
    /// Step 2.
    Begin { recoverer: usize },
    /// Step 3; `None`: the answer is lost, or nobody waits for it.
    Fence { server: usize, segment: usize, r: u8, recoverer: Option<usize> },
    /// Asks without a fence.
    Peek { server: usize, segment: usize, recoverer: usize },
    /// Steps 4 and 5.
    Decide { recoverer: usize },
    /// Step 6 begins on a new server.
    BeginCopy { recoverer: usize, server: usize },
    /// Step 6, one copy.
    Copy { recoverer: usize, server: usize },
    /// Step 7.
    Seal { recoverer: usize },
    /// Step 8 before step 7.
    CutEarly { recoverer: usize, server: usize },
    /// Step 8.
    Finish { server: usize, segment: usize },
    /// `seal` returns.
    GiveResult { recoverer: usize },
    /// A recoverer dies.
    Die { recoverer: usize },
    /// A chunk server is killed, and starts again.
    Crash { server: usize },
    /// Its machine loses power.
    PowerLoss { server: usize, kept: u8 },
    /// A sync fails.
    SyncFails { server: usize, segment: usize },
    /// A disk is lost.
    DiskLost { server: usize },
}

/// All that might happen.
pub fn candidates(model: &SealModel, state: &State, actions: &mut Vec<Action>) {
    actions.extend([Action::AskRoll, Action::Roll, Action::HearRoll, Action::Trim, Action::Delete]);
    for recoverer in 0..model.bounds.recoverers as usize {
        recover(state, recoverer, actions);
    }
    for server in 0..SERVERS {
        actions.extend((1..=model.bounds.records).map(|length| Action::Acknowledgement { server, length }));
        actions.extend((0..model.bounds.records).map(|kept| Action::PowerLoss { server, kept }));
        actions.push(Action::Crash { server });
        actions.push(Action::DiskLost { server });
        actions.push(Action::TellCommitted { server });
        for segment in 0..model.bounds.segments as usize {
            if state.controller.segments[segment] != SegmentState::None {
                at_replica(model, state, server, segment, actions);
            }
        }
    }
}

fn recover(state: &State, recoverer: usize, actions: &mut Vec<Action>) {
    actions.extend([
        Action::Close { recoverer },
        Action::Begin { recoverer },
        Action::Decide { recoverer },
        Action::Seal { recoverer },
        Action::GiveResult { recoverer },
        Action::Die { recoverer },
    ]);
    for server in 0..SERVERS {
        match state.recoverers[recoverer].step {
            Step::Fencing { r, segment } => {
                let segment = segment as usize;
                actions.push(Action::Fence { server, segment, r, recoverer: Some(recoverer) });
                actions.push(Action::Peek { server, segment, recoverer });
            }
            Step::Copying { .. } => {
                actions.push(Action::BeginCopy { recoverer, server });
                actions.push(Action::Copy { recoverer, server });
                actions.push(Action::CutEarly { recoverer, server });
            }
            Step::Idle | Step::Closed | Step::Done => {}
        }
    }
}

fn at_replica(model: &SealModel, state: &State, server: usize, segment: usize, actions: &mut Vec<Action>) {
    // The writer knows of the segment once it hears of the roll.
    if segment <= state.writer.segment as usize {
        for record in 0..model.bounds.records - state.controller.base(segment) {
            actions.push(Action::Append { server, segment, record, other: false });
            if model.has(Mutation::OtherBytes) {
                actions.push(Action::Append { server, segment, record, other: true });
            }
        }
    }
    actions.extend([
        Action::Sync { server, segment },
        Action::EarlyAck { server, segment },
        Action::Drop { server, segment },
        Action::Read { server, segment },
        Action::Finish { server, segment },
        Action::SyncFails { server, segment },
    ]);
    let recovered = segment + 1 == model.bounds.segments as usize
        || state.controller.segments.get(segment + 1).is_none_or(|next| *next == SegmentState::None);
    if recovered {
        let drawn = 1..=state.controller.recovery;
        actions.extend(drawn.map(|r| Action::Fence { server, segment, r, recoverer: None }));
    }
}

/// Carries out `action`, or says that it changes nothing.
pub fn apply(model: &SealModel, state: &mut State, action: Action) -> Option<()> {
    match action {
        Action::Append { server, segment, record, other } => {
            replica::append(model, state, server, segment, record, other)
        }
        Action::Sync { server, segment } => replica::sync(model, state, server, segment),
        Action::EarlyAck { server, segment } => replica::early_ack(model, state, server, segment),
        Action::Acknowledgement { server, length } => writer::acknowledgement(model, state, server, length),
        Action::AskRoll => writer::ask_roll(model, state),
        Action::Roll => controller::roll(model, state),
        Action::HearRoll => writer::hear_roll(model, state),
        Action::TellCommitted { server } => writer::tell_committed(model, state, server),
        Action::Trim => controller::trim(model, state),
        Action::Delete => controller::delete(model, state),
        Action::Drop { server, segment } => replica::drop_replica(model, state, server, segment),
        Action::Read { server, segment } => replica::read(model, state, server, segment),
        Action::Close { recoverer } => recoverer::close(state, recoverer),
        Action::Begin { recoverer } => recoverer::begin(model, state, recoverer),
        Action::Fence { server, segment, r, recoverer } => replica::fence(model, state, server, segment, r, recoverer),
        Action::Peek { server, segment, recoverer } => replica::peek(model, state, server, segment, recoverer),
        Action::Decide { recoverer } => recoverer::decide(model, state, recoverer),
        Action::BeginCopy { recoverer, server } => recoverer::begin_copy(state, recoverer, server),
        Action::Copy { recoverer, server } => recoverer::copy(model, state, recoverer, server),
        Action::Seal { recoverer } => recoverer::seal(model, state, recoverer),
        Action::CutEarly { recoverer, server } => recoverer::cut_early(model, state, recoverer, server),
        Action::Finish { server, segment } => match state.controller.segments[segment] {
            SegmentState::Sealed(length) => replica::finish(state, server, segment, length),
            SegmentState::None | SegmentState::Open | SegmentState::Recovering(_) => None,
        },
        Action::GiveResult { recoverer } => recoverer::give_result(state, recoverer),
        Action::Die { recoverer } => recoverer::die(model, state, recoverer),
        Action::Crash { server } => replica::process_crash(model, state, server),
        Action::PowerLoss { server, kept } => replica::power_loss(model, state, server, kept),
        Action::SyncFails { server, segment } => replica::sync_fails(model, state, server, segment),
        Action::DiskLost { server } => replica::disk_lost(model, state, server),
    }
}
