//! Put, scan, kill, scan: the main line of the whole system.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use uruk_base::Env;
use uruk_client::{Client, FamilySpec, Mutation, RowMutation, RowRange, ScanOptions, Table};

use crate::cluster::{self, Cluster, MASTER};
use crate::host::Host;

const FAMILY: &str = "f";
const ROWS: u64 = 300;
const TABLETS: u64 = 6;

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Rows written and acknowledged.
    pub rows: usize,
    /// Whole scans that were checked.
    pub scans: u64,
}

/// What the client asks of the world around it.
#[derive(Default)]
struct Orders {
    crash: Option<String>,
    bounce: Option<String>,
    report: Option<Report>,
}

/// Runs the scenario to its end.
pub fn put_scan_kill_scan(sim: &mut turmoil::Sim<'_>, seed: u64) -> Result<Report> {
    let cluster = cluster::build(sim, seed);
    let orders: Arc<Mutex<Orders>> = Arc::default();
    let (client_host, client_orders) = (Host::new("client", seed), orders.clone());
    sim.client("client", async move {
        let env = client_host.start();
        let report = drive(&env, &client_orders).await;
        let report = report.map_err(|error| -> Box<dyn std::error::Error> { format!("{error:#}").into() })?;
        client_orders.lock().report = Some(report);
        Ok(())
    });
    loop {
        let ended = sim.step().map_err(|error| anyhow::anyhow!("{error}"))?;
        let mut orders = orders.lock();
        if let Some(name) = orders.crash.take() {
            crash(sim, &cluster, &name)?;
        }
        if let Some(name) = orders.bounce.take() {
            sim.bounce(name);
        }
        if ended {
            return orders.report.take().context("the scenario ended without a report");
        }
    }
}

/// Power loss: the network goes first, so that nobody hears a farewell.
fn crash(sim: &mut turmoil::Sim<'_>, cluster: &Cluster, name: &str) -> Result<()> {
    let host = cluster.hosts.get(name).with_context(|| format!("no host {name}"))?;
    for other in cluster.hosts.keys().map(String::as_str).chain(["client"]).filter(|other| *other != name) {
        sim.partition(name, other);
    }
    sim.crash(name);
    host.disk().power_loss();
    for other in cluster.hosts.keys().map(String::as_str).chain(["client"]).filter(|other| *other != name) {
        sim.repair(name, other);
    }
    Ok(())
}

async fn drive(env: &Env, orders: &Mutex<Orders>) -> Result<Report> {
    let client = Client::connect(env, &[MASTER.to_owned()])?;
    let splits: Vec<Bytes> = (1..TABLETS).map(|n| key(n * ROWS / TABLETS)).collect();
    let families = [FamilySpec::new(FAMILY)];
    let make = client.create_table("t", &families, &splits);
    make.await.context("create table")?;
    let table = client.table("t").await?;

    let mut written = BTreeMap::new();
    write(env, &table, 0..ROWS / 2, &mut written).await?;
    let mut report = Report::default();
    scan_all(&table, &written, &mut report).await.context("the first scan")?;

    orders.lock().crash = Some("ts-1".to_owned());
    write(env, &table, ROWS / 2..ROWS, &mut written).await?;
    scan_all(&table, &written, &mut report).await.context("the scan after the first kill")?;

    orders.lock().bounce = Some("ts-1".to_owned());
    orders.lock().crash = Some("ts-2".to_owned());
    write(env, &table, 0..ROWS / 4, &mut written).await?;
    scan_all(&table, &written, &mut report).await.context("the scan after the second kill")?;
    report.rows = written.len();
    Ok(report)
}

fn key(n: u64) -> Bytes {
    Bytes::from(format!("row{n:06}"))
}

/// Writes the rows, some alone and some in batches, each with a value of its own.
async fn write(
    env: &Env,
    table: &Table,
    rows: std::ops::Range<u64>,
    written: &mut BTreeMap<Bytes, Bytes>,
) -> Result<()> {
    let mut next = rows.start;
    while next < rows.end {
        let count = env.random.range(1..10).min(rows.end - next);
        let batch: Vec<(Bytes, Bytes)> =
            (next..next + count).map(|n| (key(n), Bytes::from(format!("{n}:{:016x}", env.random.u64())))).collect();
        next += count;
        if let [(key, value)] = &batch[..] {
            let mutation = Mutation::set(FAMILY, "q", value.clone());
            table.mutate_row(key.clone(), vec![mutation]).await.with_context(|| format!("write {key:?}"))?;
        } else {
            let rows = batch
                .iter()
                .map(|(key, value)| RowMutation::new(key.clone(), vec![Mutation::set(FAMILY, "q", value.clone())]));
            for result in table.mutate_rows(rows.collect()).await {
                result.context("batch")?;
            }
        }
        written.extend(batch);
    }
    Ok(())
}

/// Reads everything: exactly the acknowledged rows, in order, each with its newest value.
async fn scan_all(table: &Table, written: &BTreeMap<Bytes, Bytes>, report: &mut Report) -> Result<()> {
    let mut wanted = written.iter();
    let mut rows = table.scan(RowRange::ALL, ScanOptions::default());
    while let Some(row) = rows.next().await {
        let row = row?;
        let Some((key, value)) = wanted.next() else { bail!("{:?} was never written", row.key()) };
        ensure!(row.key() == key, "{:?} in place of {key:?}", row.key());
        let found = row.value(FAMILY, "q");
        ensure!(found == Some(value), "{key:?} is {found:?}, not {value:?}");
    }
    ensure!(wanted.next().is_none(), "the scan ends early");
    report.scans += 1;
    tracing::info!(rows = written.len(), at_ms = Duration::as_millis(&turmoil::elapsed()) as u64, "scan is whole");
    Ok(())
}
