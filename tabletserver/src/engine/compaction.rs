//! Files to fewer files, within one locality group of a tablet.
//!
//! Invariants: (1) the inputs are neighbours in the order of sequence numbers; (2) deletions, and cells
//! that GC rules let go, are dropped only when no file outside of the inputs that overlaps them holds
//! anything older: else what they hide would come back.

pub mod policy;

use std::sync::Arc;

use uruk_proto::RowRange;
use uruk_proto::master::{FileRef, LocalityGroupFiles};
use uruk_proto::schema::TableSchema;

use super::columns::Columns;
use super::context::EngineContext;
use super::error::EngineError;
use super::merge::Merge;
use super::rewrite::{Output, Purge, rewrite};
use super::sstable::FileHandle;
use super::sstable::cursor::ReadOptions;
use super::sstable::skip::Wanted;

/// What a compaction is about to do: one locality group, a run of its files.
#[derive(Clone, PartialEq, Debug)]
pub struct Compaction {
    /// The locality group.
    pub locality_group: u32,
    /// The files to merge, newest first.
    pub inputs: Vec<FileRef>,
    /// Why.
    pub reason: policy::Reason,
}

/// What a compaction wrote. It counts for nothing until the master has committed it.
#[derive(Clone, PartialEq, Debug)]
pub struct CompactionResult {
    /// Paths of the inputs.
    pub remove: Vec<String>,
    /// What takes their place: one file, or none when nothing is left.
    pub add: LocalityGroupFiles,
    /// The schema version that it worked under.
    pub schema_version: u64,
}

/// Runs a compaction of `inputs`, some of the group's `files`.
pub(crate) async fn run(
    context: &EngineContext,
    schema: &TableSchema,
    locality_group: u32,
    inputs: &[Arc<FileHandle>],
    files: &[Arc<FileHandle>],
    (path, range): (&str, &RowRange),
) -> Result<CompactionResult, EngineError> {
    let others = files.iter().filter(|file| !inputs.iter().any(|input| input.reference == file.reference));
    let purge = match nothing_older_overlaps(inputs.iter().map(|f| &f.reference), others.map(|f| &f.reference)) {
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
    let level = inputs.iter().map(|input| input.reference.level).max().unwrap_or(0) + 1;
    // What is merged with everything stays longest; the rest is soon merged again.
    let compression = match inputs.len() == files.len() {
        true => context.config.compression_major,
        false => context.config.compression,
    };
    let output = Output { path, range, level, compression };
    let file = rewrite(context, Merge::new([], inputs, options), purge, output).await?;
    Ok(CompactionResult {
        remove: inputs.iter().map(|input| input.reference.path.clone()).collect(),
        add: LocalityGroupFiles { locality_group, files: Vec::from_iter(file) },
        schema_version: schema.version,
    })
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
