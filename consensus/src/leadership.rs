//! Who leads.

use std::fmt;

/// A Raft term: at most one node leads in each, and terms only grow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Term(pub u64);

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The node that leads the group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leader {
    /// Its id.
    pub node: u64,
    /// Its `host:port`.
    pub address: String,
}

/// What a node knows about the group's leadership. It may be out of date at any moment: whoever
/// acts on it outside of the log asks [`crate::Consensus::confirm_leadership`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Leadership {
    /// The leader, if one is known.
    pub leader: Option<Leader>,
    /// Whether this node leads *and* has applied everything of earlier terms.
    pub is_leader: bool,
    /// The newest term that this node knows.
    pub term: Term,
}
