//! Files: putting, finding, listing, deleting, copying.

use uruk_base::Moment;
use uruk_proto::dfs::*;
use uruk_proto::{ErrorCode, RpcError};

use super::{
    CHUNKS_PER_BEGIN_MAX, CHUNKS_PER_FILE_MAX, FILES_PER_LIST_MAX, PATHS_PER_DELETE_MAX, invalid, parse_path,
    too_few_servers,
};
use crate::controller::command::{self, Command, Outcome, Refusal};
use crate::controller::core::{Core, RETRY_SOON_MS};
use crate::controller::fleet::Fleet;
use crate::controller::id::{ChunkId, ChunkServerId, PieceId, PutId};
use crate::controller::placement::{ACK_QUORUM, choose_targets};
use crate::controller::state::{ControllerState, FileRecord};
use crate::format::CHUNK_BYTES_MAX;

impl Core {
    pub(super) async fn begin_put(&self, request: BeginPutRequest) -> Result<BeginPutResponse, RpcError> {
        let path = parse_path(request.path)?;
        let chunks = request.chunk_bytes.len();
        if chunks > CHUNKS_PER_BEGIN_MAX {
            return Err(invalid(format!("{chunks} chunks are more than {CHUNKS_PER_BEGIN_MAX} in one call")));
        }
        if let Some(bytes) = request.chunk_bytes.iter().find(|bytes| **bytes > CHUNK_BYTES_MAX) {
            return Err(invalid(format!("a chunk of {bytes} bytes is larger than {CHUNK_BYTES_MAX}")));
        }
        self.leading()?;
        // Advice only: CommitPut decides.
        if request.must_be_new && self.read(|state| state.file(&path).is_some()) {
            return Err(Refusal::FileExists(path).into());
        }
        let (put, mut ids) = match request.put_id {
            0 => {
                let ids = self.take_ids(chunks as u32 + 1).await?;
                (PutId(ids.start), ids.start + 1..ids.end)
            }
            put => {
                self.renew_put(PutId(put))?;
                (PutId(put), if chunks == 0 { 0..0 } else { self.take_ids(chunks as u32).await? })
            }
        };
        let replicas = self.replicas(request.replicas);
        let targets = self.with_fleet(|state, fleet, now| {
            let is_avoided =
                |id: ChunkServerId| state.servers().get(&id).is_some_and(|s| request.avoid.contains(&s.address));
            let placed = request.chunk_bytes.iter().map(|bytes| {
                let chunk_id = ids.next().expect("as many ids as chunks were taken");
                self.place_chunk(state, fleet, now, ChunkToPlace { id: chunk_id, bytes: *bytes, replicas }, is_avoided)
            });
            placed.collect::<Result<Vec<ChunkTarget>, RpcError>>()
        })??;
        Ok(BeginPutResponse { put_id: put.0, chunks: targets })
    }

    /// Gives the put its full time again.
    fn renew_put(&self, put: PutId) -> Result<(), RpcError> {
        let block = self.read(|state| state.block_of(put.0).filter(|_| state.is_put_open(put)));
        let Some(block) = block else { return Err(Refusal::PutExpired(put).into()) };
        self.with_allotment(|_, allotment, now| allotment.renew(block, now))
    }

    fn place_chunk(
        &self,
        state: &ControllerState,
        fleet: &mut Fleet,
        now: Moment,
        chunk: ChunkToPlace,
        is_avoided: impl Fn(ChunkServerId) -> bool,
    ) -> Result<ChunkTarget, RpcError> {
        let candidates = fleet.candidates(state, chunk.bytes, is_avoided);
        let needed = match chunk.replicas == 1 || self.is_single_allowed(state) {
            true => 1,
            false => ACK_QUORUM,
        };
        let targets = choose_targets(&candidates, &[], usize::from(chunk.replicas), needed);
        if targets.len() < needed || fleet.is_warming_up(now, candidates.len()) {
            return Err(too_few_servers(candidates.len(), needed, fleet.refusal()));
        }
        fleet.assign(&targets, chunk.bytes);
        let addresses = targets.iter().map(|id| state.servers()[id].address.clone()).collect();
        Ok(ChunkTarget { chunk_id: chunk.id, addresses })
    }

    /// Copies wanted of a chunk: at least two, unless the store itself is configured to one.
    fn replicas(&self, wanted: u32) -> u8 {
        match wanted {
            0 => self.config.replicas,
            wanted => u8::try_from(wanted).unwrap_or(u8::MAX).clamp(self.config.replicas.min(2), 8),
        }
    }

    pub(super) fn is_single_allowed(&self, state: &ControllerState) -> bool {
        self.config.allow_single_replica && state.servers().len() == 1
    }

    pub(super) async fn commit_put(&self, request: CommitPutRequest) -> Result<CommitPutResponse, RpcError> {
        let path = parse_path(request.path)?;
        if request.chunks.len() > CHUNKS_PER_FILE_MAX {
            return Err(invalid(format!("{} chunks are more than {CHUNKS_PER_FILE_MAX}", request.chunks.len())));
        }
        let chunks: Vec<command::WrittenChunk> = request
            .chunks
            .into_iter()
            .map(|chunk| command::WrittenChunk {
                id: ChunkId(chunk.chunk_id),
                bytes: chunk.bytes,
                crc: chunk.crc,
                servers: chunk.server_ids.into_iter().map(ChunkServerId).collect(),
            })
            .collect();
        if chunks.iter().any(|chunk| chunk.bytes > CHUNK_BYTES_MAX) {
            return Err(invalid(format!("a chunk is larger than {CHUNK_BYTES_MAX} bytes")));
        }
        let put = PutId(request.put_id);
        let claims: Vec<_> = chunks.iter().map(|chunk| (chunk.id, chunk.servers.clone())).collect();
        let commit = command::CommitPut {
            put,
            path,
            chunks,
            must_be_new: request.must_be_new,
            modified_micros: request.modified_micros,
            replicas: self.replicas(request.replicas),
            allow_single_replica: self.config.allow_single_replica,
        };
        self.propose(Command::CommitPut(commit)).await?;
        // So that readers find the copies before the servers' own reports come.
        let _ = self.with_fleet(|_, fleet, now| {
            for (chunk, servers) in claims {
                fleet.claim(now, chunk, &servers);
            }
        });
        Ok(CommitPutResponse { etag: crate::controller::state::etag(put) })
    }

    pub(super) async fn get_file(&self, request: GetFileRequest) -> Result<FileInfo, RpcError> {
        self.catch_up().await?;
        self.with_fleet(|state, fleet, now| {
            let Some(file) = state.file(&request.path) else {
                return Err(Refusal::NoSuchFile(request.path).into());
            };
            let mut info = file_info(&request.path, file);
            for id in &file.chunks {
                let chunk = state.chunk(*id).expect("a named chunk is known");
                let addresses = fleet.addresses(state, PieceId::Chunk(*id), now);
                if addresses.is_empty() && !fleet.is_settled(now) {
                    let message = format!("a new leader does not know yet where {id} is");
                    let unavailable = RpcError::new(ErrorCode::Unavailable, message);
                    return Err(RpcError { retry_after_ms: RETRY_SOON_MS, ..unavailable });
                }
                let lost = addresses.is_empty() && fleet.are_all_heard(now);
                info.chunks.push(ChunkInfo { chunk_id: id.0, bytes: chunk.bytes, crc: chunk.crc, addresses, lost });
            }
            Ok(info)
        })?
    }

    /// Files without their chunks: those come with GetFile.
    pub(super) async fn list_files(&self, request: ListFilesRequest) -> Result<ListFilesResponse, RpcError> {
        self.leading()?;
        self.catch_up().await?;
        let limit = match request.limit {
            0 => FILES_PER_LIST_MAX,
            limit => limit.min(FILES_PER_LIST_MAX),
        };
        Ok(self.read(|state| {
            let mut found = state.files(&request.prefix, &request.after);
            let files = found.by_ref().take(limit as usize).map(|(path, file)| file_info(path, file)).collect();
            ListFilesResponse { files, more: found.next().is_some() }
        }))
    }

    pub(super) async fn delete_files(&self, request: DeleteFilesRequest) -> Result<DeleteFilesResponse, RpcError> {
        let paths = request.paths.len();
        if paths > PATHS_PER_DELETE_MAX {
            return Err(invalid(format!("{paths} paths are more than {PATHS_PER_DELETE_MAX} in one call")));
        }
        match self.propose(Command::DeleteFiles { paths: request.paths }).await? {
            Outcome::Deleted(deleted) => Ok(DeleteFilesResponse { deleted }),
            Outcome::Done | Outcome::Server(_) | Outcome::Ids(_) => Ok(DeleteFilesResponse::default()),
        }
    }

    pub(super) async fn copy_file(&self, request: CopyFileRequest) -> Result<CopyFileResponse, RpcError> {
        let CopyFileRequest { from, to, must_be_new, rename, modified_micros } = request;
        let (from, to) = (parse_path(from)?, parse_path(to)?);
        self.propose(Command::CopyFile { from, to, must_be_new, rename, modified_micros }).await?;
        Ok(CopyFileResponse {})
    }
}

struct ChunkToPlace {
    id: u64,
    bytes: u64,
    replicas: u8,
}

fn file_info(path: &str, file: &FileRecord) -> FileInfo {
    FileInfo {
        path: path.to_owned(),
        bytes: file.bytes,
        etag: file.etag(),
        modified_micros: file.modified_micros,
        chunks: Vec::new(),
    }
}
