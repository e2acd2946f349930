//! A replicated state machine: commands go through a Raft log, every replica applies them in order.
//!
//! The caller supplies a [`StateMachine`] (pure, in memory) and gets a [`Consensus`]: propose
//! commands, read the state, learn who leads. One node alone or three (any odd number) together.
//!
//! This crate does not know who uses it.

pub mod config;
mod consensus;
pub mod error;
mod leadership;
mod service;
mod state_machine;

pub use config::Config;
pub use consensus::Consensus;
pub use error::{ConfigError, NotLeader, ProposeError, StartError};
pub use leadership::{Leader, Leadership, Term};
pub use service::RaftService;
pub use state_machine::{RestoreError, StateMachine};
