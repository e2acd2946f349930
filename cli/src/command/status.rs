//! `uruk status`: what the master's status page shows, on the terminal; and its JSON for the other commands.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use uruk_base::Env;
use uruk_client::Client;

use crate::command::connect::Connect;
use crate::output::{human_bytes, human_count, print_table};

/// Show the cluster: servers, tables, tablets, recoveries.
#[derive(Args, Debug)]
pub struct Status {
    #[command(flatten)]
    connect: Connect,
    /// Print the master's JSON
    #[arg(long)]
    json: bool,
    /// Every tablet too
    #[arg(long)]
    tablets: bool,
}

/// A tablet server, as `/api/v1/servers` tells it.
#[derive(Clone, Debug, Deserialize)]
pub struct ServerView {
    pub server_id: u64,
    pub address: String,
    /// `live` or `dead`.
    pub state: String,
    pub pid: u32,
    pub parent_pid: u32,
    #[serde(default)]
    pub lease_age_ms: Option<u64>,
    #[serde(default)]
    pub tablets: u64,
    #[serde(default)]
    pub memtable_bytes: u64,
    #[serde(default)]
    pub unflushed_log_bytes: u64,
    #[serde(default)]
    pub memory_bytes: u64,
}

/// A tablet, as `/api/v1/tablets` tells it.
#[derive(Clone, Debug, Deserialize)]
pub struct TabletView {
    pub tablet_id: u64,
    pub table: String,
    /// Escaped as people read it.
    pub start: String,
    pub end: String,
    /// 0: none.
    pub server_id: u64,
    pub epoch: u64,
    pub state: String,
    #[serde(default)]
    pub file_bytes: u64,
    #[serde(default)]
    pub files: u64,
}

/// The recovery of a dead server, as `/api/v1/recoveries` tells it.
#[derive(Clone, Debug, Deserialize)]
pub struct RecoveryView {
    pub server_id: u64,
    pub how: String,
    /// Tablets that it had.
    #[serde(default)]
    pub tablets: u64,
    pub timeline: Vec<StepView>,
}

/// One step of a recovery.
#[derive(Clone, Debug, Deserialize)]
pub struct StepView {
    pub what: String,
    /// Since the death was noticed.
    pub after_ms: f64,
}

async fn fetch<T: DeserializeOwned>(env: &Env, masters: &[String], path: &str) -> Result<T> {
    let client = Client::connect(env, masters)?;
    let json = client.status(path).await.with_context(|| format!("the master does not tell {path}"))?;
    serde_json::from_slice(&json).with_context(|| format!("the master's answer for {path} is not understood"))
}

#[derive(Deserialize)]
struct Overview {
    master: MasterView,
}

#[derive(Deserialize)]
struct MasterView {
    address: String,
}

#[derive(Deserialize)]
struct Servers {
    servers: Vec<ServerView>,
}

#[derive(Deserialize)]
struct Tablets {
    tablets: Vec<TabletView>,
}

#[derive(Deserialize)]
struct Recoveries {
    recoveries: Vec<RecoveryView>,
}

/// All tablet servers that the master knows, dead ones too.
pub async fn fetch_servers(env: &Env, masters: &[String]) -> Result<Vec<ServerView>> {
    Ok(fetch::<Servers>(env, masters, "servers").await?.servers)
}

/// Where the leading master serves: only the leader tells its status.
pub async fn fetch_leader(env: &Env, masters: &[String]) -> Result<String> {
    Ok(fetch::<Overview>(env, masters, "status").await?.master.address)
}

/// All tablets of all tables.
pub async fn fetch_tablets(env: &Env, masters: &[String]) -> Result<Vec<TabletView>> {
    Ok(fetch::<Tablets>(env, masters, "tablets").await?.tablets)
}

/// Recoveries that run or ran.
pub async fn fetch_recoveries(env: &Env, masters: &[String]) -> Result<Vec<RecoveryView>> {
    Ok(fetch::<Recoveries>(env, masters, "recoveries").await?.recoveries)
}

/// Prints what happened to a dead server's tablets, and when.
pub fn print_timeline(recovery: &RecoveryView) {
    println!("timeline of server {} ({}):", recovery.server_id, recovery.how);
    for step in &recovery.timeline {
        println!("  {:>9.1} ms  {}", step.after_ms, step.what);
    }
}

/// Prints the cluster.
pub async fn run(options: Status) -> Result<ExitCode> {
    let env = Env::real();
    let masters = options.connect.masters()?;
    if options.json {
        let client = options.connect.client(&env)?;
        let json =
            client.status("status").await.with_context(|| format!("no master answers at {}", masters.join(",")))?;
        println!("{}", String::from_utf8_lossy(&json));
        return Ok(ExitCode::SUCCESS);
    }
    let servers = fetch_servers(&env, &masters).await.with_context(|| options.connect.hint())?;
    let tablets = fetch_tablets(&env, &masters).await?;
    let recoveries = fetch_recoveries(&env, &masters).await?;
    print_servers(&servers);
    println!();
    print_tables(&tablets);
    if options.tablets {
        println!();
        print_tablets(&tablets);
    }
    for recovery in recoveries.iter().rev().take(3) {
        println!();
        print_timeline(recovery);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_servers(servers: &[ServerView]) {
    let rows = servers.iter().filter(|server| server.state == "live").map(|server| {
        vec![
            server.server_id.to_string(),
            server.address.clone(),
            server.pid.to_string(),
            server.parent_pid.to_string(),
            server.lease_age_ms.map_or("-".to_owned(), |age| format!("{age} ms")),
            server.tablets.to_string(),
            human_bytes(server.memtable_bytes),
            human_bytes(server.unflushed_log_bytes),
            human_bytes(server.memory_bytes),
        ]
    });
    let headers =
        ["SERVER", "ADDRESS", "PID", "PARENT", "LEASE AGE", "TABLETS", "MEMTABLES", "UNFLUSHED LOG", "MEMORY"];
    print_table(&headers, rows);
    let dead = servers.iter().filter(|server| server.state != "live").count();
    if dead > 0 {
        println!("and {dead} dead incarnations");
    }
}

fn print_tables(tablets: &[TabletView]) {
    let mut names: Vec<&str> = tablets.iter().map(|tablet| tablet.table.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let rows = names.into_iter().map(|name| {
        let mine: Vec<&TabletView> = tablets.iter().filter(|tablet| tablet.table == name).collect();
        let open = mine.iter().filter(|tablet| tablet.state == "open").count();
        let bytes = mine.iter().map(|tablet| tablet.file_bytes).sum();
        vec![name.to_owned(), mine.len().to_string(), open.to_string(), human_bytes(bytes)]
    });
    print_table(&["TABLE", "TABLETS", "OPEN", "FILES"], rows);
}

fn print_tablets(tablets: &[TabletView]) {
    let rows = tablets.iter().map(|tablet| {
        let bound = |key: &str, none: &str| if key.is_empty() { none.to_owned() } else { key.to_owned() };
        vec![
            tablet.table.clone(),
            tablet.tablet_id.to_string(),
            bound(&tablet.start, "-inf"),
            bound(&tablet.end, "+inf"),
            tablet.server_id.to_string(),
            tablet.epoch.to_string(),
            tablet.state.clone(),
            human_count(tablet.files),
            human_bytes(tablet.file_bytes),
        ]
    });
    print_table(&["TABLE", "TABLET", "START", "END", "SERVER", "EPOCH", "STATE", "FILES", "SIZE"], rows);
}
