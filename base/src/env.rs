//! The bundle of everything that a component receives from outside.

use std::sync::Arc;

use crate::clock::Clock;
use crate::disk::{Disk, RealDisk};
use crate::metrics::Metrics;
use crate::random::Random;
use crate::task::Tasks;
use crate::transport::{TcpTransport, Transport};

/// Time, randomness, network, disk, tasks and metrics of one process (or one simulated host).
///
/// Cheap to clone; every clone means the same process.
#[derive(Clone, Debug)]
pub struct Env {
    /// Monotonic and wall time, and every sleep.
    pub clock: Clock,
    /// The only source of randomness.
    pub random: Random,
    /// The network.
    pub transport: Arc<dyn Transport>,
    /// The file system.
    pub disk: Arc<dyn Disk>,
    /// Named tasks, joined at shutdown.
    pub tasks: Tasks,
    /// What `/metrics` shows.
    pub metrics: Metrics,
}

impl Env {
    /// The real machine: `CLOCK_BOOTTIME`, randomness of the operating system, TCP, the file system.
    pub fn real() -> Env {
        Env {
            clock: Clock::real(),
            random: Random::from_os(),
            transport: Arc::new(TcpTransport),
            disk: Arc::new(RealDisk),
            tasks: Tasks::new(),
            metrics: Metrics::new(),
        }
    }

    /// The same process with a task group of its own, so that one component can be shut down alone.
    pub fn with_tasks(&self, tasks: Tasks) -> Env {
        Env { tasks, ..self.clone() }
    }
}
