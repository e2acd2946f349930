//! The RPCs that members receive from one another.

use std::marker::PhantomData;

use tonic::{Request, Response, Status, Streaming};
use uruk_proto::raft::raft_server::Raft;
use uruk_proto::raft::{RaftReply, RaftRequest, SnapshotPart};

use crate::state_machine::StateMachine;

/// Receives the RPCs of the group's other members.
pub struct RaftService<S: StateMachine> {
    pub(crate) machine: PhantomData<S>,
}

#[tonic::async_trait]
impl<S: StateMachine> Raft for RaftService<S> {
    async fn append_entries(&self, _: Request<RaftRequest>) -> Result<Response<RaftReply>, Status> {
        Err(Status::unavailable("no group"))
    }

    async fn vote(&self, _: Request<RaftRequest>) -> Result<Response<RaftReply>, Status> {
        Err(Status::unavailable("no group"))
    }

    async fn pre_vote(&self, _: Request<RaftRequest>) -> Result<Response<RaftReply>, Status> {
        Err(Status::unavailable("no group"))
    }

    async fn install_snapshot(&self, _: Request<Streaming<SnapshotPart>>) -> Result<Response<RaftReply>, Status> {
        Err(Status::unavailable("no group"))
    }
}
