//! A history sorted by row: who wrote which register when, and who saw what.
//!
//! A conditional write is taken apart: that it matched is a read of the token it asked for, and its
//! write must follow that token's write at once; that it did not match says that the token was not
//! there at some moment.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::history::{
    Ended, Entry, Expect, Mask, Op, OpId, RowId, ScanOrder, ScanShape, SeenRow, Shown, Token, Told, Write,
};

/// A moment lies within it: from the call to the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// Whose.
    pub op: OpId,
    /// The call.
    pub start: Duration,
    /// The answer; the end of time if the operation may still have its effect.
    pub end: Duration,
}

/// A write that happened or may have happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    /// When.
    pub span: Span,
    /// The value; zero for a deletion.
    pub token: Token,
    /// It is certain to have happened.
    pub done: bool,
    /// It came right after the write of this token.
    pub after: Option<Token>,
}

/// A sight of a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// When.
    pub span: Span,
    /// What was there; zero for no row.
    pub token: Token,
    /// A scan saw it.
    pub scan: bool,
}

/// A token that was not there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Missed {
    /// When.
    pub span: Span,
    /// The token.
    pub token: Token,
    /// A scan says so.
    pub scan: bool,
}

/// All that happened to one register.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Register {
    /// Writes, in the order of their calls.
    pub writes: Vec<Written>,
    /// What was seen.
    pub seen: Vec<Seen>,
    /// What was certainly not there.
    pub missed: Vec<Missed>,
    /// Who saw a row, without its content.
    pub present: Vec<Span>,
}

/// Where a token comes from.
#[derive(Clone, Debug)]
pub struct Origin<'a> {
    /// The row it was written to.
    pub row: &'a RowId,
    /// The columns it was written to.
    pub mask: Mask,
    /// By which operation.
    pub op: OpId,
}

/// All registers of a history.
pub struct Registers<'a> {
    /// By row.
    pub rows: BTreeMap<RowId, Register>,
    /// Every token that any operation was to write, also those that did not.
    pub origins: BTreeMap<Token, Origin<'a>>,
}

impl<'a> Registers<'a> {
    /// Sorts the history.
    pub fn of(entries: &'a [Entry]) -> Registers<'a> {
        let mut registers = Registers { rows: BTreeMap::new(), origins: BTreeMap::new() };
        for entry in entries {
            match &entry.op {
                Op::Write { row, write } => {
                    registers.origin(entry, row, write);
                    let done = entry.is_done();
                    registers.write(entry, row, write, done, None);
                }
                Op::Check { row, expect, then, otherwise } => {
                    for write in then.iter().chain(otherwise) {
                        registers.origin(entry, row, write);
                    }
                    registers.check(entry, row, *expect, then.as_ref(), otherwise.as_ref());
                }
                Op::Read { row } => {
                    if let Some(Told::Cells(cells)) = entry.told() {
                        let seen = Seen { span: span(entry), token: cells.token(), scan: false };
                        registers.row(row).seen.push(seen);
                    }
                }
                Op::Append { .. }
                | Op::ReadLog { .. }
                | Op::Scan { .. }
                | Op::Nodes { .. }
                | Op::ReadNodes
                | Op::CreateTable { .. }
                | Op::DeleteTable { .. }
                | Op::ListTables
                | Op::TableWrite { .. }
                | Op::TableScan { .. } => {}
            }
        }
        // All rows are known by now, so that each scan also says which it did not find.
        for entry in entries {
            if let (Op::Scan { shape }, Some(Told::Rows { rows, whole })) = (&entry.op, entry.told()) {
                registers.scan(entry, shape, rows, *whole);
            }
        }
        registers
    }

    fn row(&mut self, row: &RowId) -> &mut Register {
        if !self.rows.contains_key(row) {
            self.rows.insert(row.clone(), Register::default());
        }
        self.rows.get_mut(row).expect("it was inserted above")
    }

    fn origin(&mut self, entry: &Entry, row: &'a RowId, write: &Write) {
        if let Write::Value { token, mask } = write {
            self.origins.insert(*token, Origin { row, mask: *mask, op: entry.id });
        }
    }

    fn write(&mut self, entry: &Entry, row: &RowId, write: &Write, done: bool, after: Option<Token>) {
        if !entry.may_be_done() {
            self.row(row);
            return;
        }
        let token = match write {
            Write::Value { token, .. } => *token,
            Write::Delete => 0,
        };
        let mut span = span(entry);
        if !done {
            span.end = Duration::MAX;
        }
        self.row(row).writes.push(Written { span, token, done, after });
    }

    fn check(&mut self, entry: &Entry, row: &RowId, expect: Expect, then: Option<&Write>, otherwise: Option<&Write>) {
        let asked = match expect {
            Expect::Token(token) => Some(token),
            Expect::Present => None,
        };
        let span = span(entry);
        match &entry.ended {
            Ended::Done(Told::Matched(true)) => {
                if let Some(token) = asked {
                    self.row(row).seen.push(Seen { span, token, scan: false });
                }
                if let Some(write) = then {
                    self.write(entry, row, write, true, asked);
                }
            }
            Ended::Done(_) => {
                match asked {
                    Some(token) => self.row(row).missed.push(Missed { span, token, scan: false }),
                    None => self.row(row).seen.push(Seen { span, token: 0, scan: false }),
                }
                if let Some(write) = otherwise {
                    self.write(entry, row, write, true, None);
                }
            }
            Ended::Unknown(_) => {
                if let Some(write) = then {
                    self.write(entry, row, write, false, asked);
                }
                if let Some(write) = otherwise {
                    self.write(entry, row, write, false, None);
                }
            }
            Ended::NotDone(_) => {}
        }
    }

    fn scan(&mut self, entry: &Entry, shape: &ScanShape, rows: &[SeenRow], whole: bool) {
        let whole_span = span(entry);
        let mut found = std::collections::BTreeSet::new();
        for row in rows {
            found.insert(&row.key);
            let id = RowId { table: shape.table, key: row.key.clone() };
            let span = Span { end: row.at, ..whole_span };
            let register = self.row(&id);
            match shape.shown {
                Shown::Keys => register.present.push(span),
                Shown::Columns(_) | Shown::First | Shown::Value(_) => {
                    register.seen.push(Seen { span, token: row.cells.token(), scan: true });
                }
            }
        }
        let tells_absence = match shape.shown {
            Shown::Columns(mask) => mask.has(crate::history::MARK),
            Shown::First | Shown::Keys | Shown::Value(_) => true,
        };
        if !tells_absence {
            return;
        }
        let first = RowId { table: shape.table, key: shape.start.clone() };
        let known = self.rows.range_mut(first..);
        for (id, register) in known.take_while(|(id, _)| id.table == shape.table) {
            if !shape.end.is_empty() && id.key >= shape.end {
                break;
            }
            if found.contains(&id.key) || !covered(shape, rows, whole, &id.key) {
                continue;
            }
            match shape.shown {
                Shown::Value(token) => register.missed.push(Missed { span: whole_span, token, scan: true }),
                Shown::Columns(_) | Shown::First | Shown::Keys => {
                    register.seen.push(Seen { span: whole_span, token: 0, scan: true });
                }
            }
        }
    }
}

/// Whether a scan that brought `rows` must have brought a row of this key, had there been one.
fn covered(shape: &ScanShape, rows: &[SeenRow], whole: bool, key: &bytes::Bytes) -> bool {
    let limited = shape.limit > 0 && rows.len() as u64 >= shape.limit;
    if whole && !limited {
        return true;
    }
    // As far as it came.
    match (shape.order, rows.last()) {
        (ScanOrder::Ascending, Some(last)) => *key < last.key,
        (ScanOrder::Descending, Some(last)) => *key > last.key,
        (ScanOrder::Any, _) | (_, None) => false,
    }
}

/// From call to answer.
pub fn span(entry: &Entry) -> Span {
    Span { op: entry.id, start: entry.start, end: entry.end() }
}
