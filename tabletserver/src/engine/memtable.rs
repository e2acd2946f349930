//! What is not flushed yet: one memtable per tablet and locality group.
//!
//! Invariants: (1) nothing is ever replaced or removed; (2) an entry that was inserted stays the same
//! bytes; inserting the same key again (replay) changes nothing; (3) readers need no lock: what they
//! must not see yet carries a sequence number that is not published.
//!
//! Keys of usual length lie in the list's nodes: a search then touches one place of memory for each key that it
//! compares.

use std::borrow::Borrow;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use crossbeam_skiplist::SkipMap;
use uruk_proto::{FamilyId, SeqNo};

use super::sstable::skip::family_bit;

/// What an entry costs besides its value and a long key: the list's node with key and tower, a `Bytes`,
/// and its share of the row write's buffer.
const ENTRY_OVERHEAD_BYTES: usize = 160;
/// Longer keys lie outside of the list's nodes.
const INLINE_KEY_BYTES_MAX: usize = 62;
/// A cursor copies this many entries (references to them) at first, then up to the other.
const CHUNK_ENTRIES_MIN: usize = 4;
const CHUNK_ENTRIES_MAX: usize = 256;

/// A key, in place if it is short.
#[derive(Clone)]
pub enum MemtableKey {
    /// The first `len` of these bytes.
    Inline {
        /// How many.
        len: u8,
        /// The key, then zeros.
        bytes: [u8; INLINE_KEY_BYTES_MAX],
    },
    /// Too long for that.
    Outside(Bytes),
}

impl MemtableKey {
    /// The key in place; None when it is too long.
    pub fn inline(key: &[u8]) -> Option<MemtableKey> {
        let mut bytes = [0; INLINE_KEY_BYTES_MAX];
        bytes.get_mut(..key.len())?.copy_from_slice(key);
        Some(MemtableKey::Inline { len: key.len() as u8, bytes })
    }

    /// The key.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        match self {
            MemtableKey::Inline { len, bytes } => &bytes[..usize::from(*len)],
            MemtableKey::Outside(key) => key,
        }
    }

    /// Its bytes outside of the list's node.
    fn outside_bytes(&self) -> usize {
        match self {
            MemtableKey::Inline { .. } => 0,
            MemtableKey::Outside(key) => key.len(),
        }
    }
}

impl From<Bytes> for MemtableKey {
    fn from(key: Bytes) -> MemtableKey {
        MemtableKey::inline(&key).unwrap_or(MemtableKey::Outside(key))
    }
}

impl Borrow<[u8]> for MemtableKey {
    fn borrow(&self) -> &[u8] {
        self.as_slice()
    }
}

impl PartialEq for MemtableKey {
    fn eq(&self, other: &MemtableKey) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for MemtableKey {}

impl PartialOrd for MemtableKey {
    fn partial_cmp(&self, other: &MemtableKey) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for MemtableKey {
    fn cmp(&self, other: &MemtableKey) -> std::cmp::Ordering {
        self.as_slice().cmp(other.as_slice())
    }
}

impl std::fmt::Debug for MemtableKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.as_slice().escape_ascii())
    }
}

/// Entries in key order.
pub struct Memtable {
    entries: SkipMap<MemtableKey, Bytes>,
    bytes: AtomicU64,
    seq_max: AtomicU64,
    /// As in the facts about a block.
    families: AtomicU64,
}

impl Memtable {
    /// Without entries.
    pub fn new() -> Memtable {
        Memtable {
            entries: SkipMap::new(),
            bytes: AtomicU64::new(0),
            seq_max: AtomicU64::new(0),
            families: AtomicU64::new(0),
        }
    }

    /// Adds an entry; value (and a long key) should share one allocation that nobody else uses, or the count
    /// of bytes is wrong.
    pub fn insert(&self, key: MemtableKey, value: Bytes, seq: SeqNo) {
        let bytes = key.outside_bytes() + value.len() + ENTRY_OVERHEAD_BYTES;
        self.entries.get_or_insert(key, value);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.seq_max.fetch_max(seq.0, Ordering::AcqRel);
    }

    /// Says that an entry of this family comes, before it is inserted.
    pub fn note_family(&self, family: FamilyId) {
        let bit = family_bit(family);
        if self.families.load(Ordering::Relaxed) & bit == 0 {
            self.families.fetch_or(bit, Ordering::Release);
        }
    }

    /// Whether it may have entries of families with these bits.
    pub fn may_have(&self, family_bits: u64) -> bool {
        self.families.load(Ordering::Acquire) & family_bits != 0
    }

    /// Whether it has no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Its entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes in memory, about.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The largest sequence number in it; 0 without entries.
    pub fn seq_max(&self) -> SeqNo {
        SeqNo(self.seq_max.load(Ordering::Acquire))
    }
}

impl Default for Memtable {
    fn default() -> Memtable {
        Memtable::new()
    }
}

impl std::fmt::Debug for Memtable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memtable").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

/// Walks a memtable within a key range. It may be kept for long: it borrows nothing, since it copies
/// references to a few entries at a time.
#[derive(Debug)]
pub struct MemtableCursor {
    table: Arc<Memtable>,
    upper: Vec<u8>,
    chunk: Vec<(MemtableKey, Bytes)>,
    at: usize,
    chunk_entries: usize,
}

impl MemtableCursor {
    /// A cursor, not positioned.
    pub fn new(table: Arc<Memtable>) -> MemtableCursor {
        MemtableCursor { table, upper: Vec::new(), chunk: Vec::new(), at: 0, chunk_entries: CHUNK_ENTRIES_MIN }
    }

    /// Whether it stands on an entry; else it is behind the last.
    #[inline]
    pub fn is_at(&self) -> bool {
        self.at < self.chunk.len()
    }

    /// The current key.
    #[inline]
    pub fn key(&self) -> &[u8] {
        self.chunk.get(self.at).map_or(&[], |(key, _)| key.as_slice())
    }

    /// The current value.
    #[inline]
    pub fn value(&self) -> &[u8] {
        self.chunk.get(self.at).map_or(&[], |(_, value)| value)
    }

    /// To the first entry in `[target, upper)` (upper empty: no bound).
    pub fn seek(&mut self, target: &[u8], upper: &[u8]) {
        self.upper.clear();
        self.upper.extend_from_slice(upper);
        self.chunk_entries = CHUNK_ENTRIES_MIN;
        self.fill(Bound::Included(target));
    }

    /// To the first entry at or after `target`, under the bound of the last `seek`.
    pub fn seek_within(&mut self, target: &[u8]) {
        self.fill(Bound::Included(target));
    }

    /// To the last entry before `bound` (empty: no bound) and at or after `low`.
    pub fn seek_before(&mut self, bound: &[u8], low: &[u8]) {
        self.chunk.clear();
        self.at = 0;
        let bound = if bound.is_empty() { Bound::Unbounded } else { Bound::Excluded(bound) };
        let found = self.table.entries.upper_bound(bound);
        if let Some(entry) = found.filter(|entry| entry.key().as_slice() >= low) {
            self.chunk.push((entry.key().clone(), entry.value().clone()));
        }
    }

    /// To the next entry.
    #[inline]
    pub fn advance(&mut self) {
        self.at += 1;
        if self.at == self.chunk.len() && self.at == self.chunk_entries {
            let last = self.chunk[self.at - 1].0.clone();
            self.chunk_entries = (self.chunk_entries * 2).min(CHUNK_ENTRIES_MAX);
            self.fill(Bound::Excluded(last.as_slice()));
        }
    }

    fn fill(&mut self, from: Bound<&[u8]>) {
        self.chunk.clear();
        self.at = 0;
        let upper = if self.upper.is_empty() { Bound::Unbounded } else { Bound::Excluded(&self.upper[..]) };
        if let (Bound::Included(from) | Bound::Excluded(from), Bound::Excluded(upper)) = (from, upper)
            && from >= upper
        {
            return;
        }
        let entries = self.table.entries.range::<[u8], _>((from, upper)).take(self.chunk_entries);
        self.chunk.extend(entries.map(|entry| (entry.key().clone(), entry.value().clone())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_of(number: u32) -> MemtableKey {
        Bytes::copy_from_slice(&number.to_be_bytes()).into()
    }

    #[test]
    fn long_and_short_keys_are_one_order() {
        let table = Memtable::new();
        let keys: Vec<Vec<u8>> = (0..=2 * INLINE_KEY_BYTES_MAX).map(|len| vec![7; len]).collect();
        keys.iter().rev().for_each(|key| table.insert(Bytes::from(key.clone()).into(), Bytes::new(), SeqNo(1)));
        let mut cursor = MemtableCursor::new(Arc::new(table));
        cursor.seek(&[], &[]);
        for key in &keys {
            assert_eq!(cursor.key(), key);
            cursor.advance();
        }
        assert!(!cursor.is_at());
        cursor.seek(&keys[INLINE_KEY_BYTES_MAX + 1], &[]);
        assert_eq!(cursor.key(), keys[INLINE_KEY_BYTES_MAX + 1]);
    }

    fn table(keys: impl IntoIterator<Item = u32>) -> Arc<Memtable> {
        let table = Memtable::new();
        for key in keys {
            table.insert(key_of(key), Bytes::from_static(b"v"), SeqNo(u64::from(key)));
        }
        Arc::new(table)
    }

    fn rest(cursor: &mut MemtableCursor) -> Vec<u32> {
        let mut keys = Vec::new();
        while cursor.is_at() {
            keys.push(u32::from_be_bytes(cursor.key().try_into().unwrap()));
            cursor.advance();
        }
        keys
    }

    #[test]
    fn a_cursor_walks_over_the_ends_of_its_chunks() {
        let mut cursor = MemtableCursor::new(table((0..1000).rev()));
        cursor.seek(&3u32.to_be_bytes(), &990u32.to_be_bytes());
        assert_eq!(rest(&mut cursor), (3..990).collect::<Vec<_>>());
        cursor.seek(&[], &[]);
        assert_eq!(rest(&mut cursor).len(), 1000);
        cursor.seek(&5u32.to_be_bytes(), &5u32.to_be_bytes());
        assert!(!cursor.is_at());
    }

    #[test]
    fn the_last_before_a_bound_is_found() {
        let mut cursor = MemtableCursor::new(table([1, 5, 9]));
        cursor.seek_before(&9u32.to_be_bytes(), &[]);
        assert_eq!(cursor.key(), 5u32.to_be_bytes());
        cursor.seek_before(&[], &[]);
        assert_eq!(cursor.key(), 9u32.to_be_bytes());
        cursor.seek_before(&5u32.to_be_bytes(), &2u32.to_be_bytes());
        assert!(!cursor.is_at());
    }

    #[test]
    fn inserting_again_changes_nothing_that_is_read() {
        let table = table([1]);
        table.insert(key_of(1), Bytes::from_static(b"w"), SeqNo(1));
        let mut cursor = MemtableCursor::new(table.clone());
        cursor.seek(&[], &[]);
        assert_eq!(cursor.value(), b"v");
        cursor.advance();
        assert!(!cursor.is_at());
        assert_eq!(table.seq_max(), SeqNo(1));
    }
}
