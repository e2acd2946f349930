//! The RPCs that this member receives from the others.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use openraft::errors::RaftError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};
use uruk_proto::raft::raft_server::Raft as RaftRpc;
use uruk_proto::raft::snapshot_part::Part;
use uruk_proto::raft::{Address, RaftReply, RaftRequest, SnapshotPart, SnapshotStart};

use crate::config::Config;
use crate::machine::Machine;
use crate::state_machine::StateMachine;
use crate::types::{Snapshot, SnapshotMeta, Types, Vote};

/// So many snapshots are received at once: each lies in memory until it is whole.
const SNAPSHOTS_AT_ONCE: usize = 1;
/// Memory reserved ahead for a snapshot whose sender announces more.
const SNAPSHOT_RESERVE_BYTES: usize = 64 << 20;

/// Receives the RPCs of the group's other members.
pub struct RaftService<S: StateMachine> {
    raft: openraft::Raft<Types, Machine<S>>,
    config: Arc<Config>,
    snapshots: Semaphore,
}

impl<S: StateMachine> RaftService<S> {
    pub(crate) fn new(raft: openraft::Raft<Types, Machine<S>>, config: Arc<Config>) -> RaftService<S> {
        RaftService { raft, config, snapshots: Semaphore::new(SNAPSHOTS_AT_ONCE) }
    }

    /// Refuses what is meant for another member.
    fn check(&self, to: Option<Address>) -> Result<(), Status> {
        let Config { group, node, .. } = &*self.config;
        match to {
            Some(to) if to.group == *group && to.node == *node => Ok(()),
            Some(to) => Err(Status::failed_precondition(format!(
                "this is node {node} of group {group}, not node {} of {}; check the members' addresses",
                to.node, to.group
            ))),
            None => Err(Status::invalid_argument("a message without an address")),
        }
    }

    fn open<T: DeserializeOwned>(&self, request: Request<RaftRequest>) -> Result<T, Status> {
        let RaftRequest { to, payload } = request.into_inner();
        self.check(to)?;
        decode(&payload)
    }

    async fn receive(&self, parts: &mut Streaming<SnapshotPart>, start: &SnapshotStart) -> Result<Bytes, Status> {
        let (length, length_max) = (start.content_length, self.config.snapshot_bytes_max);
        if length > length_max {
            return Err(Status::resource_exhausted(format!(
                "a snapshot of {length} bytes is larger than the limit of {length_max}"
            )));
        }
        let mut content = BytesMut::with_capacity((length as usize).min(SNAPSHOT_RESERVE_BYTES));
        while let Some(part) = parts.message().await? {
            match part.part {
                Some(Part::Chunk(chunk)) if (content.len() + chunk.len()) as u64 <= length => {
                    content.extend_from_slice(&chunk);
                }
                _ => return Err(Status::invalid_argument("a snapshot that does not go on with its chunks")),
            }
        }
        if content.len() as u64 != length || crc32fast::hash(&content) != start.content_crc {
            return Err(Status::data_loss("the snapshot did not arrive as it was sent"));
        }
        Ok(content.freeze())
    }
}

#[tonic::async_trait]
impl<S: StateMachine> RaftRpc for RaftService<S> {
    async fn append_entries(&self, request: Request<RaftRequest>) -> Result<Response<RaftReply>, Status> {
        let message = self.open(request)?;
        reply(self.raft.append_entries(message).await)
    }

    async fn vote(&self, request: Request<RaftRequest>) -> Result<Response<RaftReply>, Status> {
        let message = self.open(request)?;
        reply(self.raft.vote(message).await)
    }

    async fn pre_vote(&self, request: Request<RaftRequest>) -> Result<Response<RaftReply>, Status> {
        let message = self.open(request)?;
        reply(self.raft.pre_vote(message).await)
    }

    async fn install_snapshot(&self, request: Request<Streaming<SnapshotPart>>) -> Result<Response<RaftReply>, Status> {
        let Ok(_permit) = self.snapshots.try_acquire() else {
            return Err(Status::resource_exhausted("another snapshot is being received"));
        };
        let mut parts = request.into_inner();
        let Some(Part::Start(start)) = parts.message().await?.and_then(|part| part.part) else {
            return Err(Status::invalid_argument("a snapshot without a start"));
        };
        self.check(start.to.clone())?;
        let (vote, meta): (Vote, SnapshotMeta) = decode(&start.header)?;
        let snapshot = self.receive(&mut parts, &start).await?;
        let installed = self.raft.install_full_snapshot(vote, Snapshot { meta, snapshot }).await;
        reply(installed.map_err(RaftError::from))
    }
}

fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Status> {
    postcard::from_bytes(payload).map_err(|error| Status::invalid_argument(format!("cannot decode: {error}")))
}

fn reply<T: Serialize>(result: Result<T, RaftError<Types>>) -> Result<Response<RaftReply>, Status> {
    let message = result.map_err(|stopped| Status::unavailable(format!("this member has stopped: {stopped}")))?;
    let payload = postcard::to_stdvec(&message).map_err(|error| Status::internal(error.to_string()))?;
    Ok(Response::new(RaftReply { payload: payload.into() }))
}
