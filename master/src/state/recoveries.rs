//! Recoveries: one persistent procedure per dead server, and its timeline.
//!
//! | phase | left when |
//! |---|---|
//! | Sealing | the end of the dead server's log is recorded; never otherwise |
//! | Sorting | every piece of the log lies sorted in a file (or no tablet needs the log) |
//! | Reassigning | every tablet it had is open somewhere |
//! | Collecting | no row needs the log, and its data is deleted |
//! | Done | |

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uruk_proto::{ServerId, TabletId};

use super::{Applied, State};
use crate::command::{Reason, Refusal, Reply};

/// Finished recoveries kept for display.
const FINISHED_KEPT: usize = 100;

/// A dead server's recovery.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Recovery {
    pub server: ServerId,
    pub how: String,
    /// When its last renewal arrived; None when its death was proved.
    pub last_heard_micros: Option<i64>,
    pub noticed_micros: i64,
    pub seal: Option<Seal>,
    /// When the last piece was sorted.
    pub sorted_micros: Option<i64>,
    /// When the last of its tablets was assigned for the first time.
    pub assigned_micros: Option<i64>,
    /// The tablets it had, and when each was open again.
    pub tablets: BTreeMap<TabletId, Option<Reopened>>,
    /// How many of them are not open yet.
    pub waiting: usize,
    /// When all of them were open again.
    pub served_micros: Option<i64>,
    pub done_micros: Option<i64>,
}

/// What sealing the log told.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Seal {
    pub end: u64,
    pub micros: i64,
    pub segments: Vec<Segment>,
}

/// One piece of a sealed log.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Segment {
    pub range: Range<u64>,
    pub sorted: Option<Sorted>,
}

/// A sorted piece.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Sorted {
    pub sorter: ServerId,
    /// Empty: the piece held no records.
    pub path: Arc<str>,
    pub records: u64,
    pub bytes: u64,
    pub micros: i64,
}

/// A tablet is open again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reopened {
    pub server: ServerId,
    pub micros: i64,
}

/// Where a recovery stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Sealing,
    Sorting,
    Reassigning,
    Collecting,
    Done,
}

impl Recovery {
    /// Sealed, and every piece sorted.
    pub fn is_sorted(&self) -> bool {
        self.seal.as_ref().is_some_and(|seal| seal.segments.iter().all(|segment| segment.sorted.is_some()))
    }

    /// Bytes in the sealed log.
    pub fn log_bytes(&self) -> u64 {
        let segments = self.seal.iter().flat_map(|seal| &seal.segments);
        segments.map(|segment| segment.range.end - segment.range.start).sum()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        let segments = self.seal.iter().flat_map(|seal| &seal.segments);
        segments.filter_map(|segment| Some(&segment.sorted.as_ref()?.path)).filter(|path| !path.is_empty())
    }

    fn note_served(&mut self, micros: i64) {
        if self.seal.is_some() && self.waiting == 0 {
            self.served_micros.get_or_insert(micros);
        }
    }
}

/// All recoveries that are remembered.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Recoveries {
    by_server: BTreeMap<ServerId, Recovery>,
    unfinished: BTreeSet<ServerId>,
}

impl Recoveries {
    pub fn get(&self, server: ServerId) -> Option<&Recovery> {
        self.by_server.get(&server)
    }

    /// By server id.
    pub fn all(&self) -> impl DoubleEndedIterator<Item = &Recovery> {
        self.by_server.values()
    }

    pub fn unfinished(&self) -> &BTreeSet<ServerId> {
        &self.unfinished
    }

    /// Whether an unfinished recovery names the file.
    pub fn names(&self, path: &str) -> bool {
        self.unfinished.iter().any(|server| self.by_server[server].names().any(|name| **name == *path))
    }

    pub(super) fn begin(
        &mut self,
        server: ServerId,
        how: String,
        last_heard_micros: Option<i64>,
        noticed_micros: i64,
        tablets: &[TabletId],
    ) {
        let recovery = Recovery {
            server,
            how,
            last_heard_micros,
            noticed_micros,
            seal: None,
            sorted_micros: None,
            assigned_micros: None,
            tablets: tablets.iter().map(|tablet| (*tablet, None)).collect(),
            waiting: tablets.len(),
            served_micros: None,
            done_micros: None,
        };
        let before = self.by_server.insert(server, recovery);
        assert!(before.is_none(), "an incarnation dies once");
        self.unfinished.insert(server);
    }

    fn open_mut(&mut self) -> impl Iterator<Item = &mut Recovery> {
        let unfinished = &self.unfinished;
        self.by_server.values_mut().filter(|recovery| unfinished.contains(&recovery.server))
    }

    /// For the timelines. The first opening counts.
    pub(super) fn note_opened(&mut self, opened: &BTreeSet<TabletId>, server: ServerId, micros: i64) {
        for recovery in self.open_mut().filter(|recovery| recovery.served_micros.is_none()) {
            for tablet in opened {
                if let Some(place @ None) = recovery.tablets.get_mut(tablet) {
                    *place = Some(Reopened { server, micros });
                    recovery.waiting -= 1;
                }
            }
            recovery.note_served(micros);
        }
    }

    /// For the timelines.
    pub(super) fn note_assigned(&mut self, assigned: &BTreeSet<TabletId>, micros: i64) {
        for recovery in self.open_mut().filter(|recovery| recovery.served_micros.is_none()) {
            if assigned.iter().any(|tablet| recovery.tablets.contains_key(tablet)) {
                recovery.assigned_micros = Some(micros);
            }
        }
    }

    /// The tablet is gone: nobody waits for it.
    pub(super) fn forget_tablet(&mut self, tablet: TabletId) {
        for recovery in self.open_mut() {
            if recovery.tablets.get(&tablet) == Some(&None) {
                recovery.tablets.remove(&tablet);
                recovery.waiting -= 1;
            }
        }
    }

    /// Takes a result if it is the first for its piece; else gives its path back.
    fn put_sorted(&mut self, log: ServerId, segment: u32, sorted: Sorted) -> Option<Arc<str>> {
        if !self.unfinished.contains(&log) {
            return Some(sorted.path);
        }
        let recovery = self.by_server.get_mut(&log).expect("every unfinished recovery is remembered");
        let place = recovery.seal.as_mut().and_then(|seal| seal.segments.get_mut(segment as usize));
        let Some(place) = place.filter(|place| place.sorted.is_none()) else { return Some(sorted.path) };
        let micros = sorted.micros;
        place.sorted = Some(sorted);
        if recovery.is_sorted() {
            recovery.sorted_micros = Some(micros);
        }
        None
    }

    /// The file cannot be read: the piece that it held has to be sorted anew. Gives the path back,
    /// if it held any.
    pub(super) fn forget_sorted(&mut self, path: &str) -> Option<Arc<str>> {
        for recovery in self.open_mut() {
            for segment in recovery.seal.iter_mut().flat_map(|seal| &mut seal.segments) {
                if segment.sorted.as_ref().is_some_and(|sorted| *sorted.path == *path && !path.is_empty()) {
                    recovery.sorted_micros = None;
                    return segment.sorted.take().map(|sorted| sorted.path);
                }
            }
        }
        None
    }
}

impl State {
    pub fn phase(&self, recovery: &Recovery) -> Phase {
        let users = self.index.log_users(recovery.server).len();
        if recovery.done_micros.is_some() {
            Phase::Done
        } else if recovery.seal.is_none() {
            Phase::Sealing
        } else if users > 0 && !recovery.is_sorted() {
            Phase::Sorting
        } else if users > 0 && recovery.served_micros.is_none() {
            Phase::Reassigning
        } else {
            Phase::Collecting
        }
    }

    pub(super) fn record_seal(&mut self, server: ServerId, segments: &[Range<u64>], end: u64, micros: i64) -> Applied {
        let Some(recovery) = self.recoveries.by_server.get_mut(&server) else {
            return Err(Refusal::new(Reason::NotFound, format!("{server} has no recovery")));
        };
        if let Some(seal) = &recovery.seal {
            // Every seal of one log tells the same end (S4).
            if seal.end == end && seal.segments.iter().map(|segment| &segment.range).eq(segments) {
                return Ok(Reply::Done);
            }
            let message = format!("the log of {server} is sealed at {}, not at {end}", seal.end);
            return Err(Refusal::new(Reason::FailedPrecondition, message));
        }
        let consecutive = segments.windows(2).all(|pair| pair[0].end == pair[1].start);
        let rising = segments.iter().all(|segment| segment.start < segment.end);
        if !consecutive || !rising || segments.last().is_some_and(|last| last.end != end) {
            let message = format!("the pieces of {server}'s log do not fit together: {segments:?}, end {end}");
            return Err(Refusal::new(Reason::InvalidArgument, message));
        }
        let segments = segments.iter().map(|range| Segment { range: range.clone(), sorted: None }).collect();
        recovery.seal = Some(Seal { end, micros, segments });
        if recovery.is_sorted() {
            recovery.sorted_micros = Some(micros);
        }
        recovery.note_served(micros);
        Ok(Reply::Done)
    }

    /// The first result wins. A file that loses, or comes too late, is let go.
    pub(super) fn record_sort(&mut self, log: ServerId, segment: u32, sorted: Sorted) -> Applied {
        // Not from the dead: the sweep may have taken their unnamed files for orphans.
        self.require_live(sorted.sorter)?;
        if let Some(path) = self.recoveries.put_sorted(log, segment, sorted) {
            let is_queued = self.deletions.entries().values().any(|queued| *queued == path);
            if !self.is_named(&path) && !is_queued {
                self.deletions.add(path);
            }
        }
        Ok(Reply::Done)
    }

    pub(super) fn finish_recovery(&mut self, server: ServerId, micros: i64) -> Applied {
        let users = self.index.log_users(server).len();
        let Some(recovery) = self.recoveries.by_server.get_mut(&server) else {
            return Err(Refusal::new(Reason::NotFound, format!("{server} has no recovery")));
        };
        if recovery.done_micros.is_some() {
            return Ok(Reply::Done);
        }
        if recovery.seal.is_none() || users > 0 {
            let message = format!("the log of {server} is still needed by {users} tablets, or not sealed");
            return Err(Refusal::new(Reason::FailedPrecondition, message));
        }
        recovery.done_micros = Some(micros);
        let names: Vec<Arc<str>> = recovery.names().cloned().collect();
        self.recoveries.unfinished.remove(&server);
        self.deletions.add_all(names);
        while self.recoveries.by_server.len() > self.recoveries.unfinished.len() + FINISHED_KEPT {
            let mut finished = self.recoveries.by_server.keys();
            let oldest = finished.find(|server| !self.recoveries.unfinished.contains(server)).copied();
            self.recoveries.by_server.remove(&oldest.expect("more than the unfinished are kept"));
        }
        Ok(Reply::Done)
    }
}
