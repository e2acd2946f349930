//! `uruk-sim planted`: plants each bug and counts the seeds until the simulation finds it.

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
    fn seeds(&self, bug: Planted) -> std::ops::Range<u64> {
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

/// Scenarios in which the bug can show at all; seeds take turns with them.
fn suited(bug: Planted) -> &'static [Scenario] {
    use Scenario::{
        Crash, CrashAndPower, Disk, Failover, Fence, FenceRestarts, Lag, LateReports, LonelyLeader, Network, Power,
        SlowCommits, Unreadable,
    };
    match bug {
        Planted::NoFsync => &[Power, CrashAndPower],
        Planted::TooFewAnswers => &[Lag],
        Planted::ReadWithoutLease | Planted::DeathHitsSuccessor => &[Failover],
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
        Planted::FreezeWithoutDrain
        | Planted::SplitWithoutFinalFlush
        | Planted::SplitReplyLostThaws
        | Planted::ParentCompactionCommits
        | Planted::MergeWidensAReference
        | Planted::ReleaseTakenFromSilence
        | Planted::TwoProceduresOnOneTablet => &[Network, Failover],
    }
}

/// The seed that found the bug when the table in `docs/simulation.md` was made. Changes of the code around
/// it draw other runs, and then it is a seed like any other.
fn known_seed(bug: Planted) -> u64 {
    match bug {
        Planted::UnconfirmedRenewal => 10,
        Planted::AckAfterFence => 18,
        Planted::DeathHitsSuccessor => 5,
        Planted::TooFewAnswers | Planted::ReplayedTwice | Planted::FlushedAhead | Planted::LateFirstAttempt => 2,
        _ => 1,
    }
}

/// Searches, prints the table, and fails when a bug is not found.
pub fn run(search: &Search) -> Result<ExitCode> {
    let bugs: Vec<Planted> =
        Planted::ALL.iter().copied().filter(|bug| search.bug.is_none_or(|one| one == *bug)).collect();
    let mut table = Vec::new();
    for bug in bugs {
        let found = find(bug, search)?;
        if !search.json {
            match found.seeds {
                Some(seeds) => println!("{:<45} {seeds:>4} seeds  {} ({})", found.bug, found.invariant, found.scenario),
                None => println!("{:<45} NOT FOUND in {:?}", found.bug, search.seeds(bug)),
            }
        }
        table.push(found);
    }
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

/// Runs seeds in order until one finds the bug.
fn find(bug: Planted, search: &Search) -> Result<Found> {
    let mut fleet = Fleet::new(search.jobs);
    let scenarios = suited(bug);
    let mut seeds = search.seeds(bug);
    loop {
        while fleet.has_room()
            && let Some(next) = seeds.next()
        {
            let scenario = scenarios[(next - 1) as usize % scenarios.len()];
            fleet.start(Order { seed: next, scenario, seconds: search.seconds, planted: Some(bug), trace: false })?;
        }
        let Some(finished) = fleet.wait()? else {
            return Ok(Found { bug: bug.name(), seeds: None, scenario: String::new(), invariant: String::new() });
        };
        if let Some(violation) = finished.report.violation
            && (search.short || holds_without(&finished.order)?)
        {
            return Ok(Found {
                bug: bug.name(),
                seeds: Some(finished.order.seed),
                scenario: finished.report.scenario,
                invariant: violation.invariant,
            });
        }
    }
}
