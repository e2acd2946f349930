//! A whole cluster in one process, from one seed, on the production code; see `docs/simulation.md`.
//!
//! | part | does |
//! |---|---|
//! | `options`, `seeds`, `fleet`, `meta`, `planted` | the command line; many runs, one process each |
//! | `run` | one seed: faults, healing, reading back |
//! | `plan`, `tuning`, `scenario` | what a seed decides, and which faults it knows |
//! | `cluster`, `host`, `registry` | the processes and their machines, and the observer's view of them |
//! | `world`, `nemesis` | what can be done to them, and who does it |
//! | `workload`, `history`, `check` | what clients do and see, and whether that can be |
//! | `invariant` | what must hold of the system, looked at from outside |
//! | `trace`, `report` | what is left of a run |
//!
//! The same seed gives the same trace, byte for byte: `uruk-sim meta` demands it. One seed per process,
//! since clocks and randomness are overridden for the whole process.

mod check;
mod cluster;
mod fleet;
mod history;
mod host;
mod invariant;
mod meta;
mod nemesis;
mod options;
mod plan;
mod planted;
mod registry;
mod report;
mod run;
mod scenario;
mod seeds;
mod trace;
mod tuning;
mod workload;
mod world;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use options::{Command, Options, RunOptions};
use report::Report;
use scenario::Scenario;

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    match options.command {
        Some(Command::Meta { seeds, seconds, jobs }) => meta::run(seeds, seconds, jobs),
        Some(Command::Planted { short, bug, seeds_max, seconds, jobs, json }) => {
            planted::run(&planted::Search { bug, seeds_max, seconds, jobs, json, short })
        }
        Some(Command::Scenarios) => {
            for scenario in Scenario::ALL {
                println!("{:<16} {}", scenario.name(), scenario.description());
            }
            Ok(ExitCode::SUCCESS)
        }
        None => match options.run.seed {
            Some(seed) => Ok(one_seed(seed, &options.run)),
            None => seeds::run(&options.run),
        },
    }
}

/// Runs one seed in this process.
fn one_seed(seed: u64, options: &RunOptions) -> ExitCode {
    if !options.json {
        println!("seed {seed}");
    }
    let (json, seconds) = (options.json, options.seconds);
    let say = move |report: &Report| match json {
        true => println!("{}", serde_json::to_string(report).expect("plain data")),
        false => report.print(seconds),
    };
    let panicked = move |report: Report| {
        say(&report);
        std::process::exit(1);
    };
    let report = run::seed(&options.order(seed), panicked);
    say(&report);
    if report.violation.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
