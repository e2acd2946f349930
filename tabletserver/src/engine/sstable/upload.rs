//! Bytes to the object store: small files with one `put`, large ones in parts.

use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload};

use super::super::config::EngineConfig;
use super::super::error::EngineError;

/// Uploads one file, front to back. Nothing is there under its name before `finish` has returned.
pub struct Upload {
    store: Arc<dyn ObjectStore>,
    path: Path,
    put_bytes_max: usize,
    part_bytes: usize,
    waiting: Vec<Bytes>,
    waiting_bytes: usize,
    multipart: Option<Box<dyn MultipartUpload>>,
}

impl Upload {
    /// A file under a path that was never used before.
    pub fn new(store: Arc<dyn ObjectStore>, path: Path, config: &EngineConfig) -> Upload {
        Upload {
            store,
            path,
            put_bytes_max: config.put_bytes_max,
            part_bytes: config.multipart_part_bytes,
            waiting: Vec::new(),
            waiting_bytes: 0,
            multipart: None,
        }
    }

    /// Appends bytes.
    pub async fn add(&mut self, bytes: Bytes) -> Result<(), EngineError> {
        self.waiting_bytes += bytes.len();
        self.waiting.push(bytes);
        if self.multipart.is_none() && self.waiting_bytes > self.put_bytes_max {
            let upload = self.store.put_multipart(&self.path).await;
            self.multipart = Some(upload.map_err(|error| EngineError::from_store(&self.path, error))?);
        }
        while self.multipart.is_some() && self.waiting_bytes >= self.part_bytes {
            let part = self.take(self.part_bytes);
            self.put_part(part).await?;
        }
        Ok(())
    }

    /// Ends the file; it is durable when this returns.
    pub async fn finish(mut self) -> Result<(), EngineError> {
        let rest = self.take(self.waiting_bytes);
        if self.multipart.is_none() {
            let put = self.store.put(&self.path, rest).await;
            return put.map(|_| ()).map_err(|error| EngineError::from_store(&self.path, error));
        }
        if rest.content_length() > 0 {
            self.put_part(rest).await?;
        }
        let upload = self.multipart.as_mut().expect("checked above");
        upload.complete().await.map(|_| ()).map_err(|error| EngineError::from_store(&self.path, error))
    }

    /// Gives the parts back that are in the store already. A cancelled upload that could not do so
    /// leaves them to the store's own expiry.
    pub async fn abort(mut self) {
        if let Some(upload) = &mut self.multipart
            && let Err(error) = upload.abort().await
        {
            tracing::debug!(file = %self.path, %error, "cannot abort an upload");
        }
    }

    async fn put_part(&mut self, part: PutPayload) -> Result<(), EngineError> {
        let upload = self.multipart.as_mut().expect("parts follow put_multipart");
        upload.put_part(part).await.map_err(|error| EngineError::from_store(&self.path, error))
    }

    /// The first `len` waiting bytes.
    fn take(&mut self, len: usize) -> PutPayload {
        let mut rest = len;
        let mut taken = Vec::new();
        while rest > 0 {
            let first = &mut self.waiting[0];
            if first.len() <= rest {
                rest -= first.len();
                taken.push(self.waiting.remove(0));
            } else {
                taken.push(first.split_to(rest));
                rest = 0;
            }
        }
        self.waiting_bytes -= len;
        taken.into_iter().collect()
    }
}
