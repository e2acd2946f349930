//! Files to fewer files, within one locality group of a tablet.
//!
//! Invariants: (1) the inputs are neighbours in the order of sequence numbers; (2) deletions, and cells
//! that GC rules let go, are dropped only when no file outside of the inputs that overlaps them holds
//! anything older: else what they hide would come back. That goes for files of other locality groups too, where
//! they have a family in common: it has moved; (3) in each group a deletion of a whole row is newer than all
//! that it must hide there: it was written to every group, and families move together with such deletions.

pub mod policy;
pub mod space;

use std::collections::BTreeSet;
use std::sync::Arc;

use uruk_proto::master::{FileRef, LocalityGroupFiles};
use uruk_proto::schema::TableSchema;
use uruk_proto::{FamilyId, RowRange};

use super::columns::Columns;
use super::context::EngineContext;
use super::error::EngineError;
use super::merge::Merge;
use super::progress::Progress;
use super::rewrite::{Output, Purge, rewrite};
use super::sstable::FileHandle;
use super::sstable::cursor::ReadOptions;
use super::sstable::skip::Wanted;

/// How much of a locality group a compaction takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Some of its files.
    Merging,
    /// All of them.
    Major,
}

/// What a compaction is about to do: one locality group, a run of its files.
#[derive(Clone, PartialEq, Debug)]
pub struct Compaction {
    /// The locality group.
    pub locality_group: u32,
    /// The files to merge, newest first.
    pub inputs: Vec<FileRef>,
    /// Whether that is all of them.
    pub kind: Kind,
    /// Why.
    pub reason: policy::Reason,
}

impl Compaction {
    /// Stored bytes and entries of the inputs, as far as the tablet's references cover them.
    pub fn input_size(&self) -> (u64, u64) {
        self.inputs.iter().fold((0, 0), |(bytes, entries), file| (bytes + file.bytes, entries + file.cells))
    }
}

/// What a compaction wrote. It counts for nothing until the master has committed it.
#[derive(Clone, PartialEq, Debug)]
pub struct CompactionResult {
    /// Paths of the inputs.
    pub remove: Vec<String>,
    /// What takes their place, by group: one file or more, or none when nothing is left. Groups that
    /// families have moved to are among them.
    pub add: Vec<LocalityGroupFiles>,
    /// The schema version that it worked under.
    pub schema_version: u64,
}

/// The tablet's files, as a compaction sees them.
pub(crate) struct Files {
    /// Those to merge, newest first.
    pub inputs: Vec<Arc<FileHandle>>,
    /// All of their group.
    pub group: Vec<Arc<FileHandle>>,
    /// Those of the other groups.
    pub elsewhere: Vec<Arc<FileHandle>>,
    /// Whether all deletions of rows that their new groups lack are in files.
    pub may_move: bool,
}

impl Files {
    fn references(files: &[Arc<FileHandle>]) -> impl Iterator<Item = &FileRef> + Clone {
        files.iter().map(|file| &file.reference)
    }

    /// Whether nothing that the inputs' deletions or cells bear on is older, and not among them: in their
    /// group, or where one of their families has been before or has moved since.
    async fn are_oldest(&self) -> Result<bool, EngineError> {
        let inputs = || Files::references(&self.inputs);
        let others = Files::references(&self.group).filter(|file| !inputs().any(|input| input == *file));
        if !nothing_older_overlaps(inputs(), others) {
            return Ok(false);
        }
        let mut families = BTreeSet::new();
        for file in &self.inputs {
            match &file.file.open().await?.properties.families {
                Some(own) => families.extend(own.iter().copied()),
                // An old file does not say: it is as if it had them all.
                None => return Ok(nothing_older_overlaps(inputs(), Files::references(&self.elsewhere))),
            }
        }
        let families = Vec::from_iter(families);
        for file in &self.elsewhere {
            if nothing_older_overlaps(inputs(), std::iter::once(&file.reference)) {
                continue;
            }
            // A row's deletion has a copy in every group, so families alone decide.
            if file.file.open().await?.properties.may_have(&families) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The families that the schema maps to other groups than this one, and to which; by id.
pub(crate) fn moved(schema: &TableSchema, group: u32) -> Vec<(FamilyId, u32)> {
    let families = schema.families.iter().filter(|family| family.locality_group != group);
    let mut moved: Vec<_> = families.map(|family| (family.id, family.locality_group)).collect();
    moved.sort_unstable();
    moved
}

/// Runs a compaction.
pub(crate) async fn run(
    context: &EngineContext,
    schema: &TableSchema,
    locality_group: u32,
    files: Files,
    range: &RowRange,
    progress: &Arc<Progress>,
    path: &mut (dyn FnMut(u32) -> String + Send),
) -> Result<CompactionResult, EngineError> {
    let purge = match files.are_oldest().await? {
        true => Purge::Everything { columns: Columns::all(schema), now: context.env.clock.wall_micros() },
        false => Purge::Hidden,
    };
    let readahead = context.config.readahead_bytes_max;
    let options = ReadOptions {
        fill_cache: false,
        cache_fill_bytes_max: 0,
        readahead_bytes_min: readahead,
        readahead_bytes_max: readahead,
        wanted: Wanted::ALL,
    };
    let level = files.inputs.iter().map(|input| input.reference.level).max().unwrap_or(0) + 1;
    let is_major = files.inputs.len() == files.group.len();
    // Families move only with all of the group's files, and so together with every deletion of whole rows
    // that there is here: in each group such deletions cover what is older there.
    let mut moved = if is_major && files.may_move { moved(schema, locality_group) } else { Vec::new() };
    let known = || files.inputs.iter().map(|file| file.file.tail().map(|tail| &tail.properties));
    moved.retain(|(family, _)| known().any(|known| known.is_none_or(|known| known.may_have(&[*family]))));
    let output = Output {
        range,
        level,
        group: locality_group,
        moved,
        is_major,
        file_bytes_max: context.config.compaction_file_bytes,
        progress,
        path,
    };
    let add = rewrite(context, schema, Merge::new([], &files.inputs, options), purge, output).await?;
    let mut remove: Vec<String> = files.inputs.iter().map(|input| input.reference.path.clone()).collect();
    remove.dedup();
    Ok(CompactionResult { remove, add, schema_version: schema.version })
}

/// Whether no file outside of the inputs may hold anything that was written before something of theirs,
/// in their rows.
fn nothing_older_overlaps<'a>(
    inputs: impl Iterator<Item = &'a FileRef> + Clone,
    others: impl Iterator<Item = &'a FileRef>,
) -> bool {
    let newest = inputs.clone().map(|input| input.max_seq).max().unwrap_or(0);
    let rows = |file: &FileRef| RowRange::new(file.low.clone(), file.high.clone());
    others.filter(|other| other.min_seq < newest).all(|other| {
        inputs.clone().all(|input| {
            let both = rows(input).intersect(&rows(other));
            both.is_empty()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(low: &'static str, high: &'static str, min_seq: u64, max_seq: u64) -> FileRef {
        FileRef { low: low.into(), high: high.into(), min_seq, max_seq, ..FileRef::default() }
    }

    #[test]
    fn deletions_go_only_above_nothing_older() {
        let older = |inputs: &[FileRef], others: &[FileRef]| !nothing_older_overlaps(inputs.iter(), others.iter());
        let all = |min, max| file("", "", min, max);
        assert!(!older(&[all(1, 5)], &[]));
        assert!(!older(&[all(1, 5)], &[all(6, 9)]), "the others are newer");
        assert!(older(&[all(6, 9)], &[all(1, 5)]));
        assert!(older(&[all(1, 2), all(6, 9)], &[all(3, 5)]));
        assert!(!older(&[file("a", "b", 6, 9)], &[file("b", "c", 1, 5)]), "other rows");
        assert!(older(&[file("a", "b", 6, 9)], &[file("", "c", 1, 5)]));
    }
}
