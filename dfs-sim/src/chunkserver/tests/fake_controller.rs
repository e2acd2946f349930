//! A controller that says what a test tells it to.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use uruk_base::{Env, rpc};
use uruk_proto::dfs::controller_server::{Controller, ControllerServer};
use uruk_proto::dfs::*;
use uruk_proto::{ErrorCode, RpcError};

/// What a test sets and looks at.
#[derive(Debug, Default)]
pub struct Script {
    /// Named in NOT_LEADER answers; `None` = this one leads.
    pub leader: Option<String>,
    /// Id given to every folder.
    pub server_id: u64,
    /// Answers to the next heartbeats; then empty ones of `term`.
    pub answers: VecDeque<ChunkServerHeartbeatResponse>,
    pub term: u64,
    /// Heartbeats are answered with NOT_FOUND.
    pub forgets: bool,
    pub registrations: Vec<RegisterChunkServerRequest>,
    pub heartbeats: Vec<ChunkServerHeartbeatRequest>,
}

#[derive(Clone, Debug, Default)]
pub struct FakeController {
    pub script: Arc<Mutex<Script>>,
    pub address: String,
}

impl FakeController {
    pub async fn start(env: &Env, server_id: u64) -> FakeController {
        let listener = env.transport.listen("127.0.0.1:0").await.expect("listens");
        let script = Script { server_id, term: 1, ..Script::default() };
        let fake = FakeController { script: Arc::new(Mutex::new(script)), address: listener.local_address() };
        let routes = Routes::new(ControllerServer::new(fake.clone()));
        let env_too = env.clone();
        env.tasks.spawn("fake controller", async move {
            rpc::serve(&env_too, listener, routes, &env_too.tasks).await.expect("serves");
        });
        fake
    }

    pub fn order(&self, answer: ChunkServerHeartbeatResponse) {
        self.script.lock().answers.push_back(answer);
    }

    fn check_leader(&self) -> Result<(), Status> {
        match &self.script.lock().leader {
            Some(leader) => Err(RpcError::not_leader(Some(leader.clone())).into()),
            None => Ok(()),
        }
    }
}

macro_rules! unused {
    ($($name:ident($request:ty) -> $response:ty;)*) => {
        #[tonic::async_trait]
        impl Controller for FakeController {
            $(async fn $name(&self, _: Request<$request>) -> Result<Response<$response>, Status> {
                Err(Status::unimplemented(stringify!($name)))
            })*

            async fn register_chunk_server(
                &self,
                request: Request<RegisterChunkServerRequest>,
            ) -> Result<Response<RegisterChunkServerResponse>, Status> {
                self.check_leader()?;
                let mut script = self.script.lock();
                script.registrations.push(request.into_inner());
                Ok(Response::new(RegisterChunkServerResponse { server_id: script.server_id, heartbeat_ms: 20 }))
            }

            async fn chunk_server_heartbeat(
                &self,
                request: Request<ChunkServerHeartbeatRequest>,
            ) -> Result<Response<ChunkServerHeartbeatResponse>, Status> {
                self.check_leader()?;
                let mut script = self.script.lock();
                script.heartbeats.push(request.into_inner());
                if script.forgets {
                    return Err(RpcError::new(ErrorCode::NotFound, "register").into());
                }
                let term = script.term;
                let empty = ChunkServerHeartbeatResponse { term, ..Default::default() };
                Ok(Response::new(script.answers.pop_front().unwrap_or(empty)))
            }
        }
    };
}

unused! {
    begin_put(BeginPutRequest) -> BeginPutResponse;
    commit_put(CommitPutRequest) -> CommitPutResponse;
    get_file(GetFileRequest) -> FileInfo;
    list_files(ListFilesRequest) -> ListFilesResponse;
    delete_files(DeleteFilesRequest) -> DeleteFilesResponse;
    copy_file(CopyFileRequest) -> CopyFileResponse;
    create_log(CreateLogRequest) -> LogInfo;
    roll_segment(RollSegmentRequest) -> LogInfo;
    get_log(GetLogRequest) -> LogInfo;
    close_log(CloseLogRequest) -> LogInfo;
    begin_recovery(BeginRecoveryRequest) -> LogInfo;
    seal_segment(SealSegmentRequest) -> LogInfo;
    trim_log(TrimLogRequest) -> LogInfo;
    delete_log(DeleteLogRequest) -> LogInfo;
    health(HealthRequest) -> HealthResponse;
}
