//! `uruk balance`: what the balancer would do, and why; and to do it now.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use uruk_base::Env;
use uruk_client::{BalanceMode, BalanceResponse};

use crate::command::admin;
use crate::command::connect::Connect;
use crate::output::print_table;

/// Spread tablets over the servers now; the master does it by itself as well, with more patience.
#[derive(Args, Debug)]
pub struct Balance {
    /// Only show the moves, their costs and reasons
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    connect: Connect,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Plans, moves unless it is a dry run, and prints.
pub async fn run(options: Balance) -> Result<ExitCode> {
    let env = Env::real();
    let mode = if options.dry_run { BalanceMode::DryRun } else { BalanceMode::Run };
    let plan = admin::client(&options.connect, &env).await?.balance(mode).await;
    let plan = plan.with_context(|| format!("cannot balance the {}", options.connect.hint()))?;
    if options.json {
        println!("{}", to_json(&plan, options.dry_run));
        return Ok(ExitCode::SUCCESS);
    }
    let servers = plan.servers.iter().map(|server| {
        vec![
            server.server_id.to_string(),
            format!("{:.2}", server.load),
            format!("{:.2}", server.load_after),
            server.tablets.to_string(),
            server.tablets_after.to_string(),
        ]
    });
    print_table(&["SERVER", "LOAD", "AFTER", "TABLETS", "AFTER"], servers);
    println!();
    if !plan.moves.is_empty() {
        let moves = plan.moves.iter().map(|step| {
            let (tablet, from, to) = (step.tablet_id.to_string(), step.from.to_string(), step.to.to_string());
            vec![tablet, from, to, format!("{:.3}", step.gain), step.reason.clone()]
        });
        print_table(&["TABLET", "FROM", "TO", "GAIN", "REASON"], moves);
        println!();
    }
    let count = match plan.moves.len() {
        1 => "1 move".to_owned(),
        n => format!("{n} moves"),
    };
    let verb = if options.dry_run { "would bring" } else { "bring" };
    println!("{count} {verb} the cost from {:.3} to {:.3}: {}", plan.cost, plan.cost_after, plan.verdict);
    Ok(ExitCode::SUCCESS)
}

fn to_json(plan: &BalanceResponse, dry_run: bool) -> serde_json::Value {
    json!({
        "dry_run": dry_run, "cost": plan.cost, "cost_after": plan.cost_after, "verdict": plan.verdict,
        "moves": plan.moves.iter().map(|step| json!({
            "tablet_id": step.tablet_id, "from": step.from, "to": step.to, "reason": step.reason, "gain": step.gain,
        })).collect::<Vec<_>>(),
        "servers": plan.servers.iter().map(|server| json!({
            "server_id": server.server_id, "load": server.load, "load_after": server.load_after,
            "tablets": server.tablets, "tablets_after": server.tablets_after,
        })).collect::<Vec<_>>(),
    })
}
