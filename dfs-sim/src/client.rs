//! The chunk store's client: `object_store::ObjectStore` and `CommitLogStore` on top of the
//! controller group and the chunk servers.
//!
//! | part | does |
//! |---|---|
//! | [`DfsClient`] | finds the controller's leader, keeps channels; cheap to clone |
//! | [`DfsObjectStore`] | immutable files in chunks of at most 64 MiB, three copies each |
//! | [`DfsCommitLogs`] | fenced, replicated commit logs |
//!
//! Every call has a deadline; every retry is bounded by one. Nothing here keeps state that another
//! process would need.

mod chunk_reader;
mod chunk_writer;
mod config;
mod connection;
mod controller;
mod error;
mod file_cache;
mod logs;
mod object_store;
mod suspects;

pub use config::{ConfigError, DfsClientConfig, Durability};
pub use connection::{ConnectError, DfsClient};
pub use error::CallError;
pub use logs::{DfsCommitLogs, seal, window};
pub use object_store::DfsObjectStore;
