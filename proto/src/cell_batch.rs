//! Rows on the wire: packed batches of cells, not a message per cell.
//!
//! ```text
//! batch := row*
//! row   := flags (1 byte: 1 = goes on from the batch before, 2 = goes on in the next batch)
//!          key (length as varint, bytes)   number of cells (u32, little endian)   cell*
//! cell  := family (varint) qualifier (length, bytes) | 0 (same column as the cell before)
//!          timestamp (i64, little endian)   value (length, bytes)
//! ```

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::{DecodeError, Reader, put_bytes, put_varint};
use crate::id::FamilyId;

const GOES_ON_FROM_BEFORE: u8 = 1;
const GOES_ON_IN_NEXT: u8 = 2;
/// What a cell takes at most besides qualifier and value: family, two lengths, timestamp.
const CELL_EXTRA_BYTES: usize = 10 + 2 * 10 + 8;

/// One version of one column.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Cell {
    /// The column's family.
    pub family: FamilyId,
    /// The column's qualifier.
    pub qualifier: Bytes,
    /// Microseconds.
    pub timestamp: i64,
    /// The content.
    pub value: Bytes,
}

/// A row, or a piece of one.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Row {
    /// The row key.
    pub key: Bytes,
    /// By family id, qualifier, newest first.
    pub cells: Vec<Cell>,
}

/// A row as a batch carries it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RowPiece {
    /// The cells in this batch.
    pub row: Row,
    /// The batch before ended within this row.
    pub goes_on_from_before: bool,
    /// The next batch goes on within this row.
    pub goes_on_in_next: bool,
}

/// Packs rows, cell by cell.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    out: BytesMut,
    row: Option<OpenRow>,
    rows: usize,
}

#[derive(Debug)]
struct OpenRow {
    flags_at: usize,
    count_at: usize,
    count: u32,
    column: Option<(FamilyId, Bytes)>,
}

impl BatchBuilder {
    /// An empty batch.
    pub fn new() -> BatchBuilder {
        BatchBuilder::default()
    }

    /// Starts a row (or its continuation).
    pub fn start_row(&mut self, key: &[u8], goes_on_from_before: bool) {
        self.finish_row();
        let flags_at = self.out.len();
        self.out.put_u8(if goes_on_from_before { GOES_ON_FROM_BEFORE } else { 0 });
        put_bytes(&mut self.out, key);
        let count_at = self.out.len();
        self.out.put_u32_le(0);
        self.row = Some(OpenRow { flags_at, count_at, count: 0, column: None });
        self.rows += 1;
    }

    /// Adds a cell to the started row.
    pub fn push(&mut self, family: FamilyId, qualifier: &Bytes, timestamp: i64, value: &[u8]) {
        // At once: a value that grows the batch step by step is copied several times.
        self.out.reserve(qualifier.len() + value.len() + CELL_EXTRA_BYTES);
        let row = self.row.as_mut().expect("a row was started");
        if row.column.as_ref().is_some_and(|(f, q)| *f == family && q == qualifier) {
            self.out.put_u8(0);
        } else {
            put_varint(&mut self.out, family.0);
            put_bytes(&mut self.out, qualifier);
            row.column = Some((family, qualifier.clone()));
        }
        self.out.put_i64_le(timestamp);
        put_bytes(&mut self.out, value);
        row.count += 1;
    }

    /// Ends the started row for this batch; it goes on in the next one.
    pub fn break_row(&mut self) {
        let row = self.row.as_ref().expect("a row was started");
        self.out[row.flags_at] |= GOES_ON_IN_NEXT;
        self.finish_row();
    }

    /// Ends the started row, if there is one.
    pub fn finish_row(&mut self) {
        if let Some(row) = self.row.take() {
            self.out[row.count_at..row.count_at + 4].copy_from_slice(&row.count.to_le_bytes());
        }
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether no row was started.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The batch; the builder starts over.
    pub fn finish(&mut self) -> Bytes {
        self.finish_row();
        self.rows = 0;
        self.out.split().freeze()
    }
}

/// Unpacks a batch. The cells share the batch's memory.
pub fn unpack(batch: Bytes) -> Result<Vec<RowPiece>, DecodeError> {
    let mut reader = Reader::new("cell batch", batch);
    let mut rows = Vec::new();
    while !reader.is_at_end() {
        rows.push(read_row(&mut reader)?);
    }
    Ok(rows)
}

fn read_row(reader: &mut Reader) -> Result<RowPiece, DecodeError> {
    let flags = reader.u8()?;
    if flags & !(GOES_ON_FROM_BEFORE | GOES_ON_IN_NEXT) != 0 {
        return Err(reader.error("unknown row flags"));
    }
    let key = reader.bytes()?;
    let count = reader.u32()?;
    let mut cells: Vec<Cell> = Vec::new();
    for _ in 0..count {
        let (family, qualifier) = match reader.varint()? {
            0 => {
                let before = cells.last().ok_or_else(|| reader.error("first cell without column"))?;
                (before.family, before.qualifier.clone())
            }
            id => (FamilyId(id), reader.bytes()?),
        };
        let timestamp = reader.i64()?;
        cells.push(Cell { family, qualifier, timestamp, value: reader.bytes()? });
    }
    Ok(RowPiece {
        row: Row { key, cells },
        goes_on_from_before: flags & GOES_ON_FROM_BEFORE != 0,
        goes_on_in_next: flags & GOES_ON_IN_NEXT != 0,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row_piece() -> impl Strategy<Value = RowPiece> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from);
        let cell = (1u64..3, prop_oneof![Just(Bytes::new()), bytes()], any::<i64>(), bytes()).prop_map(
            |(family, qualifier, timestamp, value)| Cell { family: FamilyId(family), qualifier, timestamp, value },
        );
        (bytes(), prop::collection::vec(cell, 0..6), any::<bool>(), any::<bool>()).prop_map(
            |(key, cells, goes_on_from_before, goes_on_in_next)| RowPiece {
                row: Row { key, cells },
                goes_on_from_before,
                goes_on_in_next,
            },
        )
    }

    fn pack(rows: &[RowPiece]) -> Bytes {
        let mut builder = BatchBuilder::new();
        for piece in rows {
            builder.start_row(&piece.row.key, piece.goes_on_from_before);
            for c in &piece.row.cells {
                builder.push(c.family, &c.qualifier, c.timestamp, &c.value);
            }
            if piece.goes_on_in_next {
                builder.break_row();
            }
        }
        builder.finish()
    }

    proptest! {
        #[test]
        fn packed_rows_survive(rows in prop::collection::vec(row_piece(), 0..6)) {
            prop_assert_eq!(unpack(pack(&rows)).unwrap(), rows);
        }

        #[test]
        fn any_bytes_unpack_or_fail_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = unpack(bytes.into());
        }

        #[test]
        fn a_cut_batch_is_refused_or_shorter(rows in prop::collection::vec(row_piece(), 1..4), cut in 1usize..6) {
            let packed = pack(&rows);
            if let Ok(fewer) = unpack(packed.slice(..packed.len().saturating_sub(cut))) {
                prop_assert!(fewer.len() < rows.len());
            }
        }
    }
}
