//! What a scan leaves unread. That it finds all the same is the model test's business.

use object_store::memory::InMemory;
use uruk_base::{Env, Tasks};
use uruk_proto::cell_batch;
use uruk_proto::master::{FileRef, LocalityGroupFiles, MetaRow};
use uruk_proto::mutation::Mutation;
use uruk_proto::schema::{Family, GcRule, TableSchema};
use uruk_proto::{FamilyId, SeqNo, TableId};

use super::*;
use crate::engine::sstable::format::Compression;
use crate::engine::{EngineConfig, EngineContext, TabletStore};

const ROWS: i64 = 2000;

struct Fixture {
    context: Arc<EngineContext>,
    store: TabletStore,
}

fn name(i: i64) -> Bytes {
    format!("row{i:06}").into()
}

/// Rows in order of time, the first half in family 1, the other in family 2; one file. Every block read is
/// a miss.
async fn fixture(gc: GcRule) -> Fixture {
    let env = Env { tasks: Tasks::simulated(), ..Env::real() };
    let config = EngineConfig {
        block_bytes: 512,
        compression: Compression::Raw,
        block_cache_bytes: 0,
        index_pinned_bytes_max: 0,
        readahead_bytes_max: 0,
        ..EngineConfig::default()
    };
    let context = EngineContext::new(env, Arc::new(InMemory::new()), config).unwrap();
    let family = |id: u64| Family { name: format!("f{id}"), id: FamilyId(id), gc: gc.clone(), locality_group: 0 };
    let families = vec![family(1), family(2)];
    let schema = TableSchema { id: TableId(1), name: "t".into(), version: 1, families, ..TableSchema::default() };
    let store = TabletStore::open(&context, Arc::new(schema), &MetaRow::default()).unwrap();
    for i in 0..ROWS {
        let family = FamilyId(if i < ROWS / 2 { 1 } else { 2 });
        let set = Mutation::SetCell { family, qualifier: Bytes::new(), timestamp: i, value: vec![7; 40].into() };
        store.apply(SeqNo(i as u64 + 1), &name(i), &[set]);
    }
    store.publish(SeqNo(ROWS as u64));
    let token = store.freeze(store.published()).unwrap();
    let result = store.flush(&token, &Arc::default(), &mut |_| "f".to_owned()).await.unwrap();
    store.install(&MetaRow { flushed_seq: ROWS as u64, groups: result.groups, ..MetaRow::default() }).unwrap();
    Fixture { context, store }
}

impl Fixture {
    /// Rows found, and blocks read for it.
    async fn read(&self, range: RowRange, filter: Filter, reverse: bool) -> (usize, u64) {
        let before = self.context.cache().misses();
        let targets = ScanTargets::Ranges(vec![range]);
        let request = ScanRequest { targets, filter, rows_limit: 0, reverse, fill_cache: true };
        let mut scanner = self.store.snapshot().scan(request).unwrap();
        let mut rows = 0;
        while let Some(batch) = scanner.next_batch().await.unwrap() {
            rows += cell_batch::unpack(batch.data).unwrap().len();
        }
        (rows, self.context.cache().misses() - before)
    }
}

#[tokio::test]
async fn a_scan_reads_no_block_that_holds_nothing_of_its_times_families_or_rows() {
    let fixture = fixture(GcRule::KeepAll).await;
    let times = |min, end| Filter { timestamp_min: min, timestamp_end: end, ..Filter::all() };
    let family = Filter { families: Some(vec![FamilyId(2)]), ..Filter::all() };
    let (all, blocks) = fixture.read(RowRange::ALL, Filter::all(), false).await;
    assert!(all == ROWS as usize && blocks > 200, "{all} rows in {blocks} blocks");
    // A seek leads to each row of a reverse scan, and to the row's end.
    for (reverse, factor) in [(false, 1), (true, 8 * 3)] {
        for (filter, rows, blocks_max) in [
            (times(ROWS - 20, None), 20, 12),
            (times(0, Some(20)), 20, 12),
            (times(1000, Some(1010)), 10, 12),
            (times(ROWS, None), 0, 0),
            (times(0, Some(0)), 0, 0),
            (Filter { families: Some(vec![FamilyId(3)]), ..Filter::all() }, 0, 0),
            (family.clone(), ROWS as usize / 2, blocks * 55 / 100),
        ] {
            let (found, read) = fixture.read(RowRange::ALL, filter.clone(), reverse).await;
            assert_eq!(found, rows, "{filter:?}");
            assert!(read <= blocks_max * factor, "{read} blocks for {rows} rows of {filter:?}, reverse {reverse}");
        }
        let (found, read) = fixture.read(RowRange::new(name(700), name(720)), Filter::all(), reverse).await;
        assert!(found == 20 && read <= 8 * factor, "{found} rows in {read} blocks");
    }
}

#[tokio::test]
async fn newer_cells_count_as_versions_although_their_times_are_not_wanted() {
    let fixture = fixture(GcRule::MaxVersions(1)).await;
    let newer =
        Mutation::SetCell { family: FamilyId(1), qualifier: Bytes::new(), timestamp: 5000, value: Bytes::new() };
    fixture.store.apply(SeqNo(9000), &name(3), std::slice::from_ref(&newer));
    fixture.store.publish(SeqNo(9000));
    let token = fixture.store.freeze(SeqNo(9000)).unwrap();
    let mut groups = fixture.store.flush(&token, &Arc::default(), &mut |_| "g".to_owned()).await.unwrap().groups;
    groups[0].files.extend(fixture.store.files().remove(0).files);
    fixture.store.install(&MetaRow { flushed_seq: 9000, groups, ..MetaRow::default() }).unwrap();
    let filter = Filter { timestamp_end: Some(10), ..Filter::all() };
    assert_eq!(fixture.read(RowRange::ALL, filter, false).await.0, 9, "row 3's cell is an old version");
}

#[tokio::test]
async fn a_file_named_for_other_rows_is_not_even_opened() {
    let fixture = fixture(GcRule::KeepAll).await;
    let missing =
        FileRef { path: "missing".into(), low: name(1500), bytes: 1000, cells: 9, max_seq: 1, ..FileRef::default() };
    let mut files = fixture.store.files().remove(0).files;
    files.push(missing);
    let groups = vec![LocalityGroupFiles { locality_group: 0, files }];
    fixture.store.install(&MetaRow { flushed_seq: ROWS as u64, groups, ..MetaRow::default() }).unwrap();
    for reverse in [false, true] {
        let (found, _) = fixture.read(RowRange::new(name(100), name(1500)), Filter::all(), reverse).await;
        assert_eq!(found, 1400);
    }
}
