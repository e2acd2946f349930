//! Proofs of leadership: a quorum confirms this node's term after the proof was asked for.
//!
//! One round serves all who were waiting when it began; those who come later wait for the next.

use std::sync::Arc;

use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use openraft::raft::linearizable_read::LinearizerOption;
use tokio::sync::{mpsc, oneshot};
use uruk_base::Clock;

use crate::config::Config;
use crate::error::NotLeader;
use crate::leadership::Term;
use crate::machine::Machine;
use crate::state_machine::StateMachine;
use crate::types::Types;

/// So many callers wait for a round; more wait to be let in.
const WAITING_MAX: usize = 1024;

type Answer = oneshot::Sender<Result<Term, NotLeader>>;

/// Asks for proofs.
#[derive(Clone, Debug)]
pub(crate) struct Confirm(mpsc::Sender<Answer>);

impl Confirm {
    /// The asking end, and the end that [`run`] serves.
    pub(crate) fn new() -> (Confirm, mpsc::Receiver<Answer>) {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        (Confirm(sender), receiver)
    }

    /// The term that was confirmed; this node has applied every command acknowledged before the call.
    pub(crate) async fn ask(&self) -> Result<Term, NotLeader> {
        let (answer, asked) = oneshot::channel();
        let stopped = NotLeader { leader: None };
        if self.0.send(answer).await.is_err() {
            return Err(stopped);
        }
        asked.await.unwrap_or(Err(stopped))
    }
}

/// Runs rounds for as long as anybody asks.
pub(crate) async fn run<S: StateMachine>(
    raft: openraft::Raft<Types, Machine<S>>,
    config: Arc<Config>,
    clock: Clock,
    mut asked: mpsc::Receiver<Answer>,
) {
    let mut waiting = Vec::new();
    while asked.recv_many(&mut waiting, WAITING_MAX).await > 0 {
        let limit = config.confirm_deadline * 2; // for the quorum, and for applying
        let result = match clock.timeout(limit, round(&raft, &config)).await {
            Ok(result) => result,
            Err(_) => Err(NotLeader { leader: None }),
        };
        for answer in waiting.drain(..) {
            // A caller may have gone away.
            let _ = answer.send(result.clone());
        }
    }
}

async fn round<S: StateMachine>(raft: &openraft::Raft<Types, Machine<S>>, config: &Config) -> Result<Term, NotLeader> {
    let option = LinearizerOption::from(ReadPolicy::ReadIndex).with_wait_timeout(config.confirm_deadline);
    let linearizer = raft.get_read_linearizer(option).await.map_err(|error| {
        let leader = match error {
            RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => {
                config.other_member(forward.leader_id)
            }
            RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) | RaftError::Fatal(_) => None,
        };
        NotLeader { leader }
    })?;
    let term = Term(linearizer.read_log_id().committed_leader_id().term);
    match linearizer.await_ready(raft).await {
        Ok(_) => Ok(term),
        Err(_) => Err(NotLeader { leader: None }),
    }
}
