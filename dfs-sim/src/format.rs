//! The bytes of a commit-log segment, as its writer makes them and chunk servers check them, and
//! the limits of chunks and segments. Described in `docs/formats.md`.
//!
//! A segment is a sequence of frames. A frame is a header of 12 bytes and a payload:
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | length of the payload, u32 LE, 1 to 64 MiB |
//! | 4..8 | CRC-32 of log id, segment id, offset of the frame in the segment (u64 LE each), payload |
//! | 8..12 | CRC-32 of bytes 0..8 of the header |
//!
//! Invariants: (1) a frame is valid at one offset of one segment only, so bytes of a reused or
//! misplaced file never pass; (2) a header of zeros is invalid, so a file that was extended but not
//! written ends there; (3) the length is trusted only after the header's own checksum, so a flipped
//! length is damage and never looks like a torn tail.

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub mod block_sums;
pub mod chunk_file;
pub mod decode;
pub mod graves_file;
pub mod inspect;
pub mod replica_file;

/// Bytes of a frame before its payload.
pub const FRAME_HEADER_BYTES: usize = 12;
/// Longest payload of one frame, in bytes.
pub const FRAME_PAYLOAD_BYTES_MAX: usize = 64 << 20;
/// A segment takes no further frame once it is this long, in bytes. The frame that crosses the mark
/// is the last one, so a segment is shorter than `SEGMENT_BYTES_MAX` plus one frame.
pub const SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// Longest chunk of a file, in bytes.
pub const CHUNK_BYTES_MAX: u64 = 64 << 20;
/// Chunks and sealed segments have one CRC-32 for each piece of this many bytes.
pub const CHECKSUM_BLOCK_BYTES: u64 = 64 << 10;

/// Which segment of which log; part of every frame's checksum.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SegmentKey {
    /// The log.
    pub log_id: u64,
    /// The segment, unique in the whole store.
    pub segment_id: u64,
}

/// Why the bytes at an offset are not a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// The bytes end inside the frame. At the end of a file that was being written: a torn tail.
    #[error("frame at offset {offset} is cut off")]
    Torn {
        /// Where the frame starts in the segment.
        offset: u64,
    },
    /// Header or payload fails its checksum.
    #[error("frame at offset {offset} fails its checksum")]
    BadChecksum {
        /// Where the frame starts in the segment.
        offset: u64,
    },
}

impl FrameError {
    /// Where the bad frame starts: everything before it is valid.
    pub fn offset(self) -> u64 {
        match self {
            FrameError::Torn { offset } | FrameError::BadChecksum { offset } => offset,
        }
    }
}

/// One valid frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Offset in the segment just after the frame.
    pub end: u64,
    /// What the writer put in.
    pub payload: Bytes,
}

/// Bytes of a frame with a payload of this length.
pub const fn frame_bytes(payload_bytes: usize) -> u64 {
    (FRAME_HEADER_BYTES + payload_bytes) as u64
}

/// The header of the frame at `offset` of a segment. The payload has 1 byte to 64 MiB.
pub fn frame_header(key: SegmentKey, offset: u64, payload: &[u8]) -> [u8; FRAME_HEADER_BYTES] {
    assert!(!payload.is_empty() && payload.len() <= FRAME_PAYLOAD_BYTES_MAX, "payload of {} bytes", payload.len());
    let mut header = [0; FRAME_HEADER_BYTES];
    header[0..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    header[4..8].copy_from_slice(&payload_crc(key, offset, payload).to_le_bytes());
    let header_crc = crc32fast::hash(&header[0..8]);
    header[8..12].copy_from_slice(&header_crc.to_le_bytes());
    header
}

/// Appends the frame at `offset` of a segment to `out`.
pub fn encode_frame(key: SegmentKey, offset: u64, payload: &[u8], out: &mut BytesMut) {
    out.reserve(FRAME_HEADER_BYTES + payload.len());
    out.put_slice(&frame_header(key, offset, payload));
    out.put_slice(payload);
}

/// The frames in a piece of a segment, in order. Ends after the first error.
#[derive(Clone, Debug)]
pub struct Frames {
    key: SegmentKey,
    offset: u64,
    rest: Bytes,
}

impl Frames {
    /// `bytes` start at `offset` of the segment, which must be where a frame starts.
    pub fn new(key: SegmentKey, offset: u64, bytes: Bytes) -> Frames {
        Frames { key, offset, rest: bytes }
    }

    /// Offset just after the last valid frame.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

impl Iterator for Frames {
    type Item = Result<Frame, FrameError>;

    fn next(&mut self) -> Option<Result<Frame, FrameError>> {
        if self.rest.is_empty() {
            return None;
        }
        match check_frame(self.key, self.offset, &self.rest) {
            Ok(bytes) => {
                let mut frame = self.rest.split_to(bytes);
                frame.advance(FRAME_HEADER_BYTES);
                self.offset += bytes as u64;
                Some(Ok(Frame { end: self.offset, payload: frame }))
            }
            Err(error) => {
                self.rest.clear();
                Some(Err(error))
            }
        }
    }
}

/// Checks that `bytes`, which start at `offset` of the segment, are whole valid frames.
pub fn check_frames(key: SegmentKey, mut offset: u64, mut bytes: &[u8]) -> Result<(), FrameError> {
    while !bytes.is_empty() {
        let frame = check_frame(key, offset, bytes)?;
        offset += frame as u64;
        bytes = &bytes[frame..];
    }
    Ok(())
}

/// How many bytes from the start of a segment are whole valid frames.
pub fn validated_length(key: SegmentKey, segment: &[u8]) -> u64 {
    match check_frames(key, 0, segment) {
        Ok(()) => segment.len() as u64,
        Err(error) => error.offset(),
    }
}

/// Length in bytes of the valid frame that `bytes` start with.
fn check_frame(key: SegmentKey, offset: u64, bytes: &[u8]) -> Result<usize, FrameError> {
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if bytes.len() < FRAME_HEADER_BYTES {
        return Err(FrameError::Torn { offset });
    }
    let length = word(0) as usize;
    if word(8) != crc32fast::hash(&bytes[0..8]) || length == 0 || length > FRAME_PAYLOAD_BYTES_MAX {
        return Err(FrameError::BadChecksum { offset });
    }
    let Some(payload) = bytes.get(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + length) else {
        return Err(FrameError::Torn { offset });
    };
    if word(4) != payload_crc(key, offset, payload) {
        return Err(FrameError::BadChecksum { offset });
    }
    Ok(FRAME_HEADER_BYTES + length)
}

fn payload_crc(key: SegmentKey, offset: u64, payload: &[u8]) -> u32 {
    let mut place = [0; 24];
    place[0..8].copy_from_slice(&key.log_id.to_le_bytes());
    place[8..16].copy_from_slice(&key.segment_id.to_le_bytes());
    place[16..24].copy_from_slice(&offset.to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&place);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: SegmentKey = SegmentKey { log_id: 7, segment_id: 9 };

    fn segment(payloads: &[Vec<u8>]) -> Bytes {
        let mut out = BytesMut::new();
        for payload in payloads {
            let offset = out.len() as u64;
            encode_frame(KEY, offset, payload, &mut out);
        }
        out.freeze()
    }

    fn payloads() -> impl Strategy<Value = Vec<Vec<u8>>> {
        prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 1..8)
    }

    proptest! {
        #[test]
        fn frames_are_read_back(payloads in payloads()) {
            let bytes = segment(&payloads);
            let frames: Vec<Frame> = Frames::new(KEY, 0, bytes.clone()).map(|f| f.expect("valid")).collect();
            prop_assert_eq!(frames.iter().map(|f| f.payload.to_vec()).collect::<Vec<_>>(), payloads);
            prop_assert_eq!(frames.last().expect("some").end, bytes.len() as u64);
            prop_assert_eq!(validated_length(KEY, &bytes), bytes.len() as u64);
        }

        #[test]
        fn a_cut_is_torn_at_the_frame_that_it_hits(payloads in payloads(), cut in any::<prop::sample::Index>()) {
            let bytes = segment(&payloads);
            let cut = cut.index(bytes.len());
            let valid = validated_length(KEY, &bytes[..cut]);
            let whole = Frames::new(KEY, 0, bytes.clone()).map(|f| f.expect("valid").end)
                .filter(|end| *end <= cut as u64).last().unwrap_or(0);
            prop_assert_eq!(valid, whole);
            let last = Frames::new(KEY, 0, bytes.slice(..cut)).last();
            if valid < cut as u64 {
                prop_assert_eq!(last, Some(Err(FrameError::Torn { offset: valid })));
            }
        }

        #[test]
        fn a_flipped_bit_is_damage_and_never_a_torn_tail(payloads in payloads(), bit in any::<prop::sample::Index>()) {
            let mut bytes = segment(&payloads).to_vec();
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let error = check_frames(KEY, 0, &bytes).expect_err("damaged");
            let named = matches!(error, FrameError::BadChecksum { offset } if offset <= bit as u64 / 8);
            prop_assert!(named, "{}", error);
        }

        #[test]
        fn arbitrary_bytes_never_pass_or_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(validated_length(KEY, &bytes), 0);
        }
    }

    #[test]
    fn a_frame_is_valid_in_its_own_place_only() {
        let mut out = BytesMut::new();
        encode_frame(KEY, 100, b"row", &mut out);
        let bytes = out.freeze();
        assert_eq!(check_frames(KEY, 100, &bytes), Ok(()));
        let bad = FrameError::BadChecksum { offset: 101 };
        assert_eq!(check_frames(KEY, 101, &bytes), Err(bad));
        assert!(check_frames(SegmentKey { log_id: 8, ..KEY }, 100, &bytes).is_err());
        assert!(check_frames(SegmentKey { segment_id: 8, ..KEY }, 100, &bytes).is_err());
    }

    #[test]
    fn zeros_are_no_frame() {
        assert_eq!(check_frames(KEY, 0, &[0; 4096]), Err(FrameError::BadChecksum { offset: 0 }));
    }

    #[test]
    fn iteration_ends_after_the_first_error() {
        let mut bytes = segment(&[vec![1; 10], vec![2; 10], vec![3; 10]]).to_vec();
        bytes[30] ^= 1;
        let frames: Vec<_> = Frames::new(KEY, 0, Bytes::from(bytes)).collect();
        assert_eq!(frames.len(), 2);
        assert_eq!(frames[1], Err(FrameError::BadChecksum { offset: 22 }));
    }
}
