//! What was acknowledged is there at the end; what is there was written, and not refused.
//!
//! Why: this is the promise. The other checks find more, this one says it most plainly: a read of the
//! end shows a row's last acknowledged write, or one that may have come after it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Finding;
use super::registers::{Register, Registers, Written};
use crate::history::{Entry, GARBAGE, RowId, Token};

/// The workload under which the end is read.
pub const FINAL: &str = "verify";

/// All registers.
pub fn check(entries: &[Entry], registers: &Registers<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (row, register) in &registers.rows {
        findings.extend(never_written(registers, row, register));
        findings.extend(lost(entries, row, register));
    }
    findings
}

fn never_written(registers: &Registers<'_>, row: &RowId, register: &Register) -> Option<Finding> {
    let writes: BTreeMap<Token, &Written> = register.writes.iter().map(|write| (write.token, write)).collect();
    let value = register.seen.iter().filter(|seen| seen.token != 0).find_map(|seen| {
        if writes.contains_key(&seen.token) {
            return None;
        }
        let detail = match registers.origins.get(&seen.token) {
            // A mixture is another check's, and so is a row's own origin under another name.
            None if seen.token == GARBAGE => format!("{row} holds what is no single write's value"),
            None => format!("{row} holds t{}, which nobody wrote", seen.token),
            Some(origin) if origin.row == row => {
                format!("{row} holds t{}, but #{} did not do that", seen.token, origin.op)
            }
            Some(origin) => format!("{row} holds t{}, which #{} wrote to {}", seen.token, origin.op, origin.row),
        };
        Some(Finding::new(seen.span.op, detail))
    });
    let key = || {
        let unwritten =
            |end: Duration| !register.writes.iter().any(|write| write.token != 0 && write.span.start <= end);
        let span = register.present.iter().find(|span| unwritten(span.end))?;
        Some(Finding::new(span.op, format!("{row} is there, but nobody wrote it")))
    };
    value.or_else(key)
}

fn lost(entries: &[Entry], row: &RowId, register: &Register) -> Option<Finding> {
    let last = register
        .seen
        .iter()
        .filter(|seen| entries[seen.span.op].workload == FINAL)
        .max_by_key(|seen| seen.span.start)?;
    // The write that is shown, or the deletions that may explain that nothing is.
    let mut shown = register.writes.iter().filter(|write| write.token == last.token);
    let acknowledged =
        register.writes.iter().filter(|write| write.done && write.token != 0 && write.span.end < last.span.start);
    let newest = acknowledged.max_by_key(|write| write.span.start)?;
    let explained = shown.any(|write| write.span.end >= newest.span.start && write.span.start <= last.span.end);
    // An unknown write that was seen before the newest began is over.
    let seen_before = register
        .seen
        .iter()
        .any(|seen| last.token != 0 && seen.token == last.token && seen.span.end < newest.span.start);
    let found = if last.token == 0 { "no row".to_owned() } else { format!("t{}", last.token) };
    (!explained || seen_before).then(|| {
        Finding::new(
            last.span.op,
            format!("{row}: t{} of #{} is acknowledged and lost; there is {found}", newest.token, newest.span.op),
        )
    })
}
