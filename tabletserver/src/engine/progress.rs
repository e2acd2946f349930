//! How far a flush or compaction has come, for whoever watches it.
//!
//! Progress is counted in entries that the merge has passed, since blocks of the inputs are read ahead of it; as
//! bytes it is the same share of the input's bytes.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one flush or compaction, shared with who watches. They only grow.
#[derive(Debug, Default)]
pub struct Progress {
    entries: AtomicU64,
    written_bytes: AtomicU64,
}

impl Progress {
    /// So many entries more are merged.
    pub(super) fn merged(&self, entries: u64) {
        self.entries.fetch_add(entries, Ordering::Relaxed);
    }

    /// So many bytes more of new files are on their way to the store.
    pub(crate) fn wrote(&self, bytes: u64) {
        self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Entries of the input that are merged.
    pub fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// Bytes of new files.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of the input that are done, of `bytes` with `entries`.
    pub fn done_bytes(&self, bytes: u64, entries: u64) -> u64 {
        share(bytes, self.entries(), entries)
    }
}

/// The part of `bytes` that `done` of `all` are. A reference to a part of a file guesses its entries, so `done`
/// may end above `all`, or below.
fn share(bytes: u64, done: u64, all: u64) -> u64 {
    if all == 0 {
        return 0;
    }
    (u128::from(bytes) * u128::from(done.min(all)) / u128::from(all)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_is_a_share_of_the_input_and_never_more() {
        for (bytes, done, all, expected) in [
            (1000, 0, 10, 0),
            (1000, 3, 10, 300),
            (1000, 10, 10, 1000),
            (1000, 12, 10, 1000),
            (1000, 0, 0, 0),
            (0, 5, 10, 0),
            (u64::MAX, u64::MAX / 2, u64::MAX, u64::MAX / 2),
        ] {
            assert_eq!(share(bytes, done, all), expected, "{done} of {all}, {bytes} bytes");
        }
    }
}
