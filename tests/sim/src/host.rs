//! One simulated machine: its disk, its clock's rate and its network outlive its processes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use uruk_base::clock::SimulatedClock;
use uruk_base::disk::SimDisk;
use uruk_base::task::Pause;
use uruk_base::transport::FaultyTransport;
use uruk_base::{Clock, Env, Metrics, Moment, Random, Tasks};

/// What a simulated machine keeps over its crashes.
#[derive(Clone)]
pub struct Host {
    name: String,
    seed: u64,
    disk: SimDisk,
    clock: ClockError,
    shared: Arc<Shared>,
}

/// How wrong a machine's clocks are.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ClockError {
    /// Of its monotonic clock; 1.0 is exact.
    pub rate: f64,
    /// Of its wall clock, in microseconds.
    pub wall_micros: i64,
}

impl ClockError {
    /// A machine whose clocks are right.
    pub const NONE: ClockError = ClockError { rate: 1.0, wall_micros: 0 };
}

struct Shared {
    starts: AtomicU64,
    /// True time at which the running process's clock was zero.
    clock_zero: Mutex<Duration>,
    pause: Pause,
    network: FaultyTransport,
}

impl Host {
    /// A machine with an empty disk.
    pub fn new(name: &str, seed: u64, clock: ClockError) -> Host {
        let own = name.bytes().fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let pause = Pause::new();
        let shared = Shared {
            starts: AtomicU64::new(0),
            clock_zero: Mutex::default(),
            network: FaultyTransport::new(pause.clone()),
            pause,
        };
        Host { name: name.to_owned(), seed: own, disk: SimDisk::new(own), clock, shared: Arc::new(shared) }
    }

    /// Its name in the simulated network.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its disk.
    pub fn disk(&self) -> &SimDisk {
        &self.disk
    }

    /// Stops its process, and lets it go on.
    pub fn pause(&self) -> &Pause {
        &self.shared.pause
    }

    /// Its connections.
    pub fn network(&self) -> &FaultyTransport {
        &self.shared.network
    }

    /// What the running process's clock shows at this true time.
    pub fn moment_at(&self, true_time: Duration) -> Moment {
        let elapsed = true_time.saturating_sub(*self.shared.clock_zero.lock());
        Moment::from_start(elapsed.mul_f64(self.clock.rate))
    }

    /// The environment of a process that starts now; call it inside the simulated host.
    pub fn start(&self) -> Env {
        let start = self.shared.starts.fetch_add(1, Ordering::Relaxed);
        *self.shared.clock_zero.lock() = turmoil::sim_elapsed().unwrap_or_default();
        let wall_micros = turmoil::since_epoch().unwrap_or_default().as_micros() as i64 + self.clock.wall_micros;
        let pause = self.pause().clone();
        let source = SimulatedClock::pausable(self.clock.rate, wall_micros, pause.clone());
        let clock = Clock::from_source(Arc::new(source));
        tracing::info!(host = self.name, start, rate = self.clock.rate, "process starts");
        Env {
            disk: self.disk.mount_pausable(clock.clone(), pause.clone()),
            clock,
            random: Random::from_seed(self.seed.wrapping_add(start)),
            transport: Arc::new(self.network().clone()),
            tasks: Tasks::pausable(pause),
            metrics: Metrics::new(),
        }
    }
}
