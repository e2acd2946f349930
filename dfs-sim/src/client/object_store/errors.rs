//! The chunk store's errors as `object_store` knows them, and file metadata.

use chrono::{DateTime, Utc};
use object_store::path::Path;
use object_store::{Error, ObjectMeta};
use uruk_base::lost_file::LostFile;
use uruk_proto::dfs::FileInfo;
use uruk_proto::{ErrorCode, RpcError};

use super::super::chunk_reader::ReadError;
use super::super::error::CallError;

const STORE: &str = "dfs-sim";

pub fn from_call(location: &Path, error: CallError) -> Error {
    let path = location.to_string();
    match error.code() {
        ErrorCode::NotFound => Error::NotFound { path, source: error.into() },
        ErrorCode::AlreadyExists if !error.uncertain => Error::AlreadyExists { path, source: error.into() },
        _ => Error::Generic { store: STORE, source: error.into() },
    }
}

pub fn from_read(location: &Path, error: ReadError) -> Error {
    match &error {
        ReadError::Deleted(_) => Error::NotFound { path: location.to_string(), source: error.into() },
        ReadError::Lost(_) => {
            let lost = LostFile { path: location.to_string(), what: error.to_string() };
            Error::Generic { store: STORE, source: Box::new(lost) }
        }
        ReadError::Corrupt(_) | ReadError::Unavailable(_) => {
            Error::Generic { store: STORE, source: format!("{location}: {error}").into() }
        }
    }
}

pub fn generic(location: &Path, error: RpcError) -> Error {
    Error::Generic { store: STORE, source: format!("{location}: {error}").into() }
}

pub fn corrupt(what: String) -> Error {
    Error::Generic { store: STORE, source: what.into() }
}

pub fn not_implemented(what: &str) -> Error {
    Error::NotImplemented { operation: what.to_owned(), implementer: STORE.to_owned() }
}

pub fn object_meta(file: &FileInfo) -> Result<ObjectMeta, Error> {
    Ok(ObjectMeta {
        location: Path::parse(&file.path)?,
        last_modified: DateTime::<Utc>::from_timestamp_micros(file.modified_micros).unwrap_or_default(),
        size: file.bytes,
        e_tag: Some(file.etag.clone()),
        version: None,
    })
}
