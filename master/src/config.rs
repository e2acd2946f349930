//! Settings of one master.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Settings of one master. Everything but `folder`, `node`, `listen`, `advertise` and `http_listen`
/// should be the same on all members.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MasterConfig {
    /// The data folder.
    pub folder: PathBuf,
    /// This member.
    #[serde(default = "one")]
    pub node: u64,
    /// All members: id and `host:port`. Empty: this one alone, at the address that it advertises.
    #[serde(default)]
    pub members: BTreeMap<u64, String>,
    /// `host:port` to listen on; port 0 picks a free one.
    pub listen: String,
    /// `host:port` where others reach this member; None: where it listens.
    #[serde(default)]
    pub advertise: Option<String>,
    /// `host:port` of the status page; None: there is none.
    #[serde(default)]
    pub http_listen: Option<String>,
    /// Leases, timing and limits.
    #[serde(default)]
    pub tuning: Tuning,
}

/// Leases, timing and limits. The defaults are right for a cluster on one network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tuning {
    /// How long a tablet server may serve after it sent a renewal, in milliseconds.
    pub lease_ms: u32,
    /// How often a tablet server renews, in milliseconds.
    pub renewal_ms: u32,
    /// Bound on the clock-rate error of any machine, in parts per million.
    pub clock_rate_error_ppm: u32,
    /// A meta tablet with more rows than this splits.
    pub meta_tablet_rows_max: usize,
    /// A piece of a log whose sorting takes longer than this is also given to another server, in milliseconds.
    pub sort_patience_ms: u64,
    /// Sorting one piece of a log takes at most this long, in milliseconds.
    pub sort_deadline_ms: u64,
    /// Orders to tablet servers are answered within this, in milliseconds.
    pub order_deadline_ms: u64,
    /// An order that was taken but has no visible effect is given again after this, in milliseconds.
    pub order_repeat_ms: u64,
    /// A tablet that a server does not open within this goes to another one, in milliseconds; doubled for
    /// each opening in a row that failed.
    pub open_patience_ms: u64,
    /// Creating or deleting a table is answered at most after this, in milliseconds; it goes on.
    pub table_deadline_ms: u64,
    /// Files that nothing names and whose creators are dead are looked for this often, in milliseconds.
    pub sweep_every_ms: u64,
    /// Most tablets of a new table.
    pub table_tablets_max: usize,
    /// Most tablets in one order to a tablet server.
    pub order_tablets_max: usize,
    /// Most tablets in one assignment.
    pub assign_tablets_max: usize,
    /// Most files in one deletion.
    pub delete_files_max: usize,
    /// Most renewals that wait for one confirmation of leadership.
    pub renewals_waiting_max: usize,
    /// A split or merge that has not ended within this is given up, in milliseconds.
    pub procedure_patience_ms: u64,
    /// Most tablets of a server that is drained that are on their way at a time.
    pub drain_moves_max: usize,
    /// The state is saved, and the Raft log cut, after this many entries.
    pub snapshot_every_entries: u64,
}

fn one() -> u64 {
    1
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            lease_ms: 3_000,
            renewal_ms: 1_000,
            clock_rate_error_ppm: 1_000,
            meta_tablet_rows_max: 10_000,
            sort_patience_ms: 2_000,
            sort_deadline_ms: 60_000,
            order_deadline_ms: 3_000,
            order_repeat_ms: 5_000,
            open_patience_ms: 30_000,
            table_deadline_ms: 60_000,
            sweep_every_ms: 600_000,
            table_tablets_max: 100_000,
            order_tablets_max: 500,
            assign_tablets_max: 10_000,
            delete_files_max: 500,
            renewals_waiting_max: 10_000,
            procedure_patience_ms: 120_000,
            drain_moves_max: 16,
            snapshot_every_entries: 10_000,
        }
    }
}

/// A setting cannot work.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{setting}: {problem}")]
pub struct ConfigError {
    /// The field.
    pub setting: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl MasterConfig {
    /// A master alone, with its data in `folder`, listening on `listen`, without a status page.
    pub fn new(folder: impl Into<PathBuf>, listen: impl Into<String>) -> MasterConfig {
        MasterConfig {
            folder: folder.into(),
            node: 1,
            members: BTreeMap::new(),
            listen: listen.into(),
            advertise: None,
            http_listen: None,
            tuning: Tuning::default(),
        }
    }

    /// Whether this configuration can work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = |setting, holds: bool, problem: String| match holds {
            true => Ok(()),
            false => Err(ConfigError { setting, problem }),
        };
        check("listen", !self.listen.is_empty(), "is empty".into())?;
        let is_member = self.members.is_empty() || self.members.contains_key(&self.node);
        check("node", is_member, format!("{} is not among the members", self.node))?;
        self.tuning.validate()
    }
}

impl Tuning {
    /// Whether these settings can work together.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = |setting, holds: bool, problem: String| match holds {
            true => Ok(()),
            false => Err(ConfigError { setting, problem }),
        };
        let (lease, renewal) = (self.lease_ms, self.renewal_ms);
        check("renewal_ms", renewal >= 10, format!("{renewal} is below 10"))?;
        check("lease_ms", lease >= 2 * renewal, format!("{lease} is not twice the renewal interval {renewal}"))?;
        let ppm = self.clock_rate_error_ppm;
        check("clock_rate_error_ppm", ppm <= 100_000, format!("{ppm} is above 100000"))?;
        check("meta_tablet_rows_max", self.meta_tablet_rows_max >= 2, "is below 2".into())?;
        for (setting, value) in [
            ("sort_patience_ms", self.sort_patience_ms),
            ("sort_deadline_ms", self.sort_deadline_ms),
            ("order_deadline_ms", self.order_deadline_ms),
            ("order_repeat_ms", self.order_repeat_ms),
            ("open_patience_ms", self.open_patience_ms),
            ("table_deadline_ms", self.table_deadline_ms),
            ("sweep_every_ms", self.sweep_every_ms),
            ("table_tablets_max", self.table_tablets_max as u64),
            ("order_tablets_max", self.order_tablets_max as u64),
            ("assign_tablets_max", self.assign_tablets_max as u64),
            ("delete_files_max", self.delete_files_max as u64),
            ("renewals_waiting_max", self.renewals_waiting_max as u64),
            ("procedure_patience_ms", self.procedure_patience_ms),
            ("drain_moves_max", self.drain_moves_max as u64),
            ("snapshot_every_entries", self.snapshot_every_entries),
        ] {
            check(setting, value > 0, "is zero".into())?;
        }
        Ok(())
    }

    /// The lease as its holder counts it.
    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms.into())
    }

    /// How long the grantor waits: lease × (1 + ρ) / (1 − ρ).
    pub fn lease_at_grantor(&self) -> Duration {
        let million = 1_000_000_u64;
        let rate_error = u64::from(self.clock_rate_error_ppm);
        let micros = u64::from(self.lease_ms) * 1_000;
        Duration::from_micros((micros * (million + rate_error)).div_ceil(million - rate_error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grantor_waits_longer_than_the_holder() {
        let tuning = Tuning { lease_ms: 3_000, clock_rate_error_ppm: 1_000, ..Tuning::default() };
        assert_eq!(tuning.lease_at_grantor(), Duration::from_micros(3_006_007));
        let exact = Tuning { clock_rate_error_ppm: 0, ..tuning };
        assert_eq!(exact.lease_at_grantor(), exact.lease());
    }

    #[test]
    fn rejects_settings_that_cannot_work() {
        let good = MasterConfig::new("/data", "127.0.0.1:0");
        good.validate().unwrap();
        let stranger = MasterConfig { node: 4, members: [(1, "a:1".to_owned())].into(), ..good.clone() };
        assert_eq!(stranger.validate().unwrap_err().setting, "node");
        let hasty = Tuning { lease_ms: 1_000, renewal_ms: 900, ..Tuning::default() };
        assert_eq!(hasty.validate().unwrap_err().setting, "lease_ms");
        let zero = Tuning { delete_files_max: 0, ..Tuning::default() };
        assert_eq!(zero.validate().unwrap_err().setting, "delete_files_max");
    }
}
