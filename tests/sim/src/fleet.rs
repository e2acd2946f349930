//! Many runs, each in a child process of its own: clocks and randomness are overridden for a whole
//! process, so it has one seed.

use std::io;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use uruk_base::{Clock, Moment};

use crate::report::{Report, Violation};
use crate::run::Order;

/// Whether a child has ended is looked at this often.
const POLL: Duration = Duration::from_millis(10);
/// A run that takes longer than this is given up.
const RUN_MAX: Duration = Duration::from_secs(600);

/// Children under way.
pub struct Fleet {
    clock: Clock,
    jobs: usize,
    running: Vec<Running>,
}

struct Running {
    order: Order,
    child: Child,
    begun: Moment,
}

/// A finished child.
pub struct Finished {
    /// What it was to do.
    pub order: Order,
    /// What it said.
    pub report: Report,
    /// Wall time that it took.
    pub took: Duration,
}

impl Fleet {
    /// At most this many at a time; None: one per core.
    pub fn new(jobs: Option<usize>) -> Fleet {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Fleet { clock: Clock::real(), jobs: jobs.unwrap_or(cores).max(1), running: Vec::new() }
    }

    /// Whether another child may start now.
    pub fn has_room(&self) -> bool {
        self.running.len() < self.jobs
    }

    /// Whether nothing runs.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    /// Starts a child.
    pub fn start(&mut self, order: Order) -> io::Result<()> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--json", "--seed", &order.seed.to_string()]);
        command.args(["--scenario", order.scenario.name(), "--seconds", &order.seconds.to_string()]);
        if let Some(bug) = order.planted {
            command.args(["--planted", bug.name()]);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        self.running.push(Running { order, child, begun: self.clock.now() });
        Ok(())
    }

    /// Waits for the next child to end.
    #[allow(clippy::disallowed_methods)] // the parent process is not simulated
    pub fn wait(&mut self) -> io::Result<Option<Finished>> {
        while !self.is_idle() {
            for n in 0..self.running.len() {
                let overdue = self.clock.since(self.running[n].begun) > RUN_MAX;
                if overdue {
                    self.running[n].child.kill()?;
                }
                if self.running[n].child.try_wait()?.is_some() {
                    let Running { order, child, begun } = self.running.remove(n);
                    let output = child.wait_with_output()?;
                    let said = String::from_utf8_lossy(&output.stdout);
                    let report = said.lines().last().and_then(|line| serde_json::from_str(line).ok());
                    let report = report.unwrap_or_else(|| broken(&order, &output.status.to_string(), overdue));
                    return Ok(Some(Finished { order, report, took: self.clock.since(begun) }));
                }
            }
            std::thread::sleep(POLL);
        }
        Ok(None)
    }

    /// Ends what still runs.
    pub fn stop(&mut self) {
        for mut running in self.running.drain(..) {
            // It may have ended by itself.
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A child that said nothing.
fn broken(order: &Order, status: &str, overdue: bool) -> Report {
    let detail = if overdue { format!("no end after {RUN_MAX:?}") } else { format!("ended without a word: {status}") };
    Report {
        seed: order.seed,
        scenario: order.scenario.to_string(),
        planted: order.planted.map(|bug| bug.name().to_owned()),
        violation: Some(Violation { invariant: "run-ends".into(), detail, ..Violation::default() }),
        ..Report::default()
    }
}
