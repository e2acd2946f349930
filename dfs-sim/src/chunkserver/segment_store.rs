//! The segment replicas of one folder.
//!
//! Invariant: there is one [`Replica`] per segment id for the life of the process, also for ids of
//! which nothing is on disk yet: two of them would be two locks. So entries are never taken out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::error::StoreError;
use super::graves::Graves;
use super::host::Host;
use super::map_cache::MapCache;
use super::replica::{FenceAnswer, OpenAppend, Replica};
use crate::format::replica_file::DATA_OFFSET;

/// All replicas of a server.
#[derive(Debug)]
pub(super) struct SegmentStore {
    host: Arc<Host>,
    maps: Arc<MapCache>,
    dir: PathBuf,
    graves: Graves,
    replicas: Mutex<BTreeMap<u64, Arc<Replica>>>,
}

impl SegmentStore {
    /// Lists the folder, reads every meta file, and validates what is not sealed.
    pub(super) async fn open(host: Arc<Host>, maps: Arc<MapCache>) -> Result<SegmentStore, StoreError> {
        let dir = host.folder("segments");
        let disk = host.env.disk.clone();
        disk.create_dir_all(&dir).await.map_err(StoreError::io(&dir))?;
        let graves = Graves::open(host.clone(), &dir).await?;
        let (mut logs, mut metas, mut leftovers) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        for entry in disk.list(&dir).await.map_err(StoreError::io(&dir))? {
            let (stem, suffix) = entry.name.split_once('.').unwrap_or((&entry.name, ""));
            let id = u64::from_str_radix(stem, 16).ok();
            match (id, suffix) {
                (Some(id), "log") if !graves.contains(id) => {
                    logs.insert(id, entry.len);
                }
                (Some(id), "meta") if !graves.contains(id) => {
                    metas.insert(id);
                }
                (Some(_), _) => leftovers.push(entry.name),
                (None, _) => {}
            }
        }
        // Creation ends with the meta file: without one nothing was ever acknowledged.
        leftovers.extend(logs.keys().filter(|id| !metas.contains(*id)).map(|id| format!("{id:016x}.log")));
        for name in leftovers {
            let path = dir.join(name);
            disk.remove(&path).await.map_err(StoreError::io(&path))?;
        }
        let mut replicas = BTreeMap::new();
        for id in metas {
            let bytes = logs.get(&id).copied();
            let replica = Replica::load(id, host.clone(), maps.clone(), dir.clone(), bytes).await;
            replicas.insert(id, Arc::new(replica));
        }
        Ok(SegmentStore { host, maps, dir, graves, replicas: Mutex::new(replicas) })
    }

    /// The replica, if anything was ever heard of it.
    pub(super) fn get(&self, id: u64) -> Result<Arc<Replica>, StoreError> {
        self.replicas.lock().get(&id).cloned().ok_or_else(|| StoreError::NotFound(format!("segment {id}")))
    }

    /// The replica, which may have nothing on disk; refused for deleted segments.
    pub(super) fn get_or_absent(&self, id: u64) -> Result<Arc<Replica>, StoreError> {
        if id == 0 {
            return Err(StoreError::Invalid("segment id 0".into()));
        }
        let mut replicas = self.replicas.lock();
        if self.graves.contains(id) {
            return Err(StoreError::Fenced { segment: id, fence: u64::MAX });
        }
        let absent = || Arc::new(Replica::absent(id, self.host.clone(), self.maps.clone(), self.dir.clone()));
        Ok(replicas.entry(id).or_insert_with(absent).clone())
    }

    /// Opens a replica for its writer.
    pub(super) async fn open_for_append(&self, id: u64, open: OpenAppend) -> Result<Arc<Replica>, StoreError> {
        let replica = if open.create { self.get_or_absent(id)? } else { self.get(id)? };
        replica.open_for_append(open).await?;
        Ok(replica)
    }

    /// Fences a replica. One that was never created is fenced too: its writer may still be on its way.
    pub(super) async fn fence(&self, id: u64, r: u64) -> Result<FenceAnswer, StoreError> {
        if self.graves.contains(id) {
            return Ok(FenceAnswer::Unknown { reason: "it was deleted here".into() });
        }
        self.get_or_absent(id)?.fence(r).await
    }

    /// Deletes replicas; they can never be created again. One that cannot be deleted does not hold up
    /// the others; the last error is told.
    pub(super) async fn delete(&self, ids: &[u64]) -> Result<(), StoreError> {
        self.graves.add(ids).await?;
        let mut result = Ok(());
        for id in ids {
            match self.get(*id) {
                Ok(replica) => result = replica.delete().await.and(result),
                Err(_) => self.host.changes.segment(*id),
            }
        }
        result
    }

    /// A name for a copy that is being fetched; removed at the next start when it is left over.
    pub(super) fn temporary(&self, id: u64) -> PathBuf {
        self.dir.join(format!("{id:016x}.{:016x}.tmp", self.host.env.random.u64()))
    }

    /// Replicas with something on disk, by id.
    pub(super) fn present(&self) -> Vec<(u64, Arc<Replica>)> {
        let replicas = self.replicas.lock();
        replicas.iter().filter(|(_, r)| r.glance().present).map(|(id, r)| (*id, r.clone())).collect()
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.present().iter().map(|(_, replica)| DATA_OFFSET + replica.length()).sum()
    }
}
