//! Sorted recovery files: one piece of a dead server's log, by tablet and SeqNo.
//!
//! ```text
//! file   := slice* index footer
//! slice  := (length: u32, record)*                 one tablet's records by SeqNo; see `record`
//! index  := (tablet, offset, length, records: varints, crc of the slice: u32)*        by tablet
//! footer := index offset: u64, index length: u32, crc of the index: u32, version: u32, magic: u32
//! ```
//! Numbers are little endian. A file is written once, under a name that is unique for ever.
//! Not compressed: on a fast network lz4 takes longer than the bytes it saves.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use uruk_proto::TabletId;
use uruk_proto::codec::{DecodeError, Reader, put_varint};

use super::record::{RawRecord, parse_raw};

/// The last four bytes of such a file.
pub const FILE_MAGIC: [u8; 4] = *b"URCV";
const MAGIC: u32 = u32::from_le_bytes(FILE_MAGIC);
const VERSION: u32 = 1;
/// Bytes of the footer.
pub const FOOTER_BYTES: usize = 24;

/// Where a tablet's slice lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SliceRef {
    /// Bytes before it in the file.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
    /// Its records.
    pub records: u64,
    crc: u32,
}

/// Sorts records and writes the file; None when there are none.
pub fn build(mut records: Vec<RawRecord>) -> Option<Bytes> {
    if records.is_empty() {
        return None;
    }
    records.sort_by_key(|record| (record.tablet, record.first));
    let bytes: usize = records.iter().map(|record| record.body.len() + 4).sum();
    let mut out = BytesMut::with_capacity(bytes + FOOTER_BYTES + records.len().min(4096) * 32);
    let mut index = BytesMut::new();
    for slice in records.chunk_by(|a, b| a.tablet == b.tablet) {
        let offset = out.len();
        for record in slice {
            out.put_u32_le(record.body.len() as u32);
            out.put_slice(&record.body);
        }
        put_varint(&mut index, slice[0].tablet.0);
        put_varint(&mut index, offset as u64);
        put_varint(&mut index, (out.len() - offset) as u64);
        put_varint(&mut index, slice.len() as u64);
        index.put_u32_le(crc32fast::hash(&out[offset..]));
    }
    let index_at = out.len() as u64;
    out.put_slice(&index);
    out.put_u64_le(index_at);
    out.put_u32_le(index.len() as u32);
    out.put_u32_le(crc32fast::hash(&index));
    out.put_u32_le(VERSION);
    out.put_u32_le(MAGIC);
    Some(out.freeze())
}

/// Where the index lies: offset and length; `tail` ends with the file.
pub fn parse_footer(tail: &Bytes) -> Result<(u64, usize), DecodeError> {
    let at = tail.len().checked_sub(FOOTER_BYTES);
    let at = at.ok_or(DecodeError { what: "recovery file", offset: 0, why: "ends early" })?;
    let mut reader = Reader::new("recovery file footer", tail.slice(at..));
    let (offset, len, _crc) = (reader.u64()?, reader.u32()?, reader.u32()?);
    if reader.u32()? != VERSION || reader.u32()? != MAGIC {
        return Err(reader.error("unknown magic number or version"));
    }
    Ok((offset, len as usize))
}

/// The slices by tablet; `tail` holds the index and the footer, nothing else.
pub fn parse_index(tail: &Bytes) -> Result<BTreeMap<TabletId, SliceRef>, DecodeError> {
    let (index_at, len) = parse_footer(tail)?;
    if len + FOOTER_BYTES != tail.len() {
        return Err(DecodeError { what: "recovery file index", offset: 0, why: "wrong length" });
    }
    let index = tail.slice(..len);
    if crc32fast::hash(&index).to_le_bytes() != tail[len + 12..len + 16] {
        return Err(DecodeError { what: "recovery file index", offset: 0, why: "wrong checksum" });
    }
    let mut reader = Reader::new("recovery file index", index);
    let mut slices = BTreeMap::new();
    while !reader.is_at_end() {
        let tablet = TabletId(reader.varint()?);
        let (offset, len, records) = (reader.varint()?, reader.varint()?, reader.varint()?);
        if offset.checked_add(len).is_none_or(|end| end > index_at) {
            return Err(reader.error("slice beyond the index"));
        }
        if slices.insert(tablet, SliceRef { offset, len, records, crc: reader.u32()? }).is_some() {
            return Err(reader.error("tablet twice"));
        }
    }
    Ok(slices)
}

/// The records of a slice, checked against what the index says.
pub fn parse_slice(tablet: TabletId, slice: &SliceRef, bytes: Bytes) -> Result<Vec<RawRecord>, DecodeError> {
    let mut reader = Reader::new("recovery file slice", bytes.clone());
    if bytes.len() as u64 != slice.len || crc32fast::hash(&bytes) != slice.crc {
        return Err(reader.error("wrong checksum"));
    }
    let mut records = Vec::with_capacity(slice.records.min(1 << 20) as usize);
    while !reader.is_at_end() {
        let record = parse_raw(&mut reader)?;
        if record.tablet != tablet {
            return Err(reader.error("record of another tablet"));
        }
        records.push(record);
    }
    if records.len() as u64 != slice.records {
        return Err(reader.error("wrong number of records"));
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uruk_proto::SeqNo;

    use super::super::record::{Piece, Record, parse_frame, start_frame};
    use super::*;

    fn raw(tablet: u64, first: u64, payload: usize) -> RawRecord {
        let record = Record {
            tablet: TabletId(tablet),
            first: SeqNo(first),
            last: SeqNo(first),
            timestamp: 1,
            call: None,
            result: Some(vec![7; payload].into()),
            piece: Piece::Whole,
            rows: vec![],
        };
        let mut frame = BytesMut::new();
        start_frame(&mut frame);
        record.put(&mut frame);
        parse_frame(frame.freeze()).unwrap().remove(0)
    }

    fn read_all(file: &Bytes) -> Result<Vec<RawRecord>, DecodeError> {
        let (index_at, _) = parse_footer(file)?;
        if index_at > file.len() as u64 {
            return Err(DecodeError { what: "test", offset: 0, why: "index outside" });
        }
        let mut records = Vec::new();
        for (tablet, slice) in parse_index(&file.slice(index_at as usize..))? {
            let bytes = file.slice(slice.offset as usize..(slice.offset + slice.len) as usize);
            records.extend(parse_slice(tablet, &slice, bytes)?);
        }
        Ok(records)
    }

    proptest! {
        #[test]
        fn records_come_back_sorted(keys in prop::collection::btree_map((0u64..5, 0u64..50), 0usize..40, 1..30)) {
            let mut records: Vec<RawRecord> = keys.iter().map(|((t, s), len)| raw(*t, *s, *len)).collect();
            let sorted = records.clone();
            records.reverse();
            prop_assert_eq!(read_all(&build(records).unwrap()).unwrap(), sorted);
        }

        #[test]
        fn any_flipped_bit_is_found(at in 0usize..10_000, bit in 0u8..8) {
            let file = build((0..8).map(|i| raw(i % 3, i, 20)).collect()).unwrap();
            let mut bad = file.to_vec();
            let at = at % bad.len();
            bad[at] ^= 1 << bit;
            prop_assert!(read_all(&bad.into()).is_err(), "byte {} of {}", at, file.len());
        }

        #[test]
        fn any_bytes_parse_or_fail_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let bytes = Bytes::from(bytes);
            let _ = parse_index(&bytes);
            let _ = read_all(&bytes);
        }
    }

    #[test]
    fn no_records_make_no_file() {
        assert_eq!(build(vec![]), None);
    }
}
