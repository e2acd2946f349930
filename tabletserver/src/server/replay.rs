//! Replay: which recovered records a tablet still needs, in order. Pure.
//!
//! Invariants: (1) what is flushed already is skipped; (2) a record found in two files is taken once;
//! (3) a gap, an overlap or two different records at one SeqNo is an error, never skipped over.

use uruk_proto::SeqNo;

use super::record::{FIRST_COUNTER, RawRecord};

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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use uruk_proto::{Epoch, TabletId};

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
}
