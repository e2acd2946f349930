//! The verdict: a scan of everything, each node classified, each acknowledged one found.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt;
use uruk_client::{ReadOptions, RowRange, ScanOptions, Table};

use crate::load::linked_list::audit::{Attendance, Classes, classify};
use crate::load::linked_list::traffic::node_of;
use crate::load::linked_list::{Ledger, Lists, NodeId, row_key};

/// A scan that makes no progress for this long fails.
const SCAN_DEADLINE: Duration = Duration::from_secs(60);
/// A scan that fails is begun anew this often: a verdict must not depend on one broken connection.
const SCANS_MAX: u32 = 3;
/// So many lost or undefined nodes are looked at one by one.
const LOOKED_AT_MAX: usize = 25;

/// What the scan found.
#[derive(Debug)]
pub struct Verdict {
    /// Rows that are nodes.
    pub nodes: u64,
    /// Referenced, unreferenced, undefined.
    pub classes: Classes,
    /// Acknowledged nodes that are absent, torn, or without an acknowledged change.
    pub lost: Vec<NodeId>,
    /// Rows that hold something else than was written, acknowledged or not.
    pub torn: Vec<u128>,
    /// What single reads say about the first of those.
    pub details: Vec<String>,
}

impl Verdict {
    /// Whether everything that must be there is.
    pub fn is_good(&self) -> bool {
        self.classes.undefined.is_empty() && self.lost.is_empty() && self.torn.is_empty()
    }
}

/// Scans the table and judges. The load must have stopped.
pub async fn verify(table: &Table, family: &str, lists: Lists, ledger: &Ledger) -> Result<Verdict> {
    let table = table.with_deadline(SCAN_DEADLINE);
    let mut turn = 1;
    loop {
        match scan(&table, family, lists, ledger).await {
            Ok(verdict) => return Ok(look_at(&table, family, lists, verdict).await),
            Err(error) if turn == SCANS_MAX => return Err(error).context("the final scan"),
            Err(error) => tracing::warn!(turn, %error, "the final scan is begun anew"),
        }
        turn += 1;
    }
}

async fn scan(table: &Table, family: &str, lists: Lists, ledger: &Ledger) -> Result<Verdict> {
    let mut attendance = Attendance::new(lists, ledger);
    let (mut defined, mut references) = (Vec::new(), Vec::new());
    let mut rows = table.scan(RowRange::ALL, ScanOptions::default());
    while let Some(row) = rows.next().await {
        let Some((key, id, previous)) = node_of(&row?, family) else { continue };
        defined.push(key);
        references.extend(previous.flatten());
        attendance.see(key, id, previous);
    }
    let (nodes, lost) = (defined.len() as u64, attendance.lost());
    let torn = attendance.torn;
    Ok(Verdict { nodes, classes: classify(defined, references), lost, torn, details: Vec::new() })
}

/// Asks for the rows one by one: a row that a scan misses and a read finds is another bug than one
/// that is gone.
async fn look_at(table: &Table, family: &str, lists: Lists, mut verdict: Verdict) -> Verdict {
    let undefined = verdict.classes.undefined.iter().map(|key| (format!("undefined {key:032x}"), *key));
    let lost = verdict.lost.iter().map(|id| {
        let key = lists.key(*id);
        (format!("lost node {} at {key:032x}", id.text()), key)
    });
    let torn = verdict.torn.iter().map(|key| (format!("torn {key:032x}"), *key));
    let suspects = undefined.take(LOOKED_AT_MAX).chain(lost.take(LOOKED_AT_MAX)).chain(torn.take(LOOKED_AT_MAX));
    let mut details = Vec::new();
    for (what, key) in suspects {
        let found = match table.read_row(row_key(key), &ReadOptions::default()).await {
            Ok(None) => "a read does not find it either".to_owned(),
            Ok(Some(row)) => {
                let (_, id, previous) = node_of(&row, family).unwrap_or((key, None, None));
                let previous = previous.map(|key| key.map(|key| format!("{key:032x}")));
                format!("a read finds node {:?}, pointing at {previous:?}", id.map(NodeId::text))
            }
            Err(error) => format!("a read fails: {error}"),
        };
        details.push(format!("{what}: {found}"));
    }
    verdict.details = details;
    verdict
}
