//! The caller's state machine, as the engine drives it.
//!
//! Order of one command: durable on a quorum (the engine), visible to readers, acknowledged.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use parking_lot::RwLock;
use tokio::sync::watch;
use uruk_base::Tasks;

use crate::snapshot::Snapshots;
use crate::state_machine::{Captured, StateMachine};
use crate::types::{Command, LogId, Reply, Snapshot, SnapshotMeta, StoredMembership, Types};

/// The state, for readers.
pub(crate) struct Shared<S> {
    pub(crate) state: RwLock<S>,
    /// Index of the last applied entry; changes after the state did.
    pub(crate) applied: watch::Sender<u64>,
    /// Its term: once it is the current one, everything of earlier terms is applied.
    pub(crate) applied_term: watch::Sender<u64>,
}

/// The state, for the engine: only its state machine task changes it.
pub(crate) struct Machine<S> {
    shared: Arc<Shared<S>>,
    last_applied: Option<LogId>,
    membership: StoredMembership,
    snapshots: Snapshots,
    tasks: Tasks,
}

impl<S: StateMachine> Machine<S> {
    /// The state of the current snapshot, or `initial` without one.
    pub(crate) async fn open(snapshots: Snapshots, tasks: Tasks, initial: S) -> Result<Machine<S>, crate::StartError> {
        snapshots.clean().await?;
        let (state, meta) = match snapshots.read().await? {
            Some((meta, content)) => (S::restore(&content)?, meta),
            None => (initial, SnapshotMeta::default()),
        };
        let shared = Shared {
            state: RwLock::new(state),
            applied: watch::Sender::new(meta.last_log_id.map_or(0, |last| last.index)),
            applied_term: watch::Sender::new(meta.last_log_id.map_or(0, |last| last.leader_id.term)),
        };
        Ok(Machine {
            shared: Arc::new(shared),
            last_applied: meta.last_log_id,
            membership: meta.last_membership,
            snapshots,
            tasks,
        })
    }

    pub(crate) fn shared(&self) -> Arc<Shared<S>> {
        self.shared.clone()
    }

    /// The last entry that the state includes.
    pub(crate) fn last_applied(&self) -> Option<LogId> {
        self.last_applied
    }

    fn apply_command(&self, command: &Command, at: LogId) -> io::Result<Reply> {
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("entry {at}: {what}"));
        let command =
            postcard::from_bytes(&command.0).map_err(|e| invalid(format!("cannot decode the command: {e}")))?;
        // The engine would go on without its state machine task; so a panic becomes its end.
        let applied = std::panic::catch_unwind(AssertUnwindSafe(|| self.shared.state.write().apply(command)));
        let reply = applied.map_err(|_| invalid("applying the command panicked".into()))?;
        let reply = postcard::to_stdvec(&reply).map_err(|e| invalid(format!("cannot encode the reply: {e}")))?;
        Ok(Reply(reply.into()))
    }

    fn advance(&mut self, to: LogId) {
        self.last_applied = Some(to);
        self.shared.applied.send_replace(to.index);
        let term = to.leader_id.term;
        self.shared.applied_term.send_if_modified(|known| std::mem::replace(known, term) != term);
    }
}

impl<S: StateMachine> RaftStateMachine<Types> for Machine<S> {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let at = entry.log_id;
            let reply = match entry.payload {
                EntryPayload::Blank => Reply(Bytes::new()),
                EntryPayload::Normal(command) => self.apply_command(&command, at)?, // visible
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(at), membership);
                    Reply(Bytes::new())
                }
            };
            self.advance(at);
            if let Some(responder) = responder {
                responder.send(reply); // acknowledged
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let captured = self.shared.state.read().capture();
        let meta = SnapshotMeta { last_log_id: self.last_applied, last_membership: self.membership.clone() };
        Builder { meta, captured: Some(captured), snapshots: self.snapshots.clone(), tasks: self.tasks.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, content: Bytes) -> io::Result<()> {
        let state = S::restore(&content).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
        self.snapshots.write(meta, content).await?; // durable
        *self.shared.state.write() = state; // visible
        self.membership = meta.last_membership.clone();
        if let Some(last) = meta.last_log_id {
            self.advance(last);
        }
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        Ok(self.snapshots.read().await?.map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

/// Encodes and writes a snapshot of a state as it was, beside the commands that go on.
pub(crate) struct Builder {
    meta: SnapshotMeta,
    /// Taken when it is built.
    captured: Option<Captured>,
    snapshots: Snapshots,
    tasks: Tasks,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let captured = self.captured.take().ok_or_else(|| io::Error::other("a snapshot is built once"))?;
        let content = Bytes::from(self.tasks.blocking(captured).await);
        self.snapshots.write(&self.meta, content.clone()).await?;
        Ok(Snapshot { meta: self.meta.clone(), snapshot: content })
    }
}
