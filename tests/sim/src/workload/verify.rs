//! Reads everything back: each row by itself and by scans, the list, the tables.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use uruk_base::Moment;

use super::caller::Caller;
use super::layout::{DATA, INGEST};
use crate::history::{Entry, Mask, Op, RowId, ScanOrder, ScanShape, Shown};

/// All is read within this.
const VERIFY_BOUND: Duration = Duration::from_secs(60);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(200);

/// What there is to read.
#[derive(Default)]
struct Work {
    registers: BTreeSet<RowId>,
    logs: BTreeSet<RowId>,
    nodes: bool,
    tables: BTreeSet<Arc<str>>,
}

impl Work {
    fn of(entries: &[Entry]) -> Work {
        let mut work = Work::default();
        for entry in entries {
            match &entry.op {
                Op::Write { row, .. } | Op::Check { row, .. } | Op::Read { row } => {
                    work.registers.insert(row.clone());
                }
                Op::Append { row, .. } | Op::ReadLog { row } => {
                    work.logs.insert(row.clone());
                }
                Op::Nodes { .. } => work.nodes = true,
                Op::CreateTable { name } => {
                    work.tables.insert(name.clone());
                }
                Op::Scan { .. }
                | Op::ReadNodes
                | Op::DeleteTable { .. }
                | Op::ListTables
                | Op::TableWrite { .. }
                | Op::TableScan { .. } => {}
            }
        }
        work
    }
}

/// Reads it all.
pub async fn run(caller: &Caller) -> anyhow::Result<()> {
    let work = caller.shared.history.with(Work::of);
    let started = caller.env.clock.now();
    for table in [DATA, INGEST] {
        if !work.registers.iter().any(|row| row.table == table) {
            continue;
        }
        let shape = ScanShape {
            table,
            start: Bytes::new(),
            end: Bytes::new(),
            order: ScanOrder::Ascending,
            limit: 0,
            shown: Shown::Columns(Mask::ALL),
        };
        while !caller.scan(shape.clone(), 2, 1).await? {
            again(caller, started, &format!("scan of {table}")).await?;
        }
    }
    for row in work.registers.iter().filter(|row| row.table == DATA) {
        while caller.read(row.clone()).await?.is_none() {
            again(caller, started, &format!("read of {row}")).await?;
        }
    }
    for row in &work.logs {
        while caller.read_log(row.clone()).await?.is_none() {
            again(caller, started, &format!("read of {row}")).await?;
        }
    }
    while work.nodes && caller.read_nodes().await?.is_none() {
        again(caller, started, "scan of the linked list").await?;
    }
    while !work.tables.is_empty() && caller.list_tables().await?.is_none() {
        again(caller, started, "list of tables").await?;
    }
    for name in &work.tables {
        while caller.scan_table(name).await?.is_none() {
            again(caller, started, &format!("scan of {name}")).await?;
        }
    }
    Ok(())
}

async fn again(caller: &Caller, started: Moment, what: &str) -> anyhow::Result<()> {
    if caller.env.clock.since(started) > VERIFY_BOUND {
        let last = caller.shared.history.with(|entries| entries.last().map(Entry::to_string));
        bail!("all is healed, but a {what} does not succeed: {}", last.unwrap_or_default());
    }
    caller.env.clock.sleep(PAUSE).await;
    Ok(())
}
