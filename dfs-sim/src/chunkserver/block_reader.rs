//! Reads ranges of a chunk or segment and checks every 64 KiB block that they touch.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use uruk_base::DiskFile;

use super::error::StoreError;
use crate::format::CHECKSUM_BLOCK_BYTES;
use crate::format::block_sums;

/// Where the bytes come from.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// A file that never changes, mapped; slices of it are handed out without a copy.
    Mapped(Bytes),
    /// A file read call by call: still growing, or one that the check in the background reads, for
    /// which an unreadable sector must be an error and not a signal.
    File(Arc<dyn DiskFile>),
}

/// A checked view of the first `bytes` bytes of a chunk or segment.
#[derive(Clone, Debug)]
pub(super) struct BlockReader {
    pub(super) file: PathBuf,
    pub(super) source: Source,
    /// Where byte 0 is in the file.
    pub(super) base: u64,
    pub(super) bytes: u64,
    pub(super) blocks: Arc<[u32]>,
}

impl BlockReader {
    /// Bytes `offset..offset + length`, which must lie within.
    pub(super) async fn read(&self, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        assert!(offset.checked_add(length).is_some_and(|end| end <= self.bytes), "the caller checked the range");
        if length == 0 {
            return Ok(Bytes::new());
        }
        let first = offset / CHECKSUM_BLOCK_BYTES;
        let start = first * CHECKSUM_BLOCK_BYTES;
        let end = (offset + length).next_multiple_of(CHECKSUM_BLOCK_BYTES).min(self.bytes);
        let whole = match &self.source {
            Source::Mapped(map) => {
                let range = (self.base + start) as usize..(self.base + end) as usize;
                if map.len() < range.end {
                    return Err(self.corrupt(start, format!("the file ends at {}", map.len())));
                }
                map.slice(range)
            }
            Source::File(file) => match file.read_at(self.base + start, (end - start) as usize).await {
                Ok(bytes) => bytes,
                Err(error) => return Err(self.corrupt(start, error.to_string())),
            },
        };
        if let Err(block) = block_sums::verify(&self.blocks, first, &whole) {
            return Err(self.corrupt(block * CHECKSUM_BLOCK_BYTES, "a block fails its checksum".into()));
        }
        Ok(whole.slice((offset - start) as usize..(offset - start + length) as usize))
    }

    fn corrupt(&self, offset: u64, what: String) -> StoreError {
        StoreError::Corrupt { file: self.file.clone(), offset: self.base + offset, what }
    }
}
