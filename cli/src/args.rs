//! The command line.

use clap::{ArgAction, Parser, Subcommand};

use crate::command::{
    balance, bench, check, cluster, data, demo, dev, drill, import, inspect, server, status, table, tablet,
};
use crate::process;

/// Uruk: a Bigtable that you run yourself.
///
/// Start with `uruk demo` (a whole cluster, a real load, a killed server, a report) or `uruk dev`
/// (a cluster to play with; other commands find it by themselves).
#[derive(Parser, Debug)]
#[command(name = "uruk", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Uruk {
    /// Log more: -v state changes, -vv the data path
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub verbose: u8,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show what Uruk does: load real files, kill a tablet server, check every row
    Demo(demo::Demo),
    /// Run a whole cluster of separate processes on this machine
    Dev(dev::Dev),
    /// Create, alter, list, describe, delete tables
    #[command(subcommand)]
    Table(table::Table),
    /// List, split, merge, move tablets
    #[command(subcommand)]
    Tablet(tablet::Tablet),
    /// List, drain, undrain tablet servers
    #[command(subcommand)]
    Server(server::Server),
    /// Spread tablets over the servers now, or show what the balancer would do
    Balance(balance::Balance),
    /// Compare tablets, servers and files; exit code 1 on errors
    ///
    /// Looks for holes and overlaps in key ranges, tablets with two owners or none, references to missing
    /// files, files without references, and logs that nobody needs. It changes nothing. Each finding says what
    /// to do about it; what passes by itself is shown, but is no error.
    Check(check::Check),
    /// Restart all tablet servers, one after the other
    #[command(subcommand)]
    Cluster(cluster::Cluster),
    /// Write cells of one row: uruk put TABLE ROW family:qualifier=value ...
    Put(data::Put),
    /// Read one row
    Get(data::Get),
    /// Read a range of rows
    Scan(data::Scan),
    /// Load files, CSV or JSON lines into a table
    Import(import::Import),
    /// Show the cluster: servers, tables, tablets, splits, merges and moves, recoveries
    Status(status::Status),
    /// Kill, split, merge, move things on purpose and measure what clients notice
    #[command(subcommand)]
    Drill(drill::Drill),
    /// Show what a table file holds, and where it is damaged
    Inspect(inspect::Inspect),
    /// Measure throughput and latency
    Bench(bench::Bench),
    /// Run a master
    Master(process::master::Options),
    /// Run a tablet server (a watching parent and its worker)
    Tabletserver(process::tabletserver::Options),
    /// Run a controller of the chunk store
    DfsController(process::dfs_controller::Options),
    /// Run a chunk server
    Chunkserver(process::chunkserver::Options),
}
