//! The RPCs that this member sends to the others.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::{BasicNode, OptionalSend};
use serde::de::DeserializeOwned;
use tonic::transport::Channel;
use tonic::{Code, Status};
use uruk_base::rpc::{Channels, MESSAGE_BYTES_MAX};
use uruk_base::{Clock, Moment};
use uruk_proto::raft::raft_client::RaftClient;
use uruk_proto::raft::snapshot_part::Part;
use uruk_proto::raft::{Address, RaftReply, RaftRequest, SnapshotPart, SnapshotStart};

use crate::config::Config;
use crate::types::{Snapshot, Types, Vote};

/// The channel that snapshots use, so that they do not hold up heartbeats.
const SNAPSHOT_CHANNEL: usize = 1;

/// Makes connections to the group's members.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    config: Arc<Config>,
    channels: Channels,
    clock: Clock,
}

impl Network {
    pub(crate) fn new(config: Arc<Config>, channels: Channels, clock: Clock) -> Network {
        Network { config, channels, clock }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        // The configuration wins over the stored address: members may move.
        let address = self.config.members.get(&target).unwrap_or(&node.addr).clone();
        Peer { network: self.clone(), target, address, failing_since: None }
    }
}

/// One other member.
pub(crate) struct Peer {
    network: Network,
    target: u64,
    address: String,
    /// When the calls without an answer began.
    failing_since: Option<Moment>,
}

/// Why a call failed.
enum CallError {
    Timeout(Duration),
    Status(Status),
    Decode(postcard::Error),
}

impl Peer {
    fn client(&self, channel: usize) -> RaftClient<Channel> {
        RaftClient::new(self.network.channels.get_nth(&self.address, channel))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn to(&self) -> Option<Address> {
        Some(Address { group: self.network.config.group.clone(), node: self.target })
    }

    fn request(&self, message: &impl serde::Serialize) -> RaftRequest {
        let payload = postcard::to_stdvec(message).expect("memory has room and the types have lengths");
        RaftRequest { to: self.to(), payload: payload.into() }
    }

    async fn finish<R: DeserializeOwned>(
        &mut self,
        deadline: Duration,
        call: impl Future<Output = Result<tonic::Response<RaftReply>, Status>>,
    ) -> Result<R, CallError> {
        let result = match self.network.clock.timeout(deadline, call).await {
            Ok(result) => result.map_err(CallError::Status),
            Err(_) => Err(CallError::Timeout(deadline)),
        };
        self.observe(&result);
        let payload = result?.into_inner().payload;
        postcard::from_bytes(&payload).map_err(CallError::Decode)
    }

    /// Opens the connection anew once no call was answered for `rpc_deadline`: a network that was cut
    /// may never deliver what is outstanding on the old one.
    fn observe<T>(&mut self, result: &Result<T, CallError>) {
        let unanswered = match result {
            Err(CallError::Timeout(_)) => true,
            Err(CallError::Status(status)) => status.code() == Code::Unavailable,
            Err(CallError::Decode(_)) | Ok(_) => false,
        };
        if !unanswered {
            self.failing_since = None;
            return;
        }
        let now = self.network.clock.now();
        let since = *self.failing_since.get_or_insert(now);
        if now.saturating_since(since) >= self.network.config.rpc_deadline {
            self.failing_since = None;
            self.network.channels.forget(&self.address);
        }
    }

    fn error(&self, action: RPCTypes, error: CallError) -> RPCError<Types> {
        match error {
            CallError::Timeout(timeout) => {
                RPCError::Timeout(Timeout { action, id: self.network.config.node, target: self.target, timeout })
            }
            CallError::Status(status) => match status.code() {
                Code::Unavailable | Code::Unimplemented | Code::FailedPrecondition => {
                    RPCError::Unreachable(Unreachable::new(&status))
                }
                _ => RPCError::Network(NetworkError::new(&status)),
            },
            CallError::Decode(error) => RPCError::Network(NetworkError::new(&error)),
        }
    }
}

impl RaftNetworkV2<Types> for Peer {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        // The engine's limit is one heartbeat interval: right for a heartbeat, too short for entries
        // that have to reach a disk.
        let deadline = match rpc.entries.is_empty() {
            true => option.soft_ttl(),
            false => self.network.config.rpc_deadline,
        };
        let (mut client, request) = (self.client(0), self.request(&rpc));
        let result = self.finish(deadline, async move { client.append_entries(request).await }).await;
        result.map_err(|error| self.error(RPCTypes::AppendEntries, error))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let (mut client, request) = (self.client(0), self.request(&rpc));
        let result = self.finish(option.soft_ttl(), async move { client.vote(request).await }).await;
        result.map_err(|error| self.error(RPCTypes::Vote, error))
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let (mut client, request) = (self.client(0), self.request(&rpc));
        let result = self.finish(option.soft_ttl(), async move { client.pre_vote(request).await }).await;
        result.map_err(|error| self.error(RPCTypes::Vote, error))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let header = postcard::to_stdvec(&(vote, &snapshot.meta)).expect("memory has room and the types have lengths");
        let content = snapshot.snapshot;
        let start = SnapshotStart {
            to: self.to(),
            header: header.into(),
            content_length: content.len() as u64,
            content_crc: crc32fast::hash(&content),
        };
        let parts = parts(start, content, self.network.config.snapshot_chunk_bytes);
        let mut client = self.client(SNAPSHOT_CHANNEL);
        let deadline = self.network.config.snapshot_deadline;
        let sent = self.finish(deadline, async move { client.install_snapshot(futures::stream::iter(parts)).await });
        let result = tokio::select! {
            biased;
            closed = cancel => return Err(closed.into()),
            result = sent => result,
        };
        result.map_err(|error| self.error(RPCTypes::InstallSnapshot, error).into())
    }
}

/// The messages of one snapshot; the chunks share its memory.
fn parts(start: SnapshotStart, content: Bytes, chunk_bytes: usize) -> Vec<SnapshotPart> {
    let chunks = (0..content.len())
        .step_by(chunk_bytes)
        .map(|at| Part::Chunk(content.slice(at..content.len().min(at + chunk_bytes))));
    std::iter::once(Part::Start(start)).chain(chunks).map(|part| SnapshotPart { part: Some(part) }).collect()
}
