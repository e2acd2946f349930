//! Commit logs: their segments, and the steps of sealing that are decided here (DESIGN §6).
//!
//! | segment | RollSegment | BeginRecovery r | SealSegment r |
//! |---|---|---|---|
//! | OPEN, log not closed | SEALED, next one OPEN | refused | refused |
//! | OPEN, log closed | fenced | RECOVERING(r) | refused |
//! | RECOVERING(q), q < r | fenced | RECOVERING(r) | refused |
//! | RECOVERING(r) | fenced | done | SEALED |
//! | RECOVERING(q), q > r | fenced | refused | refused |
//! | SEALED | done if this roll sealed it, else fenced | done: the caller reads the result | done |
//!
//! An equal r is taken for the retry that it is. Should two recoverers ever pick the same r, they
//! share the fence: a member acknowledges nothing beyond the length that it returned first, not even
//! what a completion under that r makes durable (I3, `chunkserver/replica/acknowledging.rs`). So each
//! finds a length that covers every acknowledged byte, and SEALED still lets only one of them decide.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uruk_base::commit_log::LogId;
use uruk_base::planted::{Planted, is_planted};

use super::ControllerState;
use crate::controller::command::{Applied, LogDurability, Outcome, Refusal, Reply, RollSegment, SegmentPlan};
use crate::controller::id::{ChunkServerId, PieceId, SegmentId};

/// What is known of a log id. Ids without a record were never used.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LogRecord {
    /// It has data, or may get some.
    Kept(Log),
    /// Only the fence is left.
    Deleted,
}

/// A commit log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Log {
    /// The writer's nonce; None when it was closed before anybody created it.
    pub writer: Option<u64>,
    /// How it acknowledges.
    pub durability: LogDurability,
    /// No new segments, no trims.
    pub closed: bool,
    /// Everything before it may be gone.
    pub trimmed_to: u64,
    /// Index of the next segment.
    pub next_index: u32,
    /// By index, those not trimmed.
    pub segments: BTreeMap<u32, Segment>,
}

impl Log {
    /// Whether its end is final.
    pub fn is_sealed(&self) -> bool {
        self.closed && self.segments.values().all(|s| matches!(s.state, SegmentState::Sealed { .. }))
    }
}

/// A piece of a log. Members, W and A never change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Segment {
    /// Unique in the store.
    pub id: SegmentId,
    /// Position of its first byte in the log.
    pub base: u64,
    /// W servers.
    pub members: Vec<ChunkServerId>,
    /// A.
    pub ack_quorum: u8,
    /// Copies wanted once it is sealed.
    pub replicas: u8,
    /// Where it is between open and sealed.
    pub state: SegmentState,
}

/// Where a segment is between open and sealed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SegmentState {
    /// Its writer appends.
    Open,
    /// A recoverer holds it.
    Recovering {
        /// r.
        recovery: u64,
    },
    /// Final.
    Sealed {
        /// Its length.
        length: u64,
        /// CRC-32 of all of it.
        crc: u32,
    },
}

impl ControllerState {
    /// What is known of a log.
    pub fn log(&self, log: LogId) -> Option<&LogRecord> {
        self.logs.get(&log)
    }

    /// Logs that have data or may get some.
    pub fn kept_logs(&self) -> impl Iterator<Item = (LogId, &Log)> {
        self.logs.iter().filter_map(|(id, record)| match record {
            LogRecord::Kept(log) => Some((*id, log)),
            LogRecord::Deleted => None,
        })
    }

    /// All segments that are not let go of.
    pub fn segment_ids(&self) -> impl Iterator<Item = SegmentId> {
        self.segments.keys().copied()
    }

    /// A segment that is not let go of.
    pub fn segment(&self, id: SegmentId) -> Option<&Segment> {
        let (log, index) = self.segments.get(&id)?;
        match self.logs.get(log)? {
            LogRecord::Kept(log) => log.segments.get(index),
            LogRecord::Deleted => None,
        }
    }

    fn kept_log(&mut self, id: LogId) -> Result<&mut Log, Refusal> {
        match self.logs.get_mut(&id) {
            Some(LogRecord::Kept(log)) => Ok(log),
            Some(LogRecord::Deleted) => Err(Refusal::LogFenced(id)),
            None => Err(Refusal::NoSuchLog(id)),
        }
    }

    fn check_plan(&self, plan: &SegmentPlan) -> Result<(), Refusal> {
        let mut members = plan.members.clone();
        members.sort_unstable();
        members.dedup();
        if let Some(stranger) = members.iter().find(|id| !self.servers.contains_key(id)) {
            return Err(Refusal::NoSuchServer(*stranger));
        }
        let single = plan.replicas == 1 || (plan.allow_single_replica && self.servers.len() == 1);
        // W - A + 1 fenced members meet every acknowledgement of A; A = 2 survives one lost disk.
        match (members.len() == plan.members.len(), members.len(), plan.ack_quorum) {
            (true, 2 | 3, 2) => Ok(()),
            (true, 1, 1) if single => Ok(()),
            (_, members, ack_quorum) => {
                Err(Refusal::BadQuorum { members: members as u32, ack_quorum: u32::from(ack_quorum) })
            }
        }
    }

    fn open_segment(&mut self, log: LogId, index: u32, base: u64, plan: SegmentPlan) -> Segment {
        let id = SegmentId(self.issue(1).start);
        self.segments.insert(id, (log, index));
        Segment {
            id,
            base,
            members: plan.members,
            ack_quorum: plan.ack_quorum,
            replicas: plan.replicas.max(1),
            state: SegmentState::Open,
        }
    }

    pub(super) fn create_log(
        &mut self,
        id: LogId,
        writer: u64,
        durability: LogDurability,
        first: SegmentPlan,
    ) -> Reply {
        match self.logs.get(&id) {
            None => {}
            Some(LogRecord::Kept(log)) if log.writer == Some(writer) && !log.closed => return Ok(Applied::default()),
            Some(LogRecord::Kept(_) | LogRecord::Deleted) => return Err(Refusal::LogFenced(id)),
        }
        self.check_plan(&first)?;
        let segment = self.open_segment(id, 0, 0, first);
        let log = Log {
            writer: Some(writer),
            durability,
            closed: false,
            trimmed_to: 0,
            next_index: 1,
            segments: BTreeMap::from([(0, segment)]),
        };
        self.logs.insert(id, LogRecord::Kept(log));
        Ok(Applied::default())
    }

    pub(super) fn roll_segment(&mut self, roll: RollSegment) -> Reply {
        let RollSegment { log: id, writer, index, length, crc, next } = roll;
        let log = self.kept_log(id)?;
        if log.writer != Some(writer) {
            return Err(Refusal::LogFenced(id));
        }
        let rolled_before = index.checked_add(1).is_some_and(|next| next < log.next_index);
        let base = match log.segments.get(&index) {
            None if rolled_before => return Ok(Applied::default()), // and trimmed since
            None => return Err(Refusal::NoSuchSegment { log: id, index }),
            Some(segment) => match segment.state {
                SegmentState::Open if !log.closed => segment.base,
                SegmentState::Open | SegmentState::Recovering { .. } | SegmentState::Sealed { .. }
                    if !rolled_before && is_planted(Planted::SegmentAfterClosing) =>
                {
                    segment.base
                }
                SegmentState::Sealed { length: sealed, .. } if rolled_before && sealed == length => {
                    return Ok(Applied::default());
                }
                SegmentState::Sealed { length: sealed, .. } if rolled_before => {
                    return Err(Refusal::OtherLength { log: id, index, sealed, wanted: length });
                }
                SegmentState::Open | SegmentState::Recovering { .. } | SegmentState::Sealed { .. } => {
                    return Err(Refusal::LogFenced(id));
                }
            },
        };
        self.check_plan(&next)?;
        let next_base = base.checked_add(length).expect("a log stays below 2^64 bytes");
        let next_segment = self.open_segment(id, index + 1, next_base, next);
        let log = self.kept_log(id).expect("looked up above");
        assert_eq!(log.next_index, index + 1, "only the last segment of {id} is open");
        log.next_index += 1;
        log.segments.insert(index + 1, next_segment);
        let sealed = log.segments.get_mut(&index).expect("looked up above");
        if sealed.state == SegmentState::Open {
            sealed.state = SegmentState::Sealed { length, crc };
        }
        Ok(Applied { outcome: Outcome::Done, touched: vec![PieceId::Segment(sealed.id)] })
    }

    pub(super) fn close_log(&mut self, id: LogId) -> Reply {
        match self.logs.get_mut(&id) {
            Some(LogRecord::Kept(log)) => log.closed = true,
            Some(LogRecord::Deleted) => {}
            None => {
                let log = Log {
                    writer: None,
                    durability: LogDurability::Fsync,
                    closed: true,
                    trimmed_to: 0,
                    next_index: 0,
                    segments: BTreeMap::new(),
                };
                self.logs.insert(id, LogRecord::Kept(log));
            }
        }
        Ok(Applied::default())
    }

    fn closed_segment(&mut self, id: LogId, index: u32) -> Result<&mut Segment, Refusal> {
        let log = self.kept_log(id)?;
        if !log.closed {
            return Err(Refusal::LogNotClosed(id));
        }
        log.segments.get_mut(&index).ok_or(Refusal::NoSuchSegment { log: id, index })
    }

    pub(super) fn begin_recovery(&mut self, id: LogId, index: u32, recovery: u64) -> Reply {
        let segment = self.closed_segment(id, index)?;
        match segment.state {
            SegmentState::Recovering { recovery: held } if held > recovery => {
                Err(Refusal::OtherRecovery { log: id, index, held, wanted: recovery })
            }
            SegmentState::Open | SegmentState::Recovering { .. } => {
                segment.state = SegmentState::Recovering { recovery };
                Ok(Applied::default())
            }
            SegmentState::Sealed { .. } => Ok(Applied::default()),
        }
    }

    pub(super) fn seal_segment(&mut self, id: LogId, index: u32, recovery: u64, length: u64, crc: u32) -> Reply {
        let segment = self.closed_segment(id, index)?;
        match segment.state {
            SegmentState::Open => Err(Refusal::NotRecovering { log: id, index }),
            SegmentState::Recovering { recovery: held } if held != recovery => {
                Err(Refusal::OtherRecovery { log: id, index, held, wanted: recovery })
            }
            SegmentState::Recovering { .. } => {
                segment.state = SegmentState::Sealed { length, crc };
                Ok(Applied { outcome: Outcome::Done, touched: vec![PieceId::Segment(segment.id)] })
            }
            SegmentState::Sealed { .. } => Ok(Applied::default()),
        }
    }

    pub(super) fn trim_log(&mut self, id: LogId, upto: u64) -> Reply {
        let log = self.kept_log(id)?;
        if upto <= log.trimmed_to {
            return Ok(Applied::default());
        }
        if log.closed {
            return Err(Refusal::LogFenced(id));
        }
        let mut gone = Vec::new();
        while let Some(first) = log.segments.first_entry() {
            let segment = first.get();
            match segment.state {
                SegmentState::Sealed { length, .. } if segment.base.saturating_add(length) <= upto => {
                    log.trimmed_to = segment.base.saturating_add(length);
                    gone.push(first.remove().id);
                }
                SegmentState::Sealed { .. } | SegmentState::Open | SegmentState::Recovering { .. } => break,
            }
        }
        Ok(self.let_go(gone))
    }

    pub(super) fn delete_log(&mut self, id: LogId) -> Reply {
        match self.logs.get_mut(&id) {
            None => Err(Refusal::NoSuchLog(id)),
            Some(LogRecord::Deleted) => Ok(Applied::default()),
            Some(LogRecord::Kept(log)) if !log.is_sealed() => Err(Refusal::LogNotSealed(id)),
            Some(record @ LogRecord::Kept(_)) => match std::mem::replace(record, LogRecord::Deleted) {
                LogRecord::Kept(log) => Ok(self.let_go(log.segments.into_values().map(|s| s.id).collect())),
                LogRecord::Deleted => unreachable!("matched above"),
            },
        }
    }

    fn let_go(&mut self, gone: Vec<SegmentId>) -> Applied {
        for id in &gone {
            self.segments.remove(id);
        }
        Applied { outcome: Outcome::Done, touched: gone.into_iter().map(PieceId::Segment).collect() }
    }
}
