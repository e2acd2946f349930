//! `uruk-sim --seeds N` and `--minutes M`: many seeds, until one breaks something.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use uruk_base::Clock;

use crate::fleet::{Finished, Fleet};
use crate::options::RunOptions;

/// Sums of all runs.
#[derive(Default)]
struct Totals {
    runs: u64,
    simulated_ms: u64,
    operations: u64,
    faults: u64,
    busy: Duration,
}

/// Runs the seeds; the first violation ends it.
pub fn run(options: &RunOptions) -> Result<ExitCode> {
    let clock = Clock::real();
    let begun = clock.now();
    let mut fleet = Fleet::new(options.jobs);
    let deadline = options.minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0));
    let count = options.seeds.unwrap_or(if deadline.is_some() { u64::MAX } else { 1 });
    let mut next = options.first_seed;
    let end = options.first_seed.saturating_add(count);
    let mut totals = Totals::default();
    if !options.json {
        match deadline {
            Some(time) => println!("seeds from {next} on, for {time:?}"),
            None => println!("seeds {next} to {}", end - 1),
        }
    }
    loop {
        let is_over = deadline.is_some_and(|deadline| clock.since(begun) >= deadline);
        while fleet.has_room() && next < end && !is_over {
            fleet.start(options.order(next))?;
            next += 1;
        }
        let Some(finished) = fleet.wait()? else { break };
        totals.add(&finished);
        print(&finished, options);
        if finished.report.violation.is_some() {
            fleet.stop();
            totals.print(clock.since(begun), options.json);
            return Ok(ExitCode::FAILURE);
        }
    }
    totals.print(clock.since(begun), options.json);
    Ok(ExitCode::SUCCESS)
}

fn print(finished: &Finished, options: &RunOptions) {
    let report = &finished.report;
    if options.json {
        println!("{}", serde_json::to_string(report).expect("plain data"));
    } else if report.violation.is_some() {
        println!("seed {}", report.seed);
        report.print(finished.order.seconds);
    } else {
        println!(
            "seed {:<6} {:<16} ok: {:>6} operations, {:>3} faults, {:>5.1} s simulated in {:>5.1} s",
            report.seed,
            report.scenario,
            report.operations,
            report.faults,
            report.simulated_ms as f64 / 1e3,
            finished.took.as_secs_f64()
        );
    }
}

impl Totals {
    fn add(&mut self, finished: &Finished) {
        self.runs += 1;
        self.simulated_ms += finished.report.simulated_ms;
        self.operations += finished.report.operations;
        self.faults += finished.report.faults;
        self.busy += finished.took;
    }

    fn print(&self, took: Duration, json: bool) {
        if json {
            return;
        }
        let (busy, took) = (self.busy.as_secs_f64().max(1e-3), took.as_secs_f64());
        println!(
            "{} seeds, {} operations, {} faults in {took:.1} s; per second of one process: {:.1} simulated seconds, \
             {:.0} operations; {:.1} seeds a minute",
            self.runs,
            self.operations,
            self.faults,
            self.simulated_ms as f64 / 1e3 / busy,
            self.operations as f64 / busy,
            self.runs as f64 * 60.0 / busy
        );
    }
}
