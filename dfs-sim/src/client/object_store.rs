//! Immutable files: `object_store::ObjectStore` on the chunk store.
//!
//! Invariants: (1) a file exists once its `CommitPut` committed, whole, and never before; (2) a put
//! returns after at least two replicas of every chunk are durable; (3) files are never changed in
//! place, so what the cache says of a path is wrong only after it was deleted or put again.
//!
//! Deleting what is not there succeeds, as in S3. Attributes, tags and conditional updates are not
//! implemented: Uruk never uses them.

mod errors;
mod get;
mod list;
mod put;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, RenameTargetMode, Result,
};
use uruk_proto::ErrorCode;
use uruk_proto::dfs::CopyFileRequest;

use self::errors::not_implemented;
use super::config::Durability;
use super::connection::{DfsClient, Shared};

/// Files of one chunk store. Clones share the connection.
#[derive(Clone)]
pub struct DfsObjectStore {
    shared: Arc<Shared>,
    durability: Durability,
    /// Copies of each chunk; 0 = the store's default.
    replicas: u32,
}

impl DfsObjectStore {
    pub(super) fn new(client: &DfsClient) -> DfsObjectStore {
        let shared = client.shared.clone();
        DfsObjectStore { durability: shared.config.durability, shared, replicas: 0 }
    }

    /// The same store, writing with this durability.
    pub fn with_durability(&self, durability: Durability) -> DfsObjectStore {
        DfsObjectStore { durability, ..self.clone() }
    }

    /// The same store, writing this many copies (0 = the store's default), at least two unless the
    /// store itself is configured to one.
    pub fn with_replicas(&self, replicas: u32) -> DfsObjectStore {
        DfsObjectStore { replicas, ..self.clone() }
    }

    async fn copy(&self, from: &Path, to: &Path, must_be_new: bool, rename: bool) -> Result<()> {
        let source = self.shared.fetch_file(from.as_ref()).await.map_err(|e| errors::from_call(from, e))?;
        let request = CopyFileRequest {
            from: from.to_string(),
            to: to.to_string(),
            must_be_new,
            rename,
            modified_micros: self.shared.env.clock.wall_micros(),
        };
        let copied = self
            .shared
            .controllers
            .call("copy file", |mut controller| {
                let request = request.clone();
                async move { controller.copy_file(request).await }
            })
            .await;
        self.shared.files.remove(to.as_ref());
        if rename {
            self.shared.files.remove(from.as_ref());
        }
        let error = match copied {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        // An earlier attempt may have done it: then `to` has the very chunks of `from`.
        if error.uncertain
            && !source.chunks.is_empty()
            && matches!(error.code(), ErrorCode::AlreadyExists | ErrorCode::NotFound)
            && let Ok(target) = self.shared.fetch_file(to.as_ref()).await
            && target.chunks.iter().map(|c| c.chunk_id).eq(source.chunks.iter().map(|c| c.chunk_id))
        {
            return Ok(());
        }
        let path = if error.code() == ErrorCode::AlreadyExists { to } else { from };
        Err(errors::from_call(path, error))
    }
}

impl fmt::Display for DfsObjectStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DfsObjectStore({})", self.shared.config.controllers.join(","))
    }
}

impl fmt::Debug for DfsObjectStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DfsObjectStore")
            .field("controllers", &self.shared.config.controllers)
            .field("durability", &self.durability)
            .field("replicas", &self.replicas)
            .finish()
    }
}

#[async_trait]
impl ObjectStore for DfsObjectStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        if !opts.attributes.is_empty() || !opts.tags.encoded().is_empty() {
            return Err(not_implemented("attributes and tags"));
        }
        let must_be_new = match opts.mode {
            PutMode::Overwrite => false,
            PutMode::Create => true,
            PutMode::Update(_) => return Err(not_implemented("conditional updates")),
        };
        put::put(self, location, payload, must_be_new).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        if !opts.attributes.is_empty() || !opts.tags.encoded().is_empty() {
            return Err(not_implemented("attributes and tags"));
        }
        Ok(Box::new(put::Upload::new(self, location)))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        get::get(&self.shared, location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        get::get_ranges(&self.shared, location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        list::delete_stream(self.shared.clone(), locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        list::list(self.shared.clone(), prefix, String::new())
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        list::list(self.shared.clone(), prefix, offset.to_string())
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        list::list_with_delimiter(&self.shared, prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.copy(from, to, options.mode == CopyMode::Create, false).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.copy(from, to, options.target_mode == RenameTargetMode::Create, true).await
    }
}
