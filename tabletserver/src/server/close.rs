//! Closing tablets: pre-flush, freeze, drain, final flush, release.
//!
//! Invariants: (1) after the freeze no write passes the gate, and every write that had passed is
//! durable, applied and published before the final flush; (2) nothing is served any more when the
//! release is sent; (3) a tablet with own writes unflushed is never released, unless its table is
//! deleted (what was only replayed stays in the dead servers' logs, which the row goes on naming); (4) after an unknown outcome of its flush it stays frozen until the row was read.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use uruk_proto::master::{TabletKey, TabletReleasedRequest};
use uruk_proto::{Epoch, TabletId};

use super::Server;
use super::freeze::{self, Quiet};
use super::tablet::{Tablet, TabletState};

/// Whether the data is still wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseKind {
    /// Another server will serve it.
    Flush,
    /// The table is deleted.
    Discard,
}

impl Server {
    /// Takes an order; the work goes on in the background. Repeated orders change nothing.
    pub fn order_close(self: &Arc<Self>, keys: Vec<TabletKey>, kind: CloseKind) {
        for key in keys {
            let (id, epoch) = (TabletId(key.tablet_id), Epoch(key.epoch));
            match kind {
                CloseKind::Discard => {
                    self.tablets.discard(id, epoch);
                    self.spawn_release(key);
                }
                CloseKind::Flush => match self.tablets.start_closing(id, epoch) {
                    None => self.spawn_release(key),
                    Some(tablet) if tablet.is_closing.swap(true, Ordering::Relaxed) => {}
                    Some(tablet) => {
                        let (server, closing) = (self.clone(), self.start_closing());
                        self.tasks.spawn("close tablet", async move {
                            let _closing = closing;
                            close(&server, &tablet).await;
                        });
                    }
                },
            }
        }
    }

    fn spawn_release(self: &Arc<Self>, key: TabletKey) {
        let (server, closing) = (self.clone(), self.start_closing());
        self.tasks.spawn("release tablet", async move {
            let _closing = closing;
            release(&server, key).await;
        });
    }
}

async fn close(server: &Arc<Server>, tablet: &Arc<Tablet>) {
    // Before the freeze: a tablet that waits for its turn is served.
    let _slot = server.close_slots.acquire().await.expect("never closed");
    // A split or merge of it ends first; perhaps it is gone then.
    let _operation = tablet.operation.lock().await;
    let started = server.env.clock.now();
    if let Err(error) = freeze::pre_flush(server, tablet).await {
        tracing::warn!(tablet = %tablet.id, %error, "flush before the freeze failed");
    }
    let alone = tablet.maintenance.lock().await;
    if !tablet.transition(&[TabletState::Open], TabletState::Frozen) {
        return; // dropped meanwhile: discarded, replaced, or not ours any more
    }
    let frozen = server.env.clock.now();
    match freeze::drain_and_flush(server, tablet, &alone).await {
        Quiet::Flushed => {}
        Quiet::Thawed | Quiet::Lost => return,
    }
    // The table may have been deleted while we flushed: then the discard has released it.
    if !tablet.transition(&[TabletState::Frozen], TabletState::Dropped) {
        return;
    }
    server.tablets.close(tablet);
    release(server, tablet.key()).await;
    let clock = &server.env.clock;
    tracing::info!(tablet = %tablet.id, took = ?clock.since(started), frozen = ?clock.since(frozen), "tablet is released");
}

async fn release(server: &Server, key: TabletKey) {
    let request = TabletReleasedRequest {
        server_id: server.incarnation.server_id.0,
        tablet: Some(key),
        report_number: server.pins.last_report(),
    };
    let call = |mut master: super::masters::Client| async move { master.tablet_released(request).await };
    if let Err(error) = server.masters.call("tablet released", call).await.result {
        tracing::warn!(tablet = key.tablet_id, epoch = key.epoch, %error, "the master does not take the release");
    }
}
