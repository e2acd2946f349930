//! Measures one tablet's engine in process: memtable inserts, flush, scans and point reads from cache.
//!
//! `cargo run --release -p uruk-tabletserver --example engine_bench [ROWS] [VALUE_BYTES]`

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::memory::InMemory;
use uruk_base::Env;
use uruk_proto::master::{LocalityGroupFiles, MetaRow};
use uruk_proto::mutation::Mutation;
use uruk_proto::schema::{Family, GcRule, TableSchema};
use uruk_proto::{FamilyId, RowRange, SeqNo, TableId};
use uruk_tabletserver::engine::{EngineConfig, EngineContext, Filter, ScanRequest, ScanTargets, TabletStore};

struct Bench {
    env: Env,
    store: TabletStore,
    row: MetaRow,
    rows: u64,
    value_bytes: usize,
    paths: u64,
}

fn row_key(i: u64) -> Bytes {
    format!("user{i:020}").into()
}

fn report(what: &str, count: u64, bytes: u64, took: Duration) {
    let seconds = took.as_secs_f64();
    let rate = count as f64 / seconds;
    println!("{what:<32} {rate:>12.0}/s {:>9.1} MB/s", bytes as f64 / 1e6 / seconds);
}

impl Bench {
    fn new(rows: u64, value_bytes: usize) -> Bench {
        let env = Env::real();
        let config = EngineConfig { block_cache_bytes: 2 << 30, ..EngineConfig::default() };
        let context = EngineContext::new(env.clone(), Arc::new(InMemory::new()), config).expect("valid limits");
        let family = Family { name: "f".into(), id: FamilyId(1), gc: GcRule::MaxVersions(1), locality_group: 0 };
        let schema = TableSchema { id: TableId(1), name: "t".into(), version: 1, families: vec![family] };
        let row = MetaRow { tablet_id: 1, table_id: 1, ..MetaRow::default() };
        let store = TabletStore::open(&context, Arc::new(schema), &row).expect("nothing to open");
        Bench { env, store, row, rows, value_bytes, paths: 0 }
    }

    fn path(&mut self) -> String {
        self.paths += 1;
        format!("sst/{}", self.paths)
    }

    fn write(&self, what: &str, from: u64, random: bool) {
        let mut value = vec![0u8; self.value_bytes];
        let mut mutations = Vec::new();
        for i in 0..self.rows {
            let key = if random { self.env.random.range(0..self.rows) } else { i };
            // Half noise, half zeros: lz4 halves it, as it does much real data.
            self.env.random.fill(&mut value[..self.value_bytes / 2]);
            let value = Bytes::copy_from_slice(&value);
            mutations.push((
                row_key(key),
                Mutation::SetCell {
                    family: FamilyId(1),
                    qualifier: Bytes::from_static(b"field0"),
                    timestamp: i as i64 * 1000,
                    value,
                },
            ));
        }
        let start = self.env.clock.now();
        for (i, (row, mutation)) in mutations.iter().enumerate() {
            let seq = SeqNo(from + i as u64 + 1);
            self.store.apply(seq, row, std::slice::from_ref(mutation));
            self.store.publish(seq);
        }
        report(what, self.rows, self.rows * self.value_bytes as u64, self.env.clock.since(start));
    }

    async fn flush(&mut self) {
        let token = self.store.freeze(self.store.published()).expect("something was written");
        let bytes = token.bytes();
        let path = self.path();
        let start = self.env.clock.now();
        let result = self.store.flush(&token, &mut |_| path.clone()).await.expect("memory never fails");
        report("flush", self.rows, bytes, self.env.clock.since(start));
        self.row.flushed_seq = result.flushed_seq.0;
        self.add(result.groups.into_iter().next().expect("one group"), &[]);
    }

    fn add(&mut self, add: LocalityGroupFiles, remove: &[String]) {
        match self.row.groups.first_mut() {
            Some(group) => {
                group.files.retain(|file| !remove.contains(&file.path));
                group.files.extend(add.files);
            }
            None => self.row.groups.push(add),
        }
        self.store.install(&self.row).expect("paths parse");
    }

    async fn compact(&mut self) {
        let compaction = self.store.pick_major(0).expect("there are files");
        let bytes: u64 = compaction.inputs.iter().map(|file| file.bytes).sum();
        let path = self.path();
        let start = self.env.clock.now();
        let result = self.store.compact(&compaction, &path).await.expect("memory never fails");
        report("major compaction (stored bytes)", self.rows, bytes, self.env.clock.since(start));
        self.add(result.add, &result.remove);
    }

    fn request(&self, targets: ScanTargets, reverse: bool, fill_cache: bool) -> ScanRequest {
        ScanRequest { targets, filter: Filter::all(), rows_limit: 0, reverse, fill_cache }
    }

    async fn scan(&self, what: &str, reverse: bool, fill_cache: bool) {
        let start = self.env.clock.now();
        let request = self.request(ScanTargets::Ranges(vec![RowRange::ALL]), reverse, fill_cache);
        let mut scanner = self.store.snapshot().scan(request).expect("a good request");
        let mut bytes = 0;
        while let Some(batch) = scanner.next_batch().await.expect("memory never fails") {
            bytes += batch.data.len() as u64;
        }
        report(what, self.rows, bytes, self.env.clock.since(start));
    }

    async fn point_reads(&self, what: &str, present: bool) {
        const READS: u64 = 300_000;
        let keys: Vec<Bytes> = (0..READS)
            .map(|_| row_key(self.env.random.range(0..self.rows) + if present { 0 } else { self.rows * 2 }))
            .collect();
        let start = self.env.clock.now();
        let mut bytes = 0;
        for key in &keys {
            let request = self.request(ScanTargets::Rows(vec![key.clone()]), false, true);
            let mut scanner = self.store.snapshot().scan(request).expect("a good request");
            while let Some(batch) = scanner.next_batch().await.expect("memory never fails") {
                bytes += batch.data.len() as u64;
            }
        }
        report(what, READS, bytes, self.env.clock.since(start));
    }
}

async fn run(rows: u64, value_bytes: usize) {
    println!("{rows} rows of {value_bytes} bytes, one tablet, in-memory object store");
    let mut bench = Bench::new(rows, value_bytes);
    bench.write("insert, ascending", 0, false);
    bench.scan("scan of the memtable", false, true).await;
    bench.point_reads("point reads, memtable", true).await;
    bench.flush().await;
    bench.scan("scan, cold, around the cache", false, false).await;
    bench.scan("scan, cold, filling the cache", false, true).await;
    bench.scan("scan, cached", false, true).await;
    bench.scan("reverse scan, cached", true, true).await;
    bench.point_reads("point reads, cached, 1 file", true).await;
    bench.point_reads("point reads, absent rows", false).await;
    bench.write("insert, random", rows, true);
    bench.flush().await;
    bench.scan("scan, cold, 2 files", false, true).await;
    bench.scan("scan, cached, 2 files", false, true).await;
    bench.point_reads("point reads, cached, 2 files", true).await;
    bench.compact().await;
    bench.scan("scan, cold, after compaction", false, true).await;
    bench.point_reads("point reads, after compaction", true).await;
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u64| arguments.next().and_then(|word| word.parse().ok()).unwrap_or(default);
    let (rows, value_bytes) = (number(200_000), number(1000));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run(rows, value_bytes as usize));
}
