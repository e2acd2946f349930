//! The repair pass: looks at pieces that came up and gives orders.

use uruk_base::Moment;

use super::{COPY_RETRY_MIN, Content, Copy, FailedCopy, Fleet, InFlight, ORDER_CHECK, Order, Phase, PlannedOrder};
use crate::controller::id::{ChunkServerId, PieceId};
use crate::controller::placement::{Candidate, CopyView, Excess, FreeTarget, Standing, assess, choose_targets};
use crate::controller::state::{ControllerState, Want, WantedCopies};

/// Pieces in the queue that one pass tries to place.
const PLACED_PER_PASS_MAX: usize = 256;

impl Fleet {
    /// Lets time pass: servers fall silent or die, timers ring, copies take too long.
    pub fn pulse(&mut self, now: Moment) {
        let servers: Vec<ChunkServerId> = self.servers.keys().copied().collect();
        for server in servers {
            self.rise(now, server);
        }
        while let Some((at, piece)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, piece));
            self.dirty.insert(piece);
        }
        let late: Vec<PieceId> = self.in_flight.iter().filter(|(_, f)| f.deadline <= now).map(|(p, _)| *p).collect();
        for piece in late {
            self.copy_failed(now, piece);
        }
    }

    /// The copy under way did not work out: after a pause that grows with every failure another server
    /// is tried first.
    pub(super) fn copy_failed(&mut self, now: Moment, piece: PieceId) {
        let Some(copy) = self.in_flight.remove(&piece) else { return };
        let times = self.failed_copies.get(&piece).map_or(0, |failed| failed.times);
        let pause = COPY_RETRY_MIN.saturating_mul(1 << times.min(16)).min(self.config.copy_timeout);
        tracing::warn!(%piece, target = %copy.target, ?pause, "a copy fails or takes too long; trying again");
        let retry_at = now + pause;
        self.failed_copies.insert(piece, FailedCopy { target: copy.target, times: times + 1, retry_at });
        self.timers.insert((retry_at, piece));
        self.dirty.insert(piece);
    }

    /// Puts some pieces up for another look, round robin: whatever slipped through a lost answer is
    /// found again within a bounded time.
    pub fn sweep(&mut self) {
        use std::ops::Bound::{Excluded, Unbounded};
        let start = self.sweep_after.map_or(Unbounded, Excluded);
        let limit = self.config.sweep_per_tick_max;
        let batch: Vec<PieceId> = self.pieces.range((start, Unbounded)).map(|(p, _)| *p).take(limit).collect();
        self.sweep_after = if batch.len() < limit { None } else { batch.last().copied() };
        self.dirty.extend(batch);
    }

    /// Whether a sweep has come round.
    pub fn is_sweep_done(&self) -> bool {
        self.sweep_after.is_none()
    }

    /// Number of the newest report: taken before leadership is confirmed, given to [`Fleet::plan`] after.
    pub fn mark(&self) -> u64 {
        self.sequence
    }

    /// Whether [`Fleet::plan`] has anything to do.
    pub fn has_work(&self, now: Moment) -> bool {
        self.is_settled(now) && (!self.surveyed || !self.dirty.is_empty() || !self.queue.is_empty())
    }

    /// Examines what came up and gives orders. `state` is as committed, and leadership in this term
    /// was confirmed, after report number `mark`.
    pub fn plan(&mut self, state: &ControllerState, now: Moment, mark: u64) {
        if !self.is_settled(now) {
            return;
        }
        if !self.surveyed {
            self.dirty.extend(state.chunk_ids().map(PieceId::Chunk));
            self.dirty.extend(state.segment_ids().map(PieceId::Segment));
            self.surveyed = true;
        }
        let batch: Vec<PieceId> = self.dirty.iter().copied().take(self.config.pieces_per_tick_max).collect();
        for piece in &batch {
            self.dirty.remove(piece);
        }
        let is_last_batch = self.dirty.is_empty();
        for piece in batch {
            self.examine(state, piece, now, mark);
        }
        self.counted |= is_last_batch;
        self.place(state, now);
    }

    fn examine(&mut self, state: &ControllerState, piece: PieceId, now: Moment, mark: u64) {
        if let Some(live) = self.needs.remove(&piece) {
            self.queue.remove(&(live, piece));
        }
        self.unavailable.remove(&piece);
        let want = state.want(piece);
        let known = self.pieces.get(&piece);
        let views: Vec<CopyView<'_>> = known
            .into_iter()
            .flat_map(|p| &p.copies)
            .map(|(server, copy)| CopyView {
                server: *server,
                zone: state.servers().get(server).map_or("", |s| s.zone.as_str()),
                load_bytes: self.servers.get(server).map_or(0, |s| s.load_bytes()),
                standing: self.standing(*server, copy, &want, now, mark),
            })
            .collect();
        // Too new for this confirmation: it comes up again with the next one.
        let is_too_new = known.is_some_and(|p| p.copies.values().any(|c| c.seen > mark));
        let grace_over = known.map_or(self.elected_at, |p| p.changed_at) + self.config.repair_grace;
        let is_stable = now >= grace_over;
        let excess = match piece {
            PieceId::Chunk(_) if is_stable => Excess::Delete,
            PieceId::Chunk(_) | PieceId::Segment(_) => Excess::Keep,
        };
        let wanted = match want {
            Want::Copies(wanted) => Some(wanted),
            Want::Foreign | Want::Hold | Want::Garbage => None,
        };
        let bytes = wanted.map_or(0, |w| w.bytes);
        let free_target = match self
            .servers
            .iter()
            .any(|(id, s)| s.reported && s.accepts(bytes) && views.iter().all(|v| v.server != *id))
        {
            true => FreeTarget::Exists,
            false => FreeTarget::None,
        };
        let todo = assess(&want, &views, excess, free_target);
        let is_crowded = wanted.is_some_and(|w| views.len() > usize::from(w.replicas));

        if is_too_new {
            self.dirty.insert(piece);
        }
        for server in &todo.delete {
            self.order_deletion(piece, *server, &want, now);
        }
        if let Some(wanted) = wanted {
            for server in &todo.finish {
                self.order_finish(piece, *server, wanted, now);
            }
        }
        if todo.unavailable {
            self.unavailable.insert(piece);
        }
        if !is_stable && (is_crowded || todo.missing > 0) {
            self.timers.insert((grace_over, piece));
        }
        if todo.missing == 0 {
            self.in_flight.remove(&piece);
            self.failed_copies.remove(&piece);
            return;
        }
        self.needs.insert(piece, todo.live);
        let is_pausing = self.failed_copies.get(&piece).is_some_and(|failed| now < failed.retry_at);
        if todo.live > 0 && is_stable && !is_pausing && !self.in_flight.contains_key(&piece) {
            self.queue.insert((todo.live, piece));
        }
    }

    fn standing(&self, server: ChunkServerId, copy: &Copy, want: &Want, now: Moment, mark: u64) -> Standing {
        let Some(status) = self.servers.get(&server) else { return Standing::Lost };
        let phase = self.phase_of(status, now);
        if phase == Phase::Dead {
            return Standing::Lost;
        }
        if copy.leaving_until.is_some_and(|until| now < until) {
            return Standing::Leaving;
        }
        let (bytes, sealed, damaged) = match copy.content {
            Content::Claimed { until } if now < until => return Standing::Presumed,
            Content::Claimed { .. } => return Standing::Lost,
            Content::Held { bytes, sealed, damaged } => (bytes, sealed, damaged),
        };
        let is_confirmed = phase == Phase::Live && status.reported && copy.seen <= mark;
        let good = if is_confirmed { Standing::Confirmed } else { Standing::Presumed };
        match want {
            Want::Foreign | Want::Hold | Want::Garbage => good,
            Want::Copies(_) if damaged => Standing::Damaged,
            Want::Copies(wanted) if sealed && bytes == wanted.bytes => good,
            Want::Copies(_) if sealed => Standing::Unfit,
            Want::Copies(_) => match copy.finish_since {
                Some(since) if now.saturating_since(since) >= self.config.repair_grace => Standing::Overdue,
                Some(_) | None => Standing::Unfinished,
            },
        }
    }

    fn order_deletion(&mut self, piece: PieceId, server: ChunkServerId, want: &Want, now: Moment) {
        let until = now + ORDER_CHECK;
        let copies = self.pieces.get_mut(&piece).map(|p| &mut p.copies);
        let Some(copy) = copies.and_then(|c| c.get_mut(&server)) else { return };
        copy.leaving_until = Some(until);
        self.timers.insert((until, piece));
        tracing::debug!(%server, %piece, ?want, "deleting a copy");
        self.give(server, piece, Order::Delete, now);
    }

    fn order_finish(&mut self, piece: PieceId, server: ChunkServerId, wanted: WantedCopies, now: Moment) {
        let copies = self.pieces.get_mut(&piece).map(|p| &mut p.copies);
        let Some(copy) = copies.and_then(|c| c.get_mut(&server)) else { return };
        copy.finish_since.get_or_insert(now);
        self.timers.insert((now + ORDER_CHECK, piece));
        // A copy on its way to it makes up for whatever it lacks; a server has one order of a piece.
        if self.in_flight.get(&piece).is_none_or(|copy| copy.target != server) {
            self.give(server, piece, Order::Finish(wanted), now);
        }
    }

    fn give(&mut self, server: ChunkServerId, piece: PieceId, order: Order, now: Moment) {
        if let Some(status) = self.servers.get_mut(&server) {
            status.orders.insert(piece, PlannedOrder { planned_at: now, order });
        }
    }

    /// Orders copies of queued pieces, fewest live copies first, within the limits.
    fn place(&mut self, state: &ControllerState, now: Moment) {
        let batch: Vec<(usize, PieceId)> = self.queue.iter().copied().take(PLACED_PER_PASS_MAX).collect();
        for (live, piece) in batch {
            if self.in_flight.len() >= self.config.copies_in_flight_max {
                return;
            }
            match self.place_one(state, piece, now) {
                Placed::Busy => {}
                // Without target or source it waits in `needs` until something changes.
                Placed::Ordered | Placed::Impossible => {
                    self.queue.remove(&(live, piece));
                }
            }
        }
    }

    fn place_one(&mut self, state: &ControllerState, piece: PieceId, now: Moment) -> Placed {
        let Want::Copies(wanted) = state.want(piece) else { return Placed::Impossible };
        let Some(known) = self.pieces.get(&piece) else { return Placed::Impossible };
        let failed = self.failed_copies.get(&piece).map(|failed| failed.target);
        let mut eligible = self.candidates(state, wanted.bytes, |id| Some(id) == failed);
        eligible.retain(|c| known.copies.get(&c.id).is_none_or(Copy::is_replaceable) && self.servers[&c.id].reported);
        if eligible.is_empty() {
            return Placed::Impossible;
        }
        let in_flight_to = |id: ChunkServerId| self.in_flight.values().filter(|f| f.target == id).count();
        eligible.retain(|c| in_flight_to(c.id) < self.config.copies_per_server_max);
        // A damaged copy is replaced in place, unless that failed before.
        let in_place = |c: &Candidate<'_>| !c.avoided && known.copies.contains_key(&c.id);
        if eligible.iter().any(in_place) {
            eligible.retain(in_place);
        }
        let good = known.copies.iter().filter(|(_, copy)| !copy.is_replaceable());
        let taken_zones: Vec<&str> =
            good.filter_map(|(id, _)| state.servers().get(id)).map(|s| s.zone.as_str()).collect();
        let Some(target) = choose_targets(&eligible, &taken_zones, 1, 1).first().copied() else { return Placed::Busy };
        let sources = self.addresses(state, piece, now);
        if sources.is_empty() {
            return Placed::Impossible;
        }
        tracing::info!(%piece, %target, bytes = wanted.bytes, "ordering a copy");
        self.in_flight.insert(piece, InFlight { target, deadline: now + self.config.copy_timeout });
        self.assign(&[target], wanted.bytes);
        self.give(target, piece, Order::Copy { wanted, sources }, now);
        Placed::Ordered
    }
}

enum Placed {
    Ordered,
    /// Every server that could take it has enough to do.
    Busy,
    /// No server can take it, or give it.
    Impossible,
}
