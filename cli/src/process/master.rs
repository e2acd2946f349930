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
use uruk_master::{Master, MasterConfig, Storage, StorageHealth, StorageReport, Tuning};

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
        config.tuning = tuned(&config.tuning, setting).with_context(|| format!("--tune {setting}"))?;
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

/// The tuning with one value set.
fn tuned(tuning: &Tuning, setting: &str) -> Result<Tuning> {
    let (name, value) = setting.split_once('=').context("write NAME=VALUE")?;
    let mut all = serde_json::to_value(tuning).context("the tuning is no plain data")?;
    let known = all.get_mut(name).with_context(|| format!("the master has no value {name:?} to tune"))?;
    *known = serde_json::from_str(value).with_context(|| format!("{value:?} is neither a number nor true or false"))?;
    serde_json::from_value(all).context("the value does not fit")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tuning_values_are_set_by_name_or_refused() {
        let tuning = tuned(&Tuning::default(), "merge_age_ms=77").unwrap();
        assert_eq!(tuning, Tuning { merge_age_ms: 77, ..Tuning::default() });
        assert!(!tuned(&tuning, "auto_balance=false").unwrap().auto_balance);
        for bad in ["merge_age_ms", "nothing=1", "merge_age_ms=x", "merge_age_ms=-1", "auto_balance=1"] {
            assert!(tuned(&tuning, bad).is_err(), "{bad}");
        }
    }
}
