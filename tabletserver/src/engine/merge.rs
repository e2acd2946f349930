//! Many sorted sources as one: a k-way merge on raw keys.
//!
//! Equal keys (one row deletion in several locality groups, a replayed write that is in a file too) come
//! out one after the other; who reads the merge drops the repeats.

use std::sync::Arc;

use futures::future::try_join_all;
use uruk_proto::DecodeError;

use super::error::EngineError;
use super::memtable::{Memtable, MemtableCursor};
use super::sstable::FileHandle;
use super::sstable::cursor::{CursorState, FileCursor, ReadOptions};
use super::sstable::row_filter::RowProbe;

/// One sorted source.
#[derive(Debug)]
enum Source {
    Memtable(MemtableCursor),
    File(Box<FileCursor>),
}

impl Source {
    #[inline]
    fn state(&self) -> CursorState {
        match self {
            Source::Memtable(cursor) if cursor.is_at() => CursorState::At,
            Source::Memtable(_) => CursorState::End,
            Source::File(cursor) => cursor.state(),
        }
    }

    #[inline]
    fn key(&self) -> &[u8] {
        match self {
            Source::Memtable(cursor) => cursor.key(),
            Source::File(cursor) => cursor.key(),
        }
    }

    #[inline]
    fn value(&self) -> &[u8] {
        match self {
            Source::Memtable(cursor) => cursor.value(),
            Source::File(cursor) => cursor.value(),
        }
    }

    #[inline]
    fn advance(&mut self) -> Result<(), EngineError> {
        match self {
            Source::Memtable(cursor) => {
                cursor.advance();
                Ok(())
            }
            Source::File(cursor) => cursor.advance(),
        }
    }

    async fn load(&mut self) -> Result<(), EngineError> {
        match self {
            Source::Memtable(_) => Ok(()),
            Source::File(cursor) => {
                while cursor.state() == CursorState::Blocked {
                    cursor.load().await?;
                }
                Ok(())
            }
        }
    }
}

/// A merge of memtables and files.
#[derive(Debug)]
pub struct Merge {
    sources: Vec<Source>,
    /// Sources that stand on an entry: a binary heap, least key first.
    heap: Vec<u32>,
    /// Sources that must be loaded before anything can be said.
    blocked: Vec<u32>,
}

impl Merge {
    /// A merge, not positioned. Reads nothing.
    pub fn new<'a>(
        memtables: impl IntoIterator<Item = &'a Arc<Memtable>>,
        files: impl IntoIterator<Item = &'a Arc<FileHandle>>,
        options: ReadOptions,
    ) -> Merge {
        let memtables = memtables.into_iter().map(|table| Source::Memtable(MemtableCursor::new(table.clone())));
        let files = files.into_iter().map(|file| Source::File(Box::new(FileCursor::new(file.clone(), options))));
        Merge { sources: memtables.chain(files).collect(), heap: Vec::new(), blocked: Vec::new() }
    }

    /// Where it stands.
    #[inline]
    pub fn state(&self) -> CursorState {
        match (self.blocked.is_empty(), self.heap.is_empty()) {
            (false, _) => CursorState::Blocked,
            (true, false) => CursorState::At,
            (true, true) => CursorState::End,
        }
    }

    /// The current key.
    #[inline]
    pub fn key(&self) -> &[u8] {
        self.top().key()
    }

    /// The current value.
    #[inline]
    pub fn value(&self) -> &[u8] {
        self.top().value()
    }

    /// To the first entry in `[target, upper)` (upper empty: no bound).
    pub fn seek(&mut self, target: &[u8], upper: &[u8]) -> Result<(), EngineError> {
        self.seek_probing(target, upper, None)
    }

    /// To the first entry of a row that ends before `upper`; leaves out files whose filters exclude what is sought.
    pub fn seek_row(&mut self, probe: &Arc<RowProbe>, upper: &[u8]) -> Result<(), EngineError> {
        self.seek_probing(&probe.row.prefix, upper, Some(probe))
    }

    fn seek_probing(&mut self, target: &[u8], upper: &[u8], probe: Option<&Arc<RowProbe>>) -> Result<(), EngineError> {
        for source in &mut self.sources {
            match source {
                Source::Memtable(cursor) => cursor.seek(target, upper),
                Source::File(cursor) => cursor.seek(target, upper, probe)?,
            }
        }
        self.rebuild();
        Ok(())
    }

    /// Forward to the first entry at or after `target`, within the range of the last seek.
    pub fn skip_to(&mut self, target: &[u8]) -> Result<(), EngineError> {
        for source in &mut self.sources {
            if source.state() != CursorState::At || *source.key() >= *target {
                continue;
            }
            match source {
                Source::Memtable(cursor) => cursor.seek_within(target),
                Source::File(cursor) => cursor.seek_within(target)?,
            }
        }
        self.rebuild();
        Ok(())
    }

    /// Every source to its last entry before `bound` (empty: no bound) and at or after `low`. Only
    /// [`Merge::last_key`] means anything after it.
    pub fn seek_before(&mut self, bound: &[u8], low: &[u8]) -> Result<(), EngineError> {
        for source in &mut self.sources {
            match source {
                Source::Memtable(cursor) => cursor.seek_before(bound, low),
                Source::File(cursor) => cursor.seek_before(bound, low)?,
            }
        }
        self.rebuild();
        Ok(())
    }

    /// After `seek_before`, not blocked: the last key of all; None when there is none.
    pub fn last_key(&self) -> Option<&[u8]> {
        self.sources.iter().filter(|source| source.state() == CursorState::At).map(Source::key).max()
    }

    /// To the next entry.
    #[inline]
    pub fn advance(&mut self) -> Result<(), EngineError> {
        let top = self.heap[0];
        self.sources[top as usize].advance()?;
        match self.sources[top as usize].state() {
            CursorState::At => {}
            CursorState::End => {
                self.heap.swap_remove(0);
            }
            CursorState::Blocked => {
                self.heap.swap_remove(0);
                self.blocked.push(top);
            }
        }
        self.sift_down(0);
        Ok(())
    }

    /// Loads what the merge waits for.
    pub async fn load(&mut self) -> Result<(), EngineError> {
        if let [one] = self.blocked[..] {
            self.sources[one as usize].load().await?;
        } else {
            let blocked = self.sources.iter_mut().filter(|source| source.state() == CursorState::Blocked);
            try_join_all(blocked.map(Source::load)).await?;
        }
        self.rebuild();
        Ok(())
    }

    /// The error for a current entry that makes no sense.
    pub fn damaged(&self, error: &DecodeError) -> EngineError {
        match self.top() {
            Source::File(cursor) => cursor.damaged(error),
            Source::Memtable(_) => panic!("the memtable holds keys that this process made: {error}"),
        }
    }

    #[inline]
    fn top(&self) -> &Source {
        &self.sources[self.heap[0] as usize]
    }

    fn rebuild(&mut self) {
        self.heap.clear();
        self.blocked.clear();
        for (i, source) in self.sources.iter().enumerate() {
            match source.state() {
                CursorState::At => self.heap.push(i as u32),
                CursorState::Blocked => self.blocked.push(i as u32),
                CursorState::End => {}
            }
        }
        for at in (0..self.heap.len() / 2).rev() {
            self.sift_down(at);
        }
    }

    #[inline]
    fn sift_down(&mut self, mut at: usize) {
        let less = |a: u32, b: u32| self.sources[a as usize].key() < self.sources[b as usize].key();
        loop {
            let mut child = 2 * at + 1;
            if child >= self.heap.len() {
                break;
            }
            if child + 1 < self.heap.len() && less(self.heap[child + 1], self.heap[child]) {
                child += 1;
            }
            if !less(self.heap[child], self.heap[at]) {
                break;
            }
            self.heap.swap(at, child);
            at = child;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use uruk_proto::SeqNo;

    use super::*;
    use crate::engine::sstable::skip::Wanted;

    #[test]
    fn sources_come_out_in_order_with_repeats() {
        let tables: Vec<Arc<Memtable>> = [&[1u8, 4, 7][..], &[], &[2, 4, 9], &[3]]
            .iter()
            .map(|keys| {
                let table = Memtable::new();
                keys.iter().for_each(|key| table.insert(Bytes::from(vec![*key]).into(), Bytes::new(), SeqNo(1)));
                Arc::new(table)
            })
            .collect();
        let options = ReadOptions {
            fill_cache: true,
            cache_fill_bytes_max: u64::MAX,
            readahead_bytes_min: 0,
            readahead_bytes_max: 0,
            wanted: Wanted::ALL,
        };
        let mut merge = Merge::new(&tables, [], options);
        merge.seek(&[2], &[9]).unwrap();
        let mut keys = Vec::new();
        while merge.state() == CursorState::At {
            keys.push(merge.key()[0]);
            merge.advance().unwrap();
        }
        assert_eq!(keys, [2, 3, 4, 4, 7]);
        merge.seek(&[], &[]).unwrap();
        merge.skip_to(&[5]).unwrap();
        assert_eq!(merge.key(), [7]);
        merge.seek_before(&[9], &[]).unwrap();
        assert_eq!(merge.last_key(), Some(&[7u8][..]));
    }
}
