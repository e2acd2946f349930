//! Why a chunk server does not start, does not go on, or refuses a call.

use std::io;
use std::path::{Path, PathBuf};

use tonic::Status;
use uruk_base::data_folder::DataFolderError;
use uruk_proto::{ErrorCode, RpcError};

/// A refusal for want of room may be tried again after this many milliseconds.
const FULL_RETRY_AFTER_MS: u64 = 1_000;

/// Why a chunk server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is wrong.
    #[error("chunk server settings: {0}")]
    Config(String),
    /// The data folder cannot be used.
    #[error(transparent)]
    Folder(#[from] DataFolderError),
    /// The disk refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
}

/// Why a running chunk server ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It cannot listen.
    #[error(transparent)]
    Listen(#[from] io::Error),
    /// The server loop failed.
    #[error("cannot serve: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// Something happened after which the process must not go on (I9: a failed sync).
    #[error("the chunk server must end: {0}")]
    Failed(String),
}

/// Why a call is refused or fails.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("{0}")]
    Invalid(String),
    #[error("{0} is not here")]
    NotFound(String),
    #[error("{0} exists")]
    Exists(String),
    #[error("{0}")]
    State(String),
    /// A seal finds fewer bytes than it needs: the replica lost none, it did not get them.
    #[error("segment {segment} has {held} of {length} bytes")]
    Behind { segment: u64, held: u64, length: u64 },
    #[error("segment {segment} is fenced by {fence}")]
    Fenced { segment: u64, fence: u64 },
    #[error("{0}")]
    Full(String),
    #[error("{0}")]
    Busy(String),
    #[error("{}, offset {offset}: {what}", file.display())]
    Corrupt { file: PathBuf, offset: u64, what: String },
    #[error("{}: {error}", file.display())]
    Io { file: PathBuf, error: io::Error },
    #[error("the chunk server is ending: {0}")]
    Ending(String),
}

impl StoreError {
    pub(super) fn io(file: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
        let file = file.to_owned();
        move |error| match error.kind() {
            io::ErrorKind::StorageFull => StoreError::Full(format!("disk full: {}: {error}", file.display())),
            _ => StoreError::Io { file, error },
        }
    }

    fn code(&self) -> ErrorCode {
        match self {
            StoreError::Invalid(_) => ErrorCode::InvalidArgument,
            StoreError::NotFound(_) => ErrorCode::NotFound,
            StoreError::Exists(_) => ErrorCode::AlreadyExists,
            StoreError::State(_) | StoreError::Behind { .. } => ErrorCode::FailedPrecondition,
            StoreError::Fenced { .. } => ErrorCode::Fenced,
            StoreError::Full(_) | StoreError::Busy(_) => ErrorCode::Overloaded,
            StoreError::Corrupt { .. } => ErrorCode::Corrupt,
            // Never said after an effect that could be acknowledged: the caller goes elsewhere.
            StoreError::Io { .. } | StoreError::Ending(_) => ErrorCode::Unavailable,
        }
    }
}

impl From<StoreError> for RpcError {
    fn from(error: StoreError) -> RpcError {
        let code = error.code();
        let retry_after_ms = if code == ErrorCode::Overloaded { FULL_RETRY_AFTER_MS } else { 0 };
        RpcError { code, message: error.to_string(), leader: None, retry_after_ms }
    }
}

impl From<StoreError> for Status {
    fn from(error: StoreError) -> Status {
        RpcError::from(error).into()
    }
}
