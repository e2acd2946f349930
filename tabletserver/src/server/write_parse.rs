//! What a writer sent, parsed and checked once.

use bytes::Bytes;
use uruk_proto::cell_batch::Cell;
use uruk_proto::mutation::{self, Mutation};
use uruk_proto::schema::{TableSchema, validate_row_key};
use uruk_proto::tablet::{IdempotencyKey, RowMutations};
use uruk_proto::{ErrorCode, FamilyId, RpcError, limits};

use super::record::{Call, RowWrite};
use super::tablet::Tablet;

/// Bytes of a row in a record besides its key and mutations.
const ROW_OVERHEAD_BYTES: usize = 28;

/// One row's write.
#[derive(Debug)]
pub struct ParsedRow {
    /// As it goes into the log.
    pub write: RowWrite,
    /// The same, unpacked.
    pub mutations: Vec<Mutation>,
}

/// Mutations without their row.
#[derive(Debug)]
pub struct ParsedMutations {
    packed: Bytes,
    mutations: Vec<Mutation>,
}

impl ParsedRow {
    /// At least as many bytes as it takes in a record.
    pub fn bytes(&self) -> usize {
        self.write.row.len() + self.write.mutations.len() + ROW_OVERHEAD_BYTES
    }

    /// A write that sets these cells.
    pub fn set_cells(row: Bytes, cells: Vec<Cell>) -> ParsedRow {
        let set = |cell: Cell| Mutation::SetCell {
            family: cell.family,
            qualifier: cell.qualifier,
            timestamp: cell.timestamp,
            value: cell.value,
        };
        let mutations: Vec<Mutation> = cells.into_iter().map(set).collect();
        let packed = mutation::pack(&mutations);
        ParsedRow { write: RowWrite { offset: 0, row, mutations: packed }, mutations }
    }
}

impl ParsedMutations {
    /// As a write of `row`.
    pub fn of_row(self, row: Bytes) -> ParsedRow {
        ParsedRow { write: RowWrite { offset: 0, row, mutations: self.packed }, mutations: self.mutations }
    }
}

/// The caller's identity for the call; None without one.
pub fn parse_call(key: Option<&IdempotencyKey>) -> Option<Call> {
    key.map(|key| Call {
        client: key.client_id,
        sequence: key.sequence,
        first_incomplete: key.first_incomplete,
        issued_micros: key.issued_micros,
    })
}

/// One entry of a batch.
pub fn parse_row(
    offset: u32,
    entry: RowMutations,
    tablet: &Tablet,
    schema: &TableSchema,
) -> Result<ParsedRow, RpcError> {
    let row = parse_row_key(entry.row, tablet)?;
    let mutations = unpack(entry.mutations.clone(), schema)?;
    Ok(ParsedRow { write: RowWrite { offset, row, mutations: entry.mutations }, mutations })
}

/// A row key that lies in the tablet.
pub fn parse_row_key(row: Bytes, tablet: &Tablet) -> Result<Bytes, RpcError> {
    validate_row_key(&row)?;
    if !tablet.range.contains(&row) {
        let message = format!("row \"{}\" is not in {}", row.escape_ascii(), tablet.id);
        return Err(RpcError::new(ErrorCode::StaleLocation, message));
    }
    Ok(row)
}

/// Mutations, or None when there are none.
pub fn parse_mutations(packed: Bytes, schema: &TableSchema) -> Result<Option<ParsedMutations>, RpcError> {
    if packed.is_empty() {
        return Ok(None);
    }
    let mutations = unpack(packed.clone(), schema)?;
    Ok(Some(ParsedMutations { packed, mutations }))
}

fn unpack(packed: Bytes, schema: &TableSchema) -> Result<Vec<Mutation>, RpcError> {
    if packed.is_empty() {
        return Err(RpcError::new(ErrorCode::InvalidArgument, "No mutations provided"));
    }
    if packed.len() > limits::ROW_WRITE_BYTES_MAX {
        let message = format!("a row write of {} bytes; the limit is {}", packed.len(), limits::ROW_WRITE_BYTES_MAX);
        return Err(RpcError::new(ErrorCode::InvalidArgument, message));
    }
    let mutations =
        mutation::unpack(packed).map_err(|error| RpcError::new(ErrorCode::InvalidArgument, error.to_string()))?;
    let unknown = mutations.iter().filter_map(Mutation::family).find(|id| schema.family_by_id(*id).is_none());
    match unknown {
        Some(family) => Err(unknown_family(family, schema)),
        None => Ok(mutations),
    }
}

/// The words that Cloud Bigtable's clients look for.
pub fn unknown_family(family: FamilyId, schema: &TableSchema) -> RpcError {
    let message = format!("Requested column family not found: {family} in table {}", schema.name);
    RpcError::new(ErrorCode::NotFound, message)
}
