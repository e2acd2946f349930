//! One segment on one server, and what crashes do to it. A record is one bit of a mask.
//!
//! | transition | step | mirrors |
//! |---|---|---|
//! | [`append`] | an append iff not fenced and the offset equals the length | `dfs-sim/src/chunkserver/replica.rs`: `append` |
//! | [`sync`] | `fdatasync`, then the acknowledgement | `replica/syncing.rs`: `sync_now` |
//! | [`fence`] | 3 | `replica/fencing.rs`: `fence`, `settle` |
//! | [`finish`] | 8 | `replica/sealing.rs`: `finish`, `cut` |
//! | [`drop_replica`] | trim | `replica/sealing.rs`: `delete`, `graves.rs` |
//! | [`process_crash`], [`power_loss`], [`sync_fails`], [`disk_lost`] | | `replica/loading.rs` |
//!
//! 1. `durable <= length`, and in the protocol as it is `promised <= durable`.
//! 2. The fence is stored in the transition that answers it: a crash in between leaves either the state
//!    before it, or that after a sync and the crash.

use crate::SealModel;
use crate::controller::SegmentState;
use crate::mutations::Mutation;
use crate::recoverer::{Answer, Step};
use crate::state::State;

/// What a replica is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Status {
    /// No file; perhaps a fence.
    #[default]
    Absent,
    /// Takes appends of its writer, unless it is fenced.
    Open,
    /// Of an earlier incarnation, or made by a recoverer: takes none.
    Shut,
    /// Cut and final.
    Sealed,
    /// Trimmed: only the fence is left.
    Deleted,
}

/// A replica.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Replica {
    /// What it is.
    pub status: Status,
    /// Records in the page cache.
    pub have: u8,
    /// Of these, the ones with other bytes than the writer's.
    pub other: u8,
    /// Records on the disk: this many.
    pub durable: u8,
    /// Highest length acknowledged to the writer; such messages may still arrive.
    pub promised: u8,
    /// Highest committed length that the writer told.
    pub committed: u8,
    /// r, or 0.
    pub fence: u8,
    /// It answers Unknown.
    pub distrusted: bool,
    /// The page cache lies: a sync failed, and its pages look clean.
    pub lying: bool,
}

/// The first `length` records.
pub fn prefix(length: u8) -> u8 {
    (1 << length) - 1
}

impl Replica {
    /// Records from the first on, without a gap.
    pub fn length(&self) -> u8 {
        self.have.trailing_ones() as u8
    }

    /// What an acknowledgement says. A replica that takes gaps says its last offset.
    fn reach(&self) -> u8 {
        8 - self.have.leading_zeros() as u8
    }

    /// All of it is as durable as a successful sync claims.
    fn settle(&mut self) {
        if !self.lying {
            self.durable = self.length();
        }
    }

    fn cut(&mut self, length: u8) {
        self.have &= prefix(length);
        self.other &= prefix(length);
        self.durable = self.durable.min(length);
        self.promised = self.promised.min(length);
    }
}

/// One record arrives from the writer: `record` of the segment, counted from 0.
pub fn append(
    model: &SealModel,
    state: &mut State,
    server: usize,
    segment: usize,
    record: u8,
    other: bool,
) -> Option<()> {
    if !state.servers[server].member || state.servers[server].lost {
        return None;
    }
    let replica = &mut state.servers[server].replicas[segment];
    let takes = match replica.status {
        Status::Absent | Status::Open => !replica.distrusted,
        Status::Shut | Status::Sealed | Status::Deleted => false,
    };
    let fenced = replica.fence > 0 && !model.has(Mutation::FenceNotChecked);
    let fits = record == replica.length() || (model.has(Mutation::TakesGaps) && replica.have & (1 << record) == 0);
    if !takes || fenced || !fits {
        return None;
    }
    replica.status = Status::Open;
    replica.have |= 1 << record;
    replica.other |= u8::from(other) << record;
    Some(())
}

/// A group sync ends well, and what it covers is acknowledged.
pub fn sync(model: &SealModel, state: &mut State, server: usize, segment: usize) -> Option<()> {
    let replica = &mut state.servers[server].replicas[segment];
    let reach = replica.reach();
    let useful = replica.durable < replica.length() || replica.promised < reach;
    if state.servers[server].lost || replica.status != Status::Open || !useful {
        return None;
    }
    if replica.fence > 0 && !model.has(Mutation::FenceNotChecked) && !model.has(Mutation::LateAck) {
        return None; // the fence has waited for it
    }
    replica.settle();
    replica.promised = replica.promised.max(reach);
    Some(())
}

/// An acknowledgement goes out before any sync.
pub fn early_ack(model: &SealModel, state: &mut State, server: usize, segment: usize) -> Option<()> {
    let replica = &mut state.servers[server].replicas[segment];
    if !model.has(Mutation::AckBeforeSync) || replica.status != Status::Open || replica.promised >= replica.length() {
        return None;
    }
    replica.promised = replica.length();
    Some(())
}

/// Step 3: a fence arrives. `recoverer` gets the answer, unless it is lost or he is gone.
pub fn fence(
    model: &SealModel,
    state: &mut State,
    server: usize,
    segment: usize,
    r: u8,
    recoverer: Option<usize>,
) -> Option<()> {
    let before = *state;
    let target = &mut state.servers[server];
    let copy = !target.member;
    if copy && (!model.has(Mutation::CopiesCount) || target.replicas[segment].status == Status::Absent) {
        return None;
    }
    if target.lost {
        let counted = recoverer.filter(|_| model.has(Mutation::LostDiskCounts));
        target.answers[counted?].get_or_insert(Answer { length: 0, committed: 0 });
        return (*state != before).then_some(());
    }
    let replica = &mut target.replicas[segment];
    if replica.fence > r {
        // Refused: the recoverer learns that he was overtaken.
        let recoverer = recoverer?;
        state.recoverers[recoverer].step = Step::Closed;
        state.forget_answers(recoverer);
        return Some(());
    }
    if replica.status != Status::Sealed && !model.has(Mutation::NoFence) {
        // The first fence ends the writer's stream, for what later ones find, too.
        let acknowledges = replica.fence == 0 || model.has(Mutation::AckAfterCompletion);
        replica.fence = r;
        if !replica.distrusted && !model.has(Mutation::LateAck) {
            replica.settle();
            if replica.status == Status::Open && acknowledges {
                replica.promised = replica.promised.max(replica.reach());
            }
        }
    }
    let answer = Answer {
        length: if model.has(Mutation::LateAck) { replica.durable } else { replica.length() },
        committed: replica.committed,
    };
    let vouches = !replica.distrusted && replica.status != Status::Deleted;
    if let Some(recoverer) = recoverer
        && vouches
    {
        target.answers[recoverer] = Some(answer);
    }
    (*state != before).then_some(())
}

/// A length is asked for, and nothing is fenced.
pub fn peek(model: &SealModel, state: &mut State, server: usize, segment: usize, recoverer: usize) -> Option<()> {
    let target = &mut state.servers[server];
    let replica = &target.replicas[segment];
    let asks = model.has(Mutation::UnfencedCounts) && target.member && !target.lost && !replica.distrusted;
    if !asks || target.answers[recoverer].is_some() {
        return None;
    }
    target.answers[recoverer] = Some(Answer { length: replica.length(), committed: replica.committed });
    Some(())
}

/// Step 8: told the end, a replica that holds it all is cut to it and final.
pub fn finish(state: &mut State, server: usize, segment: usize, length: u8) -> Option<()> {
    let target = &mut state.servers[server];
    let replica = &mut target.replicas[segment];
    let exists = match replica.status {
        Status::Absent => replica.fence > 0,
        Status::Open | Status::Shut => true,
        Status::Sealed | Status::Deleted => false,
    };
    if target.lost || replica.distrusted || !exists || replica.length() < length || length < replica.committed {
        return None;
    }
    replica.settle();
    replica.cut(length);
    replica.status = Status::Sealed;
    Some(())
}

/// The data of a trimmed segment goes; the fence stays.
pub fn drop_replica(model: &SealModel, state: &mut State, server: usize, segment: usize) -> Option<()> {
    let sealed = matches!(state.controller.segments[segment], SegmentState::Sealed(_));
    let may = state.controller.is_trimmed(segment) || (model.has(Mutation::DeletesBeforeTrim) && sealed);
    let target = &mut state.servers[server];
    let replica = &mut target.replicas[segment];
    if !may || target.lost || replica.status == Status::Deleted {
        return None;
    }
    let promised = replica.promised; // on its way
    *replica = match model.has(Mutation::TrimRemovesFence) {
        true => Replica { promised, ..Replica::default() },
        false => Replica { status: Status::Deleted, promised, ..Replica::default() },
    };
    Some(())
}

/// The process is killed and starts again.
pub fn process_crash(model: &SealModel, state: &mut State, server: usize) -> Option<()> {
    if state.crashes == model.bounds.crashes || state.servers[server].lost {
        return None;
    }
    state.crashes += 1;
    restart(model, state, server);
    Some(())
}

/// The machine loses power: of what was not synced, at most the first `kept` records are found again.
pub fn power_loss(model: &SealModel, state: &mut State, server: usize, kept: u8) -> Option<()> {
    if state.crashes == model.bounds.crashes || state.servers[server].lost {
        return None;
    }
    state.crashes += 1;
    for replica in &mut state.servers[server].replicas {
        let kept = kept.max(replica.durable);
        state.tore |= replica.have & !prefix(kept) != 0;
        let promised = replica.promised;
        replica.cut(kept);
        replica.promised = promised; // on its way
        replica.durable = replica.length();
        replica.committed = 0;
        replica.lying = false;
    }
    restart(model, state, server);
    Some(())
}

fn restart(model: &SealModel, state: &mut State, server: usize) {
    for replica in &mut state.servers[server].replicas {
        if replica.status == Status::Open && !model.has(Mutation::OpenAfterRestart) {
            replica.status = Status::Shut;
        }
        if model.has(Mutation::FenceForgotten) {
            replica.fence = 0;
        }
    }
}

/// A sync fails. The process ends, and on restart the file is distrusted (I9).
pub fn sync_fails(model: &SealModel, state: &mut State, server: usize, segment: usize) -> Option<()> {
    let target = &mut state.servers[server];
    let replica = &mut target.replicas[segment];
    let pending = replica.durable < replica.length() && replica.status == Status::Open && !replica.lying;
    if state.losses == model.bounds.losses || target.lost || !pending {
        return None;
    }
    state.losses += 1;
    if model.has(Mutation::SyncErrorIgnored) {
        replica.lying = true;
        return Some(());
    }
    match model.has(Mutation::TrustsAfterFailedSync) {
        true => replica.lying = true,
        false => replica.distrusted = true,
    }
    restart(model, state, server);
    Some(())
}

/// The disk is lost, with all that was on it; what was sent before may still arrive.
pub fn disk_lost(model: &SealModel, state: &mut State, server: usize) -> Option<()> {
    let target = &mut state.servers[server];
    if state.losses == model.bounds.losses || target.lost {
        return None;
    }
    state.losses += 1;
    target.lost = true;
    for replica in &mut target.replicas {
        *replica = Replica { promised: replica.promised, ..Replica::default() };
    }
    Some(())
}

/// A reader reads as far as it may (I8).
pub fn read(model: &SealModel, state: &mut State, server: usize, segment: usize) -> Option<()> {
    let target = &state.servers[server];
    let replica = &target.replicas[segment];
    let limit = match replica.status {
        Status::Absent | Status::Deleted => return None,
        Status::Sealed => replica.length(),
        Status::Open | Status::Shut if model.has(Mutation::ReadsUncommitted) => replica.length(),
        Status::Open | Status::Shut => replica.committed.min(replica.length()),
    };
    let seen = state.controller.base(segment) + limit;
    if !model.bounds.readers || target.lost || replica.distrusted || seen <= state.read {
        return None;
    }
    state.read = seen;
    Some(())
}
