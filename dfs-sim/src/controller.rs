//! The controller of the chunk store: namespace, placement, the state of every log segment, repair.
//!
//! | file | holds |
//! |---|---|
//! | `state` | the replicated state and what commands do to it; pure |
//! | `command` | commands, answers, refusals |
//! | `placement` | where copies go, which are made, which deleted; pure |
//! | `fleet` | what the leader knows of servers and copies: soft, one term long |
//! | `allotment` | ids for puts, from committed blocks |
//! | `repair` | the leader's loop |
//! | `core`, `service` | the RPC service on top of all that |
//!
//! One controller, or three as a Raft group. After kill -9 the replicated state comes back from the
//! Raft log; the rest is reported again.

use std::sync::Arc;

use tonic::service::Routes;
use uruk_base::data_folder::{DataFolder, DataFolderError};
use uruk_base::transport::Listener;
use uruk_base::{Env, rpc};
use uruk_consensus::Consensus;
use uruk_proto::dfs::controller_server::ControllerServer;

mod allotment;
pub mod command;
mod config;
mod core;
pub mod fleet;
pub mod id;
pub mod placement;
mod repair;
mod service;
pub mod state;

pub use config::{ControllerConfig, ControllerConfigError};
use core::Core;
use service::ControllerService;
use state::ControllerState;

/// Role in the data folder's marker.
const ROLE: &str = "dfs-controller";
/// Name of the Raft group.
const GROUP: &str = "dfs-controller";
/// Folder of the Raft log within the data folder.
const RAFT_FOLDER: &str = "raft";

/// Why a controller cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting cannot work.
    #[error("configuration of the dfs controller: {0}")]
    Config(#[from] ControllerConfigError),
    /// The data folder cannot be used.
    #[error(transparent)]
    Folder(#[from] DataFolderError),
    /// The Raft member cannot start.
    #[error("dfs controller: {0}")]
    Consensus(#[from] uruk_consensus::StartError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// Which.
        address: String,
        /// What the system said.
        error: std::io::Error,
    },
}

/// A running controller.
pub struct Controller {
    core: Arc<Core>,
    consensus: Consensus<ControllerState>,
    address: String,
}

impl Controller {
    /// Starts a controller that others reach at `address`; the caller serves its [`Controller::routes`].
    ///
    /// Its tasks run in `env.tasks`.
    pub async fn start(env: &Env, config: ControllerConfig, address: &str) -> Result<Controller, StartError> {
        config.validate()?;
        let folder = DataFolder::open(env, &config.folder, ROLE).await?;
        let mut members = config.members.clone();
        if members.is_empty() {
            members.insert(config.node, address.to_owned());
        }
        let mut raft = uruk_consensus::Config::new(GROUP, config.node, members);
        raft.snapshot_after(config.snapshot_every_entries);
        let raft_folder = config.folder.join(RAFT_FOLDER);
        let consensus = Consensus::start(env, raft, &raft_folder, ControllerState::default()).await?;
        let core = Arc::new(Core::new(env, config, folder, consensus.clone()));
        env.tasks.spawn("dfs-controller-repair", repair::run(env.clone(), core.clone()));
        Ok(Controller { core, consensus, address: address.to_owned() })
    }

    /// Listens on the configured address, starts, and serves in a task of `env.tasks`.
    pub async fn run(env: &Env, config: ControllerConfig) -> Result<Controller, StartError> {
        let listen = config.listen.clone();
        let listener = match env.transport.listen(&listen).await {
            Ok(listener) => listener,
            Err(error) => return Err(StartError::Listen { address: listen, error }),
        };
        let address = match config.members.get(&config.node) {
            Some(advertised) => advertised.clone(),
            None => listener.local_address(),
        };
        let controller = Controller::start(env, config, &address).await?;
        controller.serve(env, listener);
        Ok(controller)
    }

    /// Serves the controller's routes on `listener`, in a task of `env.tasks`.
    pub fn serve(&self, env: &Env, listener: Arc<dyn Listener>) {
        let (task_env, routes) = (env.clone(), self.routes());
        env.tasks.spawn("dfs-controller-rpc", async move {
            let tasks = task_env.tasks.clone();
            if let Err(error) = rpc::serve(&task_env, listener, routes, &tasks).await {
                tracing::error!(%error, "the dfs controller's RPC server ended");
                tasks.cancel();
            }
        });
    }

    /// The controller's own service and the one for the other members of its group.
    pub fn routes(&self) -> Routes {
        let service = ControllerServer::new(ControllerService::new(self.core.clone()))
            .max_decoding_message_size(rpc::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(rpc::MESSAGE_BYTES_MAX);
        Routes::new(service).add_service(self.consensus.service())
    }

    /// Where others reach it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The replicated state, for tools and tests.
    pub fn consensus(&self) -> &Consensus<ControllerState> {
        &self.consensus
    }

    /// Stops the Raft member. Tasks in the environment's group end with that group.
    pub async fn shutdown(&self) {
        self.consensus.shutdown().await;
    }
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Controller({})", self.address)
    }
}
