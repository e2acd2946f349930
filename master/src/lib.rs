//! The master: a replicated state machine whose state *is* the root and meta tables, the servers,
//! the schemas and the procedures under way.
//!
//! | part | holds |
//! |---|---|
//! | `command`, `state` | what is replicated, and the pure `apply` that checks every change |
//! | `lease`, `volatile`, `reports` | what only the leader knows: leases, load, what is under way |
//! | `assign` | the planner: a pure function of (state, volatile, now) |
//! | `balance` | what is split, merged and moved without being asked: pure functions, too |
//! | `bench` | the master measured alone, with synthetic tablet servers |
//! | `check` | whether rows, reports and storage fit together |
//! | `driver`, `recovery`, `orders`, `files` | the thin loop that performs what was planned |
//! | `service`, `tables`, `procedures` | the RPCs |
//! | `status`, `http` | the status page, as pages and as JSON |
//!
//! It never reads or writes user data.

mod assign;
mod balance;
pub mod bench;
mod check;
mod command;
mod config;
mod driver;
mod error;
mod files;
#[cfg(test)]
mod growth;
mod http;
mod lease;
mod master;
mod metrics;
mod orders;
mod procedures;
mod recovery;
mod reports;
mod service;
mod shared;
mod state;
pub mod status;
mod tables;
mod volatile;

pub use config::{ConfigError, MasterConfig, Tuning};
pub use error::StartError;
pub use master::Master;
pub use shared::Storage;
pub use status::{NoHealth, StorageHealth, StorageReport};
