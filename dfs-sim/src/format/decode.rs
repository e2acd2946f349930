//! Every decoder of a chunk server's files as a function on untrusted bytes: what fuzz targets and the test of bad input
//! call. None of them may panic, whatever the bytes; what they return is of no interest.
//!
//! What lies behind a checksum is tried as it is, and with the checksum made right: a writer that errs makes such files,
//! and nearly no changed input would get there otherwise.

use bytes::Bytes;

use super::chunk_file::{FOOTER_BYTES, data_bytes};
use super::replica_file::{DATA_OFFSET, ReplicaMeta, WATERMARK_OFFSET};
use super::{FRAME_HEADER_BYTES, graves_file, inspect};

/// A chunk's file.
pub fn chunk(data: &[u8]) {
    inspect::chunk(&Bytes::copy_from_slice(data));
    inspect::chunk(&signed_chunk(data));
}

/// The bytes of a segment's replica.
pub fn segment(data: &[u8]) {
    segment_with(data, None);
}

/// The same beside a state.
pub fn segment_with(data: &[u8], state: Option<&ReplicaMeta>) {
    inspect::segment(&Bytes::copy_from_slice(data), state);
    inspect::segment(&signed_segment(data), state);
}

/// The state of a segment's replica.
pub fn segment_state(data: &[u8]) {
    inspect::state(&Bytes::copy_from_slice(data));
    inspect::state(&signed_state(data));
}

/// The deleted segments of a chunk server.
pub fn graves(data: &[u8]) {
    inspect::graves(data);
    inspect::graves(&signed_graves(data));
}

fn put(file: &mut [u8], at: usize, number: u32) {
    file[at..at + 4].copy_from_slice(&number.to_le_bytes());
}

/// The footer checks the checksums of the blocks, and says how long the data is.
pub(super) fn signed_chunk(data: &[u8]) -> Bytes {
    let mut file = data.to_vec();
    if let Some(bytes) = data_bytes(file.len() as u64) {
        let footer_at = file.len() - FOOTER_BYTES as usize;
        file[footer_at + 8..footer_at + 16].copy_from_slice(&bytes.to_le_bytes());
        let crc = crc32fast::hash(&file[bytes as usize..footer_at + 24]);
        put(&mut file, footer_at + 24, crc);
    }
    file.into()
}

/// The watermark has a checksum, and the header of each frame.
pub(super) fn signed_segment(data: &[u8]) -> Bytes {
    let mut file = data.to_vec();
    if file.len() >= DATA_OFFSET as usize {
        let at = WATERMARK_OFFSET as usize;
        let crc = crc32fast::hash(&file[at..at + 16]);
        put(&mut file, at + 16, crc);
    }
    let mut at = DATA_OFFSET as usize;
    while let Some(header) = file.get(at..at + FRAME_HEADER_BYTES) {
        let len = u32::from_le_bytes(header[..4].try_into().expect("four bytes"));
        let crc = crc32fast::hash(&header[..8]);
        put(&mut file, at + 8, crc);
        at += FRAME_HEADER_BYTES + len as usize;
    }
    file.into()
}

/// The length of the body is told before it, the checksum of all of it stands behind it.
pub(super) fn signed_state(data: &[u8]) -> Bytes {
    let mut file = data.to_vec();
    if let Some(content) = file.len().checked_sub(4).filter(|content| *content >= 16) {
        put(&mut file, 12, (content - 16) as u32);
        let crc = crc32fast::hash(&file[..content]);
        put(&mut file, content, crc);
    }
    file.into()
}

/// Each record has a checksum.
pub(super) fn signed_graves(data: &[u8]) -> Vec<u8> {
    let mut file = data.to_vec();
    file.chunks_exact_mut(graves_file::RECORD_BYTES).for_each(graves_file::sign);
    file
}
