//! Settings of one controller.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Settings of one controller. `members` and what follows are the same on every controller.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControllerConfig {
    /// Data folder.
    pub folder: PathBuf,
    /// `host:port` to listen on; port 0 picks a free one (one controller only).
    pub listen: String,
    /// This controller's number.
    pub node: u64,
    /// All controllers, an odd number: number and `host:port`. Empty: this one alone.
    pub members: BTreeMap<u64, String>,
    /// Copies wanted of every chunk and sealed segment.
    pub replicas: u8,
    /// While only one chunk server was ever registered, one copy is enough (development).
    pub allow_single_replica: bool,
    /// Chunk servers report this often.
    pub heartbeat: Duration,
    /// A chunk server not heard of for this long gets nothing new.
    pub silent_after: Duration,
    /// A chunk server not heard of for this long is dead: its copies are made again elsewhere.
    pub repair_grace: Duration,
    /// A new leader waits this long for as many servers as copies are wanted, before it makes do with
    /// fewer: else a cluster that just started would write its first files and segments to two.
    pub warm_up: Duration,
    /// A put may take this long, at least; extending it renews it.
    pub put_lifetime: Duration,
    /// Repair looks at what changed this often.
    pub repair_tick: Duration,
    /// One copy may take this long before it is tried again.
    pub copy_timeout: Duration,
    /// Copies being made at once in the whole store.
    pub copies_in_flight_max: usize,
    /// Copies being made at once on one chunk server.
    pub copies_per_server_max: usize,
    /// Orders of one kind in one answer to a heartbeat.
    pub orders_per_heartbeat_max: usize,
    /// Pieces that repair examines in one tick.
    pub pieces_per_tick_max: usize,
    /// Pieces that repair looks at again in one tick although nobody reported a change.
    pub sweep_per_tick_max: usize,
    /// Ids issued by one command for puts and chunks.
    pub ids_per_block: u32,
    /// The state is saved, and the Raft log cut, after this many entries.
    pub snapshot_every_entries: u64,
}

/// A setting lies outside of what works.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{setting}: {problem}")]
pub struct ControllerConfigError {
    /// The field of [`ControllerConfig`].
    pub setting: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl ControllerConfig {
    /// Defaults for one controller alone.
    pub fn new(folder: impl Into<PathBuf>, listen: impl Into<String>) -> ControllerConfig {
        ControllerConfig {
            folder: folder.into(),
            listen: listen.into(),
            node: 1,
            members: BTreeMap::new(),
            replicas: 3,
            allow_single_replica: false,
            heartbeat: Duration::from_millis(500),
            silent_after: Duration::from_secs(2),
            repair_grace: Duration::from_secs(10),
            warm_up: Duration::from_millis(1_500),
            put_lifetime: Duration::from_secs(600),
            repair_tick: Duration::from_secs(1),
            copy_timeout: Duration::from_secs(60),
            copies_in_flight_max: 16,
            copies_per_server_max: 2,
            orders_per_heartbeat_max: 1_000,
            pieces_per_tick_max: 10_000,
            sweep_per_tick_max: 256,
            ids_per_block: 1_024,
            snapshot_every_entries: 10_000,
        }
    }

    /// Whether this configuration can work. The group of controllers is checked by `consensus`.
    pub fn validate(&self) -> Result<(), ControllerConfigError> {
        let setting = |setting, holds: bool, problem: &str| match holds {
            true => Ok(()),
            false => Err(ControllerConfigError { setting, problem: problem.to_owned() }),
        };
        setting("folder", !self.folder.as_os_str().is_empty(), "is empty")?;
        setting("listen", self.listen.contains(':'), "is not host:port")?;
        setting("replicas", (1..=8).contains(&self.replicas), "is not in 1..=8")?;
        setting("heartbeat", !self.heartbeat.is_zero(), "is zero")?;
        setting("silent_after", self.silent_after > self.heartbeat, "is not above the heartbeat")?;
        setting("repair_grace", self.repair_grace >= self.silent_after, "is below silent_after")?;
        setting("warm_up", self.warm_up <= self.repair_grace, "is above the repair grace")?;
        setting("put_lifetime", self.put_lifetime > self.repair_tick, "is not above the repair tick")?;
        setting("repair_tick", self.repair_tick >= Duration::from_millis(10), "is below 10 ms")?;
        setting("copy_timeout", self.copy_timeout > self.heartbeat, "is not above the heartbeat")?;
        setting("copies_in_flight_max", self.copies_in_flight_max > 0, "is zero")?;
        setting("copies_per_server_max", self.copies_per_server_max > 0, "is zero")?;
        setting("orders_per_heartbeat_max", self.orders_per_heartbeat_max > 0, "is zero")?;
        setting("pieces_per_tick_max", self.pieces_per_tick_max > 0, "is zero")?;
        setting("ids_per_block", self.ids_per_block >= 2, "is below 2")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        assert_eq!(ControllerConfig::new("d", "127.0.0.1:0").validate(), Ok(()));
    }

    #[test]
    fn names_the_setting_that_cannot_work() {
        let base = ControllerConfig::new("d", "127.0.0.1:0");
        let second = Duration::from_secs(1);
        let broken = [
            ("replicas", ControllerConfig { replicas: 0, ..base.clone() }),
            ("listen", ControllerConfig { listen: "nowhere".into(), ..base.clone() }),
            ("silent_after", ControllerConfig { heartbeat: second * 5, ..base.clone() }),
            ("repair_grace", ControllerConfig { repair_grace: second, ..base.clone() }),
            ("ids_per_block", ControllerConfig { ids_per_block: 1, ..base.clone() }),
        ];
        for (setting, config) in broken {
            assert_eq!(config.validate().map_err(|e| e.setting), Err(setting));
        }
    }
}
