//! Row latches: make a read and the write that follows from it one step.
//!
//! | who | takes | until |
//! |---|---|---|
//! | a plain mutation | shared | its write is published |
//! | check-and-mutate, read-modify-write | exclusive, before its first read | its write is published |
//!
//! Plain mutations of one row are ordered by their SeqNos and need not wait for each other. A latch
//! stands for all rows that fall on its stripe; waiters are served in order of arrival.
//!
//! Invariants: (1) stripes are taken in ascending order, each once, so no two callers wait for each
//! other; (2) the guards travel with the write through the commit log, so a client that goes away
//! cannot release them early.

use std::sync::Arc;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use uruk_proto::TabletId;

/// Number of stripes: with a few hundred rows in flight, unrelated rows seldom meet.
const STRIPES: usize = 8192;

/// All latches of a server.
#[derive(Debug)]
pub struct Latches {
    stripes: Vec<Arc<RwLock<()>>>,
}

/// Latches held.
#[derive(Debug)]
pub enum Latched {
    /// By plain mutations of these rows.
    Shared(#[allow(dead_code)] Vec<OwnedRwLockReadGuard<()>>),
    /// By an operation that reads first.
    Exclusive(#[allow(dead_code)] OwnedRwLockWriteGuard<()>),
}

impl Latches {
    /// Nothing is held.
    pub fn new() -> Latches {
        Latches { stripes: (0..STRIPES).map(|_| Arc::default()).collect() }
    }

    fn stripe(&self, tablet: TabletId, row: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new_with_initial(tablet.0 as u32);
        hasher.update(row);
        hasher.finalize() % STRIPES as u32
    }

    /// Waits for the rows' latches, shared.
    pub async fn shared<'a>(&self, tablet: TabletId, rows: impl Iterator<Item = &'a [u8]>) -> Latched {
        let mut stripes: Vec<u32> = rows.map(|row| self.stripe(tablet, row)).collect();
        stripes.sort_unstable();
        stripes.dedup();
        let mut guards = Vec::with_capacity(stripes.len());
        for stripe in stripes {
            let latch = self.stripes[stripe as usize].clone();
            // Without a waiter this is one compare-and-swap.
            guards.push(match latch.clone().try_read_owned() {
                Ok(guard) => guard,
                Err(_) => latch.read_owned().await,
            });
        }
        Latched::Shared(guards)
    }

    /// Waits for the row's latch, exclusive.
    pub async fn exclusive(&self, tablet: TabletId, row: &[u8]) -> Latched {
        let stripe = self.stripe(tablet, row);
        Latched::Exclusive(self.stripes[stripe as usize].clone().write_owned().await)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const T: TabletId = TabletId(1);

    #[tokio::test]
    async fn plain_mutations_share_and_exclusive_ones_do_not() {
        let latches = Latches::new();
        let first = latches.shared(T, [&b"a"[..], b"b", b"a"].into_iter()).await;
        let second = latches.shared(T, [&b"b"[..]].into_iter()).now_or_never().expect("shared");
        assert!(latches.exclusive(T, b"a").now_or_never().is_none());
        drop((first, second));
        let alone = latches.exclusive(T, b"a").now_or_never().expect("free");
        assert!(latches.shared(T, [&b"a"[..]].into_iter()).now_or_never().is_none());
        assert!(latches.exclusive(T, b"a").now_or_never().is_none());
        drop(alone);
        assert!(latches.exclusive(T, b"a").now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_stream_of_plain_mutations_does_not_starve_an_exclusive_one() {
        let latches = Latches::new();
        let held = latches.shared(T, [&b"a"[..]].into_iter()).await;
        let mut exclusive = std::pin::pin!(latches.exclusive(T, b"a"));
        assert!(exclusive.as_mut().now_or_never().is_none());
        let later = latches.shared(T, [&b"a"[..]].into_iter()).now_or_never();
        assert!(later.is_none(), "queues behind the exclusive one");
        drop(held);
        assert!(exclusive.now_or_never().is_some());
    }
}
