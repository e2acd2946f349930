//! The chunk store: replicated immutable files and fenced commit logs on plain disks.
//!
//! | part | holds |
//! |---|---|
//! | [`controller`] | namespace, placement, the state of every log segment, repair: a replicated state machine |
//! | [`chunkserver`] | chunks and segments of one folder |
//! | [`client`] | `object_store::ObjectStore` and `CommitLogStore` on top of both |
//! | [`format`] | the bytes on disk, described in `docs/formats.md` |

pub mod chunkserver;
pub mod client;
pub mod controller;
pub mod format;
