//! The plain model: a log of writes, replayed into a map for every read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use uruk_proto::cell_batch::{Cell, Row};
use uruk_proto::mutation::Mutation;
use uruk_proto::schema::TableSchema;
use uruk_proto::{FamilyId, RowRange, SeqNo};

use crate::engine::filter::Qualifiers;
use crate::engine::{Filter, ScanRequest, ScanTargets};

pub const ROWS: [&[u8]; 14] =
    [b"\0", b"\0\0", b"a", b"a\0", b"a\0\0", b"a\0b", b"a\x01", b"aa", b"b", b"c1", b"c2", b"c3", b"\xff", b"\xff\xff"];
pub const FAMILIES: [u64; 3] = [1, 2, 300];
pub const QUALIFIERS: [&[u8]; 7] = [b"", b"\0", b"q", b"q\0", b"q1", b"q2", b"\xff"];

/// One mutation, with its number.
#[derive(Clone, Debug)]
pub struct Write {
    pub seq: SeqNo,
    /// Number of the row write that it belongs to.
    first: SeqNo,
    pub row: Bytes,
    pub mutation: Mutation,
}

/// What the tablet holds, as the log of everything that was ever written to it.
#[derive(Clone)]
pub struct Model {
    pub schema: Arc<TableSchema>,
    pub published: SeqNo,
    log: Vec<Write>,
    /// Cells that a compaction let go for good.
    purged: BTreeSet<SeqNo>,
    /// Those of a compaction that is not committed.
    purging: BTreeSet<SeqNo>,
}

/// (row, family, qualifier) and timestamp, negated so that the newest comes first.
type CellKey = (Bytes, FamilyId, Bytes, std::cmp::Reverse<i64>);

/// What is kept, and which cells of which families are not.
type AfterGc = (Vec<(CellKey, Bytes)>, BTreeSet<(FamilyId, SeqNo)>);

impl Model {
    pub fn new(schema: Arc<TableSchema>) -> Model {
        Model { schema, published: SeqNo::ZERO, log: Vec::new(), purged: BTreeSet::new(), purging: BTreeSet::new() }
    }

    pub fn write(&mut self, first: SeqNo, row: &Bytes, mutations: &[Mutation]) {
        for (i, mutation) in mutations.iter().enumerate() {
            let seq = SeqNo(first.0 + i as u64);
            self.log.push(Write { seq, first, row: row.clone(), mutation: mutation.clone() });
        }
    }

    pub fn writes_after(&self, seq: SeqNo) -> Vec<(SeqNo, Bytes, Vec<Mutation>)> {
        let mut writes: BTreeMap<SeqNo, (Bytes, Vec<Mutation>)> = BTreeMap::new();
        for write in self.log.iter().filter(|write| write.first > seq) {
            let (_, mutations) = writes.entry(write.first).or_insert_with(|| (write.row.clone(), Vec::new()));
            mutations.push(write.mutation.clone());
        }
        writes.into_iter().map(|(seq, (row, mutations))| (seq, row, mutations)).collect()
    }

    pub fn keep_only(&mut self, range: &RowRange) {
        self.log.retain(|write| range.contains(&write.row));
    }

    /// The two halves of a split become one again.
    pub fn unite(&mut self, other: Model) {
        self.log.extend(other.log);
        self.log.sort_by_key(|write| write.seq);
        self.purged.extend(other.purged);
    }

    /// Cells as of `upto`, before any GC rule; the plainest way to say what deletions mean.
    fn cells(&self, upto: SeqNo) -> BTreeMap<CellKey, (SeqNo, Bytes)> {
        let mut cells: BTreeMap<CellKey, (SeqNo, Bytes)> = BTreeMap::new();
        for write in self.log.iter().filter(|write| write.seq <= upto) {
            match &write.mutation {
                Mutation::SetCell { family, qualifier, timestamp, value } => {
                    let key = (write.row.clone(), *family, qualifier.clone(), std::cmp::Reverse(*timestamp));
                    cells.insert(key, (write.seq, value.clone()));
                }
                Mutation::DeleteFromColumn { family, qualifier, start, end } => cells.retain(|(row, f, q, at), _| {
                    let in_time = at.0 >= *start && (at.0 < *end || *end == i64::MAX);
                    !(*row == write.row && f == family && q == qualifier && in_time)
                }),
                Mutation::DeleteFromFamily { family } => {
                    cells.retain(|(row, f, _, _), _| !(*row == write.row && f == family))
                }
                Mutation::DeleteFromRow => cells.retain(|(row, _, _, _), _| *row != write.row),
            }
        }
        cells.retain(|_, (seq, _)| !self.purged.contains(seq));
        cells
    }

    /// Splits cells into those that GC rules keep at `now`, and the others.
    fn after_gc(&self, upto: SeqNo, now: i64) -> AfterGc {
        let (mut kept, mut gone) = (Vec::new(), BTreeSet::new());
        let mut column = None;
        let mut version = 0;
        for (key, (seq, value)) in self.cells(upto) {
            let this = (key.0.clone(), key.1, key.2.clone());
            version = if column.as_ref() == Some(&this) { version + 1 } else { 0 };
            column = Some(this);
            let family = self.schema.family_by_id(key.1).expect("only known families");
            if family.gc.lets_go(version, key.3.0, now) {
                gone.insert((key.1, seq));
            } else {
                kept.push((key, value));
            }
        }
        (kept, gone)
    }

    /// A compaction of inputs that tell all that happened to these rows up to these writes.
    pub fn begin_purge(&mut self, group: u32, inputs: &[(RowRange, SeqNo)], now: i64) {
        let covered = |row: &Bytes| inputs.iter().filter(|(rows, _)| rows.contains(row)).map(|(_, upto)| *upto).max();
        let row_of = |seq: SeqNo| &self.log.iter().find(|write| write.seq == seq).expect("it was written").row;
        let in_group =
            |family: FamilyId| self.schema.family_by_id(family).is_some_and(|family| family.locality_group == group);
        let mut purging = BTreeSet::new();
        for upto in inputs.iter().map(|(_, upto)| *upto).collect::<BTreeSet<SeqNo>>() {
            let (_, gone) = self.after_gc(upto, now);
            let gone =
                gone.into_iter().filter(|(family, seq)| in_group(*family) && covered(row_of(*seq)) == Some(upto));
            purging.extend(gone.map(|(_, seq)| seq));
        }
        self.purging = purging;
    }

    pub fn abort_purge(&mut self) {
        self.purging.clear();
    }

    pub fn commit_purge(&mut self) {
        let purging = std::mem::take(&mut self.purging);
        self.purged.extend(purging);
    }

    /// What the request must give.
    pub fn read(&self, request: &ScanRequest, now: i64) -> Vec<Row> {
        let wanted = |row: &Bytes| match &request.targets {
            ScanTargets::Ranges(ranges) => ranges.iter().any(|range| range.contains(row)),
            ScanTargets::Rows(rows) => rows.contains(row),
        };
        let mut rows: BTreeMap<Bytes, Vec<Cell>> = BTreeMap::new();
        for ((row, family, qualifier, timestamp), value) in self.after_gc(self.published, now).0 {
            if wanted(&row) {
                rows.entry(row).or_default().push(Cell { family, qualifier, timestamp: timestamp.0, value });
            }
        }
        let rows = rows.into_iter().map(|(key, cells)| Row { key, cells: filtered(cells, &request.filter) });
        let mut rows: Vec<Row> = rows.filter(|row| !row.cells.is_empty()).collect();
        if request.reverse {
            rows.reverse();
        }
        if request.rows_limit > 0 {
            rows.truncate(request.rows_limit as usize);
        }
        rows
    }

    /// For a failure's message: the log of the rows that differ.
    pub fn row_log(&self, found: &[Row], expected: &[Row]) -> Vec<&Write> {
        let differs = |write: &&Write| {
            let cells = |rows: &[Row]| rows.iter().find(|row| row.key == write.row).cloned();
            cells(found) != cells(expected)
        };
        self.log.iter().filter(differs).collect()
    }
}

fn filtered(cells: Vec<Cell>, filter: &Filter) -> Vec<Cell> {
    let mut cells = cells;
    cells.retain(|cell| filter.families.as_ref().is_none_or(|families| families.contains(&cell.family)));
    cells.retain(|cell| match &filter.qualifiers {
        Qualifiers::All => true,
        Qualifiers::Range(start, end) => cell.qualifier >= *start && (end.is_empty() || cell.qualifier < *end),
        Qualifiers::Exactly(qualifier) => cell.qualifier == *qualifier,
    });
    cells.retain(|cell| {
        cell.timestamp >= filter.timestamp_min && filter.timestamp_end.is_none_or(|end| cell.timestamp < end)
    });
    if let Some(limit) = filter.cells_per_column {
        let mut counts: BTreeMap<(FamilyId, Bytes), u32> = BTreeMap::new();
        cells.retain(|cell| {
            let count = counts.entry((cell.family, cell.qualifier.clone())).or_default();
            *count += 1;
            *count <= limit
        });
    }
    if let Some(value) = &filter.value {
        cells.retain(|cell| cell.value == *value);
    }
    if let Some(limit) = filter.cells_per_row {
        cells.truncate(limit as usize);
    }
    if filter.strip_values {
        cells.iter_mut().for_each(|cell| cell.value = Bytes::new());
    }
    cells
}
