//! A planned end: tablets are given up, flushed, so that nobody has to recover them.
//!
//! Invariant: giving up is the same work as a close that the master orders; what is not released when
//! the time is over stays in the log, as after a crash.

use std::sync::Arc;

use tokio::sync::watch;

use super::Server;
use super::close::CloseKind;

/// How far a planned end has got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stopping {
    /// It is not wanted.
    No,
    /// Wanted; the master may still assign tablets to us.
    Asked,
    /// A master has said that it knows.
    Known,
}

/// The planned end of an incarnation.
#[derive(Debug)]
pub struct Stop {
    phase: watch::Sender<Stopping>,
    /// Closes and releases under way.
    closing: watch::Sender<usize>,
}

/// A close or release under way.
#[derive(Debug)]
pub struct Closing(Arc<Server>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.stop.closing.send_modify(|closing| *closing -= 1);
    }
}

impl Stop {
    /// Not wanted yet.
    pub fn new() -> Stop {
        Stop { phase: watch::Sender::new(Stopping::No), closing: watch::Sender::new(0) }
    }

    /// Whether the end is wanted.
    pub fn is_asked(&self) -> bool {
        *self.phase.borrow() != Stopping::No
    }

    /// Completes when the end is wanted.
    pub async fn asked(&self) {
        self.reached(|phase| phase != Stopping::No).await;
    }

    /// A renewal that said so was granted.
    pub fn note_known(&self) {
        self.phase.send_replace(Stopping::Known);
    }

    async fn reached(&self, is_there: impl Fn(Stopping) -> bool) {
        let mut phase = self.phase.subscribe();
        phase.wait_for(|phase| is_there(*phase)).await.expect("the sender is ours");
    }
}

impl Server {
    /// Counts a close or release until what comes back is dropped.
    pub fn start_closing(self: &Arc<Self>) -> Closing {
        self.stop.closing.send_modify(|closing| *closing += 1);
        Closing(self.clone())
    }

    /// Flushes and releases all tablets, also those that are being opened; dropped when that takes too long,
    /// or when the tasks that do it are gone.
    pub async fn give_up_tablets(self: &Arc<Self>) {
        self.stop.phase.send_if_modified(|phase| {
            let is_first = *phase == Stopping::No;
            if is_first {
                *phase = Stopping::Asked;
            }
            is_first
        });
        // Else the master would assign to us again what we release.
        self.stop.reached(|phase| phase == Stopping::Known).await;
        let mut closing = self.stop.closing.subscribe();
        loop {
            self.order_close(self.tablets.keys(), CloseKind::Flush);
            closing.wait_for(|closing| *closing == 0).await.expect("the sender is ours");
            // After a task's panic nobody closes what is left.
            if self.tablets.keys().is_empty() || self.tasks.is_cancelled() {
                return;
            }
        }
    }
}
