//! The Big Linked List: rows that point at rows, so that one lost row shows (after HBase's
//! `IntegrationTestBigLinkedList`).
//!
//! A writer writes batches of `width` nodes with random keys. Each node points at the node at the
//! same position of the batch before, which was acknowledged as a whole before this one was begun;
//! after `depth` batches the first one is changed to point at the last, one position on, which closes
//! all of them into one ring. Keys and pointers follow from seed, writer and number alone, so nothing
//! but counters has to be remembered.
//!
//! Invariants: (1) a node is written only after the node it points at was acknowledged, so a pointer
//! at a row that is not there is data loss, whatever the writer knows; (2) whatever is written again
//! is the same cells with the same timestamps, so that a late first attempt changes nothing; (3) only
//! the closing of a ring changes a node, once, with a newer timestamp.

use std::collections::{BTreeMap, BTreeSet};

pub mod audit;
pub mod traffic;

/// Names one node: the how-manyth of which writer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId {
    /// Which writer.
    pub writer: u32,
    /// Counted from 0.
    pub n: u64,
}

/// The lists of one run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lists {
    /// Decides every key.
    pub seed: u64,
    /// Nodes per batch.
    pub width: u64,
    /// Batches per ring.
    pub depth: u64,
}

/// What one writer knows about its nodes.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Every node below it was acknowledged.
    pub flushed: u64,
    /// Nodes acknowledged besides: of the batch being written.
    pub flushed_more: BTreeSet<u64>,
    /// The closing of every ring below it was acknowledged.
    pub closed: u64,
    /// Nodes of the ring `closed` whose change was acknowledged.
    pub closed_more: BTreeSet<u64>,
}

/// By writer.
pub type Ledger = BTreeMap<u32, Progress>;

impl Lists {
    /// The node's row key, as a number.
    pub fn key(&self, id: NodeId) -> u128 {
        let writer = mix(self.seed ^ mix(u64::from(id.writer)));
        let high = mix(writer ^ mix(id.n));
        u128::from(high) << 64 | u128::from(mix(high ^ writer.rotate_left(32) ^ id.n))
    }

    /// The node that it points at when it is first written; none in the first batch of a ring.
    pub fn previous(&self, id: NodeId) -> Option<NodeId> {
        let is_first = self.batch_in_ring(id.n) == 0;
        (!is_first).then(|| NodeId { n: id.n - self.width, ..id })
    }

    /// The node that it points at once its ring is closed; none if closing does not change it.
    ///
    /// One position on, so that the chains of all positions become one ring.
    pub fn closing(&self, id: NodeId) -> Option<NodeId> {
        let (batch, position) = (id.n / self.width, id.n % self.width);
        let last = batch + self.depth - 1;
        let is_first = self.batch_in_ring(id.n) == 0;
        is_first.then(|| NodeId { n: last * self.width + (position + 1) % self.width, ..id })
    }

    /// The numbers of the nodes that closing the ring changes.
    pub fn first_batch(&self, ring: u64) -> std::ops::Range<u64> {
        let first = ring * self.depth * self.width;
        first..first + self.width
    }

    fn batch_in_ring(&self, n: u64) -> u64 {
        n / self.width % self.depth
    }
}

impl Progress {
    /// Number of acknowledged nodes.
    pub fn acknowledged(&self) -> u64 {
        self.flushed + self.flushed_more.len() as u64
    }

    /// Whether the change of a first batch's node, which closes its ring, was acknowledged.
    pub fn is_closed(&self, lists: &Lists, n: u64) -> bool {
        n / (lists.width * lists.depth) < self.closed || self.closed_more.contains(&n)
    }
}

/// The row key: 32 hex digits, even over a table that is split by hex prefix.
pub fn row_key(key: u128) -> Vec<u8> {
    format!("{key:032x}").into_bytes()
}

/// The reverse of [`row_key`]; nothing for rows that are no nodes.
pub fn parse_key(row: &[u8]) -> Option<u128> {
    let text = std::str::from_utf8(row).ok().filter(|text| text.len() == 32)?;
    u128::from_str_radix(text, 16).ok()
}

impl NodeId {
    /// As the node's own cell names it.
    pub fn text(self) -> String {
        format!("{:04x}/{:010x}", self.writer, self.n)
    }

    /// The reverse of [`NodeId::text`].
    pub fn parse(cell: &[u8]) -> Option<NodeId> {
        let (writer, n) = std::str::from_utf8(cell).ok()?.split_once('/')?;
        Some(NodeId { writer: u32::from_str_radix(writer, 16).ok()?, n: u64::from_str_radix(n, 16).ok()? })
    }
}

/// SplitMix64's finish: a number that looks random.
fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTS: Lists = Lists { seed: 7, width: 5, depth: 4 };

    #[test]
    fn nodes_point_at_the_same_position_of_the_batch_before() {
        let at = |n| NodeId { writer: 1, n };
        assert_eq!(LISTS.previous(at(3)), None);
        assert_eq!(LISTS.previous(at(13)), Some(at(8)));
        assert_eq!(LISTS.previous(at(23)), None, "the second ring begins at 20");
        assert_eq!(LISTS.closing(at(3)), Some(at(19)));
        assert_eq!(LISTS.closing(at(4)), Some(at(15)));
        assert_eq!(LISTS.closing(at(5)), None);
        assert_eq!(LISTS.first_batch(1), 20..25);
    }

    #[test]
    fn a_closed_ring_passes_through_every_node_once() {
        let start = NodeId { writer: 1, n: 40 };
        let (mut at, mut seen) = (start, BTreeSet::new());
        loop {
            assert!(seen.insert(at), "{at:?} comes twice");
            at = LISTS.previous(at).or(LISTS.closing(at)).unwrap();
            if at == start {
                break;
            }
        }
        assert_eq!(seen.into_iter().map(|id| id.n).collect::<Vec<_>>(), (40..60).collect::<Vec<_>>());
    }

    #[test]
    fn keys_differ_and_parse_back() {
        let ids = (0..4).flat_map(|writer| (0..2000).map(move |n| NodeId { writer, n }));
        let keys: BTreeSet<u128> = ids.map(|id| LISTS.key(id)).collect();
        assert_eq!(keys.len(), 8000);
        assert!(keys.iter().all(|key| parse_key(&row_key(*key)) == Some(*key)));
        assert_ne!(LISTS.key(NodeId { writer: 0, n: 0 }), Lists { seed: 8, ..LISTS }.key(NodeId { writer: 0, n: 0 }));
        assert_eq!(parse_key(b"4000!probe"), None);
        let id = NodeId { writer: 3, n: 1 << 33 };
        assert_eq!(NodeId::parse(id.text().as_bytes()), Some(id));
    }

    #[test]
    fn acknowledgements_count_one_by_one() {
        let mut progress = Progress { flushed: 20, ..Progress::default() };
        progress.flushed_more.insert(22);
        progress.closed_more.insert(3);
        assert_eq!(progress.acknowledged(), 21);
        assert_eq!([2, 3].map(|n| progress.is_closed(&LISTS, n)), [false, true]);
    }
}
