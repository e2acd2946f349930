//! A bounded set of mapped files: the least recently used one goes first.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::block_reader::BlockReader;

/// A chunk or a sealed segment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum FileId {
    Chunk(u64),
    Segment(u64),
}

/// Readers of mapped files. A reader that is evicted while in use stays valid.
#[derive(Debug)]
pub(super) struct MapCache {
    entries_max: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    tick: u64,
    entries: BTreeMap<FileId, (u64, BlockReader)>,
    by_tick: BTreeMap<u64, FileId>,
}

impl MapCache {
    pub(super) fn new(entries_max: usize) -> MapCache {
        MapCache { entries_max, inner: Mutex::default() }
    }

    pub(super) fn get(&self, id: FileId) -> Option<BlockReader> {
        let mut inner = self.inner.lock();
        inner.tick += 1;
        let tick = inner.tick;
        let (used, reader) = inner.entries.get_mut(&id)?;
        let (last, reader) = (std::mem::replace(used, tick), reader.clone());
        inner.by_tick.remove(&last);
        inner.by_tick.insert(tick, id);
        Some(reader)
    }

    pub(super) fn insert(&self, id: FileId, reader: BlockReader) {
        self.remove(id);
        let mut inner = self.inner.lock();
        inner.tick += 1;
        let tick = inner.tick;
        inner.entries.insert(id, (tick, reader));
        inner.by_tick.insert(tick, id);
        if inner.entries.len() > self.entries_max
            && let Some((_, oldest)) = inner.by_tick.pop_first()
        {
            inner.entries.remove(&oldest);
        }
    }

    pub(super) fn remove(&self, id: FileId) {
        let mut inner = self.inner.lock();
        if let Some((tick, _)) = inner.entries.remove(&id) {
            inner.by_tick.remove(&tick);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::block_reader::Source;
    use super::*;

    fn reader(bytes: u64) -> BlockReader {
        BlockReader {
            file: "f".into(),
            source: Source::Mapped(Bytes::new()),
            base: 0,
            bytes,
            blocks: Vec::new().into(),
        }
    }

    #[test]
    fn the_least_recently_used_map_goes_first() {
        let cache = MapCache::new(2);
        cache.insert(FileId::Chunk(1), reader(1));
        cache.insert(FileId::Segment(1), reader(2));
        assert_eq!(cache.get(FileId::Chunk(1)).map(|r| r.bytes), Some(1));
        cache.insert(FileId::Chunk(2), reader(3));
        assert!(cache.get(FileId::Segment(1)).is_none());
        assert_eq!(cache.get(FileId::Chunk(1)).map(|r| r.bytes), Some(1));
        cache.insert(FileId::Chunk(1), reader(9));
        assert_eq!(cache.get(FileId::Chunk(1)).map(|r| r.bytes), Some(9));
        assert!(cache.get(FileId::Chunk(2)).is_some());
        cache.remove(FileId::Chunk(1));
        assert!(cache.get(FileId::Chunk(1)).is_none());
    }
}
