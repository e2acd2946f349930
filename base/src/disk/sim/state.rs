//! What a simulated disk holds: the page cache's view, the device's view, and what lies between.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;

use super::{DiskFaults, SECTOR_BYTES};
use crate::disk::{DirEntry, OpenMode};
use crate::random::Random;

pub(super) type InodeId = u64;

/// Errno of an input/output error, which `io::ErrorKind` has no name for.
const EIO: i32 = 5;

/// A file's content.
#[derive(Debug, Default)]
struct Inode {
    /// What reads return.
    cached: Vec<u8>,
    /// What the device holds.
    durable: Vec<u8>,
    /// Sectors written since the last sync began, with the number of their last write.
    dirty: BTreeMap<u64, u64>,
    /// Sectors that a failed sync dropped: cached, not durable, and not dirty any more.
    dropped: BTreeSet<u64>,
    /// Whether the device has another length than the cache.
    length_dirty: bool,
}

/// What a sync set out to make durable.
#[derive(Debug)]
pub(super) struct BegunSync {
    dirty: BTreeMap<u64, u64>,
    len: u64,
}

/// A change of a folder that no `sync_dir` has covered yet.
#[derive(Clone, Debug)]
enum DirChange {
    Link(PathBuf, InodeId),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, InodeId),
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) faults: DiskFaults,
    /// Handles of other numbers belong to crashed processes.
    pub(super) process: u64,
    pub(super) boot: u64,
    random: Random,
    inodes: BTreeMap<InodeId, Inode>,
    next_number: u64,
    /// Folders; durable when made.
    dirs: BTreeSet<PathBuf>,
    cached_names: BTreeMap<PathBuf, InodeId>,
    durable_names: BTreeMap<PathBuf, InodeId>,
    unsynced_changes: Vec<DirChange>,
    locks: BTreeMap<PathBuf, u64>,
}

impl State {
    pub(super) fn new(seed: u64) -> State {
        State {
            faults: DiskFaults::default(),
            process: 1,
            boot: 1,
            random: Random::from_seed(seed),
            inodes: BTreeMap::new(),
            next_number: 1,
            dirs: BTreeSet::new(),
            cached_names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            unsynced_changes: Vec::new(),
            locks: BTreeMap::new(),
        }
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn happens(&self, chance: f64) -> bool {
        chance > 0.0 && self.random.unit() < chance
    }

    // ------------------------------------------------------------------ names

    pub(super) fn create_dir_all(&mut self, dir: &Path) -> io::Result<()> {
        for ancestor in dir.ancestors() {
            if self.cached_names.contains_key(ancestor) {
                return Err(io::Error::from(io::ErrorKind::NotADirectory));
            }
            self.dirs.insert(ancestor.to_owned());
        }
        Ok(())
    }

    fn check_parent(&self, path: &Path) -> io::Result<()> {
        match path.parent() {
            Some(parent) if self.dirs.contains(parent) || parent.as_os_str().is_empty() => Ok(()),
            Some(_) | None => Err(io::Error::from(io::ErrorKind::NotFound)),
        }
    }

    pub(super) fn open(&mut self, path: &Path, mode: OpenMode) -> io::Result<InodeId> {
        if let Some(inode) = self.cached_names.get(path) {
            let exists = mode == OpenMode::CreateNew;
            return if exists { Err(io::Error::from(io::ErrorKind::AlreadyExists)) } else { Ok(*inode) };
        }
        match mode {
            OpenMode::Read | OpenMode::Write => Err(io::Error::from(io::ErrorKind::NotFound)),
            OpenMode::CreateNew | OpenMode::CreateOrWrite => {
                self.check_parent(path)?;
                let inode = self.number();
                self.inodes.insert(inode, Inode::default());
                self.cached_names.insert(path.to_owned(), inode);
                self.unsynced_changes.push(DirChange::Link(path.to_owned(), inode));
                Ok(inode)
            }
        }
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.check_parent(to)?;
        let inode = self.cached_names.remove(from).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        self.cached_names.insert(to.to_owned(), inode);
        self.unsynced_changes.push(DirChange::Rename(from.to_owned(), to.to_owned(), inode));
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.cached_names.remove(path).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        self.unsynced_changes.push(DirChange::Unlink(path.to_owned()));
        Ok(())
    }

    pub(super) fn remove_dir_all(&mut self, dir: &Path) -> io::Result<()> {
        if !self.dirs.contains(dir) {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        let files: Vec<PathBuf> = self.cached_names.keys().filter(|path| path.starts_with(dir)).cloned().collect();
        for file in files {
            self.remove(&file)?;
        }
        self.dirs.retain(|path| !path.starts_with(dir));
        Ok(())
    }

    pub(super) fn list(&mut self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        if self.faults.list_errors > 0 {
            self.faults.list_errors -= 1;
            return Err(io::Error::from_raw_os_error(EIO));
        }
        if !self.dirs.contains(dir) {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        let in_dir = |path: &Path| (path.parent() == Some(dir)).then(|| name_of(path));
        let mut entries: Vec<DirEntry> = Vec::new();
        for (path, inode) in self.cached_names.range(dir.to_owned()..).take_while(|(path, _)| path.starts_with(dir)) {
            if let Some(name) = in_dir(path) {
                entries.push(DirEntry { name, len: self.len(*inode), is_dir: false });
            }
        }
        for path in self.dirs.range(dir.to_owned()..).take_while(|path| path.starts_with(dir)) {
            if let Some(name) = in_dir(path) {
                entries.push(DirEntry { name, len: 0, is_dir: true });
            }
        }
        entries.sort();
        Ok(entries)
    }

    pub(super) fn list_all(&self) -> Vec<(PathBuf, u64)> {
        self.cached_names.iter().map(|(path, inode)| (path.clone(), self.len(*inode))).collect()
    }

    pub(super) fn content(&self, path: &Path) -> Option<Bytes> {
        let inode = self.cached_names.get(path)?;
        self.inodes.get(inode).map(|inode| Bytes::copy_from_slice(&inode.cached))
    }

    pub(super) fn sync_dir(&mut self, dir: &Path) -> io::Result<()> {
        if !self.dirs.contains(dir) {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        let in_dir = |path: &PathBuf| path.parent() == Some(dir);
        let (synced, rest) = std::mem::take(&mut self.unsynced_changes).into_iter().partition(|change| match change {
            DirChange::Link(path, _) | DirChange::Unlink(path) => in_dir(path),
            DirChange::Rename(from, to, _) => in_dir(from) || in_dir(to),
        });
        self.unsynced_changes = rest;
        self.make_durable(synced);
        Ok(())
    }

    fn make_durable(&mut self, changes: Vec<DirChange>) {
        for change in changes {
            match change {
                DirChange::Link(path, inode) => {
                    self.durable_names.insert(path, inode);
                }
                DirChange::Unlink(path) => {
                    self.durable_names.remove(&path);
                }
                DirChange::Rename(from, to, inode) => {
                    if self.durable_names.get(&from) == Some(&inode) {
                        self.durable_names.remove(&from);
                    }
                    self.durable_names.insert(to, inode);
                }
            }
        }
    }

    pub(super) fn lock(&mut self, dir: &Path) -> io::Result<u64> {
        if self.locks.contains_key(dir) {
            return Err(io::Error::from(io::ErrorKind::WouldBlock));
        }
        let id = self.number();
        self.locks.insert(dir.to_owned(), id);
        Ok(id)
    }

    pub(super) fn unlock(&mut self, dir: &Path, id: u64) {
        if self.locks.get(dir) == Some(&id) {
            self.locks.remove(dir);
        }
    }

    // ---------------------------------------------------------------- content

    fn inode(&mut self, inode: InodeId) -> &mut Inode {
        self.inodes.get_mut(&inode).expect("inodes live as long as the process that opened them")
    }

    pub(super) fn len(&self, inode: InodeId) -> u64 {
        self.inodes.get(&inode).map_or(0, |inode| inode.cached.len() as u64)
    }

    pub(super) fn read(&mut self, inode: InodeId, offset: u64, len: usize) -> io::Result<Bytes> {
        if self.happens(self.faults.read_error_chance) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let range = range_of(offset, len)?;
        let content = &self.inode(inode).cached;
        content.get(range).map(Bytes::copy_from_slice).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
    }

    pub(super) fn write(&mut self, inode: InodeId, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.happens(self.faults.write_error_chance) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let range = range_of(offset, data.len())?;
        let room = self.len(inode).saturating_add(self.free_bytes());
        // Like write(2): what fits is written before the error.
        let fits = range.end.min(usize::try_from(room).unwrap_or(usize::MAX)).max(range.start) - range.start;
        let number = self.number();
        if fits > 0 {
            self.inode(inode).write(range.start, &data[..fits], number);
        }
        if fits < data.len() { Err(io::Error::from(io::ErrorKind::StorageFull)) } else { Ok(()) }
    }

    pub(super) fn set_len(&mut self, inode: InodeId, len: u64) -> io::Result<()> {
        let old = self.len(inode);
        if len > old && len - old > self.free_bytes() {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        let number = self.number();
        let inode = self.inode(inode);
        inode.cached.resize(usize::try_from(len).map_err(io::Error::other)?, 0);
        inode.length_dirty = true;
        if len > old {
            for sector in sectors(old as usize..len as usize) {
                inode.dirty.insert(sector, number);
            }
        }
        Ok(())
    }

    pub(super) fn free_bytes(&self) -> u64 {
        let Some(capacity) = self.faults.capacity_bytes else { return 1 << 50 };
        let used = self.cached_names.values().map(|inode| self.len(*inode)).sum();
        capacity.saturating_sub(used)
    }

    pub(super) fn flip_bit(&mut self, path: &Path, bit: u64) -> io::Result<()> {
        let inode = *self.cached_names.get(path).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let (byte, mask) = ((bit / 8) as usize, 1 << (bit % 8));
        let inode = self.inode(inode);
        let cached = inode.cached.get_mut(byte).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        *cached ^= mask;
        if let Some(durable) = inode.durable.get_mut(byte) {
            *durable ^= mask;
        }
        Ok(())
    }

    // ------------------------------------------------------------------- sync

    pub(super) fn sync_time(&self, max: Duration) -> io::Result<Duration> {
        Ok(self.faults.sync_delay + max.mul_f64(self.random.unit()))
    }

    pub(super) fn begin_sync(&mut self, inode: InodeId) -> BegunSync {
        let inode = self.inode(inode);
        BegunSync { dirty: inode.dirty.clone(), len: inode.cached.len() as u64 }
    }

    pub(super) fn end_sync(&mut self, inode: InodeId, begun: &BegunSync) -> io::Result<()> {
        let counted = self.faults.sync_errors > 0;
        let fails = counted || self.happens(self.faults.sync_error_chance);
        if counted {
            self.faults.sync_errors -= 1;
        }
        let random = self.random.clone();
        let inode = self.inode(inode);
        if !fails {
            inode.make_durable(begun, |_| true);
            return Ok(());
        }
        inode.make_durable(begun, |_| random.unit() < 0.5);
        Err(io::Error::from_raw_os_error(EIO))
    }

    // ---------------------------------------------------------------- crashes

    pub(super) fn process_crash(&mut self) {
        self.process += 1;
        self.locks.clear();
        let random = self.random.clone();
        for inode in self.inodes.values_mut() {
            inode.evict_dropped(&random);
        }
        self.forget_unnamed();
    }

    pub(super) fn power_loss(&mut self) {
        self.process += 1;
        self.boot += 1;
        self.locks.clear();
        let changes = std::mem::take(&mut self.unsynced_changes);
        // One draw for the whole event, so that all-or-nothing outcomes are not rare.
        let chance = [0.0, 0.5, 1.0][self.random.range(0..3) as usize];
        let survivors = changes.into_iter().filter(|_| self.random.unit() < chance).collect();
        self.make_durable(survivors);
        self.cached_names = self.durable_names.clone();
        for path in self.cached_names.keys() {
            self.dirs.extend(path.ancestors().skip(1).map(Path::to_owned));
        }
        let random = self.random.clone();
        for inode in self.inodes.values_mut() {
            let chance = [0.0, 0.5, 1.0][random.range(0..3) as usize];
            inode.lose_power(&random, chance);
        }
        self.forget_unnamed();
    }

    fn forget_unnamed(&mut self) {
        let mut named: BTreeSet<InodeId> = self.cached_names.values().copied().collect();
        named.extend(self.durable_names.values());
        for change in &self.unsynced_changes {
            match change {
                DirChange::Link(_, inode) | DirChange::Rename(_, _, inode) => {
                    named.insert(*inode);
                }
                DirChange::Unlink(_) => {}
            }
        }
        self.inodes.retain(|inode, _| named.contains(inode));
    }
}

impl Inode {
    fn write(&mut self, start: usize, data: &[u8], number: u64) {
        let end = start + data.len();
        let old = self.cached.len();
        if end > old {
            self.cached.resize(end, 0);
            self.length_dirty = true;
        }
        self.cached[start..end].copy_from_slice(data);
        for sector in sectors(start.min(old)..end) {
            self.dirty.insert(sector, number);
            self.dropped.remove(&sector);
        }
    }

    /// Ends a sync. Sectors that do not `survive` are dropped, as after a failed one.
    fn make_durable(&mut self, begun: &BegunSync, mut survives: impl FnMut(u64) -> bool) {
        let len = (begun.len as usize).min(self.cached.len());
        self.durable.resize(len, 0);
        self.length_dirty = self.cached.len() != len;
        for (sector, number) in &begun.dirty {
            if survives(*sector) {
                self.copy_to_device(*sector);
            } else {
                self.dropped.insert(*sector);
            }
            // A sector written again since then stays dirty.
            if self.dirty.get(sector) == Some(number) {
                self.dirty.remove(sector);
            }
        }
    }

    fn copy_to_device(&mut self, sector: u64) {
        let start = (sector * SECTOR_BYTES) as usize;
        let end = (start + SECTOR_BYTES as usize).min(self.cached.len()).min(self.durable.len());
        if start < end {
            self.durable[start..end].copy_from_slice(&self.cached[start..end]);
        }
    }

    /// Some sectors that a failed sync dropped leave the cache and are read from the device again.
    fn evict_dropped(&mut self, random: &Random) {
        for sector in std::mem::take(&mut self.dropped) {
            if random.unit() < 0.5 {
                self.dropped.insert(sector);
                continue;
            }
            let start = (sector * SECTOR_BYTES) as usize;
            let end = (start + SECTOR_BYTES as usize).min(self.cached.len());
            for at in start..end {
                self.cached[at] = self.durable.get(at).copied().unwrap_or(0);
            }
        }
    }

    fn lose_power(&mut self, random: &Random, chance: f64) {
        if self.length_dirty && random.unit() < chance {
            self.durable.resize(self.cached.len(), 0);
        }
        for sector in std::mem::take(&mut self.dirty).into_keys() {
            if random.unit() < chance {
                self.copy_to_device(sector);
            }
        }
        self.dropped.clear();
        self.length_dirty = false;
        self.cached = self.durable.clone();
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn range_of(offset: u64, len: usize) -> io::Result<Range<usize>> {
    let start = usize::try_from(offset).map_err(io::Error::other)?;
    let end = start.checked_add(len).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(start..end)
}

/// Numbers of the sectors that a range of bytes touches.
fn sectors(range: Range<usize>) -> Range<u64> {
    if range.is_empty() {
        return 0..0;
    }
    range.start as u64 / SECTOR_BYTES..(range.end as u64 - 1) / SECTOR_BYTES + 1
}
