//! The tablet server: serves the tablets that the master assigns to it, and keeps nothing of its own.
//!
//! | part | holds |
//! |---|---|
//! | [`engine`] | one tablet's data: memtables, SSTables, merging reads, flush, compaction, the block cache |
//! | [`server`] | the process: lease, commit log, tablets, RPC service, recovery of a dead server's log, the watching parent |

pub mod engine;
pub mod server;
