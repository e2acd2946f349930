//! The meta rows cover every key exactly once, and all that hangs on them is consistent.
//!
//! Why: a hole is rows that nobody serves, an overlap is rows with two truths; an owner that is dead, or
//! a needed log that nobody recovers, is data that will not come back.

use super::Always;
use crate::world::World;

/// Asks every master for what is broken in its state.
pub struct MetaRowsCover;

impl Always for MetaRowsCover {
    fn name(&self) -> &'static str {
        "meta-rows-cover"
    }

    fn every_ticks(&self) -> u64 {
        250
    }

    fn check(&mut self, world: &World) -> Result<(), String> {
        for (host, master) in world.setting.registry.masters() {
            master.check().map_err(|problem| format!("{host}: {problem}"))?;
        }
        Ok(())
    }
}
