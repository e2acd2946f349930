//! Every decoder of the table format as a function on untrusted bytes: what fuzz targets and the test of
//! bad input call. None of them may panic, whatever the bytes; what they return is of no interest.

use bytes::Bytes;
use uruk_proto::FamilyId;
use uruk_proto::key::KeyRef;
use uruk_proto::schema::FilterOn;

use super::block::{Block, BlockCursor};
use super::bloom::Bloom;
use super::format::{Footer, Handle, unpack_facts, unpack_partition, unpack_payload};
use super::inspect;
use super::properties::Properties;
use super::row_filter::RowProbe;
use super::tail::Tail;

/// A decoder that throws its result away.
pub type Decoder = fn(&[u8]);

/// The decoders by name.
pub const DECODERS: [(&str, Decoder); 9] = [
    ("table_file", table_file),
    ("footer", footer),
    ("stored_block", stored_block),
    ("block", block),
    ("tail", tail),
    ("bloom", bloom),
    ("properties", properties),
    ("index_value", index_value),
    ("internal_key", internal_key),
];

/// A whole file.
pub fn table_file(data: &[u8]) {
    inspect::inspect(&Bytes::copy_from_slice(data));
}

/// The end of a file.
pub fn footer(data: &[u8]) {
    let _ = Footer::parse(data, data.len() as u64);
}

/// What surrounds a block: also with a right checksum, so that what lies behind it is reached.
pub fn stored_block(data: &[u8]) {
    let _ = unpack_payload(data, 0);
    let mut signed = data.to_vec();
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(data);
    hasher.update(&0u64.to_le_bytes());
    signed.extend_from_slice(&hasher.finalize().to_le_bytes());
    if let Ok(payload) = unpack_payload(&signed, 0) {
        block(&payload);
    }
}

/// The entries of a block, by every way to reach them.
pub fn block(data: &[u8]) {
    let Ok(block) = Block::parse(Bytes::copy_from_slice(data)) else { return };
    let mut cursor = BlockCursor::new(block);
    let mut at = cursor.first();
    while let Ok(true) = at {
        at = cursor.advance();
    }
    let target = &data[..data.len().min(8)];
    let _ = (cursor.seek(target), cursor.seek_before(target), cursor.seek_at_or_before(target), cursor.last());
}

/// The root of an index as an open file keeps it, and what look-ups ask of it.
pub fn tail(data: &[u8]) {
    let Ok(root) = Block::parse(Bytes::copy_from_slice(data)) else { return };
    let properties = Properties { filter: Some(FilterOn::RowColumn), ..Properties::empty() };
    let Ok(tail) = Tail::new(root.clone(), properties, None, 1 << 40) else { return };
    let mut cursor = BlockCursor::new(root);
    let mut at = cursor.first();
    while let Ok(true) = at {
        let row = cursor.key();
        let _ = tail.partition_of(row);
        let probe = RowProbe::columns(row.to_vec(), [(FamilyId(1), row)].into_iter());
        tail.ask(&probe, |filter, hash| (filter.handle.len % 2 == 0).then_some(hash % 2 == 0));
        at = cursor.advance();
    }
}

/// A filter and a lookup in it.
pub fn bloom(data: &[u8]) {
    if let Ok(filter) = Bloom::parse(Bytes::copy_from_slice(data)) {
        filter.may_contain(data.len() as u64);
    }
}

/// What a file says about itself.
pub fn properties(data: &[u8]) {
    let _ = Properties::parse(Bytes::copy_from_slice(data));
}

/// What an index says of a block.
pub fn index_value(data: &[u8]) {
    let _ = (Handle::unpack(data, 1 << 40), unpack_facts(data), unpack_partition(data, 1 << 40));
}

/// A key and its parts.
pub fn internal_key(data: &[u8]) {
    if let Ok(parts) = KeyRef::parse(data) {
        let _ = (parts.row(), parts.qualifier());
    }
}
