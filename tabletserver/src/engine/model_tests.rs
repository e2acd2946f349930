//! The engine against a plain model: random writes, flushes, compactions, splits, reopenings, schema
//! changes and time, and after each the same reads on both.
//!
//! `URUK_MODEL_SEEDS=1000..2000 cargo test -p uruk-tabletserver model` runs other seeds, for as long as
//! you like (`0..` never ends); `URUK_MODEL_STEPS=5000` makes each longer; `URUK_MODEL_MINUTES=180` runs new
//! seeds for three hours. A failure names its seed.

mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use model::{FAMILIES, Model, QUALIFIERS, ROWS};
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use uruk_base::clock::{Clock, ClockSource, Moment};
use uruk_base::{Env, Random, Tasks};
use uruk_proto::cell_batch::{self, Row};
use uruk_proto::master::{FileRef, LocalityGroupFiles, MetaRow};
use uruk_proto::mutation::Mutation;
use uruk_proto::schema::{self, Family, FilterOn, GcRule, LocalityGroup, TableSchema};
use uruk_proto::{Epoch, FamilyId, RowRange, SeqNo, TableId};

use super::compaction::policy::Reason;
use super::compaction::{Compaction, CompactionResult, Kind};
use super::filter::Qualifiers;
use super::sstable::format::Compression;
use super::sstable::inspect;
use super::*;

const STEPS_PER_SEED: u64 = 150;

#[derive(Debug)]
struct TestClock(AtomicI64);

impl ClockSource for TestClock {
    fn now(&self) -> Moment {
        Moment::default()
    }
    fn wall_micros(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
    fn sleep(&self, _: std::time::Duration) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::ready(()))
    }
}

/// The engine, the model, and the master's part between them.
struct World {
    random: Random,
    clock: Arc<TestClock>,
    objects: Arc<InMemory>,
    context: Arc<EngineContext>,
    schema: Arc<TableSchema>,
    row: MetaRow,
    store: TabletStore,
    model: Model,
    counter: u64,
    paths: u64,
    /// Old views, with what they must show.
    held: Vec<(ReadView, Model)>,
    /// Up to which write each file tells what happened (its newest entry may be older).
    covers: BTreeMap<String, SeqNo>,
    /// Whether a family moves between locality groups.
    moves: bool,
    /// The other half of a split, until the halves merge again.
    sibling: Option<(MetaRow, Model)>,
}

fn context(random: &Random, clock: &Arc<TestClock>, objects: &Arc<InMemory>) -> Arc<EngineContext> {
    let env = Env { tasks: Tasks::simulated(), clock: Clock::from_source(clock.clone()), ..Env::real() };
    let pick = |sizes: &[usize]| sizes[random.range(0..sizes.len() as u64) as usize];
    let config = EngineConfig {
        block_bytes: pick(&[256, 400, 4096]),
        block_restart_interval: pick(&[1, 3, 16]),
        bloom_bits_per_row: pick(&[0, 10, 10]),
        filter_partition_bytes: pick(&[1, 8, 4096]),
        block_cache_bytes: pick(&[0, 4096, 1 << 20]) as u64,
        readahead_bytes_max: pick(&[0, 300, 4096]),
        scan_batch_bytes: pick(&[1, 60, 500, 1 << 20]),
        scan_step_bytes: pick(&[1, 100, 1 << 20]),
        scan_steps_before_seek: pick(&[0, 1, 3, 16]) as u32,
        scan_cache_fill_bytes_max: pick(&[0, 500, 1 << 20]) as u64,
        index_pinned_bytes_max: pick(&[0, 500, 1 << 20]) as u64,
        compression: *random_of(random, &[Compression::Raw, Compression::Lz4, Compression::Zstd]),
        compression_major: *random_of(random, &[Compression::Lz4, Compression::Zstd]),
        merge_piece_bytes: pick(&[1, 300, 1 << 20]),
        compaction_ratio_exempt_bytes: pick(&[0, 1 << 20]) as u64,
        compaction_file_bytes: pick(&[1, 500, 1 << 20]) as u64,
        in_memory_bytes_max: pick(&[0, 500, 1 << 20]) as u64,
        ..EngineConfig::default()
    };
    EngineContext::new(env, objects.clone() as Arc<dyn ObjectStore>, config).unwrap()
}

fn random_of<'a, T>(random: &Random, of: &'a [T]) -> &'a T {
    &of[random.range(0..of.len() as u64) as usize]
}

fn schema(random: &Random, version: u64, moves: bool) -> TableSchema {
    // Some worlds have a family that moves from group to group. It keeps all its cells: what a rule lets go
    // for good depends on which files a family's past is in, which the model does not know.
    let group = |i: usize| match i {
        1 => 7,
        2 if moves => *random_of(random, &[0, 7, 9]),
        _ => 0,
    };
    let rule = |i: usize| if i == 2 && moves { GcRule::KeepAll } else { gc_rule(random, 0) };
    let family = |(i, id): (usize, &u64)| Family {
        name: format!("f{id}"),
        id: FamilyId(*id),
        gc: rule(i),
        locality_group: group(i),
    };
    TableSchema {
        id: TableId(1),
        name: "t".into(),
        version,
        families: FAMILIES.iter().enumerate().map(family).collect(),
        groups: vec![local_group(random, 0), local_group(random, 7)],
        ..TableSchema::default()
    }
}

fn local_group(random: &Random, number: u32) -> LocalityGroup {
    LocalityGroup {
        number,
        block_bytes: *random_of(random, &[0, 300, 5000]),
        compression: *random_of(random, &[schema::Compression::Auto, schema::Compression::None]),
        in_memory: random.range(0..2) == 0,
        filter: *random_of(random, &[FilterOn::Row, FilterOn::RowColumn]),
    }
}

fn gc_rule(random: &Random, depth: u32) -> GcRule {
    let some = || (0..random.range(1..3)).map(|_| gc_rule(random, depth + 1)).collect();
    match random.range(0..if depth < 2 { 8 } else { 5 }) {
        0 | 1 => GcRule::KeepAll,
        2 => GcRule::MaxVersions(random.range(1..3) as u32),
        3 | 4 => GcRule::MaxAge(random.range(0..12)),
        5 => GcRule::Union(some()),
        _ => GcRule::Intersection(some()),
    }
}

impl World {
    fn new(seed: u64) -> World {
        let random = Random::from_seed(seed);
        let clock = Arc::new(TestClock(AtomicI64::new(5)));
        let objects = Arc::new(InMemory::new());
        let context = context(&random, &clock, &objects);
        let moves = random.range(0..2) == 0;
        let schema = Arc::new(schema(&random, 1, moves));
        let row = MetaRow { tablet_id: 1, table_id: 1, ..MetaRow::default() };
        let store = TabletStore::open(&context, schema.clone(), &row).unwrap();
        let model = Model::new(schema.clone());
        World {
            random,
            clock,
            objects,
            context,
            schema,
            row,
            store,
            model,
            counter: 0,
            paths: 0,
            held: Vec::new(),
            covers: BTreeMap::new(),
            sibling: None,
            moves,
        }
    }

    fn below(&self, n: usize) -> usize {
        self.random.range(0..n as u64) as usize
    }

    fn chance(&self, one_in: u64) -> bool {
        self.random.range(0..one_in) == 0
    }

    fn row_key(&self) -> Bytes {
        Bytes::from_static(ROWS[self.below(ROWS.len())])
    }

    fn qualifier(&self) -> Bytes {
        Bytes::from_static(QUALIFIERS[self.below(QUALIFIERS.len())])
    }

    fn family(&self) -> FamilyId {
        FamilyId(FAMILIES[self.below(FAMILIES.len())])
    }

    fn mutation(&self) -> Mutation {
        let start = self.random.range(0..12) as i64;
        match self.random.range(0..16) {
            0 => Mutation::DeleteFromRow,
            1 => Mutation::DeleteFromFamily { family: self.family() },
            2 | 3 => {
                let end = if self.chance(3) { i64::MAX } else { start + 1 + self.random.range(0..6) as i64 };
                Mutation::DeleteFromColumn { family: self.family(), qualifier: self.qualifier(), start, end }
            }
            _ => {
                let len = if self.chance(8) { 300 } else { self.below(4) };
                let value = vec![b'a' + self.below(3) as u8; len].into();
                let timestamp = if self.chance(40) { i64::MAX } else { start };
                Mutation::SetCell { family: self.family(), qualifier: self.qualifier(), timestamp, value }
            }
        }
    }

    fn write(&mut self) {
        let range = self.store.range().clone();
        let Some(row) = (0..20).map(|_| self.row_key()).find(|row| range.contains(row)) else { return };
        let mutations: Vec<Mutation> = (0..1 + self.below(4)).map(|_| self.mutation()).collect();
        let first = SeqNo::new(Epoch(1), self.counter + 1).unwrap();
        self.counter += mutations.len() as u64;
        self.store.apply(first, &row, &mutations);
        self.model.write(first, &row, &mutations);
        if self.chance(20) {
            self.store.apply(first, &row, &mutations); // a replay changes nothing
        }
        if !self.chance(4) {
            self.publish();
        }
    }

    fn last(&self) -> SeqNo {
        SeqNo::new(Epoch(1), self.counter).unwrap()
    }

    fn publish(&mut self) {
        self.store.publish(self.last());
        self.model.published = self.model.published.max(self.last());
    }

    fn path(&mut self) -> String {
        self.paths += 1;
        format!("sst/{}", self.paths)
    }

    fn freeze(&mut self) {
        self.publish();
        self.store.freeze(self.last());
    }

    async fn flush(&mut self) {
        let Some(token) = self.store.frozen().into_iter().next() else { return };
        let mut paths: Vec<String> = (0..4).map(|_| self.path()).collect();
        let result = self.store.flush(&token, &Arc::default(), &mut |_| paths.pop().unwrap()).await.unwrap();
        self.row.flushed_seq = result.flushed_seq.0;
        for group in result.groups {
            self.covers.extend(group.files.iter().map(|file| (file.path.clone(), result.flushed_seq)));
            self.add(group);
        }
        self.store.install(&self.row).unwrap();
    }

    /// What the master does: add files to the row.
    fn add(&mut self, add: LocalityGroupFiles) {
        match self.row.groups.iter_mut().find(|group| group.locality_group == add.locality_group) {
            Some(group) => group.files.extend(add.files),
            None => self.row.groups.push(add),
        }
        for group in &mut self.row.groups {
            group.files.sort_by_key(|file| std::cmp::Reverse(file.max_seq));
        }
    }

    async fn compact(&mut self) {
        let group = *random_of(&self.random, &[0, 7, 9]);
        let picked = match self.random.range(0..3) {
            0 => self.store.pick_compaction(),
            1 => self.store.pick_major(group),
            _ => self.store.files().into_iter().find(|files| files.locality_group == group).map(|files| {
                let units: Vec<&[FileRef]> = files.files.chunk_by(|a, b| a.path == b.path).collect();
                let start = self.below(units.len());
                let end = start + 1 + self.below(units.len() - start);
                let inputs = units[start..end].concat();
                Compaction { locality_group: group, inputs, kind: Kind::Merging, reason: Reason::Requested }
            }),
        };
        let Some(compaction) = picked else { return };
        let mut paths: Vec<String> = (0..200).map(|_| self.path()).collect();
        let result = self.store.compact(&compaction, &Arc::default(), &mut |_| paths.pop().unwrap()).await.unwrap();
        self.note_purge(&compaction).await;
        if self.chance(5) {
            return self.model.abort_purge(); // the commit never happened
        }
        self.commit(result);
    }

    /// A compaction above nothing older purges for good what GC rules let go.
    async fn note_purge(&mut self, compaction: &Compaction) {
        let newest = compaction.inputs.iter().map(|file| file.max_seq).max().unwrap();
        let all = self.store.files();
        let files = all.iter().find(|files| files.locality_group == compaction.locality_group).unwrap();
        let is_other = |file: &&FileRef| !compaction.inputs.contains(file);
        let rows = |file: &FileRef| RowRange::new(file.low.clone(), file.high.clone());
        let is_apart = |other: &FileRef| {
            let both = compaction.inputs.iter().map(|input| rows(input).intersect(&rows(other)));
            other.min_seq >= newest || both.clone().all(|both| both.is_empty())
        };
        let mut families = BTreeSet::new();
        for file in &compaction.inputs {
            families.extend(self.families(file).await);
        }
        let mut is_oldest = files.files.iter().filter(is_other).all(is_apart);
        for file in all.iter().filter(|group| group.locality_group != compaction.locality_group).flat_map(|g| &g.files)
        {
            is_oldest &= is_apart(file) || self.families(file).await.is_disjoint(&families);
        }
        if is_oldest {
            let inputs: Vec<(RowRange, SeqNo)> =
                compaction.inputs.iter().map(|file| (rows(file), self.covers[&file.path])).collect();
            self.model.begin_purge(compaction.locality_group, &inputs, self.clock.wall_micros());
        }
    }

    /// The families that a file has.
    async fn families(&self, file: &FileRef) -> BTreeSet<FamilyId> {
        let content = self.objects.get(&file.path.as_str().into()).await.unwrap().bytes().await.unwrap();
        let report = inspect::inspect(&content);
        assert_eq!(report.damage, []);
        BTreeSet::from_iter(report.properties.unwrap().families.unwrap())
    }

    fn commit(&mut self, result: CompactionResult) {
        let upto = result.remove.iter().map(|path| self.covers[path]).max().unwrap();
        let added = result.add.iter().flat_map(|group| &group.files);
        self.covers.extend(added.map(|file| (file.path.clone(), upto)));
        for group in &mut self.row.groups {
            group.files.retain(|file| !result.remove.contains(&file.path));
        }
        result.add.into_iter().for_each(|group| self.add(group));
        self.store.install(&self.row).unwrap();
        self.model.commit_purge();
    }

    fn reopen(&mut self) {
        if self.chance(2) {
            self.context = context(&self.random, &self.clock, &self.objects);
        }
        self.store = TabletStore::open(&self.context, self.schema.clone(), &self.row).unwrap();
        let mut writes = self.model.writes_after(SeqNo(self.row.flushed_seq));
        self.random.shuffle(&mut writes);
        for (seq, row, mutations) in &writes {
            self.store.apply(*seq, row, mutations);
        }
        self.publish();
    }

    async fn flush_all(&mut self) {
        self.freeze();
        while !self.store.frozen().is_empty() {
            self.flush().await;
        }
    }

    /// The tablet splits; one half is followed from there on, the other stays as it is.
    async fn split(&mut self) {
        self.flush_all().await;
        let at = self.row_key();
        if !self.store.range().contains(&at) {
            return;
        }
        let (low, high) = (RowRange::new(self.row.start.clone(), at.clone()), RowRange::new(at, self.row.end.clone()));
        let (ours, theirs) = if self.chance(2) { (low, high) } else { (high, low) };
        if ours.is_empty() || theirs.is_empty() {
            return;
        }
        let mut other = self.model.clone();
        other.keep_only(&theirs);
        self.sibling = Some((clipped(&self.row, &theirs), other));
        self.row = clipped(&self.row, &ours);
        self.model.keep_only(&ours);
        self.reopen();
    }

    /// The halves of the last split merge: references are concatenated, none is widened.
    async fn merge(&mut self) {
        self.flush_all().await;
        let Some((row, model)) = self.sibling.take() else { return };
        if !self.row.end.is_empty() && self.row.end == row.start {
            self.row.end = row.end;
        } else {
            self.row.start = row.start;
        }
        row.groups.into_iter().for_each(|group| self.add(group));
        self.model.unite(model);
        self.reopen();
    }

    fn change_schema(&mut self) {
        let version = self.schema.version + 1;
        self.schema = Arc::new(schema(&self.random, version, self.moves));
        self.store.set_schema(self.schema.clone());
        self.model.schema = self.schema.clone();
    }

    async fn step(&mut self) {
        match self.random.range(0..100) {
            0..45 => self.write(),
            45..50 => self.freeze(),
            50..58 => self.flush().await,
            58..68 => self.compact().await,
            68..71 => self.reopen(),
            71..75 => drop(self.clock.0.fetch_add(1 + self.below(3) as i64, Ordering::Relaxed)),
            75 => self.change_schema(),
            76 if self.sibling.is_none() => self.split().await,
            76 => self.merge().await,
            77..80 => self.held.push((self.store.snapshot(), self.model.clone())),
            80..84 if !self.held.is_empty() => {
                let (view, model) = self.held.swap_remove(self.below(self.held.len()));
                self.compare(&view, &model).await;
            }
            _ => {
                let view = self.store.snapshot();
                self.compare(&view, &self.model).await;
            }
        }
    }

    fn filter(&self) -> Filter {
        let mut filter = Filter::default();
        if self.chance(3) {
            let mut families: Vec<FamilyId> = (0..1 + self.below(2)).map(|_| self.family()).collect();
            families.sort_unstable();
            families.dedup();
            filter.families = Some(families);
        }
        filter.qualifiers = match self.random.range(0..8) {
            0 => Qualifiers::Exactly(self.qualifier()),
            1 => Qualifiers::Range(self.qualifier(), self.qualifier()),
            2 => Qualifiers::Range(self.qualifier(), Bytes::new()),
            _ => Qualifiers::All,
        };
        if self.chance(4) {
            filter.timestamp_min = self.random.range(0..12) as i64;
        }
        if self.chance(4) {
            filter.timestamp_end = Some(self.random.range(1..14) as i64);
        }
        filter.cells_per_column = self.chance(3).then(|| 1 + self.below(2) as u32);
        filter.cells_per_row = self.chance(4).then(|| 1 + self.below(5) as u32);
        filter.strip_values = self.chance(8);
        filter.value = self.chance(6).then(|| vec![b'a' + self.below(3) as u8; self.below(3)].into());
        filter
    }

    fn request(&self) -> ScanRequest {
        let mut rows: Vec<Bytes> = (0..self.below(6)).map(|_| self.row_key()).collect();
        rows.sort();
        rows.dedup();
        let targets = match self.random.range(0..3) {
            0 => ScanTargets::Ranges(vec![RowRange::ALL]),
            1 => ScanTargets::Rows(rows),
            _ => {
                let mut ranges: Vec<RowRange> =
                    rows.chunks_exact(2).map(|pair| RowRange::new(pair[0].clone(), pair[1].clone())).collect();
                if let (true, Some(last)) = (self.chance(3), ranges.last_mut()) {
                    last.end = Bytes::new();
                }
                ScanTargets::Ranges(ranges)
            }
        };
        ScanRequest {
            targets,
            filter: self.filter(),
            rows_limit: if self.chance(4) { 1 + self.below(3) as u64 } else { 0 },
            reverse: self.chance(3),
            fill_cache: self.chance(2),
        }
    }

    async fn compare(&self, view: &ReadView, model: &Model) {
        let request = self.request();
        let expected = model.read(&request, self.clock.wall_micros());
        let found = scan(view, request.clone()).await;
        assert_eq!(found, expected, "{request:?}\nat {} of {:#?}", model.published, model.row_log(&found, &expected));

        let row = self.row_key();
        let targets = ScanTargets::Rows(vec![row.clone()]);
        let mut filter = self.filter();
        if self.chance(3) {
            filter.qualifiers = Qualifiers::Exactly(self.qualifier());
        }
        let request = ScanRequest { targets, filter, rows_limit: 0, reverse: false, fill_cache: true };
        let expected = model.read(&request, self.clock.wall_micros()).pop().map_or(Vec::new(), |row| row.cells);
        assert_eq!(view.get(&row, &request.filter).await.unwrap().cells, expected, "{request:?}");
    }
}

/// A child's row: references clipped to its range.
fn clipped(row: &MetaRow, range: &RowRange) -> MetaRow {
    let mut child = MetaRow { start: range.start.clone(), end: range.end.clone(), ..row.clone() };
    for file in child.groups.iter_mut().flat_map(|group| &mut group.files) {
        let both = RowRange::new(file.low.clone(), file.high.clone()).intersect(range);
        (file.low, file.high) = (both.start, both.end);
    }
    for group in &mut child.groups {
        group.files.retain(|file| !RowRange::new(file.low.clone(), file.high.clone()).is_empty());
    }
    child
}

/// All rows of a scan, checking what every scan promises.
async fn scan(view: &ReadView, request: ScanRequest) -> Vec<Row> {
    let mut scanner = view.scan(request.clone()).unwrap();
    let mut rows: Vec<Row> = Vec::new();
    let mut goes_on = false;
    let mut scanned = Bytes::new();
    while let Some(batch) = scanner.next_batch().await.unwrap() {
        for piece in cell_batch::unpack(batch.data).unwrap() {
            assert_eq!(piece.goes_on_from_before, goes_on, "pieces fit together");
            assert!(!piece.row.cells.is_empty(), "no piece is empty");
            goes_on = piece.goes_on_in_next;
            match rows.last_mut() {
                Some(last) if piece.goes_on_from_before => {
                    assert_eq!(last.key, piece.row.key);
                    last.cells.extend(piece.row.cells);
                }
                _ => rows.push(piece.row),
            }
        }
        if !scanned.is_empty() {
            let forward = batch.last_scanned >= scanned;
            let backward = batch.last_scanned <= scanned;
            assert!(if request.reverse { backward } else { forward }, "scans go one way");
        }
        let last = rows.last().map(|row| row.key.clone());
        if let (Some(last), false) = (last, batch.last_scanned.is_empty()) {
            let reached = if request.reverse { batch.last_scanned <= last } else { batch.last_scanned >= last };
            assert_eq!(reached, !goes_on, "a row is scanned when its last piece is out");
        }
        scanned = batch.last_scanned;
    }
    assert!(!goes_on, "the last row ends");
    rows
}

fn run_seed(seed: u64, steps: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(seed);
        for _ in 0..steps {
            world.step().await;
        }
        world.held.clear();
        assert_eq!(world.store.pinned_files(), Vec::<String>::new(), "nobody reads any more");
    });
}

/// Seeds one after the other, until the time is up or there are no more.
fn run_seeds(seeds: std::ops::Range<u64>, steps: u64, micros_max: i64) {
    let clock = Env::real().clock;
    let end = clock.wall_micros().saturating_add(micros_max);
    for seed in seeds {
        if let Err(panic) = std::panic::catch_unwind(|| run_seed(seed, steps)) {
            eprintln!("failing seed: {seed}");
            std::panic::resume_unwind(panic);
        }
        if clock.wall_micros() >= end {
            return;
        }
    }
}

#[test]
fn the_engine_shows_what_the_model_shows() {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let steps = number("URUK_MODEL_STEPS").unwrap_or(STEPS_PER_SEED);
    if let Some(minutes) = number("URUK_MODEL_MINUTES") {
        let first = number("URUK_MODEL_FIRST_SEED").unwrap_or_else(|| Env::real().clock.wall_micros() as u64);
        eprintln!("seeds from {first} on, for {minutes} minutes");
        return run_seeds(first..u64::MAX, steps, minutes as i64 * 60_000_000);
    }
    let seeds = std::env::var("URUK_MODEL_SEEDS").unwrap_or_else(|_| "0..300".into());
    let (start, end) = seeds.split_once("..").expect("URUK_MODEL_SEEDS is START..END or START..");
    let end = if end.is_empty() { u64::MAX } else { end.parse().unwrap() };
    run_seeds(start.parse().unwrap()..end, steps, i64::MAX);
}
