//! What the writer of a replica is told (I3).
//!
//! `acked` also grows behind a fence, when a recoverer completes the replica. That is nothing for the
//! writer: a recoverer with another plan may be about to seal below it. So what is acknowledged never
//! exceeds the length that the first fence returned:
//! 1. the fence closes the replica before any completion can raise `acked`;
//! 2. a length is told only if the replica was not closed after the length was read.

use tokio::sync::watch;
use uruk_base::planted::{Planted, is_planted};

use super::Replica;
use crate::chunkserver::error::StoreError;

/// Acknowledgements for one append stream.
pub(in crate::chunkserver) struct Acknowledgements {
    acked: watch::Receiver<u64>,
    closed: watch::Receiver<bool>,
}

impl Replica {
    /// What the writer may be told, as it grows.
    pub(in crate::chunkserver) fn acknowledgements(&self) -> Acknowledgements {
        Acknowledgements { acked: self.acked.subscribe(), closed: self.closed.subscribe() }
    }

    /// Why the writer is told nothing more.
    pub(in crate::chunkserver) async fn ended(&self) -> StoreError {
        self.fenced(&*self.content.lock().await)
    }
}

impl Acknowledgements {
    /// Waits until there is more to tell, or nothing ever again. False when the replica is gone.
    pub(in crate::chunkserver) async fn changed(&mut self) -> bool {
        tokio::select! {
            biased;
            closed = self.closed.changed() => closed.is_ok(),
            acked = self.acked.changed() => acked.is_ok(),
        }
    }

    /// What is acknowledged now; `None` once the replica is closed.
    pub(in crate::chunkserver) fn length(&mut self) -> Option<u64> {
        let length = *self.acked.borrow_and_update();
        // In this order: a length that a completion made comes after the closing.
        let closed = *self.closed.borrow_and_update() && !is_planted(Planted::AckAfterFence);
        (!closed).then_some(length)
    }
}
