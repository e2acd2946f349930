//! What a caller replicates.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Encodes a state as it was.
pub type Captured = Box<dyn FnOnce() -> Vec<u8> + Send + Sync>;

/// State that is changed by commands alone.
///
/// It lives in memory. After a restart it is rebuilt from the newest snapshot and the log behind it,
/// so `apply` sees the same commands again, in the same order.
pub trait StateMachine: Send + Sync + 'static {
    /// A change. Encoded with postcard, into the log: later versions must still decode older ones
    /// (add variants at the end, never reorder).
    type Command: Serialize + DeserializeOwned + Clone + Debug + Send + Sync + 'static;
    /// What the proposer of a command learns. Expected refusals ("does not exist") belong in here.
    type Reply: Serialize + DeserializeOwned + Clone + Debug + Send + Sync + 'static;

    /// Performs one command. Pure: no clock, no randomness, no IO; the same state and the same
    /// command give the same state and the same reply on every replica.
    fn apply(&mut self, command: Self::Command) -> Self::Reply;

    /// The whole state as bytes. Called while no command is applied, so it must be quick: it holds
    /// up the group's commands for as long as it takes.
    fn snapshot(&self) -> Vec<u8>;

    /// The same, encoded later beside the commands that go on. A state that can be copied in far less time than it
    /// is encoded in does so.
    fn capture(&self) -> Captured {
        let bytes = self.snapshot();
        Box::new(move || bytes)
    }

    /// The state that [`StateMachine::snapshot`] encoded.
    fn restore(bytes: &[u8]) -> Result<Self, RestoreError>
    where
        Self: Sized;
}

/// A snapshot cannot be decoded: it comes from an incompatible version.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("cannot restore the state from a snapshot: {0}")]
pub struct RestoreError(pub String);

impl From<postcard::Error> for RestoreError {
    fn from(error: postcard::Error) -> RestoreError {
        RestoreError(error.to_string())
    }
}
