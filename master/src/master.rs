//! A running master: one member of the master group, with its services and its status page.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tonic::service::Routes;
use uruk_base::data_folder::DataFolder;
use uruk_base::rpc::{self, Channels, MESSAGE_BYTES_MAX};
use uruk_base::task::{TaskPanicked, Tasks};
use uruk_base::{Env, transport::Listener};
use uruk_consensus::{Config, Consensus};
use uruk_proto::master::master_control_server::MasterControlServer;
use uruk_proto::master::master_server::MasterServer;

use crate::config::MasterConfig;
use crate::error::StartError;
use crate::lease::Leases;
use crate::metrics::MasterMetrics;
use crate::service::client::ClientService;
use crate::service::control::ControlService;
use crate::shared::{Shared, Storage, confirm_in_rounds};
use crate::state::State;
use crate::status::StorageHealth;
use crate::volatile::Volatile;
use crate::{driver, http};

/// The role that a master's data folder is marked with.
const ROLE: &str = "master";
/// The group's name, in which members of other groups are refused.
const GROUP: &str = "master";

/// A running master.
pub struct Master {
    pub(crate) shared: Arc<Shared>,
    tasks: Tasks,
    http_address: Option<String>,
    folder: DataFolder,
}

impl Master {
    /// Opens the data folder, joins the group and serves. Recoveries and other procedures that an
    /// earlier run left unfinished go on as soon as this member, or another one, leads.
    pub async fn start(
        env: &Env,
        config: MasterConfig,
        storage: Storage,
        health: Arc<dyn StorageHealth>,
    ) -> Result<Master, StartError> {
        config.validate()?;
        let tasks = env.tasks.child();
        let env = env.with_tasks(tasks.clone());
        let folder = DataFolder::open(&env, &config.folder, ROLE).await?;
        let listen = |error| StartError::Listen { address: config.listen.clone(), error };
        let listener = env.transport.listen(&config.listen).await.map_err(listen)?;
        let address = config.advertise.clone().unwrap_or_else(|| listener.local_address());
        let members = match config.members.is_empty() {
            true => [(config.node, address.clone())].into(),
            false => config.members.clone(),
        };
        let mut group = Config::new(GROUP, config.node, members);
        group.snapshot_after(config.tuning.snapshot_every_entries);
        let consensus = Consensus::start(&env, group, &folder.path().join("raft"), State::new()).await?;
        let (confirmations, waiting) = mpsc::channel(config.tuning.renewals_waiting_max);
        let shared = Arc::new(Shared {
            node: config.node,
            address,
            http_address: OnceLock::new(),
            consensus: consensus.clone(),
            volatile: Mutex::new(Volatile::new(Leases::new(config.tuning.lease_at_grantor()))),
            storage,
            health,
            channels: Channels::new(env.transport.clone()),
            metrics: MasterMetrics::register(&env.metrics),
            wake: Notify::new(),
            confirmations,
            started: env.clock.now(),
            tuning: config.tuning.clone(),
            env: env.clone(),
        });
        let http_address = match &config.http_listen {
            Some(listen) => Some(http::start(shared.clone(), listen).await?),
            None => None,
        };
        tasks.spawn("master confirmations", confirm_in_rounds(consensus, waiting, config.tuning.renewals_waiting_max));
        tasks.spawn("master driver", driver::run(shared.clone()));
        serve(shared.clone(), listener);
        Ok(Master { shared, tasks, http_address, folder })
    }

    /// `host:port` where others reach it.
    pub fn address(&self) -> &str {
        &self.shared.address
    }

    /// `host:port` of the status page, if there is one.
    pub fn http_address(&self) -> Option<&str> {
        self.http_address.as_deref()
    }

    /// Whether it leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.shared.consensus.leadership().borrow().is_leader
    }

    /// What is broken in the local state, if anything: for tests and tools.
    pub fn check(&self) -> Result<(), String> {
        self.shared.consensus.read(State::check)
    }

    /// Every file that the local state names, and every one that waits to be deleted: for tests and tools.
    pub fn files(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        self.shared.consensus.read(|state| (state.named_files(), state.unnamed_files()))
    }

    /// Tablets in all, and of those the ones that are open: for tests and tools.
    pub fn open_tablets(&self) -> (usize, usize) {
        self.shared.consensus.read(State::open_tablets)
    }

    /// The status as JSON: `path` as in `/api/v1/<path>`. None when there is no such path.
    pub async fn status(&self, path: &str) -> Option<Vec<u8>> {
        crate::status::json(&self.shared, path).await
    }

    /// Completes when it ends on its own (a task panicked) or is shut down.
    pub async fn wait(&self) {
        self.tasks.cancelled().await;
    }

    /// Ends it; nothing of it runs any more when this returns, and its folder is free.
    pub async fn shutdown(self) -> Result<(), TaskPanicked> {
        self.tasks.cancel();
        self.shared.consensus.shutdown().await;
        let ended = self.tasks.shutdown().await;
        drop(self.folder);
        ended
    }
}

fn serve(shared: Arc<Shared>, listener: Arc<dyn Listener>) {
    let control = MasterControlServer::new(ControlService(shared.clone()))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let client = MasterServer::new(ClientService(shared.clone()))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let routes = Routes::new(control).add_service(client).add_service(shared.consensus.service());
    let tasks = shared.env.tasks.clone();
    shared.env.tasks.clone().spawn_to_end("master rpc", async move {
        if let Err(error) = rpc::serve(&shared.env, listener, routes, &tasks).await {
            tracing::error!(%error, "the master's services ended");
            tasks.cancel();
        }
    });
}
