//! Writing files: chunks first, the name last.
//!
//! A chunk that too few servers took is written again on others, under a new chunk id, in the same
//! put. Whether a `CommitPut` whose answer was lost has committed is seen by the chunk ids, which no
//! other put has.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{MultipartUpload, PutPayload, PutResult, Result, UploadPart};
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use uruk_base::Moment;
use uruk_proto::dfs::{BeginPutRequest, ChunkTarget, CommitPutRequest, WrittenChunk};
use uruk_proto::{ErrorCode, RpcError};

use super::super::chunk_writer::{ChunkData, ChunkNotWritten, cut_into_chunks, write_chunk};
use super::super::config::Durability;
use super::super::connection::Shared;
use super::super::error::CallError;
use super::{DfsObjectStore, errors};

/// Addresses that a put avoids at most.
const AVOID_MAX: usize = 16;

/// One file on its way. Its name appears with [`Put::commit`].
#[derive(Clone)]
struct Put {
    shared: Arc<Shared>,
    location: Path,
    durability: Durability,
    replicas: u32,
    must_be_new: bool,
    deadline: Moment,
    /// Issued with the first chunk.
    id: Arc<OnceCell<u64>>,
}

impl Put {
    fn new(store: &DfsObjectStore, location: &Path, must_be_new: bool) -> Put {
        let deadline = Duration::from_millis(store.shared.config.put_deadline_ms);
        Put {
            shared: store.shared.clone(),
            location: location.clone(),
            durability: store.durability,
            replicas: store.replicas,
            must_be_new,
            deadline: store.shared.env.clock.now() + deadline,
            id: Arc::new(OnceCell::new()),
        }
    }

    /// Asks for chunk ids and servers for chunks of these sizes.
    async fn begin(&self, put_id: u64, sizes: Vec<u64>, avoid: Vec<String>) -> Result<(u64, Vec<ChunkTarget>)> {
        let chunks = sizes.len();
        let request = BeginPutRequest {
            path: self.location.to_string(),
            chunk_bytes: sizes,
            must_be_new: self.must_be_new,
            replicas: self.replicas,
            put_id,
            avoid,
        };
        let answer = self
            .shared
            .controllers
            .call("begin put", |mut controller| {
                let request = request.clone();
                async move { controller.begin_put(request).await }
            })
            .await
            .map_err(|e| errors::from_call(&self.location, e))?;
        let response = answer;
        if response.chunks.len() != chunks || (put_id != 0 && response.put_id != put_id) {
            let what = format!("the controller's answer does not fit the request: {response:?}");
            return Err(errors::generic(&self.location, RpcError::new(ErrorCode::Internal, what)));
        }
        Ok((response.put_id, response.chunks))
    }

    /// As [`Self::begin`], in this put, which the first call opens.
    async fn targets(&self, sizes: Vec<u64>, avoid: Vec<String>) -> Result<Vec<ChunkTarget>> {
        let mut first = None;
        let id = self
            .id
            .get_or_try_init(|| async {
                let (id, targets) = self.begin(0, sizes.clone(), avoid.clone()).await?;
                first = Some(targets);
                Ok::<_, object_store::Error>(id)
            })
            .await?;
        match first {
            Some(targets) => Ok(targets),
            None => Ok(self.begin(*id, sizes, avoid).await?.1),
        }
    }

    /// Writes chunks, several at once; what was written, in order.
    async fn write(&self, chunks: Vec<ChunkData>) -> Result<Vec<WrittenChunk>> {
        if chunks.is_empty() {
            return Ok(Vec::new());
        }
        let sizes = chunks.iter().map(|c| c.bytes).collect();
        let targets = self.targets(sizes, self.shared.suspects.all()).await?;
        stream::iter(targets.into_iter().zip(chunks))
            .map(|(target, data)| self.write_one(target, data).boxed())
            .buffered(self.shared.config.put_chunks_in_flight)
            .try_collect()
            .await
    }

    async fn write_one(&self, mut target: ChunkTarget, data: ChunkData) -> Result<WrittenChunk> {
        let clock = &self.shared.env.clock;
        let mut avoid = Vec::new();
        for attempt in 0.. {
            let ChunkNotWritten { failed, error } =
                match write_chunk(&self.shared, &target, &data, self.durability).await {
                    Ok(written) => return Ok(written),
                    Err(error) => error,
                };
            let delay = self.shared.env.random.jitter(self.shared.config.backoff(attempt));
            if clock.now() + delay >= self.deadline {
                return Err(errors::generic(&self.location, error));
            }
            clock.sleep(delay).await;
            avoid.extend(failed);
            avoid.sort();
            avoid.dedup();
            avoid.truncate(AVOID_MAX);
            let mut targets = self.targets(vec![data.bytes], avoid.clone()).await?;
            target = targets.pop().expect("begin checks the number of targets");
        }
        unreachable!("the loop ends by its deadline")
    }

    /// Names the file.
    async fn commit(&self, chunks: Vec<WrittenChunk>) -> Result<PutResult> {
        let put_id = match self.id.get() {
            Some(id) => *id,
            None => self.begin(0, Vec::new(), Vec::new()).await?.0,
        };
        let request = CommitPutRequest {
            put_id,
            path: self.location.to_string(),
            chunks,
            must_be_new: self.must_be_new,
            modified_micros: self.shared.env.clock.wall_micros(),
            replicas: self.replicas,
        };
        let committed = self
            .shared
            .controllers
            .call("commit put", |mut controller| {
                let request = request.clone();
                async move { controller.commit_put(request).await }
            })
            .await;
        self.shared.files.remove(self.location.as_ref());
        let etag = match committed {
            Ok(answer) => answer.etag,
            Err(error) => self.after_lost_answer(&request.chunks, error).await?,
        };
        Ok(PutResult { e_tag: Some(etag), version: None, extensions: Default::default() })
    }

    /// The commit was refused after an attempt whose outcome is unknown: if the file has our chunks,
    /// that attempt was the one that committed.
    async fn after_lost_answer(&self, chunks: &[WrittenChunk], error: CallError) -> Result<String> {
        let mut uncertain = error.uncertain;
        if uncertain && !error.is_unavailable() && !chunks.is_empty() {
            match self.shared.fetch_file(self.location.as_ref()).await {
                Ok(file) if file.chunks.iter().map(|c| c.chunk_id).eq(chunks.iter().map(|c| c.chunk_id)) => {
                    return Ok(file.etag.clone());
                }
                Ok(_) => uncertain = false,
                Err(lookup) => uncertain = lookup.code() != ErrorCode::NotFound,
            }
        }
        let refused = CallError { uncertain, ..error };
        Err(errors::from_call(&self.location, refused))
    }
}

/// Writes a whole file.
pub async fn put(store: &DfsObjectStore, location: &Path, payload: PutPayload, must_be_new: bool) -> Result<PutResult> {
    let put = Put::new(store, location, must_be_new);
    let chunks = cut_into_chunks(payload, store.shared.config.chunk_bytes);
    let written = put.write(chunks).await?;
    put.commit(written).await
}

/// A file whose parts come one by one, each of which becomes chunks of its own at once: nothing is
/// held in memory beyond the parts on their way.
pub struct Upload {
    put: Put,
    parts: Arc<Mutex<Vec<Option<Vec<WrittenChunk>>>>>,
    put_deadline: Duration,
}

impl Upload {
    pub fn new(store: &DfsObjectStore, location: &Path) -> Upload {
        Upload {
            put: Put::new(store, location, false),
            parts: Arc::default(),
            put_deadline: Duration::from_millis(store.shared.config.put_deadline_ms),
        }
    }
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload").field("location", &self.put.location).finish()
    }
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let index = {
            let mut parts = self.parts.lock();
            parts.push(None);
            parts.len() - 1
        };
        // Each part has the whole time: an upload may last as long as its source.
        self.put.deadline = self.put.shared.env.clock.now() + self.put_deadline;
        let (put, parts) = (self.put.clone(), self.parts.clone());
        async move {
            let chunks = cut_into_chunks(data, put.shared.config.chunk_bytes);
            let written = put.write(chunks).await?;
            parts.lock()[index] = Some(written);
            Ok(())
        }
        .boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let parts = std::mem::take(&mut *self.parts.lock());
        let missing = parts.iter().filter(|p| p.is_none()).count();
        if missing > 0 {
            let what = format!("{missing} of {} parts are not written", parts.len());
            return Err(errors::generic(&self.put.location, RpcError::new(ErrorCode::FailedPrecondition, what)));
        }
        self.put.commit(parts.into_iter().flatten().flatten().collect()).await
    }

    /// The put expires by itself, and its chunks with it.
    async fn abort(&mut self) -> Result<()> {
        self.parts.lock().clear();
        Ok(())
    }
}
