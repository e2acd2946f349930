//! What a tablet server reported last of each tablet, and how busy that makes it.
//!
//! A million tablets are reported each second: a report is merged with the one before it in one pass, and takes
//! its place as a whole, so that whoever looks at all of them shares them.

use std::collections::BTreeMap;

use bytes::Bytes;
use uruk_proto::TabletId;
use uruk_proto::master::TabletLoad;

use crate::balance::heat::Heat;

/// Heat of tablets that no report names now: on their way, or just made.
pub type Unreported = BTreeMap<TabletId, Heat>;

/// By tablet.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct TabletLoads {
    /// Ascending; the others are in the same order.
    ids: Vec<TabletId>,
    loads: Vec<TabletLoad>,
    heat: Vec<Heat>,
}

impl TabletLoads {
    /// Takes a report's tablets, `interval_ms` after `before`; 0: it is the first. A tablet that comes from
    /// elsewhere is as busy as it was there, until it is busier here.
    pub fn take(
        mut reported: Vec<TabletLoad>,
        interval_ms: u64,
        before: Option<&TabletLoads>,
        unreported: &mut Unreported,
    ) -> TabletLoads {
        if !reported.is_sorted_by(|a, b| a.tablet_id < b.tablet_id) {
            reported.sort_by_key(|load| load.tablet_id);
            reported.dedup_by_key(|load| load.tablet_id);
        }
        for load in &mut reported {
            (load.load_median, load.hottest_row) = (own(&load.load_median), own(&load.hottest_row));
        }
        let ids: Vec<TabletId> = reported.iter().map(|load| TabletId(load.tablet_id)).collect();
        let mut heat = Vec::with_capacity(ids.len());
        let mut old = before.into_iter().flat_map(|before| before.ids.iter().zip(&before.heat)).peekable();
        for (tablet, load) in ids.iter().zip(&reported) {
            while let Some((gone, heat)) = old.next_if(|(old, _)| *old < tablet) {
                unreported.insert(*gone, heat.clone());
            }
            let mut now = old.next_if(|(old, _)| *old == tablet).map(|(_, heat)| heat.clone()).unwrap_or_default();
            now.add(load, interval_ms);
            heat.push(now);
        }
        old.for_each(|(gone, heat)| {
            unreported.insert(*gone, heat.clone());
        });
        let mut taken = TabletLoads { ids, loads: reported, heat };
        taken.inherit(unreported);
        taken
    }

    fn inherit(&mut self, unreported: &mut Unreported) {
        if unreported.is_empty() {
            return;
        }
        for (tablet, mine) in self.ids.iter().zip(&mut self.heat) {
            if let Some(heat) = unreported.remove(tablet) {
                mine.raise(&heat);
            }
        }
    }

    fn place(&self, tablet: &TabletId) -> Option<usize> {
        self.ids.binary_search(tablet).ok()
    }

    pub fn get(&self, tablet: &TabletId) -> Option<&TabletLoad> {
        self.place(tablet).map(|place| &self.loads[place])
    }

    /// How busy the tablet is, for one who asks for most of them and nearly in order: `next` is where it is likely to
    /// be.
    pub fn heat_from(&self, next: &mut usize, tablet: &TabletId) -> Option<&Heat> {
        if self.ids.get(*next) != Some(tablet) {
            *next = self.place(tablet)?;
        }
        *next += 1;
        self.heat.get(*next - 1)
    }

    /// How busy all of them are, ascending.
    pub fn heats(&self) -> impl Iterator<Item = (&TabletId, &Heat)> {
        self.ids.iter().zip(&self.heat)
    }

    pub fn values(&self) -> impl Iterator<Item = &TabletLoad> {
        self.loads.iter()
    }

    /// Ascending.
    pub fn iter(&self) -> impl Iterator<Item = (&TabletId, &TabletLoad)> {
        self.ids.iter().zip(&self.loads)
    }
}

/// A part of a message keeps all of it in memory.
fn own(part: &Bytes) -> Bytes {
    Bytes::copy_from_slice(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loads(tablets: &[(u64, u64)]) -> Vec<TabletLoad> {
        let load = |(tablet_id, reads): &(u64, u64)| TabletLoad {
            tablet_id: *tablet_id,
            reads: *reads,
            ..TabletLoad::default()
        };
        tablets.iter().map(load).collect()
    }

    fn heat(loads: &TabletLoads, tablet: u64) -> Option<Heat> {
        loads.heat_from(&mut 0, &TabletId(tablet)).cloned()
    }

    #[test]
    fn a_tablet_that_moves_stays_as_busy_as_it_was() {
        let mut unreported = Unreported::new();
        let mut here = TabletLoads::default();
        for _ in 0..60 {
            here = TabletLoads::take(loads(&[(1, 10), (2, 500), (3, 0)]), 1_000, Some(&here), &mut unreported);
        }
        let busy = heat(&here, 2).unwrap();
        assert!(busy.requests_per_s > 490.0);
        // The new owner reports it before the old one leaves it out.
        let there = TabletLoads::take(loads(&[(2, 0)]), 0, None, &mut unreported);
        assert_eq!(heat(&there, 2).unwrap().requests_per_s, 0.0);
        here = TabletLoads::take(loads(&[(1, 10), (3, 0)]), 1_000, Some(&here), &mut unreported);
        assert_eq!(heat(&here, 2), None);
        let there = TabletLoads::take(loads(&[(2, 500)]), 1_000, Some(&there), &mut unreported);
        assert!(heat(&there, 2).unwrap().requests_per_s >= busy.requests_per_s);
        assert!(unreported.is_empty());
    }

    #[test]
    fn a_report_out_of_order_is_put_in_order() {
        let taken = TabletLoads::take(loads(&[(3, 1), (1, 2), (3, 1)]), 0, None, &mut Unreported::new());
        assert_eq!(taken.iter().map(|(tablet, load)| (tablet.0, load.reads)).collect::<Vec<_>>(), [(1, 2), (3, 1)]);
    }
}
