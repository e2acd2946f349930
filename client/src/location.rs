//! Where the tablets of one table are, as far as this client knows. Pure: `locate` asks the master.
//!
//! Invariants: (1) no two entries overlap; (2) for one row key, epochs only grow (an assignment, a split
//! and a merge each raise them), so only the leader's word replaces a newer epoch by an older one;
//! (3) an entry may be wrong at any time: the tablet server refuses what it does not own, and that
//! refusal is what keeps reads and writes right, not this cache.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use uruk_base::Moment;
use uruk_proto::{Epoch, RowRange, ServerId, TabletId};

use crate::server::Server;

/// A tablet and its owner.
#[derive(Debug)]
pub(crate) struct Location {
    pub tablet: TabletId,
    pub range: RowRange,
    pub epoch: Epoch,
    pub server_id: ServerId,
    /// None: nobody serves it now.
    pub server: Option<Arc<Server>>,
}

impl Location {
    /// Whether both name the same assignment of the same tablet.
    pub fn is_same_assignment(&self, other: &Location) -> bool {
        self.tablet == other.tablet
            && self.epoch == other.epoch
            && self.server_id == other.server_id
            && self.server.as_ref().map(|s| s.address()) == other.server.as_ref().map(|s| s.address())
    }
}

/// What is known of a tablet, and since when.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub location: Arc<Location>,
    /// When the question was sent: the answer is no older.
    pub asked: Moment,
    pub from_leader: bool,
}

/// The known tablets by first key.
#[derive(Debug)]
pub(crate) struct LocationMap {
    entries: BTreeMap<Bytes, Entry>,
    tablets_max: usize,
}

impl LocationMap {
    pub fn new(tablets_max: usize) -> LocationMap {
        LocationMap { entries: BTreeMap::new(), tablets_max }
    }

    /// The tablet that holds `row`, if it is known.
    pub fn get(&self, row: &[u8]) -> Option<&Entry> {
        let before = (Bound::Unbounded, Bound::Included(row));
        let (_, entry) = self.entries.range::<[u8], _>(before).next_back()?;
        entry.location.range.is_before_end(row).then_some(entry)
    }

    /// Learns a location. Whatever overlaps it goes. False if it is old news: a replica of the master
    /// may not have heard yet of a move, split or merge that is known here.
    pub fn insert(&mut self, location: Location, asked: Moment, from_leader: bool) -> bool {
        let overlapping = self.overlapping(&location.range);
        let is_newer = |start: &Bytes| self.entries[start].location.epoch > location.epoch;
        if !from_leader && overlapping.iter().any(is_newer) {
            return false;
        }
        for start in overlapping {
            self.entries.remove(&start);
        }
        if self.entries.len() >= self.tablets_max {
            self.entries.clear();
        }
        let start = location.range.start.clone();
        self.entries.insert(start, Entry { location: Arc::new(location), asked, from_leader });
        true
    }

    /// Forgets `location`, unless something else is known there by now.
    pub fn forget(&mut self, location: &Location) {
        if let Some(known) = self.entries.get(&location.range.start)
            && known.location.is_same_assignment(location)
        {
            self.entries.remove(&location.range.start);
        }
    }

    /// Tablets known.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    fn overlapping(&self, range: &RowRange) -> Vec<Bytes> {
        let first = match self.get(&range.start) {
            Some(entry) => entry.location.range.start.clone(),
            None => range.start.clone(),
        };
        self.entries
            .range::<Bytes, _>(&first..)
            .take_while(|(start, _)| range.is_before_end(start))
            .map(|(start, _)| start.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn location(tablet: u64, start: &str, end: &str, epoch: u64) -> Location {
        Location {
            tablet: TabletId(tablet),
            range: RowRange::new(start.to_owned(), end.to_owned()),
            epoch: Epoch(epoch),
            server_id: ServerId(1),
            server: None,
        }
    }

    fn at(map: &LocationMap, row: &str) -> Option<(u64, u64)> {
        map.get(row.as_bytes()).map(|entry| (entry.location.tablet.0, entry.location.epoch.0))
    }

    #[test]
    fn finds_the_tablet_that_holds_a_row() {
        let mut map = LocationMap::new(10);
        map.insert(location(1, "", "g", 1), Moment::default(), false);
        map.insert(location(2, "m", "", 1), Moment::default(), false);
        assert_eq!(at(&map, "a"), Some((1, 1)));
        assert_eq!(at(&map, "g"), None);
        assert_eq!(at(&map, "m"), Some((2, 1)));
        assert_eq!(at(&map, "zz"), Some((2, 1)));
    }

    #[test]
    fn children_replace_their_parent_and_a_merge_its_parts() {
        let mut map = LocationMap::new(10);
        map.insert(location(1, "", "", 1), Moment::default(), false);
        map.insert(location(2, "m", "", 1), Moment::default(), false);
        assert_eq!((at(&map, "a"), at(&map, "m")), (None, Some((2, 1))));
        map.insert(location(3, "", "m", 1), Moment::default(), false);
        assert_eq!(at(&map, "a"), Some((3, 1)));
        map.insert(location(4, "", "", 1), Moment::default(), false);
        assert_eq!((at(&map, "a"), at(&map, "m"), map.len()), (Some((4, 1)), Some((4, 1)), 1));
    }

    #[test]
    fn old_news_does_not_replace_a_newer_epoch() {
        let mut map = LocationMap::new(10);
        map.insert(location(1, "", "", 5), Moment::default(), false);
        assert!(!map.insert(location(1, "", "", 4), Moment::default(), false));
        assert_eq!(at(&map, "a"), Some((1, 5)));
    }

    #[test]
    fn news_from_before_a_split_or_merge_does_not_replace_what_came_of_it() {
        let mut map = LocationMap::new(10);
        map.insert(location(2, "m", "", 6), Moment::default(), false);
        assert!(!map.insert(location(1, "", "", 5), Moment::default(), false));
        assert_eq!((at(&map, "a"), at(&map, "m")), (None, Some((2, 6))));
        assert!(map.insert(location(3, "", "", 7), Moment::default(), false));
        assert!(!map.insert(location(2, "m", "", 6), Moment::default(), false));
        assert_eq!((at(&map, "a"), at(&map, "m")), (Some((3, 7)), Some((3, 7))));
        assert!(map.insert(location(4, "m", "", 6), Moment::default(), true), "the leader knows best");
        assert_eq!((at(&map, "a"), at(&map, "m")), (None, Some((4, 6))));
    }

    #[test]
    fn forgets_only_what_failed() {
        let mut map = LocationMap::new(10);
        map.insert(location(1, "", "", 5), Moment::default(), false);
        map.forget(&location(1, "", "", 4));
        assert_eq!(at(&map, "a"), Some((1, 5)));
        map.forget(&location(1, "", "", 5));
        assert_eq!(at(&map, "a"), None);
    }

    proptest! {
        #[test]
        fn entries_never_overlap(ranges in prop::collection::vec(("[a-e]{0,2}", "[a-e]{0,2}"), 1..40)) {
            let mut map = LocationMap::new(20);
            for (i, (start, end)) in ranges.iter().enumerate() {
                let new = location(i as u64, start, end, 1);
                if new.range.is_empty() {
                    continue;
                }
                let start = new.range.start.clone();
                map.insert(new, Moment::default(), false);
                prop_assert_eq!(map.get(&start).unwrap().location.tablet.0, i as u64);
                prop_assert!(map.len() <= 20);
                let known: Vec<_> = map.entries.values().map(|e| e.location.range.clone()).collect();
                for pair in known.windows(2) {
                    prop_assert!(!pair[0].end.is_empty() && pair[0].end <= pair[1].start, "{:?}", pair);
                }
            }
        }
    }
}
