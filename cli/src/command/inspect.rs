//! `uruk inspect`: what a file on disk holds, and where it is damaged.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use uruk_base::Env;
use uruk_proto::key::KeyRef;
use uruk_tabletserver::engine::sstable::format::MAGIC;
use uruk_tabletserver::engine::sstable::inspect::{TableReport, inspect};

use crate::output::{human_bytes, human_count, print_table, show_bytes};

/// Show what a table file holds, and where it is damaged
///
/// Ends with 1 when it found damage, and names the offset of each damaged piece.
#[derive(Args, Debug)]
pub struct Inspect {
    /// The file
    file: PathBuf,
    /// List every data block
    #[arg(long)]
    blocks: bool,
}

pub async fn run(options: Inspect) -> Result<ExitCode> {
    let content = Env::real().disk.read(&options.file).await;
    let content: Bytes = content.with_context(|| format!("cannot read {}", options.file.display()))?;
    let report = inspect(&content);
    if report.footer.is_none() && !content.ends_with(&MAGIC) && !looks_like_table(&options) {
        bail!("{} is not a table file: it does not end in {}", options.file.display(), MAGIC.escape_ascii());
    }
    print_report(&options, &report);
    for damage in &report.damage {
        println!("DAMAGED {} at byte {}: {}", options.file.display(), damage.offset, damage.what);
    }
    Ok(if report.damage.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn looks_like_table(options: &Inspect) -> bool {
    options.file.extension().is_some_and(|extension| extension == "sst")
}

fn print_report(options: &Inspect, report: &TableReport) {
    let mut rows = vec![vec!["file".to_owned(), human_bytes(report.bytes)]];
    let mut row = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
    if let Some(properties) = &report.properties {
        row("first key", show_key(&properties.key_min));
        row("last key", show_key(&properties.key_max));
        row("rows", human_count(properties.rows));
        row("cells", human_count(properties.cells));
        row("deletions", human_count(properties.deletions));
        row("keys and values", human_bytes(properties.raw_bytes));
        if properties.cells > 0 {
            row("timestamps", format!("{} to {} µs", properties.timestamp_min, properties.timestamp_max));
        }
        row("sequence numbers", format!("{} to {}", properties.seq_min, properties.seq_max));
        if properties.written_micros > 0 {
            row("written", format!("{} µs since 1970", properties.written_micros));
        }
    }
    row("filter", human_bytes(report.filter_bytes as u64));
    row("index partitions", human_count(report.partitions.len() as u64));
    let unpacked: usize = report.blocks.iter().map(|block| block.bytes).sum();
    let stored: u64 = report.blocks.iter().map(|block| u64::from(block.handle.len)).sum();
    let sizes = format!("{} ({} unpacked)", human_bytes(stored), human_bytes(unpacked as u64));
    row("data blocks", format!("{}, {sizes}", human_count(report.blocks.len() as u64)));
    print_table(&["PART", "CONTENT"], rows);
    if options.blocks {
        let rows = report.blocks.iter().map(|block| {
            let stored = human_bytes(u64::from(block.handle.len));
            vec![block.handle.offset.to_string(), stored, block.entries.to_string(), show_key(&block.key_first)]
        });
        print_table(&["OFFSET", "STORED", "ENTRIES", "FIRST KEY"], rows);
    }
}

fn show_key(key: &[u8]) -> String {
    match KeyRef::parse(key) {
        Ok(parts) => format!(
            "{} {}:{} @{} #{} {:?}",
            show_bytes(&parts.row()),
            parts.family,
            show_bytes(&parts.qualifier()),
            parts.timestamp,
            parts.seq,
            parts.kind
        ),
        Err(_) => show_bytes(key),
    }
}
