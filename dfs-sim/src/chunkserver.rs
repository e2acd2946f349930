//! A chunk server: chunks (immutable pieces of files) and segments (pieces of commit logs) of one
//! folder, behind one gRPC service.
//!
//! | part | does |
//! |---|---|
//! | `service` | turns RPCs into calls, and streams |
//! | `chunk_store` | writes, maps, deletes chunks |
//! | `segment_store`, `replica` | one fenced, ordered, checksummed file per segment |
//! | `graves` | remembers deleted segments |
//! | `heartbeat`, `orders`, `copying` | registers, reports, and does what the controller's leader says |
//! | `scrub` | reads everything again and again, slowly |
//! | `host` | room on the disk, changes to report, the switch that ends the process |
//!
//! What the process owes the others: it acknowledges nothing that a restart would not find again,
//! names file and offset of whatever fails its checksum, and ends when a sync fails.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tonic::service::Routes;
use uruk_base::data_folder::DataFolder;
use uruk_base::transport::Listener;
use uruk_base::{Env, rpc};
use uruk_proto::dfs::chunk_server_server::ChunkServerServer;

use self::chunk_store::ChunkStore;
use self::error::StoreError;
use self::host::Host;
use self::map_cache::MapCache;
use self::segment_store::SegmentStore;
use self::service::Service;

mod block_reader;
mod chunk_store;
mod config;
mod copying;
mod error;
mod graves;
mod heartbeat;
mod host;
mod map_cache;
mod orders;
mod replica;
mod scrub;
mod segment_store;
mod service;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use config::ChunkServerConfig;
pub use error::{RunError, StartError};

/// Role of the data folder.
pub const ROLE: &str = "chunkserver";
/// Holds the id that the controller gave to this folder.
const SERVER_FILE: &str = "SERVER";
/// Free room is asked for this often.
const SPACE_INTERVAL: Duration = Duration::from_secs(1);

/// A chunk server whose folder is open and scanned. Clones mean the same one.
#[derive(Clone, Debug)]
pub struct ChunkServer {
    core: Arc<Core>,
}

/// What the parts of a running server share.
#[derive(Debug)]
struct Core {
    host: Arc<Host>,
    chunks: Arc<ChunkStore>,
    segments: Arc<SegmentStore>,
    channels: rpc::Channels,
    folder: DataFolder,
    /// Names this process among those that used the folder.
    incarnation: u64,
    /// Given by the controller for the folder; 0 until the first registration ever.
    server_id: AtomicU64,
}

impl Core {
    fn server_id(&self) -> u64 {
        self.server_id.load(Ordering::Relaxed)
    }

    fn server_file(&self) -> PathBuf {
        self.host.folder(SERVER_FILE)
    }

    /// Binds the folder to the id; another one than before is refused.
    async fn adopt_server_id(&self, id: u64) -> Result<(), StoreError> {
        match self.server_id() {
            known if known == id => return Ok(()),
            0 => {}
            known => {
                let what = format!("the controller calls this folder server {id}, its {SERVER_FILE} file says {known}");
                self.host.fail(what.clone());
                return Err(StoreError::State(what));
            }
        }
        let path = self.server_file();
        let text = Bytes::from(format!("server_id = {id}\n"));
        self.host.env.disk.replace(&path, text).await.map_err(StoreError::io(&path))?;
        self.server_id.store(id, Ordering::Relaxed);
        Ok(())
    }
}

impl ChunkServer {
    /// Opens the folder, finds out what it holds, and starts nothing yet.
    pub async fn start(env: &Env, config: ChunkServerConfig) -> Result<ChunkServer, StartError> {
        config.validate()?;
        let env = env.with_tasks(env.tasks.child());
        let folder = DataFolder::open(&env, &config.folder, ROLE).await?;
        let maps = Arc::new(MapCache::new(config.maps_max));
        let host = Arc::new(Host::new(&env, config));
        let path = host.config.folder.clone();
        let scan = |error: StoreError| StartError::Io { path: path.clone(), error: std::io::Error::other(error) };
        let server_id = read_server_id(&host).await?;
        host.space.refresh(&host).await;
        let chunks = ChunkStore::open(host.clone(), maps.clone()).await.map_err(scan)?;
        let segments = SegmentStore::open(host.clone(), maps).await.map_err(scan)?;
        let core = Core {
            chunks: Arc::new(chunks),
            segments: Arc::new(segments),
            channels: rpc::Channels::new(env.transport.clone()),
            folder,
            incarnation: env.random.u64(),
            server_id: AtomicU64::new(server_id),
            host,
        };
        Ok(ChunkServer { core: Arc::new(core) })
    }

    /// The gRPC service, for a server that [`ChunkServer::run`] does not make.
    pub fn service(&self) -> ChunkServerServer<impl uruk_proto::dfs::chunk_server_server::ChunkServer> {
        ChunkServerServer::new(Service::new(self.core.clone()))
            .max_decoding_message_size(rpc::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(rpc::MESSAGE_BYTES_MAX)
    }

    /// Id given by the controller; 0 before the first registration ever.
    pub fn server_id(&self) -> u64 {
        self.core.server_id()
    }

    /// Listens as configured, then [`ChunkServer::serve`].
    pub async fn run(&self) -> Result<(), RunError> {
        let listener = self.listen().await?;
        self.serve(listener).await
    }

    /// Opens the configured address.
    pub async fn listen(&self) -> Result<Arc<dyn Listener>, RunError> {
        Ok(self.core.host.env.transport.listen(&self.core.host.config.listen).await?)
    }

    /// Registers, reports, scrubs and serves until the environment's tasks shut down, or something
    /// happens after which the process must end.
    pub async fn serve(&self, listener: Arc<dyn Listener>) -> Result<(), RunError> {
        let (core, env) = (&self.core, &self.core.host.env);
        let advertise = match core.host.config.advertise.as_str() {
            "" => listener.local_address(),
            address => address.to_owned(),
        };
        tracing::info!(address = advertise, "chunk server is up");
        env.tasks.spawn("chunkserver heartbeat", heartbeat::run(core.clone(), advertise));
        env.tasks.spawn("chunkserver scrub", scrub::run(core.clone()));
        env.tasks.spawn("chunkserver space", watch_space(core.host.clone()));
        let routes = Routes::new(self.service());
        let result = tokio::select! {
            biased;
            reason = core.host.failed() => Err(RunError::Failed(reason)),
            served = rpc::serve(env, listener, routes, &env.tasks) => served.map_err(RunError::Serve),
        };
        match env.tasks.shutdown().await {
            Ok(()) => result,
            Err(panicked) => result.and(Err(RunError::Failed(panicked.to_string()))),
        }
    }
}

async fn watch_space(host: Arc<Host>) {
    loop {
        host.env.clock.sleep(SPACE_INTERVAL).await;
        host.space.refresh(&host).await;
    }
}

async fn read_server_id(host: &Host) -> Result<u64, StartError> {
    let path = host.folder(SERVER_FILE);
    let damaged = || std::io::Error::other("not \"server_id = <number>\"");
    let read = async {
        if !host.env.disk.exists(&path).await? {
            return Ok(0);
        }
        let text = host.env.disk.read(&path).await?;
        let text = std::str::from_utf8(&text).map_err(|_| damaged())?;
        text.trim().strip_prefix("server_id = ").and_then(|id| id.parse().ok()).ok_or_else(damaged)
    };
    read.await.map_err(|error| StartError::Io { path: path.clone(), error })
}
