//! Changes of rows, with families by name; packed with ids for the wire.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use uruk_proto::mutation::{Mutation as Packed, SERVER_TIME, unpack};
use uruk_proto::schema::{TableSchema, validate_row_key};
use uruk_proto::{FamilyId, limits};

use crate::error::{Error, Result, from_check};

/// One change of a row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mutation {
    family: Cow<'static, str>,
    change: Change,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Change {
    Set { qualifier: Bytes, timestamp: i64, value: Bytes },
    DeleteColumn { qualifier: Bytes, timestamps: Range<i64> },
    DeleteFamily,
    DeleteRow,
}

impl Mutation {
    /// Sets a cell, at the server's time unless [`Mutation::at`] gives another.
    pub fn set(family: impl Into<Cow<'static, str>>, qualifier: impl Into<Bytes>, value: impl Into<Bytes>) -> Mutation {
        let change = Change::Set { qualifier: qualifier.into(), timestamp: SERVER_TIME, value: value.into() };
        Mutation { family: family.into(), change }
    }

    /// Deletes all cells of a column.
    pub fn delete_column(family: impl Into<Cow<'static, str>>, qualifier: impl Into<Bytes>) -> Mutation {
        Mutation::delete_cells(family, qualifier, 0..i64::MAX)
    }

    /// Deletes a column's cells with timestamps (microseconds) in the range; `i64::MAX` is no end.
    pub fn delete_cells(
        family: impl Into<Cow<'static, str>>,
        qualifier: impl Into<Bytes>,
        timestamps: Range<i64>,
    ) -> Mutation {
        Mutation { family: family.into(), change: Change::DeleteColumn { qualifier: qualifier.into(), timestamps } }
    }

    /// Deletes all cells of a family in the row.
    pub fn delete_family(family: impl Into<Cow<'static, str>>) -> Mutation {
        Mutation { family: family.into(), change: Change::DeleteFamily }
    }

    /// Deletes the row.
    pub fn delete_row() -> Mutation {
        Mutation { family: Cow::Borrowed(""), change: Change::DeleteRow }
    }

    /// The same cell at this timestamp, in microseconds. Deletions have none, and stay as they are.
    pub fn at(mut self, micros: i64) -> Mutation {
        if let Change::Set { timestamp, .. } = &mut self.change {
            *timestamp = micros;
        }
        self
    }

    fn check(&self) -> Result<()> {
        let (qualifier, value_bytes) = match &self.change {
            Change::Set { qualifier, timestamp, value } => {
                if *timestamp < SERVER_TIME {
                    return Err(Error::invalid(format!("timestamp {timestamp} is negative")));
                }
                (qualifier, value.len())
            }
            Change::DeleteColumn { qualifier, timestamps } => {
                if timestamps.start < 0 || timestamps.is_empty() {
                    return Err(Error::invalid(format!("time range {timestamps:?} is empty or negative")));
                }
                (qualifier, 0)
            }
            Change::DeleteFamily | Change::DeleteRow => return Ok(()),
        };
        if value_bytes > limits::VALUE_BYTES_MAX {
            return Err(Error::invalid(format!(
                "value of {value_bytes} bytes; the limit is {}",
                limits::VALUE_BYTES_MAX
            )));
        }
        check_qualifier(qualifier)
    }

    fn to_packed(&self, schema: &TableSchema) -> Result<Packed> {
        if self.change == Change::DeleteRow {
            return Ok(Packed::DeleteFromRow);
        }
        let family = family_id(schema, &self.family)?;
        Ok(match &self.change {
            Change::Set { qualifier, timestamp, value } => {
                Packed::SetCell { family, qualifier: qualifier.clone(), timestamp: *timestamp, value: value.clone() }
            }
            Change::DeleteColumn { qualifier, timestamps } => Packed::DeleteFromColumn {
                family,
                qualifier: qualifier.clone(),
                start: timestamps.start,
                end: timestamps.end,
            },
            Change::DeleteFamily => Packed::DeleteFromFamily { family },
            Change::DeleteRow => Packed::DeleteFromRow,
        })
    }

    fn bytes(&self) -> usize {
        match &self.change {
            Change::Set { qualifier, value, .. } => qualifier.len() + value.len() + 32,
            Change::DeleteColumn { qualifier, .. } => qualifier.len() + 40,
            Change::DeleteFamily | Change::DeleteRow => 16,
        }
    }
}

/// A row's changes: all of them happen, at one moment, or none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RowMutation {
    /// The row key.
    pub key: Bytes,
    /// In order; a later one prevails over an earlier one.
    pub mutations: Vec<Mutation>,
}

impl RowMutation {
    /// Changes `key` by `mutations`.
    pub fn new(key: impl Into<Bytes>, mutations: Vec<Mutation>) -> RowMutation {
        RowMutation { key: key.into(), mutations }
    }
}

/// A rule of a read-modify-write. Rules apply in order, each to the newest cell of its column.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadModifyWriteRule {
    pub(crate) family: Cow<'static, str>,
    pub(crate) qualifier: Bytes,
    pub(crate) rule: RuleKind,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum RuleKind {
    Append(Bytes),
    Increment(i64),
}

impl ReadModifyWriteRule {
    /// Appends bytes to the value; a missing cell counts as empty.
    pub fn append(
        family: impl Into<Cow<'static, str>>,
        qualifier: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> ReadModifyWriteRule {
        let rule = RuleKind::Append(value.into());
        ReadModifyWriteRule { family: family.into(), qualifier: qualifier.into(), rule }
    }

    /// Adds to the value, a 64-bit big-endian integer; a missing or empty cell counts as 0.
    pub fn increment(
        family: impl Into<Cow<'static, str>>,
        qualifier: impl Into<Bytes>,
        by: i64,
    ) -> ReadModifyWriteRule {
        let rule = RuleKind::Increment(by);
        ReadModifyWriteRule { family: family.into(), qualifier: qualifier.into(), rule }
    }
}

/// The id of the family of this name.
pub(crate) fn family_id(schema: &TableSchema, name: &str) -> Result<FamilyId> {
    let family = schema.family(name).map(|family| family.id);
    family.ok_or_else(|| Error::UnknownFamily { table: schema.name.clone(), family: name.to_owned() })
}

/// Row keys: 1 byte to 4 KiB.
pub(crate) fn check_row_key(key: &[u8]) -> Result<()> {
    validate_row_key(key).map_err(from_check)
}

pub(crate) fn check_qualifier(qualifier: &[u8]) -> Result<()> {
    if qualifier.len() <= limits::QUALIFIER_BYTES_MAX {
        return Ok(());
    }
    Err(Error::invalid(format!("qualifier of {} bytes; the limit is {}", qualifier.len(), limits::QUALIFIER_BYTES_MAX)))
}

/// Whether mutations of so many bytes fit one write.
pub(crate) fn check_row_write(bytes: usize) -> Result<()> {
    if bytes <= limits::ROW_WRITE_BYTES_MAX {
        return Ok(());
    }
    Err(Error::invalid(format!("row write of {bytes} bytes or more; the limit is {}", limits::ROW_WRITE_BYTES_MAX)))
}

/// Checks a row's mutations and packs them.
pub(crate) fn pack(schema: &TableSchema, mutations: &[Mutation]) -> Result<Bytes> {
    if mutations.is_empty() {
        return Err(Error::invalid("No mutations provided"));
    }
    if mutations.len() > limits::MUTATIONS_PER_ROW_MAX {
        return Err(Error::invalid(format!(
            "Too many mutations: {} provided; limit {}",
            mutations.len(),
            limits::MUTATIONS_PER_ROW_MAX
        )));
    }
    let bytes: usize = mutations.iter().map(Mutation::bytes).sum();
    let mut out = Vec::with_capacity(bytes.min(limits::ROW_WRITE_BYTES_MAX));
    for mutation in mutations {
        mutation.check()?;
        mutation.to_packed(schema)?.put(&mut out);
        check_row_write(out.len())?;
    }
    Ok(out.into())
}

/// The same mutations with the ids of a table that was made anew under the same name.
pub(crate) fn repack(packed: &Bytes, old: &TableSchema, new: &TableSchema) -> Result<Bytes> {
    if old.id == new.id || packed.is_empty() {
        return Ok(packed.clone());
    }
    let mut mutations = unpack(packed.clone()).expect("we packed it");
    for mutation in &mut mutations {
        match mutation {
            Packed::SetCell { family, .. }
            | Packed::DeleteFromColumn { family, .. }
            | Packed::DeleteFromFamily { family } => {
                let name = &old.family_by_id(*family).expect("it was packed with this schema").name;
                *family = family_id(new, name)?;
            }
            Packed::DeleteFromRow => {}
        }
    }
    Ok(uruk_proto::mutation::pack(&mutations))
}

#[cfg(test)]
mod tests {
    use uruk_proto::TableId;
    use uruk_proto::schema::{Family, GcRule};

    use super::*;

    fn schema(id: u64, first_family: u64) -> TableSchema {
        let family =
            |name: &str, id| Family { name: name.to_owned(), id: FamilyId(id), gc: GcRule::KeepAll, locality_group: 0 };
        let families = vec![family("a", first_family), family("b", first_family + 1)];
        TableSchema { id: TableId(id), name: "t".into(), version: 1, families, ..TableSchema::default() }
    }

    #[test]
    fn more_than_a_message_takes_is_refused_by_name_of_the_limit() {
        let value = Bytes::from(vec![0; 50 << 20]);
        let set = |qualifier: &'static str| Mutation::set("a", qualifier, value.clone());
        let schema = schema(1, 7);
        assert_eq!(pack(&schema, &[set("x"), set("y")]).unwrap().len() >> 20, 100);
        let error = pack(&schema, &[set("x"), set("y"), set("z")]).unwrap_err();
        assert!(error.to_string().contains("the limit is 125829120"), "{error}");
        let error = pack(&schema, &[Mutation::set("a", "x", vec![0; (100 << 20) + 1])]).unwrap_err();
        assert!(error.to_string().contains("the limit is 104857600"), "{error}");
    }

    #[test]
    fn names_become_ids() {
        let packed = pack(&schema(1, 7), &[Mutation::set("b", "q", "v").at(5), Mutation::delete_row()]).unwrap();
        let expected =
            Packed::SetCell { family: FamilyId(8), qualifier: Bytes::from("q"), timestamp: 5, value: Bytes::from("v") };
        assert_eq!(unpack(packed).unwrap(), [expected, Packed::DeleteFromRow]);
    }

    #[test]
    fn what_was_packed_fits_the_table_that_was_made_anew() {
        let mutations = [Mutation::set("a", "q", "v"), Mutation::delete_family("b"), Mutation::delete_column("a", "x")];
        let packed = pack(&schema(1, 7), &mutations).unwrap();
        assert_eq!(repack(&packed, &schema(1, 7), &schema(2, 20)), pack(&schema(2, 20), &mutations));
        let without_b = TableSchema { families: schema(2, 20).families[..1].to_vec(), ..schema(2, 20) };
        assert!(matches!(repack(&packed, &schema(1, 7), &without_b), Err(Error::UnknownFamily { .. })));
    }

    #[test]
    fn refuses_what_servers_would_refuse() {
        let why = |mutation: Mutation| pack(&schema(1, 7), &[mutation]).unwrap_err().to_string();
        assert_eq!(why(Mutation::set("x", "q", "v")), "Requested column family not found: table t has no family \"x\"");
        assert_eq!(why(Mutation::set("a", "q", "v").at(-2)), "timestamp -2 is negative");
        assert_eq!(why(Mutation::delete_cells("a", "q", 5..5)), "time range 5..5 is empty or negative");
        assert_eq!(
            why(Mutation::set("a", vec![b'q'; (16 << 10) + 1], "v")),
            "qualifier of 16385 bytes; the limit is 16384"
        );
        assert_eq!(
            why(Mutation::set("a", "q", vec![0; (100 << 20) + 1])),
            "value of 104857601 bytes; the limit is 104857600"
        );
        assert_eq!(pack(&schema(1, 7), &[]).unwrap_err().to_string(), "No mutations provided");
        let many = vec![Mutation::delete_row(); 100_001];
        assert_eq!(
            pack(&schema(1, 7), &many).unwrap_err().to_string(),
            "Too many mutations: 100001 provided; limit 100000"
        );
    }
}
