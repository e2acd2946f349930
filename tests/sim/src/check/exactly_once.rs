//! An acknowledged append happened exactly once, one that was refused never, an unknown one at most
//! once; and the counter beside it counts the same.
//!
//! Why: a retry after an unknown attempt carries the same idempotency key; a key forgotten at a
//! failover, a split or a move applies the write twice, and a log replayed twice does as well.

use std::collections::BTreeSet;

use super::Finding;
use super::linearizable::logs;
use crate::history::Entry;

/// All logs.
pub fn check(entries: &[Entry]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (row, log) in logs(entries) {
        let finding = log.seen.iter().find_map(|(span, tokens, count)| {
            let mut distinct = BTreeSet::new();
            if let Some(token) = tokens.iter().find(|token| !distinct.insert(**token)) {
                return Some(Finding::new(span.op, format!("{row}: t{token} is there twice")));
            }
            if *count != tokens.len() as i64 {
                return Some(Finding::new(
                    span.op,
                    format!("{row}: {} tokens, but the counter is {count}", tokens.len()),
                ));
            }
            for token in *tokens {
                match log.appends.get(token) {
                    None => return Some(Finding::new(span.op, format!("{row}: nobody appended t{token}"))),
                    Some(append) if !append.may_be_done() => {
                        return Some(Finding::new(
                            span.op,
                            format!("{row}: t{token} is there, but #{} is not done", append.id),
                        ));
                    }
                    Some(append) if append.start > span.end => {
                        return Some(Finding::new(
                            span.op,
                            format!("{row}: t{token} is there before #{} began", append.id),
                        ));
                    }
                    Some(_) => {}
                }
            }
            None
        });
        findings.extend(finding);
        // Lost: acknowledged before the sight began, and not in it.
        let lost = log.seen.iter().max_by_key(|(span, _, _)| span.start).and_then(|(span, tokens, _)| {
            let there: BTreeSet<_> = tokens.iter().collect();
            let mut acknowledged =
                log.appends.iter().filter(|(_, append)| append.is_done() && append.end() < span.start);
            acknowledged.find(|(token, _)| !there.contains(token)).map(|(token, append)| {
                Finding::new(span.op, format!("{row}: t{token} of #{} is acknowledged and lost", append.id))
            })
        });
        findings.extend(lost);
    }
    findings
}
