//! `uruk master`: tables, leases, assignment, recovery, the status page.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use async_trait::async_trait;
use clap::Args;
use serde::Deserialize;
use uruk_base::Env;
use uruk_dfs_sim::client::DfsClient;
use uruk_master::{Master, MasterConfig, Storage, StorageHealth, StorageReport};

use super::{Durability, Ready, Supervision, absolute, dfs_client, merge, parse_members, read_toml, required};

/// Run a master.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Read options from this TOML file (same names, with _ for -); flags win
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Data folder
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Address to listen on
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Address of the status page [default: none]
    #[arg(long, value_name = "HOST:PORT")]
    http: Option<String>,
    /// This member's number in --members [default: 1]
    #[arg(long)]
    node: Option<u64>,
    /// All masters: 1=host:port,2=host:port,3=host:port [default: this one alone]
    #[arg(long, value_name = "1=HOST:PORT,...")]
    members: Option<String>,
    /// The chunk store's controllers, separated by commas
    #[arg(long, value_name = "HOST:PORT,...")]
    controllers: Option<String>,
    /// What an acknowledged write has survived [default: fsync]
    #[arg(long, value_enum)]
    durability: Option<Durability>,
    /// Tablet servers' lease, in milliseconds [default: 3000]
    #[arg(long)]
    lease_ms: Option<u32>,
    /// How often they renew it, in milliseconds [default: 1000]
    #[arg(long)]
    renewal_ms: Option<u32>,
    /// Set one of the master's tuning values, such as merge_age_ms=60000 or auto_balance=false; repeatable
    #[arg(long, value_name = "NAME=VALUE")]
    tune: Option<Vec<String>>,
    #[command(flatten)]
    #[serde(skip)]
    supervision: Supervision,
}

/// Runs until a signal.
pub fn run(options: Options) -> Result<ExitCode> {
    let file: Options = read_toml(options.config.as_ref())?;
    let options = merge!(
        options, file; dir, listen, http, node, members, controllers, durability, lease_ms, renewal_ms,
        tune
    );
    let mut config = MasterConfig::new(absolute(&required("dir", options.dir)?), required("listen", options.listen)?);
    config.http_listen = options.http;
    config.node = options.node.unwrap_or(config.node);
    config.tuning.lease_ms = options.lease_ms.unwrap_or(config.tuning.lease_ms);
    config.tuning.renewal_ms = options.renewal_ms.unwrap_or(config.tuning.renewal_ms);
    for setting in options.tune.iter().flatten() {
        config.tuning = super::tuned(&config.tuning, setting)?;
    }
    if let Some(members) = &options.members {
        config.members = parse_members(members).context("--members")?;
    }
    let controllers = required("controllers", options.controllers)?;
    crate::runtime::block_on(1, async move {
        let env = Env::real();
        let dfs = dfs_client(&env, &controllers, options.durability.unwrap_or_default()).await?;
        let storage = Storage { objects: Arc::new(dfs.object_store()), logs: Arc::new(dfs.commit_logs()) };
        let master = Master::start(&env, config, storage, Arc::new(ChunkStoreHealth(dfs))).await?;
        Ready::print("master", master.address(), master.http_address().map(str::to_owned));
        let outcome = super::serve_until(&env, &options.supervision, async {
            master.wait().await;
            Ok(())
        })
        .await;
        master.shutdown().await?;
        outcome
    })
}

/// The chunk store's health, for the status page.
#[derive(Debug)]
struct ChunkStoreHealth(DfsClient);

#[async_trait]
impl StorageHealth for ChunkStoreHealth {
    async fn health(&self) -> serde_json::Value {
        match self.0.health().await {
            Ok(health) => StorageReport::from(health).to_json(),
            Err(error) => StorageReport::failed("chunk store", error.to_string()).to_json(),
        }
    }
}
