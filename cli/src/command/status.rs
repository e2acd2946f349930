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

/// Procedures that have ended, in the overview.
const PROCEDURES_SHOWN: usize = 5;

/// Show the cluster: servers, tables, tablets, splits, merges and moves, recoveries.
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
    /// `live`, `lapsed`, `draining` or `dead`.
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
    #[serde(default)]
    pub zone: String,
    /// None before the first report.
    #[serde(default)]
    pub load: Option<LoadView>,
}

/// Load of a tablet server, as reported last.
#[derive(Clone, Debug, Deserialize)]
pub struct LoadView {
    pub reads_per_s: f64,
    pub writes_per_s: f64,
    pub cpu_percent: f64,
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
    #[serde(default)]
    pub memtable_bytes: u64,
    #[serde(default)]
    pub reads_per_s: f64,
    #[serde(default)]
    pub writes_per_s: f64,
}

/// Splits, merges and moves, as `/api/v1/procedures` tells them.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ProceduresView {
    /// Oldest first.
    pub running: Vec<ProcedureView>,
    /// Newest first.
    pub ended: Vec<ProcedureView>,
}

/// A split, merge or move.
#[derive(Clone, Debug, Deserialize)]
pub struct ProcedureView {
    pub procedure_id: u64,
    pub kind: String,
    #[serde(default)]
    pub table: String,
    pub tablets: Vec<u64>,
    #[serde(default)]
    pub results: Vec<u64>,
    /// Of a move; else 0.
    #[serde(default)]
    pub target_server_id: u64,
    #[serde(default)]
    pub reason: String,
    /// `running`, or how it ended.
    #[serde(default)]
    pub outcome: String,
    /// What keeps it from going on.
    #[serde(default)]
    pub problem: Option<String>,
    pub started_micros: i64,
    #[serde(default)]
    pub ended_micros: Option<i64>,
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

/// What the master tells at `/api/v1/<path>`, as it is.
pub async fn fetch_json(env: &Env, masters: &[String], path: &str) -> Result<serde_json::Value> {
    fetch(env, masters, path).await
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

/// Splits, merges and moves that run or are remembered.
pub async fn fetch_procedures(env: &Env, masters: &[String]) -> Result<ProceduresView> {
    fetch(env, masters, "procedures").await
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
    let client = options.connect.client(&env).await?;
    let masters = options.connect.masters()?;
    if options.json {
        let json =
            client.status("status").await.with_context(|| format!("no master answers at {}", masters.join(",")))?;
        println!("{}", String::from_utf8_lossy(&json));
        return Ok(ExitCode::SUCCESS);
    }
    let servers = fetch_servers(&env, &masters).await.with_context(|| options.connect.hint())?;
    let tablets = fetch_tablets(&env, &masters).await?;
    let recoveries = fetch_recoveries(&env, &masters).await?;
    // A master of an older version tells none.
    let procedures = fetch_procedures(&env, &masters).await.unwrap_or_default();
    print_live_servers(&servers);
    println!();
    print_tables(&tablets);
    if options.tablets {
        println!();
        print_tablets(&tablets);
    }
    print_procedures(&procedures);
    for recovery in recoveries.iter().rev().take(3) {
        println!();
        print_timeline(recovery);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_live_servers(servers: &[ServerView]) {
    let (dead, living): (Vec<_>, Vec<_>) = servers.iter().cloned().partition(|server| server.state == "dead");
    print_servers(&living);
    if !dead.is_empty() {
        println!("and {} dead incarnations", dead.len());
    }
}

/// Prints servers as a table.
pub fn print_servers(servers: &[ServerView]) {
    let rows = servers.iter().map(|server| {
        let rate =
            |of: fn(&LoadView) -> f64| server.load.as_ref().map_or("-".to_owned(), |load| format!("{:.0}", of(load)));
        vec![
            server.server_id.to_string(),
            server.state.clone(),
            server.address.clone(),
            server.zone.clone(),
            server.pid.to_string(),
            server.parent_pid.to_string(),
            server.lease_age_ms.map_or("-".to_owned(), |age| format!("{age} ms")),
            server.tablets.to_string(),
            rate(|load| load.reads_per_s),
            rate(|load| load.writes_per_s),
            rate(|load| load.cpu_percent),
            human_bytes(server.memtable_bytes),
            human_bytes(server.unflushed_log_bytes),
            human_bytes(server.memory_bytes),
        ]
    });
    let headers = [
        "SERVER",
        "STATE",
        "ADDRESS",
        "ZONE",
        "PID",
        "PARENT",
        "LEASE AGE",
        "TABLETS",
        "READS/S",
        "WRITES/S",
        "CPU %",
        "MEMTABLES",
        "UNFLUSHED LOG",
        "MEMORY",
    ];
    print_table(&headers, rows);
}

/// Those that run, and the last that ended.
fn print_procedures(procedures: &ProceduresView) {
    let shown: Vec<&ProcedureView> =
        procedures.running.iter().chain(procedures.ended.iter().take(PROCEDURES_SHOWN)).collect();
    if shown.is_empty() {
        return;
    }
    println!();
    let list = |tablets: &[u64]| tablets.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    let rows = shown.into_iter().map(|procedure| {
        let ended = procedure.ended_micros.map(|ended| (ended - procedure.started_micros).max(0) as f64 / 1_000.0);
        let results = match procedure.target_server_id {
            0 => list(&procedure.results),
            server => format!("server {server}"),
        };
        vec![
            procedure.procedure_id.to_string(),
            procedure.kind.clone(),
            procedure.table.clone(),
            list(&procedure.tablets),
            results,
            ended.map_or("-".to_owned(), |ms| format!("{ms:.0} ms")),
            procedure.problem.clone().unwrap_or_else(|| procedure.outcome.clone()),
            procedure.reason.clone(),
        ]
    });
    print_table(&["PROCEDURE", "KIND", "TABLE", "TABLETS", "INTO", "TOOK", "OUTCOME", "REASON"], rows);
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

/// Prints tablets as a table.
pub fn print_tablets(tablets: &[TabletView]) {
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
            human_bytes(tablet.memtable_bytes),
            format!("{:.0}", tablet.reads_per_s),
            format!("{:.0}", tablet.writes_per_s),
        ]
    });
    let headers = [
        "TABLE",
        "TABLET",
        "START",
        "END",
        "SERVER",
        "EPOCH",
        "STATE",
        "FILES",
        "SIZE",
        "MEMTABLES",
        "READS/S",
        "WRITES/S",
    ];
    print_table(&headers, rows);
}
