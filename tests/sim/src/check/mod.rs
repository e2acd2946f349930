//! Checks of a run's history. Pure: a history goes in, violations come out.

use crate::history::Entry;

/// An invariant that a history breaks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which invariant: the name of its file.
    pub invariant: &'static str,
    /// What breaks it.
    pub detail: String,
    /// The operations around it.
    pub history: Vec<String>,
}

/// Everything that is wrong with a history.
pub fn check(_entries: &[Entry]) -> Vec<Violation> {
    Vec::new()
}
