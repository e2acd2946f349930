//! What a run says of itself, to people and to the parent process.

use serde::{Deserialize, Serialize};

use crate::plan::Plan;

/// The end of one run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Decides everything, together with the scenario.
    pub seed: u64,
    /// What could go wrong.
    pub scenario: String,
    /// The planted bug, if any.
    pub planted: Option<String>,
    /// What did go wrong.
    pub violation: Option<Violation>,
    /// Simulated time, in milliseconds.
    pub simulated_ms: u64,
    /// Calls of clients.
    pub operations: u64,
    /// Faults done.
    pub faults: u64,
    /// Events of the trace.
    pub events: u64,
    /// Hash of the trace.
    pub trace: String,
}

/// A broken invariant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Violation {
    /// Which.
    pub invariant: String,
    /// How.
    pub detail: String,
    /// What clients saw around it.
    pub history: Vec<String>,
    /// The newest events of the trace.
    pub events: Vec<String>,
}

impl Report {
    /// Nothing has happened yet.
    pub fn new(plan: &Plan, planted: Option<&str>) -> Report {
        Report {
            seed: plan.seed,
            scenario: plan.scenario.to_string(),
            planted: planted.map(str::to_owned),
            ..Report::default()
        }
    }

    /// The command that runs it again.
    pub fn replay(&self, seconds: u64) -> String {
        let planted = self.planted.as_ref().map(|bug| format!(" --planted {bug}")).unwrap_or_default();
        format!(
            "cargo run --release -p uruk-sim -- --seed {} --scenario {} --seconds {seconds}{planted} --trace",
            self.seed, self.scenario
        )
    }

    /// For people.
    pub fn print(&self, seconds: u64) {
        let Some(violation) = &self.violation else {
            println!(
                "ok: seed {} {}: {} operations, {} faults, {:.1} simulated seconds; trace {} ({} events)",
                self.seed,
                self.scenario,
                self.operations,
                self.faults,
                self.simulated_ms as f64 / 1e3,
                self.trace,
                self.events
            );
            return;
        };
        println!("VIOLATION of {} with seed {}, scenario {}", violation.invariant, self.seed, self.scenario);
        println!("  {}", violation.detail);
        println!("  at {:.3} simulated seconds, after {} faults", self.simulated_ms as f64 / 1e3, self.faults);
        for (title, lines) in [("the history around it", &violation.history), ("the last events", &violation.events)] {
            if !lines.is_empty() {
                println!("{title}:");
                lines.iter().for_each(|line| println!("  {line}"));
            }
        }
        println!("replay: {}", self.replay(seconds));
    }
}
