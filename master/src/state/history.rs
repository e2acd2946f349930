//! What became of each tablet, for people: bounded, and small, since most tablets never change.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use uruk_proto::{ServerId, TabletId};

/// Events that are remembered of one tablet: the newest.
const EVENTS_KEPT: usize = 16;
/// Tablets that are gone whose events are remembered.
const GONE_KEPT: usize = 1_000;

/// Something that happened to a tablet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Event {
    /// It came with its table.
    Born,
    /// It is the half of that one.
    SplitFrom(TabletId),
    /// It is those two.
    MergedFrom(TabletId, TabletId),
    /// Open at this server, and not for the first time.
    Opened(ServerId),
    /// The end: these go on.
    SplitInto(TabletId, TabletId),
    /// The end: that one goes on.
    MergedInto(TabletId),
}

/// The histories.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct History {
    events: BTreeMap<TabletId, Vec<(i64, Event)>>,
    /// Tablets that are gone, oldest first.
    gone: VecDeque<TabletId>,
}

impl History {
    /// Oldest first, with wall times in microseconds. Empty: only what the row tells.
    pub fn of(&self, tablet: TabletId) -> &[(i64, Event)] {
        self.events.get(&tablet).map(Vec::as_slice).unwrap_or_default()
    }

    /// What the tablet was split into.
    pub(super) fn heirs(&self, tablet: TabletId) -> Option<(TabletId, TabletId)> {
        match self.of(tablet).last()?.1 {
            Event::SplitInto(left, right) => Some((left, right)),
            _ => None,
        }
    }

    /// Tells how a tablet began, which its row tells as long as it has one.
    pub(super) fn add_birth(&mut self, tablet: TabletId, micros: i64) {
        self.events.entry(tablet).or_default().insert(0, (micros, Event::Born));
    }

    pub(super) fn add(&mut self, tablet: TabletId, micros: i64, event: Event) {
        let events = self.events.entry(tablet).or_default();
        events.push((micros, event));
        if events.len() > EVENTS_KEPT {
            events.remove(0);
        }
    }

    /// The tablet is gone.
    pub(super) fn bury(&mut self, tablet: TabletId) {
        if self.events.contains_key(&tablet) {
            self.gone.push_back(tablet);
        }
        while self.gone.len() > GONE_KEPT {
            let oldest = self.gone.pop_front().expect("it is longer than the limit");
            self.events.remove(&oldest);
        }
    }
}
