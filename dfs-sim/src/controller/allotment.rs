//! Ids for puts, handed out from committed blocks, and the time that is left to each block.
//!
//! A put costs one Raft commit, its last: ids come from blocks of many. Blocks die in the order of
//! their issue, by a committed command, and with them every put and chunk that is not committed.
//!
//! Times are counted on this leader's monotonic clock, so a wall clock that jumps ends no put.
//! 1. A put gets `put_lifetime` at least: ids are taken from a block only for that long after it was
//!    asked for, and the block is expired no earlier than twice that after this leader saw it.
//! 2. Extending a put renews its block and all later ones: later chunks of the put are in those.
//! 3. Too early an expiry is safe (the commit is refused), too late a one costs disk space.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use uruk_base::Moment;

/// Soft state of one term's leader.
#[derive(Debug)]
pub struct Allotment {
    put_lifetime: Duration,
    term: u64,
    current: Option<Current>,
    /// Of every living block: its first id, and when it may be expired.
    expiries: BTreeMap<u64, Moment>,
}

#[derive(Debug)]
struct Current {
    ids: Range<u64>,
    use_until: Moment,
}

impl Allotment {
    /// Has no ids yet.
    pub fn new(put_lifetime: Duration) -> Allotment {
        Allotment { put_lifetime, term: 0, current: None, expiries: BTreeMap::new() }
    }

    /// The term that it belongs to.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Starts afresh, with the blocks that live.
    pub fn enter(&mut self, term: u64, now: Moment, blocks: impl Iterator<Item = u64>) {
        *self = Allotment { term, ..Allotment::new(self.put_lifetime) };
        self.sync(now, blocks);
    }

    /// Learns which blocks live; those not seen before in this term start their time now.
    pub fn sync(&mut self, now: Moment, blocks: impl Iterator<Item = u64>) {
        let fresh = now + self.put_lifetime * 2;
        let known = std::mem::take(&mut self.expiries);
        self.expiries = blocks.map(|first| (first, known.get(&first).copied().unwrap_or(fresh))).collect();
    }

    /// A block that was asked for at `asked_at` has been committed.
    pub fn install(&mut self, ids: Range<u64>, asked_at: Moment, now: Moment) {
        self.expiries.insert(ids.start, now + self.put_lifetime * 2);
        self.current = Some(Current { ids, use_until: asked_at + self.put_lifetime });
    }

    /// `count` consecutive ids, or None: a new block is needed.
    pub fn take(&mut self, count: u64, now: Moment) -> Option<Range<u64>> {
        let current = self.current.as_mut().filter(|c| now < c.use_until)?;
        let end = current.ids.start.checked_add(count).filter(|end| *end <= current.ids.end)?;
        let taken = current.ids.start..end;
        current.ids.start = end;
        Some(taken)
    }

    /// Gives the block, and all later ones, their full time again.
    pub fn renew(&mut self, block: u64, now: Moment) {
        let fresh = now + self.put_lifetime * 2;
        for expiry in self.expiries.range_mut(block..).map(|(_, expiry)| expiry) {
            *expiry = fresh.max(*expiry);
        }
    }

    /// Blocks whose time is over, oldest first.
    pub fn expired(&self, now: Moment) -> Vec<u64> {
        self.expiries.iter().filter(|(_, expiry)| **expiry <= now).map(|(first, _)| *first).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_start(Duration::from_secs(seconds))
    }

    fn ten_seconds() -> Allotment {
        let mut allotment = Allotment::new(Duration::from_secs(10));
        allotment.enter(1, at(0), std::iter::empty());
        allotment
    }

    #[test]
    fn ids_are_consecutive_and_end_with_the_block() {
        let mut allotment = ten_seconds();
        assert_eq!(allotment.take(1, at(0)), None);
        allotment.install(100..105, at(0), at(1));
        assert_eq!(allotment.take(3, at(2)), Some(100..103));
        assert_eq!(allotment.take(3, at(2)), None);
        assert_eq!(allotment.take(2, at(2)), Some(103..105));
    }

    #[test]
    fn a_put_begun_at_the_last_moment_keeps_its_full_lifetime() {
        let mut allotment = ten_seconds();
        allotment.install(100..105, at(0), at(1));
        assert!(allotment.take(1, at(9)).is_some());
        assert_eq!(allotment.take(1, at(10)), None, "too old to start with");
        assert_eq!(allotment.expired(at(19)), Vec::<u64>::new());
        assert_eq!(allotment.expired(at(21)), vec![100]);
    }

    #[test]
    fn renewing_a_block_renews_all_later_ones_but_no_earlier_one() {
        let mut allotment = ten_seconds();
        for first in [100, 200, 300] {
            allotment.install(first..first + 100, at(0), at(0));
        }
        allotment.renew(200, at(15));
        assert_eq!(allotment.expired(at(20)), vec![100]);
        assert_eq!(allotment.expired(at(35)), vec![100, 200, 300]);
    }

    #[test]
    fn a_new_term_starts_every_blocks_time_again() {
        let mut allotment = ten_seconds();
        allotment.install(100..105, at(0), at(0));
        allotment.enter(2, at(19), [100].into_iter());
        assert_eq!(allotment.expired(at(30)), Vec::<u64>::new());
        assert_eq!(allotment.take(1, at(19)), None, "the old leader's ids are not handed on");
        assert_eq!(allotment.expired(at(39)), vec![100]);
        allotment.sync(at(40), std::iter::empty());
        assert_eq!(allotment.expired(at(40)), Vec::<u64>::new(), "expired blocks are forgotten");
    }
}
