//! The tablets of this server, by id.
//!
//! Invariant: an epoch of a tablet that was released or discarded here is never opened here again, so
//! a late order cannot bring it back. What is not here was not necessarily released: its data may
//! still stand in a dead server's log.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::RwLock;
use uruk_proto::tablet::TabletRef;
use uruk_proto::{Epoch, ErrorCode, RpcError, TabletId};

use super::tablet::{Tablet, TabletState};

/// A tablet's place in the server.
#[derive(Clone, Debug)]
enum Slot {
    /// Being read.
    Opening(Epoch),
    /// In memory.
    Loaded(Arc<Tablet>),
}

impl Slot {
    fn epoch(&self) -> Epoch {
        match self {
            Slot::Opening(epoch) => *epoch,
            Slot::Loaded(tablet) => tablet.epoch,
        }
    }
}

#[derive(Debug, Default)]
struct Slots {
    by_id: BTreeMap<TabletId, Slot>,
    /// The highest epoch of each tablet that was released or discarded here.
    closed: BTreeMap<TabletId, Epoch>,
    /// To be closed as soon as they are open.
    close_when_open: BTreeSet<(TabletId, Epoch)>,
}

/// What a close finds.
#[derive(Debug)]
pub enum CloseTarget {
    /// It was released or discarded before: say so again.
    Closed,
    /// It is here.
    Loaded(Arc<Tablet>),
    /// It is being read; noted.
    Opening,
    /// It was never here, or is here under another epoch.
    Unknown,
}

impl Slots {
    fn note_closed(&mut self, id: TabletId, epoch: Epoch) {
        let newest = self.closed.entry(id).or_insert(epoch);
        *newest = (*newest).max(epoch);
        self.close_when_open.remove(&(id, epoch));
    }
}

/// All tablets of the server.
#[derive(Debug, Default)]
pub struct Tablets(RwLock<Slots>);

impl Tablets {
    /// The tablet that a caller names.
    pub fn find(&self, name: Option<&TabletRef>) -> Result<Arc<Tablet>, RpcError> {
        let id = TabletId(name.map_or(0, |name| name.tablet_id));
        match self.0.read().by_id.get(&id) {
            Some(Slot::Loaded(tablet)) => Ok(tablet.clone()),
            Some(Slot::Opening(_)) => Err(RpcError::new(ErrorCode::Unavailable, format!("{id} is opening"))),
            None => Err(RpcError::new(ErrorCode::StaleLocation, format!("{id} is not on this server"))),
        }
    }

    /// Makes a place for a tablet that is to be opened. False: it is here already, or the order is old.
    /// An older epoch that is still here is dropped: the master has decided that it is over.
    pub fn start_opening(&self, id: TabletId, epoch: Epoch) -> bool {
        let mut slots = self.0.write();
        let known = slots.by_id.get(&id).map(Slot::epoch).max(slots.closed.get(&id).copied());
        if known.is_some_and(|known| known >= epoch) {
            return false;
        }
        if let Some(Slot::Loaded(old)) = slots.by_id.insert(id, Slot::Opening(epoch)) {
            set_dropped(&old);
        }
        true
    }

    /// The tablet is read; false when it was closed meanwhile.
    pub fn finish_opening(&self, tablet: Arc<Tablet>) -> bool {
        let mut slots = self.0.write();
        match slots.by_id.get_mut(&tablet.id) {
            Some(slot @ Slot::Opening(_)) if slot.epoch() == tablet.epoch => {
                *slot = Slot::Loaded(tablet);
                true
            }
            Some(_) | None => false,
        }
    }

    /// The tablet could not be opened.
    pub fn abort_opening(&self, id: TabletId, epoch: Epoch) {
        let mut slots = self.0.write();
        if matches!(slots.by_id.get(&id), Some(Slot::Opening(opening)) if *opening == epoch) {
            slots.by_id.remove(&id);
        }
    }

    /// All tablets in memory, by id.
    pub fn loaded(&self) -> Vec<Arc<Tablet>> {
        let slots = self.0.read();
        let loaded = slots.by_id.values().filter_map(|slot| match slot {
            Slot::Loaded(tablet) => Some(tablet.clone()),
            Slot::Opening(_) => None,
        });
        loaded.collect()
    }

    /// What an order to close this epoch, keeping its data, is about.
    pub fn start_closing(&self, id: TabletId, epoch: Epoch) -> CloseTarget {
        let mut slots = self.0.write();
        let is_closed = slots.closed.get(&id).is_some_and(|closed| *closed >= epoch);
        match slots.by_id.get(&id) {
            Some(Slot::Loaded(tablet)) if tablet.epoch == epoch => {
                let tablet = tablet.clone();
                slots.close_when_open.insert((id, epoch));
                CloseTarget::Loaded(tablet)
            }
            Some(Slot::Opening(opening)) if *opening == epoch => {
                slots.close_when_open.insert((id, epoch));
                CloseTarget::Opening
            }
            Some(Slot::Opening(_) | Slot::Loaded(_)) | None if is_closed => CloseTarget::Closed,
            Some(Slot::Opening(_) | Slot::Loaded(_)) | None => CloseTarget::Unknown,
        }
    }

    /// Whether the tablet was ordered to close; says so once.
    pub fn take_close_order(&self, tablet: &Tablet) -> bool {
        self.0.write().close_when_open.remove(&(tablet.id, tablet.epoch))
    }

    /// Stops serving a tablet whose data is in files, for good: it may be released then.
    pub fn close(&self, tablet: &Arc<Tablet>) {
        self.drop_tablet(tablet);
        self.0.write().note_closed(tablet.id, tablet.epoch);
    }

    /// Drops a tablet whose data is not wanted any more, whatever its state.
    pub fn discard(&self, id: TabletId, epoch: Epoch) {
        let mut slots = self.0.write();
        slots.note_closed(id, epoch);
        if slots.by_id.get(&id).is_some_and(|slot| slot.epoch() <= epoch)
            && let Some(Slot::Loaded(tablet)) = slots.by_id.remove(&id)
        {
            set_dropped(&tablet);
        }
    }

    /// Stops serving a tablet and forgets it.
    pub fn drop_tablet(&self, tablet: &Arc<Tablet>) {
        set_dropped(tablet);
        let mut slots = self.0.write();
        if matches!(slots.by_id.get(&tablet.id), Some(Slot::Loaded(known)) if Arc::ptr_eq(known, tablet)) {
            slots.by_id.remove(&tablet.id);
        }
    }
}

fn set_dropped(tablet: &Tablet) {
    tablet.transition(&[TabletState::Loaded, TabletState::Open, TabletState::Frozen], TabletState::Dropped);
}
