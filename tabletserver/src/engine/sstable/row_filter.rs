//! The filter of some index partitions in a row: which rows, and which columns of them, have an entry there?
//!
//! | kind | what a filter knows of each entry in its partitions |
//! |---|---|
//! | row | its row's prefix |
//! | row and column | its row's prefix and its *column's prefix*: the key without timestamp, sequence number, kind |
//!
//! The column's prefix of a whole-row deletion is the row's and family 0, that of a whole-family deletion the row's,
//! the family and 0x00 (`proto/src/key.rs`): entries like any other. A file is left out of a look-up as follows.
//!
//! 1. The partition that the index names for a prefix X (row's or column's) is the last whose separator is at or
//!    below X. It holds the first entry that starts with X, if the file has any: a separator is the shortest start of
//!    its partition's first key that is above the key before. Were that first entry in a later partition, whose
//!    separator is above X, then the key before that partition would share X with it and be an entry of X itself,
//!    since X ends in a terminator (or in a family's tag) and so is no start of any other row's or column's keys.
//! 2. So a file that has an entry with prefix X has it in that partition, and that partition's filter knows X:
//!    filters forget nothing. If it does not know X, the file has no entry of X. (That filter is the last whose first
//!    partition's separator is at or below X.)
//! 3. What is shown of column (r, f, q) depends on entries of three prefixes alone: its own cells and deletions, the
//!    deletions of family f in r, the deletions of r (`visible.rs`). A file is left out only if it has an entry of none
//!    of the three. So no deletion is ever overlooked, and none is asked for that the index (its facts about the
//!    partition) says is not there, which keeps false positives near those of one look-up.

use uruk_proto::FamilyId;
use uruk_proto::key::{self, KeyRef};
use uruk_proto::schema::FilterOn;

use super::bloom;
use super::skip::Facts;

/// Collects what a filter shall know.
#[derive(Debug)]
pub struct FilterBuilder {
    on: FilterOn,
    bits_per_key: usize,
    hashes: Vec<u64>,
    /// The row and the column of the last entry are known.
    is_known: bool,
}

impl FilterBuilder {
    /// Knows nothing; without bits there will be no filter.
    pub fn new(on: FilterOn, bits_per_key: usize) -> FilterBuilder {
        FilterBuilder { on, bits_per_key, hashes: Vec::new(), is_known: false }
    }

    /// Adds an entry; whether row and column are the last entry's.
    pub fn add(&mut self, key: &KeyRef<'_>, is_same_row: bool, is_same_column: bool) {
        if self.bits_per_key == 0 {
            return;
        }
        if !(is_same_row && self.is_known) {
            self.hashes.push(bloom::row_hash(key.row_prefix()));
        }
        if self.on == FilterOn::RowColumn && !(is_same_column && self.is_known) {
            self.hashes.push(bloom::row_hash(key.column_prefix()));
        }
        self.is_known = true;
    }

    /// Bytes that the filter will have, about.
    pub fn bytes(&self) -> usize {
        self.hashes.len() * self.bits_per_key / 8
    }

    /// The filter, if there shall be one. The next one knows nothing.
    pub fn finish(&mut self) -> Option<Vec<u8>> {
        self.is_known = false;
        let filter = (self.bits_per_key > 0).then(|| bloom::build(&self.hashes, self.bits_per_key));
        self.hashes.clear();
        filter
    }
}

/// What a look-up asks of files: a row, or some columns of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RowProbe {
    /// The row's prefix.
    pub row: Probe,
    /// Prefixes of which a file must have an entry to matter; empty: any entry of the row matters.
    pub columns: Vec<Probe>,
    /// Filters of a file that are read for it at most; those in memory are asked in any case.
    pub filters_read_max: u32,
}

/// Three columns of a row may be in as many partitions, and the row itself in another.
const FILTERS_READ_MAX: u32 = 4;

/// A prefix that a filter is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Probe {
    /// Of a row, or of a column of it.
    pub prefix: Vec<u8>,
    /// Its hash.
    pub hash: u64,
    /// Which entries have it.
    pub entries: Entries,
}

/// Which entries have a prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entries {
    /// Any.
    Any,
    /// Deletions of a family.
    FamilyDeletions,
    /// Deletions of a row.
    RowDeletions,
}

impl Probe {
    fn new(prefix: Vec<u8>, entries: Entries) -> Probe {
        Probe { hash: bloom::row_hash(&prefix), prefix, entries }
    }

    /// Whether partitions with these facts may have such entries.
    #[inline]
    pub fn may_be_in(&self, facts: &Facts) -> bool {
        match self.entries {
            Entries::Any => true,
            Entries::FamilyDeletions => facts.has_deletions,
            Entries::RowDeletions => facts.has_row_deletions,
        }
    }
}

impl RowProbe {
    /// A whole row, given its prefix.
    pub fn row(prefix: Vec<u8>) -> RowProbe {
        RowProbe { row: Probe::new(prefix, Entries::Any), columns: Vec::new(), filters_read_max: FILTERS_READ_MAX }
    }

    /// The same of a row that is known to be there: filters in memory are asked, but none is worth reading.
    pub fn of_present(self) -> RowProbe {
        RowProbe { filters_read_max: 0, ..self }
    }

    /// Some columns of a row: of each its family, and its key behind the row's prefix.
    pub fn columns<'a>(prefix: Vec<u8>, columns: impl Iterator<Item = (FamilyId, &'a [u8])>) -> RowProbe {
        let mut probe = RowProbe::row(prefix);
        let prefix = &probe.row.prefix[..];
        let mut deletions = Vec::new();
        for (family, column) in columns {
            probe.columns.push(Probe::new([prefix, column].concat(), Entries::Any));
            let mut family_deletion = prefix.to_vec();
            key::put_family_deletion(&mut family_deletion, family);
            deletions.push(Probe::new(family_deletion, Entries::FamilyDeletions));
        }
        let mut row_deletion = prefix.to_vec();
        key::put_family(&mut row_deletion, FamilyId(0));
        deletions.push(Probe::new(row_deletion, Entries::RowDeletions));
        // Cells first: they are what is there most often.
        probe.columns.append(&mut deletions);
        probe
    }
}

#[cfg(test)]
mod tests {
    use uruk_proto::SeqNo;

    use super::super::bloom::Bloom;
    use super::*;

    fn knows(filter: &Bloom, probe: &Probe) -> bool {
        filter.may_contain(probe.hash)
    }

    #[test]
    fn a_filter_knows_the_row_and_column_that_it_goes_on_with() {
        for kind in [FilterOn::Row, FilterOn::RowColumn] {
            let mut builder = FilterBuilder::new(kind, 10);
            let key = key::cell(b"row", FamilyId(3), b"q", 7, SeqNo(1));
            let parts = KeyRef::parse(&key).unwrap();
            builder.add(&parts, false, false);
            builder.add(&parts, true, true);
            assert_eq!(builder.bytes(), 10 * if kind == FilterOn::Row { 1 } else { 2 } / 8, "each is there once");
            builder.finish();
            builder.add(&parts, true, true);
            let filter = Bloom::parse(builder.finish().unwrap().into()).unwrap();
            let column = [(FamilyId(3), &key[parts.row_len..parts.column_len])].into_iter();
            let probe = RowProbe::columns(parts.row_prefix().to_vec(), column);
            assert!(knows(&filter, &probe.row));
            assert_eq!(knows(&filter, &probe.columns[0]), kind == FilterOn::RowColumn);
        }
    }

    #[test]
    fn the_prefixes_that_are_asked_for_are_those_of_the_keys() {
        let column = [&[1, 3, 1][..], b"q\0\x01"].concat();
        let probe = RowProbe::columns(key::row_prefix(b"row"), [(FamilyId(3), &column[..])].into_iter());
        let keys = [
            (key::cell(b"row", FamilyId(3), b"q", 7, SeqNo(1)), Entries::Any),
            (key::delete_family(b"row", FamilyId(3), SeqNo(1)), Entries::FamilyDeletions),
            (key::delete_row(b"row", SeqNo(1)), Entries::RowDeletions),
        ];
        assert_eq!(probe.columns.len(), keys.len());
        for (probe, (key, entries)) in probe.columns.iter().zip(&keys) {
            assert_eq!((&probe.prefix[..], probe.entries), (KeyRef::parse(key).unwrap().column_prefix(), *entries));
        }
        let column_deletion = key::delete_column(b"row", FamilyId(3), b"q", SeqNo(1));
        assert_eq!(KeyRef::parse(&column_deletion).unwrap().column_prefix(), probe.columns[0].prefix);
    }
}
