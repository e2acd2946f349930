//! What to read of a row.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use uruk_proto::schema::TableSchema;
use uruk_proto::tablet::ReadFilter;

use crate::error::{Error, Result};
use crate::mutation::{check_qualifier, family_id};

/// Lets some cells through. The default lets all through; each method narrows it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    families: Vec<Cow<'static, str>>,
    qualifiers: Qualifiers,
    /// Microseconds; an end of `i64::MAX` is no end.
    timestamps: Option<Range<i64>>,
    cells_per_column: u32,
    cells_per_row: u32,
    strip_values: bool,
    value: Option<Bytes>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
enum Qualifiers {
    #[default]
    All,
    Exactly(Bytes),
    Range(Bytes, Bytes),
}

impl Filter {
    /// Lets every cell through.
    pub fn all() -> Filter {
        Filter::default()
    }

    /// Also this family; without any, all families.
    pub fn family(mut self, family: impl Into<Cow<'static, str>>) -> Filter {
        self.families.push(family.into());
        self
    }

    /// Only this column.
    pub fn column(mut self, family: impl Into<Cow<'static, str>>, qualifier: impl Into<Bytes>) -> Filter {
        self.families = vec![family.into()];
        self.qualifiers = Qualifiers::Exactly(qualifier.into());
        self
    }

    /// Only qualifiers in `[start, end)`; an empty end is no end.
    pub fn qualifiers(mut self, start: impl Into<Bytes>, end: impl Into<Bytes>) -> Filter {
        self.qualifiers = Qualifiers::Range(start.into(), end.into());
        self
    }

    /// Only timestamps (microseconds) in the range; `i64::MAX` is no end.
    pub fn timestamps(mut self, range: Range<i64>) -> Filter {
        self.timestamps = Some(range);
        self
    }

    /// Only the newest `n` cells of each column; 0 for all.
    pub fn cells_per_column(mut self, n: u32) -> Filter {
        self.cells_per_column = n;
        self
    }

    /// Only the first `n` cells of each row; 0 for all.
    pub fn cells_per_row(mut self, n: u32) -> Filter {
        self.cells_per_row = n;
        self
    }

    /// Values come empty.
    pub fn strip_values(mut self) -> Filter {
        self.strip_values = true;
        self
    }

    /// Only cells with exactly this value.
    pub fn value(mut self, value: impl Into<Bytes>) -> Filter {
        self.value = Some(value.into());
        self
    }

    /// With ids for names, as the wire wants it.
    pub(crate) fn to_message(&self, schema: &TableSchema) -> Result<ReadFilter> {
        let mut families = Vec::with_capacity(self.families.len());
        for name in &self.families {
            families.push(family_id(schema, name)?.0);
        }
        let (exact, start, end) = match &self.qualifiers {
            Qualifiers::All => (false, Bytes::new(), Bytes::new()),
            Qualifiers::Exactly(qualifier) => (true, qualifier.clone(), Bytes::new()),
            Qualifiers::Range(start, end) => (false, start.clone(), end.clone()),
        };
        check_qualifier(&start)?;
        check_qualifier(&end)?;
        let (timestamp_min, timestamp_max) = match &self.timestamps {
            None => (0, 0),
            Some(range) if range.start < 0 || range.is_empty() => {
                return Err(Error::invalid(format!("time range {range:?} is empty or negative")));
            }
            Some(range) => (range.start, if range.end == i64::MAX { 0 } else { range.end }),
        };
        Ok(ReadFilter {
            families,
            qualifier_start: start,
            qualifier_end: end,
            timestamp_min,
            timestamp_max,
            cells_per_column: self.cells_per_column,
            cells_per_row: self.cells_per_row,
            strip_values: self.strip_values,
            match_value: self.value.is_some(),
            value: self.value.clone().unwrap_or_default(),
            exact_qualifier: exact,
        })
    }
}

/// How to read a row.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReadOptions {
    /// Which cells.
    pub filter: Filter,
}

impl ReadOptions {
    /// Only the cells that `filter` lets through.
    pub fn filter(filter: Filter) -> ReadOptions {
        ReadOptions { filter }
    }
}

#[cfg(test)]
mod tests {
    use uruk_proto::schema::{Family, GcRule};
    use uruk_proto::{FamilyId, TableId};

    use super::*;

    #[test]
    fn names_become_ids_and_bad_ranges_are_refused() {
        let family = Family { name: "f".into(), id: FamilyId(4), gc: GcRule::KeepAll, locality_group: 0 };
        let schema = TableSchema {
            id: TableId(1),
            name: "t".into(),
            version: 1,
            families: vec![family],
            ..TableSchema::default()
        };
        let message = Filter::all().column("f", "q").cells_per_column(1).timestamps(5..i64::MAX).to_message(&schema);
        let message = message.unwrap();
        assert_eq!((message.families, message.exact_qualifier), (vec![4], true));
        assert_eq!((message.timestamp_min, message.timestamp_max, message.cells_per_column), (5, 0, 1));
        assert!(matches!(Filter::all().family("g").to_message(&schema), Err(Error::UnknownFamily { .. })));
        assert!(Filter::all().timestamps(7..7).to_message(&schema).is_err());
        assert!(Filter::all().qualifiers(vec![0; 20_000], "").to_message(&schema).is_err());
    }
}
