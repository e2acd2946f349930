//! What a snapshot shows of a merged stream of entries. Pure: entries go in one by one, in key order.
//!
//! | entry, written at or before the snapshot | verdict |
//! |---|---|
//! | deletion of row, family, column range | remembered: hides cells below it with a *smaller* SeqNo |
//! | deletion that a wider, later one covers | hidden |
//! | cell with the (column, timestamp) of the entry before it | hidden: higher SeqNo came first |
//! | cell that a remembered deletion covers | hidden |
//! | any other cell | shown, with its number within the column (0 = newest) |
//!
//! Whatever was written after the snapshot is hidden and hides nothing. Reads, flushes and compactions
//! all go through here, so they cannot disagree.

use uruk_proto::key::{self, KeyRef, Kind, SUFFIX_BYTES};
use uruk_proto::{DecodeError, FamilyId, SeqNo};

/// The verdict on an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// Not in the snapshot, or hidden by what is.
    Hidden,
    /// A cell; this many shown cells of its column are newer.
    Cell {
        /// Its number within the column.
        version: u32,
    },
    /// A deletion that nothing later covers.
    Deletion,
}

#[derive(Clone, Copy, Debug)]
struct ColumnDeletion {
    seq: SeqNo,
    start: i64,
    end: i64,
}

impl ColumnDeletion {
    fn covers(&self, timestamp: i64) -> bool {
        self.start <= timestamp && (timestamp < self.end || self.end == i64::MAX)
    }
}

/// The state of a walk over entries in key order.
#[derive(Debug)]
pub struct Visibility {
    snapshot: SeqNo,
    /// Prefix of the current row; empty before the first.
    row: Vec<u8>,
    row_deleted: SeqNo,
    family: FamilyId,
    /// Of the current family, or of the whole row when that is later.
    family_deleted: SeqNo,
    /// Prefix of the current column; empty outside of columns.
    column: Vec<u8>,
    qualifier_at: usize,
    column_deletions: Vec<ColumnDeletion>,
    last_timestamp: Option<i64>,
    versions: u32,
    timestamp: i64,
    columns_seen: u64,
}

impl Visibility {
    /// Before the first entry.
    pub fn new(snapshot: SeqNo) -> Visibility {
        Visibility {
            snapshot,
            row: Vec::new(),
            row_deleted: SeqNo::ZERO,
            family: FamilyId(0),
            family_deleted: SeqNo::ZERO,
            column: Vec::new(),
            qualifier_at: 0,
            column_deletions: Vec::new(),
            last_timestamp: None,
            versions: 0,
            timestamp: 0,
            columns_seen: 0,
        }
    }

    /// Prefix of the row of the last entry; empty before the first.
    #[inline]
    pub fn row(&self) -> &[u8] {
        &self.row
    }

    /// Whether `key` is of another row than the last entry.
    #[inline]
    pub fn is_new_row(&self, key: &[u8]) -> bool {
        self.row.is_empty() || !key.starts_with(&self.row)
    }

    /// Family of the last cell.
    #[inline]
    pub fn family(&self) -> FamilyId {
        self.family
    }

    /// Prefix of the column of the last cell.
    #[inline]
    pub fn column(&self) -> &[u8] {
        &self.column
    }

    /// Qualifier of the last cell, escaped and terminated.
    #[inline]
    pub fn escaped_qualifier(&self) -> &[u8] {
        &self.column[self.qualifier_at..]
    }

    /// Timestamp of the last cell.
    #[inline]
    pub fn timestamp(&self) -> i64 {
        self.timestamp
    }

    /// Rises with every column; so does it between two cells of different columns.
    #[inline]
    pub fn columns_seen(&self) -> u64 {
        self.columns_seen
    }

    /// Takes the next entry.
    #[inline]
    pub fn see(&mut self, key: &[u8], value: &[u8]) -> Result<Seen, DecodeError> {
        if !self.column.is_empty() && key.len() == self.column.len() + SUFFIX_BYTES && key.starts_with(&self.column) {
            let (timestamp, seq, kind) = key::read_suffix(&key[self.column.len()..])?;
            return match kind {
                Kind::Cell => Ok(self.see_cell(timestamp, seq)),
                Kind::DeleteColumn => self.see_column_deletion(seq, value),
                Kind::DeleteFamily | Kind::DeleteRow => {
                    Err(DecodeError { what: "key", offset: self.column.len(), why: "kind does not fit the column" })
                }
            };
        }
        let parts = KeyRef::parse(key)?;
        self.enter(&parts);
        match parts.kind {
            Kind::Cell => Ok(self.see_cell(parts.timestamp, parts.seq)),
            Kind::DeleteColumn => self.see_column_deletion(parts.seq, value),
            Kind::DeleteFamily => Ok(self.see_family_deletion(parts.seq)),
            Kind::DeleteRow => Ok(self.see_row_deletion(parts.seq)),
        }
    }

    /// Another column, family or row begins.
    fn enter(&mut self, parts: &KeyRef<'_>) {
        if parts.row_prefix() != self.row {
            self.row.clear();
            self.row.extend_from_slice(parts.row_prefix());
            self.row_deleted = SeqNo::ZERO;
            self.family = FamilyId(0);
            self.family_deleted = SeqNo::ZERO;
        }
        if parts.family != self.family {
            self.family = parts.family;
            self.family_deleted = self.row_deleted;
        }
        self.column.clear();
        self.column_deletions.clear();
        self.last_timestamp = None;
        self.versions = 0;
        self.columns_seen += 1;
        match parts.kind {
            Kind::Cell | Kind::DeleteColumn => {
                self.column.extend_from_slice(parts.column_prefix());
                self.qualifier_at = parts.qualifier_at();
            }
            Kind::DeleteFamily | Kind::DeleteRow => {}
        }
    }

    #[inline]
    fn see_cell(&mut self, timestamp: i64, seq: SeqNo) -> Seen {
        if seq > self.snapshot || self.last_timestamp == Some(timestamp) {
            return Seen::Hidden;
        }
        // Also when it is deleted: the same deletion hides the older cells of this timestamp.
        self.last_timestamp = Some(timestamp);
        let covered = |deletion: &ColumnDeletion| seq < deletion.seq && deletion.covers(timestamp);
        if seq < self.family_deleted || self.column_deletions.iter().any(covered) {
            return Seen::Hidden;
        }
        self.timestamp = timestamp;
        let version = self.versions;
        self.versions = version.saturating_add(1);
        Seen::Cell { version }
    }

    fn see_column_deletion(&mut self, seq: SeqNo, value: &[u8]) -> Result<Seen, DecodeError> {
        let (start, end) = key::parse_delete_column_value(value)?;
        let wider = |other: &ColumnDeletion| other.seq >= seq && other.start <= start && end <= other.end;
        if seq > self.snapshot || seq < self.family_deleted || self.column_deletions.iter().any(wider) {
            return Ok(Seen::Hidden);
        }
        self.column_deletions.push(ColumnDeletion { seq, start, end });
        Ok(Seen::Deletion)
    }

    fn see_family_deletion(&mut self, seq: SeqNo) -> Seen {
        if seq > self.snapshot || seq <= self.family_deleted {
            return Seen::Hidden;
        }
        self.family_deleted = seq;
        Seen::Deletion
    }

    fn see_row_deletion(&mut self, seq: SeqNo) -> Seen {
        if seq > self.snapshot || seq <= self.row_deleted {
            return Seen::Hidden;
        }
        self.row_deleted = seq;
        self.family_deleted = seq;
        Seen::Deletion
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAMILY: FamilyId = FamilyId(5);

    fn cell(qualifier: &str, timestamp: i64, seq: u64) -> (Vec<u8>, Vec<u8>) {
        (key::cell(b"row", FAMILY, qualifier.as_bytes(), timestamp, SeqNo(seq)), b"v".to_vec())
    }

    fn delete_column(qualifier: &str, start: i64, end: i64, seq: u64) -> (Vec<u8>, Vec<u8>) {
        let value = key::delete_column_value(start, end).to_vec();
        (key::delete_column(b"row", FAMILY, qualifier.as_bytes(), SeqNo(seq)), value)
    }

    /// The shown cells as (timestamp, version).
    fn shown(snapshot: u64, mut entries: Vec<(Vec<u8>, Vec<u8>)>) -> Vec<(i64, u32)> {
        entries.sort();
        let mut visibility = Visibility::new(SeqNo(snapshot));
        let mut shown = Vec::new();
        for (key, value) in &entries {
            if let Seen::Cell { version } = visibility.see(key, value).unwrap() {
                shown.push((visibility.timestamp(), version));
            }
        }
        shown
    }

    #[test]
    fn the_later_write_of_one_timestamp_wins() {
        assert_eq!(shown(9, vec![cell("a", 5, 1), cell("a", 5, 2), cell("a", 3, 3)]), [(5, 0), (3, 1)]);
        assert_eq!(shown(1, vec![cell("a", 5, 1), cell("a", 5, 2)]), [(5, 0)]);
    }

    #[test]
    fn a_deletion_hides_only_what_was_written_before_it() {
        let row = (key::delete_row(b"row", SeqNo(4)), Vec::new());
        let family = (key::delete_family(b"row", FAMILY, SeqNo(4)), Vec::new());
        for deletion in [row, family, delete_column("a", 0, i64::MAX, 4)] {
            let entries = vec![cell("a", 9, 3), cell("a", 2, 5), deletion];
            assert_eq!(shown(9, entries.clone()), [(2, 0)]);
            assert_eq!(shown(3, entries), [(9, 0)]);
        }
    }

    #[test]
    fn a_column_deletion_hides_its_time_range_in_its_column() {
        let entries =
            vec![cell("a", 1, 1), cell("a", 5, 2), cell("a", 9, 3), cell("b", 5, 4), delete_column("a", 5, 9, 7)];
        assert_eq!(shown(9, entries), [(9, 0), (1, 1), (5, 0)]);
        let entries = vec![cell("a", i64::MAX, 1), delete_column("a", 5, i64::MAX, 7)];
        assert_eq!(shown(9, entries), []);
    }

    #[test]
    fn a_row_deletion_reaches_every_family_of_its_row_only() {
        let entries = vec![
            (key::delete_row(b"row", SeqNo(4)), Vec::new()),
            (key::cell(b"row", FamilyId(300), b"q", 1, SeqNo(3)), Vec::new()),
            (key::cell(b"rox", FAMILY, b"q", 2, SeqNo(3)), Vec::new()),
        ];
        assert_eq!(shown(9, entries), [(2, 0)]);
    }

    #[test]
    fn covered_deletions_are_hidden() {
        let entries = [
            (key::delete_row(b"row", SeqNo(4)), Vec::new(), Seen::Deletion),
            (key::delete_row(b"row", SeqNo(3)), Vec::new(), Seen::Hidden),
            (key::delete_row(b"row", SeqNo(3)), Vec::new(), Seen::Hidden),
            (key::delete_family(b"row", FAMILY, SeqNo(2)), Vec::new(), Seen::Hidden),
            (delete_column("a", 0, 9, 9).0, delete_column("a", 0, 9, 9).1, Seen::Deletion),
            (delete_column("a", 0, 9, 8).0, delete_column("a", 0, 8, 8).1, Seen::Hidden),
            (delete_column("a", 0, 9, 7).0, delete_column("a", 0, 10, 7).1, Seen::Deletion),
            (delete_column("a", 0, 9, 1).0, delete_column("a", 0, 50, 1).1, Seen::Hidden),
        ];
        let mut visibility = Visibility::new(SeqNo(99));
        for (key, value, expected) in entries {
            assert_eq!(visibility.see(&key, &value).unwrap(), expected);
        }
    }
}
