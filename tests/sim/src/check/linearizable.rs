//! The operations on a row have one order that real time allows.
//!
//! Why: a lapsed lease, a second owner, a lost log or a write applied twice all show as a value that
//! is seen after it should have been replaced, or not seen although it should be there.
//!
//! Registers are decided by their zones ([`super::zones`]). A log shows its whole order: all sights of
//! it must be beginnings of the longest, and a shorter one must not begin after a longer one ended.

use std::collections::BTreeMap;
use std::time::Duration;

use super::registers::{Registers, Span, span};
use super::{Finding, zones};
use crate::history::{Entry, Op, RowId, Token, Told};

/// All rows, scans left out.
pub fn check(entries: &[Entry], registers: &Registers<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (row, register) in &registers.rows {
        if let Some(finding) = zones::check(register, false) {
            findings.push(Finding::new(finding.about, format!("{row}: {}", finding.detail)));
        }
    }
    for (row, log) in logs(entries) {
        if let Some(finding) = check_log(&log) {
            findings.push(Finding::new(finding.about, format!("{row}: {}", finding.detail)));
        }
    }
    findings
}

/// All that happened to one log.
#[derive(Default)]
pub struct Log<'a> {
    /// Appends, by token.
    pub appends: BTreeMap<Token, &'a Entry>,
    /// Sights: tokens and the counter.
    pub seen: Vec<(Span, &'a [Token], i64)>,
}

/// The history's logs, by row.
pub fn logs(entries: &[Entry]) -> BTreeMap<&RowId, Log<'_>> {
    let mut logs: BTreeMap<&RowId, Log<'_>> = BTreeMap::new();
    for entry in entries {
        let row = match &entry.op {
            Op::Append { row, token } => {
                logs.entry(row).or_default().appends.insert(*token, entry);
                row
            }
            Op::ReadLog { row } => row,
            _ => continue,
        };
        if let Some(Told::Log { tokens, count }) = entry.told() {
            logs.entry(row).or_default().seen.push((span(entry), tokens, *count));
        }
    }
    logs
}

fn check_log(log: &Log<'_>) -> Option<Finding> {
    let longest = log.seen.iter().max_by_key(|(_, tokens, _)| tokens.len())?;
    // By length: from when on it was certainly reached, and the last call that saw no more.
    let mut reached: Vec<Option<Span>> = vec![None; longest.1.len() + 1];
    let mut last_seen: Vec<Option<Span>> = vec![None; longest.1.len() + 1];
    let mut add = |length: usize, span: Span| {
        if reached[length].is_none_or(|known| span.end < known.end) {
            reached[length] = Some(span);
        }
        if last_seen[length].is_none_or(|known| span.start > known.start) {
            last_seen[length] = Some(span);
        }
    };
    for (span, tokens, _) in &log.seen {
        if longest.1[..tokens.len()] != **tokens {
            return Some(Finding::new(span.op, format!("#{} and #{} see different orders", span.op, longest.0.op)));
        }
        add(tokens.len(), *span);
    }
    for (place, token) in longest.1.iter().enumerate() {
        let Some(append) = log.appends.get(token) else { continue };
        let end = if append.is_done() { append.end() } else { Duration::MAX };
        add(place + 1, Span { end, ..span(append) });
    }
    let mut latest: Option<Span> = None;
    for (reached, last) in reached.iter().zip(&last_seen) {
        if let (Some(latest), Some(reached)) = (latest, reached)
            && reached.end < latest.start
        {
            return Some(Finding::new(
                latest.op,
                format!("#{} knows more of the log than #{}, which began after it ended", reached.op, latest.op),
            ));
        }
        if let Some(last) = last
            && latest.is_none_or(|latest| last.start > latest.start)
        {
            latest = Some(*last);
        }
    }
    log.seen.iter().find_map(|(span, tokens, _)| {
        let own = log.appends.iter().find(|(_, append)| append.id == span.op)?;
        (tokens.last() != Some(own.0))
            .then(|| Finding::new(span.op, format!("#{} appends t{} and is told another end", span.op, own.0)))
    })
}
