//! Breaks a whole cluster at random under a Big Linked List load, then proves that nothing is lost.
//!
//! Rounds of blows (`schedule`) fall on the processes; after each everything may run again, and must
//! serve within a bound. At the end a scan classifies each node as HBase's `Verify` does (`verify`).

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::Args;
use serde_json::json;
use uruk_base::Env;

use crate::command::dev::{data_folder, group_size};
use crate::load::linked_list::traffic::{ListReport, acknowledged, describe};
use crate::output::human_count;
use crate::process::Durability;
use crate::runtime::end_signal;
use schedule::Shape;
use stage::{FAMILY, Stage};
use verify::{Verdict, verify};

mod book;
mod outages;
mod processes;
mod schedule;
mod stage;
mod verify;

/// Kill, stop and restart processes of every kind at random under a linked-list load.
///
/// After each round of blows everything is let run again, and must serve within 60 seconds; at the end
/// every acknowledged node must be there, and every pointer must lead to one. Otherwise the exit code
/// is 1, and data and logs are kept.
#[derive(Args, Debug)]
pub struct Options {
    /// How long
    #[arg(long, default_value_t = 5.0, value_parser = minutes)]
    minutes: f64,
    /// Decides what is done to whom and when, and all keys [default: any]
    #[arg(long)]
    seed: Option<u64>,
    /// Number of masters
    #[arg(long, default_value_t = 1, value_parser = group_size)]
    masters: u16,
    /// Number of the chunk store's controllers
    #[arg(long, default_value_t = 1, value_parser = group_size)]
    controllers: u16,
    /// Number of tablet servers
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    tablet_servers: u16,
    /// Number of chunk servers; one at a time is down for longer than a moment
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(3..=16))]
    chunk_servers: u16,
    /// Tablets of the drill's table
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=256))]
    tablets: u16,
    /// What an acknowledged write has survived
    #[arg(long, value_enum, default_value_t)]
    durability: Durability,
    /// Concurrent writers
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    writers: u16,
    /// Concurrent walkers along the lists
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(0..=64))]
    readers: u16,
    /// Nodes in each batch
    #[arg(long, default_value_t = 101, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    width: u32,
    /// Batches in each ring
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    depth: u32,
    /// Weight of each node in bytes
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    value_bytes: u32,
    /// Pause of writers, walkers and scan between calls, in milliseconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pause_ms: u32,
    /// Keep the cluster's data and logs in this folder [default: a temporary one]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(minutes) if (0.0..=10_000.0).contains(&minutes) => Ok(minutes),
        Ok(_) | Err(_) => Err("give a number of minutes, such as 10 or 0.5".to_owned()),
    }
}

impl Options {
    /// How many processes of each kind.
    pub fn shape(&self) -> Shape {
        Shape {
            masters: usize::from(self.masters),
            controllers: usize::from(self.controllers),
            tablet_servers: usize::from(self.tablet_servers),
            chunk_servers: usize::from(self.chunk_servers),
        }
    }
}

/// All that a run showed.
struct Outcome {
    report: ListReport,
    verdict: Result<Verdict>,
    /// Why the cluster does not serve.
    failure: Option<anyhow::Error>,
    outages_ms: Vec<u64>,
}

impl Outcome {
    fn is_good(&self) -> bool {
        self.failure.is_none() && self.report.violations == 0 && self.verdict.as_ref().is_ok_and(Verdict::is_good)
    }
}

/// Runs the drill; Ctrl-C ends it early, with its verdict.
pub async fn run(options: Options) -> Result<ExitCode> {
    let env = Env::real();
    let seed = options.seed.unwrap_or_else(|| env.random.range(0..1_000_000));
    let (dir, temporary) = data_folder(options.dir.clone())?;
    let mut stage = Stage::set(&env, &options, seed, dir.clone()).await?;
    stage.book.say(&format!(
        "seed {seed}; {:?}, durability {}; data in {}; status page {}",
        options.shape(),
        options.durability,
        dir.display(),
        stage.cluster.status_page()
    ));
    let failure = rounds(&mut stage, Duration::from_secs_f64(options.minutes * 60.0)).await.err();
    if let Some(failure) = &failure {
        stage.book.say(&format!("FAILED: {failure:#}"));
        stage.keep_status().await;
    }
    let outcome = tokio::select! {
        biased;
        _ = end_signal() => Err(anyhow!("interrupted again: no verdict")),
        outcome = judge(&mut stage, failure) => Ok(outcome),
    };
    stage.bring_back();
    stage.cluster.stop().await;
    let is_good = outcome.as_ref().is_ok_and(Outcome::is_good);
    if let (false, Some(temporary)) = (is_good, temporary) {
        let _ = temporary.keep();
    }
    let outcome = outcome?;
    if options.json {
        print_json(&stage, &options, seed, &outcome);
    } else {
        print(&stage, &outcome);
    }
    if !is_good {
        eprintln!("data, logs and {} are in {}; seed {seed}", book::FILE, dir.display());
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Round after round until the time is over, a round fails, or Ctrl-C.
async fn rounds(stage: &mut Stage, length: Duration) -> Result<()> {
    let interrupted = end_signal();
    tokio::pin!(interrupted);
    stage.serve_again().await?;
    let mut number = 1;
    while stage.book.elapsed() < length {
        tokio::select! {
            biased;
            _ = &mut interrupted => {
                stage.book.say("interrupted: verifying what there is (Ctrl-C again: no verdict)");
                stage.bring_back();
                stage.serve_again().await?;
                return Ok(());
            }
            ended = stage.round(number) => ended?,
        }
        if stage.traffic.report().violations > 0 {
            // Go no further: what follows would bury the traces.
            return Ok(());
        }
        number += 1;
    }
    Ok(())
}

async fn judge(stage: &mut Stage, failure: Option<anyhow::Error>) -> Outcome {
    stage.bring_back();
    let outages = stage.outages.stop().await;
    let report = stage.traffic.stop().await;
    stage.book.say(&format!(
        "verifying {} acknowledged nodes with a scan of everything",
        human_count(acknowledged(&report.ledger))
    ));
    let verdict = verify(&stage.table, FAMILY, stage.lists, &report.ledger).await;
    let outages_ms = outages.iter().map(|length| length.as_millis() as u64).collect();
    let outcome = Outcome { report, verdict, failure, outages_ms };
    if !outcome.is_good() {
        stage.keep_status().await;
        for (writer, progress) in describe(&outcome.report.ledger) {
            stage.book.say(&format!("writer {writer}: {progress}"));
        }
    }
    match &outcome.verdict {
        Ok(verdict) => verdict.details.iter().for_each(|text| stage.book.say(text)),
        Err(error) => stage.book.say(&format!("no verdict: {error:#}")),
    }
    outcome.report.violation_texts.iter().for_each(|text| stage.book.say(&format!("wrong answer: {text}")));
    outcome
}

fn print(stage: &Stage, outcome: &Outcome) {
    println!();
    stage.book.print_counts();
    let (outage_p50, outage_max) = p50_and_max(&outcome.outages_ms);
    let (again_p50, again_max) = p50_and_max(&stage.served_again_ms);
    println!(
        "\n{} kills, {} pauses, {} restarts in {} rounds over {:.1} minutes; serves again p50 {again_p50} ms, max {again_max} ms",
        stage.book.kills,
        stage.book.pauses,
        stage.book.restarts,
        stage.served_again_ms.len(),
        stage.book.elapsed().as_secs_f64() / 60.0
    );
    println!(
        "some key range out {} times (longer than {:?}), p50 {outage_p50} ms, max {outage_max} ms",
        outcome.outages_ms.len(),
        outages::OUTAGE_MIN
    );
    println!(
        "nodes read {}, whole scans {}, wrong answers {}",
        human_count(outcome.report.reads),
        outcome.report.scans,
        outcome.report.violations
    );
    if let Some(failure) = &outcome.failure {
        println!("FAILED: {failure:#}");
    }
    match &outcome.verdict {
        Ok(verdict) => println!(
            "nodes {}, acknowledged {}: referenced {}, unreferenced {}, undefined {}, lost {}, torn {}",
            human_count(verdict.nodes),
            human_count(acknowledged(&outcome.report.ledger)),
            human_count(verdict.classes.referenced),
            human_count(verdict.classes.unreferenced),
            verdict.classes.undefined.len(),
            verdict.lost.len(),
            verdict.torn.len()
        ),
        Err(error) => println!("no verdict: {error:#}"),
    }
}

fn print_json(stage: &Stage, options: &Options, seed: u64, outcome: &Outcome) {
    let (outage_p50, outage_max) = p50_and_max(&outcome.outages_ms);
    let (again_p50, again_max) = p50_and_max(&stage.served_again_ms);
    let mut line = json!({
        "minutes": options.minutes, "seed": seed, "rounds": stage.served_again_ms.len(),
        "kills": stage.book.kills, "pauses": stage.book.pauses, "restarts": stage.book.restarts,
        "acknowledged": acknowledged(&outcome.report.ledger),
        "reads": outcome.report.reads, "scans": outcome.report.scans, "wrong_answers": outcome.report.violations,
        "unavailable_ms": {"p50": outage_p50, "max": outage_max, "times": outcome.outages_ms.len()},
        "served_again_ms": {"p50": again_p50, "max": again_max},
        "durability": options.durability, "value_bytes": options.value_bytes, "tablets": options.tablets,
        "failure": outcome.failure.as_ref().map(|failure| format!("{failure:#}")),
    });
    match &outcome.verdict {
        Ok(verdict) => {
            line["nodes"] = verdict.nodes.into();
            line["referenced"] = verdict.classes.referenced.into();
            line["unreferenced"] = verdict.classes.unreferenced.into();
            line["undefined"] = verdict.classes.undefined.len().into();
            line["lost"] = verdict.lost.len().into();
            line["torn"] = verdict.torn.len().into();
        }
        Err(error) => line["verdict"] = format!("{error:#}").into(),
    }
    println!("{line}");
}

fn p50_and_max(lengths: &[u64]) -> (u64, u64) {
    let mut lengths = lengths.to_vec();
    lengths.sort_unstable();
    let p50 = lengths.get(lengths.len().saturating_sub(1) / 2).copied().unwrap_or(0);
    (p50, lengths.last().copied().unwrap_or(0))
}
