//! `uruk dfs-controller`: the chunk store's namespace, placement and repair.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use serde::Deserialize;
use uruk_base::Env;
use uruk_dfs_sim::controller::{Controller, ControllerConfig};

use super::{Ready, Supervision, absolute, merge, parse_members, read_toml, required};

/// Run a controller of the chunk store.
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
    /// This member's number in --members [default: 1]
    #[arg(long)]
    node: Option<u64>,
    /// All controllers: 1=host:port,2=host:port,3=host:port [default: this one alone]
    #[arg(long, value_name = "1=HOST:PORT,...")]
    members: Option<String>,
    /// Copies of each chunk [default: 3]
    #[arg(long)]
    replicas: Option<u8>,
    /// Accept writes with a single chunk server: for trying things out
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    allow_single_replica: Option<bool>,
    #[command(flatten)]
    #[serde(skip)]
    supervision: Supervision,
}

/// Runs until a signal.
pub fn run(options: Options) -> Result<ExitCode> {
    let file: Options = read_toml(options.config.as_ref())?;
    let options = merge!(options, file; dir, listen, node, members, replicas, allow_single_replica);
    let mut config =
        ControllerConfig::new(absolute(&required("dir", options.dir)?), required("listen", options.listen)?);
    config.node = options.node.unwrap_or(config.node);
    config.replicas = options.replicas.unwrap_or(config.replicas);
    config.allow_single_replica = options.allow_single_replica.unwrap_or(config.allow_single_replica);
    if let Some(members) = &options.members {
        config.members = parse_members(members).context("--members")?;
    }
    crate::runtime::block_on(1, async move {
        let env = Env::real();
        let controller = Controller::run(&env, config).await?;
        Ready::print("dfs-controller", controller.address(), None);
        super::serve_until(&env, &options.supervision, std::future::pending()).await
    })
}
