//! What a tablet remembers besides cells: whose calls it has done, and the highest timestamp given.
//!
//! RIFL (Lee et al., SOSP 2015): a client numbers its calls and says with each one which numbers are
//! settled, so that little must be remembered. A *run* is a stretch of consecutive numbers written by
//! one record. It is done once its SeqNo is published, so calls in flight need no entry of their own.
//!
//! Invariants: (1) a number at or above the client's `first_incomplete` that was written within the
//! retention is found; (2) runs of one client do not overlap; (3) a request issued more than half the
//! retention ago is refused, so a late duplicate is refused before its original is forgotten;
//! (4) the stored form for SeqNo s holds what records up to s said, and nothing of later ones.
//!
//! The file format is written down in `docs/formats.md`.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use uruk_base::planted::{Planted, is_planted};
use uruk_proto::SeqNo;
use uruk_proto::codec::{DecodeError, Reader, put_bytes, put_varint};

use super::record::{Call, Record};

/// The first four bytes of such a file.
pub const FILE_MAGIC: [u8; 4] = *b"UMEM";
const MAGIC: u32 = u32::from_le_bytes(FILE_MAGIC);
const VERSION: u8 = 1;
/// Most runs remembered by one tablet; beyond it calls are refused until some are settled.
pub const RUNS_MAX: usize = 200_000;

/// About what a run takes, its result apart.
pub const RUN_BYTES: usize = 128;

/// Why a call is not looked at.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MemoryError {
    /// Invariant 3.
    #[error("the request is {0:?} old; it is refused, because what it would repeat may be forgotten")]
    TooOld(Duration),
    /// [`RUNS_MAX`].
    #[error("{0} calls are remembered, which is the limit")]
    Full(usize),
    /// Its result has no room among those that are remembered.
    #[error("{0} bytes of calls' results are remembered, and {1} more would go beyond the limit")]
    FullOfResults(usize, usize),
}

/// What is known of one call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Seen {
    /// Nothing: do it.
    New,
    /// Its client said before that it is settled: refuse it.
    Settled,
    /// It is written at this SeqNo; done once that is published.
    Written {
        /// Last SeqNo of the record.
        last: SeqNo,
        /// What it answered, if that was remembered.
        result: Option<Bytes>,
    },
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Run {
    count: u64,
    last: SeqNo,
    at_micros: i64,
    result: Option<Bytes>,
}

impl Run {
    fn result_bytes(&self) -> usize {
        self.result.as_ref().map_or(0, Bytes::len)
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Client {
    first_incomplete: u64,
    at_micros: i64,
    runs: BTreeMap<u64, Run>,
}

/// The memory of one tablet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Memory {
    retention: Duration,
    highest_timestamp: i64,
    clients: BTreeMap<u64, Client>,
    runs: usize,
    /// Bytes of all runs' results.
    result_bytes: usize,
}

impl Memory {
    /// Remembers nothing; keeps things for `retention`.
    pub fn new(retention: Duration) -> Memory {
        Memory { retention, highest_timestamp: 0, clients: BTreeMap::new(), runs: 0, result_bytes: 0 }
    }

    /// About the bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.runs * RUN_BYTES + self.result_bytes
    }

    /// The highest server-given timestamp, in microseconds.
    pub fn highest_timestamp(&self) -> i64 {
        self.highest_timestamp
    }

    /// The server's time for a write, in microseconds: milliseconds, and never less than before.
    pub fn next_timestamp(&mut self, wall_micros: i64) -> i64 {
        let wall = wall_micros - wall_micros.rem_euclid(1000);
        self.highest_timestamp = self.highest_timestamp.max(wall);
        self.highest_timestamp
    }

    /// Whether the call may be looked at; notes what its client has settled.
    pub fn admit(&mut self, call: &Call, now_micros: i64) -> Result<(), MemoryError> {
        let age = Duration::from_micros(now_micros.saturating_sub(call.issued_micros).max(0) as u64);
        if age > self.retention / 2 {
            return Err(MemoryError::TooOld(age));
        }
        self.settle(call, now_micros);
        if self.runs >= RUNS_MAX {
            // What is past its time would otherwise go only at the next flush, which may be far.
            self.expire(now_micros);
        }
        if self.runs >= RUNS_MAX {
            return Err(MemoryError::Full(self.runs));
        }
        Ok(())
    }

    /// Whether a result of this many bytes can be remembered within `bytes_max`. What is remembered may not
    /// be dropped to make room: its call may be repeated until its client says that it is settled.
    pub fn check_room(&mut self, bytes: usize, bytes_max: usize, now_micros: i64) -> Result<(), MemoryError> {
        if bytes > 0 && self.result_bytes + bytes > bytes_max {
            self.expire(now_micros);
            if self.result_bytes + bytes > bytes_max {
                return Err(MemoryError::FullOfResults(self.result_bytes, bytes));
            }
        }
        Ok(())
    }

    fn settle(&mut self, call: &Call, at_micros: i64) {
        let client = self.clients.entry(call.client).or_default();
        client.at_micros = client.at_micros.max(at_micros);
        if call.first_incomplete <= client.first_incomplete {
            return;
        }
        client.first_incomplete = call.first_incomplete;
        while let Some(first) = client.runs.first_entry() {
            let end = first.key() + first.get().count;
            if end > call.first_incomplete {
                break;
            }
            self.result_bytes -= first.remove().result_bytes();
            self.runs -= 1;
        }
    }

    /// What is known of the client's call number `sequence`.
    pub fn seen(&self, client: u64, sequence: u64) -> Seen {
        if is_planted(Planted::LateFirstAttempt) {
            return Seen::New;
        }
        let Some(known) = self.clients.get(&client) else { return Seen::New };
        if sequence < known.first_incomplete {
            return Seen::Settled;
        }
        match known.runs.range(..=sequence).next_back() {
            Some((first, run)) if sequence - first < run.count => {
                Seen::Written { last: run.last, result: run.result.clone() }
            }
            Some(_) | None => Seen::New,
        }
    }

    /// Whether anything is known of `count` numbers from `sequence` on.
    pub fn seen_any(&self, client: u64, sequence: u64, count: u64) -> bool {
        if is_planted(Planted::LateFirstAttempt) {
            return false;
        }
        let Some(known) = self.clients.get(&client) else { return false };
        let before = known.runs.range(..sequence.saturating_add(count)).next_back();
        sequence < known.first_incomplete || before.is_some_and(|(first, run)| first + run.count > sequence)
    }

    /// Remembers what `record` does: called when it gets its SeqNo, and again at replay.
    pub fn remember(&mut self, record: &Record) {
        self.highest_timestamp = self.highest_timestamp.max(record.timestamp);
        let Some(call) = &record.call else { return };
        let mut offsets = record.rows.iter().map(|row| u64::from(row.offset)).peekable();
        if offsets.peek().is_none() {
            self.insert(call, 0, 1, record);
        }
        while let Some(start) = offsets.next() {
            let mut end = start + 1;
            while offsets.next_if_eq(&end).is_some() {
                end += 1;
            }
            self.insert(call, start, end - start, record);
        }
    }

    fn insert(&mut self, call: &Call, offset: u64, count: u64, record: &Record) {
        let run = Run { count, last: record.last, at_micros: record.timestamp, result: record.result.clone() };
        let client = self.clients.entry(call.client).or_default();
        client.at_micros = client.at_micros.max(record.timestamp);
        self.result_bytes += run.result_bytes();
        match client.runs.insert(call.sequence.saturating_add(offset), run) {
            Some(before) => self.result_bytes -= before.result_bytes(),
            None => self.runs += 1,
        }
    }

    /// Replays a record: notes what its client had settled, and remembers it.
    pub fn replay(&mut self, record: &Record) {
        if let Some(call) = &record.call {
            self.settle(call, record.timestamp);
        }
        self.remember(record);
    }

    /// How much is remembered: runs of calls, and bytes of results.
    pub fn size(&self) -> (usize, usize) {
        (self.runs, self.result_bytes)
    }

    /// Remembers what `other`, of a neighbouring tablet, does too. What both know they have from a parent in
    /// common: a call writes each of its rows in one tablet.
    pub fn absorb(&mut self, other: Memory) {
        self.highest_timestamp = self.highest_timestamp.max(other.highest_timestamp);
        for (id, theirs) in other.clients {
            let ours = self.clients.entry(id).or_default();
            ours.first_incomplete = ours.first_incomplete.max(theirs.first_incomplete);
            ours.at_micros = ours.at_micros.max(theirs.at_micros);
            for (first, run) in theirs.runs {
                let known = ours.runs.entry(first).or_insert_with(|| run.clone());
                if known.count < run.count {
                    *known = run;
                }
            }
            let settled = ours.first_incomplete;
            ours.runs.retain(|first, run| first + run.count > settled);
        }
        self.count();
    }

    fn count(&mut self) {
        let runs = || self.clients.values().flat_map(|client| client.runs.values());
        (self.runs, self.result_bytes) = (runs().count(), runs().map(Run::result_bytes).sum());
    }

    /// Forgets what is older than the retention.
    pub fn expire(&mut self, now_micros: i64) {
        let oldest = now_micros.saturating_sub(i64::try_from(self.retention.as_micros()).unwrap_or(i64::MAX));
        self.clients.retain(|_, client| {
            client.runs.retain(|_, run| run.at_micros >= oldest);
            client.at_micros >= oldest || !client.runs.is_empty()
        });
        self.count();
    }

    /// The stored form of what records up to `upto` said.
    pub fn encode(&self, upto: SeqNo) -> Bytes {
        let mut out = BytesMut::new();
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&[VERSION]);
        put_varint(&mut out, upto.0);
        put_varint(&mut out, self.highest_timestamp as u64);
        put_varint(&mut out, self.clients.len() as u64);
        for (id, client) in &self.clients {
            put_varint(&mut out, *id);
            put_varint(&mut out, client.first_incomplete);
            put_varint(&mut out, client.at_micros as u64);
            let stored = || client.runs.iter().filter(|(_, run)| run.last <= upto);
            put_varint(&mut out, stored().count() as u64);
            for (first, run) in stored() {
                put_varint(&mut out, *first);
                put_varint(&mut out, run.count);
                put_varint(&mut out, run.last.0);
                put_varint(&mut out, run.at_micros as u64);
                out.extend_from_slice(&[u8::from(run.result.is_some())]);
                if let Some(result) = &run.result {
                    put_bytes(&mut out, result);
                }
            }
        }
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out.freeze()
    }

    /// Reads the stored form; also the SeqNo that it was written for.
    pub fn decode(file: &Bytes, retention: Duration) -> Result<(Memory, SeqNo), DecodeError> {
        let error = |offset, why| DecodeError { what: "memory file", offset, why };
        let body_len = file.len().checked_sub(4).ok_or_else(|| error(0, "ends early"))?;
        if crc32fast::hash(&file[..body_len]).to_le_bytes() != file[body_len..] {
            return Err(error(body_len, "wrong checksum"));
        }
        let mut reader = Reader::new("memory file", file.slice(..body_len));
        if reader.u32()? != MAGIC || reader.u8()? != VERSION {
            return Err(reader.error("unknown magic number or version"));
        }
        let upto = SeqNo(reader.varint()?);
        let mut memory = Memory::new(retention);
        memory.highest_timestamp = reader.varint()? as i64;
        for _ in 0..reader.varint()? {
            let id = reader.varint()?;
            let client = read_client(&mut reader)?;
            memory.runs += client.runs.len();
            memory.result_bytes += client.runs.values().map(Run::result_bytes).sum::<usize>();
            memory.clients.insert(id, client);
        }
        if !reader.is_at_end() {
            return Err(reader.error("bytes after the last client"));
        }
        Ok((memory, upto))
    }
}

fn read_client(reader: &mut Reader) -> Result<Client, DecodeError> {
    let mut client =
        Client { first_incomplete: reader.varint()?, at_micros: reader.varint()? as i64, runs: BTreeMap::new() };
    for _ in 0..reader.varint()? {
        let first = reader.varint()?;
        let (count, last, at_micros) = (reader.varint()?, SeqNo(reader.varint()?), reader.varint()? as i64);
        let result = match reader.u8()? {
            0 => None,
            1 => Some(reader.bytes()?),
            _ => return Err(reader.error("bad result flag")),
        };
        if count == 0 || first.checked_add(count).is_none() {
            return Err(reader.error("bad run"));
        }
        client.runs.insert(first, Run { count, last, at_micros, result });
    }
    Ok(client)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uruk_proto::TabletId;

    use super::super::record::{Piece, RowWrite};
    use super::*;

    const RETENTION: Duration = Duration::from_secs(600);
    const NOW: i64 = 1_000_000_000_000;

    fn call(sequence: u64, first_incomplete: u64) -> Call {
        Call { client: 5, sequence, first_incomplete, issued_micros: NOW }
    }

    fn record(call: Call, last: u64, offsets: &[u32]) -> Record {
        let row = |offset: &u32| RowWrite { offset: *offset, row: "r".into(), mutations: Bytes::new() };
        Record {
            tablet: TabletId(1),
            first: SeqNo(last),
            last: SeqNo(last),
            timestamp: NOW,
            call: Some(call),
            result: None,
            piece: Piece::Whole,
            rows: offsets.iter().map(row).collect(),
        }
    }

    fn written(last: u64) -> Seen {
        Seen::Written { last: SeqNo(last), result: None }
    }

    #[test]
    fn finds_what_was_written_and_only_that() {
        let mut memory = Memory::new(RETENTION);
        memory.remember(&record(call(10, 0), 3, &[0, 1, 3]));
        let seen: Vec<Seen> = (9..15).map(|sequence| memory.seen(5, sequence)).collect();
        assert_eq!(seen, [Seen::New, written(3), written(3), Seen::New, written(3), Seen::New]);
        assert_eq!(memory.seen(6, 10), Seen::New);
        assert!(memory.seen_any(5, 0, 11) && memory.seen_any(5, 13, 1) && memory.seen_any(5, 12, 9));
        assert!(!memory.seen_any(5, 0, 10) && !memory.seen_any(5, 12, 1) && !memory.seen_any(5, 14, 9));
    }

    #[test]
    fn two_memories_become_one() {
        let mut parent = Memory::new(RETENTION);
        parent.remember(&record(call(10, 0), 3, &[0, 1]));
        let (mut left, mut right) = (parent.clone(), parent);
        left.remember(&record(call(20, 0), 7, &[0]));
        right.remember(&record(Call { client: 6, ..call(20, 0) }, 5, &[0]));
        right.admit(&call(30, 11), NOW).expect("new");
        right.next_timestamp(NOW + 1_000_000);
        let timestamp = right.highest_timestamp();
        left.absorb(right);
        assert_eq!((left.seen(5, 10), left.seen(5, 11)), (Seen::Settled, written(3)));
        assert_eq!((left.seen(5, 20), left.seen(6, 20)), (written(7), written(5)));
        assert_eq!((left.runs, left.highest_timestamp()), (3, timestamp));
        assert_eq!(left.size(), (3, 0));
    }

    #[test]
    fn forgets_what_is_settled_and_refuses_it() {
        let mut memory = Memory::new(RETENTION);
        memory.remember(&record(call(10, 0), 3, &[0, 1]));
        memory.remember(&record(call(20, 0), 4, &[0]));
        memory.admit(&call(21, 20), NOW).expect("new");
        assert_eq!((memory.seen(5, 10), memory.runs), (Seen::Settled, 1));
        assert_eq!(memory.seen(5, 20), written(4));
        memory.admit(&call(11, 0), NOW).expect("late, and refused one by one");
        assert_eq!(memory.seen(5, 11), Seen::Settled);
        assert!(memory.seen_any(5, 19, 1));
    }

    #[test]
    fn refuses_a_late_duplicate_before_it_forgets_the_original() {
        let mut memory = Memory::new(RETENTION);
        memory.admit(&call(10, 0), NOW).expect("new");
        memory.remember(&record(call(10, 0), 3, &[0]));
        let half = NOW + RETENTION.as_micros() as i64 / 2;
        memory.expire(half);
        memory.admit(&call(10, 0), half).expect("just young enough");
        assert_eq!(memory.seen(5, 10), written(3));
        assert!(matches!(memory.admit(&call(10, 0), half + 1), Err(MemoryError::TooOld(_))));
        memory.expire(half * 2);
        assert_eq!(memory.runs, 0);
    }

    #[test]
    fn results_are_refused_beyond_their_limit_until_some_are_settled_or_old() {
        let mut memory = Memory::new(RETENTION);
        let with_result = |sequence, result: &'static [u8]| Record {
            result: Some(Bytes::from_static(result)),
            ..record(call(sequence, 0), sequence, &[0])
        };
        memory.remember(&with_result(10, b"123456"));
        memory.remember(&with_result(11, b"1234"));
        assert_eq!(memory.check_room(1, 10, NOW), Err(MemoryError::FullOfResults(10, 1)));
        assert_eq!(memory.check_room(0, 10, NOW), Ok(()), "calls without a result go on");
        let (mut again, _) = Memory::decode(&memory.encode(SeqNo(99)), RETENTION).expect("decodes");
        assert_eq!(again.check_room(1, 10, NOW), Err(MemoryError::FullOfResults(10, 1)));
        assert_eq!(again.check_room(1, 10, NOW + RETENTION.as_micros() as i64 + 1), Ok(()), "what is old goes");
        memory.admit(&call(12, 11), NOW).expect("new");
        assert_eq!(memory.check_room(6, 10, NOW), Ok(()));
        assert_eq!(memory.check_room(7, 10, NOW), Err(MemoryError::FullOfResults(4, 7)));
    }

    #[test]
    fn timestamps_never_fall() {
        let mut memory = Memory::new(RETENTION);
        assert_eq!(memory.next_timestamp(1_234_567), 1_234_000);
        assert_eq!(memory.next_timestamp(1_000_000), 1_234_000);
        assert_eq!(memory.next_timestamp(1_235_001), 1_235_000);
        let (again, _) = Memory::decode(&memory.encode(SeqNo(9)), RETENTION).expect("decodes");
        assert_eq!(again.highest_timestamp(), 1_235_000);
    }

    #[test]
    fn the_stored_form_leaves_out_what_is_not_published() {
        let mut memory = Memory::new(RETENTION);
        memory.remember(&record(call(10, 0), 3, &[0]));
        memory.remember(&record(call(11, 0), 4, &[0]));
        let (again, upto) = Memory::decode(&memory.encode(SeqNo(3)), RETENTION).expect("decodes");
        assert_eq!(upto, SeqNo(3));
        assert_eq!((again.seen(5, 10), again.seen(5, 11)), (written(3), Seen::New));
    }

    proptest! {
        #[test]
        fn the_stored_form_survives(
            calls in prop::collection::vec((0u64..4, 0u64..1000, 1u64..9, prop::option::of(0u8..9)), 0..20)
        ) {
            let mut memory = Memory::new(RETENTION);
            for (client, sequence, last, result) in calls {
                let mut record = record(Call { client, ..call(sequence, 0) }, last, &[0]);
                record.result = result.map(|byte| Bytes::from(vec![byte]));
                memory.remember(&record);
            }
            let packed = memory.encode(SeqNo::MAX);
            let again = Memory::decode(&packed, RETENTION);
            prop_assert_eq!(again, Ok((memory, SeqNo::MAX)));
            for at in 0..packed.len() {
                let mut bad = packed.to_vec();
                bad[at] ^= 1;
                prop_assert!(Memory::decode(&bad.into(), RETENTION).is_err());
                prop_assert!(Memory::decode(&packed.slice(..at), RETENTION).is_err());
            }
        }
    }
}
