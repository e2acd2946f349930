//! Every file that the meta rows name is in the store, and nothing else stays there for long.
//!
//! Why: a named file that is gone is lost data; a file that nobody names and nobody deletes fills the
//! disks, and shows that some step was not finished after its process died.

use std::collections::BTreeSet;

use uruk_dfs_sim::controller::Controller;

use super::Eventually;
use crate::world::World;

/// Names shown of each kind.
const SHOWN_MAX: usize = 4;

/// Compares the leader's names with what the store's leader has.
pub struct FilesComplete;

impl Eventually for FilesComplete {
    fn name(&self) -> &'static str {
        "files-complete"
    }

    fn check(&mut self, world: &World) -> Result<(), String> {
        let controllers = world.setting.registry.controllers();
        let is_leader = |controller: &Controller| controller.consensus().leadership().borrow().is_leader;
        let Some((_, store)) = controllers.iter().find(|(_, controller)| is_leader(controller)) else {
            return Err("no controller leads".into());
        };
        let listed: BTreeSet<String> =
            store.consensus().read(|state| state.files("", "").map(|(path, _)| path.clone()).collect());
        let masters = world.setting.registry.masters();
        let Some((_, leader)) = masters.iter().find(|(_, master)| master.is_leader()) else {
            return Err("no master leads".into());
        };
        let (named, unnamed) = leader.files();
        let missing: Vec<&String> = named.difference(&listed).collect();
        if !missing.is_empty() {
            return Err(format!("{} named files are not in the store: {}", missing.len(), some(&missing)));
        }
        let queued: BTreeSet<&String> = unnamed.intersection(&listed).collect();
        if !queued.is_empty() {
            return Err(format!("{} files still wait for their deletion", queued.len()));
        }
        let left: Vec<&String> = listed.difference(&named).collect();
        if !left.is_empty() {
            return Err(format!("{} files are in the store that nothing names: {}", left.len(), some(&left)));
        }
        Ok(())
    }
}

fn some(names: &[&String]) -> String {
    let shown: Vec<&str> = names.iter().take(SHOWN_MAX).map(|name| name.as_str()).collect();
    shown.join(", ")
}
