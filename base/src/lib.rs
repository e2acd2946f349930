//! Everything that simulation replaces, and the interfaces of the storage layer.
//!
//! A component takes an [`Env`] through its constructor and reaches time, randomness, network and
//! disk through nothing else. Production hands it [`Env::real`]; the simulator hands it a turmoil
//! transport, a simulated disk, skewed clocks and a seeded generator.
//!
//! This crate does not know what a tablet is.

pub mod clock;
pub mod commit_log;
pub mod data_folder;
pub mod disk;
mod env;
pub mod inspect;
pub mod lost_file;
pub mod metrics;
pub mod planted;
pub mod process;
pub mod random;
pub mod rpc;
pub mod splice;
pub mod task;
pub mod transport;

pub use clock::{Clock, Moment};
pub use disk::{Disk, DiskFile};
pub use env::Env;
pub use metrics::Metrics;
pub use random::Random;
pub use task::Tasks;
pub use transport::Transport;
