//! Every decoder of a member's files as a function on untrusted bytes: what fuzz targets and the test of bad input call.
//! None of them may panic, whatever the bytes; what they return is of no interest.
//!
//! What lies behind a checksum is tried as it is, and with the checksum made right: a writer that errs makes such files,
//! and nearly no changed input would get there otherwise.

use bytes::Bytes;

use crate::log::format::{FRAME_HEADER_BYTES, FRAME_MARKER, SEGMENT_HEADER_BYTES, frame_crc};
use crate::{hard_state, inspect, snapshot};

/// A segment of the log.
pub fn raft_log(data: &[u8]) {
    inspect::log_segment(&Bytes::copy_from_slice(data));
    inspect::log_segment(&signed_segment(data));
}

/// A snapshot.
pub fn raft_snapshot(data: &[u8]) {
    inspect::snapshot_file(&Bytes::copy_from_slice(data));
    signed_snapshot(data).iter().for_each(|signed| drop(inspect::snapshot_file(signed)));
}

/// Vote and purge point.
pub fn raft_state(data: &[u8]) {
    inspect::state_file(&Bytes::copy_from_slice(data));
    inspect::state_file(&signed_state(data));
}

fn put(file: &mut [u8], at: usize, number: u32) {
    file[at..at + 4].copy_from_slice(&number.to_le_bytes());
}

fn u32_at(file: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(file[at..at + 4].try_into().expect("four bytes"))
}

/// Each frame is checked at its place; one that the file ends in becomes the last.
pub(crate) fn signed_segment(data: &[u8]) -> Bytes {
    let mut file = data.to_vec();
    if file.len() >= SEGMENT_HEADER_BYTES {
        let crc = crc32fast::hash(&file[..SEGMENT_HEADER_BYTES - 4]);
        put(&mut file, SEGMENT_HEADER_BYTES - 4, crc);
    }
    let mut at = SEGMENT_HEADER_BYTES;
    while file.get(at..).is_some_and(|rest| rest.len() >= FRAME_HEADER_BYTES && rest.starts_with(FRAME_MARKER)) {
        let start = at + FRAME_HEADER_BYTES;
        let len = u32_at(&file, at + 4).min((file.len() - start) as u32);
        let crc = frame_crc(at as u64, len, &file[start..start + len as usize]);
        put(&mut file, at + 4, len);
        put(&mut file, at + 8, crc);
        at = start + len as usize;
    }
    file.into()
}

/// The header says what the checksum of the content is, and has its own.
pub(crate) fn signed_snapshot(data: &[u8]) -> Option<Bytes> {
    const FIXED: usize = snapshot::FIXED_BYTES;
    let fixed = data.get(..FIXED)?;
    let behind = FIXED + u32_at(fixed, 12) as usize;
    let (header, content) = (data.get(FIXED..behind)?, data.get(behind + 4..)?);
    let header = match postcard::from_bytes::<snapshot::Header>(header) {
        Ok(mut header) => {
            (header.content_bytes, header.content_crc) = (content.len() as u64, crc32fast::hash(content));
            postcard::to_stdvec(&header).expect("memory has room and the types have lengths")
        }
        Err(_) => header.to_vec(),
    };
    let mut out = [fixed, &header].concat();
    put(&mut out, 12, header.len() as u32);
    let crc = crc32fast::hash(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(content);
    Some(out.into())
}

/// The header has the checksum of all that follows it.
pub(crate) fn signed_state(data: &[u8]) -> Bytes {
    let mut file = data.to_vec();
    if let Some(body) = file.get(hard_state::HEADER_BYTES..) {
        let crc = crc32fast::hash(body);
        put(&mut file, hard_state::HEADER_BYTES - 4, crc);
    }
    file.into()
}
