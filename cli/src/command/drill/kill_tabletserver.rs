//! Kills tablet servers with unflushed writes, and measures how long key ranges are out.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;

use super::Common;
use super::stage::{QUIET_PAUSE, Stage, signal};
use crate::command::status::{ServerView, fetch_recoveries, print_timeline};
use crate::load::availability::{Availability, probe};
use crate::output::{human_bytes, human_count};

/// Ranges must be served again within this time.
const OUTAGE_LIMIT: Duration = Duration::from_secs(60);
/// The unflushed log must grow to the wanted size within this time.
const FILL_TIMEOUT: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(100);

/// Kill tablet servers (kill -9) with unflushed writes, under load.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// Unflushed log of the victim at each kill, at least, in MiB
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(0..=4096))]
    unflushed_mib: u64,
    /// Kill the watching parent too: nobody reports the death, the lease must run out
    #[arg(long)]
    with_parent: bool,
}

struct Kill {
    log_bytes: u64,
    availability: Availability,
}

/// Runs the drill.
pub async fn run(options: Options) -> Result<ExitCode> {
    // Flushes must not shrink what the drill wants to find unflushed.
    let budget = (options.unflushed_mib * 2).max(128);
    let flags = vec![format!("--memtable-mib={}", budget * 2), format!("--unflushed-log-mib={budget}")];
    let stage = Stage::set(&options.common, flags).await?;
    stage.say(&format!(
        "cluster of 3 tablet servers, 3 replicas, durability {}; status page {}",
        options.common.durability,
        stage.cluster.status_page()
    ));
    let mut kills = Vec::new();
    let mut failure = None;
    for turn in 1..=options.common.times {
        match kill_one(&stage, &options, turn).await {
            Ok(kill) => kills.push(kill),
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    stage.say("reading every acknowledged row back ...");
    let verdict = stage.end().await?;
    let mut times: Vec<u64> = kills.iter().map(|kill| kill.availability.unavailable().as_millis() as u64).collect();
    times.sort_unstable();
    let p50 = times.get(times.len().saturating_sub(1) / 2).copied().unwrap_or(0);
    let max = times.last().copied().unwrap_or(0);
    let log_bytes = kills.iter().map(|kill| kill.log_bytes).min().unwrap_or(0);
    if options.common.json {
        println!(
            "{}",
            json!({
                "kills": kills.len(), "acknowledged": verdict.acknowledged, "lost": verdict.lost,
                "wrong_answers": verdict.traffic.violations, "log_bytes": log_bytes,
                "unavailable_ms": {"p50": p50, "max": max, "all": times},
                "tablets": options.common.tablets, "durability": options.common.durability, "replicas": 3,
                "value_bytes": options.common.value_bytes, "with_parent": options.with_parent,
                "reads": verdict.traffic.reads, "scans": verdict.traffic.scans,
            })
        );
    } else {
        verdict.print();
        println!(
            "{} kills, acknowledged {}, lost {}, unavailable p50 {p50} ms, max {max} ms (at least {} unflushed at each kill)",
            kills.len(),
            human_count(verdict.acknowledged),
            verdict.lost,
            human_bytes(log_bytes)
        );
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(verdict.exit_code()),
    }
}

async fn kill_one(stage: &Stage, options: &Options, turn: u32) -> Result<Kill> {
    stage.whole().await?;
    let victim = fill(stage, options.unflushed_mib << 20).await?;
    let tablets = stage.tablets().await?;
    let keys = Stage::probe_keys(&tablets);
    let killed = stage.env.clock.now();
    if options.with_parent {
        signal(victim.parent_pid, rustix::process::Signal::KILL).context("the watching parent")?;
    }
    signal(victim.pid, rustix::process::Signal::KILL)?;
    let availability = probe(&stage.env, &stage.table, stage.family(), keys, killed, OUTAGE_LIMIT).await;
    if let Some(key) = availability.out.first() {
        bail!(
            "kill {turn}: {} ranges are not served after {OUTAGE_LIMIT:?}, the first at {key:?}",
            availability.out.len()
        );
    }
    stage.say(&format!(
        "kill {turn}: server {} (pid {}, {} tablets, {} unflushed): every key range read and written again after {} ms",
        victim.server_id,
        victim.pid,
        tablets.iter().filter(|tablet| tablet.server_id == victim.server_id).count(),
        human_bytes(victim.unflushed_log_bytes),
        availability.unavailable().as_millis()
    ));
    if !stage.json {
        let recoveries = fetch_recoveries(&stage.env, &stage.cluster.masters()).await?;
        recoveries.iter().filter(|recovery| recovery.server_id == victim.server_id).for_each(print_timeline);
    }
    Ok(Kill { log_bytes: victim.unflushed_log_bytes, availability })
}

/// Writes at full speed until a server holds enough unflushed log; returns that server.
async fn fill(stage: &Stage, wanted: u64) -> Result<ServerView> {
    stage.traffic.set_pause(Duration::ZERO);
    let wait = async {
        loop {
            let fullest = stage.servers().await?.into_iter().max_by_key(|server| server.unflushed_log_bytes);
            match fullest {
                Some(server) if server.unflushed_log_bytes >= wanted && server.tablets > 0 => return Ok(server),
                Some(_) | None => stage.env.clock.sleep(POLL).await,
            }
        }
    };
    let outcome = stage.env.clock.timeout(FILL_TIMEOUT, wait).await;
    stage.traffic.set_pause(QUIET_PAUSE);
    match outcome {
        Ok(victim) => victim,
        Err(_) => bail!("no server gathered {} of unflushed log within {FILL_TIMEOUT:?}", human_bytes(wanted)),
    }
}
