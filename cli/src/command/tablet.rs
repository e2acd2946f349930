//! `uruk tablet`: list, split, merge, move.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use uruk_base::Env;
use uruk_proto::ServerId;

use crate::command::admin;
use crate::command::connect::Connect;
use crate::command::status::{fetch_json, fetch_tablets, print_tablets};
use crate::output::parse_bytes;

/// List, split, merge, move tablets.
#[derive(Subcommand, Debug)]
pub enum Tablet {
    /// List a table's tablets: key range, server, size, load
    #[command(visible_alias = "ls")]
    List(List),
    /// Split a tablet in the middle of its bytes, or at a key: uruk tablet split users:m, uruk tablet split 17
    Split(Split),
    /// Merge a tablet with its right neighbour: uruk tablet merge 17
    Merge(Merge),
    /// Move a tablet to another server: uruk tablet move 17 --to 3
    Move(Move),
}

/// What `tablet list` takes.
#[derive(Args, Debug)]
pub struct List {
    /// The table's name [default: all tables]
    table: Option<String>,
    #[command(flatten)]
    connect: Connect,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// What `tablet split` takes.
#[derive(Args, Debug)]
pub struct Split {
    /// Its id, or TABLE:ROW for the one that holds this row (\xNN for bytes), or TABLE if it has only one
    tablet: String,
    /// First row of the right half [default: in the middle of its bytes]
    #[arg(long, value_name = "KEY")]
    at: Option<String>,
    #[command(flatten)]
    connect: Connect,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What `tablet merge` takes.
#[derive(Args, Debug)]
pub struct Merge {
    /// Id of the left one, or TABLE:ROW for the one that holds this row (\xNN for bytes)
    tablet: String,
    #[command(flatten)]
    connect: Connect,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What `tablet move` takes.
#[derive(Args, Debug)]
pub struct Move {
    /// Its id, or TABLE:ROW for the one that holds this row (\xNN for bytes), or TABLE if it has only one
    tablet: String,
    /// The server's number [default: the master chooses another one]
    #[arg(long, value_name = "SERVER", value_parser = admin::server)]
    to: Option<ServerId>,
    #[command(flatten)]
    connect: Connect,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub async fn run(command: Tablet) -> Result<ExitCode> {
    let env = Env::real();
    match command {
        Tablet::List(options) => list(&env, options).await?,
        Tablet::Split(options) => {
            let client = admin::client(&options.connect, &env).await?;
            let at = options.at.as_deref().map(parse_bytes).transpose().context("--at")?.map(Bytes::from);
            if at.as_ref().is_some_and(Bytes::is_empty) {
                bail!("--at is empty: no tablet can be split before its first row");
            }
            let tablet = admin::tablet(&env, &options.connect, &options.tablet, at.as_ref()).await?;
            let split = client.split_tablet(&tablet, at).await;
            admin::print_procedure(&split.with_context(|| format!("cannot split {}", options.tablet))?, options.json);
        }
        Tablet::Merge(options) => {
            let client = admin::client(&options.connect, &env).await?;
            let tablet = admin::tablet(&env, &options.connect, &options.tablet, None).await?;
            let merge = client.merge_tablets(&tablet).await;
            admin::print_procedure(&merge.with_context(|| format!("cannot merge {}", options.tablet))?, options.json);
        }
        Tablet::Move(options) => {
            let client = admin::client(&options.connect, &env).await?;
            let tablet = admin::tablet(&env, &options.connect, &options.tablet, None).await?;
            let moved = client.move_tablet(&tablet, options.to).await;
            admin::print_procedure(&moved.with_context(|| format!("cannot move {}", options.tablet))?, options.json);
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(env: &Env, options: List) -> Result<()> {
    let client = admin::client(&options.connect, env).await?;
    if let Some(table) = &options.table {
        client.get_table(table).await.with_context(|| format!("cannot list the tablets of {table}"))?;
    }
    let is_wanted = |table: &str| options.table.as_ref().is_none_or(|wanted| wanted == table);
    let masters = options.connect.masters()?;
    if options.json {
        let all = fetch_json(env, &masters, "tablets").await?;
        let Some(tablets) = all["tablets"].as_array() else { bail!("the master's answer has no tablets") };
        let wanted = tablets.iter().filter(|tablet| tablet["table"].as_str().is_some_and(is_wanted));
        wanted.for_each(|tablet| println!("{tablet}"));
        return Ok(());
    }
    let mut tablets = fetch_tablets(env, &masters).await.with_context(|| options.connect.hint())?;
    tablets.retain(|tablet| is_wanted(&tablet.table));
    print_tablets(&tablets);
    Ok(())
}
