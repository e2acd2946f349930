//! One tablet's data: memtables per locality group, and files.
//!
//! All of it is one immutable [`Version`] behind a lock that is held for moments: readers clone a
//! reference to it, and whoever freezes or installs replaces it as a whole.
//!
//! Invariants: (1) a view sees everything up to its sequence number: version and published number are read
//! under one lock, and inserts hold it shared, so none of them goes to a memtable that was frozen before
//! it; (2) a version's files hold nothing above what its views may see: only published writes are
//! frozen; (3) `flushed_seq` only grows.
//!
//! | number | is at most |
//! |---|---|
//! | flushed_seq | the oldest frozen set's `upto` |
//! | a frozen set's `upto` | the published number |
//! | everything in a frozen set | its `upto` |

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use uruk_base::planted::{Planted, is_planted};
use uruk_proto::key;
use uruk_proto::master::{FileRef, LocalityGroupFiles, MetaRow};
use uruk_proto::mutation::Mutation;
use uruk_proto::schema::TableSchema;
use uruk_proto::{FamilyId, RowRange, SeqNo, TabletId};

use super::columns::Columns;
use super::compaction::policy::{self, FileFacts, KnownFacts, Pick, Reason};
use super::compaction::{self, Compaction, CompactionResult, Kind, space};
use super::config::{EngineConfig, GroupOptions};
use super::context::EngineContext;
use super::error::EngineError;
use super::filter::{Filter, Qualifiers};
use super::flush::{self, FlushResult};
use super::memtable::{Memtable, MemtableKey};
use super::progress::Progress;
use super::sstable::FileHandle;
use super::view::ReadView;

/// The memtables of all locality groups, frozen at one published sequence number.
#[derive(Clone, Debug)]
pub struct FreezeToken {
    upto: SeqNo,
    memtables: Vec<(u32, Arc<Memtable>)>,
}

impl FreezeToken {
    /// Everything up to here is in the frozen memtables or in files.
    pub fn upto(&self) -> SeqNo {
        self.upto
    }

    /// Bytes of the frozen memtables.
    pub fn bytes(&self) -> u64 {
        self.memtables.iter().map(|(_, memtable)| memtable.bytes()).sum()
    }

    /// Entries of the frozen memtables.
    pub fn entries(&self) -> u64 {
        self.memtables.iter().map(|(_, memtable)| memtable.len() as u64).sum()
    }
}

/// One locality group's memtables and files.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    active: Arc<Memtable>,
    /// Newest first.
    frozen: Vec<(SeqNo, Arc<Memtable>)>,
    /// Newest first.
    files: Vec<Arc<FileHandle>>,
}

impl Group {
    pub(super) fn memtables(&self) -> impl Iterator<Item = &Arc<Memtable>> {
        let active = Some(&self.active).filter(|memtable| !memtable.is_empty());
        active.into_iter().chain(self.frozen.iter().map(|(_, memtable)| memtable))
    }

    pub(super) fn files(&self) -> impl Iterator<Item = &Arc<FileHandle>> {
        self.files.iter()
    }
}

/// Everything that a view needs, at one moment.
#[derive(Clone, Debug)]
pub(super) struct Version {
    schema: Arc<TableSchema>,
    /// All columns of the schema, for readers that want them all.
    columns: Arc<Columns>,
    /// By number; those of the schema and those that have files.
    groups: BTreeMap<u32, Group>,
    flushed_seq: SeqNo,
    /// Of the newest frozen set, or `flushed_seq`.
    frozen_seq: SeqNo,
    /// What memtables held when the schema last changed: rows may be deleted there that are not deleted in
    /// groups that are new since.
    regrouped_seq: SeqNo,
}

impl Version {
    /// Whether families may move between groups: every deletion of a row is in all groups, or in a file of those
    /// where it is, from where it moves along.
    fn may_move(&self) -> bool {
        self.flushed_seq >= self.regrouped_seq
    }

    /// The columns that a filter wants.
    pub(super) fn columns(&self, filter: &Filter) -> Arc<Columns> {
        match (&filter.families, &filter.qualifiers) {
            (None, Qualifiers::All) => self.columns.clone(),
            _ => Arc::new(Columns::filtered(&self.schema, filter)),
        }
    }

    /// The groups that may hold some of the columns: those that the schema maps them to, and those that
    /// their families have left and not all of their cells. All of such a group counts: a row's deletion
    /// there hides what is older there, and other groups need not have it any more.
    fn groups_of<'a>(&'a self, columns: &'a Columns) -> impl Iterator<Item = &'a Group> {
        let is_own = |group: u32| {
            self.schema.families.iter().any(|family| family.locality_group == group && columns.has_family(family.id))
        };
        // Of a file that was not opened nothing is known.
        let may_have = |file: &FileHandle| {
            file.file.properties().is_none_or(|known| known.facts().families & columns.family_bits() != 0)
        };
        let is_left = move |group: &Group| {
            group.memtables().any(|memtable| memtable.may_have(columns.family_bits()))
                || group.files().any(|file| may_have(file))
        };
        self.groups.iter().filter(move |(number, group)| is_own(**number) || is_left(group)).map(|(_, group)| group)
    }

    /// The memtables that may bear on some of the columns.
    pub(super) fn memtables_of<'a>(&'a self, columns: &'a Columns) -> impl Iterator<Item = &'a Arc<Memtable>> {
        self.groups_of(columns).flat_map(Group::memtables)
    }

    /// The files that may bear on some of the columns.
    pub(super) fn files_of<'a>(&'a self, columns: &'a Columns) -> impl Iterator<Item = &'a Arc<FileHandle>> {
        self.groups_of(columns).flat_map(Group::files)
    }

    pub(super) fn all_files(&self) -> impl Iterator<Item = &Arc<FileHandle>> {
        self.groups.values().flat_map(Group::files)
    }

    /// Tells the files whether their group is kept in memory.
    fn note_residents(&self, config: &EngineConfig) {
        for (number, group) in &self.groups {
            let in_memory = GroupOptions::of(config, &self.schema, *number).in_memory;
            group.files.iter().for_each(|file| file.file.set_resident(in_memory));
        }
    }

    fn add_schema_groups(&mut self) {
        for number in self.schema.locality_groups() {
            self.groups.entry(number).or_default();
        }
    }
}

/// One tablet's data.
#[derive(Debug)]
pub struct TabletStore {
    context: Arc<EngineContext>,
    tablet_id: TabletId,
    range: RowRange,
    version: RwLock<Arc<Version>>,
    published: AtomicU64,
    /// Files that were named once, and are now only if some view reads them.
    retired: Mutex<Vec<Weak<FileHandle>>>,
}

impl TabletStore {
    /// Opens a tablet from its meta row. Reads no file. Nothing is published beyond `flushed_seq`;
    /// the caller applies what the logs hold beyond it, then publishes that.
    pub fn open(
        context: &Arc<EngineContext>,
        schema: Arc<TableSchema>,
        row: &MetaRow,
    ) -> Result<TabletStore, EngineError> {
        let flushed_seq = SeqNo(row.flushed_seq);
        let columns = Arc::new(Columns::all(&schema));
        let mut version = Version {
            schema,
            columns,
            groups: BTreeMap::new(),
            flushed_seq,
            frozen_seq: flushed_seq,
            regrouped_seq: flushed_seq,
        };
        for files in &row.groups {
            let group = version.groups.entry(files.locality_group).or_default();
            group.files = open_files(context, files, &[])?;
        }
        version.add_schema_groups();
        version.note_residents(&context.config);
        Ok(TabletStore {
            context: context.clone(),
            tablet_id: TabletId(row.tablet_id),
            range: RowRange::new(row.start.clone(), row.end.clone()),
            version: RwLock::new(Arc::new(version)),
            published: AtomicU64::new(flushed_seq.0),
            retired: Mutex::default(),
        })
    }

    /// Which tablet.
    pub fn tablet_id(&self) -> TabletId {
        self.tablet_id
    }

    /// Its rows.
    pub fn range(&self) -> &RowRange {
        &self.range
    }

    /// The schema in use.
    pub fn schema(&self) -> Arc<TableSchema> {
        self.version.read().schema.clone()
    }

    /// A new version of the schema; older ones are ignored.
    pub fn set_schema(&self, schema: Arc<TableSchema>) {
        let mut version = self.version.write();
        if schema.version > version.schema.version {
            let mut next = Version::clone(&version);
            next.columns = Arc::new(Columns::all(&schema));
            next.schema = schema;
            next.add_schema_groups();
            let in_memory = next.groups.values().flat_map(Group::memtables).map(|memtable| memtable.seq_max());
            next.regrouped_seq = in_memory.max().unwrap_or_default().max(next.regrouped_seq);
            next.note_residents(&self.context.config);
            *version = Arc::new(next);
        }
    }

    /// Puts the mutations of one row into the memtables; mutation i has number `first + i`.
    /// Timestamps are resolved, the row key is valid and in range, the mutations are durable.
    /// Not visible before it is published. Applying the same again (replay) changes nothing.
    /// Mutations of families that the schema doesn't name are left out.
    ///
    /// # Panics
    /// When `first` is not above all frozen numbers.
    pub fn apply(&self, first: SeqNo, row: &[u8], mutations: &[Mutation]) {
        let version = self.version.read();
        // These bugs break the order on purpose; what comes of it must be seen by readers.
        let is_disordered = is_planted(Planted::SeqNosReused) || is_planted(Planted::FlushedAhead);
        let frozen_seq = version.frozen_seq;
        assert!(first > frozen_seq || is_disordered, "write {first} comes after the freeze at {frozen_seq}");
        // One buffer for all values of the row: one allocation, and the request's memory is free.
        let mut writer = RowWriter { buffer: Vec::new(), key: Vec::new(), entries: Vec::new() };
        writer.buffer.reserve_exact(value_bytes(mutations));
        for (i, mutation) in mutations.iter().enumerate() {
            writer.encode(&version, row, SeqNo(first.0 + i as u64), mutation);
        }
        let buffer = Bytes::from(writer.buffer);
        for entry in writer.entries {
            let group = version.groups.get(&entry.group).expect("the schema's groups exist");
            let value = if entry.value == (0..buffer.len()) { buffer.clone() } else { buffer.slice(entry.value) };
            if let Some(family) = entry.family {
                group.active.note_family(family);
            }
            group.active.insert(entry.key, value, entry.seq);
        }
    }

    /// Makes everything up to `upto` visible: all of it has been applied.
    pub fn publish(&self, upto: SeqNo) {
        self.published.fetch_max(upto.0, Ordering::AcqRel);
    }

    /// Writes up to here are visible to new views.
    pub fn published(&self) -> SeqNo {
        SeqNo(self.published.load(Ordering::Acquire))
    }

    /// Everything up to here is in committed files.
    pub fn flushed_seq(&self) -> SeqNo {
        self.version.read().flushed_seq
    }

    /// The tablet as published now.
    pub fn snapshot(&self) -> ReadView {
        let version = self.version.read();
        // Under the lock, see invariant 1: a freeze in between would hide the newest writes.
        let seq = self.published();
        ReadView::new(self.context.clone(), version.clone(), self.range.clone(), seq)
    }

    /// Freezes the memtables of all groups: they hold everything up to `upto` that is not in files, and
    /// nothing above. None when they are empty, or when too many frozen sets wait already.
    ///
    /// # Panics
    /// When something above `upto` was applied, or `upto` is not published.
    pub fn freeze(&self, upto: SeqNo) -> Option<FreezeToken> {
        let mut version = self.version.write();
        assert!(upto <= self.published(), "freeze at {upto}, published up to {}", self.published());
        let waiting = frozen_sets(&version).len();
        let is_empty = version.groups.values().all(|group| group.active.is_empty());
        if is_empty || waiting >= self.context.config.frozen_sets_max {
            return None;
        }
        let mut next = Version::clone(&version);
        for group in next.groups.values_mut() {
            let frozen = std::mem::take(&mut group.active);
            assert!(frozen.seq_max() <= upto, "write {} was applied, freeze at {upto}", frozen.seq_max());
            if !frozen.is_empty() {
                group.frozen.insert(0, (upto, frozen));
            }
        }
        next.frozen_seq = upto;
        *version = Arc::new(next);
        frozen_sets(&version).pop()
    }

    /// Frozen sets that are not committed as flushed yet, oldest first: flush them in this order.
    pub fn frozen(&self) -> Vec<FreezeToken> {
        frozen_sets(&self.version.read())
    }

    /// Writes the frozen memtables to files. `path` gives a unique path for each (argument: locality
    /// group). On an error nothing has changed; the same token may be flushed again, to other paths.
    pub async fn flush(
        &self,
        token: &FreezeToken,
        progress: &Arc<Progress>,
        path: &mut (dyn FnMut(u32) -> String + Send),
    ) -> Result<FlushResult, EngineError> {
        let schema = self.schema();
        flush::flush(&self.context, &schema, &self.range, &token.memtables, token.upto, progress, path).await
    }

    /// Takes over the committed row: its files, in place of the old ones and of the frozen memtables up
    /// to its `flushed_seq`. Rows must come in the order of their commits (one commit in flight per
    /// tablet); a row that is flushed less far is ignored.
    pub fn install(&self, row: &MetaRow) -> Result<(), EngineError> {
        let mut version = self.version.write();
        let flushed_seq = SeqNo(row.flushed_seq);
        if flushed_seq < version.flushed_seq {
            return Ok(());
        }
        let mut next = Version::clone(&version);
        next.flushed_seq = flushed_seq;
        next.frozen_seq = next.frozen_seq.max(flushed_seq);
        for (number, group) in &mut next.groups {
            group.frozen.retain(|(upto, _)| *upto > flushed_seq);
            let none = LocalityGroupFiles { locality_group: *number, files: Vec::new() };
            let files = row.groups.iter().find(|files| files.locality_group == *number).unwrap_or(&none);
            group.files = open_files(&self.context, files, &group.files)?;
        }
        for files in &row.groups {
            if let std::collections::btree_map::Entry::Vacant(entry) = next.groups.entry(files.locality_group) {
                entry.insert(Group { files: open_files(&self.context, files, &[])?, ..Group::default() });
            }
        }
        next.note_residents(&self.context.config);
        let named = |file: &Arc<FileHandle>| next.all_files().any(|other| Arc::ptr_eq(other, file));
        let dropped: Vec<_> = version.all_files().filter(|file| !named(file)).map(Arc::downgrade).collect();
        *version = Arc::new(next);
        drop(version);
        let mut retired = self.retired.lock();
        retired.retain(|file| file.strong_count() > 0);
        retired.extend(dropped);
        Ok(())
    }

    /// The compaction that is due, if any. At most one runs at a time (the caller's business): one that takes families
    /// to another group relies on the deletions there.
    pub fn pick_compaction(&self) -> Option<Compaction> {
        let version = self.version.read().clone();
        let (config, now) = (&self.context.config, self.context.env.clock.wall_micros());
        version.groups.iter().find_map(|(number, group)| {
            let units = units(&group.files);
            let facts: Vec<FileFacts> = units.iter().map(|unit| facts(unit)).collect();
            let all = |reason| Pick { start: 0, end: units.len(), reason };
            let has_moved = version.may_move() && has_moved(&version.schema, *number, &group.files);
            let pick = has_moved.then(|| all(Reason::Moved)).or_else(|| policy::pick(&facts, config)).or_else(|| {
                let age_max = policy::age_max(&version.schema, *number);
                let reason = policy::major_reason(&facts, age_max, now, config)?;
                Some(all(reason))
            });
            pick.map(|pick| compaction_of(*number, &units, pick))
        })
    }

    /// A compaction of all files of the group; None without files.
    pub fn pick_major(&self, locality_group: u32) -> Option<Compaction> {
        let version = self.version.read().clone();
        let group = version.groups.get(&locality_group).filter(|group| !group.files.is_empty())?;
        let units = units(&group.files);
        Some(compaction_of(locality_group, &units, Pick { start: 0, end: units.len(), reason: Reason::Requested }))
    }

    /// Runs a compaction; `path` gives a unique path for each file that it writes (argument: locality
    /// group). Dropping the future cancels it.
    pub async fn compact(
        &self,
        compaction: &Compaction,
        progress: &Arc<Progress>,
        path: &mut (dyn FnMut(u32) -> String + Send),
    ) -> Result<CompactionResult, EngineError> {
        let version = self.version.read().clone();
        let group = compaction.locality_group;
        let stale = || EngineError::InvalidArgument("the tablet's files have changed since the pick".to_owned());
        let files = &version.groups.get(&group).ok_or_else(stale)?.files;
        let find = |input: &FileRef| files.iter().find(|file| file.reference == *input).cloned().ok_or_else(stale);
        let inputs = compaction.inputs.iter().map(find).collect::<Result<Vec<_>, _>>()?;
        let is_input = |file: &FileRef| compaction.inputs.contains(file);
        let shares_path = |file: &FileRef| compaction.inputs.iter().any(|input| input.path == file.path);
        if files.iter().any(|file| shares_path(&file.reference) && !is_input(&file.reference)) {
            return Err(EngineError::InvalidArgument("some references to a file, but not all".to_owned()));
        }
        let elsewhere: Vec<_> = version.groups.iter().filter(|(number, _)| **number != group).collect();
        let elsewhere = elsewhere.iter().flat_map(|(_, group)| &group.files).cloned().collect();
        let files = compaction::Files { inputs, group: files.clone(), elsewhere, may_move: version.may_move() };
        compaction::run(&self.context, &version.schema, group, files, &self.range, progress, path).await
    }

    /// Bytes of the memtables, frozen ones included.
    pub fn memtable_bytes(&self) -> u64 {
        self.version.read().groups.values().flat_map(Group::memtables).map(|memtable| memtable.bytes()).sum()
    }

    /// Bytes of the memtables that a freeze would freeze.
    pub fn active_bytes(&self) -> u64 {
        self.version.read().groups.values().map(|group| group.active.bytes()).sum()
    }

    /// Stored bytes of the files, and how many of them compactions of all files would leave, estimated.
    pub fn space(&self) -> (u64, u64) {
        let version = self.version.read().clone();
        version.groups.values().fold((0, 0), |(bytes, kept), group| {
            let runs: Vec<space::Run<'_>> = group.files.iter().map(|file| space::Run::of(file)).collect();
            (bytes + runs.iter().map(|run| run.bytes).sum::<u64>(), kept + space::kept_bytes(runs))
        })
    }

    /// How many files there are.
    pub fn file_count(&self) -> usize {
        self.version.read().groups.values().map(|group| group.files.len()).sum()
    }

    /// The files, newest first in each group.
    pub fn files(&self) -> Vec<LocalityGroupFiles> {
        let version = self.version.read();
        let groups = version.groups.iter().filter(|(_, group)| !group.files.is_empty());
        groups
            .map(|(number, group)| LocalityGroupFiles {
                locality_group: *number,
                files: group.files.iter().map(|file| file.reference.clone()).collect(),
            })
            .collect()
    }

    /// What all tablets share.
    pub(super) fn context(&self) -> &EngineContext {
        &self.context
    }

    /// The files' handles, of all groups.
    pub(super) fn handles(&self) -> Vec<Arc<FileHandle>> {
        self.version.read().all_files().cloned().collect()
    }

    /// Paths of files that are named no more but still read by living views (or compactions).
    pub fn pinned_files(&self) -> Vec<String> {
        let mut retired = self.retired.lock();
        retired.retain(|file| file.strong_count() > 0);
        let mut paths: Vec<String> =
            retired.iter().filter_map(Weak::upgrade).map(|file| file.reference.path.clone()).collect();
        paths.sort();
        paths.dedup();
        paths
    }
}

/// Handles on a group's files; those in `open` are used again.
fn open_files(
    context: &EngineContext,
    files: &LocalityGroupFiles,
    open: &[Arc<FileHandle>],
) -> Result<Vec<Arc<FileHandle>>, EngineError> {
    let mut handles = Vec::with_capacity(files.files.len());
    for reference in &files.files {
        handles.push(match open.iter().find(|file| file.reference == *reference) {
            Some(file) => file.clone(),
            None => Arc::new(context.files.handle(reference)?),
        });
    }
    // By path among equals, so that references to one file are neighbours.
    handles.sort_by(|a, b| {
        let key = |file: &Arc<FileHandle>| {
            let reference = &file.reference;
            (std::cmp::Reverse(reference.max_seq), reference.min_seq, reference.path.clone())
        };
        key(a).cmp(&key(b))
    });
    Ok(handles)
}

/// What a compaction takes as a whole or not at all: references to one file (a merge of tablets leaves
/// several; a commit removes files by path), and files that one compaction has cut apart by rows.
fn units(files: &[Arc<FileHandle>]) -> Vec<&[Arc<FileHandle>]> {
    let is_cut =
        |a: &FileRef, b: &FileRef| a.level > 0 && (a.min_seq, a.max_seq, a.level) == (b.min_seq, b.max_seq, b.level);
    let is_one = |a: &FileRef, b: &FileRef| a.path == b.path || is_cut(a, b);
    files.chunk_by(|a, b| is_one(&a.reference, &b.reference)).collect()
}

/// Whether some file has a family that the schema has moved to another group.
fn has_moved(schema: &TableSchema, group: u32, files: &[Arc<FileHandle>]) -> bool {
    let moved: Vec<FamilyId> = compaction::moved(schema, group).into_iter().map(|(family, _)| family).collect();
    let known = files.iter().filter_map(|file| file.file.properties());
    !moved.is_empty() && known.filter(|known| known.families.is_some()).any(|known| known.may_have(&moved))
}

fn frozen_sets(version: &Version) -> Vec<FreezeToken> {
    let mut sets: BTreeMap<SeqNo, Vec<(u32, Arc<Memtable>)>> = BTreeMap::new();
    for (number, group) in &version.groups {
        for (upto, memtable) in &group.frozen {
            sets.entry(*upto).or_default().push((*number, memtable.clone()));
        }
    }
    sets.into_iter().map(|(upto, memtables)| FreezeToken { upto, memtables }).collect()
}

fn compaction_of(locality_group: u32, units: &[&[Arc<FileHandle>]], pick: Pick) -> Compaction {
    let inputs = units[pick.start..pick.end].concat().iter().map(|file| file.reference.clone()).collect();
    let kind = if pick.start == 0 && pick.end == units.len() { Kind::Major } else { Kind::Merging };
    Compaction { locality_group, inputs, kind, reason: pick.reason }
}

fn facts(unit: &[Arc<FileHandle>]) -> FileFacts {
    let mut paths: Vec<(&str, &FileHandle)> = unit.iter().map(|file| (&*file.reference.path, &**file)).collect();
    paths.dedup_by_key(|(path, _)| *path);
    let known = paths.iter().map(|(_, file)| file.file.properties().map(KnownFacts::from));
    let known: Option<Vec<KnownFacts>> = known.collect();
    FileFacts {
        bytes: unit.iter().map(|file| file.reference.bytes).sum(),
        known: known.and_then(|known| known.into_iter().reduce(KnownFacts::merge)),
    }
}

struct RowWriter {
    buffer: Vec<u8>,
    /// Of the mutation under way.
    key: Vec<u8>,
    entries: Vec<EncodedEntry>,
}

struct EncodedEntry {
    group: u32,
    /// None: the whole row.
    family: Option<FamilyId>,
    seq: SeqNo,
    key: MemtableKey,
    /// Where its value lies in the buffer.
    value: Range<usize>,
}

impl RowWriter {
    fn encode(&mut self, version: &Version, row: &[u8], seq: SeqNo, mutation: &Mutation) {
        let group = mutation.family().map(|id| version.schema.family_by_id(id).map(|family| family.locality_group));
        if group == Some(None) {
            return; // a family that the schema does not name
        }
        let (start, key) = (self.buffer.len(), &mut self.key);
        key.clear();
        match mutation {
            Mutation::SetCell { family, qualifier, timestamp, value } => {
                key::put_row(key, row);
                key::put_column(key, *family, qualifier);
                key::put_suffix(key, *timestamp, seq, key::Kind::Cell);
                self.buffer.extend_from_slice(value);
            }
            Mutation::DeleteFromColumn { family, qualifier, start, end } => {
                key::put_row(key, row);
                key::put_column(key, *family, qualifier);
                key::put_suffix(key, i64::MAX, seq, key::Kind::DeleteColumn);
                self.buffer.extend_from_slice(&key::delete_column_value(*start, *end));
            }
            Mutation::DeleteFromFamily { family } => key.extend_from_slice(&key::delete_family(row, *family, seq)),
            Mutation::DeleteFromRow => key.extend_from_slice(&key::delete_row(row, seq)),
        }
        let key = MemtableKey::inline(key).unwrap_or_else(|| MemtableKey::Outside(Bytes::copy_from_slice(key)));
        let value = start..self.buffer.len();
        let family = mutation.family();
        let mut add =
            |group| self.entries.push(EncodedEntry { group, family, seq, key: key.clone(), value: value.clone() });
        match group.flatten() {
            // A whole-row deletion hides cells in every group.
            None => version.groups.keys().copied().for_each(add),
            Some(group) => add(group),
        }
    }
}

fn value_bytes(mutations: &[Mutation]) -> usize {
    let bytes = |mutation: &Mutation| match mutation {
        Mutation::SetCell { value, .. } => value.len(),
        Mutation::DeleteFromColumn { .. } => 16,
        Mutation::DeleteFromFamily { .. } | Mutation::DeleteFromRow => 0,
    };
    mutations.iter().map(bytes).sum()
}

#[cfg(test)]
mod tests;
