//! One seed, from start to end, in this process.
//!
//! ```text
//!   faults        all is healed, workloads go on      workloads end     all is read back     settled
//!   |---- fault time ----|------- calm time -------|--- serves again ---|------ read ------|--- settle ---|
//! ```

use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;
use rand::SeedableRng;

use crate::cluster::Setting;
use crate::invariant::everything_serves_again::{self, READ_WITHIN, SERVES_WITHIN, SETTLES_WITHIN};
use crate::invariant::{self, Always, Eventually, no_panic};
use crate::nemesis::Nemesis;
use crate::plan::Plan;
use crate::registry::{Progress, Registry};
use crate::report::{Report, Violation};
use crate::scenario::Scenario;
use crate::trace::{self, Trace};
use crate::workload::{self, Phase, Shared};
use crate::world::World;

/// Simulated wall time starts here: 2024-01-01, in seconds since the epoch.
const EPOCH_SECONDS: u64 = 1_704_067_200;
/// Workloads go on for so long after all is healed.
const CALM_TIME: Duration = Duration::from_secs(8);
/// What holds at the end is looked at this often.
const SETTLE_EVERY: Duration = Duration::from_millis(250);
/// No run is longer.
const RUN_MAX: Duration = Duration::from_secs(3_600);

/// Checks that a late but once true answer breaks: nobody promises them when clock rates differ by more than
/// the masters were told. What is acknowledged is not lost, and happens once, even then.
const READS: [&str; 2] = ["linearizable", "scans"];

/// What to run.
#[derive(Clone, Debug)]
pub struct Order {
    /// Decides everything.
    pub seed: u64,
    /// What may go wrong.
    pub scenario: Scenario,
    /// Simulated seconds with faults.
    pub seconds: u64,
    /// A bug on purpose.
    pub planted: Option<uruk_base::planted::Planted>,
    /// Print every event.
    pub trace: bool,
}

/// Runs it. A panic anywhere is handed to `panicked` as a finished report; the process should end then.
pub fn seed(order: &Order, panicked: impl Fn(Report) + Send + Sync + 'static) -> Report {
    mad_turmoil::rand::set_rng(rand::rngs::StdRng::seed_from_u64(order.seed));
    fastrand::seed(order.seed);
    let _clocks = mad_turmoil::time::SimClocksGuard::init();
    if let Some(bug) = order.planted {
        uruk_base::planted::plant(bug);
    }
    let trace = trace::record(order.trace);
    let plan = Plan::draw(order.seed, order.scenario, Duration::from_secs(order.seconds));
    tracing::info!(?plan, "plan");
    let report = Report::new(&plan, order.planted.map(|bug| bug.name()));
    let (panic_trace, panic_report) = (trace.clone(), report.clone());
    no_panic::watch(move |detail| {
        let events = panic_trace.last_events();
        let simulated = turmoil::sim_elapsed().unwrap_or_default();
        let violation = Violation { invariant: no_panic::NAME.into(), detail, events, ..Violation::default() };
        let simulated_ms = simulated.as_millis() as u64;
        panicked(Report { violation: Some(violation), simulated_ms, ..panic_report.clone() });
    });
    Run::new(plan, trace).finish(report)
}

struct Run {
    world: World,
    nemesis: Nemesis,
    always: Vec<Box<dyn Always>>,
    trace: Trace,
    ticks: u64,
}

impl Run {
    fn new(plan: Plan, trace: Trace) -> Run {
        let mut builder = turmoil::Builder::new();
        builder
            .rng_seed(plan.seed)
            .epoch(UNIX_EPOCH + Duration::from_secs(EPOCH_SECONDS))
            .simulation_duration(RUN_MAX)
            .tick_duration(plan.tick)
            .min_message_latency(Duration::from_micros(200))
            .max_message_latency(plan.latency)
            .tcp_capacity(1 << 16)
            .enable_random_order();
        let nemesis = Nemesis::new(plan.seed, plan.scenario, plan.fault_gap, plan.fault_time);
        let setting = Setting::new(plan.clone(), Registry::default(), Shared::new(plan.pace));
        let world = World::new(builder.build(), setting);
        Run { world, nemesis, always: invariant::always(), trace, ticks: 0 }
    }

    fn finish(mut self, mut report: Report) -> Report {
        let found = self.phases().err();
        let shared = &self.world.setting.shared;
        // What clients saw says more than that something is slow, or not as it should be in the end.
        let beyond = self.world.setting.plan.is_beyond_bound();
        let seen = workload::violations(shared).into_iter().find(|seen| !beyond || !READS.contains(&seen.invariant));
        let events = self.trace.last_events();
        report.violation = match (seen, found) {
            (Some(seen), _) => Some(Violation {
                invariant: seen.invariant.to_owned(),
                detail: seen.detail,
                history: seen.history,
                events: Vec::new(),
            }),
            (None, Some((invariant, detail))) => {
                Some(Violation { invariant: invariant.to_owned(), detail, history: Vec::new(), events })
            }
            (None, None) => None,
        };
        let summary = self.trace.summary();
        report.simulated_ms = self.world.now().as_millis() as u64;
        report.operations = shared.history.len() as u64;
        report.faults = self.nemesis.done;
        report.events = summary.events;
        report.trace = summary.hash;
        report
    }

    fn phases(&mut self) -> Result<(), Broken> {
        let faults_end = self.world.setting.plan.fault_time;
        while self.world.now() < faults_end {
            self.nemesis.step(&mut self.world);
            self.step()?;
        }
        self.nemesis.heal(&mut self.world);
        let shared = self.world.setting.shared.clone();
        shared.set_phase(Phase::Healed);
        self.steps_until(CALM_TIME, |_| None)?;
        shared.set_phase(Phase::Stop);
        let serves = |world: &World| Some(everything_serves_again::check(world));
        self.steps_until(SERVES_WITHIN, serves)?;
        self.world.setting.registry.allow_verification();
        let read = |world: &World| {
            let done = world.setting.registry.clients().values().any(|progress| *progress == Progress::Verified);
            Some(if done { Ok(()) } else { Err("not everything is read back".to_owned()) })
        };
        self.steps_until(READ_WITHIN, read)?;
        self.settle()
    }

    fn settle(&mut self) -> Result<(), Broken> {
        let end = self.world.now() + SETTLES_WITHIN;
        for mut invariant in invariant::eventually() {
            while let Err(problem) = check_eventually(invariant.as_mut(), &self.world) {
                if self.world.now() >= end {
                    return Err((invariant.name(), problem));
                }
                let next = self.world.now() + SETTLE_EVERY;
                while self.world.now() < next {
                    self.nemesis.step(&mut self.world);
                    self.step()?;
                }
            }
        }
        Ok(())
    }

    /// Goes on until `done` says Ok; its last Err counts when `within` has passed. None: just go on.
    fn steps_until(
        &mut self,
        within: Duration,
        done: impl Fn(&World) -> Option<Result<(), String>>,
    ) -> Result<(), Broken> {
        let end = self.world.now() + within;
        loop {
            let last = done(&self.world);
            if matches!(last, Some(Ok(()))) {
                return Ok(());
            }
            if self.world.now() >= end {
                return match last {
                    Some(Err(problem)) => {
                        Err((everything_serves_again::NAME, format!("{within:?} after it could have: {problem}")))
                    }
                    Some(Ok(())) | None => Ok(()),
                };
            }
            self.nemesis.step(&mut self.world);
            self.step()?;
        }
    }

    fn step(&mut self) -> Result<(), Broken> {
        self.world.step().map_err(|error| ("simulation", error.to_string()))?;
        self.ticks += 1;
        for invariant in &mut self.always {
            if self.ticks.is_multiple_of(invariant.every_ticks()) {
                invariant.check(&self.world).map_err(|problem| (invariant.name(), problem))?;
            }
        }
        for (name, progress) in self.world.setting.registry.clients() {
            if let Progress::Failed(why) = progress {
                return Err(("client", format!("{name}: {why}")));
            }
        }
        Ok(())
    }
}

fn check_eventually(invariant: &mut dyn Eventually, world: &World) -> Result<(), String> {
    invariant.check(world)
}

/// Which invariant, and how.
type Broken = (&'static str, String);
