//! What all parts of one chunk server share: its environment and place, room on the disk, changes to
//! report, and the switch that ends the process.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use uruk_base::Env;

use super::config::ChunkServerConfig;
use super::error::StoreError;

/// Room is taken ahead of need only where this many times as much is free beyond the reserve: the last room of
/// a disk is for what is written, and for the fences and seals that free it.
const AHEAD_SHARE: u64 = 16;

/// Shared by all parts of one chunk server.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) env: Env,
    pub(super) config: ChunkServerConfig,
    pub(super) space: Space,
    pub(super) changes: Changes,
    /// The boot of the machine that this process runs under.
    pub(super) boot_id: String,
    failure: watch::Sender<Option<String>>,
}

impl Host {
    pub(super) fn new(env: &Env, config: ChunkServerConfig) -> Host {
        Host {
            env: env.clone(),
            space: Space::new(config.disk_reserve_bytes),
            changes: Changes::default(),
            boot_id: env.disk.boot_id(),
            config,
            failure: watch::Sender::new(None),
        }
    }

    pub(super) fn folder(&self, name: &str) -> PathBuf {
        self.config.folder.join(name)
    }

    /// Ends the process: nothing is acknowledged from here on (I9). The first reason is kept.
    pub(super) fn fail(&self, reason: String) {
        tracing::error!(reason, "the chunk server must end");
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert(reason);
            first
        });
    }

    /// `Err` once the process must end.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        match &*self.failure.borrow() {
            Some(reason) => Err(StoreError::Ending(reason.clone())),
            None => Ok(()),
        }
    }

    /// Completes with the reason when the process must end.
    pub(super) async fn failed(&self) -> String {
        let mut failure = self.failure.subscribe();
        let reason = failure.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }

    /// Runs `work` to its end even when the caller goes away, as an RPC's client may: a fence or a
    /// sync that is dropped half-way would leave memory and disk in disagreement.
    pub(super) async fn to_end<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (sender, receiver) = oneshot::channel();
        self.env.tasks.spawn(name, async move {
            // The caller may be gone; the work is done all the same.
            let _ = sender.send(work.await);
        });
        receiver.await.unwrap_or_else(|_| Err(StoreError::Ending("shutting down".into())))
    }
}

/// Room on the disk, as an estimate that is renewed every second and counted down in between.
#[derive(Debug)]
pub(super) struct Space {
    reserve: u64,
    free: AtomicU64,
    refusing: Mutex<Option<String>>,
}

impl Space {
    fn new(reserve: u64) -> Space {
        Space { reserve, free: AtomicU64::new(u64::MAX), refusing: Mutex::new(None) }
    }

    /// Takes room for `bytes`, or says why there is none.
    pub(super) fn take(&self, bytes: u64) -> Result<(), StoreError> {
        let free = self.free.load(Ordering::Relaxed);
        if free < self.reserve.saturating_add(bytes) {
            let reason = format!("disk full: {free} bytes free, {} of them kept in reserve", self.reserve);
            let mut refusing = self.refusing.lock();
            if refusing.is_none() {
                tracing::warn!(reason, "writes are refused");
            }
            *refusing = Some(reason.clone());
            return Err(StoreError::Full(reason));
        }
        self.free.fetch_sub(bytes.min(free), Ordering::Relaxed);
        Ok(())
    }

    /// Takes room for `bytes` that are not needed yet, or says that there is too little for that.
    /// They count a second time when they are written, until the next [`Space::refresh`].
    pub(super) fn take_ahead(&self, bytes: u64) -> bool {
        let free = self.free.load(Ordering::Relaxed);
        let fits = free >= self.reserve.saturating_add(bytes.saturating_mul(AHEAD_SHARE));
        if fits {
            self.free.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }

    /// The disk itself refused for want of room.
    pub(super) fn ran_out(&self) {
        self.free.store(0, Ordering::Relaxed);
    }

    pub(super) fn free_bytes(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }

    /// Why writes are refused now; empty when they are not.
    pub(super) fn refusing(&self) -> String {
        self.refusing.lock().clone().unwrap_or_default()
    }

    /// Asks the disk again.
    pub(super) async fn refresh(&self, host: &Host) {
        match host.env.disk.free_bytes(&host.config.folder).await {
            Ok(free) => {
                self.free.store(free, Ordering::Relaxed);
                let mut refusing = self.refusing.lock();
                if free <= self.reserve {
                    *refusing = Some(format!("disk full: {free} bytes free, {} kept in reserve", self.reserve));
                } else if refusing.take().is_some() {
                    tracing::info!(free, "writes are accepted again");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot tell how much room is left");
                *self.refusing.lock() = Some(format!("cannot tell how much room is left: {error}"));
            }
        }
    }
}

/// Chunks and segments whose state changed since the last heartbeat that arrived.
#[derive(Debug, Default)]
pub(super) struct Changes(Mutex<ChangedIds>);

/// Ids only: the report tells their state at the time it is made.
#[derive(Debug, Default, Clone)]
pub(super) struct ChangedIds {
    pub(super) chunks: BTreeSet<u64>,
    pub(super) segments: BTreeSet<u64>,
}

impl Changes {
    pub(super) fn chunk(&self, id: u64) {
        self.0.lock().chunks.insert(id);
    }

    pub(super) fn segment(&self, id: u64) {
        self.0.lock().segments.insert(id);
    }

    pub(super) fn take(&self) -> ChangedIds {
        std::mem::take(&mut self.0.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_counted_down_to_the_reserve_and_no_further() {
        let space = Space::new(100);
        space.free.store(250, Ordering::Relaxed);
        space.take(150).expect("fits");
        let refused = space.take(1).expect_err("the reserve stays");
        assert!(matches!(refused, StoreError::Full(_)), "{refused}");
        assert!(space.refusing().contains("disk full"), "{}", space.refusing());
        assert_eq!(space.free_bytes(), 100);
    }

    #[test]
    fn room_is_taken_ahead_only_where_there_is_plenty() {
        let space = Space::new(100);
        space.free.store(100 + 10 * AHEAD_SHARE, Ordering::Relaxed);
        assert!(!space.take_ahead(11));
        assert_eq!(space.free_bytes(), 100 + 10 * AHEAD_SHARE);
        assert!(space.take_ahead(10));
        assert!(!space.take_ahead(10), "what is taken counts");
        assert!(space.refusing().is_empty(), "nothing was refused that a client waits for");
    }
}
