//! Rows as they are read. Values share the memory of the response that brought them.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use uruk_proto::cell_batch;
use uruk_proto::schema::TableSchema;

/// A row: its key, and the cells that the filter let through.
///
/// A row (and every value taken from it) keeps the whole response batch in memory that it came in;
/// copy what is kept for long.
#[derive(Clone)]
pub struct Row {
    packed: cell_batch::Row,
    schema: Arc<TableSchema>,
}

/// One version of one column.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cell<'a> {
    /// The column's family.
    pub family: &'a str,
    /// The column's qualifier.
    pub qualifier: &'a Bytes,
    /// Microseconds.
    pub timestamp: i64,
    /// The content.
    pub value: &'a Bytes,
}

impl Row {
    pub(crate) fn new(packed: cell_batch::Row, schema: Arc<TableSchema>) -> Row {
        Row { packed, schema }
    }

    /// The row key.
    pub fn key(&self) -> &Bytes {
        &self.packed.key
    }

    /// All cells: column by column, the newest of each first. Families stand in the order in which
    /// they were made.
    pub fn cells(&self) -> impl Iterator<Item = Cell<'_>> {
        self.packed.cells.iter().filter_map(|cell| {
            // A family that is not in the schema was deleted after the cell was read.
            let family = self.schema.family_by_id(cell.family)?;
            Some(Cell {
                family: &family.name,
                qualifier: &cell.qualifier,
                timestamp: cell.timestamp,
                value: &cell.value,
            })
        })
    }

    /// The cells of one column, newest first.
    pub fn column<'a>(&'a self, family: &str, qualifier: &'a [u8]) -> impl Iterator<Item = Cell<'a>> {
        let id = self.schema.family(family).map(|family| family.id);
        let name = self.schema.family(family).map_or("", |family| &family.name);
        let cells = self.packed.cells.iter();
        cells.filter(move |cell| Some(cell.family) == id && cell.qualifier == qualifier).map(move |cell| Cell {
            family: name,
            qualifier: &cell.qualifier,
            timestamp: cell.timestamp,
            value: &cell.value,
        })
    }

    /// The newest value of a column.
    pub fn value(&self, family: &str, qualifier: impl AsRef<[u8]>) -> Option<&Bytes> {
        let (id, qualifier) = (self.schema.family(family)?.id, qualifier.as_ref());
        let newest = self.packed.cells.iter().find(|cell| cell.family == id && cell.qualifier == qualifier)?;
        Some(&newest.value)
    }

    /// Bytes of key, qualifiers and values.
    pub fn bytes(&self) -> usize {
        let cells = self.packed.cells.iter();
        self.packed.key.len() + cells.map(|cell| cell.qualifier.len() + cell.value.len()).sum::<usize>()
    }

    /// The row with families by id, and the schema that names them.
    pub fn into_packed(self) -> (cell_batch::Row, Arc<TableSchema>) {
        (self.packed, self.schema)
    }
}

impl PartialEq for Row {
    fn eq(&self, other: &Row) -> bool {
        self.key() == other.key() && self.cells().eq(other.cells())
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Row(\"{}\"", self.key().escape_ascii())?;
        for cell in self.cells() {
            write!(f, ", {}:\"{}\"@{}", cell.family, cell.qualifier.escape_ascii(), cell.timestamp)?;
            write!(f, " ({} bytes)", cell.value.len())?;
        }
        f.write_str(")")
    }
}

/// Whole rows as they came in one batch: for those who need throughput more than names.
#[derive(Clone, Debug)]
pub struct RowBatch {
    /// In the order of the scan.
    pub rows: Vec<cell_batch::Row>,
    /// Names the families.
    pub schema: Arc<TableSchema>,
}
