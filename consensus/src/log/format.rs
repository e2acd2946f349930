//! How log segments look on disk. Numbers are little-endian.
//!
//! | bytes | segment header |
//! |---|---|
//! | 8 | magic `URUKRLOG` |
//! | 4 | version, 1 |
//! | 8 | sequence number of the segment, as in its name |
//! | 4 | CRC-32 of the above |
//!
//! Then frames, each of which was written by one write and synced before the next one was begun:
//!
//! | bytes | frame |
//! |---|---|
//! | 4 | marker `UFRM` |
//! | 4 | length of the body |
//! | 4 | CRC-32 of the frame's offset in the file (8 bytes), the length (4 bytes) and the body |
//! | n | body: 1 byte kind, then by kind |
//!
//! | kind | rest of the body |
//! |---|---|
//! | 1 entries | for each: 4 bytes length of what follows, 8 term, 8 index, 1 payload kind, payload |
//! | 2 cut | 8 bytes index: entries at it and behind it are void |
//!
//! | payload kind | payload |
//! |---|---|
//! | 0 blank | nothing |
//! | 1 command | the encoded command |
//! | 2 membership | postcard of (list of sets of voters, map of node to address) |
//!
//! Invariants, by which a torn tail is told from damage:
//! 1. At most the last frame of the last segment is unsynced. So a bad frame with a good one
//!    somewhere behind it, or in an older segment, is damage; a bad frame at the end was torn.
//! 2. A frame is good only at its own offset: no command can contain one.
//! 3. Indexes follow one another without a hole, apart from cuts, which only step back.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::{BasicNode, EntryPayload};

use crate::types::{Command, Entry, Membership, Payload, log_id};

const SEGMENT_MAGIC: &[u8; 8] = b"URUKRLOG";
const SEGMENT_VERSION: u32 = 1;
/// Bytes of a segment before its first frame.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 24;
/// A frame begins with it.
pub(crate) const FRAME_MARKER: &[u8; 4] = b"UFRM";
/// Marker, length, checksum.
pub(crate) const FRAME_HEADER_BYTES: usize = 12;

const KIND_ENTRIES: u8 = 1;
const KIND_CUT: u8 = 2;

const PAYLOAD_BLANK: u8 = 0;
const PAYLOAD_COMMAND: u8 = 1;
const PAYLOAD_MEMBERSHIP: u8 = 2;

/// Bytes of an entry besides its payload.
pub(crate) const ENTRY_OVERHEAD_BYTES: usize = 21;

/// What one frame says.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Frame {
    /// More entries.
    Entries(Vec<Entry>),
    /// Entries at this index and behind it are void.
    Cut(u64),
}

/// Where a segment stops making sense, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Bad {
    pub(crate) offset: u64,
    pub(crate) problem: String,
    /// A write that a crash interrupted looks like this: if the segment is the last one, what is
    /// bad was never acknowledged.
    pub(crate) torn: bool,
}

/// A segment's good frames, and the bad place behind them, if the segment does not end cleanly.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Scan {
    /// Each frame with its offset.
    pub(crate) frames: Vec<(u64, Frame)>,
    /// Length of header and good frames; 0 if the header itself is bad.
    pub(crate) good_bytes: u64,
    pub(crate) bad: Option<Bad>,
}

pub(crate) fn segment_header(sequence: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(SEGMENT_HEADER_BYTES);
    out.put_slice(SEGMENT_MAGIC);
    out.put_u32_le(SEGMENT_VERSION);
    out.put_u64_le(sequence);
    out.put_u32_le(crc32fast::hash(&out));
    out.freeze()
}

/// What is wrong with some bytes.
enum Flaw {
    /// They may be half written.
    Incomplete(String),
    /// Their checksum is right, but they make no sense.
    Nonsense(String),
}

fn check_segment_header(bytes: &[u8], sequence: u64) -> Result<(), Flaw> {
    let bad = |problem: String| Err(Flaw::Nonsense(problem));
    let Some(header) = bytes.get(..SEGMENT_HEADER_BYTES) else {
        return Err(Flaw::Incomplete("the file ends within the segment header".into()));
    };
    let (content, mut crc) = header.split_at(SEGMENT_HEADER_BYTES - 4);
    if crc.get_u32_le() != crc32fast::hash(content) {
        return Err(Flaw::Incomplete("checksum of the segment header is wrong".into()));
    }
    if &content[..8] != SEGMENT_MAGIC {
        return bad("not a segment of a raft log".into());
    }
    let mut fields = &content[8..];
    let (version, found) = (fields.get_u32_le(), fields.get_u64_le());
    if version != SEGMENT_VERSION {
        return bad(format!("segment version {version} is not known to this program"));
    }
    if found != sequence {
        return bad(format!("the header says segment {found}, the name {sequence}"));
    }
    Ok(())
}

/// Collects the body of one frame of entries.
#[derive(Debug)]
pub(crate) struct EntriesBody(BytesMut);

impl EntriesBody {
    pub(crate) fn new() -> EntriesBody {
        let mut body = BytesMut::with_capacity(512);
        body.put_u8(KIND_ENTRIES);
        EntriesBody(body)
    }

    pub(crate) fn push(&mut self, entry: &Entry) {
        let out = &mut self.0;
        let start = out.len();
        out.put_u32_le(0);
        out.put_u64_le(entry.log_id.leader_id.term);
        out.put_u64_le(entry.log_id.index);
        match &entry.payload {
            EntryPayload::Blank => out.put_u8(PAYLOAD_BLANK),
            EntryPayload::Normal(Command(command)) => {
                out.put_u8(PAYLOAD_COMMAND);
                out.put_slice(command);
            }
            EntryPayload::Membership(membership) => {
                out.put_u8(PAYLOAD_MEMBERSHIP);
                out.put_slice(&encode_membership(membership));
            }
        }
        let len = u32::try_from(out.len() - start - 4).expect("the size of commands is limited");
        out[start..start + 4].copy_from_slice(&len.to_le_bytes());
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The finished frame, for `offset` in the file.
    pub(crate) fn into_frame(self, offset: u64) -> Bytes {
        frame(offset, &self.0)
    }
}

/// A frame that voids the entries at `from` and behind it, for `offset` in the file.
pub(crate) fn cut_frame(offset: u64, from: u64) -> Bytes {
    let mut body = BytesMut::with_capacity(9);
    body.put_u8(KIND_CUT);
    body.put_u64_le(from);
    frame(offset, &body)
}

fn frame(offset: u64, body: &[u8]) -> Bytes {
    let len = u32::try_from(body.len()).expect("the size of batches is limited");
    let mut out = BytesMut::with_capacity(FRAME_HEADER_BYTES + body.len());
    out.put_slice(FRAME_MARKER);
    out.put_u32_le(len);
    out.put_u32_le(frame_crc(offset, len, body));
    out.put_slice(body);
    out.freeze()
}

pub(crate) fn frame_crc(offset: u64, len: u32, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&offset.to_le_bytes());
    hasher.update(&len.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

/// Reads a whole segment. Damage in it is not an error here: the caller knows whether this is the
/// segment that may have a torn tail.
pub(crate) fn scan_segment(bytes: &Bytes, sequence: u64) -> Scan {
    let mut scan = Scan { frames: Vec::new(), good_bytes: 0, bad: None };
    if let Err(flaw) = check_segment_header(bytes, sequence) {
        scan.bad = Some(bad(bytes, 0, flaw));
        return scan;
    }
    let mut at = SEGMENT_HEADER_BYTES;
    while at < bytes.len() {
        match read_frame(bytes, at) {
            Ok((frame, next)) => {
                scan.frames.push((at as u64, frame));
                at = next;
            }
            Err(flaw) => {
                scan.bad = Some(bad(bytes, at, flaw));
                break;
            }
        }
    }
    scan.good_bytes = at as u64;
    scan
}

fn bad(bytes: &Bytes, at: usize, flaw: Flaw) -> Bad {
    let offset = at as u64;
    match flaw {
        Flaw::Incomplete(problem) => Bad { offset, problem, torn: !good_frame_behind(bytes, at + 1) },
        Flaw::Nonsense(problem) => Bad { offset, problem, torn: false },
    }
}

/// Whether a good frame begins at or behind `from`.
fn good_frame_behind(bytes: &Bytes, from: usize) -> bool {
    let mut at = from;
    while let Some(rest) = bytes.get(at..)
        && let Some(found) = rest.windows(FRAME_MARKER.len()).position(|window| window == FRAME_MARKER)
    {
        if frame_body(bytes, at + found).is_ok() {
            return true;
        }
        at += found + 1;
    }
    false
}

fn read_frame(bytes: &Bytes, at: usize) -> Result<(Frame, usize), Flaw> {
    let body = frame_body(bytes, at).map_err(Flaw::Incomplete)?;
    let next = at + FRAME_HEADER_BYTES + body.len();
    Ok((decode_body(body).map_err(Flaw::Nonsense)?, next))
}

/// The body of the frame at `at`, if its checksum is right.
fn frame_body(bytes: &Bytes, at: usize) -> Result<Bytes, String> {
    let Some(mut header) = bytes.get(at..at + FRAME_HEADER_BYTES) else {
        return Err("the file ends within a frame's header".into());
    };
    if !header.starts_with(FRAME_MARKER) {
        return Err("no frame begins here".into());
    }
    header.advance(FRAME_MARKER.len());
    let (len, crc) = (header.get_u32_le(), header.get_u32_le());
    let start = at + FRAME_HEADER_BYTES;
    let Some(body) = bytes.get(start..start + len as usize) else {
        return Err(format!("the file ends within a frame of {len} bytes"));
    };
    if frame_crc(at as u64, len, body) != crc {
        return Err("checksum of the frame is wrong".into());
    }
    Ok(bytes.slice(start..start + len as usize))
}

fn decode_body(mut body: Bytes) -> Result<Frame, String> {
    if body.is_empty() {
        return Err("a frame without a kind".into());
    }
    match body.get_u8() {
        KIND_CUT if body.len() == 8 => Ok(Frame::Cut(body.get_u64_le())),
        KIND_ENTRIES => {
            let mut entries = Vec::new();
            while body.has_remaining() {
                entries.push(decode_entry(&mut body)?);
            }
            Ok(Frame::Entries(entries))
        }
        kind => Err(format!("a frame of kind {kind} with {} bytes is not known to this program", body.len())),
    }
}

fn decode_entry(body: &mut Bytes) -> Result<Entry, String> {
    let len = body.try_get_u32_le().map_err(|e| e.to_string())? as usize;
    if len < ENTRY_OVERHEAD_BYTES - 4 || len > body.len() {
        return Err(format!("an entry of {len} bytes in a frame that has {} left", body.len()));
    }
    let mut entry = body.split_to(len);
    let (term, index, kind) = (entry.get_u64_le(), entry.get_u64_le(), entry.get_u8());
    let payload: Payload = match kind {
        PAYLOAD_BLANK if entry.is_empty() => EntryPayload::Blank,
        // A copy: otherwise each command would keep the whole segment in memory.
        PAYLOAD_COMMAND => EntryPayload::Normal(Command(Bytes::copy_from_slice(&entry))),
        PAYLOAD_MEMBERSHIP => EntryPayload::Membership(decode_membership(&entry)?),
        kind => return Err(format!("entry {index} has the unknown payload kind {kind}")),
    };
    Ok(Entry { log_id: log_id(term, index), payload })
}

/// Voter sets and addresses, as our own files keep them.
type MembershipParts = (Vec<BTreeSet<u64>>, BTreeMap<u64, String>);

pub(crate) fn encode_membership(membership: &Membership) -> Vec<u8> {
    let nodes = membership.nodes().map(|(id, node)| (*id, node.addr.clone())).collect();
    let parts: MembershipParts = (membership.get_joint_config().clone(), nodes);
    postcard::to_stdvec(&parts).expect("memory has room and the types have lengths")
}

pub(crate) fn decode_membership(bytes: &[u8]) -> Result<Membership, String> {
    let (configs, nodes): MembershipParts = postcard::from_bytes(bytes).map_err(|e| format!("membership: {e}"))?;
    let nodes: BTreeMap<u64, BasicNode> = nodes.into_iter().map(|(id, addr)| (id, BasicNode { addr })).collect();
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|e| format!("membership: {e}"))
}

#[cfg(test)]
mod tests;
