//! Which columns a walk is after, as ranges of raw keys, with each family's GC rule.
//!
//! Everything here is a key *behind the row's prefix*: family and escaped qualifier. So asking whether a
//! column is wanted is two comparisons, and the place to skip to is known.

use uruk_proto::FamilyId;
use uruk_proto::key;
use uruk_proto::schema::{FilterOn, GcRule, TableSchema};

use super::compaction::policy::{age_bound, longest};
use super::filter::{Filter, Qualifiers};
use super::sstable::row_filter::RowProbe;
use super::sstable::skip::{Wanted, family_bit};

/// Filters are asked for columns of at most so many families: each asks for a column and a deletion, and one wrong
/// answer makes the others useless.
const PROBED_FAMILIES_MAX: usize = 4;

/// The wanted columns of one family.
#[derive(Clone, Debug)]
pub struct FamilyColumns {
    /// The family.
    pub family: FamilyId,
    /// Which of its cells are as good as gone.
    pub gc: GcRule,
    /// First wanted column.
    low: Vec<u8>,
    /// First column beyond.
    high: Vec<u8>,
}

/// What to do about a column.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Column {
    /// It is wanted; its family has this index.
    Wanted(usize),
    /// It is not; the next that may be is in the family with this index, or in none of the row.
    Skip(Option<usize>),
}

/// The wanted columns, by family id. Families that the schema does not name are never wanted.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    families: Vec<FamilyColumns>,
    /// Of all of them, as in the facts about a block.
    family_bits: u64,
    /// No cell of them outlives this.
    age_max: Option<u64>,
    /// Whether some rule counts versions, so that also cells count that are not wanted.
    counts_versions: bool,
    /// Whether it is one column of each family, which filters may know.
    probes_columns: bool,
}

impl Columns {
    /// All columns of the schema's families.
    pub fn all(schema: &TableSchema) -> Columns {
        Columns::filtered(schema, &Filter::default())
    }

    /// Those that the filter wants.
    pub fn filtered(schema: &TableSchema, filter: &Filter) -> Columns {
        let wanted = |id: FamilyId| filter.families.as_ref().is_none_or(|ids| ids.binary_search(&id).is_ok());
        let families = schema.families.iter().filter(|family| wanted(family.id));
        let mut families: Vec<FamilyColumns> = families
            .map(|family| {
                let (low, high) = bounds(family.id, &filter.qualifiers);
                FamilyColumns { family: family.id, gc: family.gc.clone(), low, high }
            })
            .collect();
        families.sort_by_key(|columns| columns.family);
        let knows_columns = |columns: &FamilyColumns| {
            let group = schema.family_by_id(columns.family).map(|family| schema.group(family.locality_group));
            group.is_some_and(|group| group.filter == FilterOn::RowColumn)
        };
        Columns {
            probes_columns: matches!(filter.qualifiers, Qualifiers::Exactly(_))
                && families.len() <= PROBED_FAMILIES_MAX
                && families.iter().any(knows_columns),
            family_bits: families.iter().fold(0, |bits, columns| bits | family_bit(columns.family)),
            age_max: longest(families.iter().map(|columns| age_bound(&columns.gc))),
            counts_versions: families.iter().any(|columns| counts_versions(&columns.gc)),
            families,
        }
    }

    /// What a reader of these columns at `now` need not look at.
    pub fn wanted(&self, filter: &Filter, now: i64) -> Wanted {
        let age = self.age_max.map(|age| i64::try_from(age).unwrap_or(i64::MAX));
        let alive_from = age.map_or(i64::MIN, |age| now.saturating_sub(age));
        // Newer cells than the filter wants push older ones out where versions count.
        let timestamp_end = filter.timestamp_end.filter(|_| !self.counts_versions);
        Wanted {
            // No cell is before 0, so by default nothing is left to ask of a block.
            timestamp_min: if filter.timestamp_min > 0 { filter.timestamp_min.max(alive_from) } else { alive_from },
            timestamp_end: timestamp_end.unwrap_or(i64::MAX),
            families: if filter.families.is_some() { self.family_bits } else { u64::MAX },
        }
    }

    /// What to ask filters about them in a row, given its prefix.
    pub fn probe(&self, row_prefix: Vec<u8>) -> RowProbe {
        match self.probes_columns {
            true => {
                let columns = self.families.iter().map(|columns| (columns.family, &columns.low[..]));
                RowProbe::columns(row_prefix, columns)
            }
            false => RowProbe::row(row_prefix),
        }
    }

    /// The family with this index.
    pub fn family(&self, index: usize) -> &FamilyColumns {
        &self.families[index]
    }

    /// All families, as in the facts about a block.
    pub fn family_bits(&self) -> u64 {
        self.family_bits
    }

    /// Whether any column of the family may be wanted.
    pub fn has_family(&self, family: FamilyId) -> bool {
        self.families.binary_search_by_key(&family, |columns| columns.family).is_ok()
    }

    /// What to do about a column, given its key behind the row's prefix.
    pub fn judge(&self, family: FamilyId, column: &[u8]) -> Column {
        let index = self.families.partition_point(|columns| columns.family < family);
        match self.families.get(index) {
            None => Column::Skip(None),
            Some(columns) if columns.family != family || column < &columns.low[..] => Column::Skip(Some(index)),
            Some(columns) if column < &columns.high[..] => Column::Wanted(index),
            Some(_) => Column::Skip((index + 1 < self.families.len()).then_some(index + 1)),
        }
    }

    /// Turns a row's prefix into the key to skip to, for what [`Columns::judge`] said of a column of
    /// `family`: nothing in between is wanted, nor deletes what is wanted.
    pub fn skip_target(&self, target: &mut Vec<u8>, family: FamilyId, next: Option<usize>) {
        match next.map(|index| &self.families[index]) {
            None => step_behind(target),
            Some(columns) if columns.family == family => target.extend_from_slice(&columns.low),
            // From its very start, where a deletion of the family stands.
            Some(columns) => key::put_family(target, columns.family),
        }
    }
}

/// Turns the prefix of a row or column, which ends in a terminator, into the first key behind all that
/// have this prefix.
pub fn step_behind(prefix: &mut [u8]) {
    if let Some(last) = prefix.last_mut() {
        *last += 1;
    }
}

fn counts_versions(rule: &GcRule) -> bool {
    match rule {
        GcRule::KeepAll | GcRule::MaxAge(_) => false,
        GcRule::MaxVersions(_) => true,
        GcRule::Union(rules) | GcRule::Intersection(rules) => rules.iter().any(counts_versions),
    }
}

fn bounds(family: FamilyId, qualifiers: &Qualifiers) -> (Vec<u8>, Vec<u8>) {
    const TERMINATOR_BYTES: usize = 2;
    // Without its terminator a qualifier's column is a lower bound for it and all behind it.
    let bound = |qualifier: &[u8]| {
        let mut column = Vec::new();
        key::put_column(&mut column, family, qualifier);
        column.truncate(column.len() - TERMINATOR_BYTES);
        column
    };
    let family_end = || {
        let mut column = bound(&[]);
        step_behind(&mut column);
        column
    };
    match qualifiers {
        Qualifiers::All => (bound(&[]), family_end()),
        Qualifiers::Range(start, end) if end.is_empty() => (bound(start), family_end()),
        Qualifiers::Range(start, end) => (bound(start), bound(end)),
        Qualifiers::Exactly(qualifier) => {
            let mut low = Vec::new();
            key::put_column(&mut low, family, qualifier);
            let mut high = low.clone();
            step_behind(&mut high);
            (low, high)
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use uruk_proto::TableId;
    use uruk_proto::schema::Family;

    use super::*;

    fn schema(ids: &[u64]) -> TableSchema {
        let family =
            |id: &u64| Family { name: format!("f{id}"), id: FamilyId(*id), gc: GcRule::KeepAll, locality_group: 0 };
        let families = ids.iter().map(family).collect();
        TableSchema { id: TableId(1), name: "t".into(), version: 1, families, ..TableSchema::default() }
    }

    fn column(family: u64, qualifier: &[u8]) -> Vec<u8> {
        let mut column = Vec::new();
        key::put_column(&mut column, FamilyId(family), qualifier);
        column
    }

    fn wanted(columns: &Columns, family: u64, qualifier: &[u8]) -> bool {
        matches!(columns.judge(FamilyId(family), &column(family, qualifier)), Column::Wanted(_))
    }

    #[test]
    fn qualifier_ranges_are_judged_on_raw_keys() {
        let range = |start: &'static [u8], end: &'static [u8]| Filter {
            qualifiers: Qualifiers::Range(Bytes::from_static(start), Bytes::from_static(end)),
            ..Filter::default()
        };
        let all: [&[u8]; 8] = [b"", b"\0", b"a", b"a\0", b"a\0\0", b"a\x01", b"b", b"\xff"];
        for start in all {
            for end in all {
                let columns = Columns::filtered(&schema(&[1, 300]), &range(start, end));
                let exactly =
                    Filter { qualifiers: Qualifiers::Exactly(Bytes::from_static(start)), ..Filter::default() };
                let exactly = Columns::filtered(&schema(&[300]), &exactly);
                for qualifier in all {
                    let expected = start <= qualifier && (end.is_empty() || qualifier < end);
                    assert_eq!(wanted(&columns, 300, qualifier), expected, "{qualifier:?} in {start:?}..{end:?}");
                    assert_eq!(wanted(&exactly, 300, qualifier), qualifier == start);
                    assert!(!wanted(&columns, 2, qualifier), "the schema does not name it");
                }
            }
        }
    }

    #[test]
    fn what_is_skipped_is_never_wanted() {
        let filter = Filter {
            families: Some(vec![FamilyId(2), FamilyId(4)]),
            qualifiers: Qualifiers::Range(Bytes::from_static(b"b"), Bytes::from_static(b"d")),
            ..Filter::default()
        };
        let columns = Columns::filtered(&schema(&[4, 3, 2, 1]), &filter);
        let row = key::row_prefix(b"row");
        let all: Vec<(u64, &[u8])> =
            (1..6).flat_map(|family| [&b"a"[..], b"b", b"c", b"d"].map(|q| (family, q))).collect();
        for (i, (family, qualifier)) in all.iter().enumerate() {
            let Column::Skip(next) = columns.judge(FamilyId(*family), &column(*family, qualifier)) else { continue };
            let mut target = row.clone();
            columns.skip_target(&mut target, FamilyId(*family), next);
            for (family, qualifier) in &all[i..] {
                let key = [&row[..], &column(*family, qualifier)].concat();
                assert!(key >= target || !wanted(&columns, *family, qualifier), "{family} {qualifier:?}");
            }
            let next = all[i..].iter().find(|(family, qualifier)| wanted(&columns, *family, qualifier));
            let next = next.map(|(family, qualifier)| [&row[..], &column(*family, qualifier)].concat());
            assert!(next.is_none_or(|next| next >= target));
        }
    }
}
