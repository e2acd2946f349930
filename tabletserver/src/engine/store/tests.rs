//! What the model test cannot show: threads, pins, and misuse.

use std::sync::atomic::{AtomicBool, Ordering};

use object_store::memory::InMemory;
use uruk_base::{Env, Tasks};
use uruk_proto::FamilyId;
use uruk_proto::TableId;
use uruk_proto::cell_batch::{self, Row};
use uruk_proto::schema::{Family, FilterOn, GcRule, LocalityGroup};

use super::*;
use crate::engine::compaction::policy::Reason;
use crate::engine::filter::Qualifiers;
use crate::engine::{EngineConfig, Filter, ScanRequest, ScanTargets};

/// Compactions cut files at this size.
const FILE_BYTES: u64 = 4 << 10;

fn set(family: u64, value: u64) -> Mutation {
    let value = Bytes::copy_from_slice(&value.to_be_bytes());
    Mutation::SetCell { family: FamilyId(family), qualifier: Bytes::from_static(b"q"), timestamp: 1, value }
}

/// Two families in two locality groups.
fn store() -> TabletStore {
    let env = Env { tasks: Tasks::simulated(), ..Env::real() };
    let config = EngineConfig {
        block_bytes: 512,
        scan_batch_bytes: 700,
        compaction_file_bytes: FILE_BYTES,
        ..EngineConfig::default()
    };
    let context = EngineContext::new(env, Arc::new(InMemory::new()), config).unwrap();
    let family =
        |id: u64| Family { name: format!("f{id}"), id: FamilyId(id), gc: GcRule::KeepAll, locality_group: id as u32 };
    let schema = TableSchema {
        id: TableId(1),
        name: "t".into(),
        version: 1,
        families: vec![family(1), family(2)],
        ..TableSchema::default()
    };
    TabletStore::open(&context, Arc::new(schema), &MetaRow::default()).unwrap()
}

fn write(store: &TabletStore, i: u64) {
    store.apply(SeqNo(2 * i + 1), format!("row{i:08}").as_bytes(), &[set(1, i), set(2, i)]);
    store.publish(SeqNo(2 * i + 2));
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

async fn rows(view: &ReadView) -> Result<Vec<Row>, EngineError> {
    let targets = ScanTargets::Ranges(vec![RowRange::ALL]);
    let request = ScanRequest { targets, filter: Filter::all(), rows_limit: 0, reverse: false, fill_cache: true };
    let mut scanner = view.scan(request)?;
    let mut rows: Vec<Row> = Vec::new();
    while let Some(batch) = scanner.next_batch().await? {
        for piece in cell_batch::unpack(batch.data).unwrap() {
            match rows.last_mut().filter(|_| piece.goes_on_from_before) {
                Some(row) => row.cells.extend(piece.row.cells),
                None => rows.push(piece.row),
            }
        }
    }
    Ok(rows)
}

/// Flushes the oldest frozen set and commits it.
async fn flush(store: &TabletStore, row: &mut MetaRow, token: &FreezeToken) {
    let upto = token.upto().0;
    let result = store.flush(token, &Arc::default(), &mut |group| format!("f/{upto}-{group}")).await.unwrap();
    row.flushed_seq = result.flushed_seq.0;
    row.groups = store.files();
    for group in result.groups {
        match row.groups.iter_mut().find(|files| files.locality_group == group.locality_group) {
            Some(files) => files.files.extend(group.files),
            None => row.groups.push(group),
        }
    }
    store.install(row).unwrap();
}

#[test]
fn a_view_holds_exactly_what_was_published_while_memtables_freeze_and_flush() {
    const ROWS: u64 = 3000;
    let store = store();
    let latch = Mutex::new(());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..ROWS {
                let _held = latch.lock();
                write(&store, i);
            }
            done.store(true, Ordering::Release);
        });
        scope.spawn(|| {
            let mut row = MetaRow::default();
            while !done.load(Ordering::Acquire) {
                let token = {
                    let _held = latch.lock();
                    store.freeze(store.published())
                };
                if let Some(token) = token {
                    run(flush(&store, &mut row, &token));
                }
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    let view = store.snapshot();
                    let rows = run(rows(&view)).unwrap();
                    assert_eq!(rows.len() as u64, view.seq().0 / 2, "rows published by {}", view.seq());
                    for (i, row) in rows.iter().enumerate() {
                        assert_eq!(row.key, format!("row{i:08}"));
                        assert_eq!(row.cells.len(), 2, "a row is seen whole, across its groups");
                    }
                }
            });
        }
    });
    assert_eq!(run(rows(&store.snapshot())).unwrap().len() as u64, ROWS);
}

#[test]
fn a_view_pins_the_files_that_it_reads() {
    run(async {
        let (store, mut row) = (store(), MetaRow::default());
        for i in 0..4 {
            write(&store, i);
            let token = store.freeze(store.published()).unwrap();
            flush(&store, &mut row, &token).await;
        }
        let view = store.snapshot();
        let compaction = store.pick_compaction().unwrap();
        assert_eq!(compaction.inputs.len(), 4);
        let result = store.compact(&compaction, &Arc::default(), &mut |_| "merged".to_owned()).await.unwrap();
        let group = row.groups.iter_mut().find(|group| group.locality_group == 1).unwrap();
        group.files = result.add[0].files.clone();
        store.install(&row).unwrap();
        assert_eq!(store.pinned_files(), ["f/2-1", "f/4-1", "f/6-1", "f/8-1"]);
        assert_eq!(result.remove, ["f/8-1", "f/6-1", "f/4-1", "f/2-1"]);
        assert_eq!(rows(&view).await.unwrap().len(), 4);
        drop(view);
        assert_eq!(store.pinned_files(), Vec::<String>::new());
        assert_eq!(rows(&store.snapshot()).await.unwrap().len(), 4);
    });
}

#[test]
fn freezing_waits_for_flushes_at_its_limit() {
    let store = store();
    let limit = EngineConfig::default().frozen_sets_max as u64;
    for i in 0..limit {
        write(&store, i);
        assert!(store.freeze(store.published()).is_some());
        assert!(store.freeze(store.published()).is_none(), "nothing is left to freeze");
    }
    write(&store, limit);
    assert!(store.freeze(store.published()).is_none());
    let frozen = store.frozen();
    assert_eq!(frozen.len() as u64, limit);
    assert!(frozen.is_sorted_by_key(FreezeToken::upto));
    assert!(store.active_bytes() > 0 && store.memtable_bytes() > store.active_bytes());
}

#[test]
#[should_panic(expected = "comes after the freeze")]
fn a_write_below_a_freeze_is_a_bug() {
    let store = store();
    write(&store, 5);
    store.freeze(store.published());
    write(&store, 4);
}

#[test]
#[should_panic(expected = "was applied, freeze at")]
fn a_freeze_below_a_write_is_a_bug() {
    let store = store();
    write(&store, 5);
    store.freeze(SeqNo(11));
}

#[test]
fn an_older_row_is_ignored() {
    run(async {
        let (store, mut row) = (store(), MetaRow::default());
        write(&store, 0);
        let token = store.freeze(store.published()).unwrap();
        flush(&store, &mut row, &token).await;
        store.install(&MetaRow::default()).unwrap();
        assert_eq!(store.flushed_seq(), token.upto());
        assert_eq!(rows(&store.snapshot()).await.unwrap().len(), 1);
    });
}

#[test]
fn a_scan_of_everything_leaves_what_is_read_often_in_the_cache() {
    run(async {
        let env = Env { tasks: Tasks::simulated(), ..Env::real() };
        // The cache holds an eighth of the data; a scan may fill a fraction of that.
        let config = EngineConfig {
            block_bytes: 4096,
            block_cache_bytes: 512 << 10,
            scan_cache_fill_bytes_max: 16 << 10,
            readahead_bytes_max: 32 << 10,
            compression: crate::engine::sstable::format::Compression::Raw,
            ..EngineConfig::default()
        };
        let context = EngineContext::new(env, Arc::new(InMemory::new()), config).unwrap();
        let family = Family { name: "f".into(), id: FamilyId(1), gc: GcRule::KeepAll, locality_group: 0 };
        let schema = TableSchema {
            id: TableId(1),
            name: "t".into(),
            version: 1,
            families: vec![family],
            ..TableSchema::default()
        };
        let store = TabletStore::open(&context, Arc::new(schema), &MetaRow::default()).unwrap();
        let name = |i: u64| format!("row{i:08}");
        for i in 0..8000u64 {
            let value = vec![i as u8; 500].into();
            let set = Mutation::SetCell { family: FamilyId(1), qualifier: Bytes::new(), timestamp: 1, value };
            store.apply(SeqNo(i + 1), name(i).as_bytes(), &[set]);
        }
        store.publish(SeqNo(8000));
        let token = store.freeze(SeqNo(8000)).unwrap();
        let mut row = MetaRow::default();
        flush(&store, &mut row, &token).await;
        let read_hot = async || {
            let misses = context.cache().misses();
            for i in (0..8000).step_by(400) {
                assert_eq!(store.snapshot().get(name(i).as_bytes(), &Filter::all()).await.unwrap().cells.len(), 1);
            }
            context.cache().misses() - misses
        };
        read_hot().await;
        assert_eq!(read_hot().await, 0, "twenty blocks fit");
        assert_eq!(rows(&store.snapshot()).await.unwrap().len(), 8000);
        assert_eq!(read_hot().await, 0, "the scan pushed them out");
    });
}

/// Takes over a compaction's result.
fn commit(store: &TabletStore, row: &mut MetaRow, result: CompactionResult) {
    row.groups = store.files();
    for group in &mut row.groups {
        group.files.retain(|file| !result.remove.contains(&file.path));
    }
    for add in result.add {
        match row.groups.iter_mut().find(|group| group.locality_group == add.locality_group) {
            Some(group) => group.files.extend(add.files),
            None => row.groups.push(add),
        }
    }
    store.install(row).unwrap();
}

#[test]
fn a_family_that_moves_to_another_group_is_read_where_it_was_until_a_compaction_takes_it_along() {
    run(async {
        let (store, mut row) = (store(), MetaRow::default());
        (0..50).for_each(|i| write(&store, i));
        let token = store.freeze(store.published()).unwrap();
        flush(&store, &mut row, &token).await;
        (50..100).for_each(|i| write(&store, i));
        let mut schema = TableSchema::clone(&store.schema());
        (schema.version, schema.families[1].locality_group) = (2, 1);
        store.set_schema(Arc::new(schema));
        (100..150).for_each(|i| write(&store, i));
        let whole = async || {
            let rows = rows(&store.snapshot()).await.unwrap();
            assert_eq!(rows.len(), 150);
            assert!(rows.iter().all(|row| row.cells.len() == 2), "a family is missing");
            let filter = Filter { families: Some(vec![FamilyId(2)]), ..Filter::all() };
            for i in [3, 70, 120] {
                let name = format!("row{i:08}");
                assert_eq!(store.snapshot().get(name.as_bytes(), &filter).await.unwrap().cells.len(), 1, "{name}");
            }
        };
        whole().await;
        let token = store.freeze(store.published()).unwrap();
        flush(&store, &mut row, &token).await;
        whole().await;
        let compaction = store.pick_compaction().unwrap();
        assert_eq!((compaction.locality_group, compaction.reason), (2, Reason::Moved));
        let result = store.compact(&compaction, &Arc::default(), &mut |group| format!("moved-{group}")).await.unwrap();
        commit(&store, &mut row, result);
        whole().await;
        let groups: Vec<u32> = store.files().iter().map(|group| group.locality_group).collect();
        assert_eq!(groups, [1], "nothing is left where it was");
    });
}

#[test]
fn what_a_compaction_cuts_apart_is_compacted_together() {
    run(async {
        let (store, mut row) = (store(), MetaRow::default());
        for i in 0..4 {
            (0..300).for_each(|n| write(&store, 300 * i + n));
            let token = store.freeze(store.published()).unwrap();
            flush(&store, &mut row, &token).await;
        }
        let mut numbers = 0..;
        let mut path = |_| format!("cut-{}", numbers.next().unwrap());
        let compaction = store.pick_major(1).unwrap();
        let result = store.compact(&compaction, &Arc::default(), &mut path).await.unwrap();
        let files = result.add[0].files.clone();
        assert!(files.len() > 2, "{} files", files.len());
        assert!(files.iter().all(|file| file.bytes < 3 * FILE_BYTES), "{files:?}");
        assert!(files[0].low.is_empty() && files[files.len() - 1].high.is_empty());
        assert!(files.windows(2).all(|pair| pair[0].high == pair[1].low && pair[0].max_seq == pair[1].max_seq));
        commit(&store, &mut row, result);
        assert_eq!(rows(&store.snapshot()).await.unwrap().len(), 1200);
        write(&store, 5000);
        let token = store.freeze(store.published()).unwrap();
        flush(&store, &mut row, &token).await;
        let facts = units(&store.version.read().groups[&1].files).len();
        assert_eq!(facts, 2, "the new file, and all that was cut apart");
    });
}

#[test]
fn a_deleted_row_stays_deleted_in_the_group_that_its_family_has_left() {
    run(async {
        let (store, mut row) = (store(), MetaRow::default());
        write(&store, 0);
        let token = store.freeze(store.published()).unwrap();
        flush(&store, &mut row, &token).await;
        let mut schema = TableSchema::clone(&store.schema());
        (schema.version, schema.families[1].locality_group) = (2, 1);
        store.set_schema(Arc::new(schema));
        store.apply(SeqNo(9), b"row00000000", &[Mutation::DeleteFromRow]);
        store.publish(SeqNo(9));
        let token = store.freeze(store.published()).unwrap();
        flush(&store, &mut row, &token).await;
        // In its new group nothing is older than the deletion: its copy there goes, the other one must stay.
        let compaction = store.pick_major(1).unwrap();
        let result = store.compact(&compaction, &Arc::default(), &mut |group| format!("major-{group}")).await.unwrap();
        assert_eq!(result.add, []);
        commit(&store, &mut row, result);
        assert_eq!(rows(&store.snapshot()).await.unwrap(), []);
    });
}

/// One flush for each list of mutations of the row; then what is read of its column `a`, and how many blocks for it.
async fn read_column(filter: FilterOn, flushes: &[&[Mutation]]) -> (Vec<Bytes>, u64) {
    let store = store();
    let group = LocalityGroup { number: 1, filter, ..LocalityGroup::default() };
    let schema = TableSchema { version: 2, groups: vec![group], ..TableSchema::clone(&store.schema()) };
    store.set_schema(Arc::new(schema));
    let mut row = MetaRow { tablet_id: 1, ..MetaRow::default() };
    for (i, mutations) in flushes.iter().enumerate() {
        let seq = SeqNo(10 * i as u64 + 1);
        store.apply(seq, b"row", mutations);
        store.publish(SeqNo(seq.0 + 9));
        let token = store.freeze(store.published()).unwrap();
        flush(&store, &mut row, &token).await;
    }
    let qualifiers = Qualifiers::Exactly(Bytes::from_static(b"a"));
    let filter = Filter { families: Some(vec![FamilyId(1)]), qualifiers, ..Filter::all() };
    let before = store.context().cache().misses();
    let cells = store.snapshot().get(b"row", &filter).await.unwrap().cells;
    (cells.into_iter().map(|cell| cell.value).collect(), store.context().cache().misses() - before)
}

#[test]
fn a_read_of_a_column_leaves_out_files_that_have_the_row_but_neither_the_column_nor_a_deletion_of_it() {
    let set = |qualifier: &'static str, value: &'static str| Mutation::SetCell {
        family: FamilyId(1),
        qualifier: qualifier.into(),
        timestamp: 1,
        value: value.into(),
    };
    let (a, b, c) = ([set("a", "1")], [set("b", "2")], [set("c", "3")]);
    let column = |qualifier: &'static str| {
        [Mutation::DeleteFromColumn { family: FamilyId(1), qualifier: qualifier.into(), start: 0, end: i64::MAX }]
    };
    let family = [Mutation::DeleteFromFamily { family: FamilyId(1) }];
    let one: Vec<Bytes> = vec!["1".into()];
    run(async {
        // Of each file a filter, a part of the index, a block.
        assert_eq!(read_column(FilterOn::Row, &[&a, &b, &c]).await, (one.clone(), 3 * 3));
        assert_eq!(read_column(FilterOn::RowColumn, &[&a, &b, &c]).await, (one.clone(), 3 + 2));
        assert_eq!(read_column(FilterOn::RowColumn, &[&a, &b, &column("b")]).await, (one.clone(), 3 + 2));
        for deletion in [&column("a"), &family, &[Mutation::DeleteFromRow]] {
            assert_eq!(
                read_column(FilterOn::RowColumn, &[&a, deletion, &b]).await,
                (vec![], 2 * 3 + 1),
                "{deletion:?}"
            );
            // What was written after it is there.
            assert_eq!(read_column(FilterOn::RowColumn, &[deletion, &b, &a]).await.0, one, "{deletion:?}");
        }
    });
}

/// The deletion is in a memtable of the group that the family leaves, and the group that it goes to is new.
#[test]
fn a_deleted_row_stays_deleted_when_its_family_moves_before_the_deletion_is_flushed() {
    run(async {
        let (store, mut row) = (store(), MetaRow::default());
        write(&store, 0);
        let token = store.freeze(store.published()).unwrap();
        flush(&store, &mut row, &token).await;
        store.apply(SeqNo(9), b"row00000000", &[Mutation::DeleteFromRow]);
        store.publish(SeqNo(9));
        let mut schema = TableSchema::clone(&store.schema());
        (schema.version, schema.families[1].locality_group) = (2, 3);
        store.set_schema(Arc::new(schema));
        let requested = store.pick_major(2).unwrap();
        let result = store.compact(&requested, &Arc::default(), &mut |group| format!("major-{group}")).await.unwrap();
        commit(&store, &mut row, result);
        assert_eq!(rows(&store.snapshot()).await.unwrap(), []);
        assert_eq!(store.pick_compaction(), None, "nothing moves before the deletion is in a file");
        let token = store.freeze(store.published()).unwrap();
        flush(&store, &mut row, &token).await;
        let mut reasons = Vec::new();
        while let Some(compaction) = store.pick_compaction() {
            reasons.push((compaction.locality_group, compaction.reason));
            let mut path = |group| format!("{}-{group}", reasons.len());
            let result = store.compact(&compaction, &Arc::default(), &mut path).await.unwrap();
            commit(&store, &mut row, result);
            assert_eq!(rows(&store.snapshot()).await.unwrap(), []);
        }
        assert!(reasons.contains(&(2, Reason::Moved)), "{reasons:?}");
    });
}
