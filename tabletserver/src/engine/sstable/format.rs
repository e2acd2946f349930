//! The SSTable format: constants, footer, handles, and what surrounds a stored block.
//!
//! Invariants: (1) every byte of a file lies under a CRC-32 or is compared with a constant; (2) a
//! block's checksum covers its place in the file, so that a good block at a wrong place is refused.

use std::cell::RefCell;

use bytes::{BufMut, Bytes};
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};
use serde::{Deserialize, Serialize};
use uruk_proto::DecodeError;

use super::block::Block;
use super::skip::Facts;

/// Last eight bytes of every file: "URUK-SST".
pub const MAGIC: [u8; 8] = *b"URUK-SST";
/// The version that this code writes. Version 2 added zstd and the time of writing in the properties,
/// version 3 what blocks and partitions hold (in the index) and the families (in the properties), version 4 filters of
/// partitions in place of one of the file.
pub const VERSION: u32 = 4;
/// The oldest version that it reads.
pub const VERSION_MIN: u32 = 1;
/// Bytes of the footer.
pub const FOOTER_BYTES: usize = 3 * HANDLE_BYTES + 4 + 4 + 8;
/// Bytes behind a stored block's payload: compression, CRC-32.
pub const TRAILER_BYTES: usize = 5;
/// Largest block, unpacked: a value of 100 MiB with its key.
pub const BLOCK_BYTES_MAX: usize = 128 << 20;
const HANDLE_BYTES: usize = 12;

/// The payload is the block.
const COMPRESSION_RAW: u8 = 0;
/// The payload is the block's length (u32, little endian) and one lz4 block.
const COMPRESSION_LZ4: u8 = 1;
/// The payload is the block's length (u32, little endian) and one zstd frame. Since version 2.
const COMPRESSION_ZSTD: u8 = 2;
/// Higher levels cost far more time than they save space in blocks of this size.
const ZSTD_LEVEL: i32 = 1;

/// How a file's blocks are packed, where that saves an eighth.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    Raw,
    /// Fast both ways.
    Lz4,
    /// Smaller, slower.
    Zstd,
}

/// Where a stored block lies; `len` covers its trailer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Handle {
    /// First byte.
    pub offset: u64,
    /// Bytes, trailer included; 0 means that there is no such block.
    pub len: u32,
}

impl Handle {
    /// First byte behind it.
    pub fn end(self) -> u64 {
        self.offset + u64::from(self.len)
    }

    /// The form that index entries carry as their value.
    pub fn pack(self) -> [u8; HANDLE_BYTES] {
        let mut out = [0; HANDLE_BYTES];
        out[..8].copy_from_slice(&self.offset.to_le_bytes());
        out[8..].copy_from_slice(&self.len.to_le_bytes());
        out
    }

    /// Reads the packed form from the start of an index entry's value; the block must end at or before
    /// `limit`.
    pub fn unpack(bytes: &[u8], limit: u64) -> Result<Handle, DecodeError> {
        let error = |why| DecodeError { what: "block handle", offset: 0, why };
        let bytes: &[u8; HANDLE_BYTES] = bytes.first_chunk().ok_or_else(|| error("is shorter than 12 bytes"))?;
        let (offset, len) = bytes.split_at(8);
        let offset = u64::from_le_bytes(offset.try_into().expect("8 of 12 bytes"));
        let len = u32::from_le_bytes(len.try_into().expect("4 of 12 bytes"));
        match offset.checked_add(u64::from(len)) {
            Some(end) if end <= limit => Ok(Handle { offset, len }),
            _ => Err(error("reaches beyond its limit")),
        }
    }
}

/// What an entry of an index partition says of its block besides where it lies; None in files before version 3.
pub fn unpack_facts(value: &[u8]) -> Result<Option<Facts>, DecodeError> {
    match value.get(HANDLE_BYTES..) {
        None | Some([]) => Ok(None),
        Some(facts) => Facts::parse(facts).map(Some),
    }
}

/// What an entry of the index root says of its partition besides where it lies: facts, and its filter's handle, which
/// must end at or before `limit`. Neither is in files before version 3, the latter since version 4 in files with filters.
pub fn unpack_partition(value: &[u8], limit: u64) -> Result<(Option<Facts>, Option<Handle>), DecodeError> {
    match value.get(HANDLE_BYTES..) {
        None | Some([]) => Ok((None, None)),
        Some(facts) => match Facts::split(facts)? {
            (facts, []) => Ok((Some(facts), None)),
            (facts, filter) if filter.len() == HANDLE_BYTES => Ok((Some(facts), Some(Handle::unpack(filter, limit)?))),
            (_, _) => Err(DecodeError { what: "filter handle", offset: 0, why: "is not of 12 bytes" }),
        },
    }
}

/// The value of an index entry; in the root perhaps with the partition's filter.
pub fn index_value(handle: Handle, facts: &Facts, filter: Option<Handle>) -> Vec<u8> {
    let mut value = handle.pack().to_vec();
    facts.put(&mut value);
    if let Some(filter) = filter {
        value.extend_from_slice(&filter.pack());
    }
    value
}

/// The end of a file: where to find everything else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Footer {
    /// The file's filter before version 4; `len` 0 without one. Everything from here on is the tail.
    pub filter: Handle,
    /// The properties.
    pub properties: Handle,
    /// The root of the index.
    pub root: Handle,
}

impl Footer {
    /// Appends the footer.
    pub fn put(&self, out: &mut Vec<u8>) {
        let start = out.len();
        for handle in [self.filter, self.properties, self.root] {
            out.put_slice(&handle.pack());
        }
        out.put_u32_le(VERSION);
        let crc = crc32fast::hash(&out[start..]);
        out.put_u32_le(crc);
        out.put_slice(&MAGIC);
    }

    /// Reads the footer of a file of `file_bytes`, given its last bytes.
    pub fn parse(tail: &[u8], file_bytes: u64) -> Result<Footer, DecodeError> {
        let error = |why| DecodeError { what: "footer", offset: 0, why };
        let at = tail.len().checked_sub(FOOTER_BYTES).ok_or_else(|| error("ends early"))?;
        let footer = &tail[at..];
        let (body, magic) = footer.split_at(FOOTER_BYTES - MAGIC.len());
        if magic != MAGIC {
            return Err(error("not a table file (magic number)"));
        }
        let (body, crc) = body.split_at(body.len() - 4);
        if crc32fast::hash(body).to_le_bytes() != crc {
            return Err(error("checksum mismatch"));
        }
        let (handles, version) = body.split_at(3 * HANDLE_BYTES);
        let version = u32::from_le_bytes(version.try_into().expect("4 bytes"));
        if !(VERSION_MIN..=VERSION).contains(&version) {
            return Err(error("written in a format version that this program does not know"));
        }
        let limit = file_bytes.saturating_sub(FOOTER_BYTES as u64);
        let handle = |i: usize| Handle::unpack(&handles[i * HANDLE_BYTES..(i + 1) * HANDLE_BYTES], limit);
        let footer = Footer { filter: handle(0)?, properties: handle(1)?, root: handle(2)? };
        let in_order = footer.filter.end() == footer.properties.offset && footer.properties.end() == footer.root.offset;
        if !in_order || footer.root.end() != limit {
            return Err(error("its blocks do not fill the tail"));
        }
        Ok(footer)
    }
}

/// Packs blocks for storage; keeps its working memory.
pub struct BlockPacker {
    codec: Codec,
    scratch: Vec<u8>,
}

enum Codec {
    Raw,
    Lz4(Box<CompressTable>),
    Zstd(Box<zstd::bulk::Compressor<'static>>),
}

impl BlockPacker {
    /// A packer.
    pub fn new(compression: Compression) -> BlockPacker {
        let codec = match compression {
            Compression::Raw => Codec::Raw,
            Compression::Lz4 => Codec::Lz4(Box::new(CompressTable::small())),
            Compression::Zstd => {
                let compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL).expect("the level is within zstd's bounds");
                Codec::Zstd(Box::new(compressor))
            }
        };
        BlockPacker { codec, scratch: Vec::new() }
    }

    /// Appends `payload` as a stored block, which will lie at `offset`: packed, or raw where that saves
    /// less than an eighth.
    pub fn put(&mut self, out: &mut Vec<u8>, offset: u64, payload: &[u8]) -> Handle {
        assert!(payload.len() <= BLOCK_BYTES_MAX, "a block holds at most one value beyond its target size");
        let start = out.len();
        let packed = match &mut self.codec {
            Codec::Raw => None,
            Codec::Lz4(table) => {
                self.scratch.resize(get_maximum_output_size(payload.len()), 0);
                let packed = compress_into_with_table(payload, &mut self.scratch, table)
                    .expect("the output has the size that lz4 may need");
                Some((packed, COMPRESSION_LZ4))
            }
            Codec::Zstd(compressor) => {
                self.scratch.resize(zstd::zstd_safe::compress_bound(payload.len()), 0);
                let packed = compressor
                    .compress_to_buffer(payload, &mut self.scratch[..])
                    .expect("the output has the size that zstd may need");
                Some((packed, COMPRESSION_ZSTD))
            }
        };
        match packed {
            Some((packed, compression)) if 4 + packed <= payload.len() - payload.len() / 8 => {
                out.put_u32_le(payload.len() as u32);
                out.put_slice(&self.scratch[..packed]);
                out.put_u8(compression);
            }
            Some(_) | None => {
                out.put_slice(payload);
                out.put_u8(COMPRESSION_RAW);
            }
        }
        let crc = checksum(&out[start..], offset);
        out.put_u32_le(crc);
        Handle { offset, len: (out.len() - start) as u32 }
    }
}

thread_local! {
    /// Its working memory is large and costs time to make.
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

fn zstd_unpack(packed: &[u8], block: &mut [u8]) -> Option<usize> {
    DECOMPRESSOR.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = zstd::bulk::Decompressor::new().ok();
        }
        slot.as_mut()?.decompress_to_buffer(packed, block).ok()
    })
}

fn checksum(payload_and_compression: &[u8], offset: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(payload_and_compression);
    hasher.update(&offset.to_le_bytes());
    hasher.finalize()
}

/// Checks and unpacks a stored block that lies at `offset`. The result owns its memory.
pub fn unpack_payload(stored: &[u8], offset: u64) -> Result<Bytes, DecodeError> {
    let error = |why| DecodeError { what: "block", offset: 0, why };
    let split = stored.len().checked_sub(4).filter(|at| *at >= 1).ok_or_else(|| error("ends early"))?;
    let (body, crc) = stored.split_at(split);
    if checksum(body, offset).to_le_bytes() != crc {
        return Err(error("checksum mismatch"));
    }
    let (payload, compression) = body.split_at(body.len() - 1);
    match compression[0] {
        COMPRESSION_RAW => Ok(Bytes::copy_from_slice(payload)),
        compression @ (COMPRESSION_LZ4 | COMPRESSION_ZSTD) => {
            let (len, packed) = payload.split_at_checked(4).ok_or_else(|| error("ends early"))?;
            let len = u32::from_le_bytes(len.try_into().expect("4 bytes")) as usize;
            if len > BLOCK_BYTES_MAX {
                return Err(error("longer than a block may be"));
            }
            let mut block = vec![0; len];
            let unpacked = match compression {
                COMPRESSION_LZ4 => decompress_into(packed, &mut block).ok(),
                _ => zstd_unpack(packed, &mut block),
            };
            match unpacked {
                Some(n) if n == len => Ok(block.into()),
                Some(_) | None => Err(error("does not decompress")),
            }
        }
        _ => Err(error("unknown compression")),
    }
}

/// Checks and unpacks a stored block of entries.
pub fn unpack_block(stored: &[u8], offset: u64) -> Result<Block, DecodeError> {
    Block::parse(unpack_payload(stored, offset)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_block_is_refused_at_another_place() {
        let mut out = Vec::new();
        for compression in [Compression::Lz4, Compression::Zstd] {
            out.clear();
            let handle = BlockPacker::new(compression).put(&mut out, 7, &[5; 1000]);
            assert!(handle.len < 100, "equal bytes are packed");
            assert_eq!(unpack_payload(&out, 7).unwrap(), vec![5; 1000]);
            assert_eq!(unpack_payload(&out, 8).unwrap_err().why, "checksum mismatch");
        }
    }

    #[test]
    fn what_does_not_shrink_is_stored_raw() {
        let mut random = 1u64;
        let noise: Vec<u8> = (0..1000)
            .map(|_| {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
                (random >> 56) as u8
            })
            .collect();
        let mut out = Vec::new();
        for compression in [Compression::Raw, Compression::Lz4, Compression::Zstd] {
            out.clear();
            let handle = BlockPacker::new(compression).put(&mut out, 0, &noise);
            assert_eq!(handle.len as usize, noise.len() + TRAILER_BYTES);
            assert_eq!(unpack_payload(&out, 0).unwrap(), noise);
        }
    }

    #[test]
    fn a_filter_is_named_by_the_root_alone() {
        let handle = Handle { offset: 1, len: 2 };
        let (block, partition) =
            (index_value(handle, &Facts::NONE, None), index_value(handle, &Facts::NONE, Some(handle)));
        assert_eq!(unpack_facts(&block), Ok(Some(Facts::NONE)));
        assert_eq!(unpack_facts(&partition).unwrap_err().why, "more bytes than facts");
        assert_eq!(unpack_partition(&block, 3), Ok((Some(Facts::NONE), None)));
        assert_eq!(unpack_partition(&partition, 3), Ok((Some(Facts::NONE), Some(handle))));
    }

    #[test]
    fn a_footer_of_another_version_is_refused() {
        let footer = Footer {
            filter: Handle { offset: 0, len: 10 },
            properties: Handle { offset: 10, len: 5 },
            root: Handle { offset: 15, len: 5 },
        };
        let mut bytes = Vec::new();
        footer.put(&mut bytes);
        assert_eq!(bytes.len(), FOOTER_BYTES);
        assert_eq!(Footer::parse(&bytes, 20 + FOOTER_BYTES as u64), Ok(footer));
        bytes[3 * HANDLE_BYTES] += 1;
        let crc = crc32fast::hash(&bytes[..3 * HANDLE_BYTES + 4]);
        bytes[3 * HANDLE_BYTES + 4..][..4].copy_from_slice(&crc.to_le_bytes());
        let error = Footer::parse(&bytes, 20 + FOOTER_BYTES as u64).unwrap_err();
        assert_eq!(error.why, "written in a format version that this program does not know");
    }
}
