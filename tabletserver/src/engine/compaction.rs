//! Files to fewer files.

use uruk_proto::master::{FileRef, LocalityGroupFiles};

/// What a compaction is about to do: one locality group, a run of its files.
#[derive(Clone, PartialEq, Debug)]
pub struct Compaction {
    /// The locality group.
    pub locality_group: u32,
    /// The files to merge, newest first.
    pub inputs: Vec<FileRef>,
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
