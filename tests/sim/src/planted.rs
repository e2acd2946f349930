//! `uruk-sim planted`: plants each bug and counts the seeds until the simulation finds it.

use std::collections::VecDeque;
use std::ops::Range;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;
use uruk_base::planted::Planted;

use crate::fleet::Fleet;
use crate::run::Order;
use crate::scenario::Scenario;

/// Seeds for each bug in the short form, the known one first.
const SHORT_SEEDS: u64 = 12;

/// How to search.
pub struct Search {
    /// Only this bug.
    pub bug: Option<Planted>,
    /// Seeds for each.
    pub seeds_max: u64,
    /// Simulated seconds with faults.
    pub seconds: u64,
    /// Processes at a time.
    pub jobs: Option<usize>,
    /// JSON in place of a table.
    pub json: bool,
    /// From the seed on that is known to find the bug, and no run without it.
    pub short: bool,
}

impl Search {
    /// The seeds to run for this bug.
    fn seeds(&self, bug: Planted) -> Range<u64> {
        match self.short {
            true => known_seed(bug)..known_seed(bug) + self.seeds_max.min(SHORT_SEEDS),
            false => 1..self.seeds_max + 1,
        }
    }
}

/// A row of the table.
#[derive(Debug, Serialize)]
struct Found {
    bug: &'static str,
    seeds: Option<u64>,
    scenario: String,
    invariant: String,
}

impl Found {
    fn print(&self, tried: Range<u64>) {
        match self.seeds {
            Some(seeds) => println!("{:<45} {seeds:>4} seeds  {} ({})", self.bug, self.invariant, self.scenario),
            None => println!("{:<45} NOT FOUND in {tried:?}", self.bug),
        }
    }
}

/// Scenarios in which the bug can show at all; seeds take turns with them.
fn suited(bug: Planted) -> &'static [Scenario] {
    use Scenario::{
        Crash, CrashAndPower, Disk, Failover, Fence, FenceRestarts, Lag, LateDeaths, LateReports, LonelyLeader,
        LostAnswers, Network, Power, Shape, SlowCommits, Unreadable,
    };
    match bug {
        Planted::NoFsync => &[Power, CrashAndPower],
        Planted::TooFewAnswers => &[Lag],
        Planted::ReadWithoutLease => &[Failover],
        Planted::DeathHitsSuccessor => &[LateDeaths],
        Planted::ServesBeforeOpened => &[Unreadable],
        Planted::UnconfirmedRenewal => &[LonelyLeader],
        // Only a server that believes in its lease while its log is sealed can be late.
        Planted::FenceNotChecked | Planted::AckAfterFence | Planted::UnfencedReplica | Planted::SegmentAfterClosing => {
            &[Fence]
        }
        Planted::SeqNosReused | Planted::AckBeforeDurable | Planted::VisibleBeforeDurable | Planted::ReplayedTwice => {
            &[Crash, Failover]
        }
        Planted::ReleasedAtFlushStart | Planted::FlushedAhead => &[Crash, Disk, Failover],
        Planted::FenceForgotten => &[FenceRestarts],
        Planted::LateReport => &[LateReports],
        Planted::CollectedUnnamed => &[SlowCommits],
        Planted::LateFirstAttempt => &[Network, Failover],
        Planted::SplitReplyLostThaws => &[LostAnswers],
        Planted::FreezeWithoutDrain
        | Planted::SplitWithoutFinalFlush
        | Planted::ParentCompactionCommits
        | Planted::MergeWidensAReference
        | Planted::ReleaseTakenFromSilence
        | Planted::TwoProceduresOnOneTablet => &[Shape],
    }
}

/// The seed that found the bug when the table in `docs/simulation.md` was made. Changes of the code around
/// it draw other runs, and then it is a seed like any other.
fn known_seed(bug: Planted) -> u64 {
    match bug {
        Planted::FlushedAhead => 12,
        Planted::FenceForgotten | Planted::LateReport => 9,
        Planted::ParentCompactionCommits => 7,
        Planted::AckAfterFence => 5,
        Planted::ReplayedTwice | Planted::SplitReplyLostThaws => 4,
        Planted::LateFirstAttempt
        | Planted::ReadWithoutLease
        | Planted::ReleaseTakenFromSilence
        | Planted::TooFewAnswers => 2,
        _ => 1,
    }
}

/// Searches, prints the table, and fails when a bug is not found.
pub fn run(search: &Search) -> Result<ExitCode> {
    let bugs: Vec<Planted> =
        Planted::ALL.iter().copied().filter(|bug| search.bug.is_none_or(|one| one == *bug)).collect();
    let table = find(bugs, search)?;
    if search.json {
        println!("{}", serde_json::to_string(&table)?);
    }
    let is_complete = table.iter().all(|found| found.seeds.is_some());
    Ok(if is_complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether the same run without the bug breaks nothing: only then the bug was found.
fn holds_without(order: &Order) -> Result<bool> {
    let mut fleet = Fleet::new(Some(1));
    fleet.start(Order { planted: None, ..order.clone() })?;
    let finished = fleet.wait()?.expect("one was started");
    if let Some(violation) = &finished.report.violation {
        eprintln!("seed {} of {} breaks {} without a bug", order.seed, order.scenario, violation.invariant);
    }
    Ok(finished.report.violation.is_none())
}

/// Runs the seeds of each bug in order until one finds it; several bugs at a time.
fn find(bugs: Vec<Planted>, search: &Search) -> Result<Vec<Found>> {
    let mut fleet = Fleet::new(search.jobs);
    let mut waiting: VecDeque<(Planted, u64)> = bugs.iter().map(|bug| (*bug, search.seeds(*bug).start)).collect();
    let mut table = Vec::new();
    loop {
        while fleet.has_room()
            && let Some((bug, seed)) = waiting.pop_front()
        {
            let scenarios = suited(bug);
            let scenario = scenarios[(seed - 1) as usize % scenarios.len()];
            fleet.start(Order { seed, scenario, seconds: search.seconds, planted: Some(bug), trace: false })?;
        }
        let Some(finished) = fleet.wait()? else { return Ok(table) };
        let (bug, seed) = (finished.order.planted.expect("each run has a bug"), finished.order.seed);
        let found = match finished.report.violation {
            Some(violation) if search.short || holds_without(&finished.order)? => {
                let (scenario, invariant) = (finished.report.scenario, violation.invariant);
                Found { bug: bug.name(), seeds: Some(seed), scenario, invariant }
            }
            _ if search.seeds(bug).contains(&(seed + 1)) => {
                // The next in turn: what is found soon is not held up by what is not.
                waiting.push_back((bug, seed + 1));
                continue;
            }
            _ => Found { bug: bug.name(), seeds: None, scenario: String::new(), invariant: String::new() },
        };
        if !search.json {
            found.print(search.seeds(bug));
        }
        table.push(found);
    }
}
