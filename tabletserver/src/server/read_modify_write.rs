//! Read-modify-write: what the rules make of a row's newest cells.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use bytes::{Bytes, BytesMut};
use uruk_proto::cell_batch::Cell;
use uruk_proto::schema::TableSchema;
use uruk_proto::tablet::ReadModifyWriteRule;
use uruk_proto::tablet::read_modify_write_rule::Rule;
use uruk_proto::{ErrorCode, FamilyId, RpcError, limits};

use super::write_parse::unknown_family;
use crate::engine::filter::Qualifiers;
use crate::engine::{Filter, ReadView};

/// Checks families, qualifiers and counts.
pub fn check_rules(rules: &[ReadModifyWriteRule], schema: &TableSchema) -> Result<(), RpcError> {
    let invalid = |message: String| Err(RpcError::new(ErrorCode::InvalidArgument, message));
    if rules.is_empty() {
        return invalid("no rules provided".into());
    }
    if rules.len() > limits::READ_MODIFY_WRITE_RULES_MAX {
        return invalid(format!("{} rules; the limit is {}", rules.len(), limits::READ_MODIFY_WRITE_RULES_MAX));
    }
    for rule in rules {
        let family = FamilyId(rule.family_id);
        if schema.family_by_id(family).is_none() {
            return Err(unknown_family(family, schema));
        }
        if rule.qualifier.len() > limits::QUALIFIER_BYTES_MAX {
            return invalid("qualifier longer than 16 KiB".into());
        }
        if rule.rule.is_none() {
            return invalid("a rule neither appends nor increments".into());
        }
    }
    Ok(())
}

/// At least as many bytes as a new cell takes in a row write besides its qualifier and value.
const CELL_OVERHEAD_BYTES: usize = 32;

/// The new cell of each column that a rule names, by family and qualifier.
///
/// Rules see what earlier ones made of their column. A cell's timestamp is the server's, or that of
/// the cell that it replaces if that is later.
pub async fn new_cells(
    view: &ReadView,
    row: &Bytes,
    rules: Vec<ReadModifyWriteRule>,
    timestamp: i64,
) -> Result<Vec<Cell>, RpcError> {
    let mut cells: BTreeMap<(FamilyId, Bytes), Cell> = BTreeMap::new();
    // Of all new cells as one row write.
    let mut bytes = 0;
    for rule in rules {
        let family = FamilyId(rule.family_id);
        let cell = match cells.entry((family, rule.qualifier.clone())) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(vacant) => {
                let filter = Filter {
                    families: Some(vec![family]),
                    qualifiers: Qualifiers::Exactly(rule.qualifier.clone()),
                    cells_per_column: Some(1),
                    ..Filter::default()
                };
                let newest = view.get(row, &filter).await?.cells.into_iter().next();
                let missing = || Cell { family, qualifier: rule.qualifier.clone(), timestamp, value: Bytes::new() };
                let newest = newest.unwrap_or_else(missing);
                bytes += CELL_OVERHEAD_BYTES + newest.qualifier.len() + newest.value.len();
                vacant.insert(Cell { timestamp: newest.timestamp.max(timestamp), ..newest })
            }
        };
        let before = cell.value.len();
        cell.value = match rule.rule {
            Some(Rule::Append(more)) => append(&cell.value, &more)?,
            Some(Rule::Increment(by)) => increment(&cell.value, by)?,
            None => return Err(RpcError::new(ErrorCode::InvalidArgument, "a rule neither appends nor increments")),
        };
        bytes = bytes - before + cell.value.len();
        if bytes > limits::ROW_WRITE_BYTES_MAX {
            let max = limits::ROW_WRITE_BYTES_MAX;
            let message = format!("the new cells are a row write of more than {bytes} bytes; the limit is {max}");
            return Err(RpcError::new(ErrorCode::InvalidArgument, message));
        }
    }
    Ok(cells.into_values().collect())
}

fn append(value: &[u8], more: &[u8]) -> Result<Bytes, RpcError> {
    let len = value.len() + more.len();
    if len > limits::VALUE_BYTES_MAX {
        return Err(RpcError::new(ErrorCode::InvalidArgument, format!("the appended value is {len} bytes long")));
    }
    let mut out = BytesMut::with_capacity(len);
    out.extend_from_slice(value);
    out.extend_from_slice(more);
    Ok(out.freeze())
}

fn increment(value: &[u8], by: i64) -> Result<Bytes, RpcError> {
    let before = match value {
        [] => 0,
        bytes => i64::from_be_bytes(bytes.try_into().map_err(|_| {
            let message = format!("increment of a value of {} bytes, which is no 64-bit integer", bytes.len());
            RpcError::new(ErrorCode::FailedPrecondition, message)
        })?),
    };
    Ok(Bytes::copy_from_slice(&before.wrapping_add(by).to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn increments_wrap_and_start_at_zero() {
        assert_eq!(increment(b"", 5).unwrap()[..], 5i64.to_be_bytes());
        assert_eq!(increment(&i64::MAX.to_be_bytes(), 1).unwrap()[..], i64::MIN.to_be_bytes());
        let error = increment(b"abc", 1).unwrap_err();
        assert_eq!(error.code, ErrorCode::FailedPrecondition);
    }

    #[test]
    fn appending_concatenates() {
        assert_eq!(append(b"ab", b"c").unwrap()[..], *b"abc");
    }
}
