//! The handle that everything of the client hangs on.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tonic::transport::Channel;
use uruk_base::Env;
use uruk_base::metrics::Counter;
use uruk_base::rpc::{Channels, MESSAGE_BYTES_MAX};
use uruk_proto::ErrorCode;
use uruk_proto::dfs::chunk_server_client::ChunkServerClient;
use uruk_proto::dfs::{FileInfo, GetFileRequest, HealthRequest, HealthResponse};

use super::config::{ConfigError, DfsClientConfig};
use super::controller::Controllers;
use super::error::CallError;
use super::file_cache::FileCache;
use super::logs::DfsCommitLogs;
use super::object_store::DfsObjectStore;
use super::suspects::Suspects;

/// A connection to one chunk store. Clones share it.
#[derive(Clone)]
pub struct DfsClient {
    pub(super) shared: Arc<Shared>,
}

/// What all parts of one client share.
pub(super) struct Shared {
    pub env: Env,
    pub config: DfsClientConfig,
    pub channels: Channels,
    pub controllers: Controllers,
    pub suspects: Suspects,
    pub files: FileCache,
    pub counters: Counters,
}

/// What `/metrics` shows of the client.
pub(super) struct Counters {
    pub rolls: Counter,
    pub seals: Counter,
    pub read_failovers: Counter,
}

/// What a connection to a chunk server is for. Each has its own, so that a long read does not stand
/// between a log and its acknowledgements.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lane {
    Read = 0,
    Log = 1,
    Write = 2,
}

/// Why a client could not connect.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A setting is out of its limits.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No controller leads.
    #[error("no leader among the controllers {0:?}: {1}")]
    NoLeader(Vec<String>, CallError),
}

impl DfsClient {
    /// Finds the controllers' leader, for at most the configured deadline.
    pub async fn connect(env: &Env, config: DfsClientConfig) -> Result<DfsClient, ConnectError> {
        let client = DfsClient::new(env, config)?;
        match client.health().await {
            Ok(_) => Ok(client),
            Err(error) => Err(ConnectError::NoLeader(client.shared.config.controllers.clone(), error)),
        }
    }

    /// Connects with the first call.
    pub fn new(env: &Env, config: DfsClientConfig) -> Result<DfsClient, ConfigError> {
        config.validate()?;
        let channels = Channels::new(env.transport.clone());
        let counters = Counters {
            rolls: env.metrics.register(
                "uruk_dfs_sim_client_log_rolls",
                "Log segments ended before their log.",
                Counter::default(),
            ),
            seals: env.metrics.register(
                "uruk_dfs_sim_client_log_seals",
                "Log segments sealed by recovery.",
                Counter::default(),
            ),
            read_failovers: env.metrics.register(
                "uruk_dfs_sim_client_read_failovers",
                "Reads that went on with another replica.",
                Counter::default(),
            ),
        };
        Ok(DfsClient {
            shared: Arc::new(Shared {
                controllers: Controllers::new(env.clock.clone(), env.random.clone(), channels.clone(), config.clone()),
                suspects: Suspects::new(env.clock.clone(), Duration::from_millis(config.suspect_ms)),
                files: FileCache::new(config.cached_files_max),
                env: env.clone(),
                config,
                channels,
                counters,
            }),
        })
    }

    /// Immutable files, with the configured durability and the store's number of replicas.
    pub fn object_store(&self) -> DfsObjectStore {
        DfsObjectStore::new(self)
    }

    /// Commit logs, with the configured durability.
    pub fn commit_logs(&self) -> DfsCommitLogs {
        DfsCommitLogs::new(self)
    }

    /// The chunk store's state, for status pages and tools.
    pub async fn health(&self) -> Result<HealthResponse, CallError> {
        self.shared.health().await
    }

    /// The settings.
    pub fn config(&self) -> &DfsClientConfig {
        &self.shared.config
    }
}

impl fmt::Debug for DfsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DfsClient").field("controllers", &self.shared.config.controllers).finish()
    }
}

impl Shared {
    pub fn chunk_server(&self, address: &str, lane: Lane) -> ChunkServerClient<Channel> {
        ChunkServerClient::new(self.channels.get_nth(address, lane as usize))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub async fn health(&self) -> Result<HealthResponse, CallError> {
        let answer = self
            .controllers
            .call("health", |mut controller| async move { controller.health(HealthRequest {}).await })
            .await?;
        Ok(answer)
    }

    /// A file's chunks and locations, asked from the controller and then remembered.
    pub async fn fetch_file(&self, path: &str) -> Result<Arc<FileInfo>, CallError> {
        let file = Arc::new(self.ask_file(path).await.inspect_err(|_| self.files.remove(path))?);
        self.files.insert(file.clone());
        Ok(file)
    }

    /// Asks anew for what is remembered of a file; what is remembered stays when nobody answers.
    pub async fn refresh_file(&self, path: &str) -> Result<(), CallError> {
        match self.ask_file(path).await {
            Ok(file) => self.files.insert(Arc::new(file)),
            Err(error) if error.code() == ErrorCode::NotFound => self.files.remove(path),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn ask_file(&self, path: &str) -> Result<FileInfo, CallError> {
        self.controllers
            .call("get file", |mut controller| {
                let request = GetFileRequest { path: path.to_owned() };
                async move { controller.get_file(request).await }
            })
            .await
    }

    /// A file's chunks and locations, remembered or asked.
    pub async fn file(&self, path: &str) -> Result<Arc<FileInfo>, CallError> {
        match self.files.get(path) {
            Some(file) => Ok(file),
            None => self.fetch_file(path).await,
        }
    }
}
