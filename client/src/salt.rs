//! Salted tables: rows spread over as many ranges as the schema says, by a byte before each row key.
//!
//! In an ordered store, keys that only grow (times, sequence numbers) all go to the last tablet. A
//! salted table keeps each row behind a prefix that a hash of its key chooses, so that neighbours live
//! apart; scans read all prefixes side by side and put the rows back in order.
//!
//! Invariants: (1) a row's prefix follows from its key and the table's salt alone, for ever: both hash
//! and salt are part of the stored format (`docs/formats.md`, "Salted row keys"); (2) callers never see
//! a prefix, servers never see a key without; (3) a table's salt never changes: a table of the same name
//! with another salt is another table, and what was made for the first is refused, not misplaced.

use bytes::{BufMut, Bytes, BytesMut};
use uruk_proto::limits::ROW_KEY_BYTES_MAX;
use uruk_proto::schema::TableSchema;
use uruk_proto::{ErrorCode, RowRange};

use crate::error::{Error, Outcome, Result};
use crate::mutation::check_row_key;

/// FNV-1a, 64 bits: <https://datatracker.ietf.org/doc/html/draft-eastlake-fnv>.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// How a table's rows are spread.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Salt {
    /// 0: not at all; else 2 to 256.
    prefixes: u32,
}

impl Salt {
    /// That of a table.
    pub fn of(schema: &TableSchema) -> Salt {
        Salt { prefixes: if schema.salt < 2 { 0 } else { schema.salt } }
    }

    /// Whether rows are stored under their own keys.
    pub fn is_none(self) -> bool {
        self.prefixes == 0
    }

    /// The key under which the row is stored.
    ///
    /// # Errors
    /// The key is empty or too long.
    pub fn row(self, key: &Bytes) -> Result<Bytes> {
        check_row_key(key)?;
        if self.is_none() {
            return Ok(key.clone());
        }
        if key.len() >= ROW_KEY_BYTES_MAX {
            let (bytes, most) = (key.len(), ROW_KEY_BYTES_MAX - 1);
            return Err(Error::invalid(format!("row key of {bytes} bytes; the limit is {most} in a salted table")));
        }
        Ok(behind(self.prefix_of(key), key))
    }

    /// The row's own key.
    ///
    /// # Errors
    /// The row is not stored where this table's rows are.
    pub fn key(self, row: &Bytes) -> Result<Bytes> {
        match row.first() {
            _ if self.is_none() => Ok(row.clone()),
            Some(prefix) if u32::from(*prefix) < self.prefixes && row.len() > 1 => Ok(row.slice(1..)),
            Some(_) | None => {
                let row = row.escape_ascii();
                Err(Error::bad_response(format!("row \"{row}\" of a salted table has no good prefix")))
            }
        }
    }

    /// Where the rows of `range` are stored: one range for each prefix.
    pub fn ranges(self, range: &RowRange) -> Vec<RowRange> {
        if self.is_none() {
            return vec![range.clone()];
        }
        let prefixes = (0..self.prefixes).map(|prefix| prefix as u8);
        let stored = prefixes.map(|prefix| RowRange {
            // No row has an empty key, so nothing is stored under the bare prefix.
            start: if range.start.is_empty() { behind(prefix, &[0]) } else { behind(prefix, &range.start) },
            end: match (range.end.is_empty(), prefix.checked_add(1)) {
                (false, _) => behind(prefix, &range.end),
                (true, Some(next)) => Bytes::copy_from_slice(&[next]),
                (true, None) => Bytes::new(),
            },
        });
        stored.collect()
    }

    /// Row keys at which a new table's tablets start: one tablet for each prefix at least, cut at
    /// `splits` as well.
    pub fn splits(self, splits: &[Bytes]) -> Vec<Bytes> {
        if self.is_none() {
            return splits.to_vec();
        }
        let mut all = Vec::with_capacity(self.prefixes as usize * (splits.len() + 1));
        for prefix in 0..self.prefixes {
            let prefix = prefix as u8;
            if prefix > 0 {
                all.push(behind(prefix, &[]));
            }
            all.extend(splits.iter().map(|split| behind(prefix, split)));
        }
        all
    }

    /// What was made for this salt must not reach a table with another.
    pub fn check(self, schema: &TableSchema) -> Result<()> {
        if self == Salt::of(schema) {
            return Ok(());
        }
        let message = format!("table {} was made anew with another salt; open it again", schema.name);
        Err(Error::Refused { code: ErrorCode::FailedPrecondition, message, outcome: Outcome::NotDone })
    }

    fn prefix_of(self, key: &[u8]) -> u8 {
        // Multiply and shift: even over any number of prefixes, without a division.
        let prefix = (u128::from(hash(key)) * u128::from(self.prefixes)) >> 64;
        u8::try_from(prefix).expect("at most 256 prefixes")
    }
}

/// FNV-1a, then MurmurHash3's 64-bit finalizer: FNV leaves the high bits of short keys nearly alike.
fn hash(key: &[u8]) -> u64 {
    let mut hash = FNV_OFFSET;
    for byte in key {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

fn behind(prefix: u8, key: &[u8]) -> Bytes {
    let mut row = BytesMut::with_capacity(key.len() + 1);
    row.put_u8(prefix);
    row.put_slice(key);
    row.freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn salt(prefixes: u32) -> Salt {
        Salt::of(&TableSchema { salt: prefixes, ..TableSchema::default() })
    }

    #[test]
    fn prefixes_are_those_of_the_format() {
        // The examples of docs/formats.md: they never change.
        let prefixes =
            |key: &'static str| [2, 16, 256].map(|n| salt(n).row(&Bytes::from_static(key.as_bytes())).unwrap()[0]);
        let examples = ["a", "b", "row-000001", "row-000002", "2026-11-21T00:00:00Z"].map(prefixes);
        assert_eq!(examples, EXAMPLES);
    }

    const EXAMPLES: [[u8; 3]; 5] = [[1, 8, 130], [0, 6, 110], [1, 12, 196], [0, 4, 69], [0, 1, 26]];

    #[test]
    fn sequential_keys_spread_evenly() {
        for prefixes in [2, 3, 16, 100, 256] {
            let mut counts = vec![0u32; prefixes as usize];
            for n in 0..prefixes * 200 {
                let row = salt(prefixes).row(&Bytes::from(format!("2026-{n:012}"))).unwrap();
                counts[usize::from(row[0])] += 1;
            }
            assert!(counts.iter().all(|count| (130..=270).contains(count)), "{prefixes}: {counts:?}");
        }
    }

    #[test]
    fn a_salt_of_nought_or_one_is_none() {
        for none in [0, 1] {
            let key = Bytes::from_static(b"k");
            assert_eq!(salt(none).row(&key).unwrap(), key);
            assert_eq!(salt(none).key(&key).unwrap(), key);
            assert_eq!(salt(none).ranges(&RowRange::ALL), [RowRange::ALL]);
            assert_eq!(salt(none).splits(std::slice::from_ref(&key)), [key]);
        }
    }

    #[test]
    fn the_prefix_counts_for_the_longest_key() {
        let longest = |bytes: usize| Bytes::from(vec![b'k'; bytes]);
        assert_eq!(salt(4).row(&longest(4095)).unwrap().len(), 4096);
        let error = salt(4).row(&longest(4096)).unwrap_err().to_string();
        assert_eq!(error, "row key of 4096 bytes; the limit is 4095 in a salted table");
        assert!(salt(0).row(&longest(4096)).is_ok());
        assert!(salt(4).row(&Bytes::new()).is_err());
    }

    #[test]
    fn splits_cut_every_prefix() {
        let splits = salt(3).splits(&[Bytes::from_static(b"m")]);
        assert_eq!(splits, [&b"\0m"[..], b"\x01", b"\x01m", b"\x02", b"\x02m"]);
        assert_eq!(salt(256).splits(&[]).len(), 255);
    }

    #[test]
    fn rows_without_a_good_prefix_are_refused() {
        for row in [&b""[..], b"\0", b"\x03k"] {
            assert!(salt(3).key(&Bytes::copy_from_slice(row)).is_err(), "{row:?}");
        }
    }

    proptest! {
        #[test]
        fn a_range_holds_a_row_just_if_one_of_its_stored_ranges_does(
            prefixes in 2u32..=256,
            key in prop::collection::vec(any::<u8>(), 1..4),
            start in prop::collection::vec(any::<u8>(), 0..4),
            end in prop::collection::vec(any::<u8>(), 0..4),
        ) {
            let (salt, range) = (salt(prefixes), RowRange::new(start, end));
            let row = salt.row(&Bytes::from(key.clone())).unwrap();
            prop_assert_eq!(&salt.key(&row).unwrap(), &key);
            let stored = salt.ranges(&range);
            prop_assert_eq!(stored.len(), prefixes as usize);
            let holds = stored.iter().filter(|range| range.contains(&row)).count();
            prop_assert_eq!(holds, usize::from(range.contains(&key)));
        }
    }
}
