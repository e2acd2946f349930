//! Files as a whole: what goes in comes out, and damage never goes unnoticed.

use std::sync::Arc;

use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use proptest::prelude::*;
use uruk_base::Env;
use uruk_proto::master::FileRef;
use uruk_proto::schema::FilterOn;
use uruk_proto::{FamilyId, SeqNo, key};

use super::cursor::{CursorState, FileCursor, ReadOptions};
use super::format::Compression;
use super::row_filter::RowProbe;
use super::skip::Wanted;
use super::tail::Answer;
use super::*;
use crate::engine::{EngineConfig, EngineContext, EngineError};

type Entries = Vec<(Vec<u8>, Vec<u8>)>;

const OPTIONS: ReadOptions = ReadOptions {
    fill_cache: true,
    cache_fill_bytes_max: u64::MAX,
    readahead_bytes_min: 1 << 10,
    readahead_bytes_max: 4 << 10,
    wanted: Wanted::ALL,
};

fn config() -> EngineConfig {
    // Partitions of few rows.
    EngineConfig { block_bytes: 256, filter_partition_bytes: 10, ..EngineConfig::default() }
}

fn context(store: Arc<dyn ObjectStore>) -> Arc<EngineContext> {
    EngineContext::new(Env::real(), store, config()).unwrap()
}

fn build(entries: &Entries) -> (Bytes, Properties) {
    build_with(entries, Compression::Lz4)
}

fn build_with(entries: &Entries, compression: Compression) -> (Bytes, Properties) {
    build_filtered(entries, compression, FilterOn::Row)
}

fn build_filtered(entries: &Entries, compression: Compression, filter: FilterOn) -> (Bytes, Properties) {
    let mut builder = TableBuilder::new(&config(), compression, 5).with_filter(filter);
    let mut out = Vec::new();
    for (key, value) in entries {
        builder.add(key, value).unwrap();
        out.extend_from_slice(&builder.take_output());
    }
    let built = builder.finish();
    out.extend_from_slice(&built.output);
    assert_eq!(built.bytes, out.len() as u64);
    (out.into(), built.properties)
}

async fn file(content: Bytes, cells: u64) -> Arc<FileHandle> {
    let store = Arc::new(InMemory::new());
    let reference = FileRef { path: "f".into(), bytes: content.len() as u64, cells, ..FileRef::default() };
    store.put(&Path::from("f"), content.into()).await.unwrap();
    Arc::new(context(store).files.handle(&reference).unwrap())
}

async fn settle(cursor: &mut FileCursor) -> Result<bool, EngineError> {
    while cursor.state() == CursorState::Blocked {
        cursor.load().await?;
    }
    Ok(cursor.state() == CursorState::At)
}

async fn read_all(file: &Arc<FileHandle>, from: &[u8], upper: &[u8]) -> Result<Entries, EngineError> {
    let mut cursor = FileCursor::new(file.clone(), OPTIONS);
    let mut entries = Vec::new();
    cursor.seek(from, upper, None)?;
    while settle(&mut cursor).await? {
        entries.push((cursor.key().to_vec(), cursor.value().to_vec()));
        cursor.advance()?;
    }
    Ok(entries)
}

/// A scan reads no filters, look-ups do.
async fn read_and_look_up(file: &Arc<FileHandle>, entries: &Entries) -> Result<Entries, EngineError> {
    let mut cursor = FileCursor::new(file.clone(), OPTIONS);
    for (key, _) in entries {
        let row = &key[..key::row_prefix_len(key).unwrap()];
        cursor.seek(row, &[], Some(&Arc::new(RowProbe::row(row.to_vec()))))?;
        settle(&mut cursor).await?;
    }
    read_all(file, &[], &[]).await
}

fn entries() -> impl Strategy<Value = Entries> {
    let bytes = |max| prop::collection::vec(prop_oneof![Just(0u8), 97u8..100, any::<u8>()], 0..max);
    let entry = (bytes(6), 1u64..4, bytes(4), 0i64..5, any::<u64>(), prop::collection::vec(any::<u8>(), 0..80));
    prop::collection::vec(entry, 1..120).prop_map(|list| {
        let key = |(row, family, qualifier, timestamp, seq, value): (Vec<u8>, u64, Vec<u8>, i64, u64, Vec<u8>)| {
            let row = if row.is_empty() { vec![b'r'] } else { row };
            match seq % 7 {
                0 => (key::delete_row(&row, SeqNo(seq)), Vec::new()),
                1 => (key::delete_family(&row, FamilyId(family), SeqNo(seq)), Vec::new()),
                2 => {
                    let value = key::delete_column_value(timestamp, timestamp + 1).to_vec();
                    (key::delete_column(&row, FamilyId(family), &qualifier, SeqNo(seq)), value)
                }
                _ => (key::cell(&row, FamilyId(family), &qualifier, timestamp, SeqNo(seq)), value),
            }
        };
        let sorted: std::collections::BTreeMap<_, _> = list.into_iter().map(key).collect();
        sorted.into_iter().collect()
    })
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_file_gives_back_what_went_in(
        entries in entries(),
        from in 0usize..130,
        to in 0usize..130,
        compression in prop_oneof![Just(Compression::Raw), Just(Compression::Lz4), Just(Compression::Zstd)],
    ) {
        let (content, properties) = build_with(&entries, compression);
        let seqs = entries.iter().map(|(key, _)| key::seq_of(key).unwrap());
        prop_assert_eq!((properties.seq_min, properties.seq_max), (seqs.clone().min().unwrap(), seqs.max().unwrap()));
        let rows: std::collections::BTreeSet<_> =
            entries.iter().map(|(key, _)| key[..key::row_prefix_len(key).unwrap()].to_vec()).collect();
        prop_assert_eq!(properties.rows, rows.len() as u64);
        prop_assert_eq!(properties.entries(), entries.len() as u64);
        run(async {
            let file = file(content, entries.len() as u64).await;
            assert_eq!(read_all(&file, &[], &[]).await.unwrap(), entries);
            let bound = |i: usize| entries.get(i).map(|(key, _)| key.clone()).unwrap_or_default();
            let (from, to) = (bound(from), bound(to));
            let within = |key: &Vec<u8>| *key >= from && (to.is_empty() || *key < to);
            let expected: Entries = entries.iter().filter(|(key, _)| within(key)).cloned().collect();
            assert_eq!(read_all(&file, &from, &to).await.unwrap(), expected);

            let mut cursor = FileCursor::new(file.clone(), OPTIONS);
            cursor.seek_before(&to, &from).unwrap();
            let last = settle(&mut cursor).await.unwrap().then(|| cursor.key().to_vec());
            assert_eq!(last.as_ref(), expected.last().map(|(key, _)| key));

            for row in rows {
                let mut cursor = FileCursor::new(file.clone(), OPTIONS);
                cursor.seek(&row, &[], Some(&Arc::new(RowProbe::row(row.clone())))).unwrap();
                assert!(settle(&mut cursor).await.unwrap(), "the filter knows every row");
                assert!(cursor.key().starts_with(&row));
            }
        });
    }
}

fn sample() -> Entries {
    (0..60u32)
        .map(|i| {
            let key = key::cell(format!("row-{:03}", i / 2).as_bytes(), FamilyId(1), b"q", i64::from(i), SeqNo(9));
            (key, if i % 3 == 0 { vec![b'v'; 40] } else { (i.wrapping_mul(0x9E37_79B9)).to_be_bytes().to_vec() })
        })
        .collect::<std::collections::BTreeMap<_, _>>()
        .into_iter()
        .collect()
}

/// A file as version 1 wrote it (without a filter), 2 (index entries without facts, properties without families) or 3
/// (one filter on rows for the whole file).
fn old_version(entries: &Entries, version: u8) -> Bytes {
    let (mut out, mut packer) = (Vec::new(), format::BlockPacker::new(Compression::Raw));
    let (mut partition, mut root) = (block::BlockBuilder::new(1), block::BlockBuilder::new(1));
    let mut put = |out: &mut Vec<u8>, payload: &[u8]| {
        let offset = out.len() as u64;
        packer.put(out, offset, payload)
    };
    let mut properties = build(entries).1;
    let (mut facts, mut hashes) = (skip::Facts::NONE, Vec::new());
    for (i, block) in entries.chunks(5).enumerate() {
        let mut data = block::BlockBuilder::new(3);
        block.iter().for_each(|(key, value)| data.add(key, value));
        let handle = put(&mut out, data.finish());
        let mut own = skip::Facts::NONE;
        for (key, _) in block {
            let parts = key::KeyRef::parse(key).unwrap();
            own.add(&parts);
            hashes.push(bloom::row_hash(parts.row_prefix()));
        }
        facts.merge(&own);
        let value = if version < 3 { handle.pack().to_vec() } else { format::index_value(handle, &own, None) };
        partition.add(if i == 0 { &[] } else { &block[0].0 }, &value);
    }
    let handle = put(&mut out, partition.finish());
    root.add(&[], &if version < 3 { handle.pack().to_vec() } else { format::index_value(handle, &facts, None) });
    let filter = match version {
        1 => format::Handle { offset: out.len() as u64, len: 0 },
        _ => put(&mut out, &bloom::build(&hashes, 10)),
    };
    properties.filter = None;
    if version < 3 {
        properties.families = None;
    }
    if version < 2 {
        properties.written_micros = 0;
    }
    let mut payload = Vec::new();
    properties.put(&mut payload);
    let properties = put(&mut out, &payload);
    let root = put(&mut out, root.finish());
    let at = out.len();
    format::Footer { filter, properties, root }.put(&mut out);
    out[at + 36] = version;
    let crc = crc32fast::hash(&out[at..at + 40]);
    out[at + 40..at + 44].copy_from_slice(&crc.to_le_bytes());
    out.into()
}

#[test]
fn files_of_older_versions_are_read_and_their_one_filter_is_asked() {
    let (entries, probe) = (sample(), |row: &str| Arc::new(RowProbe::row(key::row_prefix(row.as_bytes()))));
    for version in 1..4 {
        let content = old_version(&entries, version);
        let report = inspect::inspect(&content);
        assert_eq!((report.damage, report.filters.len()), (vec![], if version == 1 { 0 } else { 1 }), "{version}");
        assert_eq!(report.properties.unwrap().filter, None);
        run(async {
            let file = file(content, 60).await;
            assert_eq!(read_all(&file, &[], &[]).await.unwrap(), entries);
            let mut cursor = FileCursor::new(file.clone(), OPTIONS);
            for i in 0..30 {
                let probe = probe(&format!("row-{i:03}"));
                cursor.seek(&probe.row.prefix, &[], Some(&probe)).unwrap();
                assert!(settle(&mut cursor).await.unwrap() && cursor.key().starts_with(&probe.row.prefix));
            }
            let absent = (0..30).filter(|i| file.ask(&probe(&format!("row-{i:03}x"))) == Some(Answer::Absent)).count();
            assert!(if version == 1 { absent == 0 } else { absent > 25 }, "version {version}: {absent} of 30");
        });
    }
}

#[test]
fn a_file_of_version_2_is_read_whatever_is_wanted() {
    let (entries, wanted) = (sample(), Wanted { timestamp_min: 55, timestamp_end: 60, families: 2 });
    let content = old_version(&entries, 2);
    assert_eq!(inspect::inspect(&content).damage, []);
    run(async {
        let file = file(content, 60).await;
        assert_eq!(read_all(&file, &[], &[]).await.unwrap(), entries);
        let mut cursor = FileCursor::new(file, ReadOptions { wanted, ..OPTIONS });
        cursor.seek(&[], &[], None).unwrap();
        assert!(settle(&mut cursor).await.unwrap(), "its index does not say what to skip");
        assert_eq!(cursor.key(), entries[0].0);
    });
}

#[test]
fn every_flipped_bit_is_an_error_and_names_the_file() {
    let entries = sample();
    let (content, _) = build(&entries);
    run(async {
        for at in 0..content.len() {
            for bit in [0, 3, 7] {
                let mut damaged = content.to_vec();
                damaged[at] ^= 1 << bit;
                let file = file(damaged.into(), 60).await;
                match read_and_look_up(&file, &entries).await {
                    Ok(_) => panic!("byte {at} flipped and nothing seen"),
                    Err(EngineError::Corrupt { file, offset, .. }) => {
                        assert_eq!(file, "f");
                        assert!(offset <= at as u64 + 1, "damage at {at} reported behind it, at {offset}");
                    }
                    Err(other) => panic!("byte {at}: {other}"),
                }
            }
        }
    });
}

#[test]
fn a_cut_file_is_an_error() {
    let entries = sample();
    let (content, _) = build(&entries);
    run(async {
        for len in 0..content.len() {
            let short = file(content.slice(..len), 60).await;
            assert!(read_all(&short, &[], &[]).await.is_err(), "{len} bytes");
            let store = Arc::new(InMemory::new());
            store.put(&Path::from("f"), content.slice(..len).into()).await.unwrap();
            let reference = FileRef { path: "f".into(), bytes: content.len() as u64, cells: 60, ..FileRef::default() };
            let lost_end = Arc::new(context(store).files.handle(&reference).unwrap());
            assert!(read_all(&lost_end, &[], &[]).await.is_err(), "{len} of {} bytes", content.len());
        }
    });
}

#[test]
fn a_missing_file_is_named_and_retriable() {
    run(async {
        let reference = FileRef { path: "gone".into(), bytes: 1000, cells: 1, ..FileRef::default() };
        let file = Arc::new(context(Arc::new(InMemory::new())).files.handle(&reference).unwrap());
        let error = read_all(&file, &[], &[]).await.unwrap_err();
        assert_eq!(error, EngineError::MissingFile { file: "gone".into() });
        assert!(error.is_retriable());
    });
}

#[test]
fn a_large_file_goes_up_in_parts() {
    run(async {
        let store = Arc::new(InMemory::new());
        let config = EngineConfig { put_bytes_max: 6 << 20, multipart_part_bytes: 5 << 20, ..config() };
        let content: Vec<u8> = (0..23u32 << 20).map(|i| (i / 1000) as u8).collect();
        let content = Bytes::from(content);
        let mut upload = upload::Upload::new(store.clone(), Path::from("large"), &config);
        for at in (0..content.len()).step_by(777_777) {
            upload.add(content.slice(at..(at + 777_777).min(content.len()))).await.unwrap();
            assert!(store.get(&Path::from("large")).await.is_err(), "nothing is there before the end");
        }
        upload.finish().await.unwrap();
        assert_eq!(store.get(&Path::from("large")).await.unwrap().bytes().await.unwrap(), content);
    });
}

/// Valid inputs of every decoder, cut out of one valid file.
fn valid_pieces() -> Vec<Bytes> {
    let mut pieces = Vec::new();
    for compression in [Compression::Raw, Compression::Lz4, Compression::Zstd] {
        let filter = if compression == Compression::Raw { FilterOn::Row } else { FilterOn::RowColumn };
        let (file, _) = build_filtered(&sample(), compression, filter);
        let report = inspect::inspect(&file);
        let footer = report.footer.unwrap();
        let handles =
            [report.filters[0], footer.properties, footer.root, report.partitions[0], report.blocks[1].handle];
        for handle in handles {
            let stored = file.slice(handle.offset as usize..handle.end() as usize);
            pieces.push(format::unpack_payload(&stored, handle.offset).unwrap());
            pieces.push(stored.slice(..stored.len() - 4));
        }
        pieces.push(file.slice(footer.root.end() as usize..));
        pieces.push(file);
    }
    pieces.push(sample()[0].0.clone().into());
    pieces
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_decoder_panics_on_damaged_input(
        piece in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 0..6),
    ) {
        thread_local! { static PIECES: Vec<Bytes> = valid_pieces(); }
        let mut input = PIECES.with(|pieces| pieces[piece.index(pieces.len())].to_vec());
        for (at, byte, how) in changes {
            if input.is_empty() { break }
            let at = at.index(input.len());
            match how {
                0 => input[at] = byte,
                1 => input[at] ^= 1 << (byte % 8),
                2 => input.truncate(at),
                _ => input.insert(at, byte),
            }
        }
        decode::DECODERS.iter().for_each(|(_, decode)| decode(&input));
    }
}

/// From a fixed seed: pieces of valid inputs with bytes changed, cut, repeated and spliced.
#[test]
fn a_short_fuzz_run_from_the_corpus_panics_nowhere() {
    const RUNS: u32 = 4000;
    let (corpus, random) = (valid_pieces(), uruk_base::Random::from_seed(1));
    for _ in 0..RUNS {
        let input = uruk_base::splice::spliced(&corpus, &random);
        decode::DECODERS.iter().for_each(|(_, decode)| decode(&input));
    }
}

#[test]
fn an_inspection_finds_nothing_wrong_in_a_good_file_and_every_flipped_bit_in_a_bad_one() {
    let (content, properties) = build(&sample());
    let report = inspect::inspect(&content);
    assert_eq!(report.damage, []);
    assert_eq!((report.properties, report.entries), (Some(properties), 60));
    assert!(report.blocks.len() > 3 && report.filter_bytes > 64);
    for at in 0..content.len() {
        let mut damaged = content.to_vec();
        damaged[at] ^= 1 << (at % 8);
        let report = inspect::inspect(&damaged.into());
        let first = report.damage.first().unwrap_or_else(|| panic!("byte {at} flipped and nothing seen"));
        assert!(first.offset <= at as u64, "damage at {at} reported behind it, at {}", first.offset);
    }
}

/// Everything that a look-up of a column must find, by the rules of visibility: the column's cells and deletions, its
/// family's deletion, its row's deletion.
fn matters(entry: &[u8], row: &[u8], family: FamilyId, column: &[u8]) -> bool {
    let parts = key::KeyRef::parse(entry).unwrap();
    parts.row_prefix() == row
        && match parts.kind {
            key::Kind::Cell | key::Kind::DeleteColumn => entry[parts.row_len..parts.column_len] == *column,
            key::Kind::DeleteFamily => parts.family == family,
            key::Kind::DeleteRow => true,
        }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn filters_hide_no_cell_and_no_deletion_of_a_row_or_column(
        entries in entries(),
        block_bytes in 1usize..600,
        filter_bytes in 1usize..40,
        pinned in prop_oneof![Just(0u64), Just(100), Just(1 << 20)],
    ) {
        let config = EngineConfig {
            block_bytes,
            filter_partition_bytes: filter_bytes,
            index_pinned_bytes_max: pinned,
            ..EngineConfig::default()
        };
        let mut builder = TableBuilder::new(&config, Compression::Raw, 5).with_filter(FilterOn::RowColumn);
        entries.iter().for_each(|(key, value)| builder.add(key, value).unwrap());
        let content = builder.finish().output;
        prop_assert_eq!(inspect::inspect(&content).damage, []);
        run(async {
            let store = Arc::new(InMemory::new());
            let reference = FileRef { path: "f".into(), bytes: content.len() as u64, ..FileRef::default() };
            store.put(&Path::from("f"), content.into()).await.unwrap();
            let context = EngineContext::new(Env::real(), store, EngineConfig { block_bytes: 256, ..config }).unwrap();
            let file = Arc::new(context.files.handle(&reference).unwrap());
            let rows: std::collections::BTreeSet<&[u8]> =
                entries.iter().map(|(key, _)| &key[..key::row_prefix_len(key).unwrap()]).collect();
            let columns: std::collections::BTreeSet<(FamilyId, Vec<u8>)> = entries
                .iter()
                .map(|(key, _)| key::KeyRef::parse(key).unwrap())
                .filter(|parts| matches!(parts.kind, key::Kind::Cell | key::Kind::DeleteColumn))
                .map(|parts| (parts.family, parts.key[parts.row_len..parts.column_len].to_vec()))
                .collect();
            for row in &rows {
                for (family, column) in &columns {
                    let wanted = [(*family, &column[..])].into_iter();
                    let probe = Arc::new(RowProbe::columns(row.to_vec(), wanted));
                    let first = entries.iter().find(|(key, _)| matters(key, row, *family, column));
                    let mut cursor = FileCursor::new(file.clone(), OPTIONS);
                    cursor.seek(row, &[], Some(&probe)).unwrap();
                    let found = settle(&mut cursor).await.unwrap();
                    if first.is_some() {
                        assert!(found && cursor.key().starts_with(row), "{row:?} {column:?} is hidden");
                        assert_ne!(file.ask(&probe), Some(Answer::Absent));
                    }
                }
            }
        });
    }
}

/// Rows with cells in columns `c0`..`c4`, of which each row has two; every eighth row has a deletion of its family, every
/// ninth its own.
fn sparse(rows: u32) -> Entries {
    let mut entries = std::collections::BTreeMap::new();
    for i in 0..rows {
        let row = format!("row-{i:06}").into_bytes();
        for j in [i % 5, (i + 1) % 5] {
            let key = key::cell(&row, FamilyId(1), format!("c{j}").as_bytes(), 1, SeqNo(9));
            entries.insert(key, b"value".to_vec());
        }
        if i % 8 == 0 {
            entries.insert(key::delete_family(&row, FamilyId(1), SeqNo(5)), Vec::new());
        }
        if i % 9 == 0 {
            entries.insert(key::delete_row(&row, SeqNo(4)), Vec::new());
        }
    }
    entries.into_iter().collect()
}

#[test]
fn about_one_look_up_in_a_hundred_is_misled_of_rows_and_of_columns() {
    const ROWS: u32 = 20_000;
    let config = EngineConfig { bloom_bits_per_row: 10, ..EngineConfig::default() };
    let mut builder = TableBuilder::new(&config, Compression::Lz4, 5).with_filter(FilterOn::RowColumn);
    let mut without_deletions = sparse(ROWS);
    without_deletions.retain(|(key, _)| key::KeyRef::parse(key).unwrap().kind == key::Kind::Cell);
    without_deletions.iter().for_each(|(key, value)| builder.add(key, value).unwrap());
    let content = builder.finish().output;
    assert!(inspect::inspect(&content).filters.len() > 1, "of several partitions");
    run(async {
        let file = file(content, 0).await;
        let tail = file.file.open().await.unwrap();
        for filter in (0..).map_while(|number| tail.filter(number)) {
            file.file.read_filter(filter).await.unwrap();
        }
        let column = |j: u32| {
            let mut column = Vec::new();
            key::put_column(&mut column, FamilyId(1), format!("c{j}").as_bytes());
            column
        };
        let ask = |row: &str, j: u32| {
            let column = column(j);
            let wanted = [(FamilyId(1), &column[..])].into_iter();
            file.file.ask(tail, &RowProbe::columns(key::row_prefix(row.as_bytes()), wanted))
        };
        let (mut misled_rows, mut misled_columns) = (0, 0);
        for i in 0..ROWS {
            let (row, other) = (format!("row-{i:06}"), format!("row-{i:06}-"));
            assert_eq!((ask(&row, i % 5), ask(&row, (i + 1) % 5)), (Answer::Maybe, Answer::Maybe));
            misled_columns += u32::from(ask(&row, (i + 2) % 5) == Answer::Maybe);
            let row_alone = RowProbe::row(key::row_prefix(other.as_bytes()));
            misled_rows += u32::from(file.file.ask(tail, &row_alone) == Answer::Maybe);
        }
        assert!(misled_rows < ROWS * 18 / 1_000, "{misled_rows} absent rows of {ROWS} taken for present");
        assert!(misled_columns < ROWS * 18 / 1_000, "{misled_columns} absent columns of {ROWS} taken for present");
    });
}

#[test]
fn a_file_with_a_deletion_of_the_row_or_family_is_asked_for_any_of_its_columns() {
    let (content, _) = build_filtered(&sparse(200), Compression::Raw, FilterOn::RowColumn);
    run(async {
        let file = file(content, 0).await;
        let mut seen = [0; 2];
        for i in 0..200u32 {
            let mut column = Vec::new();
            key::put_column(&mut column, FamilyId(1), b"never written");
            let row = key::row_prefix(format!("row-{i:06}").as_bytes());
            let probe = Arc::new(RowProbe::columns(row.clone(), [(FamilyId(1), &column[..])].into_iter()));
            let mut cursor = FileCursor::new(file.clone(), OPTIONS);
            cursor.seek(&row, &[], Some(&probe)).unwrap();
            let found = settle(&mut cursor).await.unwrap();
            let has_deletion = i % 8 == 0 || i % 9 == 0;
            assert!(found || !has_deletion, "row {i}");
            seen[usize::from(has_deletion)] += u32::from(found);
        }
        assert!(seen[0] < 20, "{} of the other rows are read in vain", seen[0]);
    });
}

#[test]
fn an_inspection_finds_filters_that_forget_a_column() {
    let entries = sparse(20);
    let (content, _) = build_filtered(&entries, Compression::Raw, FilterOn::Row);
    let footer = inspect::inspect(&content).footer.unwrap();
    // The same file, said to know columns.
    let at = footer.properties.end() as usize - format::TRAILER_BYTES - 1;
    let mut lies = content.to_vec();
    lies[at] = 2;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&lies[footer.properties.offset as usize..footer.properties.end() as usize - 4]);
    hasher.update(&footer.properties.offset.to_le_bytes());
    let crc = hasher.finalize().to_le_bytes();
    lies[footer.properties.end() as usize - 4..footer.properties.end() as usize].copy_from_slice(&crc);
    let damage = inspect::inspect(&lies.into()).damage;
    assert!(damage.iter().any(|damage| damage.what == "the filter does not know a column of this block"), "{damage:?}");
}
