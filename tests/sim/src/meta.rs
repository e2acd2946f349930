//! `uruk-sim meta`: the test of the simulator itself. The same seed in two processes must give the same
//! trace, and another seed another one.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use anyhow::Result;

use crate::fleet::Fleet;
use crate::run::Order;
use crate::scenario::Scenario;

/// Runs each seed twice, each with another scenario.
pub fn run(seeds: u64, seconds: u64, jobs: Option<usize>) -> Result<ExitCode> {
    let mut fleet = Fleet::new(jobs);
    let mut orders = (1..=seeds).flat_map(|seed| {
        let scenario = if seed == 1 { Scenario::Mix } else { Scenario::ALL[seed as usize % Scenario::ALL.len()] };
        let order = Order { seed, scenario, seconds, planted: None, trace: false };
        [order.clone(), order]
    });
    let mut traces: BTreeMap<u64, Vec<(String, u64)>> = BTreeMap::new();
    loop {
        while fleet.has_room()
            && let Some(order) = orders.next()
        {
            fleet.start(order)?;
        }
        let Some(finished) = fleet.wait()? else { break };
        let report = finished.report;
        if let Some(violation) = &report.violation {
            println!("seed {}: {}: {}", report.seed, violation.invariant, violation.detail);
        }
        traces.entry(report.seed).or_default().push((report.trace, report.events));
    }
    let mut is_good = true;
    for (seed, found) in &traces {
        let same = found.windows(2).all(|pair| pair[0] == pair[1]) && found.iter().all(|(_, events)| *events > 0);
        println!("seed {seed}: {} ({} events)", if same { "identical" } else { "DIFFERENT" }, found[0].1);
        if !same {
            println!("  {found:?}");
        }
        is_good &= same;
    }
    let distinct: BTreeSet<&String> = traces.values().map(|found| &found[0].0).collect();
    if distinct.len() < traces.len() {
        println!("two seeds gave one trace");
        is_good = false;
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
