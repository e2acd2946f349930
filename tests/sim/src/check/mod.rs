//! Checks of a run's history: one file per invariant. Pure: a history goes in, violations come out.
//!
//! | file | holds |
//! |---|---|
//! | [`acknowledged`] | what was acknowledged is there at the end; what is there was written |
//! | [`exactly_once`] | an acknowledged append happened once, an unknown one at most once |
//! | [`atomic_rows`] | a row is shown as one write left it |
//! | [`linearizable`] | the operations on a row have one order that real time allows |
//! | [`scans`] | a scan shows each row once, in order, as it was during the scan |
//! | [`linked_list`] | no flushed node points at nothing |
//! | [`tables`] | tables come and go as acknowledged, and take their rows with them |
//!
//! `registers` sorts a history by row, `zones` decides whether a register's history has an order.

mod acknowledged;
mod atomic_rows;
mod exactly_once;
mod linearizable;
mod linked_list;
mod registers;
mod scans;
mod tables;
#[cfg(test)]
mod tests;
mod zones;

use crate::history::{Entry, OpId, around};
pub use acknowledged::FINAL;
use registers::Registers;

/// Violations of one invariant that are reported; the rest repeat them.
const REPORTED_MAX: usize = 5;

/// An invariant that a history breaks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which invariant: the name of its file.
    pub invariant: &'static str,
    /// What breaks it.
    pub detail: String,
    /// The operations around it.
    pub history: Vec<String>,
}

/// What a check found: a sentence, and the operation it is about.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Finding {
    detail: String,
    about: OpId,
}

impl Finding {
    fn new(about: OpId, detail: impl Into<String>) -> Finding {
        Finding { detail: detail.into(), about }
    }
}

/// Everything that is wrong with a history; the most telling first.
pub fn check(entries: &[Entry]) -> Vec<Violation> {
    let registers = Registers::of(entries);
    let found = [
        ("acknowledged", acknowledged::check(entries, &registers)),
        ("exactly_once", exactly_once::check(entries)),
        ("atomic_rows", atomic_rows::check(entries, &registers)),
        ("linearizable", linearizable::check(entries, &registers)),
        ("scans", scans::check(entries, &registers)),
        ("linked_list", linked_list::check(entries)),
        ("tables", tables::check(entries)),
    ];
    let mut violations = Vec::new();
    for (invariant, findings) in found {
        violations.extend(findings.into_iter().take(REPORTED_MAX).map(|finding| Violation {
            invariant,
            history: around(entries, finding.about),
            detail: finding.detail,
        }));
    }
    violations
}
