//! Repair, deletion and change of leader, with real controllers and chunk servers in this process.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, missing_docs)] // tests poll with real time

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use tempfile::TempDir;
use uruk_base::commit_log::{CommitLogStore, LogId};
use uruk_base::{Env, Tasks};
use uruk_dfs_sim::chunkserver::{ChunkServer, ChunkServerConfig};
use uruk_dfs_sim::client::{DfsClient, DfsClientConfig};
use uruk_dfs_sim::controller::{Controller, ControllerConfig};
use uruk_dfs_sim::format::replica_file;
use uruk_proto::dfs::HealthResponse;

const PATIENCE: Duration = Duration::from_secs(30);

/// A process that can be killed: its tasks, and what it listens on.
struct Process {
    env: Env,
    controller: Option<Controller>,
}

struct Store {
    folder: TempDir,
    members: BTreeMap<u64, String>,
    controllers: BTreeMap<u64, Process>,
    servers: BTreeMap<u64, Process>,
    client: DfsClient,
}

impl Store {
    async fn start(controllers: u64, servers: u64) -> Store {
        let members = (1..=controllers).map(|n| (n, free_address())).collect::<BTreeMap<_, _>>();
        let client = DfsClientConfig::new(members.values().cloned().collect());
        let mut store = Store {
            folder: tempfile::tempdir().unwrap(),
            members,
            controllers: BTreeMap::new(),
            servers: BTreeMap::new(),
            client: DfsClient::new(&Env::real(), client).unwrap(),
        };
        for n in 1..=controllers {
            store.start_controller(n).await;
        }
        for n in 1..=servers {
            store.start_server(n).await;
        }
        store.until("all servers live", |h| h.servers.iter().filter(|s| s.live).count() as u64 == servers).await;
        store
    }

    async fn start_controller(&mut self, n: u64) {
        let env = Env::real().with_tasks(Tasks::new());
        let listen = self.members[&n].clone();
        let config = ControllerConfig {
            node: n,
            members: self.members.clone(),
            heartbeat: Duration::from_millis(50),
            silent_after: Duration::from_millis(500),
            repair_grace: Duration::from_millis(1_500),
            repair_tick: Duration::from_millis(50),
            ..ControllerConfig::new(self.folder.path().join(format!("controller-{n}")), listen.clone())
        };
        let controller = Controller::run(&env, config).await.expect("the controller starts");
        self.controllers.insert(n, Process { env, controller: Some(controller) });
    }

    async fn start_server(&mut self, n: u64) {
        let env = Env::real().with_tasks(Tasks::new());
        let config = ChunkServerConfig {
            folder: self.server_folder(n),
            listen: "127.0.0.1:0".into(),
            controllers: self.members.values().cloned().collect(),
            disk_reserve_bytes: 1 << 20,
            scrub_pause_ms: 100,
            ..ChunkServerConfig::default()
        };
        let server = ChunkServer::start(&env, config).await.expect("the chunk server starts");
        let listener = server.listen().await.expect("it listens");
        env.tasks.spawn_to_end("chunk server", async move { server.serve(listener).await.expect("it serves") });
        self.servers.insert(n, Process { env, controller: None });
    }

    fn server_folder(&self, n: u64) -> PathBuf {
        self.folder.path().join(format!("chunks-{n}"))
    }

    async fn stop_server(&mut self, n: u64) {
        self.servers.remove(&n).expect("it runs").stop().await;
    }

    async fn until(&self, what: &str, holds: impl Fn(&HealthResponse) -> bool) {
        let start = std::time::Instant::now();
        loop {
            let health = self.client.health().await;
            if health.as_ref().is_ok_and(&holds) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}: {health:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Every piece has all of its copies, reported by servers that live.
    async fn until_whole(&self, pieces: u64) {
        self.until("everything has three copies", |health| {
            let copies: u64 = health.servers.iter().filter(|s| s.live).map(|s| s.chunks + s.segments).sum();
            health.under_replicated == 0 && health.copies_in_flight == 0 && copies >= 3 * pieces
        })
        .await;
    }

    async fn put_files(&self, count: u64) {
        for n in 0..count {
            self.client.object_store().put(&Path::from(format!("file/{n}")), content(n).into()).await.unwrap();
        }
    }

    async fn check_files(&self, count: u64) {
        for n in 0..count {
            let file = self.client.object_store().get(&Path::from(format!("file/{n}"))).await.unwrap();
            assert_eq!(file.bytes().await.unwrap(), content(n), "file/{n}");
        }
    }

    /// A sealed log of ten records.
    async fn write_log(&self, id: LogId) {
        let writer = self.client.commit_logs().create(id).await.unwrap();
        for n in 0..10 {
            writer.append(content(n)).await.unwrap();
        }
        writer.close().await.unwrap();
    }

    async fn check_log(&self, id: LogId) {
        let logs = self.client.commit_logs();
        let log = logs.seal(id).await.unwrap();
        let records: Vec<_> = logs.read(&log, log.segments[0].start..log.end).try_collect().await.unwrap();
        let payloads: Vec<Bytes> = records.into_iter().map(|r| r.payload).collect();
        assert_eq!(payloads, (0..10).map(content).collect::<Vec<_>>());
    }

    /// Data files of a server, by name.
    fn files_of(&self, server: u64, suffix: &str) -> BTreeMap<String, Vec<u8>> {
        let folders = ["chunks", "segments"].map(|folder| self.server_folder(server).join(folder));
        let entries =
            folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().path());
        let data = entries.filter(|path| path.extension().is_some_and(|e| e == suffix));
        data.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(path).unwrap()))
            .collect()
    }
}

impl Process {
    async fn stop(self) {
        if let Some(controller) = &self.controller {
            controller.shutdown().await;
        }
        self.env.tasks.shutdown().await.unwrap();
    }
}

fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn content(n: u64) -> Bytes {
    vec![n as u8 + 1; 100_000 + n as usize].into()
}

async fn eventually<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let start = std::time::Instant::now();
    while !holds().await {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_a_lost_server_held_is_copied_and_survives_the_loss_of_two_more() {
    let mut store = Store::start(1, 5).await;
    store.put_files(10).await;
    store.write_log(LogId(1)).await;
    store.until_whole(11).await;
    for lost in [1, 2] {
        store.stop_server(lost).await;
        let live = 5 - lost;
        store.until("the server is gone", |h| h.servers.iter().filter(|s| s.live).count() as u64 == live).await;
        tokio::time::sleep(Duration::from_millis(1_500)).await; // the grace
        store.until_whole(11).await;
    }
    store.stop_server(3).await;
    store.check_files(10).await;
    store.check_log(LogId(1)).await;
}

#[tokio::test]
async fn a_flipped_bit_is_repaired_from_another_server() {
    let mut store = Store::start(1, 3).await;
    store.put_files(1).await;
    store.write_log(LogId(1)).await;
    store.until_whole(2).await;
    store.stop_server(2).await;
    let healthy = [store.files_of(1, "chunk"), store.files_of(1, "log")];
    for (folder, suffix) in [("chunks", "chunk"), ("segments", "log")] {
        for (name, mut bytes) in store.files_of(2, suffix) {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
            std::fs::write(store.server_folder(2).join(folder).join(name), bytes).unwrap();
        }
    }
    store.start_server(2).await;
    store.until("both are repaired", |h| h.damaged_found == 2 && h.repaired == 2 && h.under_replicated == 0).await;
    for (suffix, healthy) in ["chunk", "log"].into_iter().zip(healthy) {
        let repaired = store.files_of(2, suffix);
        assert!(repaired.keys().eq(healthy.keys()));
        for (name, bytes) in &repaired {
            // A replica's first page is its own.
            let skipped = if suffix == "log" { replica_file::DATA_OFFSET as usize } else { 0 };
            let differs = bytes[skipped..].iter().zip(&healthy[name][skipped..]).position(|(a, b)| a != b);
            assert_eq!((bytes.len(), differs), (healthy[name].len(), None), "{name}");
        }
    }
    store.check_files(1).await;
    store.check_log(LogId(1)).await;
}

#[tokio::test]
async fn deleted_files_and_logs_leave_no_bytes_behind() {
    let store = Store::start(1, 3).await;
    store.put_files(5).await;
    store.write_log(LogId(1)).await;
    for n in 0..4 {
        store.client.object_store().delete(&Path::from(format!("file/{n}"))).await.unwrap();
    }
    store.client.commit_logs().delete(LogId(1)).await.unwrap();
    eventually("only one file's chunk is left", || async {
        (1..=3).all(|n| store.files_of(n, "chunk").len() == 1 && store.files_of(n, "log").is_empty())
    })
    .await;
    let file = store.client.object_store().get(&Path::from("file/4")).await.unwrap();
    assert_eq!(file.bytes().await.unwrap(), content(4));
}

#[tokio::test]
async fn two_of_three_controllers_go_on_without_the_leader() {
    let mut store = Store::start(3, 3).await;
    store.put_files(3).await;
    store.write_log(LogId(1)).await;
    let leader = store.controllers.values().find_map(|process| {
        let leadership = process.controller.as_ref().expect("a controller").consensus().leadership();
        let leader = leadership.borrow().leader.clone();
        leader.map(|l| l.node)
    });
    let leader = leader.expect("somebody led a moment ago");
    store.controllers.remove(&leader).expect("it runs").stop().await;
    store.check_files(3).await;
    store.check_log(LogId(1)).await;
    store.put_files(5).await;
    store.write_log(LogId(2)).await;
    store.until_whole(7).await;
    store.start_controller(leader).await;
    let next = store.controllers.keys().copied().find(|n| *n != leader).expect("two others");
    store.controllers.remove(&next).expect("it runs").stop().await;
    store.check_files(5).await;
    store.check_log(LogId(2)).await;
}
