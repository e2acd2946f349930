//! Many calls on one stream, at the server's end: `TabletServerCalls` on top of any `TabletServer`.
//!
//! A call of its own costs HTTP/2 headers, trailers, a task and several writes to the socket at either end; those
//! of many callers, taken together, cost one message (the batch commands of TiKV do the same). Nothing waits to be
//! taken together: a message holds what there is when the connection can take it.
//!
//! Invariants: (1) each call runs as if it had come alone: calls do not wait for each other, and one that is cancelled,
//! or whose client is gone, is dropped where it stands; (2) a call that runs goes on though its client reads no
//! answers, so a stalled client holds no row's latch; (3) calls that run and
//! answers that are not sent yet are at most [`CALLS_IN_FLIGHT_MAX`] on a stream: the rest waits at the client;
//! (4) no message is much larger than [`MESSAGE_BYTES`], so none holds up others for long.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use futures::future::{AbortHandle, Abortable, BoxFuture};
use futures::stream::{FuturesUnordered, Stream};
use futures::{StreamExt, TryStreamExt};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::{Request, Response, Status, Streaming};

use crate::tablet::tablet_server_calls_server::TabletServerCalls;
use crate::tablet::tablet_server_server::TabletServer;
use crate::tablet::{Answer, AnswerBatch, Call, CallBatch, CallError, ReadAnswer, ReadRequest, TooLarge, answer, call};

/// Calls of one stream that run, or whose answers wait to be sent.
pub const CALLS_IN_FLIGHT_MAX: usize = 1024;
/// Requests up to this many bytes share a stream; larger ones would hold up the others.
pub const SHARED_REQUEST_BYTES_MAX: usize = 64 << 10;
/// Calls, or answers, in one message; a stream with more in a message is ended.
pub const CALLS_PER_MESSAGE_MAX: usize = 128;
/// A message has this many bytes, unless one call or answer has more.
const MESSAGE_BYTES: usize = 256 << 10;
/// The largest message of calls that a server takes, in bytes.
pub const CALLS_BYTES_MAX: usize = MESSAGE_BYTES + 2 * SHARED_REQUEST_BYTES_MAX;
/// A larger answer is a call's own, in bytes.
const ANSWER_BYTES_MAX: usize = MESSAGE_BYTES;

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
        let (sender, receiver) = mpsc::channel(CALLS_IN_FLIGHT_MAX);
        let streamed = Streamed { service: self.service.clone(), answers: sender };
        (self.spawn)(Box::pin(streamed.run(request.into_inner())));
        let messages = together(receiver, |(answer, _): &Held| answer.encoded_len());
        let sent =
            |answers: Vec<Held>| AnswerBatch { answers: answers.into_iter().map(|(answer, _)| answer).collect() };
        Ok(Response::new(Box::pin(messages.map(move |answers| Ok(sent(answers))))))
    }
}

/// An answer holds its call's place until it is sent.
type Held = (Answer, OwnedSemaphorePermit);

struct Streamed<S> {
    service: S,
    answers: mpsc::Sender<Held>,
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
                () = self.answers.closed() => return,
                Some((id, answer)) = running.next() => {
                    cancels.remove(&id);
                    // There is room: an answer that is queued has its call's place.
                    if let Ok(answer) = answer && self.answers.try_send(answer).is_err() {
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
                    if batch.calls.len() > CALLS_PER_MESSAGE_MAX {
                        return;
                    }
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

/// What waits in `queue`, taken together as long as it fits into a message of [`MESSAGE_BYTES`].
pub fn together<T>(queue: mpsc::Receiver<T>, bytes: impl Fn(&T) -> usize) -> impl Stream<Item = Vec<T>> {
    futures::stream::unfold((queue, VecDeque::new(), bytes), |(mut queue, mut ready, bytes)| async move {
        if ready.is_empty() {
            let mut received = Vec::with_capacity(CALLS_PER_MESSAGE_MAX);
            queue.recv_many(&mut received, CALLS_PER_MESSAGE_MAX).await;
            ready.extend(received);
        }
        let (mut message, mut sum) = (Vec::with_capacity(ready.len()), 0);
        while let Some(item) = ready.pop_front() {
            sum += bytes(&item);
            if sum > MESSAGE_BYTES && !message.is_empty() {
                ready.push_front(item);
                break;
            }
            message.push(item);
        }
        (!message.is_empty()).then_some((message, (queue, ready, bytes)))
    })
}

async fn answer_to<S: TabletServer>(service: &S, call: Call) -> Answer {
    let result = match call.call {
        Some(call::Call::Read(request)) => read(service, request).await,
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
    let answer = match result {
        Ok(answer) if answer.encoded_len() > ANSWER_BYTES_MAX => answer::Answer::TooLarge(TooLarge {}),
        Ok(answer) => answer,
        Err(status) => answer::Answer::Error(status.into()),
    };
    Answer { id: call.id, answer: Some(answer) }
}

/// To its end: its last word may be that the server lost its lease meanwhile.
async fn read<S: TabletServer>(service: &S, request: ReadRequest) -> Result<answer::Answer, Status> {
    if request.rows.is_empty() {
        return Err(Status::invalid_argument("ranges are read by a call of their own"));
    }
    let mut stream = std::pin::pin!(service.read(Request::new(request)).await?.into_inner());
    let (mut batches, mut bytes) = (Vec::new(), 0);
    while let Some(response) = stream.try_next().await? {
        bytes += response.batch.len();
        if bytes > ANSWER_BYTES_MAX {
            return Ok(answer::Answer::TooLarge(TooLarge {}));
        }
        batches.push(response.batch);
    }
    Ok(answer::Answer::Read(ReadAnswer { batches }))
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

#[cfg(test)]
mod tests {
    use super::*;

    async fn messages(sizes: &[usize]) -> Vec<Vec<usize>> {
        let (sender, receiver) = mpsc::channel(1_000);
        for size in sizes {
            sender.send(*size).await.expect("there is room");
        }
        drop(sender);
        together(receiver, |size| *size).collect().await
    }

    #[tokio::test]
    async fn what_waits_goes_together_up_to_a_messages_size() {
        assert_eq!(messages(&[1, 2, 3]).await, [vec![1, 2, 3]]);
        let half = MESSAGE_BYTES / 2;
        assert_eq!(messages(&[half, half, 1, half]).await, [vec![half, half], vec![1, half]]);
        let large = 3 * MESSAGE_BYTES;
        assert_eq!(messages(&[1, large, 2]).await, [vec![1], vec![large], vec![2]]);
        let many = messages(&[1; CALLS_PER_MESSAGE_MAX + 5]).await;
        assert_eq!(many.iter().map(Vec::len).collect::<Vec<_>>(), [CALLS_PER_MESSAGE_MAX, 5]);
        assert!(messages(&[]).await.is_empty());
    }

    #[test]
    fn a_status_survives_an_answer() {
        let status = Status::with_details(tonic::Code::Aborted, "moved", bytes::Bytes::from_static(b"d"));
        let again = Status::from(CallError::from(status));
        assert_eq!((again.code(), again.message(), again.details()), (tonic::Code::Aborted, "moved", &b"d"[..]));
    }
}
