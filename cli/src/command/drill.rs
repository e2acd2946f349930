//! `uruk drill`: kills, splits, merges, moves things on purpose and measures what clients notice.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::command::dev;
use crate::process::Durability;

mod chaos;
mod grow;
mod kill_process;
mod kill_tabletserver;
mod overload;
mod pause_tabletserver;
mod reshape;
mod restart;
pub mod stage;
mod stop_tabletserver;

use reshape::Operation;
pub use stage::signal;

/// Kill, split, merge, move things on purpose and measure what clients notice.
#[derive(Subcommand, Debug)]
pub enum Drill {
    /// Kill tablet servers (kill -9) with unflushed writes, under load
    KillTabletserver(kill_tabletserver::Options),
    /// Stop a tablet server (SIGSTOP) for longer than its lease and let it wake
    PauseTabletserver(pause_tabletserver::Options),
    /// End a tablet server in order (SIGTERM) under load: its tablets move, nobody has to recover them
    StopTabletserver(stop_tabletserver::Options),
    /// Kill a master, controller, chunk server or watching parent (kill -9) under load
    KillProcess(kill_process::Options),
    /// Split tablets under load and measure how long writes pause
    #[command(after_long_help = reshape::HOW_IT_MEASURES, after_help = "--help says how the pause is measured.")]
    Split(reshape::Options),
    /// Merge tablets under load and measure how long writes pause
    #[command(after_long_help = reshape::HOW_IT_MEASURES, after_help = "--help says how the pause is measured.")]
    Merge(reshape::Options),
    /// Move tablets under load and measure how long writes pause
    #[command(after_long_help = reshape::HOW_IT_MEASURES, after_help = "--help says how the pause is measured.")]
    Move(reshape::Options),
    /// Load a table that starts as one tablet, watch it split and spread, delete most, watch it merge back
    Grow(grow::Options),
    /// Restart every tablet server in turn under load: no request may fail
    Restart(restart::Options),
    /// Write faster than the disks take it; show memory, refusals, and what readers notice
    Overload(overload::Options),
    /// Kill, stop and restart processes of every kind at random under a linked-list load
    Chaos(chaos::Options),
}

/// What every drill takes.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// How often
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub times: u32,
    /// Tablets of the drill's table
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub tablets: u16,
    /// Masters of the drill's cluster
    #[arg(long, default_value_t = 1, value_parser = dev::group_size)]
    pub masters: u16,
    /// Controllers of its chunk store
    #[arg(long, default_value_t = 1, value_parser = dev::group_size)]
    pub controllers: u16,
    /// What an acknowledged write has survived
    #[arg(long, value_enum, default_value_t)]
    pub durability: Durability,
    /// Concurrent writers
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub writers: u16,
    /// Concurrent readers
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(0..=256))]
    pub readers: u16,
    /// Size of each value in bytes
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub value_bytes: u32,
    /// Keep the cluster's data and logs in this folder [default: a temporary one]
    #[arg(long)]
    pub dir: Option<std::path::PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Runs the drill; exit code 1 if anything was lost.
pub async fn run(drill: Drill) -> Result<ExitCode> {
    match drill {
        Drill::KillTabletserver(options) => kill_tabletserver::run(options).await,
        Drill::PauseTabletserver(options) => pause_tabletserver::run(options).await,
        Drill::StopTabletserver(options) => stop_tabletserver::run(options).await,
        Drill::KillProcess(options) => kill_process::run(options).await,
        Drill::Split(options) => reshape::run(Operation::Split, options).await,
        Drill::Merge(options) => reshape::run(Operation::Merge, options).await,
        Drill::Move(options) => reshape::run(Operation::Move, options).await,
        Drill::Grow(options) => grow::run(options).await,
        Drill::Restart(options) => restart::run(options).await,
        Drill::Overload(options) => overload::run(options).await,
        Drill::Chaos(options) => chaos::run(options).await,
    }
}
