//! `uruk import`: files of a folder, CSV or JSON lines into a table.

use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use uruk_base::Env;
use uruk_client::{BatchWriter, Mutation, RowMutation};

use crate::command::connect::Connect;
use crate::load::sources::folder_files;
use crate::output::{human_bytes, human_count};

/// What the input is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    /// A header line, then rows; each column becomes a cell
    Csv,
    /// One JSON object a line; each member becomes a cell
    Jsonl,
    /// Every file of a folder: row = its path, one cell with its content
    Files,
}

/// Load files, CSV or JSON lines into a table.
#[derive(Args, Debug)]
pub struct Import {
    /// The table; it must exist
    table: String,
    /// A file, a folder, or - for standard input
    input: PathBuf,
    /// What the input is [default: by its name]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Column or member that becomes the row key [default: the first column]
    #[arg(long)]
    key: Option<String>,
    /// Family that gets the cells; a column named family:qualifier goes to that family instead
    #[arg(long)]
    family: String,
    #[command(flatten)]
    connect: Connect,
    /// Print the summary as one JSON object
    #[arg(long)]
    json: bool,
}

struct Importer {
    writer: BatchWriter,
    bar: ProgressBar,
    family: String,
    rows: u64,
    bytes: u64,
}

/// Imports; an error names the line and says how many rows are in.
pub async fn run(options: Import) -> Result<ExitCode> {
    let env = Env::real();
    let format = options.format.map_or_else(|| guess_format(&options.input), Ok)?;
    let table =
        options.connect.client(&env).await?.table(&options.table).await.with_context(|| options.connect.hint())?;
    if table.schema().family(&options.family).is_none() {
        bail!("table {} has no family {}", options.table, options.family);
    }
    let bar = if options.json { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    bar.set_style(ProgressStyle::with_template("{spinner} {msg}  {elapsed}").expect("the template is valid"));
    let mut importer =
        Importer { writer: table.batch_writer(), bar, family: options.family.clone(), rows: 0, bytes: 0 };
    let started = env.clock.now();
    let read = match format {
        Format::Csv => importer.csv(&options.input, options.key.as_deref()).await,
        Format::Jsonl => importer.jsonl(&options.input, options.key.as_deref()).await,
        Format::Files => importer.files(&options.input).await,
    };
    // What was read is written even when a later line is bad.
    let written = importer.writer.flush().await;
    importer.bar.finish_and_clear();
    written.context("cannot write all rows")?;
    read.with_context(|| format!("{} rows are imported", importer.rows))?;
    let seconds = env.clock.since(started).as_secs_f64();
    if options.json {
        println!("{}", json!({"rows": importer.rows, "value_bytes": importer.bytes, "seconds": seconds}));
    } else {
        println!(
            "imported {} rows, {} in {seconds:.1} s ({} rows/s)",
            human_count(importer.rows),
            human_bytes(importer.bytes),
            human_count((importer.rows as f64 / seconds.max(1e-9)) as u64)
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn guess_format(input: &Path) -> Result<Format> {
    if input.is_dir() {
        return Ok(Format::Files);
    }
    match input.extension().and_then(|extension| extension.to_str()) {
        Some("csv") => Ok(Format::Csv),
        Some("jsonl" | "ndjson") => Ok(Format::Jsonl),
        _ => bail!("cannot tell the format of {}; give --format csv, jsonl or files", input.display()),
    }
}

#[allow(clippy::disallowed_methods)] // input, not data of uruk
fn open(input: &Path) -> Result<Box<dyn std::io::Read>> {
    if input == Path::new("-") {
        return Ok(Box::new(std::io::stdin()));
    }
    let file = std::fs::File::open(input).with_context(|| format!("cannot open {}", input.display()))?;
    Ok(Box::new(BufReader::new(file)))
}

impl Importer {
    async fn csv(&mut self, input: &Path, key: Option<&str>) -> Result<()> {
        let mut reader = csv::Reader::from_reader(open(input)?);
        let headers = reader.headers().context("cannot read the header line")?.clone();
        let key_at = match key {
            Some(key) => headers.iter().position(|name| name == key).with_context(|| format!("no column {key}"))?,
            None => 0,
        };
        for record in reader.records() {
            let record = record.context("bad line")?;
            let line = record.position().map_or(0, csv::Position::line);
            let row = record.get(key_at).unwrap_or_default().to_owned();
            let cells = headers.iter().zip(&record).enumerate().filter(|(at, _)| *at != key_at);
            let cells = cells.map(|(_, (name, value))| (name.to_owned(), value.to_owned().into_bytes())).collect();
            self.add(row.into_bytes(), cells).await.with_context(|| format!("line {line}"))?;
        }
        Ok(())
    }

    async fn jsonl(&mut self, input: &Path, key: Option<&str>) -> Result<()> {
        let key = key.context("--key is missing: which member is the row key?")?;
        let lines = std::io::BufRead::lines(BufReader::new(open(input)?));
        for (at, line) in lines.enumerate() {
            let line = line.with_context(|| format!("line {}", at + 1))?;
            if line.trim().is_empty() {
                continue;
            }
            let object: Map<String, Value> =
                serde_json::from_str(&line).with_context(|| format!("line {}: not a JSON object", at + 1))?;
            let row = object.get(key).with_context(|| format!("line {}: no member {key:?}", at + 1))?;
            let row = value_bytes(row);
            let cells = object.iter().filter(|(name, _)| *name != key);
            let cells = cells.map(|(name, value)| (name.clone(), value_bytes(value))).collect();
            self.add(row, cells).await.with_context(|| format!("line {}", at + 1))?;
        }
        Ok(())
    }

    async fn files(&mut self, input: &Path) -> Result<()> {
        for file in folder_files(input)? {
            #[allow(clippy::disallowed_methods)] // input, not data of uruk
            let content = std::fs::read(&file.path).with_context(|| format!("cannot read {}", file.path.display()))?;
            self.add(file.row.clone().into_bytes(), vec![("content".to_owned(), content)])
                .await
                .with_context(|| file.path.display().to_string())?;
        }
        Ok(())
    }

    async fn add(&mut self, row: Vec<u8>, cells: Vec<(String, Vec<u8>)>) -> Result<()> {
        self.bytes += cells.iter().map(|(_, value)| value.len() as u64).sum::<u64>();
        let mutations: Vec<Mutation> = cells
            .into_iter()
            .map(|(name, value)| match name.split_once(':') {
                Some((family, qualifier)) => Mutation::set(family.to_owned(), qualifier.to_owned(), value),
                None => Mutation::set(self.family.clone(), name, value),
            })
            .collect();
        if mutations.is_empty() {
            bail!("a row without cells");
        }
        self.writer.add(RowMutation::new(row, mutations)).await?;
        self.rows += 1;
        if self.rows.is_multiple_of(1000) {
            self.bar.set_message(format!("{} rows", human_count(self.rows)));
            self.bar.tick();
        }
        Ok(())
    }
}

/// Text as it is, everything else as JSON.
fn value_bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::String(text) => text.clone().into_bytes(),
        other => other.to_string().into_bytes(),
    }
}
