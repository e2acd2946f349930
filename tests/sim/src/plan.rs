//! What a seed decides before the run begins: sizes, clocks, workloads, how hard it is hit.

use std::time::Duration;

use uruk_base::Random;
use uruk_dfs_sim::client::Durability;

use crate::host::ClockError;
use crate::scenario::Scenario;
use crate::tuning::{CLOCK_RATE_ERROR_PPM, Tuning};
use crate::workload::Workload;

/// Beyond the bound: clocks are wrong by up to this many parts per million.
const BEYOND_PPM: u32 = 400_000;
/// A holder of leases whose clock is this slow, and a grantor whose clock is this fast: between their ideas
/// of one lease, the fence alone keeps a log from growing.
const FENCE_RATES: (f64, f64) = (0.5, 1.4);
/// Wall clocks are wrong by up to this many microseconds.
const WALL_ERROR_MICROS: u64 = 200_000;
/// Steps of simulated time, in milliseconds: nothing is seen, killed or delivered between two of them.
const TICK_MS: [usize; 4] = [1, 2, 2, 4];
/// The network's usual greatest delay, in microseconds.
const LATENCY_MICROS: [u64; 4] = [500, 1_000, 3_000, 10_000];

/// One run, but for what happens in it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Decides everything.
    pub seed: u64,
    /// What may go wrong.
    pub scenario: Scenario,
    /// Controllers of the chunk store.
    pub controllers: usize,
    /// Chunk servers.
    pub chunk_servers: usize,
    /// Masters.
    pub masters: usize,
    /// Tablet servers.
    pub tablet_servers: usize,
    /// The workloads of each client.
    pub clients: Vec<Vec<Workload>>,
    /// Sizes and settings of the processes.
    pub tuning: Tuning,
    /// Faults come about this often.
    pub fault_gap: Duration,
    /// How long they come.
    pub fault_time: Duration,
    /// A step of simulated time.
    pub tick: Duration,
    /// Messages take up to this long.
    pub latency: Duration,
    /// Which chunk server is the one whose disk may lose data.
    pub damaged: usize,
    /// How durable sorted recovery files are: as by default, they are not synced, so they are lost when
    /// all machines lose power, and are made again one by one.
    pub recovery_files: Durability,
    /// Pauses of workloads are multiplied by this.
    pub pace: f64,
    clock_ppm: u32,
}

impl Plan {
    /// Draws the plan of a seed.
    pub fn draw(seed: u64, scenario: Scenario, fault_time: Duration) -> Plan {
        let random = Random::from_seed(seed ^ 0x706c_616e);
        let pick = |from: &[usize]| from[random.range(0..from.len() as u64) as usize];
        let mut workloads = Workload::ALL.to_vec();
        random.shuffle(&mut workloads);
        let clients_count = pick(&[2, 3]);
        let kept = pick(&[3, 4, workloads.len()]).min(workloads.len());
        let clients = (0..clients_count)
            .map(|n| workloads[..kept].iter().copied().skip(n).step_by(clients_count).collect::<Vec<_>>());
        let chunk_servers = pick(&[4, 5]);
        let masters_matter = matches!(
            scenario,
            Scenario::Masters
                | Scenario::ClockBeyond
                | Scenario::LonelyLeader
                | Scenario::LateDeaths
                | Scenario::LostAnswers
                | Scenario::Shape
        );
        let mut plan = Plan {
            seed,
            scenario,
            controllers: pick(&[1, 3, 3]),
            chunk_servers,
            masters: if masters_matter { 3 } else { pick(&[1, 3, 3]) },
            tablet_servers: pick(&[3, 4]),
            clients: clients.collect(),
            tuning: Tuning::draw(&random, scenario),
            fault_gap: Duration::from_millis(pick(&[300, 1_000, 3_000]) as u64),
            fault_time,
            tick: Duration::from_millis(pick(&TICK_MS) as u64),
            latency: Duration::from_micros(LATENCY_MICROS[random.range(0..LATENCY_MICROS.len() as u64) as usize]),
            damaged: random.range(1..chunk_servers as u64 + 1) as usize,
            recovery_files: Durability::Replicated,
            pace: match scenario {
                Scenario::Fence | Scenario::FenceRestarts | Scenario::Lag => 0.2,
                Scenario::LostAnswers | Scenario::Shape => 0.5,
                _ => 1.0,
            },
            clock_ppm: match scenario {
                Scenario::ClockBeyond => BEYOND_PPM,
                Scenario::Calm | Scenario::Fence | Scenario::FenceRestarts => 0,
                _ => [0, CLOCK_RATE_ERROR_PPM][pick(&[0, 1])],
            },
        };
        if plan.changes_shape(&random) {
            plan.clients[0].push(Workload::Shape);
            plan.tuning.change_shape(&random);
        }
        if plan.is_all_about_shape() {
            for (client, workload) in [Workload::Rows, Workload::Batches, Workload::Scans].into_iter().enumerate() {
                if !plan.clients.iter().flatten().any(|other| *other == workload) {
                    plan.clients[client % clients_count].push(workload);
                }
            }
        }
        plan
    }

    /// Whether tablets are split, merged and moved all the time: most often, but where one situation after the
    /// other is composed.
    fn changes_shape(&self, random: &Random) -> bool {
        match self.scenario {
            _ if self.is_all_about_shape() => true,
            Scenario::Mix => random.unit() < 0.8,
            _ => self.scenario.gap().is_none() && !self.is_beyond_bound() && random.unit() < 0.6,
        }
    }

    /// Whether changes of shape, and what goes wrong with them, are what the scenario is about.
    fn is_all_about_shape(&self) -> bool {
        matches!(self.scenario, Scenario::LostAnswers | Scenario::Shape)
    }

    /// Whether writers outlive the sealing of their logs.
    fn has_living_writers(&self) -> bool {
        matches!(self.scenario, Scenario::Fence | Scenario::FenceRestarts)
    }

    /// Whether clock rates differ by more than the masters are told.
    pub fn is_beyond_bound(&self) -> bool {
        self.scenario == Scenario::ClockBeyond || self.has_living_writers()
    }

    /// How wrong this machine's clocks are. The observer's parents and clients are right.
    pub fn clock_of(&self, name: &str) -> ClockError {
        if self.has_living_writers() {
            let rate = match name.split_once('-') {
                Some(("ts", _)) => FENCE_RATES.0,
                Some(("master", _)) => FENCE_RATES.1,
                _ => 1.0,
            };
            return ClockError { rate, wall_micros: 0 };
        }
        if self.clock_ppm == 0 {
            return ClockError::NONE;
        }
        let own = name.bytes().fold(self.seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let random = Random::from_seed(own ^ 0x636c_6f63);
        // The ends of what is allowed are where things break.
        let share = [-1.0, -1.0, 1.0, 1.0, random.unit() * 2.0 - 1.0][random.range(0..5) as usize];
        ClockError {
            rate: 1.0 + share * f64::from(self.clock_ppm) / 1e6,
            wall_micros: random.range(0..2 * WALL_ERROR_MICROS) as i64 - WALL_ERROR_MICROS as i64,
        }
    }
}
