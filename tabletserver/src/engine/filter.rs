//! What a reader wants of the visible cells.

use bytes::Bytes;
use uruk_proto::{FamilyId, limits, tablet};

use super::error::EngineError;

/// A parsed `ReadFilter`; the default lets everything through. Its parts apply in this order, as a Cloud Bigtable chain would: families,
/// qualifiers, timestamps, newest cells per column, value, cells per row, strip. So "the newest cell
/// equals v" is `cells_per_column = 1` with `value = v`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    /// Families wanted, ascending, no duplicates; None for all.
    pub families: Option<Vec<FamilyId>>,
    /// Which columns of them.
    pub qualifiers: Qualifiers,
    /// First timestamp; none is negative.
    pub timestamp_min: i64,
    /// First timestamp beyond; None for no bound.
    pub timestamp_end: Option<i64>,
    /// Newest n cells of each column; None for all.
    pub cells_per_column: Option<u32>,
    /// First n cells of each row; None for all.
    pub cells_per_row: Option<u32>,
    /// Empties all values.
    pub strip_values: bool,
    /// Only cells with exactly this value.
    pub value: Option<Bytes>,
}

/// Which qualifiers a reader wants.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Qualifiers {
    /// Every one.
    #[default]
    All,
    /// Those in `[start, end)`; an empty end is none.
    Range(Bytes, Bytes),
    /// This one.
    Exactly(Bytes),
}

impl Filter {
    /// Lets everything through.
    pub fn all() -> Filter {
        Filter::default()
    }
}

impl TryFrom<&tablet::ReadFilter> for Filter {
    type Error = EngineError;

    fn try_from(message: &tablet::ReadFilter) -> Result<Filter, EngineError> {
        let invalid = |why: String| Err(EngineError::InvalidArgument(why));
        let mut families: Vec<FamilyId> = message.families.iter().copied().map(FamilyId).collect();
        families.sort_unstable();
        families.dedup();
        if families.first() == Some(&FamilyId(0)) {
            return invalid("family 0 in a filter".into());
        }
        let (start, end) = (&message.qualifier_start, &message.qualifier_end);
        if start.len().max(end.len()) > limits::QUALIFIER_BYTES_MAX + 1 {
            return invalid("qualifier bound longer than 16 KiB".into());
        }
        let bytes = |bytes: &Bytes| bytes.clone();
        let qualifiers = match message.exact_qualifier {
            true => Qualifiers::Exactly(bytes(start)),
            false if start.is_empty() && end.is_empty() => Qualifiers::All,
            false => Qualifiers::Range(bytes(start), bytes(end)),
        };
        let non_zero = |n: u32| (n > 0).then_some(n);
        Ok(Filter {
            families: (!families.is_empty()).then_some(families),
            qualifiers,
            timestamp_min: message.timestamp_min,
            timestamp_end: (message.timestamp_max != 0).then_some(message.timestamp_max),
            cells_per_column: non_zero(message.cells_per_column),
            cells_per_row: non_zero(message.cells_per_row),
            strip_values: message.strip_values,
            value: message.match_value.then(|| bytes(&message.value)),
        })
    }
}
