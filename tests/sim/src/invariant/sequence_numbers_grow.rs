//! What was visible in a tablet stays visible: its sequence numbers only grow, whoever serves it.
//!
//! Why: a number that is used twice makes one of two writes vanish in a merge; a tablet that comes back
//! at a smaller number has lost what was read from it.

use std::collections::BTreeMap;

use uruk_proto::{SeqNo, ServerId, TabletId};

use super::Always;
use crate::world::World;

/// Remembers the highest published number of every tablet.
#[derive(Default)]
pub struct SequenceNumbersGrow {
    highest: BTreeMap<TabletId, (SeqNo, ServerId)>,
}

impl Always for SequenceNumbersGrow {
    fn name(&self) -> &'static str {
        "sequence-numbers-grow"
    }

    fn every_ticks(&self) -> u64 {
        1
    }

    fn check(&mut self, world: &World) -> Result<(), String> {
        // Two owners at once stand at two numbers: see `one_owner`.
        if world.setting.plan.is_beyond_bound() {
            return Ok(());
        }
        for (host, server) in world.setting.registry.tablet_servers() {
            for tablet in server.serving_at(world.host(&host).moment_at(world.now())) {
                let seen = self.highest.entry(tablet.tablet).or_insert((tablet.published, tablet.server));
                if tablet.published < seen.0 {
                    return Err(format!(
                        "{} stands at {} on {} under {}, but {} had published {}",
                        tablet.tablet, tablet.published, tablet.server, tablet.epoch, seen.1, seen.0
                    ));
                }
                *seen = (tablet.published, tablet.server);
            }
        }
        Ok(())
    }
}
