//! Ends a tablet server as an operator does (SIGTERM) under load: it must give up its tablets before it
//! goes, so that there is nothing to recover, and every range stays served but for a moment.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;

use super::Common;
use super::stage::{Stage, signal};
use crate::command::status::{RecoveryView, fetch_recoveries};
use crate::load::availability::longest_gap;
use crate::output::human_count;

/// The server must be gone, and every tablet open elsewhere, within this time.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// Traffic runs this long before each stop.
const RUN_UP: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(50);

/// End a tablet server in order (SIGTERM) under load.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    common: Common,
}

struct Stopped {
    unavailable: Duration,
    /// Tablets that it still had when it was gone.
    recovered: u64,
}

/// Runs the drill.
pub async fn run(options: Options) -> Result<ExitCode> {
    let stage = Stage::set(&options.common, vec![]).await?;
    let mut stops = Vec::new();
    let mut failure = None;
    for turn in 1..=options.common.times {
        match stop_one(&stage, turn).await {
            Ok(stopped) => stops.push(stopped),
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    stage.say("reading every acknowledged row back ...");
    let verdict = stage.end().await?;
    let mut times: Vec<u64> = stops.iter().map(|stopped| stopped.unavailable.as_millis() as u64).collect();
    times.sort_unstable();
    let p50 = times.get(times.len().saturating_sub(1) / 2).copied().unwrap_or(0);
    let max = times.last().copied().unwrap_or(0);
    let recovered: u64 = stops.iter().map(|stopped| stopped.recovered).sum();
    if options.common.json {
        println!(
            "{}",
            json!({
                "stops": stops.len(), "acknowledged": verdict.acknowledged, "lost": verdict.lost,
                "wrong_answers": verdict.traffic.violations, "tablets_recovered": recovered,
                "unavailable_ms": {"p50": p50, "max": max},
            })
        );
    } else {
        verdict.print();
        println!(
            "{} stops, acknowledged {}, lost {}, tablets to recover {recovered}, unavailable p50 {p50} ms, max {max} ms",
            stops.len(),
            human_count(verdict.acknowledged),
            verdict.lost
        );
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(verdict.exit_code()),
    }
}

async fn stop_one(stage: &Stage, turn: u32) -> Result<Stopped> {
    stage.whole().await?;
    stage.env.clock.sleep(RUN_UP).await;
    let servers = stage.servers().await?;
    let victim = servers.into_iter().max_by_key(|server| server.tablets).context("no tablet server lives")?;
    let tablets = stage.tablets().await?;
    let asked = stage.env.clock.now();
    signal(victim.parent_pid, rustix::process::Signal::TERM)?;
    let gone = async {
        let recovery = gone(stage, victim.server_id).await?;
        let took = stage.env.clock.since(asked);
        stage.whole().await?;
        anyhow::Ok((recovery, took))
    };
    let (unavailable, gone) =
        longest_gap(&stage.env, &stage.table, stage.family(), Stage::probe_keys(&tablets), gone).await?;
    let (recovery, took) = gone?;
    stage.say(&format!(
        "stop {turn}: server {} (pid {}, {} tablets) was gone after {} ms, with {} tablets to recover; no key range was out for more than {} ms",
        victim.server_id,
        victim.pid,
        tablets.iter().filter(|tablet| tablet.server_id == victim.server_id).count(),
        took.as_millis(),
        recovery.tablets,
        unavailable.as_millis()
    ));
    Ok(Stopped { unavailable, recovered: recovery.tablets })
}

/// Waits until the master knows that the server is gone.
async fn gone(stage: &Stage, server: u64) -> Result<RecoveryView> {
    let wait = async {
        loop {
            let recoveries = fetch_recoveries(&stage.env, &stage.cluster.masters()).await?;
            if let Some(recovery) = recoveries.into_iter().find(|recovery| recovery.server_id == server) {
                return Ok(recovery);
            }
            stage.env.clock.sleep(POLL).await;
        }
    };
    match stage.env.clock.timeout(STOP_TIMEOUT, wait).await {
        Ok(recovery) => recovery,
        Err(_) => bail!("tablet server {server} does not end within {STOP_TIMEOUT:?}"),
    }
}
