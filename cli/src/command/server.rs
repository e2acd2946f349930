//! `uruk server`: list, drain, undrain tablet servers.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use uruk_base::Env;
use uruk_proto::ServerId;

use crate::command::admin;
use crate::command::connect::Connect;
use crate::command::status::{fetch_json, fetch_servers, print_servers};

/// List, drain, undrain tablet servers.
#[derive(Subcommand, Debug)]
pub enum Server {
    /// List the tablet servers: lease, tablets, load
    #[command(visible_alias = "ls")]
    List(List),
    /// Move every tablet off a server and give it no more: uruk server drain 3
    Drain(One),
    /// Let a drained server have tablets again
    Undrain(One),
}

/// What `server list` takes.
#[derive(Args, Debug)]
pub struct List {
    /// Dead incarnations too
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    connect: Connect,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// A server by its number.
#[derive(Args, Debug)]
pub struct One {
    /// The server's number, as `uruk server list` shows it
    #[arg(value_parser = admin::server)]
    server: ServerId,
    #[command(flatten)]
    connect: Connect,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub async fn run(command: Server) -> Result<ExitCode> {
    let env = Env::real();
    match command {
        Server::List(options) => list(&env, options).await?,
        Server::Drain(options) => {
            let client = admin::client(&options.connect, &env).await?;
            let started = env.clock.now();
            let moved = client.drain_server(options.server).await;
            let moved = moved.with_context(|| format!("cannot drain {}", options.server))?;
            let seconds = env.clock.since(started).as_secs_f64();
            match options.json {
                true => println!("{}", json!({"server_id": options.server.0, "moved": moved, "seconds": seconds})),
                false => println!(
                    "drained {}: {moved} tablets moved in {seconds:.1} s; it may end now, or have tablets again with `uruk server undrain {}`",
                    options.server, options.server.0
                ),
            }
        }
        Server::Undrain(options) => {
            let undrained = admin::client(&options.connect, &env).await?.undrain_server(options.server).await;
            undrained.with_context(|| format!("cannot undrain {}", options.server))?;
            match options.json {
                true => println!("{}", json!({"server_id": options.server.0})),
                false => println!("{} may have tablets again", options.server),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(env: &Env, options: List) -> Result<()> {
    admin::client(&options.connect, env).await?;
    let masters = options.connect.masters()?;
    if options.json {
        let all = fetch_json(env, &masters, "servers").await.with_context(|| options.connect.hint())?;
        let Some(servers) = all["servers"].as_array() else { bail!("the master's answer has no servers") };
        let wanted = servers.iter().filter(|server| options.all || server["state"] != "dead");
        wanted.for_each(|server| println!("{server}"));
        return Ok(());
    }
    let mut servers = fetch_servers(env, &masters).await.with_context(|| options.connect.hint())?;
    if !options.all {
        servers.retain(|server| server.state != "dead");
    }
    print_servers(&servers);
    Ok(())
}
