//! What must hold in every state (S2 to S7, I1 to I9), and states that must be reachable, without
//! which the rest would prove nothing.
//!
//! S1 needs a second `create`, which one Raft command decides: it is not in the model.

use stateright::Property;

use crate::controller::SegmentState;
use crate::recoverer::Step;
use crate::replica::{Replica, Status, prefix};
use crate::state::{Broken, RECOVERERS, SEGMENTS_MAX, Server, State};
use crate::writer::Phase;
use crate::{Checked, SealModel};

type Properties = Vec<Property<SealModel>>;

/// The properties that a run checks.
pub fn properties(checked: Checked) -> Properties {
    let mut properties = promises();
    if checked == Checked::All {
        properties.extend(invariants());
        properties.extend(reachable());
    }
    properties
}

fn unbroken(state: &State, broken: Broken) -> bool {
    state.broken != Some(broken)
}

fn promises() -> Properties {
    vec![
        Property::always("S2 a seal ends at or after every flush", |_, s: &State| unbroken(s, Broken::S2)),
        Property::always("S2 sealed data is there", sealed_data_is_there),
        Property::always("S2 sealed copies are the same", sealed_copies_are_the_same),
        Property::always("S3 no flush beyond a sealed end", |_, s| unbroken(s, Broken::S3)),
        Property::always("S4 every seal returns the same end", |_, s| unbroken(s, Broken::S4)),
        Property::always("S5 sealed replicas hold a prefix without gaps", sealed_replicas_hold_the_prefix),
        Property::always("S6 nothing is acknowledged after an error", |_, s| unbroken(s, Broken::S6)),
        Property::always("S7 no trim after closing", |_, s| unbroken(s, Broken::S7)),
        Property::always("what was read is in the sealed log", what_was_read_stays),
    ]
}

fn replicas(state: &State, segment: usize) -> impl Iterator<Item = &Replica> {
    state.servers.iter().filter(|s| !s.lost).map(move |s| &s.replicas[segment])
}

/// Sealed segments that are not trimmed, with their lengths.
fn sealed(state: &State) -> impl Iterator<Item = (usize, u8)> {
    (0..SEGMENTS_MAX).filter(|i| !state.controller.is_trimmed(*i)).filter_map(|i| match state.controller.segments[i] {
        SegmentState::Sealed(length) => Some((i, length)),
        SegmentState::None | SegmentState::Open | SegmentState::Recovering(_) => None,
    })
}

fn sealed_data_is_there(_: &SealModel, state: &State) -> bool {
    let holds = |r: &Replica, length: u8| !r.distrusted && r.length() >= length && r.durable >= length;
    sealed(state).all(|(segment, length)| length == 0 || replicas(state, segment).any(|r| holds(r, length)))
}

fn sealed_copies_are_the_same(_: &SealModel, state: &State) -> bool {
    sealed(state).all(|(segment, length)| {
        let mut holders = replicas(state, segment).filter(|r| r.length() >= length).map(|r| r.other & prefix(length));
        let first = holders.next();
        holders.all(|other| Some(other) == first)
    })
}

fn sealed_replicas_hold_the_prefix(_: &SealModel, state: &State) -> bool {
    sealed(state).all(|(segment, length)| {
        replicas(state, segment).filter(|r| r.status == Status::Sealed).all(|r| r.have == prefix(length))
    })
}

fn what_was_read_stays(_: &SealModel, state: &State) -> bool {
    let end = state.controller.end().filter(|_| state.controller.closed);
    end.is_none_or(|end| state.read <= end)
}

fn invariants() -> Properties {
    vec![
        Property::always("I1 one offset, one record", |_, s: &State| {
            s.servers.iter().all(|server| server.replicas.iter().all(|r| r.other == 0))
        }),
        Property::always("I2 an acknowledgement covers the whole prefix, durably", |_, s: &State| {
            each(s, |r| r.status == Status::Deleted || r.distrusted || r.promised <= r.durable.min(r.length()))
        }),
        Property::always("I3 behind a fence nothing is left to acknowledge", |_, s: &State| {
            each(s, |r| r.fence == 0 || r.distrusted || (r.durable == r.length()))
        }),
        Property::always("I4 I5 who counts is a fenced member", who_counts_is_a_fenced_member),
        Property::always("I6 the end covers what was acknowledged", the_end_covers_what_was_acknowledged),
        Property::always("I7 sealed is final", |_, s| unbroken(s, Broken::I7)),
        Property::always("I8 known as committed is acknowledged", |_, s: &State| {
            let segments = (0..SEGMENTS_MAX).filter(|i| s.controller.segments[*i] != SegmentState::None);
            segments.into_iter().all(|i| {
                replicas(s, i).all(|r| r.committed == 0 || s.controller.base(i) + r.committed <= s.writer.acknowledged)
            })
        }),
        Property::always("I9 no page cache is believed after a failed sync", |_, s| each(s, |r| !r.lying)),
        Property::always("step 5 honest members never contradict each other", no_contradiction),
    ]
}

fn each(state: &State, holds: fn(&Replica) -> bool) -> bool {
    state.servers.iter().filter(|s| !s.lost).all(|s| s.replicas.iter().all(holds))
}

fn who_counts_is_a_fenced_member(_: &SealModel, state: &State) -> bool {
    let fits = |server: &Server, j: usize| match state.recoverers[j].step {
        Step::Fencing { r, segment } => {
            let replica = &server.replicas[segment as usize];
            let fenced =
                server.lost || replica.fence >= r || matches!(replica.status, Status::Sealed | Status::Deleted);
            server.answers[j].is_none() || (server.member && fenced)
        }
        Step::Idle | Step::Closed | Step::Copying { .. } | Step::Done => server.answers[j].is_none(),
    };
    state.servers.iter().all(|server| (0..RECOVERERS).all(|j| fits(server, j)))
}

fn the_end_covers_what_was_acknowledged(_: &SealModel, state: &State) -> bool {
    state.recoverers.iter().all(|recoverer| match recoverer.step {
        // Also of who was overtaken: those that it fenced have acknowledged nothing since.
        Step::Copying { segment, length, .. } => {
            state.controller.base(segment as usize) + length >= state.writer.acknowledged
        }
        Step::Idle | Step::Closed | Step::Fencing { .. } | Step::Done => true,
    })
}

/// A committed length above the longest of enough answers would be corruption.
fn no_contradiction(model: &SealModel, state: &State) -> bool {
    (0..RECOVERERS).all(|j| {
        let answers: Vec<_> = state.servers.iter().filter_map(|s| s.answers[j]).collect();
        let enough = answers.len() > (model.bounds.members - model.bounds.quorum) as usize;
        let longest = answers.iter().map(|a| a.length).max().unwrap_or(0);
        !enough || answers.iter().all(|a| a.committed <= longest)
    })
}

fn reachable() -> Properties {
    vec![
        Property::sometimes("a seal returns with acknowledged data", |_, s: &State| {
            s.returned.is_some() && s.writer.acknowledged > 0
        }),
        Property::sometimes("a seal returns, and one member was never reached", |_, s: &State| {
            let silent = |m: &Server| m.member && m.replicas.iter().all(|r| r.fence == 0 && r.status != Status::Sealed);
            s.returned.is_some() && s.writer.acknowledged > 0 && s.servers.iter().any(silent)
        }),
        Property::sometimes("a seal keeps a record that was not acknowledged", |_, s: &State| {
            s.returned.is_some_and(|end| end > s.writer.acknowledged)
        }),
        Property::sometimes("a seal cuts a record that was not acknowledged", |_, s: &State| {
            let longer = |server: &Server| !server.lost && server.replicas.iter().any(|r| r.length() > 0);
            s.returned == Some(0) && s.servers.iter().any(longer)
        }),
        Property::sometimes("a seal returns after a recoverer died or was overtaken", |m, s: &State| {
            let died = if m.bounds.deaths > 0 { s.deaths > 0 } else { true };
            s.returned.is_some() && died && (s.controller.recovery > 1 || m.bounds.rounds < 2)
        }),
        Property::sometimes("a seal returns after bytes were torn off", |m, s: &State| {
            s.returned.is_some() && (s.tore || m.bounds.crashes == 0)
        }),
        Property::sometimes("a seal returns after a disk was lost or a sync failed", |m, s: &State| {
            s.returned.is_some() && (s.losses > 0 || m.bounds.losses == 0)
        }),
        Property::sometimes("a seal returns after a roll that the writer went on from", |m, s: &State| {
            s.returned.is_some() && (s.writer.segment > 0 || m.bounds.segments < 2)
        }),
        Property::sometimes("a roll comes too late", |m, s: &State| {
            s.writer.phase == Phase::Ended || m.bounds.segments < 2
        }),
        Property::sometimes("a sealed log is deleted, and its fences stay", |m, s: &State| {
            let fence_only = |server: &Server| server.replicas[0].status == Status::Deleted;
            !m.bounds.trims || (s.controller.deleted && s.servers.iter().any(fence_only))
        }),
        Property::sometimes("somebody reads before the seal", |m, s: &State| {
            !m.bounds.readers || (s.read > 0 && !s.controller.closed)
        }),
    ]
}
