//! What all parts of one master share.
//!
//! Lock order: the replicated state ([`Consensus::read`]) before [`Shared::volatile`]; neither is
//! held across an await.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use object_store::ObjectStore;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use uruk_base::commit_log::CommitLogStore;
use uruk_base::rpc::Channels;
use uruk_base::{Env, Moment};
use uruk_consensus::{Consensus, NotLeader, ProposeError, Term};
use uruk_proto::{ErrorCode, RpcError};

use crate::assign::Now;
use crate::command::{Command, Reply};
use crate::config::Tuning;
use crate::metrics::MasterMetrics;
use crate::state::State;
use crate::status::StorageHealth;
use crate::volatile::Volatile;

/// Where the cluster's data is.
#[derive(Clone, Debug)]
pub struct Storage {
    /// Immutable files.
    pub objects: Arc<dyn ObjectStore>,
    /// Commit logs.
    pub logs: Arc<dyn CommitLogStore>,
}

/// Someone who waits for leadership to be confirmed.
pub type Waiting = oneshot::Sender<Result<Term, NotLeader>>;

/// One master's parts.
pub struct Shared {
    pub env: Env,
    pub node: u64,
    pub address: String,
    /// Where the status page listens; unset without one.
    pub http_address: OnceLock<String>,
    pub tuning: Tuning,
    pub consensus: Consensus<State>,
    pub volatile: Mutex<Volatile>,
    pub storage: Storage,
    pub health: Arc<dyn StorageHealth>,
    pub channels: Channels,
    pub metrics: MasterMetrics,
    /// Wakes the driver.
    pub wake: Notify,
    /// To the task that confirms leadership.
    pub confirmations: mpsc::Sender<Waiting>,
    pub started: Moment,
}

impl Shared {
    pub fn now(&self) -> Now {
        Now { moment: self.env.clock.now(), wall_micros: self.env.clock.wall_micros() }
    }

    /// Replicates the command; what it refuses is an error.
    pub async fn propose(&self, command: Command) -> Result<Reply, RpcError> {
        reply(self.consensus.propose(command).await)
    }

    /// Like [`Shared::propose`], if this node leads in `term` when the command enters the log.
    pub async fn propose_in(&self, term: Term, command: Command) -> Result<Reply, RpcError> {
        reply(self.consensus.propose_in(term, command).await)
    }

    /// Proves that this node still leads in `term`: for what is done outside of the log.
    pub async fn confirm_term(&self, term: Term) -> Result<(), RpcError> {
        match self.confirm_leadership().await? == term {
            true => Ok(()),
            false => Err(RpcError::not_leader(None)),
        }
    }

    /// Refuses with the leader's address where this node does not lead.
    pub fn require_leader(&self) -> Result<(), RpcError> {
        let leadership = self.consensus.leadership();
        let leadership = leadership.borrow();
        match leadership.is_leader {
            true => Ok(()),
            false => Err(RpcError::not_leader(leadership.leader.as_ref().map(|leader| leader.address.clone()))),
        }
    }

    /// After this, the local state holds everything that was acknowledged before.
    pub async fn read_linearizable(&self) -> Result<(), RpcError> {
        self.consensus.read_linearizable().await.map_err(|error| RpcError::not_leader(error.leader))
    }

    /// Confirms leadership after this call; all that wait share one round.
    pub async fn confirm_leadership(&self) -> Result<Term, RpcError> {
        let (sender, receiver) = oneshot::channel();
        if self.confirmations.try_send(sender).is_err() {
            return Err(RpcError::overloaded("too many renewals wait for a confirmation of leadership", 100));
        }
        match receiver.await {
            Ok(confirmed) => confirmed.map_err(|error| RpcError::not_leader(error.leader)),
            Err(_) => Err(RpcError::new(ErrorCode::Unavailable, "the master shuts down")),
        }
    }

    pub fn order_deadline(&self) -> Duration {
        Duration::from_millis(self.tuning.order_deadline_ms)
    }
}

fn reply(proposed: Result<Reply, ProposeError>) -> Result<Reply, RpcError> {
    match proposed {
        Ok(Reply::Refused(refusal)) => Err(refusal.into()),
        Ok(reply) => Ok(reply),
        Err(ProposeError::NotLeader { leader }) => Err(RpcError::not_leader(leader)),
        Err(error @ ProposeError::TooLarge { .. }) => Err(RpcError::new(ErrorCode::InvalidArgument, error.to_string())),
        Err(error @ (ProposeError::Unknown(_) | ProposeError::ShutDown)) => {
            Err(RpcError::new(ErrorCode::Unknown, error.to_string()))
        }
    }
}

/// Confirms leadership for whoever waits: a round begins after all of its waiters have come.
pub async fn confirm_in_rounds(consensus: Consensus<State>, mut waiting: mpsc::Receiver<Waiting>, round_max: usize) {
    let mut round = Vec::new();
    while waiting.recv_many(&mut round, round_max).await > 0 {
        let confirmed = consensus.confirm_leadership().await;
        for waiter in round.drain(..) {
            // A waiter that has gone away needs no answer.
            let _ = waiter.send(confirmed.clone());
        }
    }
}
