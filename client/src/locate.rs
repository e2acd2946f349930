//! Asks the master where tablets are, and remembers it.
//!
//! One look-up at a time per table: a look-up fetches the tablets that follow as well, and many
//! calls that lose the same server at once share its answer. Whoever waits for it drives it, so that a
//! call or scan that is not polled holds up no other.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use parking_lot::RwLock;
use uruk_base::Moment;
use uruk_proto::limits::ROW_KEY_BYTES_MAX;
use uruk_proto::master::{LocateRequest, LocateResponse, TabletLocation};
use uruk_proto::{Epoch, ErrorCode, RowRange, ServerId, TableId, TabletId};

use crate::client::Core;
use crate::error::{Error, Outcome, Result};
use crate::location::{Location, LocationMap};
use crate::masters::Deadlines;
use crate::retry::Effect;
use crate::shared_work::{SharedWork, Work};

/// How good an answer must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Wanted {
    /// Answers to questions sent before this will not do. None: any will do.
    pub asked_after: Option<Moment>,
    /// Only the leader's answer will do.
    pub from_leader: bool,
}

/// The tablets of one table.
#[derive(Debug)]
pub(crate) struct Locations {
    table: TableId,
    map: RwLock<LocationMap>,
    look_up: SharedWork<Result<Option<Arc<Location>>>>,
}

impl Locations {
    pub fn new(table: TableId, tablets_max: usize) -> Locations {
        Locations { table, map: RwLock::new(LocationMap::new(tablets_max)), look_up: SharedWork::new() }
    }

    /// The tablet that holds `row`, if it is known and somebody serves it.
    pub fn served(&self, row: &[u8]) -> Option<Arc<Location>> {
        let map = self.map.read();
        map.get(row).filter(|entry| entry.location.server.is_some()).map(|entry| entry.location.clone())
    }

    /// The tablet that holds `row`, if it is known, served or not.
    pub fn known(&self, row: &[u8]) -> Option<Arc<Location>> {
        self.map.read().get(row).map(|entry| entry.location.clone())
    }

    /// Forgets a location that turned out wrong.
    pub fn forget(&self, location: &Location) {
        self.map.write().forget(location);
    }

    /// The tablet that holds `row` (or would hold it: `row` may also be a bound of a range), served
    /// or not. Asks the master unless a good enough answer is known.
    pub async fn find(
        self: &Arc<Locations>,
        core: &Arc<Core>,
        row: &[u8],
        wanted: Wanted,
        within: Duration,
    ) -> Result<Arc<Location>> {
        // A bound may be a byte longer than any key; no tablet starts between it and its prefix.
        let row = &row[..row.len().min(ROW_KEY_BYTES_MAX)];
        let found = loop {
            if let Some(location) = self.good_enough(row, wanted) {
                return Ok(location);
            }
            let look_up = || {
                let (locations, core, row) = (self.clone(), core.clone(), Bytes::copy_from_slice(row));
                async move { locations.look_up(&core, row, wanted.from_leader, within).await }.boxed()
            };
            match self.look_up.join_or_start(look_up) {
                Work::Own(work) => break work.await?,
                Work::Other(work) => drop(work.await),
            }
        };
        found.ok_or_else(|| Error::Refused {
            code: ErrorCode::Unavailable,
            message: format!("the master names no tablet of {} for row \"{}\"", self.table, row.escape_ascii()),
            outcome: Outcome::NotDone,
        })
    }

    /// Asks the master for the tablet that holds `row` and those that follow; None if it knows none.
    async fn look_up(
        &self,
        core: &Core,
        row: Bytes,
        mut from_leader: bool,
        within: Duration,
    ) -> Result<Option<Arc<Location>>> {
        loop {
            let asked = core.env.clock.now();
            let answer = self.ask(core, &row, from_leader, within).await?;
            let mut map = self.map.write();
            let mut is_old_news = false;
            for tablet in answer.tablets {
                is_old_news |= !map.insert(location(core, tablet)?, asked, from_leader);
            }
            let found = map.get(&row).map(|entry| entry.location.clone());
            if found.is_some() || !is_old_news || from_leader {
                return Ok(found);
            }
            // We know better than this replica, but not where the row is.
            from_leader = true;
        }
    }

    async fn ask(&self, core: &Core, row: &Bytes, from_leader: bool, within: Duration) -> Result<LocateResponse> {
        let request =
            LocateRequest { table_id: self.table.0, row: row.clone(), limit: core.config.locate_tablets, from_leader };
        let deadlines = Deadlines { call: within, attempt: core.config.master_attempt_deadline() };
        let answer = core.masters.call(Effect::Read, deadlines, |mut master| {
            let request = request.clone();
            async move { master.locate(request).await }
        });
        answer.await
    }

    fn good_enough(&self, row: &[u8], wanted: Wanted) -> Option<Arc<Location>> {
        let map = self.map.read();
        let entry = map.get(row)?;
        let recent = wanted.asked_after.is_none_or(|after| entry.asked >= after);
        (recent && (entry.from_leader || !wanted.from_leader)).then(|| entry.location.clone())
    }
}

fn location(core: &Core, message: TabletLocation) -> Result<Location> {
    let range = RowRange::new(message.start, message.end);
    if range.is_empty() {
        return Err(Error::bad_response(format!("tablet-{} has the empty range {range:?}", message.tablet_id)));
    }
    Ok(Location {
        tablet: TabletId(message.tablet_id),
        range,
        epoch: Epoch(message.epoch),
        server_id: ServerId(message.server_id),
        server: (!message.address.is_empty()).then(|| core.servers.at(&message.address)),
    })
}
