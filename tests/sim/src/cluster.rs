//! The hosts of the simulated cluster.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use uruk_base::Env;
use uruk_dfs_sim::chunkserver::{ChunkServer, ChunkServerConfig};
use uruk_dfs_sim::client::{DfsClient, DfsClientConfig};
use uruk_dfs_sim::controller::{Controller, ControllerConfig};
use uruk_master::{Master, MasterConfig, StorageHealth};
use uruk_tabletserver::server::{TabletServer, TabletServerConfig};

use crate::host::Host;

/// Where the master serves.
pub const MASTER: &str = "master:7000";
const CONTROLLER: &str = "controller:7000";
/// A tablet server that ended is started again after this.
const RESTART_DELAY: Duration = Duration::from_millis(100);
const CHUNK_SERVERS: usize = 3;
const TABLET_SERVERS: usize = 3;

/// The machines, by name.
pub struct Cluster {
    /// Their disks and names.
    pub hosts: BTreeMap<String, Host>,
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Adds a whole cluster to the simulation.
pub fn build(sim: &mut turmoil::Sim<'_>, seed: u64) -> Cluster {
    let mut hosts = BTreeMap::new();
    let mut add = |name: String| {
        let host = Host::new(&name, seed);
        hosts.insert(name, host.clone());
        host
    };
    let host = add("controller".into());
    sim.host("controller", move || controller(host.clone()));
    for n in 1..=CHUNK_SERVERS {
        let name = format!("cs-{n}");
        let host = add(name.clone());
        sim.host(name, move || chunk_server(host.clone()));
    }
    let host = add("master".into());
    sim.host("master", move || master(host.clone()));
    for n in 1..=TABLET_SERVERS {
        let name = format!("ts-{n}");
        let host = add(name.clone());
        sim.host(name, move || tablet_server(host.clone()));
    }
    Cluster { hosts }
}

async fn controller(host: Host) -> Outcome {
    let env = host.start();
    let _controller = Controller::run(&env, ControllerConfig::new("/data", CONTROLLER)).await?;
    forever(&env).await
}

async fn chunk_server(host: Host) -> Outcome {
    let env = host.start();
    let config = ChunkServerConfig {
        folder: PathBuf::from("/data"),
        listen: format!("{}:7000", host.name()),
        controllers: vec![CONTROLLER.to_owned()],
        ..ChunkServerConfig::default()
    };
    ChunkServer::start(&env, config).await?.run().await?;
    Err("a chunk server ended".into())
}

fn dfs(env: &Env) -> Result<DfsClient, Box<dyn std::error::Error>> {
    Ok(DfsClient::new(env, DfsClientConfig::new(vec![CONTROLLER.to_owned()]))?)
}

#[derive(Debug)]
struct NoHealth;

#[async_trait]
impl StorageHealth for NoHealth {
    async fn health(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

async fn master(host: Host) -> Outcome {
    let env = host.start();
    let dfs = dfs(&env)?;
    let storage = uruk_master::Storage { objects: Arc::new(dfs.object_store()), logs: Arc::new(dfs.commit_logs()) };
    let _master = Master::start(&env, MasterConfig::new("/data", MASTER), storage, Arc::new(NoHealth)).await?;
    forever(&env).await
}

/// A tablet server whose incarnations follow each other, as its watching parent would start them.
async fn tablet_server(host: Host) -> Outcome {
    loop {
        let env = host.start();
        let dfs = dfs(&env)?;
        let objects = dfs.object_store();
        let storage = uruk_tabletserver::server::Storage {
            recovery_objects: Arc::new(objects.with_durability(uruk_dfs_sim::client::Durability::Replicated)),
            objects: Arc::new(objects),
            logs: Arc::new(dfs.commit_logs()),
        };
        let config = TabletServerConfig {
            listen: format!("{}:7000", host.name()),
            masters: vec![MASTER.to_owned()],
            nonce: env.random.u64(),
            ..TabletServerConfig::default()
        };
        match TabletServer::start(&env, config, storage).await {
            Ok(server) => {
                let why = server.wait().await;
                tracing::info!(host = host.name(), ?why, "incarnation is over");
            }
            // As the watching parent: another launch, a little later.
            Err(error) => tracing::info!(host = host.name(), %error, "tablet server does not start"),
        }
        env.clock.sleep(RESTART_DELAY).await;
        // What panicked has been reported by the task group.
        let _ = env.tasks.shutdown().await;
    }
}

async fn forever(env: &Env) -> Outcome {
    env.tasks.cancelled().await;
    Err("a task of this process failed".into())
}
