//! The Raft log: segment files on disk, and all entries that are not purged in memory.

pub(crate) mod format;
mod replay;
mod segments;
mod store;
mod writer;

pub(crate) use segments::Segments;
pub(crate) use store::LogStore;
pub(crate) use writer::Stop;
