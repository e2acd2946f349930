//! What an observer that stands outside of time may know of a server: for simulation and tests.

use uruk_base::Moment;
use uruk_proto::{Epoch, RowRange, SeqNo, ServerId, TableId, TabletId};

use super::TabletServer;
use super::tablet::TabletState;

/// A tablet whose reads would be answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServedTablet {
    /// By whom.
    pub server: ServerId,
    /// Which.
    pub tablet: TabletId,
    /// Under which assignment.
    pub epoch: Epoch,
    /// Of which table.
    pub table: TableId,
    /// Its rows.
    pub range: RowRange,
    /// Everything up to here is visible.
    pub published: SeqNo,
}

impl TabletServer {
    /// The tablets that it would answer reads of at `now` on its own clock. Changes nothing.
    pub fn serving_at(&self, now: Moment) -> Vec<ServedTablet> {
        if !self.server.incarnation.would_serve_at(now) {
            return Vec::new();
        }
        let loaded = self.server.tablets.loaded().into_iter();
        let served = loaded.filter(|tablet| matches!(tablet.state(), TabletState::Open | TabletState::Frozen));
        let describe = served.map(|tablet| ServedTablet {
            server: self.server.incarnation.server_id,
            tablet: tablet.id,
            epoch: tablet.epoch,
            table: tablet.table,
            range: tablet.range.clone(),
            published: tablet.store.published(),
        });
        describe.collect()
    }
}
