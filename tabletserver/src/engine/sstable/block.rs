//! Blocks of sorted entries, with shared key prefixes and restart points.
//!
//! ```text
//! block   := entry* restart* number of restarts (u32, little endian)     at least one restart
//! entry   := shared (varint) unshared (varint) length of value (varint) key suffix, value
//! restart := offset of an entry with shared = 0 (u32, little endian); the first is 0
//! ```
//! An entry's key is the first `shared` bytes of the key before it, then its suffix.

use std::sync::Arc;

use bytes::{BufMut, Bytes};
use uruk_proto::DecodeError;
use uruk_proto::codec::put_varint;

/// Bytes behind a restart point that call for another: a search steps through what lies between two, and
/// each step is a line of memory that is not in the processor's cache.
const RESTART_BYTES: usize = 256;

/// Builds one block after another.
#[derive(Debug)]
pub struct BlockBuilder {
    out: Vec<u8>,
    restarts: Vec<u32>,
    last_key: Vec<u8>,
    entries: usize,
    entries_since_restart: usize,
    restart_interval: usize,
}

impl BlockBuilder {
    /// An empty block; at least every `restart_interval`-th entry carries its whole key.
    pub fn new(restart_interval: usize) -> BlockBuilder {
        BlockBuilder {
            out: Vec::new(),
            restarts: Vec::new(),
            last_key: Vec::new(),
            entries: 0,
            entries_since_restart: 0,
            restart_interval,
        }
    }

    /// Adds an entry; keys come in ascending order.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        let restarts = match self.restarts.last() {
            None => true,
            Some(last) => {
                self.entries_since_restart >= self.restart_interval || self.out.len() - *last as usize >= RESTART_BYTES
            }
        };
        let shared = if restarts {
            self.restarts.push(self.out.len() as u32);
            self.entries_since_restart = 0;
            0
        } else {
            shared_prefix_len(&self.last_key, key)
        };
        put_varint(&mut self.out, shared as u64);
        put_varint(&mut self.out, (key.len() - shared) as u64);
        put_varint(&mut self.out, value.len() as u64);
        self.out.put_slice(&key[shared..]);
        self.out.put_slice(value);
        self.last_key.truncate(shared);
        self.last_key.extend_from_slice(&key[shared..]);
        self.entries += 1;
        self.entries_since_restart += 1;
    }

    /// Bytes that the block has so far.
    pub fn len(&self) -> usize {
        self.out.len() + 4 * self.restarts.len() + 4
    }

    /// Whether it has no entry.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// The last key added to this block.
    pub fn last_key(&self) -> &[u8] {
        &self.last_key
    }

    /// The block; valid until `clear`.
    pub fn finish(&mut self) -> &[u8] {
        if self.restarts.is_empty() {
            self.restarts.push(0);
        }
        for restart in &self.restarts {
            self.out.put_u32_le(*restart);
        }
        self.out.put_u32_le(self.restarts.len() as u32);
        &self.out
    }

    /// Starts over.
    pub fn clear(&mut self) {
        self.out.clear();
        self.restarts.clear();
        self.last_key.clear();
        self.entries = 0;
        self.entries_since_restart = 0;
    }
}

/// Length of the longest common prefix.
pub fn shared_prefix_len(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The value of an index entry, and the key of the entry behind it.
pub type IndexEntry<'a> = (&'a [u8], Option<&'a [u8]>);

/// An unpacked block. Cheap to clone.
///
/// Beside its bytes it keeps what makes a search fast: the prefix that all restart keys share, and of each
/// the eight bytes behind it, as numbers that lie side by side, with its place. A block whose restart
/// points make no sense has none of that; searching it says what is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Block(Arc<Unpacked>);

#[derive(PartialEq, Eq, Debug)]
struct Unpacked {
    data: Bytes,
    entries_end: usize,
    restarts: usize,
    /// Length of the prefix that all restart keys share.
    common: usize,
    /// Of each restart key; empty when restart points make no sense.
    points: Vec<Point>,
    /// Whether every entry is a restart point.
    all_restart: bool,
}

/// A restart point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Point {
    word: u64,
    offset: u32,
}

impl Block {
    /// Checks the frame; entries are checked as they are read.
    pub fn parse(data: Bytes) -> Result<Block, DecodeError> {
        let error = |why| DecodeError { what: "block", offset: 0, why };
        let count_at = data.len().checked_sub(4).ok_or_else(|| error("ends early"))?;
        let restarts = u32_at(&data, count_at) as usize;
        let restart_bytes = restarts.checked_mul(4).filter(|bytes| restarts > 0 && *bytes <= count_at);
        let entries_end = count_at - restart_bytes.ok_or_else(|| error("bad number of restarts"))?;
        let mut block = Unpacked { data, entries_end, restarts, common: 0, points: Vec::new(), all_restart: false };
        if let Ok((common, points, all_restart)) = block.search_points() {
            (block.common, block.points, block.all_restart) = (common, points, all_restart);
        }
        Ok(Block(Arc::new(block)))
    }

    /// Bytes in memory.
    pub fn len(&self) -> usize {
        self.0.data.len() + size_of::<Point>() * self.0.points.len()
    }

    /// In an index block: the value of the last entry at or before `target`, and the key of the entry behind
    /// it. None when there is no such entry, or when it takes a [`BlockCursor`] to tell.
    pub fn lookup(&self, target: &[u8]) -> Result<Option<IndexEntry<'_>>, DecodeError> {
        let block = &*self.0;
        if !block.all_restart {
            return Ok(None);
        }
        let Some(at) = block.restarts_before(target, Bound::At)?.checked_sub(1) else { return Ok(None) };
        let (start, end) = block.entry(block.restart(at))?.value;
        let next = if at + 1 < block.restarts { Some(block.restart_key(at + 1)?) } else { None };
        Ok(Some((&block.data[start..end], next)))
    }

    /// In an index block: the number of the last entry at or before `target`. None when there is no such entry, or
    /// when it takes a [`BlockCursor`] to tell.
    pub fn position(&self, target: &[u8]) -> Result<Option<usize>, DecodeError> {
        match self.0.all_restart {
            true => Ok(self.0.restarts_before(target, Bound::At)?.checked_sub(1)),
            false => Ok(None),
        }
    }

    /// Key of the entry with this number, of a block for which [`Block::position`] gives numbers; None behind the
    /// last.
    pub fn key_at(&self, number: usize) -> Result<Option<&[u8]>, DecodeError> {
        if number < self.0.restarts { self.0.restart_key(number).map(Some) } else { Ok(None) }
    }

    /// Whether it has no entry.
    pub fn is_empty(&self) -> bool {
        self.0.entries_end == 0
    }
}

impl Unpacked {
    fn restart(&self, i: usize) -> usize {
        match self.points.get(i) {
            Some(point) => point.offset as usize,
            None => u32_at(&self.data, self.entries_end + 4 * i) as usize,
        }
    }

    fn restart_key(&self, i: usize) -> Result<&[u8], DecodeError> {
        let at = self.restart(i);
        if at >= self.entries_end {
            return Err(DecodeError { what: "block entry", offset: at, why: "restart beyond the entries" });
        }
        let entry = self.entry(at)?;
        if entry.shared != 0 {
            return Err(DecodeError { what: "block entry", offset: at, why: "restart shares a prefix" });
        }
        Ok(&self.data[entry.suffix.0..entry.suffix.1])
    }

    /// The prefix that restart keys share, the restart points, and whether there are no other entries.
    fn search_points(&self) -> Result<(usize, Vec<Point>, bool), DecodeError> {
        let error = || DecodeError { what: "block", offset: 0, why: "restarts out of order" };
        let (first, last) = (self.restart_key(0)?, self.restart_key(self.restarts - 1)?);
        let common = shared_prefix_len(first, last);
        let mut points: Vec<Point> = Vec::with_capacity(self.restarts);
        let (mut all_restart, mut end) = (true, 0);
        for i in 0..self.restarts {
            let offset = self.restart(i);
            let word = word_of(self.restart_key(i)?.strip_prefix(&first[..common]).ok_or_else(error)?);
            if points.last().is_some_and(|before| before.word > word) {
                return Err(error());
            }
            all_restart &= offset == end;
            end = self.entry(offset)?.value.1;
            points.push(Point { word, offset: offset as u32 });
        }
        Ok((common, points, all_restart && end == self.entries_end))
    }

    /// Where the first entry that starts with `prefix` is, if its word is the first not below the
    /// prefix's; it may be another entry. Looks at nothing but the points. Whoever finds that the entry does
    /// start with the prefix knows that none before it does: those have lower words.
    fn guess(&self, prefix: &[u8]) -> Option<usize> {
        if !self.all_restart || prefix.len() <= self.common {
            return None;
        }
        let word = word_of(&prefix[self.common..]);
        let at = self.points.partition_point(|point| point.word < word);
        (at < self.points.len()).then_some(at)
    }

    /// How many restart keys are before `target` (or at it, with `At`).
    fn restarts_before(&self, target: &[u8], bound: Bound) -> Result<usize, DecodeError> {
        let (mut low, mut high) = (0, self.restarts);
        if !self.points.is_empty() {
            let common = &self.restart_key(0)?[..self.common];
            let Some(rest) = target.strip_prefix(common) else {
                return Ok(if target < common { 0 } else { self.restarts });
            };
            let word = word_of(rest);
            low = self.points.partition_point(|point| point.word < word);
            high = low + self.points[low..].partition_point(|point| point.word == word);
        }
        while low < high {
            let middle = (low + high) / 2;
            if bound.is_before(self.restart_key(middle)?, target) { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }

    #[inline]
    fn entry(&self, at: usize) -> Result<Entry, DecodeError> {
        let data = &self.data[..self.entries_end];
        let parse = || {
            let mut at = at;
            let shared = varint(data, &mut at)?;
            let unshared = varint(data, &mut at)?;
            let value_len = varint(data, &mut at)?;
            let suffix_end = at.checked_add(unshared)?;
            let value_end = suffix_end.checked_add(value_len).filter(|end| *end <= data.len())?;
            Some(Entry { shared, suffix: (at, suffix_end), value: (suffix_end, value_end) })
        };
        parse().ok_or(DecodeError { what: "block entry", offset: at, why: "ends early" })
    }
}

/// The first eight bytes as a number that orders as they do; shorter ones count as if zeros followed.
#[inline]
pub(super) fn word_of(bytes: &[u8]) -> u64 {
    match bytes.first_chunk::<8>() {
        Some(chunk) => u64::from_be_bytes(*chunk),
        None => {
            let mut chunk = [0; 8];
            chunk[..bytes.len()].copy_from_slice(bytes);
            u64::from_be_bytes(chunk)
        }
    }
}

/// Which keys count as before a target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bound {
    /// Those below it.
    Below,
    /// Also the target itself.
    At,
    /// All.
    Any,
}

impl Bound {
    #[inline]
    fn is_before(self, key: &[u8], target: &[u8]) -> bool {
        match self {
            Bound::Below => key < target,
            Bound::At => key <= target,
            Bound::Any => true,
        }
    }
}

fn u32_at(data: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(data[at..at + 4].try_into().expect("4 bytes"))
}

/// Where an entry's parts lie in its block.
struct Entry {
    shared: usize,
    suffix: (usize, usize),
    value: (usize, usize),
}

/// Walks the entries of a block. Not positioned until one of the `seek`s or `first` said true.
#[derive(Clone, Debug)]
pub struct BlockCursor {
    block: Block,
    key: Vec<u8>,
    value: (usize, usize),
    next: usize,
    /// Of the last `seek_restart`: whether another restart point follows at once.
    restart_is_next: bool,
}

impl BlockCursor {
    /// A cursor on `block`, not positioned.
    pub fn new(block: Block) -> BlockCursor {
        BlockCursor { block, key: Vec::new(), value: (0, 0), next: 0, restart_is_next: false }
    }

    /// Goes to another block, not positioned; keeps its memory.
    pub fn set_block(&mut self, block: Block) {
        self.block = block;
        self.key.clear();
        self.value = (0, 0);
        self.next = 0;
    }

    /// The current key.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The current value.
    pub fn value(&self) -> &[u8] {
        &self.block.0.data[self.value.0..self.value.1]
    }

    /// To the first entry.
    pub fn first(&mut self) -> Result<bool, DecodeError> {
        self.key.clear();
        self.next = 0;
        self.advance()
    }

    /// To the next entry; false behind the last.
    #[inline]
    pub fn advance(&mut self) -> Result<bool, DecodeError> {
        if self.next >= self.block.0.entries_end {
            return Ok(false);
        }
        let entry = self.block.0.entry(self.next)?;
        if entry.shared > self.key.len() {
            return Err(self.error("shares more than the key before has"));
        }
        self.key.truncate(entry.shared);
        self.key.extend_from_slice(&self.block.0.data[entry.suffix.0..entry.suffix.1]);
        self.value = entry.value;
        self.next = entry.value.1;
        Ok(true)
    }

    /// To the first entry whose key starts with `prefix`; false if there is none. What it does else is as
    /// after [`BlockCursor::seek`].
    pub fn seek_prefix(&mut self, prefix: &[u8]) -> Result<bool, DecodeError> {
        if let Some(at) = self.block.0.guess(prefix) {
            self.key.clear();
            self.next = self.block.0.restart(at);
            if self.advance()? && self.key.starts_with(prefix) {
                return Ok(true);
            }
        }
        Ok(self.seek(prefix)? && self.key.starts_with(prefix))
    }

    /// To the first entry with a key at or after `target`; false if there is none.
    pub fn seek(&mut self, target: &[u8]) -> Result<bool, DecodeError> {
        if !self.seek_restart(target, Bound::Below)? {
            return self.first();
        }
        loop {
            if self.key[..] >= *target {
                return Ok(true);
            }
            if !self.advance()? {
                return Ok(false);
            }
        }
    }

    /// To the last entry with a key at or before `target`; false if there is none.
    pub fn seek_at_or_before(&mut self, target: &[u8]) -> Result<bool, DecodeError> {
        self.seek_last(target, Bound::At)
    }

    /// To the last entry with a key before `bound`; false if there is none.
    pub fn seek_before(&mut self, bound: &[u8]) -> Result<bool, DecodeError> {
        self.seek_last(bound, Bound::Below)
    }

    /// To the last entry; false if there is none.
    pub fn last(&mut self) -> Result<bool, DecodeError> {
        self.seek_last(&[], Bound::Any)
    }

    /// To the last entry before the target.
    fn seek_last(&mut self, target: &[u8], bound: Bound) -> Result<bool, DecodeError> {
        if !self.seek_restart(target, bound)? {
            return Ok(false);
        }
        // The next entry is a restart point, which the search has excluded, or there is none.
        if self.next >= self.block.0.entries_end || self.restart_is_next {
            return Ok(true);
        }
        // Entries know only their successor: count the steps, then take one less.
        let (key, value, next) = (self.key.clone(), self.value, self.next);
        let mut steps = 0;
        while self.advance()? && bound.is_before(&self.key, target) {
            steps += 1;
        }
        (self.key, self.value, self.next) = (key, value, next);
        for _ in 0..steps {
            self.advance()?;
        }
        Ok(true)
    }

    /// To the last restart point before the target; false if there is none.
    fn seek_restart(&mut self, target: &[u8], bound: Bound) -> Result<bool, DecodeError> {
        let count = match bound {
            Bound::Any => self.block.0.restarts,
            Bound::Below | Bound::At => self.block.0.restarts_before(target, bound)?,
        };
        if count == 0 {
            return Ok(false);
        }
        self.key.clear();
        self.next = self.block.0.restart(count - 1);
        let found = self.advance()?;
        self.restart_is_next = count < self.block.0.restarts && self.block.0.restart(count) == self.next;
        Ok(found)
    }

    fn error(&self, why: &'static str) -> DecodeError {
        DecodeError { what: "block entry", offset: self.next, why }
    }
}

#[inline]
fn varint(data: &[u8], at: &mut usize) -> Option<usize> {
    let first = *data.get(*at)?;
    *at += 1;
    if first < 0x80 {
        return Some(first as usize);
    }
    let second = *data.get(*at)?;
    *at += 1;
    let mut value = (first & 0x7F) as usize | ((second & 0x7F) as usize) << 7;
    if second < 0x80 {
        return Some(value);
    }
    for shift in [14, 21, 28] {
        let byte = *data.get(*at)?;
        *at += 1;
        value |= ((byte & 0x7F) as usize) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys() -> impl Strategy<Value = Vec<Vec<u8>>> {
        prop::collection::btree_set(prop::collection::vec(0u8..3, 0..6), 1..60)
            .prop_map(|set| set.into_iter().collect())
    }

    fn build(keys: &[Vec<u8>], interval: usize) -> Block {
        let mut builder = BlockBuilder::new(interval);
        for key in keys {
            builder.add(key, &[key.clone(), key.clone()].concat());
        }
        Block::parse(Bytes::copy_from_slice(builder.finish())).unwrap()
    }

    proptest! {
        #[test]
        fn every_seek_finds_what_a_linear_search_finds(
            keys in keys(),
            target in prop::collection::vec(0u8..3, 0..6),
            interval in 1usize..5,
        ) {
            let mut cursor = BlockCursor::new(build(&keys, interval));
            let found = cursor.seek(&target).unwrap().then(|| cursor.key().to_vec());
            prop_assert_eq!(found.as_ref(), keys.iter().find(|key| **key >= target));
            let found = cursor.seek_prefix(&target).unwrap().then(|| cursor.key().to_vec());
            prop_assert_eq!(found.as_ref(), keys.iter().find(|key| key.starts_with(&target)));
            let found = cursor.seek_at_or_before(&target).unwrap().then(|| cursor.key().to_vec());
            prop_assert_eq!(found.as_ref(), keys.iter().rfind(|key| **key <= target));
            let found = cursor.seek_before(&target).unwrap().then(|| cursor.key().to_vec());
            prop_assert_eq!(found.as_ref(), keys.iter().rfind(|key| **key < target));
            let block = build(&keys, 1);
            let expected = keys.iter().rposition(|key| *key <= target);
            let expected = expected.map(|at| ([&keys[at][..], &keys[at]].concat(), keys.get(at + 1).cloned()));
            let found = block.lookup(&target).unwrap();
            prop_assert_eq!(found.map(|(value, next)| (value.to_vec(), next.map(<[u8]>::to_vec))), expected);
        }

        #[test]
        fn entries_come_back_in_order(keys in keys(), interval in 1usize..5) {
            let mut cursor = BlockCursor::new(build(&keys, interval));
            let mut at = cursor.first().unwrap();
            for key in &keys {
                prop_assert!(at);
                prop_assert_eq!(cursor.key(), &key[..]);
                prop_assert_eq!(cursor.value(), [&key[..], &key[..]].concat());
                at = cursor.advance().unwrap();
            }
            prop_assert!(!at);
        }

        #[test]
        fn any_bytes_are_walked_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), restarts in 1u32..4) {
            let mut bytes = bytes;
            bytes.put_u32_le(restarts);
            let Ok(block) = Block::parse(bytes.into()) else { return Ok(()) };
            let mut cursor = BlockCursor::new(block);
            let mut at = cursor.first();
            while matches!(at, Ok(true)) {
                at = cursor.advance();
            }
            let _ = (cursor.seek(b"a"), cursor.seek_before(b"b"), cursor.seek_at_or_before(b""));
            let _ = cursor.seek_prefix(b"a");
        }
    }
}
