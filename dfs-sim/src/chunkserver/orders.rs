//! Carrying out what the controller's leader orders: delete, finish, copy.
//!
//! Invariants: (1) orders of an older term than any answer's are ignored, and those under way end
//! before the newer term is told to anyone: a report made under a term is not undone by an older
//! leader; (2) a copy that is waiting or under way is not started twice.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use uruk_proto::dfs::{ChunkServerHeartbeatResponse, CopyOrder, FinishSegmentRequest};

use super::Core;
use super::copying;
use super::error::StoreError;
use super::map_cache::FileId;

/// Copies that wait for their turn; more are dropped, and ordered again by the leader.
const COPIES_WAITING_MAX: usize = 1_000;

/// Orders of one server.
pub(super) struct Orders {
    core: Arc<Core>,
    term_seen: u64,
    /// Copies that wait or are under way.
    copies: Arc<Mutex<BTreeSet<FileId>>>,
    copy_turns: Arc<Semaphore>,
    /// Deletions and finishes run one batch at a time, in order.
    batch: Arc<tokio::sync::Mutex<()>>,
}

impl Orders {
    pub(super) fn new(core: Arc<Core>) -> Orders {
        let copy_turns = Arc::new(Semaphore::new(core.host.config.copies_max));
        Orders { core, term_seen: 0, copies: Arc::default(), copy_turns, batch: Arc::default() }
    }

    /// Highest term of all answers.
    pub(super) fn term_seen(&self) -> u64 {
        self.term_seen
    }

    /// Starts what the answer orders.
    pub(super) async fn carry_out(&mut self, answer: ChunkServerHeartbeatResponse) {
        if answer.term < self.term_seen {
            tracing::warn!(term = answer.term, seen = self.term_seen, "orders of an old leader are ignored");
            return;
        }
        if answer.term > self.term_seen {
            drop(self.batch.lock().await);
            self.term_seen = answer.term;
        }
        for order in answer.copies {
            self.start_copy(order);
        }
        let (chunks, segments, finishes) = (answer.delete_chunks, answer.delete_segments, answer.finish);
        if chunks.is_empty() && segments.is_empty() && finishes.is_empty() {
            return;
        }
        let (core, batch) = (self.core.clone(), self.batch.clone());
        self.core.host.env.tasks.spawn("chunkserver orders", async move {
            let _turn = batch.lock().await;
            for id in chunks {
                log("delete chunk", id, core.chunks.delete(id).await);
            }
            if !segments.is_empty() {
                log("delete segments", segments[0], core.segments.delete(&segments).await);
            }
            for finish in finishes {
                let id = finish.segment_id;
                log("finish segment", id, finish_segment(&core, finish).await);
            }
        });
    }

    fn start_copy(&self, order: CopyOrder) {
        let id = if order.is_segment { FileId::Segment(order.id) } else { FileId::Chunk(order.id) };
        {
            let mut copies = self.copies.lock();
            if copies.contains(&id) {
                return;
            }
            if copies.len() >= COPIES_WAITING_MAX {
                return report_as_it_is(&self.core, id);
            }
            copies.insert(id);
        }
        let (core, copies, turns) = (self.core.clone(), self.copies.clone(), self.copy_turns.clone());
        self.core.host.env.tasks.spawn("chunkserver copy", async move {
            let _turn = turns.acquire().await.expect("never closed");
            let number = order.id;
            let result = copying::copy(&core, order).await;
            copies.lock().remove(&id);
            if result.is_err() {
                report_as_it_is(&core, id);
            }
            log("copy", number, result);
        });
    }
}

/// The leader learns from the next heartbeat that a copy did not come about, and orders another.
fn report_as_it_is(core: &Core, id: FileId) {
    match id {
        FileId::Chunk(id) => core.host.changes.chunk(id),
        FileId::Segment(id) => core.host.changes.segment(id),
    }
}

/// Here the seal is the controller's own word: a replica that does not fit it is bad and is reported
/// so, to be replaced.
async fn finish_segment(core: &Core, finish: FinishSegmentRequest) -> Result<(), StoreError> {
    let replica = core.segments.get(finish.segment_id)?;
    let result = replica.finish(finish.length, finish.crc).await;
    if let Err(StoreError::State(what) | StoreError::Corrupt { what, .. }) = &result {
        replica.mark_damaged(what);
    }
    let result = match result {
        Err(error @ StoreError::Behind { .. }) => {
            replica.mark_behind(&error.to_string());
            Ok(())
        }
        result => result,
    };
    // Said again when it was done before: the leader did not hear of it.
    core.host.changes.segment(finish.segment_id);
    result
}

fn log(what: &'static str, id: u64, result: Result<(), StoreError>) {
    match result {
        Ok(()) => tracing::debug!(what, id, "an order is carried out"),
        Err(error) => tracing::warn!(what, id, %error, "an order fails"),
    }
}
