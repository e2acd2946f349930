//! Reading a replica: sealed data from a map, unsealed data only as far as I8 and the fence allow.

use std::sync::Arc;

use uruk_base::disk::OpenMode;

use super::Replica;
use crate::chunkserver::block_reader::{BlockReader, Source};
use crate::chunkserver::error::StoreError;
use crate::chunkserver::map_cache::FileId;
use crate::format::replica_file::{DATA_OFFSET, SealedMeta};

impl Replica {
    /// A view and the number of bytes of it that the caller may read: all of a sealed segment; all
    /// validated bytes for the recoverer that holds the fence; else only what is committed (I8).
    pub(in crate::chunkserver) async fn reader(&self, recovery: u64) -> Result<(BlockReader, u64), StoreError> {
        if let Some(reader) = self.maps.get(FileId::Segment(self.id)) {
            let bytes = reader.bytes;
            return Ok((reader, bytes));
        }
        let content = self.content.lock().await;
        let Some(meta) = content.meta.as_ref().filter(|_| !content.deleted) else {
            return Err(StoreError::NotFound(format!("segment {}", self.id)));
        };
        if let Some(sealed) = &meta.sealed {
            // A map makes a signal of a bad sector; what is known to be damaged is read call by call.
            let reader = match self.glance().damaged {
                Some(_) => self.open_sealed(sealed).await?,
                None => self.map_sealed(sealed).await?,
            };
            return Ok((reader, sealed.length));
        }
        let limit = match recovery {
            0 => self.committed().min(self.length()),
            r if r == meta.fence => self.length(),
            _ => return Err(StoreError::Fenced { segment: self.id, fence: content.fence_wanted }),
        };
        let Some(file) = content.file.clone() else {
            return Ok((self.view(Source::Mapped(bytes::Bytes::new()), 0, Vec::new()), 0));
        };
        // Bytes below `length` never change, so the view stays right while the segment grows.
        Ok((self.view(Source::File(file), self.length(), content.sums.blocks()), limit))
    }

    /// `content` is held: nobody replaces or deletes the file meanwhile.
    async fn map_sealed(&self, sealed: &SealedMeta) -> Result<BlockReader, StoreError> {
        let path = self.log_path();
        let map = match sealed.length {
            0 => bytes::Bytes::new(),
            _ => match self.host.env.disk.map(&path).await {
                Ok(map) => map,
                Err(error) => return Err(StoreError::Corrupt { file: path, offset: 0, what: error.to_string() }),
            },
        };
        let reader = self.view(Source::Mapped(map), sealed.length, sealed.blocks.clone());
        self.maps.insert(FileId::Segment(self.id), reader.clone());
        Ok(reader)
    }

    /// A view of a sealed replica for the check in the background; `None` while it is not sealed.
    pub(in crate::chunkserver) async fn scrub_reader(&self) -> Result<Option<BlockReader>, StoreError> {
        let content = self.content.lock().await;
        let sealed = content.meta.as_ref().and_then(|meta| meta.sealed.as_ref());
        let Some(sealed) = sealed.filter(|sealed| sealed.length > 0 && !content.deleted) else { return Ok(None) };
        self.open_sealed(sealed).await.map(Some)
    }

    async fn open_sealed(&self, sealed: &SealedMeta) -> Result<BlockReader, StoreError> {
        let path = self.log_path();
        match self.host.env.disk.open(&path, OpenMode::Read).await {
            Ok(file) => Ok(self.view(Source::File(file), sealed.length, sealed.blocks.clone())),
            Err(error) => Err(StoreError::Corrupt { file: path, offset: 0, what: error.to_string() }),
        }
    }

    fn view(&self, source: Source, bytes: u64, blocks: Vec<u32>) -> BlockReader {
        BlockReader { file: self.log_path(), source, base: DATA_OFFSET, bytes, blocks: Arc::from(blocks) }
    }
}
