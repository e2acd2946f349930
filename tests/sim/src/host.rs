//! One simulated machine: its disk outlives it, everything else is new at each start.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use uruk_base::clock::SimulatedClock;
use uruk_base::disk::SimDisk;
use uruk_base::transport::SimulatedTransport;
use uruk_base::{Clock, Env, Metrics, Random, Tasks};

/// What a simulated machine keeps over its crashes.
#[derive(Clone)]
pub struct Host {
    name: String,
    seed: u64,
    disk: SimDisk,
    starts: Arc<AtomicU64>,
}

impl Host {
    /// A machine with an empty disk.
    pub fn new(name: &str, seed: u64) -> Host {
        let own = name.bytes().fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        Host { name: name.to_owned(), seed: own, disk: SimDisk::new(own), starts: Arc::default() }
    }

    /// Its name in the simulated network.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its disk.
    pub fn disk(&self) -> &SimDisk {
        &self.disk
    }

    /// The environment of a process that starts now; call it inside the simulated host.
    pub fn start(&self) -> Env {
        let start = self.starts.fetch_add(1, Ordering::Relaxed);
        let wall_micros = turmoil::since_epoch().unwrap_or_default().as_micros() as i64;
        let clock = Clock::from_source(Arc::new(SimulatedClock::new(1.0, wall_micros)));
        tracing::info!(host = self.name, start, "process starts");
        Env {
            disk: self.disk.mount(clock.clone()),
            clock,
            random: Random::from_seed(self.seed.wrapping_add(start)),
            transport: Arc::new(SimulatedTransport),
            tasks: Tasks::simulated(),
            metrics: Metrics::new(),
        }
    }
}
