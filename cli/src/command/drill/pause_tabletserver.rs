//! Stops a tablet server for longer than its lease (SIGSTOP), lets it wake, and asks it directly:
//! it must answer no read and accept no write.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;
use uruk_base::rpc::Channels;
use uruk_proto::mutation::{Mutation, SERVER_TIME};
use uruk_proto::tablet::tablet_server_client::TabletServerClient;
use uruk_proto::tablet::{MutateRowsRequest, ReadRequest, RowMutations, TabletRef};
use uruk_proto::{FamilyId, mutation};

use super::Common;
use super::stage::{Stage, signal};
use crate::command::status::TabletView;
use crate::load::availability::probe;
use crate::output::human_count;

const OUTAGE_LIMIT: Duration = Duration::from_secs(60);
/// After it wakes, the server is asked for this long.
const QUESTIONING: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// Stop a tablet server (SIGSTOP) for longer than its lease and let it wake.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    common: Common,
}

/// What the woken server did.
#[derive(Default)]
struct Woken {
    reads_answered: u64,
    writes_accepted: u64,
    refusals: u64,
}

/// Runs the drill.
pub async fn run(options: Options) -> Result<ExitCode> {
    let stage = Stage::set(&options.common, vec![]).await?;
    let mut woken = Woken::default();
    let mut times = Vec::new();
    let mut failure = None;
    for turn in 1..=options.common.times {
        match pause_one(&stage, turn, &mut woken).await {
            Ok(unavailable) => times.push(unavailable.as_millis() as u64),
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    stage.say("reading every acknowledged row back ...");
    let verdict = stage.end().await?;
    times.sort_unstable();
    let p50 = times.get(times.len().saturating_sub(1) / 2).copied().unwrap_or(0);
    let max = times.last().copied().unwrap_or(0);
    if options.common.json {
        println!(
            "{}",
            json!({
                "pauses": times.len(), "acknowledged": verdict.acknowledged, "lost": verdict.lost,
                "wrong_answers": verdict.traffic.violations, "reads_answered": woken.reads_answered,
                "writes_accepted": woken.writes_accepted, "refusals": woken.refusals,
                "unavailable_ms": {"p50": p50, "max": max},
            })
        );
    } else {
        verdict.print();
        println!(
            "{} pauses, acknowledged {}, lost {}, unavailable p50 {p50} ms, max {max} ms; woken servers answered {} reads, accepted {} writes, refused {}",
            times.len(),
            human_count(verdict.acknowledged),
            verdict.lost,
            woken.reads_answered,
            woken.writes_accepted,
            woken.refusals
        );
    }
    if let Some(error) = failure {
        return Err(error);
    }
    if woken.reads_answered + woken.writes_accepted > 0 {
        return Ok(ExitCode::FAILURE);
    }
    Ok(verdict.exit_code())
}

async fn pause_one(stage: &Stage, turn: u32, woken: &mut Woken) -> Result<Duration> {
    stage.whole().await?;
    let tablets = stage.tablets().await?;
    let servers = stage.servers().await?;
    let victim = servers.into_iter().max_by_key(|server| server.tablets).context("no tablet server lives")?;
    let stopped = stage.env.clock.now();
    signal(victim.pid, rustix::process::Signal::STOP)?;
    let keys = Stage::probe_keys(&tablets);
    let availability = probe(&stage.env, &stage.table, stage.family(), keys, stopped, OUTAGE_LIMIT).await;
    let mine: Vec<&TabletView> = tablets.iter().filter(|tablet| tablet.server_id == victim.server_id).collect();
    signal(victim.pid, rustix::process::Signal::CONT)?;
    question(stage, &victim.address, &mine, woken).await;
    if let Some(key) = availability.out.first() {
        bail!(
            "pause {turn}: {} ranges are not served after {OUTAGE_LIMIT:?}, the first at {key:?}",
            availability.out.len()
        );
    }
    stage.say(&format!(
        "pause {turn}: server {} (pid {}, {} tablets) stopped; every key range read and written again after {} ms; woken, it refused {} calls",
        victim.server_id,
        victim.pid,
        mine.len(),
        availability.unavailable().as_millis(),
        woken.refusals
    ));
    Ok(availability.unavailable())
}

/// Asks the woken server for its old tablets, past every client-side check.
async fn question(stage: &Stage, address: &str, tablets: &[&TabletView], woken: &mut Woken) {
    let channels = Channels::new(stage.env.transport.clone());
    let clock = &stage.env.clock;
    let started = clock.now();
    while clock.since(started) < QUESTIONING {
        for tablet in tablets {
            let mut server = TabletServerClient::new(channels.get(address));
            let reference = Some(TabletRef { tablet_id: tablet.tablet_id, schema_version: 0 });
            let read = ReadRequest { tablet: reference, rows_limit: 1, ..ReadRequest::default() };
            let answered = clock
                .timeout(ANSWER_TIMEOUT, async {
                    match server.read(read).await {
                        Ok(stream) => matches!(stream.into_inner().message().await, Ok(Some(_))),
                        Err(_) => false,
                    }
                })
                .await;
            let entry = RowMutations {
                row: format!("{}!woken", tablet.start).into_bytes().into(),
                mutations: mutation::pack([&Mutation::SetCell {
                    family: FamilyId(1),
                    qualifier: "woken".into(),
                    timestamp: SERVER_TIME,
                    value: "must not be accepted".into(),
                }]),
            };
            let write = MutateRowsRequest { tablet: reference, key: None, entries: vec![entry] };
            let accepted = clock
                .timeout(ANSWER_TIMEOUT, async {
                    server.mutate_rows(write).await.is_ok_and(|answer| answer.into_inner().errors.is_empty())
                })
                .await;
            for (counter, yes) in
                [(&mut woken.reads_answered, answered == Ok(true)), (&mut woken.writes_accepted, accepted == Ok(true))]
            {
                if yes { *counter += 1 } else { woken.refusals += 1 }
            }
        }
    }
}
