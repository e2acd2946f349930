//! Follows the engine: what the caller hears about leadership, and what happens when it fails.

use std::sync::Arc;

use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use parking_lot::Mutex;
use tokio::sync::watch;
use uruk_base::Tasks;

use crate::config::Config;
use crate::leadership::{Leader, Leadership, Term};
use crate::machine::Machine;
use crate::state_machine::StateMachine;
use crate::types::Types;

/// How the operating system's error for a full disk reads.
const NO_SPACE: &str = "no storage space";

/// Why the engine stopped by itself, if it did.
pub(crate) type Failure = Arc<Mutex<Option<String>>>;

/// Publishes leadership until the engine ends. If nobody asked it to, that is a failure, and the
/// member's tasks end.
pub(crate) async fn run<S: StateMachine>(
    raft: openraft::Raft<Types, Machine<S>>,
    config: Arc<Config>,
    mut applied_term: watch::Receiver<u64>,
    leadership: watch::Sender<Leadership>,
    failure: Failure,
    tasks: Tasks,
) {
    let mut metrics = raft.server_metrics();
    loop {
        let (state, leader, term) = {
            let now = metrics.borrow_watched();
            (now.state, now.current_leader, now.vote.leader_id.term)
        };
        // An entry of this term was applied, so all of earlier terms were.
        let caught_up = *applied_term.borrow_and_update() == term;
        let next = Leadership {
            leader: leader.and_then(|node| Some(Leader { node, address: config.members.get(&node)?.clone() })),
            is_leader: state == ServerState::Leader && leader == Some(config.node) && caught_up,
            term: Term(term),
        };
        leadership.send_if_modified(|known| {
            let changed = *known != next;
            if changed {
                tracing::info!(group = config.group, node = config.node, leadership = ?next, "leadership changed");
                *known = next;
            }
            changed
        });
        let ended = tokio::select! {
            biased;
            changed = metrics.changed() => changed.is_err(),
            changed = applied_term.changed() => changed.is_err(),
        };
        if ended {
            break;
        }
    }
    leadership.send_modify(|known| {
        known.leader = None;
        known.is_leader = false;
    });
    if !tasks.is_cancelled() {
        let why = match &raft.metrics().borrow_watched().running_state {
            Ok(()) => "its task ended".to_owned(),
            Err(error) => error.to_string(),
        };
        failure.lock().get_or_insert(why);
        tasks.cancel();
    }
}

/// Joins the member's tasks; panics if the engine failed, so that the process ends: a member in
/// doubt about its own disk must not go on.
pub(crate) async fn guard(config: Arc<Config>, failure: Failure, tasks: Tasks, process: Tasks) {
    tasks.cancelled().await;
    let joined = tasks.shutdown().await;
    if let Some(why) = failure.lock().take() {
        let why = format!("node {} of group {} stopped: {why}", config.node, config.group);
        // A full disk is no bug; another member leads.
        assert!(why.contains(NO_SPACE), "{why}");
        return process.fail("raft guard", &why);
    }
    if let Err(panicked) = joined {
        panic!("node {} of group {} stopped: {panicked}", config.node, config.group);
    }
}
