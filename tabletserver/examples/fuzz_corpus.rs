//! Writes seeds for the fuzz targets: valid inputs of every decoder, cut out of small table files.
//!
//! `cargo run -p uruk-tabletserver --example fuzz_corpus [FOLDER]` (default `fuzz/corpus`)

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use uruk_proto::schema::FilterOn;
use uruk_proto::{FamilyId, SeqNo, key};
use uruk_tabletserver::engine::EngineConfig;
use uruk_tabletserver::engine::sstable::format::{Compression, Handle, index_value, unpack_payload};
use uruk_tabletserver::engine::sstable::skip::Facts;
use uruk_tabletserver::engine::sstable::{TableBuilder, inspect};

fn table(compression: Compression, filter: FilterOn) -> Bytes {
    let config = EngineConfig { block_bytes: 256, filter_partition_bytes: 16, ..EngineConfig::default() };
    let mut builder = TableBuilder::new(&config, compression, 1).with_filter(filter);
    for i in 0..40u64 {
        let row = format!("row-{i:03}");
        let (key, value) = match i % 8 {
            0 => (key::delete_row(row.as_bytes(), SeqNo(i + 1)), Vec::new()),
            1 => (
                key::delete_column(row.as_bytes(), FamilyId(1), b"q", SeqNo(i + 1)),
                key::delete_column_value(1, 9).to_vec(),
            ),
            _ => (key::cell(row.as_bytes(), FamilyId(1), b"q", i as i64, SeqNo(i + 1)), vec![b'v'; i as usize]),
        };
        builder.add(&key, &value).expect("a good key");
    }
    builder.finish().output
}

fn put(folder: &Path, target: &str, name: &str, data: &[u8]) -> io::Result<()> {
    let folder = folder.join(target);
    std::fs::create_dir_all(&folder)?;
    OpenOptions::new().create(true).truncate(true).write(true).open(folder.join(name))?.write_all(data)
}

fn main() -> io::Result<()> {
    let folder = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "fuzz/corpus".to_owned()));
    for (compression, filter) in [
        (Compression::Raw, FilterOn::Row),
        (Compression::Lz4, FilterOn::RowColumn),
        (Compression::Zstd, FilterOn::RowColumn),
    ] {
        let name = format!("{compression:?}").to_lowercase();
        let file = table(compression, filter);
        let report = inspect::inspect(&file);
        let footer = report.footer.expect("a good file");
        put(&folder, "table_file", &name, &file)?;
        put(&folder, "footer", &name, &file[footer.root.end() as usize..])?;
        let stored = |handle: Handle| file.slice(handle.offset as usize..handle.end() as usize);
        let payload = |handle: Handle| unpack_payload(&stored(handle), handle.offset).expect("a good block");
        for (i, filter) in report.filters.iter().enumerate() {
            put(&folder, "bloom", &format!("{name}-{i}"), &payload(*filter))?;
        }
        put(&folder, "properties", &name, &payload(footer.properties))?;
        put(&folder, "block", &format!("{name}-root"), &payload(footer.root))?;
        put(&folder, "tail", &name, &payload(footer.root))?;
        for (i, block) in report.blocks.iter().enumerate() {
            put(&folder, "block", &format!("{name}-{i}"), &payload(block.handle))?;
            // Without its checksum, which the target adds.
            let stored = stored(block.handle);
            put(&folder, "stored_block", &format!("{name}-{i}"), &stored[..stored.len() - 4])?;
            put(&folder, "internal_key", &format!("{name}-{i}"), &block.key_first)?;
            put(&folder, "index_value", &format!("{name}-{i}"), &index_value(block.handle, &Facts::NONE, None))?;
            let in_root = index_value(block.handle, &Facts::NONE, Some(block.handle));
            put(&folder, "index_value", &format!("{name}-root-{i}"), &in_root)?;
        }
    }
    Ok(())
}
