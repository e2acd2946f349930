//! One owner per row at any instant of true time.
//!
//! Why: two servers that answer reads of one row give two truths. Leases make sure of it, whatever the
//! clocks say within their bound; writes are fenced by storage besides. On one server, a tablet that was split
//! or merged is served no more when what came of it is.

use uruk_tabletserver::server::ServedTablet;

use super::Always;
use crate::world::World;

/// Looks at what every server would answer now, by its own clock.
#[derive(Default)]
pub struct OneOwner {
    served: Vec<ServedTablet>,
}

impl Always for OneOwner {
    fn name(&self) -> &'static str {
        "one-owner"
    }

    fn every_ticks(&self) -> u64 {
        1
    }

    fn check(&mut self, world: &World) -> Result<(), String> {
        // Beyond the bound on clock rates nobody promises this: writes stay safe, reads may be stale.
        if world.setting.plan.is_beyond_bound() {
            return Ok(());
        }
        self.served.clear();
        for (host, server) in world.setting.registry.tablet_servers() {
            self.served.extend(server.serving_at(world.host(&host).moment_at(world.now())));
        }
        self.served.sort_by(|a, b| (a.table, &a.range.start).cmp(&(b.table, &b.range.start)));
        for pair in self.served.windows(2) {
            let [a, b] = pair else { continue };
            let overlap = a.table == b.table && (a.range.end.is_empty() || b.range.start < a.range.end);
            if overlap {
                return Err(format!(
                    "{} serves {} of {} rows {:?} while {} serves {} of {} rows {:?}",
                    a.server, a.tablet, a.epoch, a.range, b.server, b.tablet, b.epoch, b.range
                ));
            }
        }
        Ok(())
    }
}
