//! `uruk cluster`: what is done to the cluster as a whole.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;
use uruk_base::Env;
use uruk_client::Client;
use uruk_proto::ServerId;

use crate::command::admin;
use crate::command::connect::Connect;
use crate::command::drill::signal;
use crate::command::status::{ServerView, fetch_servers, fetch_tablets};

/// A server that was asked to end must be back, and every tablet be open, within this time.
const BACK_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// Do something to the cluster as a whole.
#[derive(Subcommand, Debug)]
pub enum Cluster {
    /// Restart every tablet server, one after the other, without a failed request
    ///
    /// Each tablet server in turn is drained, asked to end (SIGTERM), and started again by its watching
    /// parent; the next one's turn comes when it is back and every tablet is open. The servers must run on
    /// this machine, as those of `uruk dev` do: elsewhere, do the same with `uruk server drain` and the tool
    /// that runs your processes.
    Restart(Restart),
}

/// What `cluster restart` takes.
#[derive(Args, Debug)]
pub struct Restart {
    /// One server after the other: the only way there is
    #[arg(long, required = true)]
    rolling: bool,
    #[command(flatten)]
    connect: Connect,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A tablet server that was restarted.
#[derive(Clone, Debug, Serialize)]
pub struct Restarted {
    /// The incarnation that was drained.
    pub server_id: u64,
    /// The one that followed.
    pub successor_id: u64,
    /// Where both served.
    pub address: String,
    /// How many tablets were moved off.
    pub tablets_moved: u32,
    /// From the drain until the successor lived and all tablets were open.
    pub seconds: f64,
}

/// Runs the command.
pub async fn run(command: Cluster) -> Result<ExitCode> {
    let Cluster::Restart(options) = command;
    let env = Env::real();
    let client = admin::client(&options.connect, &env).await?;
    let masters = options.connect.masters()?;
    let told = |restarted: &Restarted| {
        if !options.json {
            println!(
                "server {} at {} is server {} now: {} tablets moved, back after {:.1} s",
                restarted.server_id,
                restarted.address,
                restarted.successor_id,
                restarted.tablets_moved,
                restarted.seconds
            );
        }
    };
    let restarted = roll(&env, &client, &masters, told).await.with_context(|| options.connect.hint())?;
    if options.json {
        println!("{}", json!({ "restarted": restarted }));
    }
    Ok(ExitCode::SUCCESS)
}

/// Restarts every live tablet server of this machine in turn; `told` hears of each.
pub async fn roll(
    env: &Env,
    client: &Client,
    masters: &[String],
    mut told: impl FnMut(&Restarted),
) -> Result<Vec<Restarted>> {
    let mut servers = live(env, masters).await?;
    if servers.len() < 2 {
        bail!("a rolling restart needs at least two live tablet servers, and there are {}", servers.len());
    }
    servers.sort_by_key(|server| server.server_id);
    // Before anything is touched: half a rolling restart helps nobody.
    servers.iter().try_for_each(check_is_here)?;
    let mut restarted = Vec::new();
    for server in servers {
        let one = restart(env, client, masters, &server).await;
        let one = one.with_context(|| format!("tablet server {} at {}", server.server_id, server.address))?;
        told(&one);
        restarted.push(one);
    }
    Ok(restarted)
}

async fn restart(env: &Env, client: &Client, masters: &[String], server: &ServerView) -> Result<Restarted> {
    let started = env.clock.now();
    let tablets_moved = client.drain_server(ServerId(server.server_id)).await.context("cannot be drained")?;
    signal(server.pid, rustix::process::Signal::TERM)?;
    let back = async {
        loop {
            // While a master changes there is no answer; then ask again.
            if let (Ok(servers), Ok(tablets)) = (live(env, masters).await, fetch_tablets(env, masters).await)
                && let Some(successor) = successor(&servers, server)
                && tablets.iter().all(|tablet| tablet.state == "open")
            {
                return successor;
            }
            env.clock.sleep(POLL).await;
        }
    };
    let Ok(successor_id) = env.clock.timeout(BACK_TIMEOUT, back).await else {
        bail!("is not back {BACK_TIMEOUT:?} after it was asked to end; see `uruk status` and the server's log");
    };
    Ok(Restarted {
        server_id: server.server_id,
        successor_id,
        address: server.address.clone(),
        tablets_moved,
        seconds: env.clock.since(started).as_secs_f64(),
    })
}

fn successor(servers: &[ServerView], before: &ServerView) -> Option<u64> {
    let is_it = |server: &&ServerView| server.address == before.address && server.server_id > before.server_id;
    servers.iter().find(is_it).map(|server| server.server_id)
}

async fn live(env: &Env, masters: &[String]) -> Result<Vec<ServerView>> {
    let mut servers = fetch_servers(env, masters).await?;
    servers.retain(|server| server.state == "live");
    Ok(servers)
}

/// Whether the server's processes are on this machine, and its parent lives to start it again.
fn check_is_here(server: &ServerView) -> Result<()> {
    let ServerView { server_id, address, pid, parent_pid, .. } = server;
    if *parent_pid == 0 {
        bail!("tablet server {server_id} has no watching parent that would start it again");
    }
    for process in [pid, parent_pid] {
        // The arguments, so that no stranger with the same number on another machine's behalf is ended.
        let arguments = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        let is_ours = arguments.split(|byte| *byte == 0).any(|argument| argument == b"tabletserver");
        if !is_ours {
            bail!(
                "tablet server {server_id} at {address} does not run on this machine (process {process} is not it): \
                 move its tablets off with `uruk server drain {server_id}`, then end it where it runs with `kill {pid}`"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(server_id: u64, address: &str) -> ServerView {
        serde_json::from_value(json!({
            "server_id": server_id, "address": address, "state": "live", "pid": std::process::id(), "parent_pid": 1,
        }))
        .expect("what is left out has defaults")
    }

    #[test]
    fn a_process_that_is_no_tablet_server_is_left_alone() {
        let why = check_is_here(&server(3, "a:1")).unwrap_err().to_string();
        assert!(why.contains("uruk server drain 3") && why.contains("does not run on this machine"), "{why}");
        let alone = ServerView { parent_pid: 0, ..server(3, "a:1") };
        assert!(check_is_here(&alone).unwrap_err().to_string().contains("no watching parent"));
    }

    #[test]
    fn only_a_later_incarnation_at_the_same_address_is_the_successor() {
        let before = server(3, "a:1");
        assert_eq!(successor(&[server(3, "a:1"), server(4, "b:1")], &before), None);
        assert_eq!(successor(&[server(4, "b:1"), server(5, "a:1")], &before), Some(5));
    }
}
