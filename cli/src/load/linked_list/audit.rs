//! What a scan of the list proves: which pointers lead nowhere, and which acknowledged nodes are gone.
//!
//! Two independent judgements. [`classify`] looks at the rows alone, as HBase's `Verify` does: every
//! pointer must lead to a row. [`Attendance`] compares the rows with what was acknowledged, which also
//! finds losses at the end of a chain, where nothing points yet, and changes that went missing.

use std::collections::BTreeMap;

use super::{Ledger, Lists, NodeId};

/// The rows of a list, each counted once; HBase's words.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Classes {
    /// Rows that a pointer leads to.
    pub referenced: u64,
    /// Rows that no pointer leads to: the last batch of an open ring, and what was being written.
    pub unreferenced: u64,
    /// Keys that a pointer leads to and that have no row: data loss.
    pub undefined: Vec<u128>,
}

/// Sorts and compares the keys of all rows with the keys that they point at.
pub fn classify(mut defined: Vec<u128>, mut references: Vec<u128>) -> Classes {
    for keys in [&mut defined, &mut references] {
        keys.sort_unstable();
        keys.dedup();
    }
    let mut classes = Classes::default();
    let (mut rows, mut pointers) = (defined.into_iter().peekable(), references.into_iter().peekable());
    loop {
        match (rows.peek().copied(), pointers.peek().copied()) {
            (None, None) => return classes,
            (Some(row), Some(pointer)) if row == pointer => {
                classes.referenced += 1;
                rows.next();
                pointers.next();
            }
            (Some(row), Some(pointer)) if row > pointer => {
                classes.undefined.push(pointer);
                pointers.next();
            }
            (Some(_), _) => {
                classes.unreferenced += 1;
                rows.next();
            }
            (None, Some(pointer)) => {
                classes.undefined.push(pointer);
                pointers.next();
            }
        }
    }
}

/// Compares rows with what was acknowledged before they were read.
#[derive(Debug)]
pub struct Attendance<'a> {
    lists: Lists,
    ledger: &'a Ledger,
    /// One bit per node that is there as it was written.
    seen: BTreeMap<u32, Vec<u64>>,
    /// Rows that hold something else than was written, or half of it.
    pub torn: Vec<u128>,
}

impl<'a> Attendance<'a> {
    /// Nothing seen yet.
    pub fn new(lists: Lists, ledger: &'a Ledger) -> Attendance<'a> {
        Attendance { lists, ledger, seen: BTreeMap::new(), torn: Vec::new() }
    }

    /// Takes one row: its key, the node that it says it is, and where it points.
    ///
    /// `None` for a cell that is absent; `Some(None)` for the pointer of a chain's beginning.
    pub fn see(&mut self, key: u128, id: Option<NodeId>, previous: Option<Option<u128>>) {
        let (Some(id), Some(previous)) = (id, previous) else {
            self.torn.push(key);
            return;
        };
        if self.lists.key(id) != key || !self.is_right(id, previous) {
            self.torn.push(key);
            return;
        }
        let words = self.seen.entry(id.writer).or_default();
        let word = id.n as usize / 64;
        if words.len() <= word {
            words.resize(word + 1, 0);
        }
        words[word] |= 1 << (id.n % 64);
    }

    /// Whether the node may point there: where it was first written to point, unless the change that
    /// closes its ring was acknowledged; or there where the change, perhaps begun since, lets it point.
    fn is_right(&self, id: NodeId, previous: Option<u128>) -> bool {
        let key = |id: Option<NodeId>| id.map(|id| self.lists.key(id));
        let closing = self.lists.closing(id);
        let is_closed = self.ledger.get(&id.writer).is_some_and(|progress| progress.is_closed(&self.lists, id.n));
        match (closing.is_some(), is_closed) {
            (false, _) => previous == key(self.lists.previous(id)),
            (true, true) => previous == key(closing),
            (true, false) => previous == key(closing) || previous == key(self.lists.previous(id)),
        }
    }

    /// Acknowledged nodes that are absent, torn, or without an acknowledged change; in order.
    pub fn lost(&self) -> Vec<NodeId> {
        let mut lost = Vec::new();
        for (writer, progress) in self.ledger {
            let words = self.seen.get(writer).map_or(&[][..], Vec::as_slice);
            for n in (0..progress.flushed).chain(progress.flushed_more.iter().copied()) {
                if words.get(n as usize / 64).is_none_or(|word| word & (1 << (n % 64)) == 0) {
                    lost.push(NodeId { writer: *writer, n });
                }
            }
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::super::Progress;
    use super::*;

    const LISTS: Lists = Lists { seed: 1, width: 5, depth: 4 };

    /// One closed ring (0..20) and an open one up to 37, of which 35 and 36 were acknowledged.
    fn ledger() -> Ledger {
        let mut progress = Progress { flushed: 35, closed: 1, ..Progress::default() };
        progress.flushed_more.extend([35, 36]);
        Ledger::from([(2, progress)])
    }

    struct Row(NodeId, Option<NodeId>);

    fn rows(written: u64) -> Vec<Row> {
        let node = |n| NodeId { writer: 2, n };
        let previous = |n| LISTS.previous(node(n)).or_else(|| LISTS.closing(node(n)).filter(|_| n < 20));
        (0..written).map(|n| Row(node(n), previous(n))).collect()
    }

    fn judge(rows: &[Row]) -> (Classes, Vec<u64>, usize) {
        let ledger = ledger();
        let mut attendance = Attendance::new(LISTS, &ledger);
        let (mut defined, mut references) = (Vec::new(), Vec::new());
        for Row(id, previous) in rows {
            let (key, previous) = (LISTS.key(*id), previous.map(|previous| LISTS.key(previous)));
            defined.push(key);
            references.extend(previous);
            attendance.see(key, Some(*id), Some(previous));
        }
        let lost = attendance.lost().into_iter().map(|id| id.n).collect();
        (classify(defined, references), lost, attendance.torn.len())
    }

    #[test]
    fn a_whole_list_has_no_undefined_node_and_nothing_lost() {
        let (classes, lost, torn) = judge(&rows(37));
        assert_eq!(classes, Classes { referenced: 20 + 12, unreferenced: 5, undefined: vec![] });
        assert_eq!((lost, torn), (vec![], 0));
    }

    #[test]
    fn a_removed_node_is_undefined_and_lost() {
        let mut rows = rows(37);
        rows.remove(12);
        let (classes, lost, _) = judge(&rows);
        assert_eq!(classes.undefined, [LISTS.key(NodeId { writer: 2, n: 12 })]);
        assert_eq!(lost, [12]);
    }

    #[test]
    fn a_node_that_nothing_points_at_is_lost_without_being_undefined() {
        let mut rows = rows(37);
        rows.remove(36);
        let (classes, lost, _) = judge(&rows);
        assert_eq!(classes.undefined, []);
        assert_eq!(lost, [36]);
    }

    #[test]
    fn an_unacknowledged_node_may_be_there_or_not() {
        assert_eq!(judge(&rows(37)).1, [0u64; 0]);
        assert_eq!(judge(&rows(40)).1, [0u64; 0]);
    }

    #[test]
    fn a_ring_that_is_open_again_has_lost_an_acknowledged_change() {
        let mut rows = rows(37);
        rows[3].1 = None;
        let (classes, lost, torn) = judge(&rows);
        assert_eq!((lost, torn), (vec![3], 1));
        assert_eq!((classes.unreferenced, classes.undefined), (6, vec![]));
    }

    #[test]
    fn a_ring_may_be_closed_before_its_writer_knows() {
        let mut early = ledger();
        early.get_mut(&2).unwrap().closed = 0;
        let mut attendance = Attendance::new(LISTS, &early);
        let (open, closed) = (NodeId { writer: 2, n: 0 }, NodeId { writer: 2, n: 1 });
        attendance.see(LISTS.key(open), Some(open), Some(None));
        attendance.see(LISTS.key(closed), Some(closed), Some(LISTS.closing(closed).map(|id| LISTS.key(id))));
        assert_eq!(attendance.torn, []);
    }

    #[test]
    fn half_a_row_is_torn() {
        let ledger = ledger();
        let mut attendance = Attendance::new(LISTS, &ledger);
        let id = NodeId { writer: 2, n: 6 };
        attendance.see(LISTS.key(id), Some(id), None);
        attendance.see(LISTS.key(id), None, Some(None));
        assert_eq!(attendance.torn.len(), 2);
        assert!(attendance.lost().contains(&id));
    }

    #[test]
    fn a_row_under_another_key_is_torn() {
        let ledger = ledger();
        let mut attendance = Attendance::new(LISTS, &ledger);
        attendance.see(5, Some(NodeId { writer: 2, n: 0 }), Some(None));
        assert_eq!(attendance.torn, [5]);
    }
}
