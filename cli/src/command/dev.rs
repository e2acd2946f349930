//! `uruk dev`: a whole cluster of separate processes on this machine.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use uruk_base::Env;

use crate::cluster::{ClusterEvent, ClusterSpec, LocalCluster};
use crate::command::status::fetch_servers;
use crate::output::print_table;
use crate::process::{Durability, absolute};

/// The master's port in `uruk dev`; other commands look there by default.
pub const DEFAULT_PORT_BASE: u16 = 7410;

/// Run a whole cluster of separate processes on this machine.
#[derive(Args, Debug)]
pub struct Dev {
    /// Keep the data in this folder [default: a temporary one, removed at the end]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Number of masters; with three, one may be down
    #[arg(long, default_value_t = 1, value_parser = group_size)]
    masters: u16,
    /// Number of the chunk store's controllers; with three, one may be down
    #[arg(long, default_value_t = 1, value_parser = group_size)]
    controllers: u16,
    /// Number of tablet servers
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    tablet_servers: u16,
    /// Number of chunk servers
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    chunk_servers: u16,
    /// First port: master, its status page, controller, chunk servers, tablet servers, more masters with their
    /// pages, more controllers; 0 = free ones
    #[arg(long, default_value_t = DEFAULT_PORT_BASE)]
    port_base: u16,
    /// What an acknowledged write has survived
    #[arg(long, value_enum, default_value_t)]
    durability: Durability,
    /// Leave dead processes dead (tablet servers' workers are still restarted by their parents)
    #[arg(long)]
    no_restart: bool,
    /// More flags for each tablet server, as one string
    #[arg(long, value_name = "FLAGS", allow_hyphen_values = true)]
    tabletserver_flags: Option<String>,
    /// More flags for each master, as one string
    #[arg(long, value_name = "FLAGS", allow_hyphen_values = true)]
    master_flags: Option<String>,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// Runs until Ctrl-C.
pub async fn run(options: Dev) -> Result<ExitCode> {
    let env = Env::real();
    let (dir, _temporary) = data_folder(options.dir.clone())?;
    let split =
        |flags: &Option<String>| flags.iter().flat_map(|f| f.split_whitespace()).map(str::to_owned).collect::<Vec<_>>();
    let spec = ClusterSpec {
        dir,
        masters: usize::from(options.masters),
        controllers: usize::from(options.controllers),
        tablet_servers: usize::from(options.tablet_servers),
        chunk_servers: usize::from(options.chunk_servers),
        port_base: options.port_base,
        durability: options.durability,
        tabletserver_flags: split(&options.tabletserver_flags),
        master_flags: split(&options.master_flags),
        restart: !options.no_restart,
    };
    let mut cluster = LocalCluster::start(&env, spec).await?;
    print_started(&env, &cluster, options.json).await;
    loop {
        tokio::select! {
            biased;
            _ = crate::runtime::end_signal() => break,
            event = cluster.event() => print_event(&event, options.json),
        }
    }
    if !options.json {
        println!("\nending ...");
    }
    cluster.stop().await;
    env.tasks.shutdown().await.context("the local cluster")?;
    Ok(ExitCode::SUCCESS)
}

/// A group survives the loss of a member only from three on, and never more of it with an even number.
pub fn group_size(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(size @ (1 | 3 | 5)) => Ok(size),
        Ok(_) | Err(_) => Err("give 1, 3 or 5".to_owned()),
    }
}

/// The folder to use, and what removes it at the end if it is a temporary one.
pub fn data_folder(dir: Option<PathBuf>) -> Result<(PathBuf, Option<tempfile::TempDir>)> {
    match dir {
        Some(dir) => Ok((absolute(&dir), None)),
        None => {
            let temporary =
                tempfile::Builder::new().prefix("uruk-").tempdir().context("cannot make a temporary folder")?;
            Ok((temporary.path().to_owned(), Some(temporary)))
        }
    }
}

async fn print_started(env: &Env, cluster: &LocalCluster, json: bool) {
    let workers = fetch_servers(env, &cluster.masters()).await.unwrap_or_default();
    let worker_of = |parent: u32| workers.iter().find(|worker| worker.parent_pid == parent).map(|worker| worker.pid);
    if json {
        for process in cluster.processes() {
            let mut line = serde_json::to_value(&process).expect("plain data becomes JSON");
            line["worker_pid"] = worker_of(process.pid).into();
            println!("{line}");
        }
        let masters = cluster.masters();
        let line = serde_json::json!({
            "master": masters[0], "masters": masters, "status_page": cluster.status_page(),
        });
        println!("{line}");
        return;
    }
    let rows = cluster.processes().into_iter().map(|process| {
        let worker = match (process.role.as_str(), worker_of(process.pid)) {
            ("tabletserver", Some(pid)) => pid.to_string(),
            ("tabletserver", None) => "starting".to_owned(),
            _ => String::new(),
        };
        vec![process.name, process.role, process.pid.to_string(), worker, process.address]
    });
    print_table(&["PROCESS", "ROLE", "PID", "WORKER PID", "ADDRESS"], rows);
    println!("\nstatus page  {}", cluster.status_page());
    println!("data         {}", cluster.dir().display());
    println!("\nA tablet server is two processes: the worker serves, its parent watches it, reports its death and");
    println!("starts a new one. Kill a worker:  kill -9 <WORKER PID>   both:  kill -9 <PID> <WORKER PID>");
    let masters = cluster.masters();
    let flag = match masters.len() == 1 && masters[0].ends_with(&format!(":{DEFAULT_PORT_BASE}")) {
        true => String::new(),
        false => format!(" --master {}", masters.join(",")),
    };
    println!(
        "Try:  uruk status{flag}      uruk table create{flag} t --families f      uruk put{flag} t row1 f:a=hello"
    );
    println!("Ctrl-C ends the cluster.");
}

fn print_event(event: &ClusterEvent, json: bool) {
    let (name, what) = match event {
        ClusterEvent::Died { name, pid, how } => (name, format!("pid {pid} {how}")),
        ClusterEvent::Restarted { name, pid } => (name, format!("started again as pid {pid}")),
        ClusterEvent::Failed { name, error } => (name, format!("does not start again: {error}")),
    };
    match json {
        true => println!("{}", serde_json::json!({"process": name, "event": what})),
        false => println!("{name}: {what}"),
    }
}
