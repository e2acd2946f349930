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
    /// Tablets are split by themselves, by size and by load.
    pub auto_split: bool,
    /// Small cold neighbours are merged by themselves.
    pub auto_merge: bool,
    /// Tablets are moved by themselves, so that servers are equally loaded.
    pub auto_balance: bool,
    /// Splits, merges and moves are decided this often, in milliseconds.
    pub balance_every_ms: u64,
    /// A tablet with more bytes is split, unless its table has its own limit.
    pub split_bytes: u64,
    /// While a table has few tablets for the servers, its tablets are split earlier, but not below this size.
    pub split_bytes_min: u64,
    /// A tablet with so many requests per second is hot ...
    pub hot_requests_per_s: u64,
    /// ... or with so many bytes read and written per second ...
    pub hot_bytes_per_s: u64,
    /// ... or that takes so much of one core, in thousandths.
    pub hot_cpu_permille: u64,
    /// A tablet that has been hot for this long is split, in milliseconds.
    pub hot_for_ms: u64,
    /// A row with so much of a tablet's requests, in thousandths, is too hot for a split to help.
    pub hot_row_permille: u32,
    /// A tablet whose split was declined or given up is left alone for this long, in milliseconds.
    pub split_rest_ms: u64,
    /// Most splits that the master starts by itself and that are under way at a time.
    pub splits_max: usize,
    /// Neighbours with less than this part of the split size together are merged, in thousandths; below 400.
    pub merge_bytes_permille: u64,
    /// A tablet is not merged before it is so old, in milliseconds.
    pub merge_age_ms: u64,
    /// A tablet with fewer requests per second is cold.
    pub merge_requests_per_s: u64,
    /// Most merges that the master starts by itself and that are under way at a time.
    pub merges_max: usize,
    /// Nothing is moved while no server is further above the mean load than this, or twice as far below, in thousandths.
    pub balance_tolerance_permille: u64,
    /// Most moves of the balancer at a time.
    pub moves_max: usize,
    /// Most moves of the balancer to or from one server at a time.
    pub moves_per_server_max: usize,
    /// A tablet that the balancer has moved stays for this long, in milliseconds.
    pub move_rest_ms: u64,
    /// Rows, reports and storage are compared this often, in milliseconds.
    pub check_every_ms: u64,
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
            auto_split: true,
            auto_merge: true,
            auto_balance: true,
            balance_every_ms: 5_000,
            split_bytes: 1 << 30,
            split_bytes_min: 64 << 20,
            hot_requests_per_s: 10_000,
            hot_bytes_per_s: 64 << 20,
            hot_cpu_permille: 500,
            hot_for_ms: 20_000,
            hot_row_permille: 500,
            split_rest_ms: 600_000,
            splits_max: 8,
            merge_bytes_permille: 125,
            merge_age_ms: 3_600_000,
            merge_requests_per_s: 50,
            merges_max: 4,
            balance_tolerance_permille: 100,
            moves_max: 16,
            moves_per_server_max: 4,
            move_rest_ms: 60_000,
            check_every_ms: 600_000,
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
            ("balance_every_ms", self.balance_every_ms),
            ("split_bytes", self.split_bytes),
            ("split_bytes_min", self.split_bytes_min),
            ("hot_requests_per_s", self.hot_requests_per_s),
            ("hot_bytes_per_s", self.hot_bytes_per_s),
            ("hot_cpu_permille", self.hot_cpu_permille),
            ("hot_row_permille", self.hot_row_permille.into()),
            ("splits_max", self.splits_max as u64),
            ("merge_bytes_permille", self.merge_bytes_permille),
            ("merges_max", self.merges_max as u64),
            ("moves_max", self.moves_max as u64),
            ("moves_per_server_max", self.moves_per_server_max as u64),
            ("check_every_ms", self.check_every_ms),
            ("snapshot_every_entries", self.snapshot_every_entries),
        ] {
            check(setting, value > 0, "is zero".into())?;
        }
        let merge = self.merge_bytes_permille;
        check("merge_bytes_permille", merge < 400, format!("{merge}: what was merged would soon be split again"))?;
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
