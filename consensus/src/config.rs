//! Settings of one member of a group.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// Settings of one member of a group. `members` and `group` are the same on every member.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The group's name; members of other groups are refused.
    pub group: String,
    /// This member.
    pub node: u64,
    /// All members: id and `host:port`.
    pub members: BTreeMap<u64, String>,
    /// The leader lets the others hear from it this often.
    pub heartbeat: Duration,
    /// A member that has not heard from a leader for this long, at least, calls an election.
    pub election_min: Duration,
    /// ... and for this long, at most.
    pub election_max: Duration,
    /// One RPC between members takes at most this long.
    pub rpc_deadline: Duration,
    /// Sending one snapshot takes at most this long.
    pub snapshot_deadline: Duration,
    /// A proposal without an outcome after this long is answered as unknown.
    pub propose_deadline: Duration,
    /// So many proposals are under way at once; more wait.
    pub proposals_max: usize,
    /// Confirming leadership takes at most this long.
    pub confirm_deadline: Duration,
    /// A snapshot is taken after this many entries.
    pub snapshot_every_entries: u64,
    /// ... or once the log has grown by this many bytes: all of it is in memory.
    pub log_bytes_max: usize,
    /// So many entries stay in the log behind a snapshot, for followers that lag a little.
    pub entries_kept: u64,
    /// A log segment is closed once it has this many bytes.
    pub segment_bytes_max: u64,
    /// An encoded command has at most this many bytes.
    pub command_bytes_max: usize,
    /// One AppendEntries request carries at most this many entries.
    pub append_entries_max: u64,
    /// Snapshots are sent in chunks of this many bytes.
    pub snapshot_chunk_bytes: usize,
    /// A snapshot that is received has at most this many bytes.
    pub snapshot_bytes_max: u64,
}

impl Config {
    /// Defaults for `node` of `members`: three members elect a new leader within a second; one
    /// member alone wakes rarely.
    pub fn new(group: impl Into<String>, node: u64, members: BTreeMap<u64, String>) -> Config {
        let alone = members.len() <= 1;
        let ms = Duration::from_millis;
        Config {
            group: group.into(),
            node,
            members,
            // The engine ticks about five times per heartbeat, whether or not there is anybody to hear it.
            heartbeat: if alone { ms(1000) } else { ms(100) },
            election_min: if alone { ms(1200) } else { ms(400) },
            election_max: if alone { ms(1500) } else { ms(800) },
            rpc_deadline: ms(1000),
            snapshot_deadline: Duration::from_secs(60),
            propose_deadline: Duration::from_secs(10),
            proposals_max: 4096,
            confirm_deadline: ms(1000),
            snapshot_every_entries: 10_000,
            log_bytes_max: 64 << 20,
            entries_kept: 1_000,
            segment_bytes_max: 16 << 20,
            command_bytes_max: 16 << 20,
            append_entries_max: 256,
            snapshot_chunk_bytes: 1 << 20,
            snapshot_bytes_max: 1 << 30,
        }
    }

    /// Takes a snapshot after this many entries, and keeps no more than that behind it.
    pub fn snapshot_after(&mut self, entries: u64) {
        self.snapshot_every_entries = entries;
        self.entries_kept = self.entries_kept.min(entries);
    }

    /// The address of `node`, if it is another member than this one.
    pub(crate) fn other_member(&self, node: Option<u64>) -> Option<String> {
        let node = node.filter(|node| *node != self.node)?;
        self.members.get(&node).cloned()
    }

    /// Whether this configuration can work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.members.len().is_multiple_of(2) {
            return Err(ConfigError::EvenMembers(self.members.len()));
        }
        if !self.members.contains_key(&self.node) {
            return Err(ConfigError::NotAMember { node: self.node, group: self.group.clone() });
        }
        let mut by_address = BTreeMap::new();
        for (node, address) in &self.members {
            if let Some(other) = by_address.insert(address, *node) {
                return Err(ConfigError::SameAddress(other, *node));
            }
        }
        let setting = |setting, holds: bool, problem: String| match holds {
            true => Ok(()),
            false => Err(ConfigError::Setting { setting, problem }),
        };
        let Config { heartbeat, election_min, election_max, .. } = *self;
        setting("heartbeat", heartbeat.as_millis() >= 5, format!("{heartbeat:?} is below 5 ms"))?;
        setting("election_min", election_min > heartbeat, format!("{election_min:?} is not above the heartbeat"))?;
        setting("election_max", election_max > election_min, format!("{election_max:?} is not above election_min"))?;
        setting("rpc_deadline", !self.rpc_deadline.is_zero(), "is zero".into())?;
        setting("snapshot_deadline", !self.snapshot_deadline.is_zero(), "is zero".into())?;
        setting("propose_deadline", !self.propose_deadline.is_zero(), "is zero".into())?;
        setting("confirm_deadline", !self.confirm_deadline.is_zero(), "is zero".into())?;
        setting("snapshot_every_entries", self.snapshot_every_entries > 0, "is zero".into())?;
        setting("segment_bytes_max", self.segment_bytes_max > 0, "is zero".into())?;
        setting("log_bytes_max", self.log_bytes_max > 0, "is zero".into())?;
        setting("proposals_max", self.proposals_max > 0, "is zero".into())?;
        setting("append_entries_max", self.append_entries_max > 0, "is zero".into())?;
        setting("snapshot_chunk_bytes", self.snapshot_chunk_bytes > 0, "is zero".into())?;
        let (command, message) = (self.command_bytes_max, uruk_base::rpc::MESSAGE_BYTES_MAX / 4);
        setting("command_bytes_max", command > 0 && command <= message, format!("{command} is not in 1..={message}"))?;
        setting(
            "snapshot_chunk_bytes",
            self.snapshot_chunk_bytes <= message,
            format!("{} is above {message}", self.snapshot_chunk_bytes),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> BTreeMap<u64, String> {
        (1..=3).map(|n| (n, format!("h{n}:1"))).collect()
    }

    #[test]
    fn defaults_are_valid() {
        Config::new("g", 2, three()).validate().unwrap();
        Config::new("g", 1, [(1, "h:1".to_owned())].into()).validate().unwrap();
    }

    #[test]
    fn rejects_groups_that_cannot_work() {
        let even = Config::new("g", 1, [(1, "a:1".to_owned()), (2, "b:1".to_owned())].into());
        assert_eq!(even.validate(), Err(ConfigError::EvenMembers(2)));
        let stranger = Config::new("g", 9, three());
        assert_eq!(stranger.validate(), Err(ConfigError::NotAMember { node: 9, group: "g".into() }));
        let mut twice = three();
        twice.insert(3, "h1:1".into());
        assert_eq!(Config::new("g", 1, twice).validate(), Err(ConfigError::SameAddress(1, 3)));
        let slow = Config { heartbeat: Duration::from_secs(5), ..Config::new("g", 1, three()) };
        assert!(matches!(slow.validate(), Err(ConfigError::Setting { setting: "election_min", .. })));
    }
}
