//! The service over a real connection, on a controller alone.

use std::path::Path;
use std::time::Duration;

use tonic::transport::Channel;
use uruk_base::rpc::Channels;
use uruk_base::{Env, Tasks};
use uruk_proto::dfs::controller_client::ControllerClient;
use uruk_proto::dfs::*;
use uruk_proto::{ErrorCode, RpcError};

use crate::controller::{Controller, ControllerConfig, StartError};

/// A controller with a task group of its own.
struct Running {
    env: Env,
    controller: Controller,
    client: ControllerClient<Channel>,
}

/// Chunk servers exist as their heartbeats only.
const GIB: u64 = 1 << 30;

fn config(folder: &Path) -> ControllerConfig {
    ControllerConfig {
        repair_tick: Duration::from_millis(20),
        repair_grace: Duration::from_millis(2_500),
        warm_up: Duration::ZERO,
        put_lifetime: Duration::from_millis(300),
        ..ControllerConfig::new(folder, "127.0.0.1:0")
    }
}

async fn start(config: ControllerConfig) -> Running {
    let env = Env::real().with_tasks(Tasks::new());
    let controller = Controller::run(&env, config).await.expect("starts");
    let client = ControllerClient::new(Channels::new(env.transport.clone()).get(controller.address()));
    let running = Running { env, controller, client };
    running.until(|mut client| async move { client.list_files(ListFilesRequest::default()).await.is_ok() }).await;
    running
}

impl Running {
    /// Waits until `holds`.
    async fn until<F: Future<Output = bool>>(&self, holds: impl Fn(ControllerClient<Channel>) -> F) {
        let poll = async {
            while !holds(self.client.clone()).await {
                self.env.clock.sleep(Duration::from_millis(5)).await;
            }
        };
        self.env.clock.timeout(Duration::from_secs(20), poll).await.expect("it comes true in time");
    }

    async fn stop(self) {
        self.controller.shutdown().await;
        self.env.tasks.shutdown().await.expect("no task panicked");
    }

    async fn register(&self, folder_identity: u64) -> u64 {
        let request = RegisterChunkServerRequest {
            folder_identity,
            address: format!("host{folder_identity}:1"),
            incarnation: folder_identity * 10,
            ..RegisterChunkServerRequest::default()
        };
        self.client.clone().register_chunk_server(request).await.expect("registers").into_inner().server_id
    }

    /// Registers servers 1 to `count` and lets each report in full that it holds `chunks`.
    async fn servers(&self, count: u64, chunks: &[u64]) {
        for server in 1..=count {
            assert_eq!(self.register(server).await, server);
            let term = self.beat(server, ChunkServerHeartbeatRequest::default()).await.term;
            let chunks = chunks.iter().map(|id| ChunkReport { chunk_id: *id, bytes: 5, ..ChunkReport::default() });
            let full = ChunkServerHeartbeatRequest {
                full: true,
                chunks: chunks.collect(),
                term_seen: term,
                ..Default::default()
            };
            assert!(!self.beat(server, full).await.report_all);
        }
    }

    async fn beat(&self, server: u64, request: ChunkServerHeartbeatRequest) -> ChunkServerHeartbeatResponse {
        let request =
            ChunkServerHeartbeatRequest { server_id: server, incarnation: server * 10, free_bytes: GIB, ..request };
        self.client.clone().chunk_server_heartbeat(request).await.expect("a heartbeat").into_inner()
    }

    /// One chunk of 5 bytes, acknowledged by servers 1 and 2.
    async fn put(&self, path: &str) -> u64 {
        let begun = self.begin(path).await.expect("begins");
        let chunk = begun.chunks[0].chunk_id;
        self.commit(begun.put_id, chunk, path).await.expect("commits");
        chunk
    }

    async fn begin(&self, path: &str) -> Result<BeginPutResponse, RpcError> {
        let request = BeginPutRequest { path: path.into(), chunk_bytes: vec![5], ..BeginPutRequest::default() };
        Ok(self.client.clone().begin_put(request).await?.into_inner())
    }

    async fn commit(&self, put_id: u64, chunk_id: u64, path: &str) -> Result<String, RpcError> {
        let chunk = WrittenChunk { chunk_id, bytes: 5, crc: 1, server_ids: vec![1, 2] };
        let request =
            CommitPutRequest { put_id, path: path.into(), chunks: vec![chunk], ..CommitPutRequest::default() };
        Ok(self.client.clone().commit_put(request).await?.into_inner().etag)
    }

    async fn file(&self, path: &str) -> Result<FileInfo, RpcError> {
        Ok(self.client.clone().get_file(GetFileRequest { path: path.into() }).await?.into_inner())
    }

    async fn create_log(&self, log_id: u64, writer: u64) -> Result<LogInfo, RpcError> {
        let request = CreateLogRequest { log_id, writer, durability: Durability::Fsync.into() };
        Ok(self.client.clone().create_log(request).await?.into_inner())
    }

    async fn roll(&self, index: u32, length: u64, avoid: &[u64]) -> Result<LogInfo, RpcError> {
        let request = RollSegmentRequest { log_id: 1, writer: 9, index, length, crc: 3, avoid: avoid.to_vec() };
        Ok(self.client.clone().roll_segment(request).await?.into_inner())
    }
}

#[tokio::test]
async fn a_file_is_there_once_its_put_has_committed() {
    let folder = tempfile::tempdir().unwrap();
    let store = start(config(folder.path())).await;
    store.servers(3, &[]).await;
    let begun = store.begin("a/b").await.expect("begins");
    assert_eq!(begun.chunks[0].addresses.len(), 3);
    assert_eq!(store.file("a/b").await.unwrap_err().code, ErrorCode::NotFound);
    let etag = store.commit(begun.put_id, begun.chunks[0].chunk_id, "a/b").await.expect("commits");
    assert_eq!(store.commit(begun.put_id, begun.chunks[0].chunk_id, "a/b").await, Ok(etag.clone()), "repeated");
    let file = store.file("a/b").await.expect("is there");
    assert_eq!((file.bytes, &file.etag, file.chunks.len()), (5, &etag, 1));
    assert_eq!(file.chunks[0].addresses.len(), 2, "as the commit claims");
    let must_be_new = BeginPutRequest { path: "a/b".into(), must_be_new: true, ..BeginPutRequest::default() };
    let refused = store.client.clone().begin_put(must_be_new).await.unwrap_err();
    assert_eq!(RpcError::from(refused).code, ErrorCode::AlreadyExists);
    let copy = CopyFileRequest { from: "a/b".into(), to: "a/c".into(), ..CopyFileRequest::default() };
    store.client.clone().copy_file(copy).await.expect("copies");
    let list = ListFilesRequest { prefix: "a/".into(), limit: 1, ..ListFilesRequest::default() };
    let listed = store.client.clone().list_files(list).await.expect("lists").into_inner();
    assert_eq!((listed.files[0].path.as_str(), listed.more), ("a/b", true));
    let delete = DeleteFilesRequest { paths: vec!["a/b".into(), "a/x".into()] };
    assert_eq!(store.client.clone().delete_files(delete).await.unwrap().into_inner().deleted, ["a/b"]);
    store.stop().await;
}

#[tokio::test]
async fn a_put_that_is_not_extended_expires_and_its_chunks_are_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let store = start(config(folder.path())).await;
    store.servers(3, &[]).await;
    let old = store.begin("old").await.expect("begins");
    let chunk = old.chunks[0].chunk_id;
    let report = ChunkReport { chunk_id: chunk, bytes: 5, ..ChunkReport::default() };
    store.beat(1, ChunkServerHeartbeatRequest { chunks: vec![report], ..Default::default() }).await;
    store
        .until(|mut client| async move {
            let request =
                ChunkServerHeartbeatRequest { server_id: 1, incarnation: 10, free_bytes: GIB, ..Default::default() };
            client.chunk_server_heartbeat(request).await.unwrap().into_inner().delete_chunks == [chunk]
        })
        .await;
    let refused = store.commit(old.put_id, chunk, "old").await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::FailedPrecondition, "{refused}");
    let extend = BeginPutRequest { path: "old".into(), put_id: old.put_id, ..BeginPutRequest::default() };
    let refused = RpcError::from(store.client.clone().begin_put(extend).await.unwrap_err());
    assert_eq!(refused.code, ErrorCode::FailedPrecondition, "{refused}");
    store.stop().await;
}

#[tokio::test]
async fn an_extended_put_lives_on_with_its_first_chunks() {
    let folder = tempfile::tempdir().unwrap();
    let store = start(ControllerConfig { ids_per_block: 2, ..config(folder.path()) }).await;
    store.servers(3, &[]).await;
    let begun = store.begin("long").await.expect("begins");
    let mut chunks = vec![begun.chunks[0].chunk_id];
    for _ in 0..12 {
        store.env.clock.sleep(Duration::from_millis(100)).await; // an upload that takes two lifetimes
        let extend = BeginPutRequest {
            path: "long".into(),
            chunk_bytes: vec![5],
            put_id: begun.put_id,
            avoid: vec!["host3:1".into()],
            ..BeginPutRequest::default()
        };
        for server in 1..=3 {
            store.beat(server, ChunkServerHeartbeatRequest::default()).await;
        }
        let extended = store.client.clone().begin_put(extend).await.expect("extends").into_inner();
        assert_eq!(extended.put_id, begun.put_id);
        assert_eq!(extended.chunks[0].addresses.len(), 2, "one of three is avoided");
        chunks.push(extended.chunks[0].chunk_id);
    }
    let written = |id: &u64| WrittenChunk { chunk_id: *id, bytes: 5, crc: 1, server_ids: vec![1, 2] };
    let commit = CommitPutRequest {
        put_id: begun.put_id,
        path: "long".into(),
        chunks: chunks.iter().map(written).collect(),
        ..CommitPutRequest::default()
    };
    store.client.clone().commit_put(commit).await.expect("commits");
    assert_eq!(store.file("long").await.unwrap().bytes, 65);
    store.stop().await;
}

#[tokio::test]
async fn a_log_rolls_onto_healthy_servers_and_is_sealed_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let store = start(config(folder.path())).await;
    store.servers(3, &[]).await;
    let created = store.create_log(1, 9).await.expect("creates");
    let first = &created.segments[0];
    assert_eq!((first.write_quorum, first.ack_quorum, first.members.len()), (3, 2, 3));
    assert_eq!(store.create_log(1, 9).await.expect("repeats"), created);
    assert_eq!(store.create_log(1, 8).await.unwrap_err().code, ErrorCode::Fenced);

    let rolled = store.roll(0, 100, &[2]).await.expect("rolls");
    let second = &rolled.segments[1];
    assert_eq!((second.base, second.write_quorum, second.ack_quorum), (100, 2, 2));
    assert!(second.members.iter().all(|m| m.server_id != 2));
    assert_eq!(store.roll(0, 100, &[]).await.expect("repeats").segments.len(), 2);
    assert!(!rolled.segments[0].addresses.is_empty(), "members, until somebody reports");

    let close = CloseLogRequest { log_id: 1 };
    let closed = store.client.clone().close_log(close).await.expect("closes").into_inner();
    assert!(closed.closed);
    assert_eq!(store.roll(1, 50, &[]).await.unwrap_err().code, ErrorCode::Fenced);
    let begin = BeginRecoveryRequest { log_id: 1, index: 1, recovery: 4 };
    let recovering = store.client.clone().begin_recovery(begin).await.expect("begins").into_inner();
    let wanted = segment_info::State::Recovering(SegmentRecovering { recovery: 4 });
    assert_eq!(recovering.segments[1].state, Some(wanted));
    let seal = |recovery, length| SealSegmentRequest { log_id: 1, index: 1, recovery, length, crc: 0 };
    let refused = store.client.clone().seal_segment(seal(3, 50)).await.unwrap_err();
    assert_eq!(RpcError::from(refused).code, ErrorCode::FailedPrecondition);
    for length in [50, 60] {
        let sealed = store.client.clone().seal_segment(seal(4, length)).await.expect("seals").into_inner();
        let wanted = segment_info::State::Sealed(SegmentSealed { length: 50, crc: 0 });
        assert_eq!(sealed.segments[1].state, Some(wanted), "the winner's length");
    }
    let deleted = store.client.clone().delete_log(DeleteLogRequest { log_id: 1 }).await.expect("deletes").into_inner();
    assert!(deleted.deleted && deleted.closed && deleted.segments.is_empty());
    assert_eq!(store.create_log(1, 9).await.unwrap_err().code, ErrorCode::Fenced);
    store.stop().await;
}

#[tokio::test]
async fn two_of_three_servers_are_enough_and_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let store = start(config(folder.path())).await;
    store.servers(1, &[]).await;
    assert_eq!(store.create_log(1, 9).await.unwrap_err().code, ErrorCode::Unavailable);
    assert_eq!(store.begin("f").await.unwrap_err().code, ErrorCode::Unavailable);
    store.servers(2, &[]).await;
    let log = store.create_log(1, 9).await.expect("creates");
    assert_eq!((log.segments[0].write_quorum, log.segments[0].ack_quorum), (2, 2));
    assert_eq!(store.begin("f").await.expect("begins").chunks[0].addresses.len(), 2);
    store.beat(1, ChunkServerHeartbeatRequest { refusing_writes: "disk full".into(), ..Default::default() }).await;
    let refused = store.begin("f").await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Overloaded);
    assert!(refused.message.contains("disk full"), "{refused}");
    store.stop().await;
}

#[tokio::test]
async fn a_store_that_just_started_waits_for_its_third_server() {
    let folder = tempfile::tempdir().unwrap();
    let store = start(ControllerConfig { warm_up: Duration::from_secs(1), ..config(folder.path()) }).await;
    store.servers(2, &[]).await;
    assert_eq!(store.create_log(1, 9).await.unwrap_err().code, ErrorCode::Unavailable);
    assert_eq!(store.begin("f").await.unwrap_err().code, ErrorCode::Unavailable);
    store.servers(3, &[]).await;
    let log = store.create_log(1, 9).await.expect("creates");
    assert_eq!(log.segments[0].write_quorum, 3);
    store.stop().await;
}

#[tokio::test]
async fn a_single_server_is_enough_only_where_the_configuration_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let store = start(ControllerConfig { allow_single_replica: true, ..config(folder.path()) }).await;
    store.servers(1, &[]).await;
    let log = store.create_log(1, 9).await.expect("creates");
    assert_eq!((log.segments[0].write_quorum, log.segments[0].ack_quorum), (1, 1));
    assert_eq!(store.begin("f").await.expect("begins").chunks[0].addresses.len(), 1);
    store.stop().await;
}

#[tokio::test]
async fn everything_is_there_after_a_restart_once_servers_report() {
    let folder = tempfile::tempdir().unwrap();
    let store = start(config(folder.path())).await;
    store.servers(3, &[]).await;
    let chunk = store.put("f").await;
    store.create_log(1, 9).await.expect("creates");
    let second = Controller::run(&store.env, config(folder.path())).await.expect_err("the folder is in use");
    assert!(matches!(second, StartError::Folder(_)), "{second}");
    store.stop().await;

    let store = start(config(folder.path())).await;
    let unknown = store.file("f").await.unwrap_err();
    assert_eq!(unknown.code, ErrorCode::Unavailable, "nobody has reported: {unknown}");
    assert_eq!(store.create_log(1, 8).await.unwrap_err().code, ErrorCode::Fenced);
    let other = ChunkServerHeartbeatRequest { server_id: 1, incarnation: 77, ..Default::default() };
    let refused = RpcError::from(store.client.clone().chunk_server_heartbeat(other).await.unwrap_err());
    assert_eq!(refused.code, ErrorCode::NotFound, "an older process must not speak for the newer one");
    assert!(store.beat(1, ChunkServerHeartbeatRequest::default()).await.report_all);
    store.servers(3, &[chunk]).await;
    assert_eq!(store.file("f").await.expect("known again").chunks[0].addresses.len(), 3);

    let health = store.client.clone().health(HealthRequest {}).await.expect("answers").into_inner();
    assert_eq!((health.files, health.file_bytes, health.logs, health.open_segments), (1, 5, 1, 1));
    assert_eq!(health.servers.iter().map(|s| (s.live, s.chunks)).collect::<Vec<_>>(), [(true, 1); 3]);
    let next = store.begin("g").await.expect("begins").chunks[0].chunk_id;
    assert!(next > chunk, "ids are not issued twice");
    store.stop().await;
}

#[tokio::test]
async fn a_deleted_files_chunks_are_deleted_and_a_damaged_copy_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let store = start(config(folder.path())).await;
    store.servers(3, &[]).await;
    let (gone, kept) = (store.put("gone").await, store.put("kept").await);
    let report = |id: u64, damaged: bool| ChunkReport { chunk_id: id, bytes: 5, damaged, ..ChunkReport::default() };
    for server in 1..=3 {
        let chunks = vec![report(gone, false), report(kept, server == 3)];
        store.beat(server, ChunkServerHeartbeatRequest { chunks, ..Default::default() }).await;
    }
    store.client.clone().delete_files(DeleteFilesRequest { paths: vec!["gone".into()] }).await.expect("deletes");
    for server in 1..=3 {
        let mut deleted = Vec::new();
        let poll = async {
            while deleted != [gone] {
                let answer = store.beat(server, ChunkServerHeartbeatRequest::default()).await;
                deleted.extend(answer.delete_chunks);
                store.env.clock.sleep(Duration::from_millis(5)).await;
            }
        };
        store.env.clock.timeout(Duration::from_secs(10), poll).await.expect("ordered in time");
    }
    let mut copies = Vec::new();
    let poll = async {
        while copies.is_empty() {
            for server in 1..=3 {
                copies.extend(store.beat(server, ChunkServerHeartbeatRequest::default()).await.copies);
            }
            store.env.clock.sleep(Duration::from_millis(5)).await;
        }
    };
    store.env.clock.timeout(Duration::from_secs(10), poll).await.expect("ordered in time");
    assert_eq!((copies[0].id, copies[0].bytes, copies[0].crc, copies[0].sources.len()), (kept, 5, 1, 2));
    let health = store.client.clone().health(HealthRequest {}).await.expect("answers").into_inner();
    assert_eq!(health.damaged_found, 1);
    store.stop().await;
}

#[tokio::test]
async fn a_chunk_that_nobody_holds_is_called_lost_once_all_have_reported() {
    let folder = tempfile::tempdir().unwrap();
    let patient = Duration::from_secs(60);
    let config = ControllerConfig { silent_after: patient, repair_grace: 2 * patient, ..config(folder.path()) };
    let store = start(config.clone()).await;
    store.servers(3, &[]).await;
    store.put("gone").await;
    store.stop().await;
    let store = start(config).await; // and the claims of the commit are forgotten
    assert_eq!(store.file("gone").await.unwrap_err().code, ErrorCode::Unavailable, "nobody has reported");
    store.servers(2, &[]).await;
    assert_eq!(store.file("gone").await.unwrap_err().code, ErrorCode::Unavailable, "the third one may hold it");
    store.servers(3, &[]).await;
    let file = store.file("gone").await.expect("is known");
    assert!(file.chunks[0].lost && file.chunks[0].addresses.is_empty(), "{file:?}");
    store.stop().await;
}

#[tokio::test]
async fn requests_that_cannot_be_right_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = start(config(folder.path())).await;
    store.servers(3, &[]).await;
    let mut client = store.client.clone();
    let code = |status: tonic::Status| RpcError::from(status).code;
    let empty = BeginPutRequest::default();
    assert_eq!(code(client.begin_put(empty).await.unwrap_err()), ErrorCode::InvalidArgument);
    let huge = BeginPutRequest { path: "f".into(), chunk_bytes: vec![65 << 20], ..BeginPutRequest::default() };
    assert_eq!(code(client.begin_put(huge).await.unwrap_err()), ErrorCode::InvalidArgument);
    let long = CopyFileRequest { from: "f".into(), to: "x".repeat(5_000), ..CopyFileRequest::default() };
    assert_eq!(code(client.copy_file(long).await.unwrap_err()), ErrorCode::InvalidArgument);
    let nowhere = RegisterChunkServerRequest { address: "nowhere".into(), ..RegisterChunkServerRequest::default() };
    assert_eq!(code(client.register_chunk_server(nowhere).await.unwrap_err()), ErrorCode::InvalidArgument);
    assert_eq!(code(client.get_log(GetLogRequest { log_id: 5 }).await.unwrap_err()), ErrorCode::NotFound);
    assert_eq!(store.roll(0, u64::MAX, &[]).await.unwrap_err().code, ErrorCode::InvalidArgument);
    store.stop().await;
}

#[tokio::test]
async fn a_port_in_use_and_a_bad_setting_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let store = start(config(folder.path())).await;
    let other = tempfile::tempdir().unwrap();
    let taken = ControllerConfig { listen: store.controller.address().to_owned(), ..config(other.path()) };
    let error = Controller::run(&store.env, taken).await.expect_err("the port is in use");
    assert!(error.to_string().contains(store.controller.address()), "{error}");
    let bad = ControllerConfig { replicas: 0, ..config(other.path()) };
    let error = Controller::run(&store.env, bad).await.expect_err("no copies at all");
    assert!(error.to_string().contains("replicas"), "{error}");
    store.stop().await;
}
