//! `uruk check`: whether the master's rows, the servers and the storage agree.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use uruk_base::Env;
use uruk_client::CheckDepth;

use crate::command::admin;
use crate::command::connect::Connect;
use crate::output::{human_count, print_table};

/// What `check` takes.
#[derive(Args, Debug)]
pub struct Check {
    /// List the storage too, for files that nothing names
    #[arg(long)]
    deep: bool,
    #[command(flatten)]
    connect: Connect,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Checks and prints; 1 if there are errors.
pub async fn run(options: Check) -> Result<ExitCode> {
    let env = Env::real();
    let depth = if options.deep { CheckDepth::Storage } else { CheckDepth::Rows };
    let report = admin::client(&options.connect, &env).await?.check(depth).await;
    let report = report.with_context(|| format!("cannot check the {}", options.connect.hint()))?;
    let errors = report.findings.iter().filter(|finding| finding.is_error).count();
    if options.json {
        let findings: Vec<_> = report
            .findings
            .iter()
            .map(|finding| {
                json!({
                    "kind": finding.kind, "what": finding.what, "remedy": finding.remedy, "is_error": finding.is_error,
                })
            })
            .collect();
        println!(
            "{}",
            json!({
                "errors": errors, "findings": findings, "tablets": report.tablets, "files": report.files,
                "logs": report.logs, "deep": options.deep,
            })
        );
    } else {
        if !report.findings.is_empty() {
            let rows = report.findings.iter().map(|finding| {
                let severity = if finding.is_error { "error" } else { "passing" };
                vec![severity.to_owned(), finding.kind.clone(), finding.what.clone(), finding.remedy.clone()]
            });
            print_table(&["SEVERITY", "KIND", "WHAT", "REMEDY"], rows);
            println!();
        }
        println!(
            "{} tablets, {} files, {} logs checked: {errors} errors, {} that pass by themselves",
            human_count(report.tablets),
            human_count(report.files),
            human_count(report.logs),
            report.findings.len() - errors
        );
    }
    Ok(if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
