//! The RPCs: checks what came over the wire, calls the stores, streams the answers.
//!
//! Whatever changes state runs in a task of its own, since a call's future is dropped when its client
//! goes away.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use uruk_proto::dfs::chunk_server_server::ChunkServer;
use uruk_proto::dfs::{
    AppendRequest, AppendResponse, CompleteSegmentRequest, CompleteSegmentResponse, Durability, FenceRequest,
    FenceResponse, FinishSegmentRequest, FinishSegmentResponse, ReadRequest, ReadResponse, WriteChunkRequest,
    WriteChunkResponse,
};

use super::Core;
use super::block_reader::BlockReader;
use super::chunk_store::ChunkWriter;
use super::error::StoreError;
use super::replica::{Acknowledgements, Completion, FenceAnswer, OpenAppend, Replica};
use crate::format::replica_file::Mode;

/// Bytes of data in one message of a read; a multiple of the checksum block.
const READ_MESSAGE_BYTES: u64 = 1 << 20;
/// Acknowledgements of one append stream that wait for the network; then they are merged.
const ACKS_QUEUED_MAX: usize = 16;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service of one chunk server.
#[derive(Clone, Debug)]
pub(super) struct Service {
    core: Arc<Core>,
}

impl Service {
    pub(super) fn new(core: Arc<Core>) -> Service {
        Service { core }
    }
}

#[tonic::async_trait]
impl ChunkServer for Service {
    async fn write_chunk(
        &self,
        request: Request<Streaming<WriteChunkRequest>>,
    ) -> Result<Response<WriteChunkResponse>, Status> {
        let core = self.core.clone();
        let work = write_chunk(core.clone(), request.into_inner());
        let crc = core.host.to_end("chunkserver chunk write", work).await?;
        Ok(Response::new(WriteChunkResponse { server_id: core.server_id(), crc }))
    }

    type ReadStream = Answers<ReadResponse>;

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let end = request.offset.checked_add(request.length);
        let end = end.ok_or_else(|| StoreError::Invalid("the range overflows".into()))?;
        let opened = match request.is_segment {
            true => match self.core.segments.get(request.id) {
                Ok(replica) => replica.reader(request.recovery).await,
                Err(error) => Err(error),
            },
            false => self.core.chunks.reader(request.id).await.map(|reader| {
                let bytes = reader.bytes;
                (reader, bytes)
            }),
        };
        let place = Place { core: self.core.clone(), id: request.id, is_segment: request.is_segment };
        let (reader, limit) = opened.map_err(|error| place.blame(error))?;
        if end > limit {
            let what = format!("bytes {}..{end} of {} {}: {limit} may be read", request.offset, place.kind(), place.id);
            return Err(StoreError::State(what).into());
        }
        let pieces = stream::try_unfold((place, reader, request.offset), move |(place, reader, at)| async move {
            if at == end {
                return Ok(None);
            }
            let next = end.min((at / READ_MESSAGE_BYTES + 1) * READ_MESSAGE_BYTES);
            let data = place.read(&reader, at, next - at).await?;
            Ok::<_, Status>(Some((ReadResponse { data }, (place, reader, next))))
        });
        Ok(Response::new(Box::pin(pieces)))
    }

    type AppendStream = ReceiverStream<Result<AppendResponse, Status>>;

    async fn append(&self, request: Request<Streaming<AppendRequest>>) -> Result<Response<Self::AppendStream>, Status> {
        let (answers, receiver) = mpsc::channel(ACKS_QUEUED_MAX);
        let core = self.core.clone();
        self.core.host.env.tasks.spawn("chunkserver append", async move {
            if let Err(error) = append_stream(core, request.into_inner(), &answers).await {
                tracing::debug!(%error, "an append stream ends");
                let _ = answers.send(Err(error.into())).await; // the writer may be gone
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn fence(&self, request: Request<FenceRequest>) -> Result<Response<FenceResponse>, Status> {
        let FenceRequest { segment_id, server_id, recovery } = request.into_inner();
        let core = self.core.clone();
        let answer = if server_id == 0 || server_id != core.server_id() {
            FenceAnswer::Unknown { reason: format!("this is server {}, not {server_id}", core.server_id()) }
        } else {
            let segments = core.segments.clone();
            core.host.to_end("chunkserver fence", async move { segments.fence(segment_id, recovery).await }).await?
        };
        Ok(Response::new(match answer {
            FenceAnswer::Known { length, committed, crc } => {
                FenceResponse { known: true, length, committed, reason: String::new(), crc: Some(crc) }
            }
            FenceAnswer::Unknown { reason } => {
                FenceResponse { known: false, length: 0, committed: 0, reason, crc: None }
            }
        }))
    }

    async fn complete_segment(
        &self,
        request: Request<Streaming<CompleteSegmentRequest>>,
    ) -> Result<Response<CompleteSegmentResponse>, Status> {
        let core = self.core.clone();
        let work = complete_segment(core.clone(), request.into_inner());
        let length = core.host.to_end("chunkserver segment completion", work).await?;
        Ok(Response::new(CompleteSegmentResponse { length }))
    }

    async fn finish_segment(
        &self,
        request: Request<FinishSegmentRequest>,
    ) -> Result<Response<FinishSegmentResponse>, Status> {
        let FinishSegmentRequest { segment_id, length, crc } = request.into_inner();
        let replica = self.core.segments.get(segment_id)?;
        let work = async move { replica.finish(length, crc).await };
        self.core.host.to_end("chunkserver segment finish", work).await?;
        Ok(Response::new(FinishSegmentResponse {}))
    }
}

/// What a read is about, so that damage is remembered and reported.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) core: Arc<Core>,
    pub(super) id: u64,
    pub(super) is_segment: bool,
}

impl Place {
    fn kind(&self) -> &'static str {
        if self.is_segment { "segment" } else { "chunk" }
    }

    pub(super) async fn read(&self, reader: &BlockReader, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        reader.read(offset, length).await.map_err(|error| self.blame(error))
    }

    /// Marks the chunk or segment when the error says that it is damaged.
    pub(super) fn blame(&self, error: StoreError) -> StoreError {
        if let StoreError::Corrupt { .. } = &error {
            let what = error.to_string();
            if !self.is_segment {
                self.core.chunks.mark_damaged(self.id, &what);
            } else if let Ok(replica) = self.core.segments.get(self.id) {
                replica.mark_damaged(&what);
            }
        }
        error
    }
}

fn mode(number: i32) -> Result<Mode, StoreError> {
    match Durability::try_from(number) {
        Ok(Durability::Fsync) => Ok(Mode::Fsync),
        Ok(Durability::Replicated) => Ok(Mode::Replicated),
        Ok(Durability::Unspecified) | Err(_) => Err(StoreError::Invalid(format!("durability {number}"))),
    }
}

/// The next message of a client that is sending data; it may not stall for ever.
async fn next<T>(core: &Core, inbound: &mut Streaming<T>) -> Result<Option<T>, StoreError> {
    let limit = core.host.config.idle_timeout();
    match core.host.env.clock.timeout(limit, inbound.message()).await {
        Ok(Ok(message)) => Ok(message),
        Ok(Err(status)) => Err(StoreError::Invalid(format!("the stream broke: {status}"))),
        Err(elapsed) => Err(StoreError::Invalid(format!("the client sent nothing: {elapsed}"))),
    }
}

async fn write_chunk(core: Arc<Core>, mut inbound: Streaming<WriteChunkRequest>) -> Result<u32, StoreError> {
    let first = next(&core, &mut inbound).await?.unwrap_or_default();
    let header = first.header.ok_or_else(|| StoreError::Invalid("the first message has no header".into()))?;
    let mode = mode(header.durability)?;
    let mut writer = core.chunks.begin(header.chunk_id, header.bytes, mode).await?;
    match receive_chunk(&core, &mut inbound, &mut writer, first.data).await {
        Ok(()) => writer.finish(None).await,
        Err(error) => {
            writer.abort().await;
            Err(error)
        }
    }
}

async fn receive_chunk(
    core: &Core,
    inbound: &mut Streaming<WriteChunkRequest>,
    writer: &mut ChunkWriter,
    first: Bytes,
) -> Result<(), StoreError> {
    let mut data = first;
    loop {
        if !data.is_empty() {
            writer.push(data).await?;
        }
        match next(core, inbound).await? {
            Some(WriteChunkRequest { header: None, data: more }) => data = more,
            Some(_) => return Err(StoreError::Invalid("a second header".into())),
            None => return Ok(()),
        }
    }
}

/// Takes appends in order, and acknowledges what is held whenever that grows. Ends with `Fenced` when
/// the replica is fenced or sealed, also when the writer has nothing to send.
async fn append_stream(
    core: Arc<Core>,
    mut inbound: Streaming<AppendRequest>,
    answers: &mpsc::Sender<Result<AppendResponse, Status>>,
) -> Result<(), StoreError> {
    let Some(first) = next(&core, &mut inbound).await? else { return Ok(()) };
    let replica = open_replica(&core, &first).await?;
    let mut acks = replica.acknowledgements();
    answer(answers, &replica, &mut acks).await?;
    let mut sent = take_append(&replica, first).await?;
    loop {
        tokio::select! {
            biased;
            there = acks.changed() => {
                if !there {
                    return Ok(());
                }
                answer(answers, &replica, &mut acks).await?;
            }
            () = answers.closed() => return Ok(()),
            message = inbound.message() => match message {
                Ok(Some(message)) if message.open.is_some() => {
                    return Err(StoreError::Invalid("only the first message opens".into()));
                }
                Ok(Some(message)) => sent = sent.max(take_append(&replica, message).await?),
                Ok(None) => break,
                Err(status) => return Err(StoreError::Invalid(format!("the stream broke: {status}"))),
            },
        }
        core.host.check()?;
    }
    // The writer has said all; it still waits for its acknowledgements.
    while acks.length().is_none_or(|length| length < sent) {
        answer(answers, &replica, &mut acks).await?;
        tokio::select! {
            biased;
            reason = core.host.failed() => return Err(StoreError::Ending(reason)),
            () = answers.closed() => return Ok(()),
            _ = acks.changed() => {}
        }
    }
    answer(answers, &replica, &mut acks).await
}

async fn open_replica(core: &Core, first: &AppendRequest) -> Result<Arc<Replica>, StoreError> {
    let open = first.open.ok_or_else(|| StoreError::Invalid("the first message does not open".into()))?;
    if open.server_id == 0 || open.server_id != core.server_id() {
        return Err(StoreError::State(format!("this is server {}, not {}", core.server_id(), open.server_id)));
    }
    let how = OpenAppend { log_id: open.log_id, mode: mode(open.durability)?, create: open.create };
    let (segments, segment_id) = (core.segments.clone(), open.segment_id);
    core.host.to_end("chunkserver segment open", async move { segments.open_for_append(segment_id, how).await }).await
}

/// Returns the length that the message reaches.
async fn take_append(replica: &Replica, message: AppendRequest) -> Result<u64, StoreError> {
    let AppendRequest { offset, data, crc, committed, .. } = message;
    let end = offset.saturating_add(data.len() as u64);
    if data.is_empty() {
        replica.hear_committed(committed)?;
        return Ok(0);
    }
    replica.append(offset, data, crc, committed).await?;
    Ok(end)
}

async fn answer(
    answers: &mpsc::Sender<Result<AppendResponse, Status>>,
    replica: &Replica,
    acks: &mut Acknowledgements,
) -> Result<(), StoreError> {
    let Ok(place) = answers.reserve().await else { return Ok(()) }; // the writer is gone
    // Read as late as possible: one answer covers all that was synced while the last ones waited.
    let Some(length) = acks.length() else {
        drop(place);
        return Err(replica.ended().await);
    };
    place.send(Ok(AppendResponse { length }));
    Ok(())
}

async fn complete_segment(core: Arc<Core>, mut inbound: Streaming<CompleteSegmentRequest>) -> Result<u64, StoreError> {
    let first = next(&core, &mut inbound).await?.unwrap_or_default();
    let header = first.header.ok_or_else(|| StoreError::Invalid("the first message has no header".into()))?;
    let asked = Completion {
        recovery: header.recovery,
        offset: header.offset,
        length: header.length,
        create: header.create,
        mode: mode(header.durability)?,
    };
    let replica = match asked.create {
        true => core.segments.get_or_absent(header.segment_id)?,
        false => core.segments.get(header.segment_id)?,
    };
    if !replica.begin_completion(asked).await? {
        return Ok(asked.length);
    }
    let (mut position, mut data) = (asked.offset, first.data);
    loop {
        let bytes = data.len() as u64;
        replica.push_completion(asked, position, data).await?;
        position += bytes;
        match next(&core, &mut inbound).await? {
            Some(CompleteSegmentRequest { header: None, data: more }) => data = more,
            Some(_) => return Err(StoreError::Invalid("a second header".into())),
            None => return replica.end_completion(asked, position).await,
        }
    }
}
