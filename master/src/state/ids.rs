//! Identities: each kind counts up from 1, for ever.

use serde::{Deserialize, Serialize};
use uruk_proto::{FamilyId, ServerId, TableId, TabletId};

/// The last identity issued of each kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Ids {
    server: u64,
    table: u64,
    family: u64,
    tablet: u64,
}

fn issue(last: &mut u64) -> u64 {
    *last += 1;
    *last
}

impl Ids {
    pub fn server(&mut self) -> ServerId {
        ServerId(issue(&mut self.server))
    }

    pub fn table(&mut self) -> TableId {
        TableId(issue(&mut self.table))
    }

    pub fn family(&mut self) -> FamilyId {
        FamilyId(issue(&mut self.family))
    }

    pub fn tablet(&mut self) -> TabletId {
        TabletId(issue(&mut self.tablet))
    }

    pub fn was_issued(&self, server: ServerId) -> bool {
        (1..=self.server).contains(&server.0)
    }
}
