//! Tablets split, merged and moved, servers drained, by hand and all the time: at rows that others write, on
//! tables that come and go, several at once, and on one tablet at once.
//!
//! What is promised is that nobody else sees it: the other workloads' checks are the check.

use std::time::Duration;

use bytes::Bytes;
use futures::future::{try_join, try_join_all};
use uruk_client::TabletChoice;
use uruk_proto::{ServerId, TabletId};

use super::caller::Caller;
use super::layout::{
    BATCH_ROWS, DATA, HOT_ROWS, INGEST, LIST, LOG_ROWS, LOGS, batch_row, hot_row, ingest_row, log_row, node_key,
};

/// Clients that draw what they do.
const CLIENTS: usize = 2;
/// Clients that do what the nemesis asks for.
const ASKED_CLIENTS: usize = 2;
/// Between two changes by one of them.
const PAUSE_MS: u64 = 500;
/// Until the halves of a split are merged again.
const MERGE_AGAIN_MS: u64 = 1_500;
/// What is asked for is looked for this often.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Names of tables that come and go carry a number below this.
const TABLES_TRIED: u64 = 12;

/// What can be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reshaping {
    /// In the middle.
    Split,
    /// With its right neighbour.
    Merge,
    /// To any other server.
    Move,
    /// A split, and soon after a merge or a move: one of them must be refused.
    Two,
}

/// Works until the run stops.
pub async fn run(caller: impl Fn() -> anyhow::Result<Caller>) -> anyhow::Result<()> {
    let callers = (0..CLIENTS).map(|_| caller()).collect::<anyhow::Result<Vec<_>>>()?;
    let asked = (0..ASKED_CLIENTS).map(|_| caller()).collect::<anyhow::Result<Vec<_>>>()?;
    try_join(try_join_all(callers.iter().map(work)), try_join_all(asked.iter().map(obey))).await.map(|_| ())
}

async fn obey(caller: &Caller) -> anyhow::Result<()> {
    while !caller.stops() {
        match caller.shared.take_asked() {
            Some((tablet, work)) => reshape(caller, &TabletChoice::Id(tablet), None, work).await?,
            None => caller.env.clock.sleep(LOOK_EVERY).await,
        }
    }
    Ok(())
}

async fn work(caller: &Caller) -> anyhow::Result<()> {
    let random = caller.random();
    let mut servers: Vec<ServerId> = Vec::new();
    while !caller.stops() {
        let (table, row) = draw_row(caller);
        let tablet = TabletChoice::row(table, row.clone());
        match random.range(0..20) {
            0..4 => reshape(caller, &tablet, Some(row), Reshaping::Split).await?,
            4..9 => split_and_merge(caller, &tablet, row).await?,
            9..13 => reshape(caller, &tablet, None, Reshaping::Merge).await?,
            13..17 => {
                let moved = caller.reshape("move", caller.cluster().move_tablet(&tablet, None)).await?;
                servers.extend(moved.and_then(|moved| moved.server));
            }
            17..19 => reshape(caller, &tablet, None, Reshaping::Two).await?,
            _ => {
                if let Some(server) = servers.pop() {
                    drain(caller, server).await?;
                }
            }
        }
        caller.pause(PAUSE_MS).await;
    }
    Ok(())
}

async fn reshape(caller: &Caller, tablet: &TabletChoice, at: Option<Bytes>, work: Reshaping) -> anyhow::Result<()> {
    let cluster = caller.cluster();
    let random = caller.random();
    match work {
        Reshaping::Split => drop(caller.reshape("split", cluster.split_tablet(tablet, at)).await?),
        Reshaping::Merge => drop(caller.reshape("merge", cluster.merge_tablets(tablet)).await?),
        Reshaping::Move => drop(caller.reshape("move", cluster.move_tablet(tablet, None)).await?),
        Reshaping::Two => {
            let wait = Duration::from_millis(random.range(0..40));
            let is_merge = random.range(0..2) == 0;
            let first = async { caller.reshape("split", cluster.split_tablet(tablet, None)).await.map(drop) };
            let second = async {
                caller.env.clock.sleep(wait).await;
                match is_merge {
                    true => caller.reshape("merge", cluster.merge_tablets(tablet)).await.map(drop),
                    false => caller.reshape("move", cluster.move_tablet(tablet, None)).await.map(drop),
                }
            };
            try_join(first, second).await?;
        }
    }
    Ok(())
}

/// What one half compacted away in the meantime must not come back with the other half's files.
async fn split_and_merge(caller: &Caller, tablet: &TabletChoice, at: Bytes) -> anyhow::Result<()> {
    let split = caller.reshape("split", caller.cluster().split_tablet(tablet, Some(at))).await?;
    let Some(left) = split.and_then(|split| split.results.first().copied()) else { return Ok(()) };
    caller.pause(MERGE_AGAIN_MS).await;
    let left: TabletId = left;
    drop(caller.reshape("merge again", caller.cluster().merge_tablets(&TabletChoice::Id(left))).await?);
    Ok(())
}

/// For a short while: a server may not be left without tablets for ever, since all of them might be.
async fn drain(caller: &Caller, server: ServerId) -> anyhow::Result<()> {
    caller.reshape("drain", caller.cluster().drain_server(server)).await?;
    loop {
        match caller.cluster().undrain_server(server).await {
            Ok(()) => return Ok(()),
            // It has died.
            Err(error) if error.outcome() == uruk_client::Outcome::NotDone => {
                if matches!(error.code(), uruk_client::ErrorCode::NotFound | uruk_client::ErrorCode::Fenced) {
                    return Ok(());
                }
            }
            Err(error) => tracing::info!(%server, %error, "cannot be undrained yet"),
        }
        caller.pause(PAUSE_MS).await;
    }
}

fn draw_row(caller: &Caller) -> (String, Bytes) {
    let random = caller.random();
    match random.range(0..20) {
        0..5 => (DATA.into(), batch_row(random.range(0..BATCH_ROWS)).key),
        5..11 => (DATA.into(), hot_row(random.range(0..HOT_ROWS)).key),
        11..14 => (LOGS.into(), log_row(random.range(0..LOG_ROWS)).key),
        14..16 => (INGEST.into(), ingest_row(random.range(0..2_000)).key),
        16..18 => (LIST.into(), node_key(random.u64())),
        _ => (format!("temp-{}-0", random.range(1..TABLES_TRIED)), format!("k{}", random.range(0..10)).into()),
    }
}
