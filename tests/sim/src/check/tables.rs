//! A table that was acknowledged as created is there until it is deleted, with all rows written to
//! it; a deleted one is gone, and its rows do not come back in a new table of the same name.
//!
//! Why: table ids are never used again, and a late order about an old table must not reach a new one.
//! A deletion that leaves a tablet open, or a log replayed into the wrong table, shows here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Finding;
use crate::history::{Entry, Op, Token, Told};

/// What happened to a name.
#[derive(Default)]
struct Name<'a> {
    creates: Vec<&'a Entry>,
    deletes: Vec<&'a Entry>,
    writes: BTreeMap<Token, &'a Entry>,
}

/// All names.
pub fn check(entries: &[Entry]) -> Vec<Finding> {
    let mut names: BTreeMap<&str, Name<'_>> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| entry.may_be_done()) {
        match &entry.op {
            Op::CreateTable { name } => names.entry(name).or_default().creates.push(entry),
            Op::DeleteTable { name } => names.entry(name).or_default().deletes.push(entry),
            Op::TableWrite { name, token } => {
                names.entry(name).or_default().writes.insert(*token, entry);
            }
            _ => {}
        }
    }
    let mut findings = Vec::new();
    for entry in entries {
        match (&entry.op, entry.told()) {
            (Op::ListTables, Some(Told::Tables(listed))) => {
                let listed: BTreeSet<&str> = listed.iter().map(|name| &**name).collect();
                findings.extend(
                    names.iter().find_map(|(name, known)| existence(name, known, entry, listed.contains(name))),
                );
            }
            (Op::TableScan { name }, Some(told)) => {
                let Some(known) = names.get(&**name) else { continue };
                let found = matches!(told, Told::Tokens(_));
                findings.extend(existence(name, known, entry, found));
                if let Told::Tokens(tokens) = told {
                    findings.extend(rows(name, known, entry, tokens));
                }
            }
            _ => {}
        }
    }
    findings
}

/// From when on an operation has no further effect.
fn settled(entry: &Entry) -> Duration {
    if entry.is_done() { entry.end() } else { Duration::MAX }
}

/// Whether one of `others` may have taken effect between `since`'s and the end of `until`.
fn may_have_come_between(others: &[&Entry], since: &Entry, until: &Entry) -> bool {
    others.iter().any(|other| settled(other) >= since.start && other.start <= until.end())
}

fn existence(name: &str, known: &Name<'_>, seen: &Entry, found: bool) -> Option<Finding> {
    let before = |entry: &&&Entry| entry.is_done() && entry.end() < seen.start;
    if found {
        if !known.creates.iter().any(|create| create.start <= seen.end()) {
            return Some(Finding::new(seen.id, format!("table {name} is there, but nobody made it")));
        }
        let mut deletes = known.deletes.iter().filter(before);
        deletes
            .find(|delete| !may_have_come_between(&known.creates, delete, seen))
            .map(|delete| Finding::new(seen.id, format!("table {name} is there, but #{} deleted it", delete.id)))
    } else {
        let mut creates = known.creates.iter().filter(before);
        creates
            .find(|create| !may_have_come_between(&known.deletes, create, seen))
            .map(|create| Finding::new(seen.id, format!("table {name} is not there, but #{} made it", create.id)))
    }
}

fn rows(name: &str, known: &Name<'_>, seen: &Entry, tokens: &[Token]) -> Option<Finding> {
    let there: BTreeSet<Token> = tokens.iter().copied().collect();
    for token in &there {
        let Some(write) = known.writes.get(token).filter(|write| write.start <= seen.end()) else {
            return Some(Finding::new(seen.id, format!("table {name} holds t{token}, which nobody wrote to it")));
        };
        // An attempt names the table's id: once the call is over, none can reach a later table.
        let deleted = known
            .deletes
            .iter()
            .find(|delete| delete.is_done() && delete.start > write.end() && delete.end() < seen.start);
        if let Some(delete) = deleted {
            return Some(Finding::new(
                seen.id,
                format!("table {name} holds t{token} of #{}, but #{} deleted it since", write.id, delete.id),
            ));
        }
    }
    known.writes.iter().find_map(|(token, write)| {
        let lost = write.is_done()
            && write.end() < seen.start
            && !there.contains(token)
            && !may_have_come_between(&known.deletes, write, seen);
        lost.then(|| Finding::new(seen.id, format!("table {name}: t{token} of #{} is acknowledged and lost", write.id)))
    })
}
