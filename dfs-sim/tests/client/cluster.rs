//! One controller and some chunk servers in this process.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use tempfile::TempDir;
use uruk_base::clock::ClockSource;
use uruk_base::commit_log::{CommitLogStore, LogRecord, LogWriter, Lsn, SealedLog};
use uruk_base::{Clock, Env, Moment, Tasks};
use uruk_dfs_sim::chunkserver::{ChunkServer, ChunkServerConfig};
use uruk_dfs_sim::client::{DfsClient, DfsClientConfig, DfsCommitLogs};
use uruk_dfs_sim::controller::{Controller, ControllerConfig};

use super::network::{Mode, Network};

/// Longest wait for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Cluster {
    folder: TempDir,
    pub network: Network,
    controller: Option<Env>,
    pub controller_address: String,
    controller_running: Option<Controller>,
    pub servers: Vec<Server>,
    client_env: Env,
}

pub struct Server {
    pub address: String,
    env: Option<Env>,
}

impl Cluster {
    /// A controller and `servers` chunk servers, all of which it knows.
    pub async fn start(servers: usize) -> Cluster {
        let network = Network::default();
        let client_env = Env { transport: Arc::new(network.clone()), ..Env::real() };
        let mut cluster = Cluster {
            folder: tempfile::tempdir().unwrap(),
            network,
            controller: None,
            controller_address: "127.0.0.1:0".into(),
            controller_running: None,
            servers: Vec::new(),
            client_env,
        };
        cluster.start_controller().await;
        for _ in 0..servers {
            cluster.add_server().await;
        }
        cluster.wait_for_live(servers).await;
        cluster
    }

    pub async fn start_controller(&mut self) {
        let env = Env::real().with_tasks(Tasks::new());
        let config = ControllerConfig {
            heartbeat: Duration::from_millis(100),
            silent_after: Duration::from_millis(1_000),
            repair_tick: Duration::from_millis(100),
            ..ControllerConfig::new(self.folder.path().join("controller"), self.controller_address.clone())
        };
        // Connections of a former life let go of the folder a moment after its shutdown.
        let controller = until_free(|| Controller::run(&env, config.clone())).await;
        self.controller_address = controller.address().to_owned();
        self.controller_running = Some(controller);
        self.controller = Some(env);
    }

    pub async fn stop_controller(&mut self) {
        if let Some(controller) = self.controller_running.take() {
            controller.shutdown().await;
        }
        self.controller.take().expect("the controller runs").tasks.shutdown().await.unwrap();
    }

    pub async fn start_server(&mut self, index: usize) {
        self.start_server_with(index, 1 << 20).await;
    }

    /// Its disk takes nothing more: all that is free is kept in reserve.
    pub async fn restart_server_full(&mut self, index: usize) {
        self.stop_server(index).await;
        self.start_server_with(index, u64::MAX / 2).await;
    }

    async fn start_server_with(&mut self, index: usize, disk_reserve_bytes: u64) {
        let env = Env::real().with_tasks(Tasks::new());
        let config = ChunkServerConfig {
            folder: self.folder.path().join(format!("chunks-{index}")),
            listen: self.servers[index].address.clone(),
            controllers: vec![self.controller_address.clone()],
            disk_reserve_bytes,
            ..ChunkServerConfig::default()
        };
        let address = run_chunk_server(&env, config).await;
        self.servers[index] = Server { address, env: Some(env) };
    }

    /// One more, with a folder of its own.
    pub async fn add_server(&mut self) {
        self.servers.push(Server { address: "127.0.0.1:0".into(), env: None });
        self.start_server(self.servers.len() - 1).await;
    }

    /// Ends a chunk server as a killed process ends: what `write` took stays in the page cache.
    pub async fn stop_server(&mut self, index: usize) {
        let env = self.servers[index].env.take().expect("the server runs");
        env.tasks.shutdown().await.unwrap();
    }

    pub async fn restart_server(&mut self, index: usize) {
        self.stop_server(index).await;
        self.start_server(index).await;
    }

    /// Deletes all chunks of a server that is stopped, as a loss of power does to what was not synced.
    pub fn lose_chunks(&self, index: usize) {
        let folder = self.folder.path().join(format!("chunks-{index}/chunks"));
        for entry in std::fs::read_dir(folder).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
    }

    /// Flips one bit near the end of every commit-log replica of a server that is stopped.
    pub fn damage_logs(&self, index: usize) {
        let folder = self.folder.path().join(format!("chunks-{index}/segments"));
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "log") {
                let mut bytes = std::fs::read(&path).unwrap();
                // Room that is reserved follows the content.
                let at = bytes.iter().rposition(|byte| *byte != 0).unwrap() - 100;
                bytes[at] ^= 1;
                std::fs::write(&path, bytes).unwrap();
            }
        }
    }

    pub fn set(&self, index: usize, mode: Mode) {
        self.network.set(&self.servers[index].address, mode);
    }

    /// Until the controller counts exactly this many servers as alive.
    pub async fn wait_for_live(&self, servers: usize) {
        let client = self.client();
        eventually("the controller knows which servers live", || async {
            let health = client.health().await.unwrap();
            health.servers.iter().filter(|s| s.live).count() == servers
        })
        .await;
    }

    pub fn config(&self) -> DfsClientConfig {
        DfsClientConfig::new(vec![self.controller_address.clone()])
    }

    pub fn client(&self) -> DfsClient {
        self.client_with(|_| {})
    }

    pub fn client_with(&self, change: impl FnOnce(&mut DfsClientConfig)) -> DfsClient {
        let mut config = self.config();
        change(&mut config);
        DfsClient::new(&self.client_env, config).unwrap()
    }

    /// For whom no time passes: what it waits for in time never comes.
    pub fn client_without_time(&self) -> DfsClient {
        let clock = Clock::from_source(Arc::new(StandingClock));
        DfsClient::new(&Env { clock, ..self.client_env.clone() }, self.config()).unwrap()
    }

    /// How often this cluster's clients went on with another replica.
    pub fn read_failovers(&self) -> u64 {
        let text = self.client_env.metrics.encode();
        let lines = text.lines().filter_map(|line| line.strip_prefix("uruk_dfs_sim_client_read_failovers_total "));
        lines.map(|count| count.trim().parse::<u64>().unwrap()).sum()
    }

    pub fn logs(&self) -> DfsCommitLogs {
        self.client().commit_logs()
    }
}

#[derive(Debug)]
struct StandingClock;

impl ClockSource for StandingClock {
    fn now(&self) -> Moment {
        Moment::default()
    }

    fn wall_micros(&self) -> i64 {
        0
    }

    fn sleep(&self, _: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::pending())
    }
}

/// Runs until the environment's tasks shut down; its address.
async fn run_chunk_server(env: &Env, config: ChunkServerConfig) -> String {
    let server = until_free(|| ChunkServer::start(env, config.clone())).await;
    let listener = server.listen().await.expect("the chunk server listens");
    let address = listener.local_address();
    env.tasks.spawn_to_end("chunk server", async move { server.serve(listener).await.expect("it serves") });
    address
}

async fn until_free<T, E: std::fmt::Display, F: Future<Output = Result<T, E>>>(mut start: impl FnMut() -> F) -> T {
    let began = std::time::Instant::now();
    loop {
        match start().await {
            Ok(started) => return started,
            Err(error) => assert!(began.elapsed() < PATIENCE, "cannot start: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for a condition that must come true.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let start = std::time::Instant::now();
    while !holds().await {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A payload that names itself.
pub fn payload(number: u64, bytes: usize) -> Bytes {
    let mut payload = number.to_le_bytes().to_vec();
    payload.resize(bytes.max(8), number as u8);
    payload.into()
}

/// The number in a payload.
pub fn number(record: &LogRecord) -> u64 {
    u64::from_le_bytes(record.payload[..8].try_into().unwrap())
}

/// Appends payloads with these numbers; their positions.
pub async fn append(writer: &dyn LogWriter, numbers: std::ops::Range<u64>, bytes: usize) -> Vec<Lsn> {
    let mut ends = Vec::new();
    for n in numbers {
        ends.push(writer.append(payload(n, bytes)).await.unwrap());
    }
    ends
}

/// All records of a sealed log.
pub async fn read_all(logs: &DfsCommitLogs, log: &SealedLog) -> Vec<LogRecord> {
    let start = log.segments.first().map_or(log.end, |s| s.start);
    logs.read(log, start..log.end).try_collect().await.unwrap()
}

/// The numbers of all records, after checking that positions are continuous and payloads whole.
pub async fn numbers(logs: &DfsCommitLogs, log: &SealedLog) -> Vec<u64> {
    let records = read_all(logs, log).await;
    let mut position = log.segments.first().map_or(log.end, |s| s.start);
    for record in &records {
        assert_eq!(record.end.0, position.0 + 12 + record.payload.len() as u64, "after {position}");
        assert_eq!(record.payload, payload(number(record), record.payload.len()));
        position = record.end;
    }
    assert_eq!(position, log.end);
    records.iter().map(number).collect()
}
