//! The command line.

use clap::{Args, Parser, Subcommand};
use uruk_base::planted::Planted;

use crate::run::Order;
use crate::scenario::Scenario;

/// Simulate a whole cluster, break it, and see whether it keeps its promises.
#[derive(Parser, Debug)]
#[command(name = "uruk-sim", version)]
pub struct Options {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: RunOptions,
}

/// What else there is to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run seeds twice, in two processes each: their traces must be identical
    Meta {
        /// How many seeds
        #[arg(long, default_value_t = 3)]
        seeds: u64,
        /// Simulated seconds with faults
        #[arg(long, default_value_t = 15)]
        seconds: u64,
        /// Processes at a time [default: one per core]
        #[arg(long)]
        jobs: Option<usize>,
    },
    /// Plant each bug and count the seeds until it is found
    Planted {
        /// Few seeds each: for a check that is run often
        #[arg(long)]
        short: bool,
        /// Only this bug
        #[arg(long)]
        bug: Option<Planted>,
        /// Give up after this many seeds
        #[arg(long, default_value_t = 200)]
        seeds_max: u64,
        /// Simulated seconds with faults
        #[arg(long, default_value_t = 30)]
        seconds: u64,
        /// Processes at a time [default: one per core]
        #[arg(long)]
        jobs: Option<usize>,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// List the scenarios
    Scenarios,
}

/// Runs of seeds.
#[derive(Args, Clone, Debug)]
pub struct RunOptions {
    /// Run this many seeds, each in a process of its own
    #[arg(long, conflicts_with = "seed")]
    pub seeds: Option<u64>,
    /// The first of them
    #[arg(long, default_value_t = 1)]
    pub first_seed: u64,
    /// Run this one seed, in this process
    #[arg(long)]
    pub seed: Option<u64>,
    /// What may go wrong; `uruk-sim scenarios` lists them [default: drawn from the seed]
    #[arg(long)]
    pub scenario: Option<Scenario>,
    /// Run seeds until this many minutes have passed
    #[arg(long, conflicts_with_all = ["seeds", "seed"])]
    pub minutes: Option<f64>,
    /// Simulated seconds with faults, in each run
    #[arg(long, default_value_t = 40)]
    pub seconds: u64,
    /// Print JSON: one object per seed
    #[arg(long)]
    pub json: bool,
    /// Print every event of the trace (with --seed)
    #[arg(long, requires = "seed")]
    pub trace: bool,
    /// Run with this bug planted
    #[arg(long)]
    pub planted: Option<Planted>,
    /// Processes at a time [default: one per core]
    #[arg(long)]
    pub jobs: Option<usize>,
}

impl RunOptions {
    /// The run of one seed.
    pub fn order(&self, seed: u64) -> Order {
        Order {
            seed,
            scenario: self.scenario.unwrap_or_else(|| Scenario::of_seed(seed)),
            seconds: self.seconds,
            planted: self.planted,
            trace: self.trace,
        }
    }
}
