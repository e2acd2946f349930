//! Many calls on one stream, at the server's end: `TabletServerCalls` on top of any `TabletServer`.
//!
//! A call of its own costs HTTP/2 headers, trailers, a task and several writes to the socket at either end; those
//! of many callers, taken together, cost one message (the batch commands of TiKV do the same). Nothing waits to be
//! taken together: a message holds what there is when the connection can take it.
//!
//! Invariants: (1) each call runs as if it had come alone: calls do not wait for each other, and one that is cancelled,
//! or whose client is gone, is dropped where it stands; (2) a call that runs goes on though its client reads no
//! answers, so a stalled client holds no row's latch; (3) calls that run and
//! answers that are not sent yet are at most [`CALLS_IN_FLIGHT_MAX`] on a stream: the rest waits at the client.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use futures::future::{AbortHandle, Abortable, BoxFuture};
use futures::stream::{FuturesUnordered, Stream};
use futures::{StreamExt, TryStreamExt};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Request, Response, Status, Streaming};

use crate::tablet::tablet_server_calls_server::TabletServerCalls;
use crate::tablet::tablet_server_server::TabletServer;
use crate::tablet::{Answer, AnswerBatch, Call, CallBatch, CallError, ReadAnswer, ReadRequest, answer, call};

/// Calls of one stream that run, or whose answers wait to be sent.
pub const CALLS_IN_FLIGHT_MAX: usize = 1024;
/// Requests up to this many bytes share a stream; larger ones would hold up the others.
pub const SHARED_REQUEST_BYTES_MAX: usize = 64 << 10;
/// Calls, or answers, in one message.
pub const CALLS_PER_MESSAGE_MAX: usize = 128;
/// What a read answers on a stream, in bytes; rows with more are read by a call of their own.
const READ_BYTES_MAX: usize = 64 << 10;

/// Runs a future to its end, apart from the caller.
pub type Spawn = Arc<dyn Fn(BoxFuture<'static, ()>) + Send + Sync>;

/// The calls of `service`, many on a stream.
#[derive(Clone)]
pub struct SharedCalls<S> {
    service: S,
    spawn: Spawn,
}

impl<S: TabletServer + Clone> SharedCalls<S> {
    /// `spawn` runs one future for each stream, which ends soon after the stream.
    pub fn new(service: S, spawn: Spawn) -> SharedCalls<S> {
        SharedCalls { service, spawn }
    }
}

impl<S> fmt::Debug for SharedCalls<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedCalls")
    }
}

#[tonic::async_trait]
impl<S: TabletServer + Clone> TabletServerCalls for SharedCalls<S> {
    type CallsStream = Pin<Box<dyn Stream<Item = Result<AnswerBatch, Status>> + Send>>;

    async fn calls(&self, request: Request<Streaming<CallBatch>>) -> Result<Response<Self::CallsStream>, Status> {
        let (sender, receiver) = unbounded_channel();
        let streamed = Streamed { service: self.service.clone(), answers: sender };
        (self.spawn)(Box::pin(streamed.run(request.into_inner())));
        Ok(Response::new(Box::pin(messages(receiver))))
    }
}

/// An answer holds its call's place until it is sent.
type Held = (Answer, OwnedSemaphorePermit);

struct Streamed<S> {
    service: S,
    answers: UnboundedSender<Held>,
}

impl<S: TabletServer + Clone> Streamed<S> {
    /// Until the client has ended the stream, or is gone.
    async fn run(self, mut incoming: Streaming<CallBatch>) {
        let places = Arc::new(Semaphore::new(CALLS_IN_FLIGHT_MAX));
        let mut running = FuturesUnordered::new();
        let mut cancels: BTreeMap<u64, AbortHandle> = BTreeMap::new();
        let mut waiting: VecDeque<Call> = VecDeque::new();
        loop {
            tokio::select! {
                biased;
                Some((id, answer)) = running.next() => {
                    cancels.remove(&id);
                    if let Ok(answer) = answer && self.answers.send(answer).is_err() {
                        return;
                    }
                }
                Ok(place) = places.clone().acquire_owned(), if !waiting.is_empty() => {
                    let Some(call) = waiting.pop_front() else { continue };
                    let (id, service) = (call.id, self.service.clone());
                    let (cancel, cancelled) = AbortHandle::new_pair();
                    cancels.insert(id, cancel);
                    let answer = Abortable::new(async move { (answer_to(&service, call).await, place) }, cancelled);
                    running.push(async move { (id, answer.await) });
                }
                message = incoming.message(), if waiting.is_empty() => {
                    let Ok(Some(batch)) = message else { return };
                    for call in batch.calls {
                        if !matches!(call.call, Some(call::Call::Cancel(_))) {
                            waiting.push_back(call);
                        } else if let Some(running) = cancels.remove(&call.id) {
                            running.abort();
                        } else {
                            waiting.retain(|waiting| waiting.id != call.id);
                        }
                    }
                }
            }
        }
    }
}

/// What is there, in messages.
fn messages(receiver: UnboundedReceiver<Held>) -> impl Stream<Item = Result<AnswerBatch, Status>> + Send {
    futures::stream::unfold(receiver, |mut receiver| async move {
        let mut ready = Vec::with_capacity(CALLS_PER_MESSAGE_MAX);
        receiver.recv_many(&mut ready, CALLS_PER_MESSAGE_MAX).await;
        let answers: Vec<Answer> = ready.into_iter().map(|(answer, _)| answer).collect();
        (!answers.is_empty()).then(|| (Ok(AnswerBatch { answers }), receiver))
    })
}

async fn answer_to<S: TabletServer>(service: &S, call: Call) -> Answer {
    let result = match call.call {
        Some(call::Call::Read(request)) => read(service, request).await.map(answer::Answer::Read),
        Some(call::Call::MutateRows(request)) => {
            service.mutate_rows(Request::new(request)).await.map(|r| answer::Answer::MutateRows(r.into_inner()))
        }
        Some(call::Call::CheckAndMutate(request)) => service
            .check_and_mutate(Request::new(request))
            .await
            .map(|r| answer::Answer::CheckAndMutate(r.into_inner())),
        Some(call::Call::ReadModifyWrite(request)) => service
            .read_modify_write(Request::new(request))
            .await
            .map(|r| answer::Answer::ReadModifyWrite(r.into_inner())),
        Some(call::Call::Cancel(_)) | None => {
            Err(Status::invalid_argument("a call of a kind that this server does not know"))
        }
    };
    let answer = result.unwrap_or_else(|status| answer::Answer::Error(status.into()));
    Answer { id: call.id, answer: Some(answer) }
}

/// To its end: its last word may be that the server lost its lease meanwhile.
async fn read<S: TabletServer>(service: &S, request: ReadRequest) -> Result<ReadAnswer, Status> {
    if request.rows.is_empty() {
        return Err(Status::invalid_argument("ranges are read by a call of their own"));
    }
    let mut stream = std::pin::pin!(service.read(Request::new(request)).await?.into_inner());
    let (mut batches, mut bytes) = (Vec::new(), 0);
    while let Some(response) = stream.try_next().await? {
        bytes += response.batch.len();
        if bytes > READ_BYTES_MAX {
            return Ok(ReadAnswer { batches: Vec::new(), too_large: true });
        }
        batches.push(response.batch);
    }
    Ok(ReadAnswer { batches, too_large: false })
}

impl From<Status> for CallError {
    fn from(status: Status) -> CallError {
        CallError {
            code: status.code() as i32,
            message: status.message().to_owned(),
            details: bytes::Bytes::copy_from_slice(status.details()),
        }
    }
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Status {
        Status::with_details(error.code.into(), error.message, error.details)
    }
}
