//! Kills any other process under load: all must come back, and nothing may be lost.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::json;

use super::Common;
use super::stage::{Stage, signal};
use crate::command::status::fetch_leader;
use crate::load::availability::probe;
use crate::output::human_count;

const OUTAGE_LIMIT: Duration = Duration::from_secs(60);
/// Traffic runs this long before each kill.
const RUN_UP: Duration = Duration::from_secs(1);

/// Which process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Role {
    /// The leading master
    Master,
    /// One of the chunk store's controllers, in turn
    DfsController,
    /// One of the chunk servers, in turn
    Chunkserver,
    /// A tablet server's watching parent, in turn; its worker gives up its tablets and ends
    TabletserverParent,
}

/// Kill a master, controller, chunk server or watching parent (kill -9) under load.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// Which process
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["master", "dfs-controller", "chunkserver"])]
    role: Vec<Role>,
    /// The killed process stays down for so long, if it does not start again by itself
    #[arg(long, default_value_t = 0)]
    down_ms: u32,
}

/// Runs the drill.
pub async fn run(options: Options) -> Result<ExitCode> {
    let stage = Stage::set(&options.common, vec![]).await?;
    let down = Duration::from_millis(u64::from(options.down_ms));
    let mut times = Vec::new();
    let mut failure = None;
    'kills: for turn in 0..options.common.times {
        for role in &options.role {
            match kill_one(&stage, *role, turn as usize, down).await {
                Ok(unavailable) => times.push(unavailable.as_millis() as u64),
                Err(error) => {
                    failure = Some(error);
                    break 'kills;
                }
            }
        }
    }
    // The cluster is whole, or says why not; a lease that was lost shows as a dead incarnation.
    let leases_lost = match stage.whole().await {
        Ok(()) => stage.dead_servers().await?,
        Err(error) => {
            failure.get_or_insert(error);
            0
        }
    };
    stage.say("reading every acknowledged row back ...");
    let verdict = stage.end().await?;
    times.sort_unstable();
    let p50 = times.get(times.len().saturating_sub(1) / 2).copied().unwrap_or(0);
    let max = times.last().copied().unwrap_or(0);
    if options.common.json {
        println!(
            "{}",
            json!({
                "kills": times.len(), "acknowledged": verdict.acknowledged, "lost": verdict.lost,
                "wrong_answers": verdict.traffic.violations, "leases_lost": leases_lost, "unavailable_ms": {"p50": p50, "max": max},
            })
        );
    } else {
        verdict.print();
        println!(
            "{} kills, acknowledged {}, lost {}, unavailable p50 {p50} ms, max {max} ms, leases lost {leases_lost}",
            times.len(),
            human_count(verdict.acknowledged),
            verdict.lost
        );
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(verdict.exit_code()),
    }
}

async fn kill_one(stage: &Stage, role: Role, turn: usize, down: Duration) -> Result<Duration> {
    stage.whole().await?;
    stage.env.clock.sleep(RUN_UP).await;
    let name = match role {
        Role::Master => "master",
        Role::DfsController => "dfs-controller",
        Role::Chunkserver => "chunkserver",
        Role::TabletserverParent => "tabletserver",
    };
    let mut processes = stage.cluster.processes();
    processes.retain(|process| process.role == name);
    if role == Role::Master {
        let leader = fetch_leader(&stage.env, &stage.cluster.masters()).await?;
        processes.retain(|process| process.address == leader);
    }
    let victim = processes.get(turn % processes.len().max(1)).with_context(|| format!("no {name} runs"))?;
    let tablets = stage.tablets().await?;
    stage.cluster.hold(&victim.name);
    let killed = stage.env.clock.now();
    signal(victim.pid, rustix::process::Signal::KILL)?;
    let keys = Stage::probe_keys(&tablets);
    let availability = probe(&stage.env, &stage.table, stage.family(), keys, killed, OUTAGE_LIMIT).await;
    stage.env.clock.sleep(down.saturating_sub(stage.env.clock.since(killed))).await;
    stage.cluster.release(&victim.name);
    if let Some(key) = availability.out.first() {
        bail!(
            "{}: {} ranges are not served after {OUTAGE_LIMIT:?}, the first at {key:?}",
            victim.name,
            availability.out.len()
        );
    }
    stage.say(&format!(
        "killed {} (pid {}): every key range read and written after {} ms",
        victim.name,
        victim.pid,
        availability.unavailable().as_millis()
    ));
    // Its successor must be ready before the next blow.
    let successor = async {
        while !stage.cluster.processes().iter().any(|p| p.name == victim.name && p.pid != victim.pid) {
            stage.env.clock.sleep(Duration::from_millis(50)).await;
        }
    };
    if stage.env.clock.timeout(OUTAGE_LIMIT, successor).await.is_err() {
        bail!("{} does not start again", victim.name);
    }
    Ok(availability.unavailable())
}
