//! Tables, keys and cells of the workloads.

use bytes::Bytes;
use uruk_base::Random;
use uruk_client::{FamilySpec, Filter, GcRule, Mutation, Row};

use crate::history::{
    COLUMNS, Cells, Expect, GARBAGE, MARK, Mask, Node, RowId, Shown, Token, Write, parse_token, parse_value,
    token_value,
};

/// Registers that are written by single operations and by batches.
pub const DATA: &str = "data";
/// Logs.
pub const LOGS: &str = "logs";
/// Registers that are written once, in order.
pub const INGEST: &str = "ingest";
/// Nodes of the Big Linked List.
pub const LIST: &str = "list";

/// Hot registers.
pub const HOT_ROWS: u64 = 24;
/// Registers that batches write.
pub const BATCH_ROWS: u64 = 40;
/// Logs.
pub const LOG_ROWS: u64 = 8;

/// A fixed table's families and splits.
pub fn table(name: &str) -> (Vec<FamilySpec>, Vec<Bytes>) {
    let registers = || {
        vec![
            FamilySpec::new("f").with_gc(GcRule::MaxVersions(2)),
            FamilySpec::new("g"),
            FamilySpec::new("h").in_locality_group(1),
        ]
    };
    let (families, splits): (_, &[&str]) = match name {
        DATA => (registers(), &["b10", "b20", "b30", "r06", "r12", "r18"]),
        INGEST => (registers(), &["i0001000", "i0002500", "i0005000"]),
        LOGS => (vec![FamilySpec::new("a").with_gc(GcRule::MaxVersions(2))], &["n3", "n6"]),
        _ => (vec![FamilySpec::new("l")], &["4", "8", "c"]),
    };
    (families, splits.iter().map(|split| Bytes::from(split.as_bytes())).collect())
}

/// The n-th hot register.
pub fn hot_row(n: u64) -> RowId {
    RowId { table: DATA, key: format!("r{n:02}").into() }
}

/// The n-th register of batches.
pub fn batch_row(n: u64) -> RowId {
    RowId { table: DATA, key: format!("b{n:02}").into() }
}

/// The n-th log.
pub fn log_row(n: u64) -> RowId {
    RowId { table: LOGS, key: format!("n{n}").into() }
}

/// The n-th row of the ingest.
pub fn ingest_row(n: u64) -> RowId {
    RowId { table: INGEST, key: format!("i{n:07}").into() }
}

/// Any shape: mostly all columns, else some, `f:m` always.
pub fn draw_mask(random: &Random) -> Mask {
    match random.range(0..2) {
        0 => Mask::ALL,
        _ => Mask(random.u64() as u8 & Mask::ALL.0 | Mask::MARK.0),
    }
}

/// Mutations after which the row is as `write` says, whatever it was: with deletions of the row, of
/// families, columns and ranges of timestamps.
pub fn mutations(write: &Write, random: &Random) -> Vec<Mutation> {
    let Write::Value { token, mask } = *write else { return vec![Mutation::delete_row()] };
    let mut all = Vec::new();
    if mask != Mask::ALL && random.range(0..3) == 0 {
        all.push(Mutation::delete_row());
    } else {
        for (column, qualifier) in [(0, "a"), (1, "b")] {
            if !mask.has(column) {
                all.push(Mutation::delete_column("f", qualifier));
            }
        }
        if !mask.has(3) {
            all.push(Mutation::delete_family("g"));
        }
        match (mask.has(4), mask.has(5)) {
            (true, true) => {}
            (false, true) => all.push(Mutation::delete_cells("h", "x", 1_500..i64::MAX)),
            (true, false) => all.push(Mutation::delete_cells("h", "x", 0..2_000)),
            (false, false) => all.push(Mutation::delete_family("h")),
        }
    }
    let value = token_value(token);
    for column in (0..COLUMNS.len()).filter(|column| mask.has(*column)) {
        all.push(match column {
            0 => Mutation::set("f", "a", value.clone()),
            1 => Mutation::set("f", "b", value.clone()),
            MARK => Mutation::set("f", "m", value.clone()),
            3 => Mutation::set("g", "c", value.clone()),
            4 => Mutation::set("h", "x", value.clone()).at(2_000),
            _ => Mutation::set("h", "x", value.clone()).at(1_000),
        });
    }
    all
}

/// What a register shows.
pub fn cells(row: &Row) -> Cells {
    let mut cells = Cells::default();
    for cell in row.cells() {
        let column = match (cell.family, &cell.qualifier[..], cell.timestamp) {
            ("f", b"a", _) => 0,
            ("f", b"b", _) => 1,
            ("f", b"m", _) => MARK,
            ("g", b"c", _) => 3,
            ("h", b"x", 2_000) => 4,
            ("h", b"x", 1_000) => 5,
            // No write makes such a cell.
            _ => {
                cells.0[MARK] = GARBAGE;
                continue;
            }
        };
        // The newest comes first.
        if cells.0[column] == 0 {
            cells.0[column] = parse_value(cell.value);
        }
    }
    cells
}

/// The filter that shows this.
pub fn filter(shown: Shown) -> Filter {
    match shown {
        Shown::Columns(Mask(0b00_0100)) => Filter::all().column("f", "m").cells_per_column(1),
        Shown::Columns(Mask(0b00_0111)) => Filter::all().family("f").cells_per_column(1),
        Shown::Columns(Mask(0b00_1000)) => Filter::all().family("g").cells_per_column(1),
        Shown::Columns(Mask(0b01_0000)) => Filter::all().column("h", "x").timestamps(1_500..i64::MAX),
        Shown::Columns(Mask(0b10_0000)) => Filter::all().family("h").timestamps(0..2_000),
        Shown::Columns(_) => Filter::all(),
        Shown::First => Filter::all().cells_per_row(1),
        Shown::Keys => Filter::all().cells_per_row(1).strip_values(),
        Shown::Value(token) => is_token(token),
    }
}

/// One of the shapes that [`filter`] knows.
pub fn draw_shown(random: &Random, token: Token) -> Shown {
    match random.range(0..12) {
        0 => Shown::Columns(Mask(0b00_0100)),
        1 => Shown::Columns(Mask(0b00_0111)),
        2 => Shown::Columns(Mask(0b00_1000)),
        3 => Shown::Columns(Mask(0b01_0000)),
        4 => Shown::Columns(Mask(0b10_0000)),
        5 => Shown::First,
        6 => Shown::Keys,
        7 if token != 0 => Shown::Value(token),
        _ => Shown::Columns(Mask::ALL),
    }
}

/// The predicate of a conditional write.
pub fn predicate(expect: Expect) -> Filter {
    match expect {
        Expect::Token(token) => is_token(token),
        Expect::Present => Filter::all(),
    }
}

fn is_token(token: Token) -> Filter {
    Filter::all().column("f", "m").cells_per_column(1).value(token_value(token))
}

/// A log's tokens and counter.
pub fn log(row: Option<&Row>) -> (Vec<Token>, i64) {
    let value = |qualifier: &str| row.and_then(|row| row.value("a", qualifier)).cloned().unwrap_or_default();
    let tokens = value("log").chunks(crate::history::TOKEN_BYTES).map(parse_token).collect();
    let count = value("count");
    let count = if count.is_empty() { 0 } else { <[u8; 8]>::try_from(&count[..]).map_or(-1, i64::from_be_bytes) };
    (tokens, count)
}

/// A node's row key.
pub fn node_key(id: u64) -> Bytes {
    format!("{id:016x}").into()
}

/// The mutation that writes a node.
pub fn node_mutation(node: &Node) -> Mutation {
    let value = node.next.map_or_else(Bytes::new, node_key);
    Mutation::set("l", "next", value)
}

/// The node that a row is; an impossible one if it is none.
pub fn node(row: &Row) -> Node {
    let number = |bytes: &[u8]| std::str::from_utf8(bytes).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
    let id = number(row.key()).unwrap_or(u64::MAX);
    let next = match row.value("l", "next") {
        Some(value) if value.is_empty() => None,
        Some(value) => Some(number(value).unwrap_or(u64::MAX)),
        None => Some(u64::MAX),
    };
    Node { id, next }
}
