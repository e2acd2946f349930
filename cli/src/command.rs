//! One file per command.

use std::process::ExitCode;

use anyhow::Result;

use crate::args::{Command, Uruk};
use crate::{process, runtime};

pub mod admin;
pub mod balance;
pub mod bench;
pub mod check;
pub mod cluster;
pub mod connect;
pub mod data;
pub mod demo;
pub mod dev;
pub mod drill;
pub mod import;
pub mod inspect;
pub mod server;
pub mod status;
pub mod table;
pub mod tablet;

/// Runs the command; the exit code is its verdict, an error is reported by the caller.
pub fn run(arguments: Uruk) -> Result<ExitCode> {
    match arguments.command {
        Command::Demo(options) => runtime::block_on(1, demo::run(options)),
        Command::Dev(options) => runtime::block_on(1, dev::run(options)),
        Command::Table(command) => runtime::block_on(1, table::run(command)),
        Command::Tablet(command) => runtime::block_on(1, tablet::run(command)),
        Command::Server(command) => runtime::block_on(1, server::run(command)),
        Command::Balance(options) => runtime::block_on(1, balance::run(options)),
        Command::Check(options) => runtime::block_on(1, check::run(options)),
        Command::Cluster(command) => runtime::block_on(1, cluster::run(command)),
        Command::Put(options) => runtime::block_on(1, data::put(options)),
        Command::Get(options) => runtime::block_on(1, data::get(options)),
        Command::Scan(options) => runtime::block_on(1, data::scan(options)),
        Command::Import(options) => runtime::block_on(1, import::run(options)),
        Command::Inspect(options) => runtime::block_on(1, inspect::run(options)),
        Command::Status(options) => runtime::block_on(1, status::run(options)),
        Command::Drill(command) => runtime::block_on(1, drill::run(command)),
        Command::Bench(options) => runtime::block_on(1, bench::run(options)),
        Command::Master(options) => process::master::run(options),
        Command::Tabletserver(options) => process::tabletserver::run(options),
        Command::DfsController(options) => process::dfs_controller::run(options),
        Command::Chunkserver(options) => process::chunkserver::run(options),
    }
}
