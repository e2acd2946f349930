//! `uruk inspect`: what a file on disk holds, and where it is damaged.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use uruk_base::Env;
use uruk_base::inspect::FileReport;
use uruk_consensus::inspect as raft;
use uruk_dfs_sim::format::inspect as store;
use uruk_proto::key::KeyRef;
use uruk_proto::schema::FilterOn;
use uruk_tabletserver::engine::sstable::format::MAGIC;
use uruk_tabletserver::engine::sstable::inspect::{TableReport, inspect};
use uruk_tabletserver::server::inspect as server;

use crate::output::{human_bytes, human_count, print_table, show_bytes};

/// Show what a file on disk holds, and where it is damaged
///
/// Knows table, memory and recovery files, chunks (and the file in one), replicas of log segments and their state,
/// a chunk server's GRAVES, and the segments, snapshots and state of a Raft log: by their first or last bytes, or
/// else by their name.
/// Ends with 1 when it found damage, and names the offset of each damaged piece.
#[derive(Args, Debug)]
pub struct Inspect {
    /// The file
    file: PathBuf,
    /// List every data block of a table file
    #[arg(long)]
    blocks: bool,
}

/// What a file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Table,
    Chunk,
    Memory,
    Recovery,
    Segment,
    SegmentState,
    Graves,
    RaftLog,
    RaftSnapshot,
    RaftState,
}

impl Kind {
    fn of(path: &Path, content: &[u8]) -> Option<Kind> {
        Kind::by_bytes(content).or_else(|| Kind::by_name(path))
    }

    fn by_bytes(content: &[u8]) -> Option<Kind> {
        let starts: [(&[u8], Kind); 6] = [
            (&store::SEGMENT_MAGIC, Kind::Segment),
            (&store::STATE_MAGIC, Kind::SegmentState),
            (&raft::LOG_MAGIC, Kind::RaftLog),
            (&raft::SNAPSHOT_MAGIC, Kind::RaftSnapshot),
            (&raft::STATE_MAGIC, Kind::RaftState),
            (&server::MEMORY_MAGIC, Kind::Memory),
        ];
        let ends: [(&[u8], Kind); 3] =
            [(&store::CHUNK_MAGIC, Kind::Chunk), (&MAGIC, Kind::Table), (&server::RECOVERY_MAGIC, Kind::Recovery)];
        let start = starts.iter().find(|(magic, _)| content.starts_with(magic));
        let end = ends.iter().find(|(magic, _)| content.ends_with(magic));
        match (start.map(|(_, kind)| *kind), end.map(|(_, kind)| *kind)) {
            // A chunk's bytes begin with those of the file in it.
            (Some(Kind::Memory), Some(Kind::Chunk)) => Some(Kind::Chunk),
            (start, end) => start.or(end),
        }
    }

    /// A file whose first or last bytes are damaged.
    fn by_name(path: &Path) -> Option<Kind> {
        let name = path.file_name()?.to_str()?;
        let extension = path.extension().and_then(|extension| extension.to_str());
        match (name, extension) {
            (_, Some("sst")) => Some(Kind::Table),
            (_, Some("chunk")) => Some(Kind::Chunk),
            (_, Some("log")) => Some(Kind::Segment),
            (_, Some("meta")) => Some(Kind::SegmentState),
            (_, Some("mem")) => Some(Kind::Memory),
            ("GRAVES", _) => Some(Kind::Graves),
            ("state", _) => Some(Kind::RaftState),
            (name, _) if name.starts_with("log-") => Some(Kind::RaftLog),
            (name, _) if name.starts_with("snapshot-") => Some(Kind::RaftSnapshot),
            _ => None,
        }
    }
}

pub async fn run(options: Inspect) -> Result<ExitCode> {
    let content = Env::real().disk.read(&options.file).await;
    let content: Bytes = content.with_context(|| format!("cannot read {}", options.file.display()))?;
    let Some(kind) = Kind::of(&options.file, &content) else {
        bail!(
            "{} is no file of Uruk's that can be shown: neither its bytes nor its name say so",
            options.file.display()
        );
    };
    let sound = match kind {
        Kind::Table => show_table(&options, &content),
        Kind::Chunk => {
            let (report, data) = store::chunk(&content);
            let is_sound = show(&options, &report);
            // The chunk of a small file is that file.
            let data = data.unwrap_or_default();
            match Kind::by_bytes(&data) {
                Some(Kind::Table) => show_table(&options, &data) && is_sound,
                Some(Kind::Memory) => show(&options, &server::memory(&data)) && is_sound,
                Some(Kind::Recovery) => show(&options, &server::recovery(&data)) && is_sound,
                None
                | Some(
                    Kind::Chunk
                    | Kind::Segment
                    | Kind::Graves
                    | Kind::SegmentState
                    | Kind::RaftLog
                    | Kind::RaftSnapshot
                    | Kind::RaftState,
                ) => is_sound,
            }
        }
        Kind::Segment => {
            let beside = Env::real().disk.read(&options.file.with_extension("meta")).await.ok();
            let state = beside.and_then(|beside| store::state(&beside).1);
            show(&options, &store::segment(&content, state.as_ref()))
        }
        Kind::Memory => show(&options, &server::memory(&content)),
        Kind::Recovery => show(&options, &server::recovery(&content)),
        Kind::Graves => show(&options, &store::graves(&content)),
        Kind::SegmentState => show(&options, &store::state(&content).0),
        Kind::RaftLog => show(&options, &raft::log_segment(&content)),
        Kind::RaftSnapshot => show(&options, &raft::snapshot_file(&content)),
        Kind::RaftState => show(&options, &raft::state_file(&content)),
    };
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Prints a report; whether nothing is damaged.
fn show(options: &Inspect, report: &FileReport) -> bool {
    let mut rows = vec![vec!["kind".to_owned(), report.kind.to_owned()]];
    rows.extend(report.facts.iter().map(|(name, content)| vec![(*name).to_owned(), content.clone()]));
    print_table(&["PART", "CONTENT"], rows);
    let damage = report.damage.iter().map(|damage| (damage.offset, &*damage.what));
    print_damage(&options.file, damage)
}

fn show_table(options: &Inspect, content: &Bytes) -> bool {
    let report = inspect(content);
    print_report(options, &report);
    print_damage(&options.file, report.damage.iter().map(|damage| (damage.offset, &*damage.what)))
}

fn print_damage<'a>(file: &Path, damage: impl Iterator<Item = (u64, &'a str)>) -> bool {
    let mut is_sound = true;
    for (offset, what) in damage {
        println!("DAMAGED {} at byte {offset}: {what}", file.display());
        is_sound = false;
    }
    is_sound
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
        if let Some(families) = &properties.families {
            let ids: Vec<String> = families.iter().map(|family| family.0.to_string()).collect();
            row("families", ids.join(", "));
        }
        row("sequence numbers", format!("{} to {}", properties.seq_min, properties.seq_max));
        if properties.written_micros > 0 {
            row("written", format!("{} µs since 1970", properties.written_micros));
        }
    }
    let knows = match report.properties.as_ref().and_then(|properties| properties.filter) {
        Some(FilterOn::RowColumn) => "rows and columns",
        Some(FilterOn::Row) | None => "rows",
    };
    let filters = report.filters.len() as u64;
    row("filters on", if filters > 0 { knows.to_owned() } else { "nothing".to_owned() });
    row("filters", format!("{}, {}", human_count(filters), human_bytes(report.filter_bytes as u64)));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_bytes_and_when_they_are_damaged_by_its_name() {
        let kind = |name: &str, content: &[u8]| Kind::of(Path::new(name), content);
        assert_eq!(kind("x", b"...URUK-SST"), Some(Kind::Table));
        assert_eq!(kind("x", b"...URUKCHNK"), Some(Kind::Chunk));
        assert_eq!(kind("x", b"UMEM..."), Some(Kind::Memory));
        assert_eq!(kind("x", b"UMEM...URUKCHNK"), Some(Kind::Chunk), "a memory file in a chunk");
        assert_eq!(kind("x", b"...URCV"), Some(Kind::Recovery));
        assert_eq!(kind("0001.log", b"URUKSEGM..."), Some(Kind::Segment));
        assert_eq!(kind("log-0001", b"URUKRLOG..."), Some(Kind::RaftLog));
        for (name, expected) in [
            ("a.sst", Kind::Table),
            ("a.chunk", Kind::Chunk),
            ("a.log", Kind::Segment),
            ("a.meta", Kind::SegmentState),
            ("a.mem", Kind::Memory),
            ("GRAVES", Kind::Graves),
            ("state", Kind::RaftState),
            ("log-1", Kind::RaftLog),
            ("snapshot-1-2", Kind::RaftSnapshot),
        ] {
            assert_eq!(kind(name, b"damaged"), Some(expected));
        }
        assert_eq!(kind("README.md", b"# Uruk"), None);
    }
}
