//! Files: names for lists of chunks.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::ControllerState;
use crate::controller::command::{Applied, CommitPut, Outcome, Refusal, Reply, WrittenChunk};
use crate::controller::id::{ChunkId, ChunkServerId, PieceId, PutId};

/// Distinct servers that must hold a chunk before it can be named, where two are to be had.
const COMMIT_COPIES_MIN: u32 = 2;

/// A file. Its content never changes; a put over it makes another file of that name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileRecord {
    /// The put that wrote the content: also its etag.
    pub put: PutId,
    /// Length.
    pub bytes: u64,
    /// Modification time.
    pub modified_micros: i64,
    /// Content, in order.
    pub chunks: Vec<ChunkId>,
}

impl FileRecord {
    /// Tells contents apart.
    pub fn etag(&self) -> String {
        etag(self.put)
    }
}

/// The etag of what `put` wrote.
pub fn etag(put: PutId) -> String {
    format!("{:x}", put.0)
}

/// A chunk that files name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChunkRecord {
    /// Length.
    pub bytes: u64,
    /// CRC-32 of all of it.
    pub crc: u32,
    /// How many times files name it.
    pub references: u32,
    /// Copies wanted.
    pub replicas: u8,
}

impl ControllerState {
    /// The file of this name.
    pub fn file(&self, path: &str) -> Option<&FileRecord> {
        self.files.get(path)
    }

    /// Files whose names start with `prefix` and come after `after`, by name.
    pub fn files(&self, prefix: &str, after: &str) -> impl Iterator<Item = (&String, &FileRecord)> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let start = if after >= prefix && !after.is_empty() { Excluded(after) } else { Included(prefix) };
        self.files.range::<str, _>((start, Unbounded)).take_while(move |(path, _)| path.starts_with(prefix))
    }

    /// Number of files, and their bytes.
    pub fn file_totals(&self) -> (u64, u64) {
        (self.files.len() as u64, self.file_bytes)
    }

    /// A chunk that files name.
    pub fn chunk(&self, id: ChunkId) -> Option<&ChunkRecord> {
        self.chunks.get(&id)
    }

    /// All chunks that files name.
    pub fn chunk_ids(&self) -> impl Iterator<Item = ChunkId> {
        self.chunks.keys().copied()
    }

    pub(super) fn commit_put(&mut self, commit: CommitPut) -> Reply {
        let CommitPut { put, path, chunks, must_be_new, modified_micros, replicas, allow_single_replica } = commit;
        let repeated = || Ok(Applied::default());
        // The name's own record answers a repeat for as long as it stands, the block's for as long
        // as the put's chunks could be named again.
        if self.files.get(&path).is_some_and(|file| file.put == put) {
            return repeated();
        }
        let Some(block) = self.block_of(put.0) else { return Err(Refusal::PutExpired(put)) };
        if self.blocks[&block].committed.contains(&put) {
            return repeated();
        }
        if must_be_new && self.files.contains_key(&path) {
            return Err(Refusal::FileExists(path));
        }
        let single = replicas == 1 || (allow_single_replica && self.servers.len() == 1);
        let copies_needed = if single { 1 } else { COMMIT_COPIES_MIN };
        self.check_chunks(put, &chunks, copies_needed)?;

        let mut touched = Vec::with_capacity(chunks.len());
        let mut file = FileRecord { put, bytes: 0, modified_micros, chunks: Vec::with_capacity(chunks.len()) };
        for chunk in chunks {
            file.bytes += chunk.bytes;
            file.chunks.push(chunk.id);
            touched.push(PieceId::Chunk(chunk.id));
            self.chunks.insert(
                chunk.id,
                ChunkRecord { bytes: chunk.bytes, crc: chunk.crc, references: 1, replicas: replicas.max(1) },
            );
        }
        self.blocks.get_mut(&block).expect("looked up above").committed.insert(put);
        self.name_file(path, file, &mut touched);
        Ok(Applied { outcome: Outcome::Done, touched })
    }

    fn check_chunks(&self, put: PutId, chunks: &[WrittenChunk], copies_needed: u32) -> Result<(), Refusal> {
        let mut seen = BTreeSet::new();
        for chunk in chunks {
            let block = self.block_of(chunk.id.0).map(|first| &self.blocks[&first]);
            let usable = block.is_some_and(|block| !block.freed.contains(&chunk.id))
                && !self.chunks.contains_key(&chunk.id)
                && seen.insert(chunk.id);
            if !usable {
                return Err(Refusal::ChunkNotUsable(chunk.id, put));
            }
            let servers: BTreeSet<ChunkServerId> = chunk.servers.iter().copied().collect();
            if let Some(stranger) = servers.iter().find(|id| !self.servers.contains_key(id)) {
                return Err(Refusal::NoSuchServer(*stranger));
            }
            let copies = servers.len() as u32;
            if copies < copies_needed {
                return Err(Refusal::TooFewCopies { chunk: chunk.id, copies, needed: copies_needed });
            }
        }
        Ok(())
    }

    pub(super) fn delete_files(&mut self, paths: Vec<String>) -> Reply {
        let mut touched = Vec::new();
        let mut deleted = Vec::new();
        for path in paths {
            if self.unname_file(&path, &mut touched) {
                deleted.push(path);
            }
        }
        Ok(Applied { outcome: Outcome::Deleted(deleted), touched })
    }

    pub(super) fn copy_file(
        &mut self,
        from: &str,
        to: String,
        must_be_new: bool,
        rename: bool,
        modified_micros: i64,
    ) -> Reply {
        let Some(source) = self.files.get(from) else { return Err(Refusal::NoSuchFile(from.to_owned())) };
        if must_be_new && self.files.contains_key(&to) {
            return Err(Refusal::FileExists(to));
        }
        if from == to {
            return Ok(Applied::default());
        }
        let copy = FileRecord { modified_micros, ..source.clone() };
        for chunk in &copy.chunks {
            self.chunks.get_mut(chunk).expect("a named chunk is known").references += 1;
        }
        let mut touched = Vec::new();
        self.name_file(to, copy, &mut touched);
        if rename {
            self.unname_file(from, &mut touched);
        }
        Ok(Applied { outcome: Outcome::Done, touched })
    }

    /// `file`'s chunks are counted already.
    fn name_file(&mut self, path: String, file: FileRecord, touched: &mut Vec<PieceId>) {
        self.unname_file(&path, touched);
        self.file_bytes += file.bytes;
        self.files.insert(path, file);
    }

    fn unname_file(&mut self, path: &str, touched: &mut Vec<PieceId>) -> bool {
        let Some(file) = self.files.remove(path) else { return false };
        self.file_bytes -= file.bytes;
        for id in file.chunks {
            let chunk = self.chunks.get_mut(&id).expect("a named chunk is known");
            chunk.references -= 1;
            if chunk.references > 0 {
                continue;
            }
            self.chunks.remove(&id);
            touched.push(PieceId::Chunk(id));
            if let Some(first) = self.block_of(id.0) {
                self.blocks.get_mut(&first).expect("looked up above").freed.insert(id);
            }
        }
        true
    }
}
