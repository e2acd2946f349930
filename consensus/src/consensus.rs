//! The handle on one member of a group, and how its parts are put together.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, InitializeError, RaftError};
use openraft::impls::ProgressResponder;
use openraft::{BasicNode, Instant, SnapshotPolicy};
use tokio::sync::{Semaphore, watch};
use uruk_base::rpc::{Channels, MESSAGE_BYTES_MAX};
use uruk_base::{Clock, Env, Tasks};
use uruk_proto::raft::raft_server::RaftServer;

use crate::config::Config;
use crate::confirm::{self, Confirm};
use crate::engine_watch::{self, Failure};
use crate::error::{NotLeader, ProposeError, StartError};
use crate::leadership::{Leadership, Term};
use crate::log::{LogStore, Stop};
use crate::machine::{Machine, Shared};
use crate::network::Network;
use crate::service::RaftService;
use crate::snapshot::Snapshots;
use crate::state_machine::StateMachine;
use crate::types::{Command, Types};

type Raft<S> = openraft::Raft<Types, Machine<S>>;

/// One member of a group. Clones mean the same member.
pub struct Consensus<S: StateMachine>(Arc<Inner<S>>);

struct Inner<S: StateMachine> {
    config: Arc<Config>,
    raft: Raft<S>,
    shared: Arc<Shared<S>>,
    leadership: watch::Receiver<Leadership>,
    confirm: Confirm,
    proposals: Semaphore,
    clock: Clock,
    tasks: Tasks,
}

impl<S: StateMachine> Clone for Consensus<S> {
    fn clone(&self) -> Self {
        Consensus(self.0.clone())
    }
}

impl<S: StateMachine> std::fmt::Debug for Consensus<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node {} of group {}", self.0.config.node, self.0.config.group)
    }
}

impl<S: StateMachine> Consensus<S> {
    /// Opens or creates the member whose log and snapshots are in `folder`, and joins the group.
    ///
    /// `initial` is the state before the first command, the same on every member. A new group forms
    /// by itself: all members are started with the same `members`.
    ///
    /// When the member fails (its disk, an undecodable command), a task in `env.tasks` panics.
    pub async fn start(env: &Env, config: Config, folder: &Path, initial: S) -> Result<Consensus<S>, StartError> {
        config.validate()?;
        let config = Arc::new(config);
        let disk = env.disk.clone();
        let at = |source| StartError::Disk { path: folder.to_owned(), source };
        disk.create_dir_all(folder).await.map_err(at)?;

        let machine = Machine::open(Snapshots::new(disk, folder), env.tasks.clone(), initial).await?;
        let tasks = env.tasks.child();
        let member = env.with_tasks(tasks.clone());
        let (log, stop) = LogStore::open(&member, &config, folder).await?;
        match start_engine(&member, config.clone(), folder, machine, log.clone()).await {
            Ok((raft, shared)) => Ok(assemble(env, &member, config, raft, shared, log, stop)),
            Err(error) => {
                stop.stop().await;
                // The writer alone runs, and has been told to end.
                let _ = tasks.shutdown().await;
                Err(error)
            }
        }
    }

    /// The RPC service for the other members, for the process's routes.
    pub fn service(&self) -> RaftServer<RaftService<S>> {
        RaftServer::new(RaftService::new(self.0.raft.clone(), self.0.config.clone()))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Replicates `command`, applies it, and returns what applying it gave.
    pub async fn propose(&self, command: S::Command) -> Result<S::Reply, ProposeError> {
        self.replicate(command, None).await
    }

    /// Like [`Consensus::propose`], but the command enters the log only as one of `term`: for what was
    /// decided from knowledge that ends with the term. Else it is refused as not the leader's.
    pub async fn propose_in(&self, term: Term, command: S::Command) -> Result<S::Reply, ProposeError> {
        self.replicate(command, Some(term)).await
    }

    async fn replicate(&self, command: S::Command, term: Option<Term>) -> Result<S::Reply, ProposeError> {
        let Inner { config, raft, clock, .. } = &*self.0;
        let encoded = postcard::to_stdvec(&command).expect("memory has room and commands can be encoded");
        let (bytes, bytes_max) = (encoded.len(), config.command_bytes_max);
        if bytes > bytes_max {
            return Err(ProposeError::TooLarge { bytes, bytes_max });
        }
        if !self.has_quorum() {
            return Err(ProposeError::NotLeader { leader: None });
        }
        let _permit = self.0.proposals.acquire().await.map_err(|_| ProposeError::ShutDown)?;
        let written = async {
            let (responder, written) = ProgressResponder::complete_only();
            let mut request = raft.write(Command(encoded.into())).responder(responder);
            if let Some(term) = term {
                // Compared by the engine when it appends, after every wait.
                request = request.with_leader(term.0);
            }
            request.await.map_err(|_fatal| ProposeError::ShutDown)?;
            // Without an answer the engine has ended.
            written.await.map_err(|_ended| ProposeError::ShutDown)
        };
        let write = match clock.timeout(config.propose_deadline, written).await {
            Ok(Ok(Ok(write))) => write,
            Ok(Ok(Err(error))) => return Err(self.propose_error(error)),
            Ok(Err(error)) => return Err(error),
            Err(elapsed) => return Err(ProposeError::Unknown(elapsed.to_string())),
        };
        postcard::from_bytes(&write.response().0)
            .map_err(|error| ProposeError::Unknown(format!("applied, but the reply cannot be decoded: {error}")))
    }

    /// Whether a majority was heard of lately. A leader without one takes no more proposals: their
    /// outcome would stay open, and its log would grow for as long as it is cut off.
    fn has_quorum(&self) -> bool {
        let metrics = self.0.raft.data_metrics();
        let heard = metrics.borrow_watched().last_quorum_acked.as_deref().copied();
        self.0.config.members.len() == 1 || heard.is_none_or(|heard| heard.elapsed() < self.0.config.election_max * 2)
    }

    fn propose_error(&self, error: ClientWriteError<Types>) -> ProposeError {
        match error {
            ClientWriteError::ForwardToLeader(forward) => {
                ProposeError::NotLeader { leader: self.0.config.other_member(forward.leader_id) }
            }
            error => ProposeError::Unknown(error.to_string()),
        }
    }

    /// Proves that this node led at some moment after the call began: a quorum confirmed its term.
    /// Concurrent callers share one round. Every command that was acknowledged before the call began
    /// is applied here when this returns.
    pub async fn confirm_leadership(&self) -> Result<Term, NotLeader> {
        self.0.confirm.ask().await
    }

    /// After this, [`Consensus::read`] sees every command that was acknowledged before the call began.
    pub async fn read_linearizable(&self) -> Result<(), NotLeader> {
        self.confirm_leadership().await.map(|_term| ())
    }

    /// Looks at the local state, which may be out of date. `f` must be short: commands wait for it.
    pub fn read<R>(&self, f: impl FnOnce(&S) -> R) -> R {
        f(&self.0.shared.state.read())
    }

    /// Who leads, as far as this node knows.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.0.leadership.clone()
    }

    /// Index of the last entry that was applied to the local state.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.0.shared.applied.subscribe()
    }

    /// Stops the member; its tasks have ended when this returns.
    pub async fn shutdown(&self) {
        // A panic is reported by the guard in the parent's group.
        let _ = self.0.tasks.shutdown().await;
    }
}

/// Makes the log agree with the snapshot, and starts the engine on them.
async fn start_engine<S: StateMachine>(
    env: &Env,
    config: Arc<Config>,
    folder: &Path,
    machine: Machine<S>,
    mut log: LogStore,
) -> Result<(Raft<S>, Arc<Shared<S>>), StartError> {
    let at = |source| StartError::Disk { path: folder.to_owned(), source };
    let snapshot = machine.last_applied();
    if log.purged() > snapshot {
        let problem = "the log was purged up to a snapshot that is missing".to_owned();
        return Err(StartError::Corrupt { path: folder.to_owned(), offset: 0, problem });
    }
    // A crash came between a received snapshot and the purge of the log that it replaces.
    if let Some(snapshot) = snapshot
        && log.last().is_none_or(|last| last.index < snapshot.index)
    {
        use openraft::storage::RaftLogStorage;
        log.purge(snapshot).await.map_err(at)?;
    }
    let shared = machine.shared();
    let network = Network::new(config.clone(), Channels::new(env.transport.clone()), env.clock.clone());
    let raft = Raft::new(config.node, Arc::new(engine_config(&config)?), network, log, machine)
        .await
        .map_err(|error| StartError::Engine(error.to_string()))?;
    match join_group(&raft, &config).await {
        Ok(()) => Ok((raft, shared)),
        Err(error) => {
            // Its error would only say that it was stopped.
            let _ = raft.shutdown().await;
            Err(error)
        }
    }
}

/// Checks that the stored group is the configured one. A member alone takes the lead at once.
async fn join_group<S: StateMachine>(raft: &Raft<S>, config: &Config) -> Result<(), StartError> {
    let engine = |error: &dyn std::fmt::Display| StartError::Engine(error.to_string());
    let stored = raft.with_raft_state(|state| state.membership_state.effective().voter_ids().collect::<Vec<_>>()).await;
    let mut stored = stored.map_err(|error| engine(&error))?;
    stored.sort_unstable();
    let configured: Vec<u64> = config.members.keys().copied().collect();
    if !stored.is_empty() && stored != configured {
        return Err(StartError::OtherMembers { stored, configured });
    }
    if config.members.len() > 1 {
        return Ok(());
    }
    match stored.is_empty() {
        true => initialize(raft, config).await,
        false => raft.trigger().elect(false).await.map_err(|error| engine(&error)),
    }
}

/// Writes the first entry of a new group: its members. Safe on every member, since all write the same.
async fn initialize<S: StateMachine>(raft: &Raft<S>, config: &Config) -> Result<(), StartError> {
    let members: BTreeMap<u64, BasicNode> =
        config.members.iter().map(|(id, addr)| (*id, BasicNode { addr: addr.clone() })).collect();
    match raft.initialize(members).await {
        // Another member was faster, and this one has heard of it.
        Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
        Err(error) => Err(StartError::Engine(error.to_string())),
    }
}

/// Forms a new group of several members: the first at once, the others only if nobody did so before
/// their turn, so that they do not all stand for election together.
async fn bootstrap<S: StateMachine>(raft: Raft<S>, config: Arc<Config>, clock: Clock) {
    let rank = config.members.keys().take_while(|node| **node < config.node).count() as u32;
    clock.sleep(config.election_max * 2 * rank).await;
    if !raft.is_initialized().await.unwrap_or(true)
        && let Err(error) = initialize(&raft, &config).await
    {
        tracing::warn!(%error, "cannot form the group");
    }
}

fn engine_config(config: &Config) -> Result<openraft::Config, StartError> {
    let ms = |duration: std::time::Duration| duration.as_millis() as u64;
    let engine = openraft::Config {
        cluster_name: config.group.clone(),
        heartbeat_interval: ms(config.heartbeat),
        election_timeout_min: ms(config.election_min),
        election_timeout_max: ms(config.election_max),
        install_snapshot_timeout: ms(config.snapshot_deadline),
        max_payload_entries: config.append_entries_max,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_every_entries),
        replication_lag_threshold: config.snapshot_every_entries + config.entries_kept,
        max_in_snapshot_log_to_keep: config.entries_kept,
        backoff: "20ms 40ms 80ms ...500ms".to_owned(),
        // A member that was cut off asks before it raises its term: when it is back, the leader stays.
        enable_pre_vote: Some(true),
        // A restarted leader has not applied what it had acknowledged; it must be elected again.
        enable_leader_restore: Some(false),
        ..openraft::Config::default()
    };
    engine.validate().map_err(|error| StartError::Engine(error.to_string()))
}

/// Starts the member's tasks around its engine.
fn assemble<S: StateMachine>(
    env: &Env,
    member: &Env,
    config: Arc<Config>,
    raft: Raft<S>,
    shared: Arc<Shared<S>>,
    log: LogStore,
    stop: Stop,
) -> Consensus<S> {
    let tasks = &member.tasks;
    let (confirm, asked) = Confirm::new();
    let leadership = watch::Sender::new(Leadership::default());
    let failure = Failure::default();
    let inner = Inner {
        config: config.clone(),
        raft: raft.clone(),
        leadership: leadership.subscribe(),
        confirm,
        proposals: Semaphore::new(config.proposals_max),
        clock: env.clock.clone(),
        tasks: tasks.clone(),
        shared: shared.clone(),
    };
    let watched = engine_watch::run(
        raft.clone(),
        config.clone(),
        shared.applied_term.subscribe(),
        leadership,
        failure.clone(),
        tasks.clone(),
    );
    tasks.spawn_to_end("raft leadership", watched);
    tasks.spawn("raft confirmations", confirm::run(raft.clone(), config.clone(), env.clock.clone(), asked));
    if config.members.len() > 1 {
        tasks.spawn("raft bootstrap", bootstrap(raft.clone(), config.clone(), env.clock.clone()));
    }
    let engine = raft.clone();
    tasks.spawn("raft log growth", async move {
        loop {
            log.grown().await;
            if engine.trigger().snapshot().await.is_err() {
                return;
            }
        }
    });
    let ending = tasks.clone();
    tasks.spawn_to_end("raft engine", async move {
        ending.cancelled().await;
        // It ends whether or not it had failed before; the writer only after it.
        let _ = raft.shutdown().await;
        stop.stop().await;
    });
    env.tasks.spawn_to_end("raft guard", engine_watch::guard(config, failure, tasks.clone(), env.tasks.clone()));
    Consensus(Arc::new(inner))
}
