//! Restarts every tablet server in turn under load: no request may fail.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde_json::json;
use uruk_client::Client;

use super::Common;
use super::stage::{FAMILY, Stage};
use crate::command::cluster::{Restarted, roll};
use crate::load::availability::longest_gap;
use crate::output::human_count;

/// Traffic runs this long before each round.
const RUN_UP: Duration = Duration::from_secs(2);

/// What `drill restart` takes: each of `--times` rounds restarts all tablet servers.
#[derive(Args, Debug)]
pub struct Options {
    /// One server after the other: the only way there is
    #[arg(long, required = true)]
    rolling: bool,
    #[command(flatten)]
    common: Common,
}

/// Runs the drill; exit code 1 if a request failed or a row is lost.
pub async fn run(options: Options) -> Result<ExitCode> {
    let stage = Stage::set(&options.common, vec![]).await?;
    let drilled = rounds(&stage, options.common.times).await;
    stage.say("reading every acknowledged row back ...");
    let verdict = stage.end().await?;
    let (restarted, gap) = drilled?;
    let failed = verdict.traffic.failed_requests;
    if options.common.json {
        println!(
            "{}",
            json!({
                "times": options.common.times, "restarts": restarted.len(), "lost": verdict.lost,
                "failed_requests": failed, "acknowledged": verdict.acknowledged,
                "wrong_answers": verdict.traffic.violations, "reads": verdict.traffic.reads,
                "scans": verdict.traffic.scans, "unavailable_ms": {"max": gap.as_millis() as u64},
            })
        );
    } else {
        verdict.print();
        verdict.traffic.failure_texts.iter().for_each(|text| println!("  failed: {text}"));
        println!(
            "{} restarts, acknowledged {}, lost {}, failed requests {failed}, no key range was out for more than {} ms",
            restarted.len(),
            human_count(verdict.acknowledged),
            verdict.lost,
            gap.as_millis()
        );
    }
    Ok(verdict.strict_exit_code())
}

async fn rounds(stage: &Stage, times: u32) -> Result<(Vec<Restarted>, Duration)> {
    let masters = stage.cluster.masters();
    let client = Client::connect(&stage.env, &masters)?;
    let (mut all, mut longest) = (Vec::new(), Duration::ZERO);
    for _ in 0..times {
        stage.whole().await?;
        stage.env.clock.sleep(RUN_UP).await;
        let keys = Stage::probe_keys(&stage.tablets().await?);
        let told = |restarted: &Restarted| {
            stage.say(&format!(
                "server {} is server {} now: {} tablets moved, back after {:.1} s",
                restarted.server_id, restarted.successor_id, restarted.tablets_moved, restarted.seconds
            ));
        };
        let rolling = roll(&stage.env, &client, &masters, told);
        let (gap, restarted) = longest_gap(&stage.env, &stage.table, FAMILY, keys, rolling).await?;
        all.extend(restarted?);
        longest = longest.max(gap);
    }
    Ok((all, longest))
}
