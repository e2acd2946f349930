//! What the cluster does by itself with the shape and the places of its tablets: pure functions of
//! (state, reports, now), one file for each decision.
//!
//! All of them look at every tablet, so each tablet is looked up once, in `look`, and the others go by what was found.
//!
//! | file | decides |
//! |---|---|
//! | `look` | nothing: what is known of each tablet, side by side |
//! | `heat` | how busy each tablet is, smoothed over some reports |
//! | `split` | which tablets are too large or too busy, and which rows are too busy for any split |
//! | `merge` | which neighbours are small and cold enough to be one |
//! | `moves` | which tablets go where, so that servers are equally loaded |
//!
//! Nothing here takes effect by itself: what is decided becomes commands, which are checked again. Against
//! flapping: a merge needs far less than half of what a split needs, and both need age; moves need a gain.

use std::collections::{BTreeMap, BTreeSet};

use uruk_base::Moment;
use uruk_proto::{ServerId, TabletId};

use crate::assign::Now;
use crate::config::Tuning;
use crate::state::row::MetaRow;
use crate::state::survey::Survey;
use crate::volatile::Volatile;

pub mod heat;
pub mod look;
pub mod merge;
pub mod moves;
pub mod split;

use heat::Heat;
use look::Look;
use merge::Merge;
use moves::MovePlan;
use split::{HotRow, Split};

/// What decisions are made from.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub survey: &'a Survey,
    pub volatile: &'a Volatile,
    pub tuning: &'a Tuning,
    pub now: Now,
}

/// What is to be done now, and what is seen.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Decision {
    pub splits: Vec<Split>,
    pub merges: Vec<Merge>,
    pub plan: MovePlan,
    pub hot_rows: Vec<HotRow>,
    /// Since when each hot tablet is hot.
    pub hot_since: BTreeMap<TabletId, Moment>,
}

/// Everything at once.
pub fn decide(view: View<'_>) -> Decision {
    let look = Look::at(view);
    let hot_since = split::hot_since(view);
    let (splits, hot_rows) = split::splits(view, &look, &hot_since);
    let merges = if view.tuning.auto_merge { merge::merges(view, &look) } else { Vec::new() };
    let splits = if view.tuning.auto_split { splits } else { Vec::new() };
    Decision { splits, merges, plan: moves::plan(view, &look), hot_rows, hot_since }
}

impl View<'_> {
    /// Servers that may get tablets, ascending.
    fn takers(&self) -> Vec<ServerId> {
        let condemned: BTreeSet<ServerId> = self.volatile.leases.condemned().map(|(server, _)| server).collect();
        let live = self.survey.servers.live().iter().copied();
        let takes = live.filter(|server| {
            !self.survey.servers.is_draining(*server)
                && !self.volatile.draining.contains(server)
                && !condemned.contains(server)
        });
        takes.collect()
    }

    fn age_ms(&self, row: &MetaRow) -> u64 {
        u64::try_from((self.now.wall_micros - row.born_micros) / 1_000).unwrap_or(0)
    }

    fn is_hot(&self, heat: &Heat) -> bool {
        heat.requests_per_s >= self.tuning.hot_requests_per_s as f64
            || heat.bytes_per_s >= self.tuning.hot_bytes_per_s as f64
            || heat.cpu_permille >= self.tuning.hot_cpu_permille as f64
    }
}
