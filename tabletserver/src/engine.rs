//! The storage engine: one tablet's data, from mutation to packed batches of cells.
//!
//! | part | holds |
//! |---|---|
//! | [`TabletStore`] | the tablet's memtables and files, as one version that is replaced as a whole |
//! | [`memtable`] | what is not flushed yet, per locality group |
//! | [`sstable`] | immutable files: format, writer, reader, cursor |
//! | [`merge`], [`visible`], [`filter`] | many sorted sources as one; what a snapshot shows of it; what the caller wants of that |
//! | [`view`], [`scan`], `point` | a tablet at one moment; its rows as packed batches; one row without a walk |
//! | [`flush`], [`compaction`] | memtables to files, files to fewer files |
//! | `rewrite`, `rate`, `progress` | what both have in common: files by locality group and size; how fast; how far |
//! | `divide` | where a tablet may be split, and what lies on either side |
//! | [`cache`] | blocks of all tablets |
//! | [`bench`] | one tablet's engine under load |
//!
//! The engine knows neither leases nor the commit log nor the master: its caller makes a mutation
//! durable, then [`TabletStore::apply`]s it, then [`TabletStore::publish`]es it.

pub mod bench;
pub mod cache;
mod columns;
pub mod compaction;
mod config;
mod context;
mod divide;
mod error;
pub mod filter;
pub mod flush;
pub mod memtable;
pub mod merge;
#[cfg(test)]
mod model_tests;
mod point;
mod progress;
mod rate;
mod rewrite;
pub mod scan;
pub mod sstable;
mod store;
pub mod view;
pub mod visible;

pub use config::{ConfigError, EngineConfig, GroupOptions};
pub use context::EngineContext;
pub use error::EngineError;
pub use filter::Filter;
pub use progress::Progress;
pub use scan::{RowScanner, ScanBatch};
pub use store::{FreezeToken, TabletStore};
pub use view::{ReadView, ScanRequest, ScanTargets};
