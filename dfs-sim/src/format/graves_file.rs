//! The records of the file `GRAVES`: which segments were deleted, for ever.
//!
//! A record has 16 bytes: an id u64 LE, a CRC-32, the number of ids that follow it u32 LE. One with the id
//! `u64::MAX` is the head, at the start of the file: so many records behind it were there when a start wrote it.

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes of a record.
pub const RECORD_BYTES: usize = 16;
/// No segment has this id: the head's.
const HEAD: u64 = u64::MAX;

/// What a record says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Record {
    /// So many runs follow that no crash can tear.
    Head(usize),
    /// First and last id.
    Run(u64, u64),
}

/// A record for each run of ids: the first and the last.
pub fn encode(runs: impl Iterator<Item = (u64, u64)>) -> Bytes {
    let mut records = BytesMut::new();
    for (mut first, last) in runs {
        loop {
            let more = (last - first).min(u64::from(u32::MAX)) as u32;
            put_record(&mut records, first, more);
            match first.checked_add(u64::from(more) + 1) {
                Some(next) if next <= last => first = next,
                Some(_) | None => break,
            }
        }
    }
    records.freeze()
}

/// Appends the head of a file in which `runs` records follow.
pub fn put_head(file: &mut BytesMut, runs: u32) {
    put_record(file, HEAD, runs);
}

fn put_record(records: &mut BytesMut, first: u64, more: u32) {
    records.put_u64_le(first);
    records.put_u32_le(checksum(first, more));
    records.put_u32_le(more);
}

/// Makes the checksum of a record right, whatever it says.
pub(super) fn sign(record: &mut [u8]) {
    let first = u64::from_le_bytes(record[0..8].try_into().expect("a whole record"));
    let more = u32::from_le_bytes(record[12..16].try_into().expect("a whole record"));
    record[8..12].copy_from_slice(&checksum(first, more).to_le_bytes());
}

/// None when it is torn or damaged.
pub fn parse(record: &[u8]) -> Option<Record> {
    let first = u64::from_le_bytes(record.get(0..8)?.try_into().ok()?);
    let crc = u32::from_le_bytes(record.get(8..12)?.try_into().ok()?);
    let more = u32::from_le_bytes(record.get(12..16)?.try_into().ok()?);
    if crc != checksum(first, more) {
        return None;
    }
    if first == HEAD {
        return Some(Record::Head(more as usize));
    }
    Some(Record::Run(first, first.checked_add(u64::from(more))?))
}

/// Of the id alone where nothing follows it.
fn checksum(first: u64, more: u32) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&first.to_le_bytes());
    if more > 0 {
        hasher.update(&more.to_le_bytes());
    }
    hasher.finalize()
}
