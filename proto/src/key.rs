//! Internal keys: one memcomparable byte string per cell or deletion, so that comparing is `memcmp`.
//!
//! ```text
//! key     := row FAMILY suffix                          a whole-row deletion, FAMILY = 0
//!          | row FAMILY 0x00 suffix                     a whole-family deletion
//!          | row FAMILY 0x01 qualifier suffix           a cell, or a column deletion
//! row, qualifier := bytes, each 0x00 as 0x00 0xFF, then 0x00 0x01
//! FAMILY  := length n (1 byte), family id in n bytes, big endian, no leading zero
//! suffix  := !(timestamp + 2^63) (8 bytes, big endian), !sequence number (8 bytes, big endian), kind (1 byte)
//! ```
//! Order: row, family, (family deletion first), qualifier, timestamp descending, sequence number
//! descending, kind. Deletions carry timestamp `i64::MAX`, and so stand before all that they hide.

use bytes::Bytes;

use crate::codec::DecodeError;
use crate::id::{FamilyId, SeqNo};

/// Bytes of a key's suffix: timestamp, sequence number, kind.
pub const SUFFIX_BYTES: usize = 17;
const ESCAPED_ZERO: [u8; 2] = [0x00, 0xFF];
const TERMINATOR: [u8; 2] = [0x00, 0x01];
const TAG_FAMILY: u8 = 0x00;
const TAG_COLUMN: u8 = 0x01;

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A cell; its value is the entry's value.
    Cell = 1,
    /// Hides the column's earlier-written cells in a time range; value: start, end (8 bytes each,
    /// little endian; start inclusive, end exclusive, end `i64::MAX` = no bound).
    DeleteColumn = 2,
    /// Hides all earlier-written cells of the family in this row.
    DeleteFamily = 3,
    /// Hides all earlier-written cells of the row.
    DeleteRow = 4,
}

impl Kind {
    fn from_u8(byte: u8) -> Option<Kind> {
        [Kind::Cell, Kind::DeleteColumn, Kind::DeleteFamily, Kind::DeleteRow].into_iter().find(|k| *k as u8 == byte)
    }
}

/// Appends the escaped, terminated form of `row`: the prefix of all its keys and of no other row's.
pub fn put_row(out: &mut Vec<u8>, row: &[u8]) {
    put_escaped(out, row);
}

/// The prefix of all keys of `row`.
pub fn row_prefix(row: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(row.len() + 2);
    put_row(&mut out, row);
    out
}

/// The smallest key at or after which all keys of rows `>= row` stand (a seek target); `row` may be
/// empty, for the first key of all.
pub fn row_lower_bound(row: &[u8]) -> Vec<u8> {
    // Escaped without its terminator: a prefix of, hence not above, any key of this or a later row,
    // and above every key of an earlier one, since their terminators sort first.
    let mut out = Vec::with_capacity(row.len());
    escape(&mut out, row);
    out
}

/// Appends the prefix of all keys of one family of a row.
pub fn put_family(out: &mut Vec<u8>, family: FamilyId) {
    let bytes = family.0.to_be_bytes();
    let zeros = family.0.leading_zeros() as usize / 8;
    out.push((8 - zeros) as u8);
    out.extend_from_slice(&bytes[zeros..]);
}

/// Appends what stands before the suffix in the key of a family's deletion, given the row's prefix in `out`.
pub fn put_family_deletion(out: &mut Vec<u8>, family: FamilyId) {
    put_family(out, family);
    out.push(TAG_FAMILY);
}

/// Appends the prefix of all keys of one column, given the row's prefix in `out`.
pub fn put_column(out: &mut Vec<u8>, family: FamilyId, qualifier: &[u8]) {
    put_family(out, family);
    out.push(TAG_COLUMN);
    put_escaped(out, qualifier);
}

/// Appends timestamp, sequence number and kind.
pub fn put_suffix(out: &mut Vec<u8>, timestamp: i64, seq: SeqNo, kind: Kind) {
    out.extend_from_slice(&(!((timestamp as u64) ^ (1 << 63))).to_be_bytes());
    out.extend_from_slice(&(!seq.0).to_be_bytes());
    out.push(kind as u8);
}

/// The key of a cell.
pub fn cell(row: &[u8], family: FamilyId, qualifier: &[u8], timestamp: i64, seq: SeqNo) -> Vec<u8> {
    let mut out = Vec::with_capacity(row.len() + qualifier.len() + SUFFIX_BYTES + 8);
    put_row(&mut out, row);
    put_column(&mut out, family, qualifier);
    put_suffix(&mut out, timestamp, seq, Kind::Cell);
    out
}

/// The key of a column deletion.
pub fn delete_column(row: &[u8], family: FamilyId, qualifier: &[u8], seq: SeqNo) -> Vec<u8> {
    let mut out = row_prefix(row);
    put_column(&mut out, family, qualifier);
    put_suffix(&mut out, i64::MAX, seq, Kind::DeleteColumn);
    out
}

/// The value of a column deletion: it hides timestamps in `[start, end)`; `i64::MAX` = no end.
pub fn delete_column_value(start: i64, end: i64) -> [u8; 16] {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&start.to_le_bytes());
    out[8..].copy_from_slice(&end.to_le_bytes());
    out
}

/// The time range in the value of a column deletion.
pub fn parse_delete_column_value(value: &[u8]) -> Result<(i64, i64), DecodeError> {
    let error = DecodeError { what: "column deletion", offset: 0, why: "not 16 bytes" };
    let value: &[u8; 16] = value.try_into().map_err(|_| error)?;
    let (start, end) = value.split_at(8);
    let part = |bytes: &[u8]| i64::from_le_bytes(bytes.try_into().expect("half of 16"));
    Ok((part(start), part(end)))
}

/// The key of a family deletion.
pub fn delete_family(row: &[u8], family: FamilyId, seq: SeqNo) -> Vec<u8> {
    let mut out = row_prefix(row);
    put_family_deletion(&mut out, family);
    put_suffix(&mut out, i64::MAX, seq, Kind::DeleteFamily);
    out
}

/// The key of a row deletion.
pub fn delete_row(row: &[u8], seq: SeqNo) -> Vec<u8> {
    let mut out = row_prefix(row);
    put_family(&mut out, FamilyId(0));
    put_suffix(&mut out, i64::MAX, seq, Kind::DeleteRow);
    out
}

/// A key taken apart; the pieces are still escaped slices of the key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyRef<'a> {
    /// The whole key.
    pub key: &'a [u8],
    /// Length of the row's prefix (escaped, with terminator).
    pub row_len: usize,
    /// Length of the prefix up to the suffix: the column.
    pub column_len: usize,
    /// The family; 0 for a row deletion.
    pub family: FamilyId,
    /// Microseconds.
    pub timestamp: i64,
    /// When it was written.
    pub seq: SeqNo,
    /// What it is.
    pub kind: Kind,
    qualifier_at: usize,
}

impl<'a> KeyRef<'a> {
    /// Takes `key` apart.
    pub fn parse(key: &'a [u8]) -> Result<KeyRef<'a>, DecodeError> {
        let error = |offset, why| DecodeError { what: "key", offset, why };
        let row_len = terminated_len(key).ok_or_else(|| error(key.len(), "row without end"))?;
        let column_len = key.len().checked_sub(SUFFIX_BYTES).filter(|len| *len > row_len);
        let column_len = column_len.ok_or_else(|| error(key.len(), "ends early"))?;
        let digits = key[row_len] as usize;
        let family_end = row_len + 1 + digits;
        if digits > 8 || family_end > column_len || (digits > 0 && key[row_len + 1] == 0) {
            return Err(error(row_len, "bad family"));
        }
        let family = key[row_len + 1..family_end].iter().fold(0u64, |id, byte| id << 8 | u64::from(*byte));
        let (timestamp, seq, kind) = parse_suffix(&key[column_len..]).ok_or_else(|| error(column_len, "bad kind"))?;
        let qualifier_at = match (kind, digits, key.get(family_end).filter(|_| family_end < column_len)) {
            (Kind::DeleteRow, 0, None) => column_len,
            (Kind::DeleteFamily, 1.., Some(&TAG_FAMILY)) if family_end + 1 == column_len => column_len,
            (Kind::Cell | Kind::DeleteColumn, 1.., Some(&TAG_COLUMN)) => {
                let len = terminated_len(&key[family_end + 1..column_len]);
                if len != Some(column_len - family_end - 1) {
                    return Err(error(family_end + 1, "bad qualifier"));
                }
                family_end + 1
            }
            _ => return Err(error(family_end, "kind does not fit the column")),
        };
        Ok(KeyRef { key, row_len, column_len, family: FamilyId(family), timestamp, seq, kind, qualifier_at })
    }

    /// The row's prefix, escaped: equal for the keys of one row only.
    pub fn row_prefix(&self) -> &'a [u8] {
        &self.key[..self.row_len]
    }

    /// Row, family and qualifier, escaped: equal for the cells of one column only.
    pub fn column_prefix(&self) -> &'a [u8] {
        &self.key[..self.column_len]
    }

    /// The row key.
    pub fn row(&self) -> Bytes {
        unescape(&self.key[..self.row_len])
    }

    /// Where the qualifier, escaped and terminated, starts within the column's prefix.
    pub fn qualifier_at(&self) -> usize {
        self.qualifier_at
    }

    /// The qualifier; empty for row and family deletions too.
    pub fn qualifier(&self) -> Bytes {
        unescape(&self.key[self.qualifier_at..self.column_len])
    }
}

/// Length of the row's prefix of a well-formed key.
pub fn row_prefix_len(key: &[u8]) -> Option<usize> {
    terminated_len(key)
}

/// The row key in a row's prefix.
pub fn row_of_prefix(prefix: &[u8]) -> Bytes {
    unescape(prefix)
}

/// Appends the bytes behind a terminated, well-formed escape: the row key of a row's prefix.
pub fn put_unescaped(out: &mut Vec<u8>, escaped: &[u8]) {
    let body = &escaped[..escaped.len().saturating_sub(2)];
    let mut rest = body;
    while let Some(at) = rest.iter().position(|byte| *byte == 0) {
        out.extend_from_slice(&rest[..=at]);
        rest = &rest[(at + 2).min(rest.len())..];
    }
    out.extend_from_slice(rest);
}

/// Timestamp, sequence number and kind: the last [`SUFFIX_BYTES`] of a key.
#[inline]
pub fn read_suffix(suffix: &[u8]) -> Result<(i64, SeqNo, Kind), DecodeError> {
    let error = DecodeError { what: "key", offset: 0, why: "bad suffix" };
    if suffix.len() != SUFFIX_BYTES {
        return Err(error);
    }
    parse_suffix(suffix).ok_or(error)
}

/// The sequence number of a well-formed key.
pub fn seq_of(key: &[u8]) -> Option<SeqNo> {
    let at = key.len().checked_sub(9)?;
    let bytes: [u8; 8] = key[at..at + 8].try_into().expect("8 bytes");
    Some(SeqNo(!u64::from_be_bytes(bytes)))
}

fn parse_suffix(suffix: &[u8]) -> Option<(i64, SeqNo, Kind)> {
    let word = |at: usize| u64::from_be_bytes(suffix[at..at + 8].try_into().expect("8 bytes"));
    let kind = Kind::from_u8(suffix[16])?;
    Some(((!word(0) ^ (1 << 63)) as i64, SeqNo(!word(8)), kind))
}

fn escape(out: &mut Vec<u8>, bytes: &[u8]) {
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == 0) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(&ESCAPED_ZERO);
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

fn put_escaped(out: &mut Vec<u8>, bytes: &[u8]) {
    escape(out, bytes);
    out.extend_from_slice(&TERMINATOR);
}

/// Length up to and including the terminator; None without one or with a bad escape.
fn terminated_len(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += bytes[at..].iter().position(|byte| *byte == 0)?;
        match *bytes.get(at + 1)? {
            0x01 => return Some(at + 2),
            0xFF => at += 2,
            _ => return None,
        }
    }
}

/// The bytes behind a terminated, well-formed escape (or behind nothing).
fn unescape(escaped: &[u8]) -> Bytes {
    let body = &escaped[..escaped.len().saturating_sub(2)];
    if !body.contains(&0) {
        return Bytes::copy_from_slice(body);
    }
    let mut out = Vec::with_capacity(body.len());
    let mut rest = body;
    while let Some(at) = rest.iter().position(|byte| *byte == 0) {
        out.extend_from_slice(&rest[..=at]);
        rest = &rest[at + 2..];
    }
    out.extend_from_slice(rest);
    out.into()
}

#[cfg(test)]
mod tests;
