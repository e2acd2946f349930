//! Log records: what stands in a tablet server's commit log.
//!
//! A *frame* is what one `append` hands to the log: the records of one group commit. A *record* is
//! one piece of work on one tablet, applied and published as a whole. The format is written down in
//! `docs/formats.md`.
//!
//! Invariants: (1) `first <= last` and both have the same epoch; (2) the records of one tablet and
//! epoch are consecutive: `next.first == last + 1`, and the first of an epoch has counter 1;
//! (3) a record without rows still takes one SeqNo, so that a remembered result has its place; (4) a
//! row too large for one record is cut into pieces, consecutive records of which only the last counts:
//! without it the others are as good as not written.

use bytes::{Bytes, BytesMut};

use uruk_proto::codec::{DecodeError, Reader, put_bytes, put_varint};
use uruk_proto::{SeqNo, TabletId};

/// Version of frames that this program writes, and the newest that it reads.
pub const FRAME_VERSION: u8 = 1;
/// Counter of the first write under an epoch.
pub const FIRST_COUNTER: u64 = 1;
const HAS_CALL: u8 = 1;
const HAS_RESULT: u8 = 2;
const GOES_ON: u8 = 4;
const GOES_ON_FROM_BEFORE: u8 = 8;

/// Which client's call a record belongs to (RIFL).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call {
    /// Who.
    pub client: u64,
    /// The sequence number that row offsets count from.
    pub sequence: u64,
    /// All of the client's numbers below it are settled.
    pub first_incomplete: u64,
    /// When it was issued, by the client's clock, in microseconds.
    pub issued_micros: i64,
}

/// One row of a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RowWrite {
    /// The call's sequence number is `call.sequence + offset`.
    pub offset: u32,
    /// The row key.
    pub row: Bytes,
    /// Packed: [`uruk_proto::mutation`].
    pub mutations: Bytes,
}

/// Whether a record stands for itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Piece {
    /// It does.
    Whole,
    /// Its only row's mutations begin here and go on in the next record.
    First,
    /// They come from the record before and go on in the next one.
    Middle,
    /// They come from the record before and end here.
    Last,
}

impl Piece {
    fn flags(self) -> u8 {
        match self {
            Piece::Whole => 0,
            Piece::First => GOES_ON,
            Piece::Middle => GOES_ON | GOES_ON_FROM_BEFORE,
            Piece::Last => GOES_ON_FROM_BEFORE,
        }
    }

    fn from_flags(flags: u8) -> Piece {
        match (flags & GOES_ON != 0, flags & GOES_ON_FROM_BEFORE != 0) {
            (false, false) => Piece::Whole,
            (true, false) => Piece::First,
            (true, true) => Piece::Middle,
            (false, true) => Piece::Last,
        }
    }
}

/// One piece of work on one tablet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The tablet.
    pub tablet: TabletId,
    /// SeqNo of the first mutation; the others follow in order.
    pub first: SeqNo,
    /// SeqNo of the last mutation.
    pub last: SeqNo,
    /// Stands for every timestamp that a mutation leaves to the server, in microseconds.
    pub timestamp: i64,
    /// Whose work it is.
    pub call: Option<Call>,
    /// What the call answered, when that must be remembered.
    pub result: Option<Bytes>,
    /// Whether it stands for itself.
    pub piece: Piece,
    /// The rows, each atomic.
    pub rows: Vec<RowWrite>,
}

impl Record {
    /// At least as many bytes as the record takes in a frame.
    pub fn bytes_max(&self) -> usize {
        let rows: usize = self.rows.iter().map(|row| row.row.len() + row.mutations.len() + 28).sum();
        rows + self.result.as_ref().map_or(0, Bytes::len) + 128
    }

    fn put_body(&self, out: &mut BytesMut) {
        put_varint(out, self.tablet.0);
        put_varint(out, self.first.0);
        put_varint(out, self.last.0 - self.first.0);
        put_varint(out, self.timestamp as u64);
        let call = if self.call.is_some() { HAS_CALL } else { 0 };
        let result = if self.result.is_some() { HAS_RESULT } else { 0 };
        out.extend_from_slice(&[call | result | self.piece.flags()]);
        if let Some(call) = &self.call {
            put_varint(out, call.client);
            put_varint(out, call.sequence);
            put_varint(out, call.first_incomplete);
            put_varint(out, call.issued_micros as u64);
        }
        if let Some(result) = &self.result {
            put_bytes(out, result);
        }
        put_varint(out, self.rows.len() as u64);
        for row in &self.rows {
            put_varint(out, u64::from(row.offset));
            put_bytes(out, &row.row);
            put_bytes(out, &row.mutations);
        }
    }

    /// Appends the record, behind its length.
    pub fn put(&self, out: &mut BytesMut) {
        let at = out.len();
        out.extend_from_slice(&[0; 4]);
        self.put_body(out);
        let len = u32::try_from(out.len() - at - 4).expect("the log queue limits records");
        out[at..at + 4].copy_from_slice(&len.to_le_bytes());
    }

    /// Reads one record's body (without the length before it).
    pub fn parse(body: Bytes) -> Result<Record, DecodeError> {
        let mut reader = Reader::new("log record", body);
        let (tablet, first, last) = read_identity(&mut reader)?;
        let timestamp = reader.varint()? as i64;
        let flags = reader.u8()?;
        if flags & !(HAS_CALL | HAS_RESULT | GOES_ON | GOES_ON_FROM_BEFORE) != 0 {
            return Err(reader.error("unknown flags"));
        }
        let piece = Piece::from_flags(flags);
        let call = if flags & HAS_CALL != 0 { Some(read_call(&mut reader)?) } else { None };
        let result = if flags & HAS_RESULT != 0 { Some(reader.bytes()?) } else { None };
        let count = reader.varint()?;
        let mut rows = Vec::with_capacity(count.min(4096) as usize);
        for _ in 0..count {
            let offset = u32::try_from(reader.varint()?).map_err(|_| reader.error("row offset beyond 32 bits"))?;
            rows.push(RowWrite { offset, row: reader.bytes()?, mutations: reader.bytes()? });
        }
        if !reader.is_at_end() {
            return Err(reader.error("bytes after the last row"));
        }
        if piece != Piece::Whole && rows.len() != 1 {
            return Err(reader.error("a piece of no row, or of several"));
        }
        Ok(Record { tablet, first, last, timestamp, call, result, piece, rows })
    }
}

fn read_identity(reader: &mut Reader) -> Result<(TabletId, SeqNo, SeqNo), DecodeError> {
    let tablet = TabletId(reader.varint()?);
    let first = SeqNo(reader.varint()?);
    let last = reader.varint()?.checked_add(first.0).map(SeqNo);
    match last {
        Some(last) if last.epoch() == first.epoch() => Ok((tablet, first, last)),
        Some(_) | None => Err(reader.error("record spans two epochs")),
    }
}

fn read_call(reader: &mut Reader) -> Result<Call, DecodeError> {
    Ok(Call {
        client: reader.varint()?,
        sequence: reader.varint()?,
        first_incomplete: reader.varint()?,
        issued_micros: reader.varint()? as i64,
    })
}

/// A record of which only the identity was read: all that sorting needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RawRecord {
    /// The tablet.
    pub tablet: TabletId,
    /// SeqNo of the first mutation.
    pub first: SeqNo,
    /// SeqNo of the last mutation.
    pub last: SeqNo,
    /// The record, for [`Record::parse`].
    pub body: Bytes,
}

/// Starts a frame; records follow through [`Record::put`].
pub fn start_frame(out: &mut BytesMut) {
    out.extend_from_slice(&[FRAME_VERSION]);
}

/// The records of a frame.
pub fn parse_frame(frame: Bytes) -> Result<Vec<RawRecord>, DecodeError> {
    let mut reader = Reader::new("log frame", frame);
    if reader.u8()? != FRAME_VERSION {
        return Err(reader.error("unknown version"));
    }
    let mut records = Vec::new();
    while !reader.is_at_end() {
        records.push(parse_raw(&mut reader)?);
    }
    Ok(records)
}

/// Reads one record with its length before it, only as far as sorting needs.
pub fn parse_raw(reader: &mut Reader) -> Result<RawRecord, DecodeError> {
    let len = reader.u32()? as usize;
    let body = reader.slice(len)?;
    let (tablet, first, last) = read_identity(&mut Reader::new("log record", body.clone()))?;
    Ok(RawRecord { tablet, first, last, body })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uruk_proto::Epoch;

    use super::*;

    fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from)
    }

    fn record() -> impl Strategy<Value = Record> {
        let call = (any::<u64>(), any::<u64>(), any::<u64>(), any::<i64>()).prop_map(
            |(client, sequence, first_incomplete, issued_micros)| Call {
                client,
                sequence,
                first_incomplete,
                issued_micros,
            },
        );
        let row = (any::<u32>(), bytes(20), bytes(60)).prop_map(|(offset, row, mutations)| RowWrite {
            offset,
            row,
            mutations,
        });
        let seq = (0..SeqNo::EPOCH_MAX, 0..SeqNo::COUNTER_MAX - 1000)
            .prop_map(|(epoch, counter)| SeqNo::new(Epoch(epoch), counter).unwrap());
        let pieces = prop_oneof![Just(Piece::Whole), Just(Piece::First), Just(Piece::Middle), Just(Piece::Last)];
        let rows = prop::collection::vec(row, 0..5);
        let extras = (prop::option::of(call), prop::option::of(bytes(30)), rows, pieces);
        (any::<u64>(), seq, 0u64..1000, any::<i64>(), extras).prop_map(
            |(tablet, first, more, timestamp, (call, result, rows, piece))| Record {
                tablet: TabletId(tablet),
                first,
                last: SeqNo(first.0 + more),
                timestamp,
                call,
                result,
                piece: if rows.len() == 1 { piece } else { Piece::Whole },
                rows,
            },
        )
    }

    fn frame(records: &[Record]) -> Bytes {
        let mut out = BytesMut::new();
        start_frame(&mut out);
        records.iter().for_each(|record| record.put(&mut out));
        out.freeze()
    }

    proptest! {
        #[test]
        fn a_frame_survives(records in prop::collection::vec(record(), 0..5)) {
            let packed = frame(&records);
            prop_assert!(packed.len() <= 1 + records.iter().map(Record::bytes_max).sum::<usize>());
            let raw = parse_frame(packed).unwrap();
            for (raw, record) in raw.iter().zip(&records) {
                prop_assert_eq!((raw.tablet, raw.first, raw.last), (record.tablet, record.first, record.last));
            }
            let again: Vec<Record> = raw.into_iter().map(|raw| Record::parse(raw.body).unwrap()).collect();
            prop_assert_eq!(again, records);
        }

        #[test]
        fn any_bytes_parse_or_fail_without_panic(bytes in bytes(80)) {
            let _ = Record::parse(bytes.clone());
            let _ = parse_frame(bytes);
        }

        #[test]
        fn a_cut_frame_is_refused_or_shorter(records in prop::collection::vec(record(), 1..4), cut in 1usize..9) {
            let packed = frame(&records);
            if let Ok(fewer) = parse_frame(packed.slice(..packed.len().saturating_sub(cut))) {
                prop_assert!(fewer.len() < records.len());
            }
        }
    }

    #[test]
    fn refuses_other_versions_and_spanning_epochs() {
        assert_eq!(parse_frame(Bytes::from_static(&[9])).unwrap_err().why, "unknown version");
        let last = SeqNo::new(Epoch(1), SeqNo::COUNTER_MAX).unwrap();
        let record = Record {
            tablet: TabletId(1),
            first: last,
            last: SeqNo(last.0 + 1),
            timestamp: 0,
            call: None,
            result: None,
            piece: Piece::Whole,
            rows: vec![],
        };
        assert_eq!(parse_frame(frame(&[record])).unwrap_err().why, "record spans two epochs");
    }
}
