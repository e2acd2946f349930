//! Heartbeats: reports in, orders out.

use std::collections::{BTreeMap, BTreeSet};

use uruk_base::Moment;

use super::{Content, Fleet, Order, Phase};
use crate::controller::id::{ChunkServerId, PieceId};
use crate::controller::state::WantedCopies;

/// What a server says of one piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PieceReport {
    /// Which piece.
    pub piece: PieceId,
    /// Length.
    pub bytes: u64,
    /// It will not grow. Always for chunks.
    pub sealed: bool,
    /// It failed its checksum, or is behind.
    pub damaged: bool,
    /// It lacks the end of what was sealed; what it has is sound.
    pub behind: bool,
    /// It is no longer there.
    pub deleted: bool,
}

/// One heartbeat.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// `pieces` is all that the server holds.
    pub full: bool,
    /// Highest term of the answers that the server got.
    pub term_seen: u64,
    /// What changed, or everything.
    pub pieces: Vec<PieceReport>,
    /// Bytes free.
    pub free_bytes: u64,
    /// Bytes held.
    pub used_bytes: u64,
    /// Why it refuses writes; empty when it does not.
    pub refusing_writes: String,
}

/// The answer to one heartbeat.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Orders {
    /// Send a full report next time.
    pub report_all: bool,
    /// Pieces to delete.
    pub delete: Vec<PieceId>,
    /// Segments to cut to their sealed length.
    pub finish: Vec<(PieceId, WantedCopies)>,
    /// Pieces to fetch, and from where.
    pub copies: Vec<(PieceId, WantedCopies, Vec<String>)>,
}

impl Fleet {
    /// Takes a heartbeat in and hands the server's orders out. The caller has checked the incarnation.
    pub fn heartbeat(&mut self, now: Moment, server: ChunkServerId, report: Report) -> Orders {
        self.sequence += 1;
        let term = self.term;
        let Some(status) = self.servers.get_mut(&server) else { return Orders::default() };
        status.last_heartbeat = Some(now);
        status.free_bytes = report.free_bytes;
        status.used_bytes = report.used_bytes;
        status.assigned_bytes = 0;
        let accepted_writes = status.refusing_writes.is_empty();
        status.refusing_writes = report.refusing_writes;
        // Made before the server knew this term, the report may be undone by an older leader's order:
        // it tells where copies are, and allows no deletion.
        let was_reported = status.reported;
        status.reported |= report.full && report.term_seen >= term;
        let can_take_more = !was_reported && status.reported || !accepted_writes && status.refusing_writes.is_empty();
        let report_all = !status.reported;
        self.take_pieces(now, server, report.full, &report.pieces);
        self.rise(now, server);
        if can_take_more {
            self.dirty.extend(self.needs.keys());
        }
        Orders { report_all, ..self.take_orders(now, server) }
    }

    fn take_pieces(&mut self, now: Moment, server: ChunkServerId, full: bool, reports: &[PieceReport]) {
        if full {
            let held: BTreeSet<PieceId> = reports.iter().filter(|r| !r.deleted).map(|r| r.piece).collect();
            for piece in self.pieces_on(server) {
                let is_claimed = self.pieces[&piece].copies[&server].content;
                let is_claimed = matches!(is_claimed, Content::Claimed { .. });
                if !held.contains(&piece) && !is_claimed {
                    self.remove_copy(piece, server);
                    self.dirty.insert(piece);
                }
            }
        }
        for report in reports {
            let is_target = self.in_flight.get(&report.piece).is_some_and(|f| f.target == server);
            // Told of by itself and not sealed: the attempt left it as it was.
            let is_as_before = report.deleted || report.damaged || !full && !report.sealed;
            if is_target && is_as_before {
                self.copy_failed(now, report.piece);
            }
            if report.deleted {
                self.remove_copy(report.piece, server);
                self.dirty.insert(report.piece);
            } else {
                self.take_piece(now, server, full, report);
            }
        }
    }

    fn take_piece(&mut self, now: Moment, server: ChunkServerId, full: bool, report: &PieceReport) {
        let PieceReport { piece, bytes, sealed, damaged, behind, .. } = *report;
        let old = self.pieces.get(&piece).and_then(|p| p.copies.get(&server)).map(|c| c.content);
        let was_damaged = matches!(old, Some(Content::Held { damaged: true, .. }));
        self.put_copy(now, piece, server, Content::Held { bytes, sealed, damaged });
        match damaged && !was_damaged {
            true if behind => tracing::info!(%server, %piece, bytes, "a copy is behind; it is replaced"),
            true => {
                self.damaged_found += 1;
                tracing::warn!(%server, %piece, bytes, "a copy is damaged");
            }
            false => {}
        }
        // An open segment that grows concerns nobody.
        let only_grew = matches!(old, Some(Content::Held { sealed: false, damaged: false, .. })) && !sealed && !damaged;
        if full || !only_grew {
            self.dirty.insert(piece);
        }
        let arrived = sealed && !damaged && self.in_flight.get(&piece).is_some_and(|f| f.target == server);
        if arrived {
            self.in_flight.remove(&piece);
            self.repaired += 1;
            tracing::info!(%server, %piece, bytes, "made a copy");
        }
    }

    /// The server is heard of again, perhaps: its copies count, and it may take more.
    pub(super) fn rise(&mut self, now: Moment, server: ChunkServerId) {
        let Some(status) = self.servers.get(&server) else { return };
        let (old, new) = (status.phase, self.phase_of(status, now));
        if old == new {
            return;
        }
        self.servers.get_mut(&server).expect("looked up above").phase = new;
        match new {
            Phase::Silent => tracing::info!(%server, "chunk server is silent"),
            Phase::Live | Phase::Dead => {
                let pieces = self.pieces_on(server);
                tracing::info!(%server, phase = ?new, pieces = pieces.len(), "chunk server changed");
                self.dirty.extend(pieces);
                self.dirty.extend(self.needs.keys());
            }
        }
    }

    fn take_orders(&mut self, now: Moment, server: ChunkServerId) -> Orders {
        let limit = self.config.orders_per_heartbeat_max;
        let mut answer = Orders::default();
        let Some(status) = self.servers.get_mut(&server) else { return answer };
        let mut later = BTreeMap::new();
        for (piece, planned) in std::mem::take(&mut status.orders) {
            if now.saturating_since(planned.planned_at) >= super::ORDER_LIFETIME {
                if matches!(planned.order, Order::Copy { .. }) {
                    self.in_flight.remove(&piece);
                }
                self.dirty.insert(piece);
                continue;
            }
            match &planned.order {
                Order::Delete if answer.delete.len() < limit => answer.delete.push(piece),
                Order::Finish(wanted) if answer.finish.len() < limit => answer.finish.push((piece, *wanted)),
                Order::Copy { wanted, sources } if answer.copies.len() < limit => {
                    answer.copies.push((piece, *wanted, sources.clone()));
                }
                Order::Delete | Order::Finish(_) | Order::Copy { .. } => {
                    later.insert(piece, planned);
                }
            }
        }
        status.orders = later;
        answer
    }
}
