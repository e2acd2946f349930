//! The tablets of this server, by id.
//!
//! Invariant: an epoch of a tablet that was closed here is never opened here again, so a late order
//! cannot bring it back, and a close of what is not here may be answered as done: this incarnation
//! has never served it, or has closed it before.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::RwLock;
use uruk_proto::master::TabletKey;
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

/// Whether a tablet is here under some epoch.
#[derive(Clone, Debug)]
pub enum Presence {
    /// In memory.
    Loaded(Arc<Tablet>),
    /// Being read.
    Opening,
    /// Neither.
    Absent,
}

#[derive(Debug, Default)]
struct Slots {
    by_id: BTreeMap<TabletId, Slot>,
    /// The highest epoch of each tablet that was closed here.
    closed: BTreeMap<TabletId, Epoch>,
    /// Not served any more; kept alive by running scans, if at all.
    departed: Vec<Weak<Tablet>>,
}

impl Slots {
    fn note_closed(&mut self, id: TabletId, epoch: Epoch) {
        let newest = self.closed.entry(id).or_insert(epoch);
        *newest = (*newest).max(epoch);
    }

    fn discard(&mut self, id: TabletId, epoch: Epoch) {
        self.note_closed(id, epoch);
        if self.by_id.get(&id).is_some_and(|slot| slot.epoch() <= epoch)
            && let Some(Slot::Loaded(tablet)) = self.by_id.remove(&id)
        {
            self.depart(&tablet);
        }
    }

    fn depart(&mut self, tablet: &Arc<Tablet>) {
        set_dropped(tablet);
        self.departed.retain(|departed| departed.strong_count() > 0);
        self.departed.push(Arc::downgrade(tablet));
    }

    fn loaded(&self) -> Vec<Arc<Tablet>> {
        let loaded = self.by_id.values().filter_map(|slot| match slot {
            Slot::Loaded(tablet) => Some(tablet.clone()),
            Slot::Opening(_) => None,
        });
        loaded.collect()
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
            slots.depart(&old);
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

    /// Whether the tablet is being opened under this epoch.
    pub fn is_opening_at(&self, id: TabletId, epoch: Epoch) -> bool {
        matches!(self.0.read().by_id.get(&id), Some(Slot::Opening(opening)) if *opening == epoch)
    }

    /// Whether the tablet is here under this epoch.
    pub fn at_epoch(&self, id: TabletId, epoch: Epoch) -> Presence {
        match self.0.read().by_id.get(&id) {
            Some(Slot::Loaded(tablet)) if tablet.epoch == epoch => Presence::Loaded(tablet.clone()),
            Some(Slot::Opening(opening)) if *opening == epoch => Presence::Opening,
            Some(Slot::Loaded(_) | Slot::Opening(_)) | None => Presence::Absent,
        }
    }

    /// All tablets that are here, or about to be: in memory, or being opened.
    pub fn keys(&self) -> Vec<TabletKey> {
        let slots = self.0.read();
        slots.by_id.iter().map(|(id, slot)| TabletKey { tablet_id: id.0, epoch: slot.epoch().0 }).collect()
    }

    /// Whether tablets are being opened.
    pub fn is_opening(&self) -> bool {
        self.0.read().by_id.values().any(|slot| matches!(slot, Slot::Opening(_)))
    }

    /// All tablets in memory, by id.
    pub fn loaded(&self) -> Vec<Arc<Tablet>> {
        self.0.read().loaded()
    }

    /// All tablets in memory, at one moment: those that are here, and those that only scans still read.
    pub fn held(&self) -> (Vec<Arc<Tablet>>, Vec<Arc<Tablet>>) {
        let slots = self.0.read();
        (slots.loaded(), slots.departed.iter().filter_map(Weak::upgrade).collect())
    }

    /// The tablet to flush before this epoch may be released; None when it is not served here, and
    /// then never will be.
    pub fn start_closing(&self, id: TabletId, epoch: Epoch) -> Option<Arc<Tablet>> {
        // One lock for the look and what follows from it: what a split has made may be served between two.
        let mut slots = self.0.write();
        if let Some(Slot::Loaded(tablet)) = slots.by_id.get(&id)
            && tablet.epoch == epoch
            && !tablet.transition(&[TabletState::Loaded], TabletState::Dropped)
            && tablet.state() != TabletState::Dropped
        {
            return Some(tablet.clone());
        }
        slots.discard(id, epoch);
        None
    }

    /// Stops serving a tablet whose data is in files, for good: it may be released then.
    pub fn close(&self, tablet: &Arc<Tablet>) {
        self.discard(tablet.id, tablet.epoch);
    }

    /// Drops a tablet whatever its state, and remembers that the epoch is over.
    pub fn discard(&self, id: TabletId, epoch: Epoch) {
        self.0.write().discard(id, epoch);
    }

    /// Stops serving a tablet and forgets it.
    pub fn drop_tablet(&self, tablet: &Arc<Tablet>) {
        let mut slots = self.0.write();
        set_dropped(tablet);
        if matches!(slots.by_id.get(&tablet.id), Some(Slot::Loaded(known)) if Arc::ptr_eq(known, tablet)) {
            slots.by_id.remove(&tablet.id);
            slots.depart(tablet);
        }
    }
}

fn set_dropped(tablet: &Tablet) {
    let all = [TabletState::Loaded, TabletState::Open, TabletState::Frozen, TabletState::Replacing];
    tablet.transition(&all, TabletState::Dropped);
}
