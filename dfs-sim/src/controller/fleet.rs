//! What the leader knows of the chunk servers and their copies: soft state of one term.
//!
//! It starts empty with every term and fills from heartbeats, so nothing in it comes from another
//! leader's time. Repair and deletion wait until every registered server has reported in full, or
//! was silent for the repair grace.
//!
//! Invariants:
//! 1. `queue` and `in_flight` are subsets of `needs`, and they share no piece.
//! 2. A server's orders are handed out once. What they were to achieve is looked at again when
//!    their time is over, so a lost order is planned anew and never repeated blindly.
//! 3. A copy seen after the leader's confirmation (`seen > mark`) allows no deletion in that pass.
//! 4. Work is proportional to changes: pieces come up in `dirty`, by report, command or timer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use uruk_base::Moment;

use super::config::ControllerConfig;
use super::id::{ChunkId, ChunkServerId, PieceId};
use super::placement::Candidate;
use super::state::{ControllerState, WantedCopies};

mod plan;
mod report;

#[cfg(test)]
mod tests;

pub use report::{Orders, PieceReport, Report};

/// A commit names the servers that hold a chunk; their own report must follow within this time.
const CLAIM_LIFETIME: Duration = Duration::from_secs(10);
/// Orders not fetched by a heartbeat within this time are dropped and planned anew.
const ORDER_LIFETIME: Duration = Duration::from_secs(3);
/// The effect of an order is looked for after this time.
const ORDER_CHECK: Duration = Duration::from_secs(5);
/// A copy that fails is ordered again after this time, then after twice as long each time, at most
/// `copy_timeout`.
const COPY_RETRY_MIN: Duration = Duration::from_secs(1);

/// Whether a server is heard of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Phase {
    /// Lately.
    Live,
    /// Not lately: it gets nothing new.
    Silent,
    /// Not for the repair grace: its copies do not count.
    Dead,
}

#[derive(Debug)]
struct ServerStatus {
    incarnation: u64,
    /// None: not since the election.
    last_heartbeat: Option<Moment>,
    phase: Phase,
    /// Whether this incarnation's full report has arrived, made after it knew this term.
    reported: bool,
    free_bytes: u64,
    used_bytes: u64,
    /// On their way to it since its last heartbeat.
    assigned_bytes: u64,
    refusing_writes: String,
    chunks: u64,
    segments: u64,
    orders: BTreeMap<PieceId, PlannedOrder>,
}

impl ServerStatus {
    fn new(incarnation: u64) -> ServerStatus {
        ServerStatus {
            incarnation,
            last_heartbeat: None,
            phase: Phase::Silent,
            reported: false,
            free_bytes: 0,
            used_bytes: 0,
            assigned_bytes: 0,
            refusing_writes: String::new(),
            chunks: 0,
            segments: 0,
            orders: BTreeMap::new(),
        }
    }

    fn load_bytes(&self) -> u64 {
        self.used_bytes.saturating_add(self.assigned_bytes)
    }

    fn accepts(&self, bytes: u64) -> bool {
        let room = self.free_bytes.saturating_sub(self.assigned_bytes);
        self.phase == Phase::Live && self.refusing_writes.is_empty() && room >= bytes
    }
}

#[derive(Debug)]
struct PlannedOrder {
    planned_at: Moment,
    order: Order,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Order {
    Delete,
    Finish(WantedCopies),
    Copy { wanted: WantedCopies, sources: Vec<String> },
}

#[derive(Debug, Default)]
struct Piece {
    copies: BTreeMap<ChunkServerId, Copy>,
    /// When a copy was last added: repair and surplus deletion wait for the grace after it.
    changed_at: Moment,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Copy {
    content: Content,
    /// Number of the report that told of it.
    seen: u64,
    /// Ordered away; looked for again then.
    leaving_until: Option<Moment>,
    /// When it was first told that it is sealed.
    finish_since: Option<Moment>,
}

impl Copy {
    /// Whether another copy may be put in its place.
    fn is_replaceable(&self) -> bool {
        let is_short = matches!(self.content, Content::Held { sealed: false, .. }) && self.finish_since.is_some();
        matches!(self.content, Content::Held { damaged: true, .. }) || is_short
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Content {
    /// A commit says so.
    Claimed { until: Moment },
    /// Its server says so. Chunks are always sealed.
    Held { bytes: u64, sealed: bool, damaged: bool },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct InFlight {
    target: ChunkServerId,
    deadline: Moment,
}

/// The last failures in a row to make a copy of a piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct FailedCopy {
    /// Where the last one failed.
    target: ChunkServerId,
    times: u32,
    retry_at: Moment,
}

/// What `Health` tells of one server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerHealth {
    /// Whether it is heard of.
    pub phase: Phase,
    /// Since its last heartbeat, or since the election.
    pub last_heartbeat_ago: Duration,
    /// Copies of chunks.
    pub chunks: u64,
    /// Replicas of segments.
    pub segments: u64,
    /// Bytes held.
    pub used_bytes: u64,
    /// Bytes free.
    pub free_bytes: u64,
    /// Why it refuses writes; empty when it does not.
    pub refusing_writes: String,
}

/// What `Health` tells of all copies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CopyHealth {
    /// Pieces with fewer copies than wanted.
    pub under_replicated: u64,
    /// Pieces without any.
    pub unavailable: u64,
    /// Copies being made.
    pub copies_in_flight: u64,
    /// Damaged copies found in this term.
    pub damaged_found: u64,
    /// Copies made in this term.
    pub repaired: u64,
}

/// Soft state of one term's leader.
#[derive(Debug)]
pub struct Fleet {
    config: ControllerConfig,
    term: u64,
    elected_at: Moment,
    servers: BTreeMap<ChunkServerId, ServerStatus>,
    pieces: BTreeMap<PieceId, Piece>,
    /// Counts reports.
    sequence: u64,
    /// Counts copies that were told of or went.
    changes: u64,
    /// To be examined.
    dirty: BTreeSet<PieceId>,
    /// To be examined then.
    timers: BTreeSet<(Moment, PieceId)>,
    /// Pieces with too few copies, and how many they have.
    needs: BTreeMap<PieceId, usize>,
    /// Those for which a copy may be ordered, fewest live copies first. Those that are neither here
    /// nor in flight wait until a server can take them.
    queue: BTreeSet<(usize, PieceId)>,
    in_flight: BTreeMap<PieceId, InFlight>,
    failed_copies: BTreeMap<PieceId, FailedCopy>,
    unavailable: BTreeSet<PieceId>,
    /// Whether every piece that the state wants was put up to be examined.
    surveyed: bool,
    /// Whether all that came up by then was looked at, too.
    counted: bool,
    sweep_after: Option<PieceId>,
    damaged_found: u64,
    repaired: u64,
}

impl Fleet {
    /// Knows nothing; belongs to no term yet.
    pub fn new(config: ControllerConfig) -> Fleet {
        Fleet {
            config,
            term: 0,
            elected_at: Moment::default(),
            servers: BTreeMap::new(),
            pieces: BTreeMap::new(),
            sequence: 0,
            changes: 0,
            dirty: BTreeSet::new(),
            timers: BTreeSet::new(),
            needs: BTreeMap::new(),
            queue: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            failed_copies: BTreeMap::new(),
            unavailable: BTreeSet::new(),
            surveyed: false,
            counted: false,
            sweep_after: None,
            damaged_found: 0,
            repaired: 0,
        }
    }

    /// The term that it belongs to.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Starts afresh when `term` is newer. False when it is older: the caller no longer leads.
    pub fn enter(&mut self, term: u64, now: Moment, state: &ControllerState) -> bool {
        if term > self.term {
            *self = Fleet { term, elected_at: now, ..Fleet::new(self.config.clone()) };
        }
        for (id, server) in state.servers() {
            self.servers.entry(*id).or_insert_with(|| ServerStatus::new(server.incarnation));
        }
        term == self.term
    }

    /// A new process of a server: what it holds is presumed until it reports.
    pub fn registered(&mut self, server: ChunkServerId, incarnation: u64) {
        let status = self.servers.entry(server).or_insert_with(|| ServerStatus::new(incarnation));
        if status.incarnation != incarnation {
            status.incarnation = incarnation;
            status.reported = false;
            status.orders.clear();
        }
    }

    /// Counts changes of copies: equal numbers mean that nothing changed between.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Whether every server has reported, or was given the time to.
    pub fn is_settled(&self, now: Moment) -> bool {
        self.servers.values().all(|s| s.reported) || now.saturating_since(self.elected_at) >= self.config.repair_grace
    }

    /// Whether no server may hold more than is known here: each has reported since the election and is
    /// heard of, or is dead. A silent one may hold what was written shortly before.
    pub fn are_all_heard(&self, now: Moment) -> bool {
        self.servers.values().all(|status| match self.phase_of(status, now) {
            Phase::Live => status.reported,
            Phase::Silent => false,
            Phase::Dead => true,
        })
    }

    /// Pieces whose wanted copies changed.
    pub fn touch(&mut self, pieces: impl IntoIterator<Item = PieceId>) {
        self.dirty.extend(pieces);
    }

    /// Chunks of these numbers that anybody holds: their puts have expired.
    pub fn touch_chunks(&mut self, ids: std::ops::Range<u64>) {
        let range = PieceId::Chunk(ChunkId(ids.start))..PieceId::Chunk(ChunkId(ids.end));
        self.dirty.extend(self.pieces.range(range).map(|(piece, _)| *piece));
    }

    /// A commit says that these servers hold the chunk.
    pub fn claim(&mut self, now: Moment, chunk: ChunkId, servers: &[ChunkServerId]) {
        let piece = PieceId::Chunk(chunk);
        let until = now + CLAIM_LIFETIME;
        for server in servers {
            let is_known = self.pieces.get(&piece).is_some_and(|p| p.copies.contains_key(server));
            if !is_known {
                self.put_copy(now, piece, *server, Content::Claimed { until });
            }
        }
        self.timers.insert((until, piece));
    }

    /// Adds or replaces a copy, keeping the counts.
    fn put_copy(&mut self, now: Moment, piece: PieceId, server: ChunkServerId, content: Content) {
        self.changes += 1;
        let known = self.pieces.entry(piece).or_default();
        let old = known.copies.get(&server);
        let (leaving_until, finish_since) = old.map_or((None, None), |c| (c.leaving_until, c.finish_since));
        let copy = Copy { content, seen: self.sequence, leaving_until, finish_since };
        if known.copies.insert(server, copy).is_none() {
            known.changed_at = now;
            if let Some(status) = self.servers.get_mut(&server) {
                *count_of(status, piece) += 1;
            }
        }
    }

    fn remove_copy(&mut self, piece: PieceId, server: ChunkServerId) -> bool {
        let Some(known) = self.pieces.get_mut(&piece) else { return false };
        let removed = known.copies.remove(&server).is_some();
        self.changes += 1;
        if known.copies.is_empty() {
            self.pieces.remove(&piece);
        }
        if removed && let Some(status) = self.servers.get_mut(&server) {
            *count_of(status, piece) -= 1;
        }
        removed
    }

    /// Servers that could take `bytes` now; `is_avoided` are taken last.
    pub fn candidates<'a>(
        &self,
        state: &'a ControllerState,
        bytes: u64,
        is_avoided: impl Fn(ChunkServerId) -> bool,
    ) -> Vec<Candidate<'a>> {
        let accepting = self.servers.iter().filter(|(_, status)| status.accepts(bytes));
        accepting
            .filter_map(|(id, status)| {
                let zone = state.servers().get(id)?.zone.as_str();
                Some(Candidate { id: *id, zone, load_bytes: status.load_bytes(), avoided: is_avoided(*id) })
            })
            .collect()
    }

    /// Whether more servers than these `accepting` ones may yet be heard of for the first time.
    pub fn is_warming_up(&self, now: Moment, accepting: usize) -> bool {
        accepting < usize::from(self.config.replicas) && now.saturating_since(self.elected_at) < self.config.warm_up
    }

    /// Notes that `bytes` are on their way to `servers`: the next choice prefers others.
    pub fn assign(&mut self, servers: &[ChunkServerId], bytes: u64) {
        for server in servers {
            if let Some(status) = self.servers.get_mut(server) {
                status.assigned_bytes = status.assigned_bytes.saturating_add(bytes);
            }
        }
    }

    /// Why live servers refuse writes, if any does.
    pub fn refusal(&self) -> Option<&str> {
        let mut live = self.servers.values().filter(|s| s.phase == Phase::Live);
        live.find(|s| !s.refusing_writes.is_empty()).map(|s| s.refusing_writes.as_str())
    }

    /// Addresses where the piece can be read, best first. Different pieces start at different servers.
    pub fn addresses(&self, state: &ControllerState, piece: PieceId, now: Moment) -> Vec<String> {
        let mut ranked: Vec<(u8, u64, ChunkServerId)> = Vec::new();
        let copies = self.pieces.get(&piece).map(|p| &p.copies);
        for (server, copy) in copies.into_iter().flatten() {
            let phase = self.servers.get(server).map_or(Phase::Dead, |s| s.phase);
            let rank = match (copy.content, phase) {
                (Content::Held { damaged: true, .. }, _) | (_, Phase::Dead) => continue,
                (Content::Claimed { until }, _) if until <= now => continue,
                (Content::Held { sealed: true, .. } | Content::Claimed { .. }, Phase::Live) => 0,
                (Content::Held { sealed: false, .. }, Phase::Live) => 1,
                (_, Phase::Silent) => 2,
            };
            let leaving = copy.leaving_until.is_some_and(|until| now < until);
            let turn = piece.number().wrapping_add(server.0).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
            ranked.push((if leaving { 3 } else { rank }, turn, *server));
        }
        ranked.sort_unstable();
        let addresses = ranked.into_iter().filter_map(|(_, _, id)| state.servers().get(&id));
        addresses.map(|server| server.address.clone()).collect()
    }

    /// What `Health` tells of a server.
    pub fn server_health(&self, server: ChunkServerId, now: Moment) -> ServerHealth {
        let unknown = ServerStatus::new(0);
        let status = self.servers.get(&server).unwrap_or(&unknown);
        let heard = status.last_heartbeat.unwrap_or(self.elected_at);
        ServerHealth {
            phase: self.phase_of(status, now),
            last_heartbeat_ago: now.saturating_since(heard),
            chunks: status.chunks,
            segments: status.segments,
            used_bytes: status.used_bytes,
            free_bytes: status.free_bytes,
            refusing_writes: status.refusing_writes.clone(),
        }
    }

    /// What `Health` tells of all copies.
    pub fn copy_health(&self) -> CopyHealth {
        CopyHealth {
            under_replicated: self.needs.len() as u64,
            unavailable: self.unavailable.len() as u64,
            copies_in_flight: self.in_flight.len() as u64,
            damaged_found: self.damaged_found,
            repaired: self.repaired,
        }
    }

    /// Whether [`Fleet::copy_health`] tells of every piece: not before this term's first look at all of them.
    pub fn is_counted(&self) -> bool {
        self.counted
    }

    fn phase_of(&self, status: &ServerStatus, now: Moment) -> Phase {
        let heard = status.last_heartbeat.unwrap_or(self.elected_at);
        let silence = now.saturating_since(heard);
        if silence >= self.config.repair_grace {
            Phase::Dead
        } else if silence >= self.config.silent_after || status.last_heartbeat.is_none() {
            Phase::Silent
        } else {
            Phase::Live
        }
    }

    fn pieces_on(&self, server: ChunkServerId) -> Vec<PieceId> {
        self.pieces.iter().filter(|(_, p)| p.copies.contains_key(&server)).map(|(piece, _)| *piece).collect()
    }
}

fn count_of(status: &mut ServerStatus, piece: PieceId) -> &mut u64 {
    match piece {
        PieceId::Chunk(_) => &mut status.chunks,
        PieceId::Segment(_) => &mut status.segments,
    }
}
