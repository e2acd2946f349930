//! What a reader may leave unread: facts about a block, a partition or a file, and what a reader wants.
//!
//! ```text
//! facts := flags (1 byte: 1 = deletions, 2 = of whole rows, 4 = cells) smallest timestamp (i64) largest − smallest (varint) families (varint)
//! ```
//! Timestamps are those of cells (`i64::MAX` and a difference of 0 without any). `families` has the bit
//! `id mod 64` of each family with an entry; a whole-row deletion is of no family.
//!
//! Invariant: what is skipped holds no wanted cell, and nothing that changes what is shown of one.

use bytes::BufMut;
use uruk_proto::codec::put_varint;
use uruk_proto::key::{KeyRef, Kind};
use uruk_proto::{DecodeError, FamilyId};

const FLAG_DELETIONS: u8 = 1;
const FLAG_ROW_DELETIONS: u8 = 2;
const FLAG_CELLS: u8 = 4;
/// Flags and the smallest timestamp.
const FIXED_BYTES: usize = 9;

/// What is in a block, or in all blocks of a partition or file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Smallest timestamp of a cell; `i64::MAX` without cells.
    pub timestamp_min: i64,
    /// Largest timestamp of a cell; `i64::MIN` without cells.
    pub timestamp_max: i64,
    /// A bit for each family, by [`family_bit`].
    pub families: u64,
    /// Whether there is a deletion of any kind.
    pub has_deletions: bool,
    /// Whether there is one of a whole row.
    pub has_row_deletions: bool,
}

impl Facts {
    /// Of nothing.
    pub const NONE: Facts = Facts {
        timestamp_min: i64::MAX,
        timestamp_max: i64::MIN,
        families: 0,
        has_deletions: false,
        has_row_deletions: false,
    };

    /// Counts an entry.
    pub fn add(&mut self, key: &KeyRef<'_>) {
        match key.kind {
            Kind::Cell => {
                self.timestamp_min = self.timestamp_min.min(key.timestamp);
                self.timestamp_max = self.timestamp_max.max(key.timestamp);
                self.families |= family_bit(key.family);
            }
            Kind::DeleteColumn | Kind::DeleteFamily => {
                self.has_deletions = true;
                self.families |= family_bit(key.family);
            }
            Kind::DeleteRow => {
                self.has_deletions = true;
                self.has_row_deletions = true;
            }
        }
    }

    /// Counts what another block has.
    pub fn merge(&mut self, other: &Facts) {
        self.timestamp_min = self.timestamp_min.min(other.timestamp_min);
        self.timestamp_max = self.timestamp_max.max(other.timestamp_max);
        self.families |= other.families;
        self.has_deletions |= other.has_deletions;
        self.has_row_deletions |= other.has_row_deletions;
    }

    /// Appends the stored form.
    pub fn put(&self, out: &mut Vec<u8>) {
        let flag = |is: bool, flag: u8| if is { flag } else { 0 };
        let has_cells = self.timestamp_min <= self.timestamp_max;
        out.put_u8(
            flag(self.has_deletions, FLAG_DELETIONS)
                | flag(self.has_row_deletions, FLAG_ROW_DELETIONS)
                | flag(has_cells, FLAG_CELLS),
        );
        out.put_i64_le(self.timestamp_min);
        let difference = if has_cells { self.timestamp_max.wrapping_sub(self.timestamp_min) as u64 } else { 0 };
        put_varint(out, difference);
        put_varint(out, self.families);
    }

    /// Reads the stored form.
    pub fn parse(bytes: &[u8]) -> Result<Facts, DecodeError> {
        match Facts::split(bytes)? {
            (facts, []) => Ok(facts),
            (_, _) => Err(DecodeError { what: "block facts", offset: 0, why: "more bytes than facts" }),
        }
    }

    /// Reads the stored form from the start of `bytes`, and gives back the rest.
    pub fn split(bytes: &[u8]) -> Result<(Facts, &[u8]), DecodeError> {
        let error = |why| DecodeError { what: "block facts", offset: 0, why };
        let (fixed, mut rest) = bytes.split_at_checked(FIXED_BYTES).ok_or_else(|| error("end early"))?;
        let (flags, timestamp_min) = fixed.split_at(1);
        if flags[0] & !(FLAG_DELETIONS | FLAG_ROW_DELETIONS | FLAG_CELLS) != 0 {
            return Err(error("unknown flags"));
        }
        let timestamp_min = i64::from_le_bytes(timestamp_min.try_into().expect("8 of 9 bytes"));
        let difference = varint(&mut rest).ok_or_else(|| error("end early"))?;
        let families = varint(&mut rest).ok_or_else(|| error("bad families"))?;
        let has_cells = flags[0] & FLAG_CELLS != 0;
        let timestamp_max = timestamp_min.checked_add_unsigned(difference).ok_or_else(|| error("bad timestamps"))?;
        let facts = Facts {
            timestamp_min,
            timestamp_max: if has_cells { timestamp_max } else { i64::MIN },
            families,
            has_deletions: flags[0] & FLAG_DELETIONS != 0,
            has_row_deletions: flags[0] & FLAG_ROW_DELETIONS != 0,
        };
        Ok((facts, rest))
    }
}

/// The bit of a family.
pub fn family_bit(family: FamilyId) -> u64 {
    1 << (family.0 % 64)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7F) << shift;
        if *byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// What a reader is after, as far as it helps to skip.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Older cells are not wanted.
    pub timestamp_min: i64,
    /// Nor are cells from here on; `i64::MAX` for no bound.
    pub timestamp_end: i64,
    /// Nor are families without their bit here.
    pub families: u64,
}

impl Wanted {
    /// Everything.
    pub const ALL: Wanted = Wanted { timestamp_min: i64::MIN, timestamp_end: i64::MAX, families: u64::MAX };

    /// Whether nothing with these facts is of use.
    pub fn skips(&self, facts: &Facts) -> bool {
        if facts.families & self.families == 0 && !facts.has_row_deletions {
            return true;
        }
        let bounded = self.timestamp_end != i64::MAX;
        !facts.has_deletions
            && (facts.timestamp_max < self.timestamp_min || bounded && facts.timestamp_min >= self.timestamp_end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uruk_proto::{SeqNo, key};

    use super::*;

    fn facts(keys: &[Vec<u8>]) -> Facts {
        let mut facts = Facts::NONE;
        keys.iter().for_each(|key| facts.add(&KeyRef::parse(key).unwrap()));
        facts
    }

    fn cell(family: u64, timestamp: i64) -> Vec<u8> {
        key::cell(b"r", FamilyId(family), b"q", timestamp, SeqNo(1))
    }

    proptest! {
        #[test]
        fn facts_survive(
            cells in prop::collection::vec((1u64..200, any::<i64>()), 1..4),
            deletion in any::<bool>(),
        ) {
            let mut keys: Vec<_> = cells.iter().map(|(family, timestamp)| cell(*family, *timestamp)).collect();
            keys.extend(deletion.then(|| key::delete_family(b"r", FamilyId(3), SeqNo(1))));
            let facts = facts(&keys);
            let mut out = Vec::new();
            facts.put(&mut out);
            prop_assert_eq!(Facts::parse(&out), Ok(facts));
            for len in 0..out.len() {
                prop_assert!(Facts::parse(&out[..len]).is_err());
            }
        }

        #[test]
        fn any_bytes_are_parsed_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = Facts::parse(&bytes);
        }
    }

    #[test]
    fn only_what_holds_nothing_wanted_is_skipped() {
        let wanted = Wanted { timestamp_min: 10, timestamp_end: 20, families: family_bit(FamilyId(1)) };
        let skips = |keys: &[Vec<u8>]| wanted.skips(&facts(keys));
        assert!(!skips(&[cell(1, 10)]) && !skips(&[cell(1, 19)]) && !skips(&[cell(1, 5), cell(1, 30)]));
        assert!(skips(&[cell(1, 9)]) && skips(&[cell(1, 20)]));
        assert!(skips(&[cell(2, 15)]) && !skips(&[cell(65, 15)]), "families share bits");
        let row = key::delete_row(b"r", SeqNo(1));
        let family = |id| key::delete_family(b"r", FamilyId(id), SeqNo(1));
        assert!(!skips(&[cell(2, 9), row]), "a row's deletion reaches every family");
        assert!(!skips(&[cell(1, 9), family(1)]) && skips(&[cell(2, 15), family(2)]));
        let all = Wanted::ALL;
        assert!(!all.skips(&facts(&[cell(1, i64::MAX)])) && !all.skips(&facts(&[cell(1, i64::MIN)])));
    }

    #[test]
    fn deletions_alone_have_no_times() {
        let facts = facts(&[key::delete_family(b"r", FamilyId(1), SeqNo(1))]);
        let mut out = Vec::new();
        facts.put(&mut out);
        assert_eq!(Facts::parse(&out), Ok(facts));
    }
}
