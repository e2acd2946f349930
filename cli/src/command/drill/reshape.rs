//! Splits, merges and moves tablets under load, and measures how long writes to their rows pause.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use serde_json::{Value, json};
use uruk_client::{Client, Error, ErrorCode, Outcome, Procedure, Table, TabletChoice};
use uruk_proto::{ServerId, TabletId};

use super::Common;
use super::stage::{FAMILY, QUIET_PAUSE, Stage, TABLE};
use crate::command::status::TabletView;
use crate::load::pause::{Pause, Probes, quantile};
use crate::output::human_count;

/// Traffic runs at full speed for this long first, so that tablets have something to split.
const FILL: Duration = Duration::from_secs(3);
/// Writes run for this long before each operation: what is usual.
const RUN_UP: Duration = Duration::from_millis(400);
/// And after its end: a pause may reach beyond it.
const RUN_OUT: Duration = Duration::from_millis(150);
/// Rows that are written in each tablet that is changed.
const PROBES: u32 = 4;
/// A tablet narrower than this, in the four hex digits before each key, is left alone.
const WIDTH_MIN: u32 = 4 * (PROBES + 1);
/// Refusals in a row before the drill gives up.
const REFUSALS_MAX: u32 = 20;

/// What is done to tablets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// One becomes two.
    Split,
    /// Two become one.
    Merge,
    /// Another server gets one.
    Move,
}

/// How the figures come about, for the help.
pub const HOW_IT_MEASURES: &str = "\
Writers, readers and one long scan run all the time. The pause of an operation is measured at the client: four rows \
of the tablet (of both, in a merge), spread over its range, are written again and again, 1 ms after each answer, \
each by a task of its own, from 400 ms before the operation until 150 ms after it. The pause is the longest time \
between two successive acknowledged writes of any one of these rows that reaches into the operation, less the median \
of these times before it (the normal latency, and the 1 ms). noise_ms is the same of the time before the operation: \
what the machine does by itself. At the end every acknowledged row is read back; exit code 1 if one is lost or a \
read or scan was wrong.";

/// What the drills of one operation take.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    common: Common,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Split => "split",
            Operation::Merge => "merge",
            Operation::Move => "move",
        }
    }
}

/// One operation that was done.
struct Done {
    procedure: Procedure,
    took: Duration,
    pause: Pause,
}

/// Runs the drill.
pub async fn run(operation: Operation, mut options: Options) -> Result<ExitCode> {
    if operation == Operation::Merge {
        // Each merge takes a tablet away.
        options.common.tablets = options.common.tablets.max(options.common.times.min(4_000) as u16 + 4);
    }
    let stage = Stage::set(&options.common, vec![]).await?;
    stage.say(&format!(
        "cluster of 3 tablet servers, durability {}; status page {}",
        options.common.durability,
        stage.cluster.status_page()
    ));
    let drilled = drill(&stage, operation, options.common.times).await;
    let tablets = stage.tablets().await.map(|tablets| tablets.len()).unwrap_or_default();
    stage.say("reading every acknowledged row back ...");
    let verdict = stage.end().await?;
    let (done, refused) = drilled?;
    let of = |pick: fn(&Done) -> Duration| summary(&done.iter().map(pick).collect::<Vec<_>>());
    let report = json!({
        "operation": operation.name(), "times": done.len(), "lost": verdict.lost,
        "pause_ms": of(|done| done.pause.pause), "noise_ms": of(|done| done.pause.noise),
        "usual_ms": of(|done| done.pause.usual), "procedure_ms": of(|done| done.took),
        "refused": refused, "tablets_at_the_end": tablets, "acknowledged": verdict.acknowledged,
        "wrong_answers": verdict.traffic.violations, "failed_requests": verdict.traffic.failed_requests,
        "reads": verdict.traffic.reads, "scans": verdict.traffic.scans,
        "durability": options.common.durability, "replicas": 3, "value_bytes": options.common.value_bytes,
    });
    if options.common.json {
        println!("{report}");
    } else {
        verdict.print();
        println!(
            "{} times {}, acknowledged {}, lost {}, pause p50 {} ms, p99 {} ms, max {} ms (noise p99 {} ms)",
            done.len(),
            operation.name(),
            human_count(verdict.acknowledged),
            verdict.lost,
            report["pause_ms"]["p50"],
            report["pause_ms"]["p99"],
            report["pause_ms"]["max"],
            report["noise_ms"]["p99"],
        );
    }
    Ok(verdict.exit_code())
}

/// p50, p99 and max in milliseconds.
fn summary(times: &[Duration]) -> Value {
    let ms = |at: f64| (quantile(times, at).as_secs_f64() * 10_000.0).round() / 10.0;
    json!({"p50": ms(0.5), "p99": ms(0.99), "max": ms(1.0)})
}

async fn drill(stage: &Stage, operation: Operation, times: u32) -> Result<(Vec<Done>, u32)> {
    // A client of its own, so that the load's calls do not stand before the probes' on its connections.
    let client = Client::connect(&stage.env, &stage.cluster.masters())?;
    let table = client.table(TABLE).await?;
    stage.traffic.set_pause(Duration::ZERO);
    stage.env.clock.sleep(FILL).await;
    stage.traffic.set_pause(QUIET_PAUSE);
    let (mut done, mut refused, mut refused_in_a_row): (Vec<Done>, u32, u32) = (Vec::new(), 0, 0);
    while done.len() < times as usize {
        stage.whole().await?;
        match one(stage, &client, &table, operation).await? {
            Ok(one) => {
                stage.say(&format!(
                    "{} {}: {} in {:.1} ms, writes paused {:.1} ms",
                    operation.name(),
                    done.len() + 1,
                    describe(&one.procedure),
                    one.took.as_secs_f64() * 1e3,
                    one.pause.pause.as_secs_f64() * 1e3
                ));
                done.push(one);
                refused_in_a_row = 0;
            }
            Err(why) => {
                stage.say(&format!("{} refused: {why}", operation.name()));
                refused += 1;
                refused_in_a_row += 1;
                if refused_in_a_row >= REFUSALS_MAX {
                    bail!("refused {refused_in_a_row} times in a row, the last time: {why}");
                }
            }
        }
    }
    Ok((done, refused))
}

/// One operation on a tablet chosen at random. The inner error is a refusal that says why: another tablet may do.
async fn one(stage: &Stage, client: &Client, table: &Table, operation: Operation) -> Result<Result<Done, String>> {
    let tablets = stage.tablets().await?;
    let Some((place, rows)) = choose(stage, &tablets, operation) else {
        return Ok(Err(format!("none of {} tablets is wide enough", tablets.len())));
    };
    let tablet = &tablets[place];
    let choice = TabletChoice::Id(TabletId(tablet.tablet_id));
    let target = match operation {
        Operation::Split | Operation::Merge => None,
        Operation::Move => {
            let mut others = stage.servers().await?;
            others.retain(|server| server.server_id != tablet.server_id);
            stage.env.random.shuffle(&mut others);
            others.first().map(|server| ServerId(server.server_id))
        }
    };
    let probes = Probes::start(&stage.env, table, FAMILY, rows);
    stage.env.clock.sleep(RUN_UP).await;
    let begun = stage.env.clock.now();
    let result = match operation {
        Operation::Split => client.split_tablet(&choice, None).await,
        Operation::Merge => client.merge_tablets(&choice).await,
        Operation::Move => client.move_tablet(&choice, target).await,
    };
    let ended = stage.env.clock.now();
    stage.env.clock.sleep(RUN_OUT).await;
    let pause = probes.stop(begun, ended).await?;
    match result {
        Ok(procedure) => {
            let pause = pause.context("the probes were not answered before the operation")?;
            Ok(Ok(Done { procedure, took: ended.saturating_since(begun), pause }))
        }
        Err(Error::Refused {
            code: ErrorCode::FailedPrecondition | ErrorCode::NotFound,
            message,
            outcome: Outcome::NotDone,
        }) => Ok(Err(message)),
        Err(error) => Err(error).with_context(|| format!("cannot {} tablet {}", operation.name(), tablet.tablet_id)),
    }
}

/// A tablet for the operation, chosen at random (a split: of the largest), and rows to write in it.
fn choose(stage: &Stage, tablets: &[TabletView], operation: Operation) -> Option<(usize, Vec<Bytes>)> {
    let mut places: Vec<usize> = (0..tablets.len()).collect();
    stage.env.random.shuffle(&mut places);
    match operation {
        Operation::Move => {}
        Operation::Merge => places.retain(|place| place + 1 < tablets.len()),
        Operation::Split => {
            places.sort_by_key(|place| {
                let tablet = &tablets[*place];
                std::cmp::Reverse(tablet.file_bytes + tablet.memtable_bytes)
            });
            places.truncate(tablets.len().div_ceil(4));
            stage.env.random.shuffle(&mut places);
        }
    }
    places.into_iter().find_map(|place| {
        let mut rows = probe_rows(&tablets[place])?;
        if operation == Operation::Merge {
            rows.extend(probe_rows(&tablets[place + 1])?);
        }
        Some((place, rows))
    })
}

/// Rows spread over the tablet's range that no load row has; None if it is too narrow.
fn probe_rows(tablet: &TabletView) -> Option<Vec<Bytes>> {
    let start = leading_digits(&tablet.start).unwrap_or(0);
    let end = leading_digits(&tablet.end).unwrap_or(0x1_0000);
    let width = end.checked_sub(start).filter(|width| *width >= WIDTH_MIN)?;
    let at = |number: u32| start + width * number / (PROBES + 1);
    Some((1..=PROBES).map(|number| Bytes::from(format!("{:04x}!pause", at(number)))).collect())
}

/// The four hex digits before each key of the load; None for an open end.
fn leading_digits(key: &str) -> Option<u32> {
    let digits: String = key.chars().take(4).take_while(char::is_ascii_hexdigit).collect();
    // Shorter keys are followed by what is smaller than any digit.
    u32::from_str_radix(&format!("{digits:0<4}"), 16).ok().filter(|_| !digits.is_empty())
}

fn describe(procedure: &Procedure) -> String {
    let list = |tablets: &[TabletId]| tablets.iter().map(TabletId::to_string).collect::<Vec<_>>().join(" and ");
    match procedure.server {
        Some(server) => format!("{} to {server}", list(&procedure.tablets)),
        None => format!("{} into {}", list(&procedure.tablets), list(&procedure.results)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tablet(start: &str, end: &str) -> TabletView {
        serde_json::from_value(json!({
            "tablet_id": 1, "table": TABLE, "start": start, "end": end, "server_id": 1, "epoch": 1, "state": "open",
        }))
        .expect("what is left out has defaults")
    }

    #[test]
    fn probes_lie_inside_of_their_tablet() {
        for (start, end) in [("", ""), ("0888", "1111"), ("1111#w0001/0000000001", "2222#w0000/0000000009"), ("ff", "")]
        {
            let rows = probe_rows(&tablet(start, end)).unwrap();
            assert_eq!(rows.len(), PROBES as usize);
            for row in rows {
                assert!(&row[..] > start.as_bytes() && (end.is_empty() || &row[..] < end.as_bytes()), "{row:?}");
            }
        }
        assert_eq!(probe_rows(&tablet("1111", "1112")), None);
    }
}
