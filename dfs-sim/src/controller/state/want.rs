//! What the state wants of a piece that some chunk server reported.

use super::{ControllerState, SegmentState};
use crate::controller::id::{ChunkId, PieceId, SegmentId};

/// What is wanted of a piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    /// Not an id of this store: never touched. Somebody's only copy, perhaps.
    Foreign,
    /// In use as it is: a put in progress, a segment that is not sealed, a sealed one without bytes.
    Hold,
    /// So many good copies.
    Copies(WantedCopies),
    /// Nothing can ever name it again.
    Garbage,
}

/// Content and number of the copies that are wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WantedCopies {
    /// Length of each.
    pub bytes: u64,
    /// CRC-32 of all of it.
    pub crc: u32,
    /// How many.
    pub replicas: u8,
}

impl ControllerState {
    /// What is wanted of a piece.
    pub fn want(&self, piece: PieceId) -> Want {
        let id = piece.number();
        if id < self.ids.first || id >= self.ids.next {
            return Want::Foreign;
        }
        match piece {
            PieceId::Chunk(id) => self.want_chunk(id),
            PieceId::Segment(id) => self.want_segment(id),
        }
    }

    fn want_chunk(&self, id: ChunkId) -> Want {
        if let Some(chunk) = self.chunks.get(&id) {
            return Want::Copies(WantedCopies { bytes: chunk.bytes, crc: chunk.crc, replicas: chunk.replicas });
        }
        match self.block_of(id.0) {
            Some(first) if !self.blocks[&first].freed.contains(&id) => Want::Hold,
            Some(_) | None => Want::Garbage,
        }
    }

    fn want_segment(&self, id: SegmentId) -> Want {
        let Some(segment) = self.segment(id) else { return Want::Garbage };
        match segment.state {
            SegmentState::Open | SegmentState::Recovering { .. } => Want::Hold,
            SegmentState::Sealed { length: 0, .. } => Want::Hold,
            SegmentState::Sealed { length, crc } => {
                Want::Copies(WantedCopies { bytes: length, crc, replicas: segment.replicas })
            }
        }
    }
}
