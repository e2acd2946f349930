//! Which tablets are flushed though nothing presses: those that nobody writes any more, and those whose oldest
//! unflushed write is old. A failover then replays less, the log can be let go, and deletions come to where
//! compactions see them.
//!
//! The habit of Accumulo (`table.compaction.minor.idle`, 5 minutes) and of HBase
//! (`hbase.regionserver.optionalcacheflushinterval`, 1 hour).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use uruk_base::Moment;
use uruk_proto::TabletId;

/// Tablets that hold unflushed writes, and since when.
#[derive(Debug, Default)]
pub struct IdleWatch {
    seen: BTreeMap<TabletId, Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    bytes: u64,
    changed: Moment,
    dirty: Moment,
}

impl IdleWatch {
    /// Looks at the bytes of all memtables, and tells which of them had no write for `idle`, or have
    /// unflushed ones for `age`. Times are those of the looks: it is late by as much as they are apart.
    pub fn look(
        &mut self,
        now: Moment,
        memtables: impl Iterator<Item = (TabletId, u64)>,
        (idle, age): (Duration, Duration),
    ) -> BTreeSet<TabletId> {
        let before = std::mem::take(&mut self.seen);
        let mut due = BTreeSet::new();
        for (tablet, bytes) in memtables.filter(|(_, bytes)| *bytes > 0) {
            let fresh = Seen { bytes, changed: now, dirty: now };
            let seen = match before.get(&tablet) {
                Some(old) if old.bytes == bytes => *old,
                Some(old) if old.bytes < bytes => Seen { dirty: old.dirty, ..fresh },
                // A flush has ended.
                Some(_) | None => fresh,
            };
            if now.saturating_since(seen.changed) >= idle || now.saturating_since(seen.dirty) >= age {
                due.insert(tablet);
            }
            self.seen.insert(tablet, seen);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At a second, tablets with the bytes of their memtables; those that are due.
    type Step = (u64, &'static [(u64, u64)], &'static [u64]);

    #[test]
    fn tablets_are_due_when_they_are_idle_or_old() {
        let limits = (Duration::from_secs(10), Duration::from_secs(25));
        let mut watch = IdleWatch::default();
        let steps: &[Step] = &[
            (0, &[(1, 5), (2, 5), (3, 0)], &[]),
            (9, &[(1, 5), (2, 6), (3, 0)], &[]),
            (10, &[(1, 5), (2, 7), (3, 0)], &[1]),
            // Written again; flushed.
            (11, &[(1, 6), (2, 8)], &[]),
            (20, &[(1, 2), (2, 9)], &[]),
            // Written all the time.
            (25, &[(1, 2), (2, 10)], &[2]),
            (29, &[(1, 2), (2, 1)], &[]),
            (30, &[(1, 2), (2, 1)], &[1]),
            (40, &[], &[]),
        ];
        for (second, memtables, expected) in steps {
            let memtables = memtables.iter().map(|(tablet, bytes)| (TabletId(*tablet), *bytes));
            let due = watch.look(Moment::default() + Duration::from_secs(*second), memtables, limits);
            assert_eq!(due, expected.iter().map(|tablet| TabletId(*tablet)).collect(), "at {second} s");
        }
        assert!(watch.seen.is_empty());
    }
}
