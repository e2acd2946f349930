//! Freezing: what a close, a split and a merge do before they give a tablet away.
//!
//! | step | the tablet is |
//! |---|---|
//! | [`pre_flush`]: flush until what is left is small | read and written |
//! | lock `maintenance`: a commit under way ends first | read and written |
//! | freeze: no write passes the gate; a compaction under way is cancelled | read |
//! | [`drain_and_flush`]: what had passed is published, then flushed until nothing is left | read |
//!
//! Invariants: (1) after [`Quiet::Flushed`] everything acknowledged is in committed files, and no log but
//! the server's own is needed; (2) a tablet thaws by itself only before a command that releases or
//! replaces it was sent.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::MutexGuard;
use uruk_base::planted::{Planted, is_planted};
use uruk_proto::RpcError;

use super::Server;
use super::flush::{FlushEnd, FlushReason};
use super::tablet::{Tablet, TabletState};

/// Memtables above this are flushed before the freeze, so that the freeze is short.
const PRE_FLUSH_BYTES: u64 = 256 << 10;
/// Writers may be faster than flushes; then the freeze has to do the rest.
const PRE_FLUSHES_MAX: usize = 4;
/// Pause after a final flush that failed.
const RETRY_DELAY: Duration = Duration::from_millis(100);
/// A split or merge whose tablets are not flushed after this long gives up: writers wait no longer.
const FREEZE_MAX: Duration = Duration::from_secs(1);

/// How a final flush ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Quiet {
    /// Nothing is left to flush.
    Flushed,
    /// It was thawed meanwhile.
    Thawed,
    /// The tablet is not ours any more.
    Lost,
}

/// Flushes a tablet that is served until what is left is small.
pub async fn pre_flush(server: &Server, tablet: &Arc<Tablet>) -> Result<(), RpcError> {
    for _ in 0..PRE_FLUSHES_MAX {
        if tablet.store.memtable_bytes() <= PRE_FLUSH_BYTES && !tablet.has_foreign_logs() {
            break;
        }
        match server.flush_tablet(tablet, FlushReason::Handover).await? {
            FlushEnd::Flushed => {}
            FlushEnd::Clean | FlushEnd::Lost => break,
        }
    }
    Ok(())
}

/// Drains a frozen tablet, and flushes until nothing is left, or until it is not frozen any more.
pub async fn drain_and_flush(server: &Server, tablet: &Arc<Tablet>, alone: &MutexGuard<'_, ()>) -> Quiet {
    drain(tablet).await;
    flush_what_is_left(server, tablet, alone).await
}

/// Waits until every write that has passed the gate of a frozen tablet is published.
pub async fn drain(tablet: &Tablet) {
    if !is_planted(Planted::FreezeWithoutDrain) {
        tablet.drain().await;
    }
}

/// Flushes a drained tablet until nothing is left, or until it is not frozen any more.
pub async fn flush_what_is_left(server: &Server, tablet: &Arc<Tablet>, alone: &MutexGuard<'_, ()>) -> Quiet {
    // More than once: a frozen set that waited for a retry may come before the last one.
    loop {
        match tablet.state() {
            TabletState::Frozen => {}
            TabletState::Dropped => return Quiet::Lost,
            TabletState::Loaded | TabletState::Open | TabletState::Replacing => return Quiet::Thawed,
        }
        match server.flush_alone(tablet, FlushReason::Handover, alone).await {
            Ok(FlushEnd::Clean) if tablet.state() == TabletState::Frozen => return Quiet::Flushed,
            // Thawed meanwhile, or there is more.
            Ok(FlushEnd::Clean | FlushEnd::Flushed) => {}
            Ok(FlushEnd::Lost) => return Quiet::Lost,
            Err(error) => {
                tracing::warn!(tablet = %tablet.id, %error, "final flush failed; trying again");
                server.env.clock.sleep(RETRY_DELAY).await;
            }
        }
    }
}

/// Does `work` on frozen tablets. When it takes too long they are thawed, and it goes on to its end all the
/// same: a commit that is under way may not be left alone.
pub async fn while_patient<T>(server: &Server, tablets: &[&Arc<Tablet>], work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    match server.env.clock.timeout(FREEZE_MAX, work.as_mut()).await {
        Ok(done) => done,
        Err(_) => {
            thaw(tablets);
            work.await
        }
    }
}

/// Lets writers in again. Nothing that releases or replaces the tablets was sent.
pub fn thaw(tablets: &[&Arc<Tablet>]) {
    for tablet in tablets {
        tablet.transition(&[TabletState::Frozen], TabletState::Open);
    }
}
