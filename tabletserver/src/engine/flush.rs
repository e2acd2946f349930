//! Memtables to files.

use uruk_proto::SeqNo;
use uruk_proto::master::LocalityGroupFiles;

/// What a flush wrote. It counts for nothing until the master has committed it.
#[derive(Clone, PartialEq, Debug)]
pub struct FlushResult {
    /// The new files; possibly none.
    pub groups: Vec<LocalityGroupFiles>,
    /// Everything up to here is in files now.
    pub flushed_seq: SeqNo,
}
