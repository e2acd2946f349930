//! `check`: whether meta rows, the servers' reports and storage fit together. It changes nothing.
//!
//! What it sees may be on its way to be right: an error is only what is seen twice, or what no step under way
//! can explain.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use uruk_proto::master::{CheckFinding, CheckResponse};
use uruk_proto::{ErrorCode, RpcError, ServerId};

use crate::files::SWEPT_PREFIXES;
use crate::shared::Shared;
use crate::state::State;
use crate::state::files::creator;
use crate::state::row::{MetaRow, TabletState};
use crate::volatile::Volatile;

/// Findings of one kind that are told.
const FINDINGS_MAX: usize = 100;
/// So many openings in a row have failed: somebody must look.
const OPENINGS_FAILED: u32 = 3;

fn finding(kind: &str, what: String, remedy: &str, is_error: bool) -> CheckFinding {
    CheckFinding { kind: kind.to_owned(), what, remedy: remedy.to_owned(), is_error }
}

/// Checks everything once.
pub async fn run(shared: &Shared, deep: bool) -> Result<CheckResponse, RpcError> {
    let mut answer = CheckResponse::default();
    shared.consensus.read(|state| {
        answer.tablets = state.index.tablets() as u64;
        answer.files = state.named_files().len() as u64;
        answer.logs = (state.servers.live().len() + state.unfinished_recoveries().len()) as u64;
        answer.findings.extend(holes(state));
        answer.findings.extend(ownerless(state));
        answer.findings.extend(needless_logs(state));
    });
    answer.findings.extend(two_owners(shared).await);
    answer.findings.extend(files(shared, deep).await?);
    Ok(answer)
}

/// Keys that no row covers, or two.
pub fn holes(state: &State) -> Vec<CheckFinding> {
    let mut findings = Vec::new();
    for table in state.tables.all().filter(|table| !table.is_deleting()) {
        let mut end: Option<bytes::Bytes> = Some(bytes::Bytes::new());
        for row in state.meta.rows_of(table.schema.id) {
            let start = &row.range.start;
            let kind = match &end {
                Some(end) if end == start => None,
                Some(end) if end < start => Some("hole"),
                Some(_) | None => Some("overlap"),
            };
            let what = || format!("{} of table {} at \"{}\"", row.tablet, table.schema.name, start.escape_ascii());
            findings.extend(kind.map(|kind| finding(kind, what(), "a bug: keep the master's data folder", true)));
            end = (!row.range.end.is_empty()).then(|| row.range.end.clone());
        }
        if let Some(end) = end {
            let what = format!("table {} ends at \"{}\"", table.schema.name, end.escape_ascii());
            findings.push(finding("hole", what, "a bug: keep the master's data folder", true));
        }
    }
    findings
}

/// Tablets that nobody has.
fn ownerless(state: &State) -> Vec<CheckFinding> {
    let rows = state.index.waiting().iter().filter_map(|tablet| state.row(*tablet)).take(FINDINGS_MAX);
    let tell = |row: &MetaRow| {
        let failure = row.failure.as_ref();
        let is_error = failure.is_some_and(|failure| failure.openings >= OPENINGS_FAILED);
        let what = match (row.state, failure) {
            (TabletState::Failed, Some(failure)) => format!("{} could not be opened: {}", row.tablet, failure.reason),
            _ if !state.is_openable(row) => format!("{} waits for the logs of {:?}", row.tablet, row.needed_logs),
            _ => format!("{} waits for a server", row.tablet),
        };
        finding("no-owner", what, "it is assigned again as soon as it can be", is_error)
    };
    rows.map(tell).collect()
}

/// Logs of dead servers that nobody needs, and that are still there.
fn needless_logs(state: &State) -> Vec<CheckFinding> {
    let needless = state.unfinished_recoveries().iter().filter(|log| {
        let is_sealed = state.recoveries.get(**log).is_some_and(|recovery| recovery.seal.is_some());
        is_sealed && state.index.log_users(**log).len() == 0
    });
    let tell = |log: &ServerId| finding("needless-log", format!("the log of {log}"), "it is deleted soon", false);
    needless.map(tell).collect()
}

/// Reports of tablets that are not the reporter's, in two reports in a row.
async fn two_owners(shared: &Shared) -> Vec<CheckFinding> {
    let look = || shared.consensus.read(|state| strangers(state, &shared.volatile.lock()));
    let first = look();
    if first.is_empty() {
        return Vec::new();
    }
    shared.env.clock.sleep(Duration::from_millis(u64::from(shared.tuning.renewal_ms) * 2)).await;
    let second = look();
    let both = first.into_iter().filter(|(key, _)| second.contains_key(key)).take(FINDINGS_MAX);
    let tell = |what| finding("two-owners", what, "a bug: stop the server that is not in the row", true);
    both.map(|(_, what)| tell(what)).collect()
}

/// What servers say they serve, though it is not theirs.
pub fn strangers(state: &State, volatile: &Volatile) -> BTreeMap<(ServerId, u64, u64), String> {
    let mut found = BTreeMap::new();
    for (server, load) in &volatile.loads {
        for (tablet, reported) in load.tablets.iter() {
            let row = state.row(*tablet);
            if row.is_some_and(|row| row.owner() == Some(*server) && row.epoch.0 >= reported.epoch) {
                continue;
            }
            let owner = row.map_or_else(|| "is gone".to_owned(), |row| format!("is {:?}", row.state));
            let what = format!("{server} reports {tablet} at epoch {}, which {owner}", reported.epoch);
            found.insert((*server, tablet.0, reported.epoch), what);
        }
    }
    found
}

/// References to files that are not there; and, if asked, files that nothing names.
async fn files(shared: &Shared, deep: bool) -> Result<Vec<CheckFinding>, RpcError> {
    let named = shared.consensus.read(State::named_files);
    let objects = &shared.storage.objects;
    let mut listed = BTreeSet::new();
    for prefix in SWEPT_PREFIXES {
        let mut list = objects.list(Some(&Path::from(prefix)));
        let failed = |error| RpcError::new(ErrorCode::Unavailable, format!("cannot list {prefix}: {error}"));
        while let Some(file) = list.try_next().await.map_err(failed)? {
            listed.insert(file.location.to_string());
        }
    }
    let mut findings = Vec::new();
    for path in named.difference(&listed) {
        // It may have been let go meanwhile; and a list may be old.
        let is_there = objects.head(&Path::from(path.as_str())).await.is_ok();
        if !is_there && shared.consensus.read(|state| state.is_named(path)) && findings.len() < FINDINGS_MAX {
            findings.push(finding("missing-file", path.clone(), "restore it from a copy of the storage", true));
        }
    }
    if deep {
        findings.extend(shared.consensus.read(|state| unnamed(state, &named, &listed)));
    }
    Ok(findings)
}

/// Of an owner, a file may just be on its way to be named.
fn unnamed(state: &State, named: &BTreeSet<String>, listed: &BTreeSet<String>) -> Vec<CheckFinding> {
    let queued = state.unnamed_files();
    let is_orphan = |path: &&String| {
        !state.is_named(path)
            && !queued.contains(*path)
            && creator(path).is_none_or(|creator| state.is_abandoned(path, creator))
    };
    let orphans = listed.difference(named).filter(is_orphan).take(FINDINGS_MAX);
    let remedy = |path: &str| match creator(path) {
        Some(_) => "it is deleted when orphans are looked for",
        None => "no tablet server names files so: look who made it",
    };
    orphans.map(|path| finding("unnamed-file", path.clone(), remedy(path), false)).collect()
}
