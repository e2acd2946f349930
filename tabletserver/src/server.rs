//! The tablet server process: serves tablets for as long as its lease holds.
//!
//! | part | holds |
//! |---|---|
//! | [`incarnation`], `lease`, `renewal` | when anything may be served at all |
//! | [`record`], `commit_log`, `latch`, `write` | durable first, visible second, acknowledged last |
//! | [`memory`] | calls done and the highest timestamp: what makes a repeated call harmless |
//! | `read` | scans and point reads |
//! | `tablet`, `tablets`, `open`, `freeze`, `close`, `stop` | a tablet's life here |
//! | `procedure`, `split`, `merge` | tablets that replace others |
//! | `schemas` | by which schema tablets go |
//! | `load`, `samples`, `machine` | what load reports say |
//! | `budget`, `flush`, `compact`, `commit_files` | memory and log stay bounded; files are committed |
//! | `jobs` | flushes and compactions that run and wait, for the report |
//! | `sort`, [`recovery_file`], `replay` | recovery of a dead server's log |
//! | `service`, `masters`, `pins` | RPC in and out; which files are still read |
//! | [`parent`] | the watching parent process |
//! | [`inspect`], [`decode`] | its files for people; the decoders for those who try to break them |
//! | `observe` | what simulation sees of it |
//!
//! The storage fences, the master decides; what this server checks by itself is advice, except for
//! its lease, which protects reads.

mod budget;
mod close;
mod commit_files;
mod commit_log;
mod compact;
mod config;
pub mod decode;
mod flush;
mod freeze;
mod idle;
pub mod incarnation;
pub mod inspect;
mod jobs;
mod latch;
mod lease;
mod load;
mod machine;
mod masters;
pub mod memory;
mod merge;
mod observe;
mod open;
pub mod parent;
mod pins;
mod procedure;
mod read;
mod read_modify_write;
pub mod record;
pub mod recovery_file;
mod renewal;
mod replay;
mod samples;
mod schemas;
mod service;
mod sort;
mod split;
mod stop;
mod tablet;
mod tablets;
mod write;
mod write_parse;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use object_store::ObjectStore;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, watch};
use uruk_base::commit_log::{CommitLogStore, LogError, LogWriter, Lsn};
use uruk_base::{Env, Moment, Tasks, rpc};
use uruk_proto::master::{RegisterRequest, RegisterResponse};
use uruk_proto::{RpcError, ServerId};

use crate::engine::EngineContext;
use budget::Budget;
use commit_log::{CommitLog, CommitLogLimits};
use idle::IdleWatch;
use incarnation::Incarnation;
use jobs::Jobs;
use latch::Latches;
use lease::Lease;
use load::ServerMetrics;
use masters::Masters;
use pins::Pins;
use schemas::Schemas;
use stop::Stop;
use tablet::Tablet;
use tablets::Tablets;

pub use config::{ConfigError, TabletServerConfig};
pub use incarnation::Ended;
pub use observe::ServedTablet;

/// Where a tablet server keeps things.
#[derive(Clone, Debug)]
pub struct Storage {
    /// SSTables and memory files.
    pub objects: Arc<dyn ObjectStore>,
    /// Sorted recovery files: needed for a short time, and made anew when lost.
    pub recovery_objects: Arc<dyn ObjectStore>,
    /// Commit logs.
    pub logs: Arc<dyn CommitLogStore>,
}

/// Why a tablet server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its address cannot be listened on.
    #[error("{0}")]
    Listen(io::Error),
    /// The master refuses it.
    #[error("the master refuses the registration: {0}")]
    Refused(RpcError),
    /// Its log cannot be made.
    #[error("cannot create the commit log: {0}")]
    Log(#[from] LogError),
}

/// Everything that requests and tasks share.
#[derive(Debug)]
pub(crate) struct Server {
    env: Env,
    /// Ended with the incarnation.
    tasks: Tasks,
    config: TabletServerConfig,
    incarnation: Arc<Incarnation>,
    masters: Masters,
    storage: Storage,
    engine: Arc<EngineContext>,
    log: Arc<CommitLog>,
    /// How far the log's store was asked to trim; held while it is asked.
    log_trimmed: tokio::sync::Mutex<Lsn>,
    latches: Latches,
    budget: Budget,
    jobs: Jobs,
    idle: Mutex<IdleWatch>,
    tablets: Tablets,
    pins: Pins,
    stop: Stop,
    schemas: Schemas,
    /// Loaded, and not reported yet.
    opened: Mutex<Vec<Arc<Tablet>>>,
    wake_opened: Notify,
    /// When the last tablet was opened.
    last_opened: Mutex<Moment>,
    wake_compactor: Notify,
    /// Numbers the commits of files.
    next_command: AtomicU64,
    next_file: AtomicU64,
    open_slots: Semaphore,
    close_slots: Semaphore,
    replay_slots: Semaphore,
    sort_slots: Semaphore,
    read_slots: Arc<Semaphore>,
    /// For requests that wait until a tablet is given away.
    pause_slots: Semaphore,
    metrics: ServerMetrics,
    totals: load::Totals,
}

/// A running tablet server: one incarnation.
#[derive(Debug)]
pub struct TabletServer {
    server: Arc<Server>,
    address: String,
}

impl TabletServer {
    /// Listens, registers (for as long as that takes), creates its log, and begins to renew its lease.
    pub async fn start(env: &Env, config: TabletServerConfig, storage: Storage) -> Result<TabletServer, StartError> {
        config.validate()?;
        let tasks = env.tasks.child();
        let listener = env.transport.listen(&config.listen).await.map_err(StartError::Listen)?;
        let address = if config.advertise.is_empty() { listener.local_address() } else { config.advertise.clone() };
        let (ready, receiver) = watch::channel(None);
        let routes = service::Service(receiver).routes(&tasks);
        let (serve_env, serve_tasks) = (env.clone(), tasks.clone());
        tasks.spawn_to_end("serve", async move {
            if let Err(error) = rpc::serve(&serve_env, listener, routes, &serve_tasks).await {
                tracing::error!(%error, "cannot serve any more");
                serve_tasks.cancel();
            }
        });
        match begin(env, &tasks, config, storage, &address).await {
            Ok(server) => {
                ready.send_replace(Some(server.clone()));
                // Kept alive with the server: requests look at it.
                tasks.spawn("hold service", async move {
                    let _ready = ready;
                    std::future::pending().await
                });
                Ok(TabletServer { server, address })
            }
            Err(error) => {
                tasks.cancel();
                Err(error)
            }
        }
    }

    /// Where it is reached.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The incarnation's id.
    pub fn server_id(&self) -> ServerId {
        self.server.incarnation.server_id
    }

    /// Completes when the incarnation is over; nothing is served any more then, and all tasks ended.
    pub async fn wait(&self) -> Ended {
        let reason = tokio::select! {
            biased;
            reason = self.server.incarnation.ended() => reason,
            // A task panicked, or the process shuts down.
            () = self.server.tasks.cancelled() => Ended::Shutdown,
        };
        match self.finish().await {
            Ok(()) => reason,
            Err(panicked) => Ended::Panicked(panicked.0),
        }
    }

    /// A planned end: flushes and releases what it serves, so that nobody has to recover it, for as long as
    /// [`TabletServerConfig::stop_ms_max`]; then ends the incarnation.
    pub async fn stop(&self) -> Result<(), uruk_base::task::TaskPanicked> {
        let server = &self.server;
        let given_up = server.env.clock.timeout(server.config.stop_limit(), server.give_up_tablets());
        tokio::select! {
            biased;
            _ = server.incarnation.ended() => {}
            // A task panicked, or the process shuts down.
            () = server.tasks.cancelled() => {}
            given_up = given_up => if given_up.is_err() {
                tracing::warn!("ending before all tablets are released; their log will be recovered");
            },
        }
        self.shutdown().await
    }

    /// Ends the incarnation at once. What is unflushed stays in the log, which the master has sorted for the
    /// next owners once it learns of the end.
    pub async fn shutdown(&self) -> Result<(), uruk_base::task::TaskPanicked> {
        self.server.incarnation.end(Ended::Shutdown);
        self.finish().await
    }

    async fn finish(&self) -> Result<(), uruk_base::task::TaskPanicked> {
        let joined = self.server.tasks.shutdown().await;
        self.server.log.abandon();
        joined
    }
}

impl Drop for TabletServer {
    fn drop(&mut self) {
        self.server.incarnation.end(Ended::Shutdown);
    }
}

async fn begin(
    env: &Env,
    tasks: &Tasks,
    config: TabletServerConfig,
    storage: Storage,
    address: &str,
) -> Result<Arc<Server>, StartError> {
    let masters = Masters::new(env, &config.masters, Duration::from_millis(config.master_call_ms));
    let registered = register(&config, &masters, address).await?;
    let server_id = ServerId(registered.server_id);
    let lease_duration = Duration::from_millis(u64::from(registered.lease_ms));
    let renewal = Duration::from_millis(u64::from(registered.renewal_ms));
    let lease = Lease::new(lease_duration);
    let incarnation = Arc::new(Incarnation::new(server_id, lease, env.clock.clone(), tasks.clone()));
    let writer = storage.logs.create(incarnation.log_id()).await?;
    tracing::info!(server = %server_id, %address, lease = ?lease_duration, "registered");
    let limits = CommitLogLimits {
        queue_bytes_max: config.log_queue_bytes_max,
        frame_bytes: config.frame_bytes,
        frames_in_flight_max: config.frames_in_flight_max,
        small_frames_in_flight_max: config.small_frames_in_flight_max,
        // A full frame is large.
        large_frame_bytes: config.large_frame_bytes.min(config.frame_bytes),
        retry_ms: config.overload_retry_ms,
    };
    let log = CommitLog::new(limits, &env.metrics);
    let engine_env = env.with_tasks(tasks.clone());
    let engine = EngineContext::new(engine_env, storage.objects.clone(), config.engine.clone())
        .map_err(|error| StartError::Config(ConfigError::Engine(error)))?;
    let server = Arc::new(Server {
        env: env.clone(),
        tasks: tasks.clone(),
        incarnation,
        masters,
        storage,
        engine,
        log_trimmed: tokio::sync::Mutex::new(Lsn::default()),
        latches: Latches::new(),
        budget: Budget::new(&config, log.clone(), &env.metrics),
        jobs: Jobs::new(&env.metrics),
        idle: Mutex::default(),
        log,
        tablets: Tablets::default(),
        pins: Pins::default(),
        stop: Stop::new(),
        schemas: Schemas::default(),
        opened: Mutex::default(),
        wake_opened: Notify::new(),
        last_opened: Mutex::new(env.clock.now()),
        wake_compactor: Notify::new(),
        next_command: AtomicU64::new(1),
        next_file: AtomicU64::new(1),
        open_slots: Semaphore::new(config.opens_max),
        close_slots: Semaphore::new(config.closes_max),
        replay_slots: Semaphore::new(config.replays_max),
        sort_slots: Semaphore::new(config.sorts_max),
        read_slots: Arc::new(Semaphore::new(config.reads_max)),
        pause_slots: Semaphore::new(write::PAUSED_MAX),
        metrics: ServerMetrics::new(&env.metrics),
        totals: load::Totals::new(config.process_metrics),
        config,
    });
    spawn_tasks(&server, writer, lease_duration, renewal);
    Ok(server)
}

async fn register(
    config: &TabletServerConfig,
    masters: &Masters,
    address: &str,
) -> Result<RegisterResponse, StartError> {
    let request = RegisterRequest {
        nonce: config.nonce,
        address: address.to_owned(),
        zone: config.zone.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: config.pid,
        parent_pid: config.parent_pid,
    };
    let call = |mut master: masters::Client| {
        let request = request.clone();
        async move { master.register(request).await }
    };
    masters.call("register", call).await.result.map_err(StartError::Refused)
}

fn spawn_tasks(server: &Arc<Server>, writer: Box<dyn LogWriter>, lease: Duration, renewal: Duration) {
    let tasks = &server.tasks;
    let log_server = server.clone();
    tasks.spawn("commit log", async move {
        let budget = &log_server.budget;
        let error = log_server.log.run(writer.as_ref(), |bytes| budget.applied(bytes)).await;
        log_server.incarnation.end(Ended::LogFailed(error));
    });
    tasks.spawn("renew lease", renewal::run(server.clone(), lease, renewal));
    tasks.spawn("report opened tablets", open::report_opened(server.clone()));
    tasks.spawn("flush", flush::run(server.clone()));
    tasks.spawn("compact", compact::run(server.clone()));
}
