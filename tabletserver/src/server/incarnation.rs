//! One incarnation of a tablet server: it begins with its registration, and ends once, for good.
//!
//! Invariants: (1) nothing is served before the first granted lease, nor after the end; (2) the end
//! is seen by every request that starts or replies later; (3) an ended incarnation never comes back:
//! the process exits, and its watching parent launches another.

use tokio::sync::watch;
use uruk_base::commit_log::{LogError, LogId};
use uruk_base::planted::{Planted, is_planted};
use uruk_base::{Clock, Moment, Tasks};
use uruk_proto::{ErrorCode, RpcError, ServerId};

use super::lease::{Lease, LeaseStatus};

/// Why an incarnation is over.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Ended {
    /// It was asked to stop.
    #[error("stopped")]
    Shutdown,
    /// No renewal came through in time.
    #[error("the lease lapsed")]
    LeaseLost,
    /// A master declared it dead.
    #[error("declared dead: {0}")]
    DeclaredDead(String),
    /// Its log is sealed, or the outcome of a write to it is unknown.
    #[error("the commit log failed: {0}")]
    LogFailed(LogError),
    /// A bug.
    #[error("task {0} panicked")]
    Panicked(&'static str),
}

impl Ended {
    /// The process's exit code: 0 only for a stop that was asked for.
    pub fn exit_code(&self) -> u8 {
        match self {
            Ended::Shutdown => 0,
            Ended::LeaseLost => 70,
            Ended::DeclaredDead(_) => 71,
            Ended::LogFailed(_) => 72,
            Ended::Panicked(_) => 73,
        }
    }
}

/// The running incarnation.
#[derive(Debug)]
pub struct Incarnation {
    /// Its id, also that of its log.
    pub server_id: ServerId,
    /// Its lease.
    pub lease: Lease,
    clock: Clock,
    tasks: Tasks,
    ended: watch::Sender<Option<Ended>>,
}

impl Incarnation {
    /// Begins; `tasks` are cancelled at the end.
    pub fn new(server_id: ServerId, lease: Lease, clock: Clock, tasks: Tasks) -> Incarnation {
        Incarnation { server_id, lease, clock, tasks, ended: watch::Sender::new(None) }
    }

    /// Its commit log.
    pub fn log_id(&self) -> LogId {
        LogId(self.server_id.0)
    }

    /// Ends it; only the first reason counts.
    pub fn end(&self, reason: Ended) {
        let first = self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some(reason.clone());
            }
            first
        });
        if first {
            tracing::info!(server = %self.server_id, %reason, "incarnation ends");
            self.tasks.cancel();
        }
    }

    /// Completes at the end.
    pub async fn ended(&self) -> Ended {
        let mut receiver = self.ended.subscribe();
        let reason = receiver.wait_for(Option::is_some).await.expect("the sender is ours").clone();
        reason.expect("was waited for")
    }

    /// Whether it may serve now: not done otherwise.
    pub fn check(&self) -> Result<(), RpcError> {
        if let Some(reason) = &*self.ended.borrow() {
            return Err(RpcError::new(ErrorCode::StaleLocation, format!("{} is over: {reason}", self.server_id)));
        }
        match self.lease.status(self.clock.now()) {
            LeaseStatus::Held(_) => Ok(()),
            LeaseStatus::Waiting => {
                Err(RpcError::new(ErrorCode::Unavailable, format!("{} waits for its lease", self.server_id)))
            }
            LeaseStatus::Lapsed => {
                self.end_at_lapse();
                Err(RpcError::new(ErrorCode::StaleLocation, format!("{} lost its lease", self.server_id)))
            }
        }
    }

    /// Whether a read may start, or what it has read may be sent.
    pub fn check_read(&self) -> Result<(), RpcError> {
        if is_planted(Planted::ReadWithoutLease) {
            return Ok(());
        }
        self.check()
    }

    /// The lease was seen lapsed.
    pub fn end_at_lapse(&self) {
        if !is_planted(Planted::ReadWithoutLease) {
            self.end(Ended::LeaseLost);
        }
    }

    /// Whether it would serve at `now`; unlike [`Incarnation::check`] it changes nothing.
    pub fn would_serve_at(&self, now: Moment) -> bool {
        self.ended.borrow().is_none() && (is_planted(Planted::ReadWithoutLease) || self.lease.peek(now))
    }

    /// Whether a write that is durable may be acknowledged: its outcome is unknown otherwise.
    pub fn check_write_done(&self) -> Result<(), RpcError> {
        self.check().map_err(|error| RpcError::new(ErrorCode::Unknown, error.message))
    }
}
