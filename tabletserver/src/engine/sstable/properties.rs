//! What a file says about itself.

use bytes::{BufMut, Bytes};
use uruk_proto::codec::{Reader, put_bytes, put_varint};
use uruk_proto::key::{self, KeyRef, Kind};
use uruk_proto::schema::FilterOn;
use uruk_proto::{DecodeError, FamilyId, SeqNo};

use super::skip::{Facts, family_bit};

const FILTER_ROW: u64 = 1;
const FILTER_ROW_COLUMN: u64 = 2;

/// Counts and bounds of a file's entries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Properties {
    /// The first key.
    pub key_min: Bytes,
    /// The last key.
    pub key_max: Bytes,
    /// Smallest timestamp of a cell; `i64::MAX` without cells.
    pub timestamp_min: i64,
    /// Largest timestamp of a cell; `i64::MIN` without cells.
    pub timestamp_max: i64,
    /// Smallest sequence number.
    pub seq_min: SeqNo,
    /// Largest sequence number.
    pub seq_max: SeqNo,
    /// Cells.
    pub cells: u64,
    /// Deletions of every kind.
    pub deletions: u64,
    /// Rows with any entry.
    pub rows: u64,
    /// Bytes of all keys and values.
    pub raw_bytes: u64,
    /// When the file was written, microseconds of wall time; 0 in files of version 1.
    pub written_micros: i64,
    /// Which families it has entries of, ascending; None (unknown) in files before version 3.
    pub families: Option<Vec<FamilyId>>,
    /// Deletions of whole rows; 0 in files before version 3.
    pub row_deletions: u64,
    /// What its partitions' filters know; None before version 4, and without filters.
    pub filter: Option<FilterOn>,
}

impl Properties {
    /// Of a file without entries.
    pub fn empty() -> Properties {
        Properties {
            key_min: Bytes::new(),
            key_max: Bytes::new(),
            timestamp_min: i64::MAX,
            timestamp_max: i64::MIN,
            seq_min: SeqNo::MAX,
            seq_max: SeqNo::ZERO,
            cells: 0,
            deletions: 0,
            rows: 0,
            raw_bytes: 0,
            written_micros: 0,
            families: Some(Vec::new()),
            row_deletions: 0,
            filter: None,
        }
    }

    /// Counts an entry (but neither its row nor its key as a bound).
    pub fn add(&mut self, key: &KeyRef<'_>, bytes: usize) {
        match key.kind {
            Kind::Cell => self.cells += 1,
            Kind::DeleteColumn | Kind::DeleteFamily => self.deletions += 1,
            Kind::DeleteRow => {
                self.deletions += 1;
                self.row_deletions += 1;
            }
        }
        if let (Some(families), false) = (&mut self.families, key.kind == Kind::DeleteRow)
            && let Err(at) = families.binary_search(&key.family)
        {
            families.insert(at, key.family);
        }
        self.seq_min = self.seq_min.min(key.seq);
        self.seq_max = self.seq_max.max(key.seq);
        self.raw_bytes += bytes as u64;
    }

    /// What a reader may skip the file by.
    pub fn facts(&self) -> Facts {
        Facts {
            timestamp_min: self.timestamp_min,
            timestamp_max: self.timestamp_max,
            families: match &self.families {
                Some(families) => families.iter().fold(0, |bits, family| bits | family_bit(*family)),
                None => u64::MAX,
            },
            has_deletions: self.deletions > 0,
            has_row_deletions: self.row_deletions > 0,
        }
    }

    /// Whether it may have entries of one of these families.
    pub fn may_have(&self, families: &[FamilyId]) -> bool {
        self.families.as_ref().is_none_or(|own| families.iter().any(|family| own.binary_search(family).is_ok()))
    }

    /// Takes over the times that the file's blocks hold, all together.
    pub fn set_facts(&mut self, facts: &Facts) {
        (self.timestamp_min, self.timestamp_max) = (facts.timestamp_min, facts.timestamp_max);
    }

    /// Entries of all kinds.
    pub fn entries(&self) -> u64 {
        self.cells + self.deletions
    }

    /// Appends the stored form.
    pub fn put(&self, out: &mut Vec<u8>) {
        put_bytes(out, &self.key_min);
        put_bytes(out, &self.key_max);
        out.put_i64_le(self.timestamp_min);
        out.put_i64_le(self.timestamp_max);
        for number in [self.seq_min.0, self.seq_max.0, self.cells, self.deletions, self.rows, self.raw_bytes] {
            put_varint(out, number);
        }
        put_varint(out, self.written_micros.max(0) as u64);
        if let Some(families) = &self.families {
            put_varint(out, self.row_deletions);
            put_varint(out, families.len() as u64);
            families.iter().for_each(|family| put_varint(out, family.0));
            match self.filter {
                None => {}
                Some(FilterOn::Row) => put_varint(out, FILTER_ROW),
                Some(FilterOn::RowColumn) => put_varint(out, FILTER_ROW_COLUMN),
            }
        }
    }

    /// Reads the stored form.
    pub fn parse(bytes: Bytes) -> Result<Properties, DecodeError> {
        let mut reader = Reader::new("properties", bytes);
        let (key_min, key_max) = (reader.bytes()?, reader.bytes()?);
        if key::row_prefix_len(&key_min).is_none() || key::row_prefix_len(&key_max).is_none() || key_min > key_max {
            return Err(reader.error("bad key range"));
        }
        let mut properties = Properties {
            // Copies: the block that they lie in need not stay.
            key_min: Bytes::copy_from_slice(&key_min),
            key_max: Bytes::copy_from_slice(&key_max),
            timestamp_min: reader.i64()?,
            timestamp_max: reader.i64()?,
            seq_min: SeqNo(reader.varint()?),
            seq_max: SeqNo(reader.varint()?),
            cells: reader.varint()?,
            deletions: reader.varint()?,
            rows: reader.varint()?,
            raw_bytes: reader.varint()?,
            written_micros: if reader.is_at_end() { 0 } else { reader.varint()?.min(i64::MAX as u64) as i64 },
            families: None,
            row_deletions: 0,
            filter: None,
        };
        if !reader.is_at_end() {
            properties.row_deletions = reader.varint()?;
            let count = reader.varint()?;
            let mut families = Vec::new();
            for _ in 0..count {
                families.push(FamilyId(reader.varint()?));
            }
            if !families.is_sorted_by(|a, b| a < b) {
                return Err(reader.error("families out of order"));
            }
            properties.families = Some(families);
        }
        if !reader.is_at_end() {
            properties.filter = Some(match reader.varint()? {
                FILTER_ROW => FilterOn::Row,
                FILTER_ROW_COLUMN => FilterOn::RowColumn,
                _ => return Err(reader.error("unknown kind of filter")),
            });
        }
        if !reader.is_at_end() {
            return Err(reader.error("more bytes than properties"));
        }
        Ok(properties)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn properties_survive(numbers in any::<[u64; 6]>(), times in any::<[i64; 2]>(), row in prop::collection::vec(any::<u8>(), 1..9)) {
            let properties = Properties {
                key_min: key::delete_row(&row, SeqNo(2)).into(),
                key_max: key::delete_row(&row, SeqNo(1)).into(),
                timestamp_min: times[0],
                timestamp_max: times[1],
                seq_min: SeqNo(numbers[0]),
                seq_max: SeqNo(numbers[1]),
                cells: numbers[2],
                deletions: numbers[3],
                rows: numbers[4],
                raw_bytes: numbers[5],
                written_micros: 1 + (numbers[0] >> 1) as i64 / 2,
                families: Some(vec![FamilyId(3), FamilyId(300)]),
                row_deletions: 7,
                filter: Some(FilterOn::RowColumn),
            };
            let mut out = Vec::new();
            properties.put(&mut out);
            prop_assert_eq!(Properties::parse(out.clone().into()).unwrap(), properties.clone());
            let old = Properties { filter: None, ..properties.clone() };
            let mut out = Vec::new();
            old.put(&mut out);
            prop_assert_eq!(Properties::parse(out.into()).unwrap(), old, "as version 3 wrote it");
            let old = Properties { families: None, row_deletions: 0, filter: None, ..properties.clone() };
            let mut out = Vec::new();
            old.put(&mut out);
            prop_assert_eq!(Properties::parse(out.into()).unwrap(), old.clone(), "as version 2 wrote it");
            let old = Properties { written_micros: 0, ..old };
            let mut out = Vec::new();
            old.put(&mut out);
            out.pop();
            prop_assert_eq!(Properties::parse(out.clone().into()).unwrap(), old, "as version 1 wrote it");
            out.pop();
            prop_assert!(Properties::parse(out.into()).is_err());
        }
    }
}
