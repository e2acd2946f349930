//! `uruk put`, `get`, `scan`: rows by hand.

use std::io::{BufWriter, Write};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use futures::StreamExt;
use serde_json::{Value, json};
use uruk_base::Env;
use uruk_client::{Filter, Mutation, ReadOptions, Row, RowRange, ScanOptions};

use crate::command::connect::Connect;
use crate::output::{human_count, parse_bytes, show_bytes};

/// Write cells of one row.
#[derive(Args, Debug)]
pub struct Put {
    /// The table
    table: String,
    /// The row key (\xNN for bytes)
    row: String,
    /// family:qualifier=value, or family:qualifier=value@MICROS
    #[arg(required = true, value_name = "FAMILY:QUALIFIER=VALUE")]
    cells: Vec<String>,
    #[command(flatten)]
    connect: Connect,
}

/// Read one row.
#[derive(Args, Debug)]
pub struct Get {
    /// The table
    table: String,
    /// The row key (\xNN for bytes)
    row: String,
    /// Newest versions of each column to show; 0 = all
    #[arg(long, default_value_t = 1)]
    versions: u32,
    #[command(flatten)]
    connect: Connect,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Read a range of rows.
#[derive(Args, Debug)]
pub struct Scan {
    /// The table
    table: String,
    /// Rows that begin with this
    #[arg(long, conflicts_with_all = ["start", "end"])]
    prefix: Option<String>,
    /// From this row, inclusive
    #[arg(long)]
    start: Option<String>,
    /// To this row, exclusive
    #[arg(long)]
    end: Option<String>,
    /// At most this many rows; 0 = all
    #[arg(long, default_value_t = 0)]
    limit: u64,
    /// Newest versions of each column to show; 0 = all
    #[arg(long, default_value_t = 1)]
    versions: u32,
    /// Only these families
    #[arg(long, value_delimiter = ',')]
    families: Vec<String>,
    /// Print only how many rows and bytes there are
    #[arg(long)]
    count: bool,
    #[command(flatten)]
    connect: Connect,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// Writes the cells, all or none.
pub async fn put(options: Put) -> Result<ExitCode> {
    let mutations = options.cells.iter().map(|text| parse_cell(text)).collect::<Result<Vec<_>>>()?;
    let row = parse_bytes(&options.row)?;
    let env = Env::real();
    let table =
        options.connect.client(&env).await?.table(&options.table).await.with_context(|| options.connect.hint())?;
    table.mutate_row(row, mutations).await.context("cannot write the row")?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the row; exit code 1 when there is none.
pub async fn get(options: Get) -> Result<ExitCode> {
    let row = parse_bytes(&options.row)?;
    let env = Env::real();
    let table =
        options.connect.client(&env).await?.table(&options.table).await.with_context(|| options.connect.hint())?;
    let read_options = ReadOptions::filter(Filter::all().cells_per_column(options.versions));
    let Some(row) = table.read_row(&row, &read_options).await.context("cannot read the row")? else {
        eprintln!("no row {}", options.row);
        return Ok(ExitCode::FAILURE);
    };
    print_row(&mut std::io::stdout().lock(), &row, options.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the rows.
pub async fn scan(options: Scan) -> Result<ExitCode> {
    let range = match &options.prefix {
        Some(prefix) => RowRange::prefix(&parse_bytes(prefix)?),
        None => {
            let bound =
                |text: &Option<String>| text.as_deref().map(parse_bytes).transpose().map(Option::unwrap_or_default);
            RowRange::new(bound(&options.start)?, bound(&options.end)?)
        }
    };
    if range.is_empty() {
        bail!("the range is empty: --start is not before --end");
    }
    let env = Env::real();
    let table =
        options.connect.client(&env).await?.table(&options.table).await.with_context(|| options.connect.hint())?;
    let versions = Filter::all().cells_per_column(options.versions);
    let filter = options.families.iter().fold(versions, |filter, family| filter.family(family.clone()));
    let mut rows = table.scan(range, ScanOptions { filter, limit: options.limit, ..ScanOptions::default() });
    let mut out = BufWriter::new(std::io::stdout().lock());
    let (mut count, mut bytes) = (0u64, 0u64);
    while let Some(row) = rows.next().await {
        let row = row.context("the scan broke off")?;
        count += 1;
        bytes += row.cells().map(|cell| cell.value.len() as u64).sum::<u64>();
        if !options.count {
            print_row(&mut out, &row, options.json)?;
        }
    }
    match (options.count, options.json) {
        (true, true) => writeln!(out, "{}", json!({"rows": count, "value_bytes": bytes}))?,
        (true, false) => writeln!(out, "{} rows, {} value bytes", human_count(count), human_count(bytes))?,
        (false, _) => {}
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// In the manner of `cbt`: the key, then a line per cell.
fn print_row(out: &mut impl Write, row: &Row, as_json: bool) -> Result<()> {
    if as_json {
        let cells: Vec<Value> = row
            .cells()
            .map(|cell| {
                json!({
                    "family": cell.family, "qualifier": show_bytes(cell.qualifier),
                    "timestamp": cell.timestamp, "value": show_bytes(cell.value),
                })
            })
            .collect();
        writeln!(out, "{}", json!({"row": show_bytes(row.key()), "cells": cells}))?;
        return Ok(());
    }
    writeln!(out, "{}", show_bytes(row.key()))?;
    for cell in row.cells() {
        writeln!(out, "  {:<40} @ {}", format!("{}:{}", cell.family, show_bytes(cell.qualifier)), cell.timestamp)?;
        writeln!(out, "    \"{}\"", show_bytes(cell.value))?;
    }
    Ok(())
}

/// `family:qualifier=value` with an optional `@micros`.
fn parse_cell(text: &str) -> Result<Mutation> {
    let (column, value) = text.split_once('=').with_context(|| format!("{text:?}: write family:qualifier=value"))?;
    let (family, qualifier) =
        column.split_once(':').with_context(|| format!("{text:?}: write family:qualifier=value"))?;
    let at = value.rsplit_once('@').and_then(|(value, micros)| Some((value, micros.parse::<i64>().ok()?)));
    let qualifier = parse_bytes(qualifier)?;
    Ok(match at {
        Some((value, micros)) => Mutation::set(family.to_owned(), qualifier, parse_bytes(value)?).at(micros),
        None => Mutation::set(family.to_owned(), qualifier, parse_bytes(value)?),
    })
}
