//! What can go wrong, by cause.

use std::io;
use std::path::PathBuf;

/// The configuration cannot work.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// `members` lacks this node.
    #[error("node {node} is not among the members of group {group}")]
    NotAMember {
        /// This node.
        node: u64,
        /// The group.
        group: String,
    },
    /// Zero members, or an even number, which tolerates no more failures than one less.
    #[error("a group has an odd number of members, not {0}")]
    EvenMembers(usize),
    /// Two members share an address.
    #[error("members {0} and {1} have the same address")]
    SameAddress(u64, u64),
    /// A setting lies outside of what works.
    #[error("{setting}: {problem}")]
    Setting {
        /// The field of the configuration.
        setting: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

/// A consensus node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The disk failed.
    #[error("{path}: {source}")]
    Disk {
        /// File or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file holds what cannot have been written: bytes changed on the disk.
    #[error("corrupt file {path} at offset {offset}: {problem}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        offset: u64,
        /// What is wrong there.
        problem: String,
    },
    /// The folder was written by a group of another name or another node.
    #[error("{path} belongs to node {found_node} of group {found_group}")]
    WrongOwner {
        /// The file that says so.
        path: PathBuf,
        /// Its node.
        found_node: u64,
        /// Its group.
        found_group: String,
    },
    /// The stored group has other members than the configuration.
    #[error("the group was created with the nodes {stored:?}, the configuration says {configured:?}")]
    OtherMembers {
        /// Ids of the stored members.
        stored: Vec<u64>,
        /// Ids in the configuration.
        configured: Vec<u64>,
    },
    /// The newest snapshot cannot be decoded.
    #[error(transparent)]
    Restore(#[from] crate::RestoreError),
    /// The Raft engine refuses the stored state.
    #[error("raft engine: {0}")]
    Engine(String),
}

/// This node does not lead, or cannot prove it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not the leader{}", .leader.as_ref().map(|l| format!("; the leader is at {l}")).unwrap_or_default())]
pub struct NotLeader {
    /// The leader's `host:port`, if known.
    pub leader: Option<String>,
}

/// A command has no known reply.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProposeError {
    /// This node does not lead: the command was not and will not be applied.
    #[error("not the leader{}", .leader.as_ref().map(|l| format!("; the leader is at {l}")).unwrap_or_default())]
    NotLeader {
        /// The leader's `host:port`, if known.
        leader: Option<String>,
    },
    /// The command may have been applied, may be applied later, or never.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// The encoded command is larger than `command_bytes_max`; it was not applied.
    #[error("a command of {bytes} bytes is larger than the limit of {bytes_max}")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// This node has stopped; a command that was under way may be applied by the others.
    #[error("the consensus node has shut down")]
    ShutDown,
}
