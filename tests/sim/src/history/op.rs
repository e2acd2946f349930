//! What clients do and what they are told, in terms of the checks.
//!
//! Every write carries a [`Token`] that no other write carries, so that each value that is ever read
//! names the write it came from.
//!
//! | rows | written by | a read shows |
//! |---|---|---|
//! | registers | puts and deletes that say what the whole row is from then on | the one write that made it |
//! | logs | read-modify-writes: a token is appended, a counter raised by one, at one moment | all appends so far, in order |

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// Names a write. Zero is no write, [`GARBAGE`] a value that no write made.
pub type Token = u64;

/// Stands for a value that is not a token.
pub const GARBAGE: Token = u64::MAX;

/// Bytes of a token as text: `t` and eight digits.
pub const TOKEN_BYTES: usize = 9;

/// Of so many tokens one is a large value: a row of them is longer than a record of the commit log.
const LARGE_EVERY: Token = 48;
/// Bytes of the smallest large value, and how much longer others are.
const LARGE_BYTES: (Token, Token) = (2_500, 3_500);

/// A token as text, always as long.
pub fn token_text(token: Token) -> Bytes {
    Bytes::from(format!("t{token:08}"))
}

/// A token as a cell's value: its text, and at times much more.
pub fn token_value(token: Token) -> Bytes {
    let more = match token % LARGE_EVERY {
        5 => LARGE_BYTES.0 + token * 131 % LARGE_BYTES.1,
        _ => 0,
    };
    Bytes::from(format!("t{token:08}{:x<1$}", "", more as usize))
}

/// The token that is this text.
pub fn parse_token(value: &[u8]) -> Token {
    let digits = value.strip_prefix(b"t").filter(|digits| digits.len() == TOKEN_BYTES - 1);
    let text = digits.and_then(|digits| std::str::from_utf8(digits).ok());
    text.and_then(|text| text.parse().ok()).filter(|token| *token != 0).unwrap_or(GARBAGE)
}

/// The token whose value this is, to the last byte.
pub fn parse_value(value: &[u8]) -> Token {
    let token = value.get(..TOKEN_BYTES).map_or(GARBAGE, parse_token);
    if token != GARBAGE && token_value(token) == value { token } else { GARBAGE }
}

/// The columns of a register, in the order in which a row shows them. `f:m` is in every shape but
/// the deleted one; the two last are versions of one column with times that the client gives.
pub const COLUMNS: [&str; 6] = ["f:a", "f:b", "f:m", "g:c", "h:x@2", "h:x@1"];
/// Where `f:m` stands.
pub const MARK: usize = 2;

/// Some of a register's columns, a bit each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Mask(pub u8);

impl Mask {
    /// All columns.
    pub const ALL: Mask = Mask((1 << COLUMNS.len()) - 1);
    /// Only `f:m`.
    pub const MARK: Mask = Mask(1 << MARK);

    /// Whether the column is among them.
    pub fn has(self, column: usize) -> bool {
        self.0 & (1 << column) != 0
    }
}

/// What a register's columns hold, a token each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cells(pub [Token; COLUMNS.len()]);

impl Cells {
    /// What a reader who is shown the columns of `shown` sees of a write of `token` to those of `mask`.
    pub fn of(token: Token, mask: Mask, shown: Shown) -> Cells {
        let mut cells = Cells::default();
        for column in (0..COLUMNS.len()).filter(|column| mask.has(*column)) {
            match shown {
                Shown::Columns(columns) if !columns.has(column) => {}
                Shown::Value(_) if column != MARK => {}
                Shown::Columns(_) | Shown::Value(_) => cells.0[column] = token,
                Shown::First => {
                    cells.0[column] = token;
                    break;
                }
                Shown::Keys => cells.0[column] = GARBAGE,
            }
        }
        cells
    }

    /// The only token in it; [`GARBAGE`] if there are several, zero if there is none.
    pub fn token(&self) -> Token {
        let mut tokens = self.0.iter().copied().filter(|token| *token != 0);
        let Some(first) = tokens.next() else { return 0 };
        if tokens.all(|token| token == first) { first } else { GARBAGE }
    }
}

/// What a read shows of a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shown {
    /// These columns.
    Columns(Mask),
    /// The first cell.
    First,
    /// Values come empty.
    Keys,
    /// `f:m`, if it is this token.
    Value(Token),
}

/// A row of a table.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RowId {
    /// The table's name.
    pub table: &'static str,
    /// The row key.
    pub key: Bytes,
}

/// What a register is from a write on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Write {
    /// These columns hold the token, the others nothing.
    Value { token: Token, mask: Mask },
    /// There is no row.
    Delete,
}

/// What a conditional write asks of a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expect {
    /// `f:m` is this token.
    Token(Token),
    /// Any cell.
    Present,
}

/// Which rows a scan asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanShape {
    /// The table's name.
    pub table: &'static str,
    /// First key.
    pub start: Bytes,
    /// First key beyond; empty for no end.
    pub end: Bytes,
    /// In which order.
    pub order: ScanOrder,
    /// At most this many rows; zero for all.
    pub limit: u64,
    /// What of each row.
    pub shown: Shown,
}

/// In which order a scan's rows come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScanOrder {
    /// By key.
    Ascending,
    /// By key, backwards.
    Descending,
    /// As they come.
    Any,
}

/// A node of the Big Linked List.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Node {
    /// Its row.
    pub id: u64,
    /// The node it points at; none for the first of its list until the ring is closed.
    pub next: Option<u64>,
}

/// An operation of a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Writes a register.
    Write { row: RowId, write: Write },
    /// Writes a register one way if it is as expected, else the other way.
    Check { row: RowId, expect: Expect, then: Option<Write>, otherwise: Option<Write> },
    /// Reads a register.
    Read { row: RowId },
    /// Appends a token to a log and raises its counter by one.
    Append { row: RowId, token: Token },
    /// Reads a log.
    ReadLog { row: RowId },
    /// Reads registers; `last` if nothing is written any more.
    Scan { shape: ScanShape },
    /// Writes nodes; each of them is done, or none counts as flushed.
    Nodes { nodes: Arc<Vec<Node>> },
    /// Reads all nodes after the end.
    ReadNodes,
    /// Makes a table.
    CreateTable { name: Arc<str> },
    /// Deletes a table.
    DeleteTable { name: Arc<str> },
    /// Asks which tables there are.
    ListTables,
    /// Writes a row of a table that comes and goes.
    TableWrite { name: Arc<str>, token: Token },
    /// Reads all rows of such a table.
    TableScan { name: Arc<str> },
}

impl Op {
    /// The one row that it is about.
    pub fn row(&self) -> Option<&RowId> {
        match self {
            Op::Write { row, .. }
            | Op::Check { row, .. }
            | Op::Read { row }
            | Op::Append { row, .. }
            | Op::ReadLog { row } => Some(row),
            Op::Scan { .. }
            | Op::Nodes { .. }
            | Op::ReadNodes
            | Op::CreateTable { .. }
            | Op::DeleteTable { .. }
            | Op::ListTables
            | Op::TableWrite { .. }
            | Op::TableScan { .. } => None,
        }
    }

    /// The table that it is about, of those that come and go.
    pub fn table(&self) -> Option<&str> {
        match self {
            Op::CreateTable { name }
            | Op::DeleteTable { name }
            | Op::TableWrite { name, .. }
            | Op::TableScan { name } => Some(name),
            Op::Write { .. }
            | Op::Check { .. }
            | Op::Read { .. }
            | Op::Append { .. }
            | Op::ReadLog { .. }
            | Op::Scan { .. }
            | Op::Nodes { .. }
            | Op::ReadNodes
            | Op::ListTables => None,
        }
    }
}

/// A row that a scan brought.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SeenRow {
    /// Its key.
    pub key: Bytes,
    /// What was shown of it.
    pub cells: Cells,
    /// When it arrived.
    pub at: std::time::Duration,
}

/// What an operation that is done was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    /// That it is done.
    Done,
    /// Whether the condition held.
    Matched(bool),
    /// A register; all of its columns are zero if there is no row.
    Cells(Cells),
    /// A log: the tokens in order, and the counter.
    Log { tokens: Vec<Token>, count: i64 },
    /// Rows; `whole` unless the scan ended before its end.
    Rows { rows: Vec<SeenRow>, whole: bool },
    /// Nodes.
    Nodes(Vec<Node>),
    /// Names of tables.
    Tables(Vec<Arc<str>>),
    /// The tokens in a table that comes and goes.
    Tokens(Vec<Token>),
}

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.table, self.key.escape_ascii())
    }
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Write::Value { token, mask } => write!(f, "t{token} [{:06b}]", mask.0),
            Write::Delete => f.write_str("delete"),
        }
    }
}

impl fmt::Display for Cells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.iter().all(|token| *token == 0) {
            return f.write_str("no row");
        }
        let some = COLUMNS.iter().zip(self.0).filter(|(_, token)| *token != 0);
        for (place, (column, token)) in some.enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            match token {
                GARBAGE => write!(f, "{comma}{column}=?")?,
                token => write!(f, "{comma}{column}=t{token}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let written = |write: &Option<Write>| write.map_or("nothing".to_owned(), |write| write.to_string());
        match self {
            Op::Write { row, write } => write!(f, "write {row} {write}"),
            Op::Check { row, expect, then, otherwise } => {
                write!(f, "if {row} is {expect:?} then {} else {}", written(then), written(otherwise))
            }
            Op::Read { row } => write!(f, "read {row}"),
            Op::Append { row, token } => write!(f, "append {row} t{token}"),
            Op::ReadLog { row } => write!(f, "read log {row}"),
            Op::Scan { shape } => write!(
                f,
                "scan {}/{}..{} {:?} limit {} {:?}",
                shape.table,
                shape.start.escape_ascii(),
                shape.end.escape_ascii(),
                shape.order,
                shape.limit,
                shape.shown
            ),
            Op::Nodes { nodes } => {
                write!(f, "write {} nodes from {:x}", nodes.len(), nodes.first().map_or(0, |node| node.id))
            }
            Op::ReadNodes => f.write_str("read all nodes"),
            Op::CreateTable { name } => write!(f, "create table {name}"),
            Op::DeleteTable { name } => write!(f, "delete table {name}"),
            Op::ListTables => f.write_str("list tables"),
            Op::TableWrite { name, token } => write!(f, "write t{token} to table {name}"),
            Op::TableScan { name } => write!(f, "scan table {name}"),
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Told::Done => f.write_str("done"),
            Told::Matched(matched) => f.write_str(if *matched { "it was" } else { "it was not" }),
            Told::Cells(cells) => write!(f, "{cells}"),
            Told::Log { tokens, count } => write!(f, "count {count}, tokens {tokens:?}"),
            Told::Rows { rows, whole } => {
                write!(f, "{} rows{}", rows.len(), if *whole { "" } else { ", then an error" })
            }
            Told::Nodes(nodes) => write!(f, "{} nodes", nodes.len()),
            Told::Tables(names) => write!(f, "tables {}", names.join(" ")),
            Told::Tokens(tokens) => write!(f, "tokens {tokens:?}"),
        }
    }
}
