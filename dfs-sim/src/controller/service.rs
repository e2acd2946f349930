//! The RPC service `dfs.Controller`. Requests are parsed here, once; all but the leader refuse.
//!
//! Every answer comes from committed state: reads wait until this node has proved that it still
//! leads, except for what only advises (placement, BeginPut's early checks).
//!
//! | refusal | what the caller does |
//! |---|---|
//! | NOT_LEADER | asks the leader named, or the others |
//! | UNAVAILABLE | tries again: too few servers now, or a new leader does not know the copies yet |
//! | OVERLOADED | tries again after the delay: chunk servers refuse writes |
//! | FENCED (logs) | ends its incarnation: the log is closed, deleted, or another writer's |
//! | NOT_FOUND (heartbeat) | registers (again) |
//! | FAILED_PRECONDITION | reads the state again and decides anew; a put that expired begins anew |
//! | UNKNOWN | repeats: the commands answer repeats (see [`super::command`]) |

use std::sync::Arc;

use tonic::{Request, Response, Status};
use uruk_proto::dfs::controller_server::Controller as ControllerRpc;
use uruk_proto::dfs::*;
use uruk_proto::{ErrorCode, RpcError};

use super::core::{Core, RETRY_SOON_MS};

mod files;
mod logs;
mod servers;

#[cfg(test)]
mod tests;

/// Longest path of a file, in bytes.
pub const PATH_BYTES_MAX: usize = 4 << 10;
/// Most chunks of one BeginPut.
pub const CHUNKS_PER_BEGIN_MAX: usize = 4_096;
/// Most chunks of one file.
pub const CHUNKS_PER_FILE_MAX: usize = 100_000;
/// Most paths of one DeleteFiles.
pub const PATHS_PER_DELETE_MAX: usize = 10_000;
/// Most files of one answer of ListFiles.
pub const FILES_PER_LIST_MAX: u32 = 10_000;

/// Answers RPCs from one controller's core.
#[derive(Clone, Debug)]
pub struct ControllerService {
    core: Arc<Core>,
}

impl ControllerService {
    /// Serves `core`.
    pub fn new(core: Arc<Core>) -> ControllerService {
        ControllerService { core }
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(result: Result<T, RpcError>) -> Answer<T> {
    result.map(Response::new).map_err(Status::from)
}

#[tonic::async_trait]
impl ControllerRpc for ControllerService {
    async fn begin_put(&self, request: Request<BeginPutRequest>) -> Answer<BeginPutResponse> {
        answer(self.core.begin_put(request.into_inner()).await)
    }

    async fn commit_put(&self, request: Request<CommitPutRequest>) -> Answer<CommitPutResponse> {
        answer(self.core.commit_put(request.into_inner()).await)
    }

    async fn get_file(&self, request: Request<GetFileRequest>) -> Answer<FileInfo> {
        answer(self.core.get_file(request.into_inner()).await)
    }

    async fn list_files(&self, request: Request<ListFilesRequest>) -> Answer<ListFilesResponse> {
        answer(self.core.list_files(request.into_inner()).await)
    }

    async fn delete_files(&self, request: Request<DeleteFilesRequest>) -> Answer<DeleteFilesResponse> {
        answer(self.core.delete_files(request.into_inner()).await)
    }

    async fn copy_file(&self, request: Request<CopyFileRequest>) -> Answer<CopyFileResponse> {
        answer(self.core.copy_file(request.into_inner()).await)
    }

    async fn create_log(&self, request: Request<CreateLogRequest>) -> Answer<LogInfo> {
        answer(self.core.create_log(request.into_inner()).await)
    }

    async fn roll_segment(&self, request: Request<RollSegmentRequest>) -> Answer<LogInfo> {
        answer(self.core.roll_segment(request.into_inner()).await)
    }

    async fn get_log(&self, request: Request<GetLogRequest>) -> Answer<LogInfo> {
        answer(self.core.get_log(request.into_inner()).await)
    }

    async fn close_log(&self, request: Request<CloseLogRequest>) -> Answer<LogInfo> {
        answer(self.core.close_log(request.into_inner()).await)
    }

    async fn begin_recovery(&self, request: Request<BeginRecoveryRequest>) -> Answer<LogInfo> {
        answer(self.core.begin_recovery(request.into_inner()).await)
    }

    async fn seal_segment(&self, request: Request<SealSegmentRequest>) -> Answer<LogInfo> {
        answer(self.core.seal_segment(request.into_inner()).await)
    }

    async fn trim_log(&self, request: Request<TrimLogRequest>) -> Answer<LogInfo> {
        answer(self.core.trim_log(request.into_inner()).await)
    }

    async fn delete_log(&self, request: Request<DeleteLogRequest>) -> Answer<LogInfo> {
        answer(self.core.delete_log(request.into_inner()).await)
    }

    async fn register_chunk_server(
        &self,
        request: Request<RegisterChunkServerRequest>,
    ) -> Answer<RegisterChunkServerResponse> {
        answer(self.core.register_chunk_server(request.into_inner()).await)
    }

    async fn chunk_server_heartbeat(
        &self,
        request: Request<ChunkServerHeartbeatRequest>,
    ) -> Answer<ChunkServerHeartbeatResponse> {
        answer(self.core.chunk_server_heartbeat(request.into_inner()))
    }

    async fn health(&self, _: Request<HealthRequest>) -> Answer<HealthResponse> {
        answer(self.core.health())
    }
}

fn invalid(message: impl Into<String>) -> RpcError {
    RpcError::new(ErrorCode::InvalidArgument, message)
}

fn parse_path(path: String) -> Result<String, RpcError> {
    match path.len() {
        0 => Err(invalid("a path must not be empty")),
        len if len > PATH_BYTES_MAX => Err(invalid(format!("a path of {len} bytes is longer than {PATH_BYTES_MAX}"))),
        _ => Ok(path),
    }
}

/// Too few servers take what is to be written now, or more are to be heard of soon.
fn too_few_servers(found: usize, needed: usize, refusal: Option<&str>) -> RpcError {
    match refusal {
        Some(why) => RpcError::overloaded(
            format!("{found} chunk servers accept writes, {needed} are needed; others refuse: {why}"),
            1_000,
        ),
        None => RpcError {
            retry_after_ms: RETRY_SOON_MS,
            ..RpcError::new(ErrorCode::Unavailable, format!("{found} chunk servers answer, {needed} are needed"))
        },
    }
}
