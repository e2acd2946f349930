//! After all faults have stopped, everything serves again within a stated time.
//!
//! Why: a system that is safe because it has stopped for good is of no use. The bound covers what must
//! pass first: connections that lost bytes end by their keep-alives (10 s), leases and elections after
//! that, then one recovery of every log; and where all machines lost power at once, the sorted pieces of
//! logs that must be made again, each of which is missed only after reads of it timed out.

use std::time::Duration;

use crate::registry::Progress;
use crate::world::World;

/// Its name in reports.
pub const NAME: &str = "everything-serves-again";
/// After this the workloads must have ended, and all tablets be open.
pub const SERVES_WITHIN: Duration = Duration::from_secs(90);
/// After this everything must have been read back.
pub const READ_WITHIN: Duration = Duration::from_secs(70);
/// After this what holds at the end must hold.
pub const SETTLES_WITHIN: Duration = Duration::from_secs(30);

/// What does not serve yet, if anything.
pub fn check(world: &World) -> Result<(), String> {
    let clients = world.setting.registry.clients();
    if let Some((name, _)) = clients.iter().find(|(_, progress)| **progress == Progress::Running) {
        return Err(format!("the workloads of {name} do not come to an end"));
    }
    let masters = world.setting.registry.masters();
    let Some((_, leader)) = masters.iter().find(|(_, master)| master.is_leader()) else {
        return Err("no master leads".into());
    };
    match leader.open_tablets() {
        (all, open) if all == open => Ok(()),
        (all, open) => Err(format!("{open} of {all} tablets are open")),
    }
}
