//! Remembered chunks and locations of files, so that a read of a known file needs no controller.
//!
//! Two generations: a new entry goes to the young one, a hit moves there; when the young one is full
//! it becomes the old one and the former old one is forgotten. So at most `capacity` entries, and an
//! entry used within the last `capacity / 2` insertions stays.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use uruk_proto::dfs::FileInfo;

#[derive(Debug)]
pub struct FileCache {
    generation_max: usize,
    generations: Mutex<Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<String, Arc<FileInfo>>,
    old: HashMap<String, Arc<FileInfo>>,
}

impl FileCache {
    pub fn new(capacity: usize) -> FileCache {
        FileCache { generation_max: (capacity / 2).max(1), generations: Mutex::default() }
    }

    pub fn get(&self, path: &str) -> Option<Arc<FileInfo>> {
        let mut generations = self.generations.lock();
        if let Some(file) = generations.young.get(path) {
            return Some(file.clone());
        }
        let (path, file) = generations.old.remove_entry(path)?;
        self.insert_young(&mut generations, path, file.clone());
        Some(file)
    }

    pub fn insert(&self, file: Arc<FileInfo>) {
        let mut generations = self.generations.lock();
        generations.old.remove(&file.path);
        self.insert_young(&mut generations, file.path.clone(), file);
    }

    pub fn remove(&self, path: &str) {
        let mut generations = self.generations.lock();
        generations.young.remove(path);
        generations.old.remove(path);
    }

    /// Forgets that the chunk is at this address; tells whether that was remembered.
    pub fn forget_address(&self, path: &str, chunk_id: u64, address: &str) -> bool {
        let mut generations = self.generations.lock();
        let Generations { young, old } = &mut *generations;
        let Some(file) = young.get_mut(path).or_else(|| old.get_mut(path)) else { return false };
        let place = |file: &FileInfo| {
            let chunk = file.chunks.iter().position(|chunk| chunk.chunk_id == chunk_id)?;
            let place = file.chunks[chunk].addresses.iter().position(|known| known == address)?;
            Some((chunk, place))
        };
        let Some((chunk, place)) = place(file) else { return false };
        Arc::make_mut(file).chunks[chunk].addresses.remove(place);
        true
    }

    fn insert_young(&self, generations: &mut Generations, path: String, file: Arc<FileInfo>) {
        if generations.young.len() >= self.generation_max {
            generations.old = std::mem::take(&mut generations.young);
        }
        generations.young.insert(path, file);
    }
}

#[cfg(test)]
mod tests {
    use uruk_proto::dfs::ChunkInfo;

    use super::*;

    fn file(path: &str) -> Arc<FileInfo> {
        Arc::new(FileInfo { path: path.into(), ..FileInfo::default() })
    }

    #[test]
    fn entries_in_use_stay_and_the_rest_is_bounded() {
        let cache = FileCache::new(8);
        cache.insert(file("used"));
        for i in 0..100 {
            cache.insert(file(&format!("file-{i}")));
            assert!(cache.get("used").is_some(), "after {i}");
        }
        let held = (0..100).filter(|i| cache.get(&format!("file-{i}")).is_some()).count();
        assert!(held <= 8, "{held}");
    }

    #[test]
    fn an_address_is_forgotten_once_and_for_its_chunk_alone() {
        let cache = FileCache::new(2);
        let chunk =
            |chunk_id| ChunkInfo { chunk_id, addresses: vec!["a:1".into(), "b:1".into()], ..ChunkInfo::default() };
        cache.insert(Arc::new(FileInfo { path: "f".into(), chunks: vec![chunk(1), chunk(2)], ..FileInfo::default() }));
        assert!(cache.forget_address("f", 2, "a:1"));
        assert!(!cache.forget_address("f", 2, "a:1") && !cache.forget_address("g", 2, "a:1"));
        let file = cache.get("f").expect("remembered");
        assert_eq!(file.chunks.iter().map(|chunk| chunk.addresses.len()).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(file.chunks[1].addresses, ["b:1"]);
    }

    #[test]
    fn a_removed_entry_is_gone_from_both_generations() {
        let cache = FileCache::new(2);
        cache.insert(file("a"));
        cache.insert(file("b"));
        cache.remove("a");
        cache.remove("b");
        assert!(cache.get("a").is_none() && cache.get("b").is_none());
    }
}
