//! What can go wrong in the engine.

use object_store::path::Path;
use uruk_proto::{DecodeError, ErrorCode, RpcError};

/// Why a read, flush or compaction failed. Nothing of it is ever taken for the end of the data.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EngineError {
    /// Stored bytes are not what was written. The tablet is to be marked; a person must look.
    #[error("file {file} is corrupt at byte {offset}: {what}")]
    Corrupt {
        /// Path of the file.
        file: String,
        /// Where the damaged piece starts.
        offset: u64,
        /// What is wrong with it.
        what: String,
    },
    /// A file that the tablet names is not there (yet, or any more): try again from a fresh view.
    #[error("file {file} is missing")]
    MissingFile {
        /// Path of the file.
        file: String,
    },
    /// The object store failed; trying again may help.
    #[error("object store failed on {file}: {why}")]
    Store {
        /// Path of the file.
        file: String,
        /// What the store said.
        why: String,
    },
    /// The request makes no sense; it will never succeed as it is.
    #[error("{0}")]
    InvalidArgument(String),
}

impl EngineError {
    /// Whether the same call may succeed later.
    pub fn is_retriable(&self) -> bool {
        match self {
            EngineError::MissingFile { .. } | EngineError::Store { .. } => true,
            EngineError::Corrupt { .. } | EngineError::InvalidArgument(_) => false,
        }
    }

    pub(crate) fn from_store(path: &Path, error: object_store::Error) -> EngineError {
        match error {
            object_store::Error::NotFound { .. } => EngineError::MissingFile { file: path.to_string() },
            other => EngineError::Store { file: path.to_string(), why: other.to_string() },
        }
    }
}

impl From<EngineError> for RpcError {
    fn from(error: EngineError) -> RpcError {
        let code = match &error {
            EngineError::Corrupt { .. } => ErrorCode::Corrupt,
            EngineError::MissingFile { .. } | EngineError::Store { .. } => ErrorCode::Unavailable,
            EngineError::InvalidArgument(_) => ErrorCode::InvalidArgument,
        };
        RpcError::new(code, error.to_string())
    }
}

impl From<DecodeError> for EngineError {
    fn from(error: DecodeError) -> EngineError {
        EngineError::InvalidArgument(error.to_string())
    }
}
