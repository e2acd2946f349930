//! A row is shown as one write left it: all columns of a write at once, and nothing of those before.
//!
//! Why: a row's mutations become visible together. A read between two of them, a tablet whose locality
//! groups were flushed at different moments, or a deletion that replay dropped shows a mixture.

use super::Finding;
use super::registers::Registers;
use crate::history::{Cells, Entry, GARBAGE, Op, RowId, Shown, Told};

/// All reads and scans.
pub fn check(entries: &[Entry], registers: &Registers<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for entry in entries {
        match (&entry.op, entry.told()) {
            (Op::Read { row }, Some(Told::Cells(cells))) => {
                let shown = Shown::Columns(crate::history::Mask::ALL);
                findings.extend(mixed(registers, row, cells, shown).map(|detail| Finding::new(entry.id, detail)));
            }
            (Op::Scan { shape }, Some(Told::Rows { rows, .. })) if shape.shown != Shown::Keys => {
                let seen = rows.iter().find_map(|seen| {
                    let row = RowId { table: shape.table, key: seen.key.clone() };
                    mixed(registers, &row, &seen.cells, shape.shown)
                });
                findings.extend(seen.map(|detail| Finding::new(entry.id, detail)));
            }
            _ => {}
        }
    }
    findings
}

fn mixed(registers: &Registers<'_>, row: &RowId, cells: &Cells, shown: Shown) -> Option<String> {
    match cells.token() {
        0 => None,
        GARBAGE if cells.0.iter().all(|token| *token == 0 || *token == GARBAGE) => None,
        GARBAGE => Some(format!("{row} shows several writes at once: {cells}")),
        token => {
            // A token that nobody wrote is another check's.
            let origin = registers.origins.get(&token)?;
            let whole = Cells::of(token, origin.mask, shown);
            (whole != *cells).then(|| format!("{row} shows a part of #{}: {cells} in place of {whole}", origin.op))
        }
    }
}
