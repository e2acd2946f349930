//! A replicated state machine: commands go through a Raft log, every replica applies them in order.
//!
//! The caller supplies a [`StateMachine`] (pure, in memory) and gets a [`Consensus`]: propose
//! commands, read the state, learn who leads. One node alone or three (any odd number) together.
//! This crate does not know who uses it.
//!
//! | file | concept |
//! |---|---|
//! | `consensus` | the handle, and how its parts are put together |
//! | `confirm` | rounds that prove leadership, shared by all who wait |
//! | `engine_watch` | leadership as the caller sees it; the end of the process when the engine fails |
//! | `machine` | the caller's state machine, as the engine drives it |
//! | `log` | segments on disk, entries in memory, one writer with one sync for many appends |
//! | `hard_state`, `snapshot` | the other files |
//! | `network`, `service` | RPCs sent and received |
//! | `types` | the engine's types |
//! | `inspect`, `decode` | the files for people; their decoders for those who try to break them |
//!
//! Invariants:
//! 1. An acknowledged command survives as long as a majority of the members keep their folders.
//! 2. A member whose disk failed acknowledges nothing more: its task group ends with a panic.
//! 3. A member that lost its folder must not come back under its old id: it forgot its votes.

pub mod config;
mod confirm;
mod consensus;
pub mod decode;
mod engine_watch;
pub mod error;
mod hard_state;
pub mod inspect;
mod leadership;
mod log;
mod machine;
mod network;
mod service;
mod snapshot;
mod state_machine;
mod types;

pub use config::Config;
pub use consensus::Consensus;
pub use error::{ConfigError, NotLeader, ProposeError, StartError};
pub use leadership::{Leader, Leadership, Term};
pub use service::RaftService;
pub use state_machine::{Captured, RestoreError, StateMachine};
