//! Identities that the controller issues. None is ever used twice.

use std::fmt;

use serde::{Deserialize, Serialize};
use uruk_proto::define_id;

define_id!(
    /// A chunk server: bound to the identity of its data folder, so a lost disk is another server.
    ChunkServerId, "chunkserver-");
define_id!(
    /// An immutable piece of a file.
    ChunkId, "chunk-");
define_id!(
    /// A piece of a commit log.
    SegmentId, "segment-");
define_id!(
    /// The writing of one file, from BeginPut to CommitPut.
    PutId, "put-");

/// What chunk servers hold. Chunks and segments share one sequence of numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum PieceId {
    /// A piece of a file.
    Chunk(ChunkId),
    /// A piece of a commit log.
    Segment(SegmentId),
}

impl PieceId {
    /// The bare number.
    pub fn number(self) -> u64 {
        match self {
            PieceId::Chunk(id) => id.0,
            PieceId::Segment(id) => id.0,
        }
    }
}

impl fmt::Display for PieceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PieceId::Chunk(id) => id.fmt(f),
            PieceId::Segment(id) => id.fmt(f),
        }
    }
}
