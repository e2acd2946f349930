//! A scan shows each row once, in order, within its range and limit, as it was at a moment of the
//! scan; a row that was there throughout is in it, a row that never was is not.
//!
//! Why: a scan goes on over splits, merges, moves and failovers. A piece that is opened twice, a range
//! skipped between two tablets, a missing file taken for the end all show here.

use std::collections::BTreeSet;

use super::registers::Registers;
use super::{Finding, zones};
use crate::history::{Entry, Op, ScanOrder, ScanShape, SeenRow, Told};

/// All scans.
pub fn check(entries: &[Entry], registers: &Registers<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for entry in entries {
        if let (Op::Scan { shape }, Some(Told::Rows { rows, .. })) = (&entry.op, entry.told()) {
            findings.extend(form(shape, rows).map(|detail| Finding::new(entry.id, format!("#{}: {detail}", entry.id))));
        }
    }
    for (row, register) in &registers.rows {
        // What is wrong without scans is another check's.
        if zones::check(register, false).is_none()
            && let Some(finding) = zones::check(register, true)
        {
            findings.push(Finding::new(finding.about, format!("{row}: {}", finding.detail)));
        }
    }
    findings
}

fn form(shape: &ScanShape, rows: &[SeenRow]) -> Option<String> {
    if shape.limit > 0 && rows.len() as u64 > shape.limit {
        return Some(format!("{} rows, the limit is {}", rows.len(), shape.limit));
    }
    let mut keys = BTreeSet::new();
    for seen in rows {
        if !keys.insert(&seen.key) {
            return Some(format!("row {} comes twice", seen.key.escape_ascii()));
        }
        if seen.key < shape.start || (!shape.end.is_empty() && seen.key >= shape.end) {
            return Some(format!("row {} is not in the range", seen.key.escape_ascii()));
        }
    }
    let wrong = rows.windows(2).find(|pair| match shape.order {
        ScanOrder::Ascending => pair[0].key > pair[1].key,
        ScanOrder::Descending => pair[0].key < pair[1].key,
        ScanOrder::Any => false,
    });
    wrong.map(|pair| format!("row {} comes after {}", pair[1].key.escape_ascii(), pair[0].key.escape_ascii()))
}
