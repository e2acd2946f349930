//! Every decoder of the files and frames besides table files, as a function on untrusted bytes: what fuzz targets and
//! the test of bad input call. None of them may panic, whatever the bytes; what they return is of no interest.
//!
//! What lies behind a checksum is tried as it is, and with the checksum made right: a writer that errs makes such files,
//! and nearly no changed input would get there otherwise.

use bytes::{BufMut, Bytes, BytesMut};
use uruk_proto::codec::put_varint;

use super::inspect;
use super::record::{Record, parse_frame};
use super::recovery_file::{self, FOOTER_BYTES};

/// What a replay reads of a frame of the commit log.
pub fn log_frame(data: &[u8]) {
    for raw in parse_frame(Bytes::copy_from_slice(data)).unwrap_or_default() {
        let _ = Record::parse(raw.body);
    }
}

/// What a tablet remembers besides cells.
pub fn memory_file(data: &[u8]) {
    inspect::memory(&Bytes::copy_from_slice(data));
    signed_memory(data).iter().for_each(|signed| drop(inspect::memory(signed)));
}

/// A sorted piece of a dead server's log.
pub fn recovery_file(data: &[u8]) {
    inspect::recovery(&Bytes::copy_from_slice(data));
    signed_recovery(data).iter().for_each(|signed| drop(inspect::recovery(signed)));
}

/// The last four bytes are the checksum of the others.
pub(super) fn signed_memory(data: &[u8]) -> Option<Bytes> {
    let body = &data[..data.len().checked_sub(4)?];
    let mut out = BytesMut::from(body);
    out.put_u32_le(crc32fast::hash(body));
    Some(out.freeze())
}

/// The index is checked by the footer, and each slice by the index.
pub(super) fn signed_recovery(data: &[u8]) -> Option<Bytes> {
    let file = Bytes::copy_from_slice(data);
    let (index_at, _) = recovery_file::parse_footer(&file).ok()?;
    let index_at = usize::try_from(index_at).ok()?;
    let index = file.get(index_at..file.len() - FOOTER_BYTES)?;
    let signed = with_index(&file, index_at, index);
    let Ok(slices) = recovery_file::parse_index(&signed.slice(index_at..)) else { return Some(signed) };
    let mut index = BytesMut::new();
    for (tablet, slice) in slices {
        [tablet.0, slice.offset, slice.len, slice.records].into_iter().for_each(|field| put_varint(&mut index, field));
        index.put_u32_le(crc32fast::hash(&file[slice.offset as usize..(slice.offset + slice.len) as usize]));
    }
    Some(with_index(&file, index_at, &index))
}

/// The file with this index; its footer ends as it did.
fn with_index(file: &Bytes, index_at: usize, index: &[u8]) -> Bytes {
    let mut out = BytesMut::from(&file[..index_at]);
    out.put_slice(index);
    out.put_u64_le(index_at as u64);
    out.put_u32_le(index.len() as u32);
    out.put_u32_le(crc32fast::hash(index));
    out.put_slice(&file[file.len() - 8..]);
    out.freeze()
}
