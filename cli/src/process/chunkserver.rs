//! `uruk chunkserver`: keeps chunks and log segments in one folder.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use serde::Deserialize;
use uruk_base::Env;
use uruk_dfs_sim::chunkserver::{ChunkServer, ChunkServerConfig};

use super::{Ready, Supervision, absolute, merge, parse_addresses, read_toml, required};

/// Run a chunk server.
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
    /// Address that others use [default: the one listened on]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// The controllers' addresses, separated by commas
    #[arg(long, value_name = "HOST:PORT,...")]
    controllers: Option<String>,
    /// Failure zone, such as a rack; replicas are spread over zones
    #[arg(long)]
    zone: Option<String>,
    /// Refuse writes when less than this is free on the disk, in MiB [default: 256]
    #[arg(long)]
    disk_reserve_mib: Option<u64>,
    #[command(flatten)]
    #[serde(skip)]
    supervision: Supervision,
}

/// Runs until a signal.
pub fn run(options: Options) -> Result<ExitCode> {
    let file: Options = read_toml(options.config.as_ref())?;
    let options = merge!(options, file; dir, listen, advertise, controllers, zone, disk_reserve_mib);
    let defaults = ChunkServerConfig::default();
    let config = ChunkServerConfig {
        folder: absolute(&required("dir", options.dir)?),
        listen: required("listen", options.listen)?,
        advertise: options.advertise.unwrap_or_default(),
        controllers: parse_addresses(&required("controllers", options.controllers)?).context("--controllers")?,
        zone: options.zone.unwrap_or_default(),
        disk_reserve_bytes: options.disk_reserve_mib.map_or(defaults.disk_reserve_bytes, |mib| mib << 20),
        ..defaults
    };
    crate::runtime::block_on(1, async move {
        let env = Env::real();
        let server = ChunkServer::start(&env, config).await?;
        let listener = server.listen().await?;
        Ready::print("chunkserver", &listener.local_address(), None);
        super::serve_until(&env, &options.supervision, async { Ok(server.serve(listener).await?) }).await
    })
}
