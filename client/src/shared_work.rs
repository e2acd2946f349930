//! Work that many wait for, done by whichever of them runs.
//!
//! Invariants: (1) at most one piece of work is under way at a time; (2) it goes on as long as one of those
//! who wait for it is polled, even if the one who began it is not: the reader of a scan may pause for as long
//! as it likes with a look-up half done, and nobody else waits for that reader; (3) it is dropped when nobody
//! waits for it any more.
//!
//! A semaphore around the work would break (2): its permit can lie with a future that nobody polls.

use std::fmt;

use futures::future::{BoxFuture, FutureExt, Shared, WeakShared};
use parking_lot::Mutex;

/// A place for one piece of work.
pub(crate) struct SharedWork<T: Clone> {
    /// Weak: those who wait own the work.
    under_way: Mutex<Option<WeakShared<BoxFuture<'static, T>>>>,
}

/// The work to wait for.
pub(crate) enum Work<T: Clone> {
    /// What the caller asked for.
    Own(Shared<BoxFuture<'static, T>>),
    /// Something that was under way: look again when it has ended.
    Other(Shared<BoxFuture<'static, T>>),
}

impl<T: Clone> SharedWork<T> {
    pub fn new() -> SharedWork<T> {
        SharedWork { under_way: Mutex::new(None) }
    }

    /// The work under way; what `start` makes if there is none.
    pub fn join_or_start(&self, start: impl FnOnce() -> BoxFuture<'static, T>) -> Work<T> {
        let mut under_way = self.under_way.lock();
        // Work that has ended may still be held by somebody who has not looked.
        let unfinished = |work: &Shared<_>| work.peek().is_none();
        if let Some(work) = under_way.as_ref().and_then(WeakShared::upgrade).filter(unfinished) {
            return Work::Other(work);
        }
        let work = start().shared();
        *under_way = work.downgrade();
        Work::Own(work)
    }
}

impl<T: Clone> fmt::Debug for SharedWork<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedWork")
    }
}

#[cfg(test)]
mod tests {
    use futures::poll;
    use tokio::sync::oneshot;

    use super::*;

    fn own<T: Clone>(work: Work<T>) -> Shared<BoxFuture<'static, T>> {
        match work {
            Work::Own(work) => work,
            Work::Other(_) => panic!("something else is under way"),
        }
    }

    fn other<T: Clone>(work: Work<T>) -> Shared<BoxFuture<'static, T>> {
        match work {
            Work::Other(work) => work,
            Work::Own(_) => panic!("nothing is under way"),
        }
    }

    #[tokio::test]
    async fn work_goes_on_when_the_one_who_began_it_is_not_polled() {
        let place = SharedWork::new();
        let (sender, receiver) = oneshot::channel::<u32>();
        let mut paused = own(place.join_or_start(|| receiver.map(|n| n.unwrap()).boxed()));
        assert!(poll!(&mut paused).is_pending());
        let waiting = other(place.join_or_start(|| unreachable!()));
        let (waited, ()) = futures::join!(waiting, async { sender.send(7).unwrap() });
        assert_eq!(waited, 7);
        // It has ended, though the first still holds it.
        assert_eq!(own(place.join_or_start(|| async { 8 }.boxed())).await, 8);
        assert_eq!(paused.await, 7);
    }

    #[tokio::test]
    async fn work_that_nobody_waits_for_is_dropped() {
        let place = SharedWork::new();
        let (sender, receiver) = oneshot::channel::<u32>();
        let mut work = own(place.join_or_start(|| receiver.map(|n| n.unwrap()).boxed()));
        assert!(poll!(&mut work).is_pending());
        drop(work);
        assert!(sender.is_closed());
        assert_eq!(own(place.join_or_start(|| async { 8 }.boxed())).await, 8);
    }
}
