//! A chunk's file: its bytes, then one CRC-32 per 64 KiB, then a footer of 40 bytes.
//!
//! | footer bytes | field |
//! |---|---|
//! | 0..8 | chunk id, u64 LE |
//! | 8..16 | bytes of data, u64 LE |
//! | 16..20 | CRC-32 of the data |
//! | 20..24 | format version, 1 |
//! | 24..28 | CRC-32 of the block checksums and of footer bytes 0..24 |
//! | 28..32 | zero |
//! | 32..40 | `URUKCHNK` |
//!
//! The checksums are a trailer and not a file of their own: the file is written under a temporary
//! name and renamed when it is complete (and synced, in fsync mode), so one rename makes both appear.
//! Invariant: the file's length tells the length of its data, so a listing of the folder is enough
//! to report chunks.

use bytes::{BufMut, Bytes, BytesMut};

use super::block_sums::{BlockSums, block_count};
use super::{CHECKSUM_BLOCK_BYTES, CHUNK_BYTES_MAX};

const MAGIC: &[u8; 8] = b"URUKCHNK";
const VERSION: u32 = 1;
/// Bytes of the footer.
pub const FOOTER_BYTES: u64 = 40;

/// Length of the file of a chunk with this much data.
pub fn file_bytes(data_bytes: u64) -> u64 {
    data_bytes + 4 * block_count(data_bytes) + FOOTER_BYTES
}

/// Bytes of data in a chunk file of this length; `None` when no chunk file has it.
pub fn data_bytes(file_bytes: u64) -> Option<u64> {
    let rest = file_bytes.checked_sub(FOOTER_BYTES)?;
    let data = rest.checked_sub(4 * rest.div_ceil(CHECKSUM_BLOCK_BYTES + 4))?;
    (data <= CHUNK_BYTES_MAX && self::file_bytes(data) == file_bytes).then_some(data)
}

/// What follows the data.
pub fn encode_trailer(chunk_id: u64, sums: &BlockSums) -> Bytes {
    let mut out = BytesMut::new();
    for block in sums.blocks() {
        out.put_u32_le(block);
    }
    out.put_u64_le(chunk_id);
    out.put_u64_le(sums.bytes());
    out.put_u32_le(sums.total());
    out.put_u32_le(VERSION);
    let crc = crc32fast::hash(&out);
    out.put_u32_le(crc);
    out.put_u32_le(0);
    out.put_slice(MAGIC);
    out.freeze()
}

/// A chunk's trailer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trailer {
    /// Bytes of data.
    pub bytes: u64,
    /// CRC-32 of the data.
    pub crc: u32,
    /// CRC-32 of each 64 KiB.
    pub blocks: Vec<u32>,
}

/// Why a file is not the chunk that it should be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TrailerError {
    /// Its length is impossible.
    #[error("no chunk file has {0} bytes")]
    Length(u64),
    /// Its trailer fails its checksum or has no magic number.
    #[error("the trailer is damaged")]
    Damaged,
    /// A newer program wrote it.
    #[error("the file has format {0}, this program knows format {VERSION}")]
    Newer(u32),
    /// It belongs to another chunk.
    #[error("the file says that it is chunk {0}")]
    OtherChunk(u64),
}

/// Reads the trailer of a whole file of `file_bytes` bytes, of which `tail` is the end, at least
/// from the end of the data.
pub fn parse_trailer(chunk_id: u64, file_bytes: u64, tail: &[u8]) -> Result<Trailer, TrailerError> {
    let bytes = data_bytes(file_bytes).ok_or(TrailerError::Length(file_bytes))?;
    let trailer_bytes = (file_bytes - bytes) as usize;
    let trailer = tail.len().checked_sub(trailer_bytes).map(|at| &tail[at..]).ok_or(TrailerError::Damaged)?;
    let (sums, footer) = trailer.split_at(trailer_bytes - FOOTER_BYTES as usize);
    let u32_at = |at: usize| u32::from_le_bytes(footer[at..at + 4].try_into().expect("four bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(footer[at..at + 8].try_into().expect("eight bytes"));
    // No checksum covers the four bytes before the magic number, and copies of a chunk are the same in all bytes.
    if footer[28..32] != [0; 4] || &footer[32..40] != MAGIC {
        return Err(TrailerError::Damaged);
    }
    if u32_at(20) > VERSION {
        return Err(TrailerError::Newer(u32_at(20)));
    }
    if u32_at(24) != crc32fast::hash(&trailer[..sums.len() + 24]) || u64_at(8) != bytes {
        return Err(TrailerError::Damaged);
    }
    if u64_at(0) != chunk_id {
        return Err(TrailerError::OtherChunk(u64_at(0)));
    }
    let blocks = sums.chunks_exact(4).map(|crc| u32::from_le_bytes(crc.try_into().expect("four bytes"))).collect();
    Ok(Trailer { bytes, crc: u32_at(16), blocks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_file_tells_the_length_of_its_data() {
        let block = CHECKSUM_BLOCK_BYTES;
        for bytes in [0, 1, 1000, block - 1, block, block + 1, 5 * block, CHUNK_BYTES_MAX] {
            assert_eq!(data_bytes(file_bytes(bytes)), Some(bytes), "{bytes}");
        }
        assert_eq!(data_bytes(FOOTER_BYTES - 1), None);
        assert_eq!(data_bytes(FOOTER_BYTES + 3), None, "a block without data");
        assert_eq!(data_bytes(file_bytes(CHUNK_BYTES_MAX + 1)), None);
        for length in 0..3 * block {
            assert!(data_bytes(length).is_none_or(|bytes| file_bytes(bytes) == length));
        }
    }

    #[test]
    fn a_trailer_is_read_back() {
        for bytes in [0, 10, 200_000] {
            let data = vec![3; bytes];
            let sums = BlockSums::of(&data);
            let trailer = encode_trailer(9, &sums);
            let length = file_bytes(bytes as u64);
            assert_eq!(length, (bytes + trailer.len()) as u64);
            let parsed = parse_trailer(9, length, &trailer).expect("valid");
            assert_eq!(parsed, Trailer { bytes: bytes as u64, crc: crc32fast::hash(&data), blocks: sums.blocks() });
            assert_eq!(parse_trailer(8, length, &trailer), Err(TrailerError::OtherChunk(9)));
        }
    }

    #[test]
    fn every_flipped_bit_of_a_trailer_is_noticed() {
        let sums = BlockSums::of(&[5; 70_000]);
        let trailer = encode_trailer(9, &sums);
        let length = file_bytes(70_000);
        assert!(parse_trailer(9, length, &trailer).is_ok());
        for bit in 0..trailer.len() * 8 {
            let mut bad = trailer.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(parse_trailer(9, length, &bad).is_err(), "bit {bit}");
        }
        assert!(parse_trailer(9, length, &trailer[1..]).is_err());
        assert!(parse_trailer(9, length + 1, &trailer).is_err());
        assert!(parse_trailer(9, 3, &[1, 2, 3]).is_err());
    }
}
