//! The two files of a segment's replica: `<id>.log` with its bytes and `<id>.meta` with its state.
//!
//! The log file begins with a page of 4,096 bytes; the segment's byte `n` is at `4096 + n`.
//!
//! | bytes | field |
//! |---|---|
//! | 0..24 | `URUKSEGM`, format version u32 LE, zero u32, segment id u64 LE |
//! | 512..536 | the watermark: acknowledged length, committed length (u64 LE each), CRC-32 of both, zero |
//!
//! The watermark is written again whenever this replica is about to acknowledge more. It lies within
//! one sector, so it is old or new and never torn.
//!
//! The meta file is `URUKMETA`, format version u32 LE, length u32 LE, a [`ReplicaMeta`] in postcard,
//! CRC-32 of all before. It is only ever replaced as a whole and synced, and so is always old or new.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// Where the segment's first byte is in its file.
pub const DATA_OFFSET: u64 = 4096;
/// Where the watermark is in the log file.
pub const WATERMARK_OFFSET: u64 = 512;
const WATERMARK_BYTES: usize = 24;
const VERSION: u32 = 1;
const LOG_MAGIC: &[u8; 8] = b"URUKSEGM";
const META_MAGIC: &[u8; 8] = b"URUKMETA";

/// How far a replica may go before it answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Mode {
    /// To `fdatasync`.
    Fsync,
    /// To `write(2)`.
    Replicated,
}

/// How a replica came to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Origin {
    /// The segment's writer, or a fence, addressed this server as a member.
    Member,
    /// A recoverer or a repair put a copy here; never counts as a member's answer (I5).
    Copy,
}

/// The final state of a segment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SealedMeta {
    /// Bytes of the segment.
    pub length: u64,
    /// CRC-32 of all of them.
    pub crc: u32,
    /// CRC-32 of each 64 KiB.
    pub blocks: Vec<u32>,
}

/// What a replica must not forget.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReplicaMeta {
    /// The segment.
    pub segment_id: u64,
    /// Its log; 0 while only a recoverer has spoken of it.
    pub log_id: u64,
    /// Member or copy.
    pub origin: Origin,
    /// When appends are answered.
    pub mode: Mode,
    /// The boot under which it was made.
    pub boot_id: String,
    /// Whether there is a log file.
    pub has_log: bool,
    /// The fence; 0 = none.
    pub fence: u64,
    /// Length returned with the fence.
    pub fence_length: u64,
    /// Why this replica may not vouch for its content any more (a failed sync).
    pub distrusted: Option<String>,
    /// Set once, at the end.
    pub sealed: Option<SealedMeta>,
}

/// Lengths that survive a restart of the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Watermark {
    /// This replica acknowledged every byte below it, or was about to.
    pub acknowledged: u64,
    /// The writer said that every byte below it is acknowledged by enough members.
    pub committed: u64,
}

/// Why a replica's files cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReplicaFileError {
    /// Checksum, magic number or structure is wrong.
    #[error("{0} is damaged")]
    Damaged(&'static str),
    /// A newer program wrote it.
    #[error("{what} has format {found}, this program knows format {VERSION}")]
    Newer {
        /// Which part.
        what: &'static str,
        /// Its format.
        found: u32,
    },
    /// It belongs to another segment.
    #[error("{what} says that it is segment {found}")]
    OtherSegment {
        /// Which part.
        what: &'static str,
        /// The segment that it names.
        found: u64,
    },
}

/// The first page of a log file.
pub fn encode_header(segment_id: u64) -> Bytes {
    let mut out = BytesMut::zeroed(DATA_OFFSET as usize);
    out[0..8].copy_from_slice(LOG_MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[16..24].copy_from_slice(&segment_id.to_le_bytes());
    out.freeze()
}

/// The watermark as it stands at [`WATERMARK_OFFSET`].
pub fn encode_watermark(watermark: Watermark) -> Bytes {
    let mut out = BytesMut::with_capacity(WATERMARK_BYTES);
    out.put_u64_le(watermark.acknowledged);
    out.put_u64_le(watermark.committed);
    let crc = crc32fast::hash(&out);
    out.put_u32_le(crc);
    out.put_u32_le(0);
    out.freeze()
}

/// Reads the first page of a log file. Zeros in the watermark's place mean that there was none.
pub fn parse_header(segment_id: u64, page: &[u8]) -> Result<Watermark, ReplicaFileError> {
    const WHAT: &str = "log file header";
    if page.len() < DATA_OFFSET as usize || &page[0..8] != LOG_MAGIC {
        return Err(ReplicaFileError::Damaged(WHAT));
    }
    check_version(WHAT, u32_at(page, 8))?;
    if u64_at(page, 16) != segment_id {
        return Err(ReplicaFileError::OtherSegment { what: WHAT, found: u64_at(page, 16) });
    }
    let watermark = &page[WATERMARK_OFFSET as usize..WATERMARK_OFFSET as usize + WATERMARK_BYTES];
    if watermark.iter().all(|byte| *byte == 0) {
        return Ok(Watermark::default());
    }
    if u32_at(watermark, 16) != crc32fast::hash(&watermark[..16]) {
        return Err(ReplicaFileError::Damaged("watermark"));
    }
    Ok(Watermark { acknowledged: u64_at(watermark, 0), committed: u64_at(watermark, 8) })
}

/// The content of a meta file.
pub fn encode_meta(meta: &ReplicaMeta) -> Bytes {
    let body = postcard::to_stdvec(meta).expect("plain data always serializes");
    let mut out = BytesMut::with_capacity(body.len() + 20);
    out.put_slice(META_MAGIC);
    out.put_u32_le(VERSION);
    out.put_u32_le(body.len() as u32);
    out.put_slice(&body);
    let crc = crc32fast::hash(&out);
    out.put_u32_le(crc);
    out.freeze()
}

/// Reads a meta file.
pub fn parse_meta(segment_id: u64, file: &[u8]) -> Result<ReplicaMeta, ReplicaFileError> {
    const WHAT: &str = "meta file";
    let damaged = ReplicaFileError::Damaged(WHAT);
    if file.len() < 20 || &file[0..8] != META_MAGIC {
        return Err(damaged);
    }
    check_version(WHAT, u32_at(file, 8))?;
    let (content, crc) = file.split_at(file.len() - 4);
    if u32_at(crc, 0) != crc32fast::hash(content) || u32_at(file, 12) as usize != content.len() - 16 {
        return Err(damaged);
    }
    let meta: ReplicaMeta = postcard::from_bytes(&content[16..]).map_err(|_| damaged)?;
    if meta.segment_id != segment_id {
        return Err(ReplicaFileError::OtherSegment { what: WHAT, found: meta.segment_id });
    }
    Ok(meta)
}

fn check_version(what: &'static str, found: u32) -> Result<(), ReplicaFileError> {
    if found > VERSION { Err(ReplicaFileError::Newer { what, found }) } else { Ok(()) }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn meta() -> ReplicaMeta {
        ReplicaMeta {
            segment_id: 4,
            log_id: 5,
            origin: Origin::Member,
            mode: Mode::Fsync,
            boot_id: "boot".into(),
            has_log: true,
            fence: 6,
            fence_length: 7,
            distrusted: Some("sync failed".into()),
            sealed: Some(SealedMeta { length: 8, crc: 9, blocks: vec![9] }),
        }
    }

    #[test]
    fn a_meta_file_is_read_back_and_every_flipped_bit_noticed() {
        let file = encode_meta(&meta());
        assert_eq!(parse_meta(4, &file), Ok(meta()));
        assert!(matches!(parse_meta(5, &file), Err(ReplicaFileError::OtherSegment { found: 4, .. })));
        for bit in 0..file.len() * 8 {
            let mut bad = file.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(parse_meta(4, &bad).is_err(), "bit {bit}");
        }
        for cut in 0..file.len() {
            assert!(parse_meta(4, &file[..cut]).is_err());
        }
    }

    #[test]
    fn a_header_names_its_segment_and_keeps_its_watermark() {
        let mut page = encode_header(4).to_vec();
        assert_eq!(parse_header(4, &page), Ok(Watermark::default()));
        let watermark = Watermark { acknowledged: 10, committed: 5 };
        let encoded = encode_watermark(watermark);
        page[WATERMARK_OFFSET as usize..WATERMARK_OFFSET as usize + encoded.len()].copy_from_slice(&encoded);
        assert_eq!(parse_header(4, &page), Ok(watermark));
        assert!(matches!(parse_header(5, &page), Err(ReplicaFileError::OtherSegment { found: 4, .. })));
        page[WATERMARK_OFFSET as usize] ^= 1;
        assert_eq!(parse_header(4, &page), Err(ReplicaFileError::Damaged("watermark")));
        page[8] = 99;
        assert!(matches!(parse_header(4, &page), Err(ReplicaFileError::Newer { found: 99, .. })));
        assert!(parse_header(4, &page[..100]).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(parse_meta(1, &bytes).is_err());
            prop_assert!(parse_header(1, &bytes).is_err());
        }
    }
}
