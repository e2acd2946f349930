//! Where copies go, which are to be made, which are to be deleted. Pure functions.
//!
//! Rules of deletion, in the order of their importance:
//! 1. Nothing is deleted of a piece that is held (a put in progress, an open segment) or foreign.
//! 2. Of a wanted piece, a good copy is deleted only if `replicas` *confirmed* ones stay; a bad copy
//!    only if at least one confirmed one stays. A damaged copy is replaced in place where it can be.
//! 3. Confirmed = reported good by this process of a responsive server to this leader, in time for
//!    the confirmation of its leadership. Whatever else may be a copy is presumed: it spares a
//!    repair, it allows no deletion.
//! 4. A copy that was ordered away counts as gone, whether or not it is.
//! 5. A segment's replicas go only with their log: a server never takes a segment again that it
//!    deleted, since a late writer could else create it anew.

use std::collections::BTreeMap;

use super::id::ChunkServerId;
use super::state::Want;

#[cfg(test)]
mod tests;

/// Members of a segment while three servers accept writes.
pub const SEGMENT_MEMBERS: usize = 3;
/// A: an acknowledged byte is on so many members at least.
pub const ACK_QUORUM: usize = 2;

/// A chunk server that may take a copy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate<'a> {
    /// Which.
    pub id: ChunkServerId,
    /// Its failure domain.
    pub zone: &'a str,
    /// Bytes that it holds, and those on their way to it.
    pub load_bytes: u64,
    /// Failed or slow for the one who asks: taken only if there are too few others.
    pub avoided: bool,
}

/// Up to `wanted` of the candidates: zones with the fewest copies first, then the least used.
///
/// `taken_zones` are those of the copies that exist. Avoided candidates fill up to `at_least` only.
pub fn choose_targets(
    candidates: &[Candidate<'_>],
    taken_zones: &[&str],
    wanted: usize,
    at_least: usize,
) -> Vec<ChunkServerId> {
    let mut zones: BTreeMap<&str, usize> = BTreeMap::new();
    for zone in taken_zones {
        *zones.entry(zone).or_default() += 1;
    }
    let mut left: Vec<&Candidate<'_>> = candidates.iter().collect();
    let mut chosen = Vec::with_capacity(wanted);
    while chosen.len() < wanted {
        let in_zone = |zone: &str| zones.get(zone).copied().unwrap_or(0);
        let Some((at, best)) =
            left.iter().enumerate().min_by_key(|(_, c)| (c.avoided, in_zone(c.zone), c.load_bytes, c.id))
        else {
            break;
        };
        if best.avoided && chosen.len() >= at_least {
            break;
        }
        chosen.push(best.id);
        *zones.entry(best.zone).or_default() += 1;
        left.remove(at);
    }
    chosen
}

/// Members of a new segment and A; None when there are too few servers. `replicas` is the store's.
pub fn choose_members(
    candidates: &[Candidate<'_>],
    replicas: usize,
    single_allowed: bool,
) -> Option<(Vec<ChunkServerId>, usize)> {
    let wanted = replicas.clamp(1, SEGMENT_MEMBERS);
    let members = choose_targets(candidates, &[], wanted, ACK_QUORUM.min(wanted));
    match members.len() {
        0 => None,
        1 if replicas == 1 || single_allowed => Some((members, 1)),
        1 => None,
        _ => Some((members, ACK_QUORUM)),
    }
}

/// What one copy is worth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// See rule 3.
    Confirmed,
    /// Probably there: its server is silent for a short while, or has not reported yet.
    Presumed,
    /// A segment's replica that was not told that it is sealed.
    Unfinished,
    /// A replica that was told long ago, and was not heard to have finished. Whether the orders or the
    /// replies were lost or it cannot is unknown: it counts for nothing, and is told again.
    Overdue,
    /// It failed its checksum, or cannot be cut to the sealed length: a copy may overwrite it.
    Damaged,
    /// Sound, and not what is wanted: it has another length.
    Unfit,
    /// Ordered away.
    Leaving,
    /// Its server is dead.
    Lost,
}

/// One copy of a piece.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CopyView<'a> {
    /// Who holds it.
    pub server: ChunkServerId,
    /// Its failure domain.
    pub zone: &'a str,
    /// Bytes that the server holds.
    pub load_bytes: u64,
    /// What it is worth.
    pub standing: Standing,
}

/// What is to be done about one piece.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Assessment {
    /// Copies to delete.
    pub delete: Vec<ChunkServerId>,
    /// Replicas to cut to the sealed length.
    pub finish: Vec<ChunkServerId>,
    /// Copies to make.
    pub missing: usize,
    /// Copies that count now: the fewer, the sooner it is copied.
    pub live: usize,
    /// No copy counts.
    pub unavailable: bool,
}

/// Whether copies that are not needed may go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Excess {
    /// The piece's copies changed just now: a server may be on its way back or out. Or rule 5.
    Keep,
    /// They have been stable.
    Delete,
}

/// Whether a server without any copy of the piece could take one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FreeTarget {
    /// One could: an unfit copy stays until it has.
    Exists,
    /// None: an unfit copy has to make room.
    None,
}

/// What is to be done about a piece of which `want` is wanted and `copies` are known.
pub fn assess(want: &Want, copies: &[CopyView<'_>], excess: Excess, free_target: FreeTarget) -> Assessment {
    let wanted = match want {
        Want::Foreign | Want::Hold => return Assessment::default(),
        Want::Garbage => return Assessment { delete: garbage(copies), ..Assessment::default() },
        Want::Copies(wanted) => usize::from(wanted.replicas),
    };
    let of = |standing: Standing| copies.iter().filter(move |c| c.standing == standing);
    let confirmed = of(Standing::Confirmed).count();
    let unfinished = of(Standing::Unfinished).count();
    let live = confirmed + of(Standing::Presumed).count() + unfinished;

    let mut delete = Vec::new();
    if excess == Excess::Delete && confirmed >= 1 {
        if live >= wanted {
            delete.extend(of(Standing::Damaged).map(|c| c.server));
        }
        if live >= wanted || free_target == FreeTarget::None {
            delete.extend(of(Standing::Unfit).map(|c| c.server));
        }
        if delete.is_empty() && confirmed > wanted {
            delete = most_dispensable(of(Standing::Confirmed).collect(), confirmed - wanted);
        }
    }
    Assessment {
        delete,
        finish: of(Standing::Unfinished).chain(of(Standing::Overdue)).map(|c| c.server).collect(),
        missing: wanted.saturating_sub(live),
        live,
        unavailable: live == 0,
    }
}

fn garbage(copies: &[CopyView<'_>]) -> Vec<ChunkServerId> {
    let is_known_there = |standing| match standing {
        Standing::Confirmed | Standing::Unfinished | Standing::Overdue | Standing::Damaged | Standing::Unfit => true,
        // Its report, or its return, brings it up again.
        Standing::Presumed | Standing::Leaving | Standing::Lost => false,
    };
    copies.iter().filter(|c| is_known_there(c.standing)).map(|c| c.server).collect()
}

/// `count` copies out of `copies`: each time from the zone with most of them, then the fullest server.
fn most_dispensable(mut copies: Vec<&CopyView<'_>>, count: usize) -> Vec<ChunkServerId> {
    let mut chosen = Vec::with_capacity(count);
    for _ in 0..count {
        let in_zone = |zone: &str| copies.iter().filter(|c| c.zone == zone).count();
        let Some((at, _)) = copies.iter().enumerate().max_by_key(|(_, c)| (in_zone(c.zone), c.load_bytes, c.server))
        else {
            break;
        };
        chosen.push(copies.remove(at).server);
    }
    chosen
}
