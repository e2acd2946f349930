//! Table files in a local folder. Files are written once, synced, then read through memory maps.

use std::collections::HashMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use parking_lot::Mutex;
use uruk_base::Env;

/// A folder as an object store: what the engine needs of one.
#[derive(Clone, Debug)]
pub struct FolderStore {
    env: Env,
    folder: PathBuf,
    maps: Arc<Mutex<HashMap<Path, Bytes>>>,
}

impl FolderStore {
    /// Files in this folder, which exists.
    pub fn new(env: Env, folder: PathBuf) -> FolderStore {
        FolderStore { env, folder, maps: Arc::default() }
    }

    /// Removes a file.
    pub fn remove(&self, path: &Path) -> std::io::Result<()> {
        self.maps.lock().remove(path);
        std::fs::remove_file(self.file_path(path))
    }

    fn file_path(&self, path: &Path) -> PathBuf {
        self.folder.join(path.as_ref().replace('/', "-"))
    }

    async fn map(&self, path: &Path) -> Result<Bytes> {
        if let Some(map) = self.maps.lock().get(path) {
            return Ok(map.clone());
        }
        let map = self.env.disk.map(&self.file_path(path)).await.map_err(|error| failed(path, error))?;
        Ok(self.maps.lock().entry(path.clone()).or_insert(map).clone())
    }
}

fn failed(path: &Path, error: std::io::Error) -> object_store::Error {
    if error.kind() == std::io::ErrorKind::NotFound {
        return object_store::Error::NotFound { path: path.to_string(), source: error.into() };
    }
    object_store::Error::Generic { store: "folder", source: error.into() }
}

fn not_implemented(operation: &str) -> object_store::Error {
    object_store::Error::NotImplemented { operation: operation.into(), implementer: "FolderStore".into() }
}

fn put_result() -> PutResult {
    PutResult { e_tag: None, version: None, extensions: Default::default() }
}

fn append(file: &mut File, payload: PutPayload) -> std::io::Result<()> {
    payload.iter().try_for_each(|piece| file.write_all(piece))
}

impl fmt::Display for FolderStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FolderStore({})", self.folder.display())
    }
}

#[async_trait]
impl ObjectStore for FolderStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, _: PutOptions) -> Result<PutResult> {
        let path = self.file_path(location);
        let write = move || {
            let mut file = OpenOptions::new().create_new(true).write(true).open(path)?;
            append(&mut file, payload)?;
            file.sync_all()
        };
        self.env.tasks.blocking(write).await.map_err(|error| failed(location, error))?;
        Ok(put_result())
    }

    async fn put_multipart_opts(&self, location: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let path = self.file_path(location);
        let file = OpenOptions::new().create_new(true).write(true).open(&path);
        let file = file.map_err(|error| failed(location, error))?;
        Ok(Box::new(FolderUpload { env: self.env.clone(), location: location.clone(), path, file: Some(file) }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let map = self.map(location).await?;
        let len = map.len() as u64;
        let range: Range<u64> = match &options.range {
            None => 0..len,
            Some(range) => range
                .as_range(len)
                .map_err(|error| object_store::Error::Generic { store: "folder", source: Box::new(error) })?,
        };
        let meta = ObjectMeta {
            location: location.clone(),
            last_modified: Default::default(),
            size: len,
            e_tag: None,
            version: None,
        };
        let bytes = map.slice(range.start as usize..range.end as usize);
        let payload = GetResultPayload::Stream(stream::once(async { Ok(bytes) }).boxed());
        Ok(GetResult { payload, meta, range, attributes: Default::default(), extensions: Default::default() })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let map = self.map(location).await?;
        let slice = |range: &Range<u64>| {
            let end = range.end.min(map.len() as u64);
            map.slice(range.start.min(end) as usize..end as usize)
        };
        Ok(ranges.iter().map(slice).collect())
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        locations
            .map(move |location| {
                let location = location?;
                store.remove(&location).map_err(|error| failed(&location, error))?;
                Ok(location)
            })
            .boxed()
    }

    fn list(&self, _: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        stream::once(async { Err(not_implemented("list")) }).boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        Err(not_implemented("list"))
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(not_implemented("copy"))
    }
}

#[derive(Debug)]
struct FolderUpload {
    env: Env,
    location: Path,
    path: PathBuf,
    file: Option<File>,
}

#[async_trait]
impl MultipartUpload for FolderUpload {
    fn put_part(&mut self, payload: PutPayload) -> UploadPart {
        // Written at once, so that parts stay in order whoever polls first.
        let result = match &mut self.file {
            Some(file) => append(file, payload).map_err(|error| failed(&self.location, error)),
            None => Err(not_implemented("parts after the end")),
        };
        Box::pin(async move { result })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        if let Some(file) = self.file.take() {
            let synced = self.env.tasks.blocking(move || file.sync_all()).await;
            synced.map_err(|error| failed(&self.location, error))?;
        }
        Ok(put_result())
    }

    async fn abort(&mut self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(|error| failed(&self.location, error))
    }
}
