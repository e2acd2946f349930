//! A tablet with what a server does around it: log, freeze at a size, flush and compact in the background.
//!
//! Writers stall while the memtable is full and the one before it is not flushed yet: RocksDB's rule for
//! two write buffers, so that both engines have the same memory.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use object_store::path::Path;
use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::Notify;
use uruk_base::{Env, Tasks};
use uruk_proto::master::{LocalityGroupFiles, MetaRow};
use uruk_proto::mutation::{self, Mutation};
use uruk_proto::schema::{Family, GcRule, TableSchema};
use uruk_proto::{Epoch, FamilyId, SeqNo, TableId};

use super::folder::FolderStore;
use super::log::BenchLog;
use super::{BenchError, BenchOptions};
use crate::engine::{EngineContext, EngineError, TabletStore};

/// The one family.
pub const FAMILY: FamilyId = FamilyId(1);
/// The one qualifier.
pub const QUALIFIER: &[u8] = b"q";
/// Writes between two looks at the memtable's size.
const WRITES_PER_CHECK: u64 = 16;

/// Everything up to here was applied.
#[derive(Debug, Default)]
struct Applied {
    upto: u64,
    beyond: BTreeSet<u64>,
}

/// The tablet.
pub struct BenchTablet {
    /// Its engine.
    pub store: TabletStore,
    /// What it shares with others, which there are none.
    pub context: Arc<EngineContext>,
    /// Its log.
    pub log: BenchLog,
    env: Env,
    tasks: Tasks,
    objects: FolderStore,
    memtable_bytes: u64,
    row: Mutex<MetaRow>,
    paths: AtomicU64,
    written_bytes: AtomicU64,
    applied: Mutex<Applied>,
    /// Shared by writers from number to publish; a freeze needs it alone.
    gate: RwLock<()>,
    /// Whether a frozen memtable waits for its flush.
    frozen: Mutex<bool>,
    flushed: Condvar,
    wake_flusher: Notify,
    wake_compactor: Notify,
    idle: Notify,
    compacting: Mutex<bool>,
    /// Files that are named no more and still read, or were a moment ago.
    garbage: Mutex<Vec<String>>,
    failure: Mutex<Option<EngineError>>,
}

impl BenchTablet {
    /// An empty tablet, its background tasks running.
    pub fn open(env: &Env, options: &BenchOptions) -> Result<Arc<BenchTablet>, BenchError> {
        let objects = FolderStore::new(env.clone(), options.folder.clone());
        let context = EngineContext::new(env.clone(), Arc::new(objects.clone()), options.engine.clone())?;
        let family = Family { name: "f".into(), id: FAMILY, gc: GcRule::MaxVersions(1), locality_group: 0 };
        let schema = TableSchema {
            id: TableId(1),
            name: "bench".into(),
            version: 1,
            families: vec![family],
            ..TableSchema::default()
        };
        let row = MetaRow { tablet_id: 1, table_id: 1, ..MetaRow::default() };
        let tablet = Arc::new(BenchTablet {
            store: TabletStore::open(&context, Arc::new(schema), &row)?,
            context,
            log: BenchLog::create(&options.folder.join("commit.log"))?,
            env: env.clone(),
            tasks: env.tasks.child(),
            objects,
            memtable_bytes: options.memtable_bytes,
            row: Mutex::new(row),
            paths: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            applied: Mutex::default(),
            gate: RwLock::new(()),
            frozen: Mutex::new(false),
            flushed: Condvar::new(),
            wake_flusher: Notify::new(),
            wake_compactor: Notify::new(),
            idle: Notify::new(),
            compacting: Mutex::new(false),
            garbage: Mutex::default(),
            failure: Mutex::new(None),
        });
        let (flusher, compactor) = (tablet.clone(), tablet.clone());
        tablet.tasks.spawn("bench flusher", async move {
            loop {
                flusher.wake_flusher.notified().await;
                flusher.note(flusher.flush().await);
            }
        });
        tablet.tasks.spawn("bench compactor", async move {
            loop {
                compactor.wake_compactor.notified().await;
                compactor.note(compactor.compact_while_due().await);
                compactor.idle.notify_waiters();
            }
        });
        Ok(tablet)
    }

    /// Ends the background tasks.
    pub async fn close(self: Arc<Self>) -> Result<(), BenchError> {
        let _ = self.tasks.shutdown().await;
        match self.failure.lock().take() {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    /// Writes one cell: logged, applied, published.
    pub fn write(&self, row: &[u8], timestamp: i64, value: Bytes, sync: bool) -> std::io::Result<()> {
        let mutation = Mutation::SetCell { family: FAMILY, qualifier: Bytes::from_static(QUALIFIER), timestamp, value };
        let counter = {
            let _writing = self.gate.read();
            // Durable first ...
            let seq = self.log.commit(row, mutation::pack([&mutation]), timestamp, sync)?;
            self.store.apply(seq, row, std::slice::from_ref(&mutation));
            // ... visible second.
            self.publish(seq);
            seq.counter()
        };
        if counter % WRITES_PER_CHECK == 0 && self.store.active_bytes() >= self.memtable_bytes {
            self.freeze_or_stall();
        }
        Ok(())
    }

    fn publish(&self, seq: SeqNo) {
        let mut applied = self.applied.lock();
        if applied.upto + 1 != seq.counter() {
            applied.beyond.insert(seq.counter());
            return;
        }
        applied.upto += 1;
        while !applied.beyond.is_empty() && applied.beyond.first() == Some(&(applied.upto + 1)) {
            applied.beyond.pop_first();
            applied.upto += 1;
        }
        if let Some(upto) = SeqNo::new(Epoch(1), applied.upto) {
            self.store.publish(upto);
        }
    }

    fn freeze_or_stall(&self) {
        let mut frozen = self.frozen.lock();
        while *frozen && self.failure.lock().is_none() {
            self.flushed.wait(&mut frozen);
        }
        let _alone = self.gate.write();
        if self.store.active_bytes() >= self.memtable_bytes && self.store.freeze(self.store.published()).is_some() {
            *frozen = true;
            self.wake_flusher.notify_one();
        }
    }

    async fn flush(&self) -> Result<(), EngineError> {
        while let Some(token) = self.store.frozen().into_iter().next() {
            let result = self.store.flush(&token, &Arc::default(), &mut |_| self.path()).await?;
            {
                let mut row = self.row.lock();
                row.flushed_seq = result.flushed_seq.0;
                result.groups.into_iter().for_each(|files| self.add(&mut row, files));
                self.store.install(&row)?;
            }
            *self.frozen.lock() = false;
            self.flushed.notify_all();
            self.wake_compactor.notify_one();
        }
        self.idle.notify_waiters();
        Ok(())
    }

    async fn compact_while_due(&self) -> Result<(), EngineError> {
        *self.compacting.lock() = true;
        let mut result = Ok(());
        while result.is_ok()
            && let Some(compaction) = self.store.pick_compaction()
        {
            result = self.compact(&compaction).await;
        }
        *self.compacting.lock() = false;
        result
    }

    async fn compact(&self, compaction: &crate::engine::compaction::Compaction) -> Result<(), EngineError> {
        let result = self.store.compact(compaction, &Arc::default(), &mut |_| self.path()).await?;
        {
            let mut row = self.row.lock();
            for group in &mut row.groups {
                group.files.retain(|file| !result.remove.contains(&file.path));
            }
            result.add.into_iter().for_each(|files| self.add(&mut row, files));
            self.store.install(&row)?;
        }
        self.collect(result.remove);
        Ok(())
    }

    /// Removes files that are named no more, once no view reads them.
    fn collect(&self, unnamed: Vec<String>) {
        let mut garbage = self.garbage.lock();
        garbage.extend(unnamed);
        let pinned = self.store.pinned_files();
        garbage.retain(|path| {
            let removed =
                !pinned.contains(path) && Path::parse(path).is_ok_and(|path| self.objects.remove(&path).is_ok());
            !removed
        });
    }

    /// Flushes all and merges all files into one, after what runs.
    pub async fn compact_all(&self) -> Result<(), EngineError> {
        self.quiesce().await?;
        {
            let _alone = self.gate.write();
            self.store.freeze(self.store.published());
        }
        self.flush().await?;
        self.quiesce().await?;
        match self.store.pick_major(0) {
            Some(compaction) => self.compact(&compaction).await,
            None => Ok(()),
        }
    }

    /// Waits until nothing is flushed or compacted.
    pub async fn quiesce(&self) -> Result<(), EngineError> {
        loop {
            if let Some(error) = self.failure.lock().clone() {
                return Err(error);
            }
            let busy = !self.store.frozen().is_empty() || *self.compacting.lock();
            if !busy && self.store.pick_compaction().is_none() {
                return Ok(());
            }
            self.wake_compactor.notify_one();
            let idle = self.idle.notified();
            let _ = self.env.clock.timeout(std::time::Duration::from_millis(20), idle).await;
        }
    }

    /// Bytes of table files written so far.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    /// The clock and the tasks.
    pub fn env(&self) -> &Env {
        &self.env
    }

    fn add(&self, row: &mut MetaRow, add: LocalityGroupFiles) {
        let bytes: u64 = add.files.iter().map(|file| file.bytes).sum();
        self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
        match row.groups.first_mut() {
            Some(group) => group.files.extend(add.files),
            None => row.groups.push(add),
        }
        for group in &mut row.groups {
            group.files.sort_by_key(|file| std::cmp::Reverse(file.max_seq));
        }
    }

    fn path(&self) -> String {
        format!("{}.sst", self.paths.fetch_add(1, Ordering::Relaxed))
    }

    fn note(&self, result: Result<(), EngineError>) {
        if let Err(error) = result {
            self.failure.lock().get_or_insert(error);
            *self.frozen.lock() = false;
            self.flushed.notify_all();
        }
    }
}
