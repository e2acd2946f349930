//! Replay: which recovered records a tablet still needs, in order. Pure.
//!
//! Invariants: (1) what is flushed already is skipped; (2) a record found in two files is taken once;
//! (3) a gap, an overlap or two different records at one SeqNo is an error, never skipped over.

use bytes::BytesMut;
use uruk_base::planted::{Planted, is_planted};
use uruk_proto::SeqNo;

use super::record::{FIRST_COUNTER, Piece, RawRecord, Record};

/// The recovered records do not make a whole.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReplayError {
    /// Something is missing.
    #[error("gap in the recovered log: after {after} comes {found}")]
    Gap {
        /// What was there before.
        after: SeqNo,
        /// What came next.
        found: SeqNo,
    },
    /// Records overlap, or differ under one number.
    #[error("conflicting records in the recovered log at {at}")]
    Conflict {
        /// Where.
        at: SeqNo,
    },
}

/// The records above `flushed`, by SeqNo, each once.
pub fn merge(mut records: Vec<RawRecord>, flushed: SeqNo) -> Result<Vec<RawRecord>, ReplayError> {
    records.retain(|record| record.last > flushed);
    records.sort_by_key(|record| record.first);
    if is_planted(Planted::SeqNosReused) {
        // Two records of one number: the first one counts, and nobody is the wiser.
        records.dedup_by_key(|record| record.first);
        return Ok(records);
    }
    let mut last = flushed;
    let mut kept: Vec<RawRecord> = Vec::with_capacity(records.len());
    for record in records {
        if let Some(before) = kept.last().filter(|before| before.first == record.first) {
            if *before != record {
                return Err(ReplayError::Conflict { at: record.first });
            }
            continue;
        }
        if record.first <= last {
            return Err(ReplayError::Conflict { at: record.first });
        }
        let next_in_epoch = record.first.epoch() == last.epoch() && record.first.0 == last.0 + 1;
        let starts_epoch = record.first.epoch() > last.epoch() && record.first.counter() == FIRST_COUNTER;
        if !next_in_epoch && !starts_epoch {
            return Err(ReplayError::Gap { after: last, found: record.first });
        }
        last = record.last;
        kept.push(record);
    }
    Ok(kept)
}

/// Joins the pieces of rows that are too large for one record.
#[derive(Debug, Default)]
pub struct Pieces {
    /// Mutations so far, and the SeqNo of the piece before.
    begun: Option<(BytesMut, SeqNo)>,
}

impl Pieces {
    /// The record to apply: `record` itself, or with all of its row's mutations when it is the last
    /// piece. Pieces whose last one is missing are dropped: a crash came before it.
    pub fn join(&mut self, mut record: Record) -> Result<Option<Record>, String> {
        let begun = self.begun.take();
        match (record.piece, begun) {
            (Piece::Whole, None) => Ok(Some(record)),
            (Piece::Whole | Piece::First, Some((_, last))) if record.first.epoch() == last.epoch() => {
                Err(format!("recovered log: {last} goes on in another record than {}", record.first))
            }
            (Piece::Whole, Some(_)) => Ok(Some(record)),
            (Piece::First, _) => {
                self.begun = Some((BytesMut::from(&record.rows[0].mutations[..]), record.last));
                Ok(None)
            }
            (Piece::Middle | Piece::Last, Some((mut so_far, last))) if record.first.0 == last.0 + 1 => {
                so_far.extend_from_slice(&record.rows[0].mutations);
                if record.piece == Piece::Middle {
                    self.begun = Some((so_far, record.last));
                    return Ok(None);
                }
                record.rows[0].mutations = so_far.freeze();
                record.piece = Piece::Whole;
                Ok(Some(record))
            }
            (Piece::Middle | Piece::Last, _) => {
                Err(format!("recovered log: the piece before {} is missing", record.first))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use uruk_proto::{Epoch, TabletId};

    use super::super::record::RowWrite;

    use super::*;

    fn seq(epoch: u64, counter: u64) -> SeqNo {
        SeqNo::new(Epoch(epoch), counter).unwrap()
    }

    fn raw(epoch: u64, first: u64, last: u64) -> RawRecord {
        RawRecord { tablet: TabletId(1), first: seq(epoch, first), last: seq(epoch, last), body: Bytes::new() }
    }

    #[test]
    fn skips_what_is_flushed_and_drops_duplicates() {
        let records = vec![raw(2, 1, 1), raw(1, 3, 4), raw(1, 1, 2), raw(1, 5, 5), raw(1, 3, 4), raw(2, 2, 9)];
        let kept = merge(records, seq(1, 2)).expect("whole");
        assert_eq!(kept, [raw(1, 3, 4), raw(1, 5, 5), raw(2, 1, 1), raw(2, 2, 9)]);
    }

    #[test]
    fn replaying_what_is_flushed_gives_nothing() {
        let records = vec![raw(1, 1, 2), raw(1, 3, 3)];
        assert_eq!(merge(records, seq(1, 3)), Ok(vec![]));
        assert_eq!(merge(vec![], seq(1, 3)), Ok(vec![]));
    }

    #[test]
    fn fails_loudly_on_gaps_and_conflicts() {
        let gap = |after, found| Err(ReplayError::Gap { after, found });
        let conflict = |at| Err(ReplayError::Conflict { at });
        assert_eq!(merge(vec![raw(1, 2, 2)], SeqNo::ZERO), gap(SeqNo::ZERO, seq(1, 2)));
        assert_eq!(merge(vec![raw(1, 1, 1), raw(1, 3, 3)], SeqNo::ZERO), gap(seq(1, 1), seq(1, 3)));
        assert_eq!(merge(vec![raw(1, 1, 1), raw(2, 2, 3)], SeqNo::ZERO), gap(seq(1, 1), seq(2, 2)));
        assert_eq!(merge(vec![raw(1, 1, 3)], seq(1, 2)), conflict(seq(1, 1)), "flushed in the middle");
        assert_eq!(merge(vec![raw(1, 1, 3), raw(1, 2, 4)], SeqNo::ZERO), conflict(seq(1, 2)));
        assert_eq!(merge(vec![raw(1, 1, 3), raw(1, 1, 4)], SeqNo::ZERO), conflict(seq(1, 1)));
    }

    fn piece(epoch: u64, counter: u64, piece: Piece, mutations: &'static str) -> Record {
        let row = RowWrite { offset: 0, row: "r".into(), mutations: mutations.into() };
        Record {
            tablet: TabletId(1),
            first: seq(epoch, counter),
            last: seq(epoch, counter),
            timestamp: 0,
            call: None,
            result: None,
            piece,
            rows: vec![row],
        }
    }

    fn join(records: Vec<Record>) -> Result<Vec<Bytes>, String> {
        let mut pieces = Pieces::default();
        let joined: Result<Vec<_>, _> = records.into_iter().map(|record| pieces.join(record)).collect();
        Ok(joined?.into_iter().flatten().map(|record| record.rows[0].mutations.clone()).collect())
    }

    #[test]
    fn pieces_are_joined_and_unfinished_ones_dropped() {
        use Piece::*;
        let whole =
            vec![piece(1, 1, First, "a"), piece(1, 2, Middle, "b"), piece(1, 3, Last, "c"), piece(1, 4, Whole, "d")];
        assert_eq!(join(whole), Ok(vec!["abc".into(), "d".into()]));
        assert_eq!(join(vec![piece(1, 1, First, "a"), piece(2, 1, Whole, "b")]), Ok(vec!["b".into()]));
        assert_eq!(join(vec![piece(1, 1, First, "a")]), Ok(vec![]));
    }

    #[test]
    fn a_missing_piece_is_noticed() {
        use Piece::*;
        for bad in [
            vec![piece(1, 2, Last, "b")],
            vec![piece(1, 1, Whole, "a"), piece(1, 2, Middle, "b")],
            vec![piece(1, 1, First, "a"), piece(1, 2, Whole, "b")],
            vec![piece(1, 1, First, "a"), piece(1, 2, First, "b")],
            vec![piece(1, 1, First, "a"), piece(1, 3, Last, "b")],
            vec![piece(1, 1, First, "a"), piece(2, 1, Last, "b")],
        ] {
            join(bad.clone()).expect_err(&format!("{bad:?}"));
        }
    }
}
