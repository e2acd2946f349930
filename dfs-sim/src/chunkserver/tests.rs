//! Whole servers over loopback, with a controller that follows a script.

use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use uruk_base::clock::Clock;
use uruk_base::disk::SimDisk;
use uruk_base::{Env, Random, Tasks, rpc};
use uruk_proto::dfs::chunk_server_client::ChunkServerClient;
use uruk_proto::dfs::*;
use uruk_proto::{ErrorCode, RpcError};

use self::fake_controller::FakeController;
use super::*;
use crate::format::replica_file::DATA_OFFSET;
use crate::format::{SegmentKey, encode_frame};

mod damage;
mod fake_controller;
mod segments;

const LOG: u64 = 3;
/// No condition that a test waits for takes this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server with its own disk and controller.
struct Rig {
    env: Env,
    disk: SimDisk,
    controller: FakeController,
    server: ChunkServer,
    address: String,
    client: ChunkServerClient<Channel>,
    ended: tokio::sync::oneshot::Receiver<Result<(), RunError>>,
}

fn new_env(disk: &SimDisk) -> Env {
    Env { disk: disk.mount(Clock::real()), random: Random::from_os(), tasks: Tasks::new(), ..Env::real() }
}

fn config(controllers: Vec<String>) -> ChunkServerConfig {
    ChunkServerConfig {
        folder: "/data".into(),
        controllers,
        disk_reserve_bytes: 0,
        scrub_bytes_per_s: 0,
        ..ChunkServerConfig::default()
    }
}

impl Rig {
    async fn start(server_id: u64) -> Rig {
        Rig::on(SimDisk::new(server_id), server_id, |_| {}).await
    }

    async fn on(disk: SimDisk, server_id: u64, change: impl FnOnce(&mut ChunkServerConfig)) -> Rig {
        let env = new_env(&disk);
        let controller = FakeController::start(&env, server_id).await;
        let mut config = config(vec![controller.address.clone()]);
        change(&mut config);
        let server = ChunkServer::start(&env, config).await.expect("starts");
        let listener = server.listen().await.expect("listens");
        let address = listener.local_address();
        let (done, ended) = tokio::sync::oneshot::channel();
        let server_too = server.clone();
        env.tasks.spawn_to_end("chunk server", async move {
            let _ = done.send(server_too.serve(listener).await);
        });
        let client = ChunkServerClient::new(rpc::channel(&env.transport, &address));
        let rig = Rig { env, disk, controller, server, address, client, ended };
        rig.until("registered", || rig.server.server_id() == server_id).await;
        rig
    }

    async fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let clock = &self.env.clock;
        let poll = async {
            while !condition() {
                clock.sleep(Duration::from_millis(2)).await;
            }
        };
        clock.timeout(PATIENCE, poll).await.unwrap_or_else(|_| panic!("never: {what}"));
    }

    /// Waits for a heartbeat that says what the test waits for.
    async fn until_reported(&self, what: &str, mut says: impl FnMut(&ChunkServerHeartbeatRequest) -> bool) {
        self.until(what, || self.controller.script.lock().heartbeats.iter().any(&mut says)).await;
    }

    async fn write_chunk(&self, id: u64, data: &Bytes) -> Result<WriteChunkResponse, Status> {
        let header = WriteChunkHeader { chunk_id: id, bytes: data.len() as u64, durability: Durability::Fsync as i32 };
        let mut messages = vec![WriteChunkRequest { header: Some(header), data: Bytes::new() }];
        let pieces = data.chunks(70_000).map(Bytes::copy_from_slice);
        messages.extend(pieces.map(|data| WriteChunkRequest { header: None, data }));
        Ok(self.client.clone().write_chunk(stream::iter(messages)).await?.into_inner())
    }

    async fn read(&self, request: ReadRequest) -> Result<Bytes, Status> {
        let mut answers = self.client.clone().read(request).await?.into_inner();
        let mut all = BytesMut::new();
        while let Some(answer) = answers.message().await? {
            assert!(answer.data.len() <= 1 << 20);
            all.extend_from_slice(&answer.data);
        }
        Ok(all.freeze())
    }

    async fn read_chunk(&self, id: u64, offset: u64, length: u64) -> Result<Bytes, Status> {
        self.read(ReadRequest { id, offset, length, ..Default::default() }).await
    }

    async fn stop(self) {
        self.env.tasks.shutdown().await.expect("nothing panics");
    }
}

fn data(bytes: usize) -> Bytes {
    (0..bytes).map(|i| (i * 31 + i / 253) as u8).collect::<Vec<u8>>().into()
}

fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> ErrorCode {
    RpcError::from(result.expect_err("refused")).code
}

// ----------------------------------------------------------------- start

#[tokio::test]
async fn it_follows_not_leader_registers_and_reports_everything_first() {
    let disk = SimDisk::new(1);
    let env = new_env(&disk);
    let leader = FakeController::start(&env, 8).await;
    let follower = FakeController::start(&env, 9).await;
    follower.script.lock().leader = Some(leader.address.clone());
    let server = ChunkServer::start(&env, config(vec![follower.address.clone()])).await.expect("starts");
    let listener = server.listen().await.expect("listens");
    let address = listener.local_address();
    let server_too = server.clone();
    env.tasks.spawn_to_end("server", async move { server_too.serve(listener).await.expect("serves") });
    let clock = env.clock.clone();
    let reported = async {
        while leader.script.lock().heartbeats.len() < 2 {
            clock.sleep(Duration::from_millis(2)).await;
        }
    };
    clock.timeout(PATIENCE, reported).await.expect("reports");
    {
        let script = leader.script.lock();
        assert_eq!(script.registrations[0].address, address);
        assert!(script.heartbeats[0].full && !script.heartbeats[1].full);
        assert_eq!(script.heartbeats[1].term_seen, 1);
        assert_eq!((server.server_id(), script.heartbeats[0].server_id), (8, 8));
    }
    env.tasks.shutdown().await.expect("nothing panics");
}

#[tokio::test]
async fn it_registers_again_when_the_controller_forgot_it() {
    let rig = Rig::start(4).await;
    rig.controller.script.lock().forgets = true;
    rig.until("registered again", || rig.controller.script.lock().registrations.len() > 1).await;
    rig.controller.script.lock().forgets = false;
    let seen = rig.controller.script.lock().heartbeats.len();
    rig.until("a full report", || rig.controller.script.lock().heartbeats[seen..].iter().any(|h| h.full)).await;
    let registrations = rig.controller.script.lock().registrations.clone();
    assert!(registrations.windows(2).all(|w| w[0].folder_identity == w[1].folder_identity));
    rig.stop().await;
}

#[tokio::test]
async fn a_folder_of_another_store_ends_the_server() {
    let disk = SimDisk::new(1);
    Rig::on(disk.clone(), 4, |_| {}).await.stop().await;
    let env = new_env(&disk);
    let other = FakeController::start(&env, 5).await;
    let server = ChunkServer::start(&env, config(vec![other.address.clone()])).await.expect("starts");
    assert_eq!(server.server_id(), 4, "remembered, so that it can answer before it registers");
    let error = env.clock.timeout(PATIENCE, server.run()).await.expect("ends").expect_err("refused");
    assert!(error.to_string().contains("server 5") && error.to_string().contains("says 4"), "{error}");
}

#[tokio::test]
async fn folders_in_use_of_other_roles_and_damaged_are_refused() {
    let disk = SimDisk::new(1);
    let env = new_env(&disk);
    let config = config(vec!["127.0.0.1:1".into()]);
    let first = ChunkServer::start(&env, config.clone()).await.expect("starts");
    let busy = ChunkServer::start(&env, config.clone()).await.expect_err("in use");
    assert!(busy.to_string().contains("in use"), "{busy}");
    drop(first);
    env.disk.replace(Path::new("/data/SERVER"), Bytes::from_static(b"server_id = x")).await.expect("writes");
    let damaged = ChunkServer::start(&env, config.clone()).await.expect_err("damaged");
    assert!(damaged.to_string().contains("/data/SERVER"), "{damaged}");
    let elsewhere = ChunkServerConfig { folder: "/other".into(), ..config };
    DataFolder::open(&env, &elsewhere.folder, "master").await.expect("another role");
    let role = ChunkServer::start(&env, elsewhere).await.expect_err("another role");
    assert!(role.to_string().contains("master"), "{role}");
}

// ---------------------------------------------------------------- chunks

#[tokio::test]
async fn chunks_are_written_and_read_in_ranges() {
    let rig = Rig::start(4).await;
    let bytes = data(3_000_000);
    let written = rig.write_chunk(1, &bytes).await.expect("writes");
    assert_eq!((written.server_id, written.crc), (4, crc32fast::hash(&bytes)));
    for (offset, length) in [(0, 3_000_000), (0, 0), (3_000_000, 0), (65_535, 2), (1 << 20, 1 << 20), (2_999_999, 1)] {
        let read = rig.read_chunk(1, offset, length).await.expect("reads");
        assert_eq!(read, bytes.slice(offset as usize..(offset + length) as usize));
    }
    for (offset, length) in [(0, 3_000_001), (3_000_001, 0), (u64::MAX, 1), (1, u64::MAX)] {
        let refused = code(rig.read_chunk(1, offset, length).await);
        assert!(matches!(refused, ErrorCode::FailedPrecondition | ErrorCode::InvalidArgument), "{refused:?}");
    }
    assert_eq!(code(rig.read_chunk(2, 0, 1).await), ErrorCode::NotFound);
    rig.until_reported("chunk 1", |h| h.chunks.iter().any(|c| c.chunk_id == 1 && c.bytes == 3_000_000)).await;
    rig.stop().await;
}

#[tokio::test]
async fn hostile_chunk_writes_are_refused_and_leave_nothing() {
    let rig = Rig::start(4).await;
    let header = |id, bytes, durability| {
        let header = WriteChunkHeader { chunk_id: id, bytes, durability };
        WriteChunkRequest { header: Some(header), data: Bytes::new() }
    };
    let body = |bytes| WriteChunkRequest { header: None, data: data(bytes) };
    let fsync = Durability::Fsync as i32;
    for messages in [
        vec![],
        vec![body(10)],
        vec![header(0, 10, fsync), body(10)],
        vec![header(1, 10, 0), body(10)],
        vec![header(1, 10, 99), body(10)],
        vec![header(1, u64::MAX, fsync)],
        vec![header(1, 10, fsync), body(9)],
        vec![header(1, 10, fsync), body(11)],
        vec![header(1, 10, fsync), body(5), header(1, 10, fsync), body(5)],
    ] {
        let result = rig.client.clone().write_chunk(stream::iter(messages)).await;
        assert_eq!(code(result), ErrorCode::InvalidArgument);
    }
    assert_eq!(code(rig.read_chunk(1, 0, 0).await), ErrorCode::NotFound);
    let temporaries = rig.disk.files().into_iter().filter(|(p, _)| p.extension().is_some_and(|e| e == "tmp")).count();
    assert_eq!(temporaries, 0);
    rig.write_chunk(1, &data(10)).await.expect("the id is free");
    rig.stop().await;
}

#[tokio::test]
async fn a_client_that_disappears_in_mid_write_leaves_nothing() {
    let rig = Rig::start(4).await;
    let header = WriteChunkHeader { chunk_id: 1, bytes: 100, durability: Durability::Fsync as i32 };
    let (send, receive) = mpsc::channel(4);
    send.send(WriteChunkRequest { header: Some(header), data: data(50) }).await.expect("open");
    let mut client = rig.client.clone();
    let call = async { client.write_chunk(ReceiverStream::new(receive)).await };
    rig.env.clock.timeout(Duration::from_millis(50), call).await.expect_err("it waits for more");
    drop(send);
    rig.until("the id is free again", || rig.server.core.chunks.writing().is_empty()).await;
    rig.write_chunk(1, &data(100)).await.expect("writes");
    rig.stop().await;
}
