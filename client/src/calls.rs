//! Calls of one tablet server: small ones share a stream, large ones and those that a server does not take on a
//! stream are gRPC calls of their own.
//!
//! Calls that are made while the connection is busy go in one message, and so do their answers: nothing waits to
//! be taken together (`uruk_proto::calls` is the other end).
//!
//! Invariants: (1) every call ends with its answer, or with an error when its stream ends, whichever comes first;
//! (2) what breaks a stream says nothing of the calls on it: such errors carry no details, so they count as unknown
//! (`retry`), but for those of a connection that was never made; (3) a stream that has ended is used no more.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tonic::transport::Channel;
use tonic::{Code, Status};
use uruk_base::Env;
use uruk_base::rpc::MESSAGE_BYTES_MAX;
use uruk_proto::calls::{CALLS_IN_FLIGHT_MAX, SHARED_REQUEST_BYTES_MAX, together};
use uruk_proto::tablet::tablet_server_calls_client::TabletServerCallsClient;
use uruk_proto::tablet::{
    AnswerBatch, Call, CallBatch, CancelCall, CheckAndMutateRequest, CheckAndMutateResponse, MutateRowsRequest,
    MutateRowsResponse, ReadModifyWriteRequest, ReadModifyWriteResponse, ReadRequest, answer, call,
};

use crate::server::TabletClient;

/// Makes calls on one channel.
#[derive(Clone)]
pub(crate) struct Caller {
    pub alone: TabletClient,
    pub shared: Arc<SharedStream>,
}

/// Makes the call on the stream, unless it is too large for that, or refused there; then alone.
macro_rules! either {
    ($caller:expr, $request:expr, $kind:ident, |$alone:ident| $other:expr) => {{
        if $request.encoded_len() <= SHARED_REQUEST_BYTES_MAX
            && let Some(answer) = $caller.shared.call(call::Call::$kind($request.clone())).await?
        {
            match answer {
                answer::Answer::$kind(answer) => return Ok(answer),
                answer::Answer::TooLarge(_) => {}
                _ => return Err(Status::internal("the answer is one to another call")),
            }
        }
        let $alone = &mut $caller.alone;
        $other
    }};
}

impl Caller {
    pub async fn mutate_rows(&mut self, request: MutateRowsRequest) -> Result<MutateRowsResponse, Status> {
        either!(self, request, MutateRows, |alone| Ok(alone.mutate_rows(request).await?.into_inner()))
    }

    pub async fn check_and_mutate(&mut self, request: CheckAndMutateRequest) -> Result<CheckAndMutateResponse, Status> {
        either!(self, request, CheckAndMutate, |alone| Ok(alone.check_and_mutate(request).await?.into_inner()))
    }

    pub async fn read_modify_write(
        &mut self,
        request: ReadModifyWriteRequest,
    ) -> Result<ReadModifyWriteResponse, Status> {
        either!(self, request, ReadModifyWrite, |alone| Ok(alone.read_modify_write(request).await?.into_inner()))
    }

    /// The batches with single rows.
    pub async fn read_rows(&mut self, request: ReadRequest) -> Result<Vec<Bytes>, Status> {
        if let Some(answer) = self.shared.call(call::Call::Read(request.clone())).await? {
            match answer {
                answer::Answer::Read(answer) => return Ok(answer.batches),
                answer::Answer::TooLarge(_) => {}
                _ => return Err(Status::internal("the answer is one to another call")),
            }
        }
        let mut stream = self.alone.read(request).await?.into_inner();
        let mut batches = Vec::new();
        // To its end: its last word may be that the server lost its lease meanwhile.
        while let Some(response) = stream.message().await? {
            batches.push(response.batch);
        }
        Ok(batches)
    }
}

/// A stream of calls; opened by the first of them.
pub(crate) struct SharedStream {
    queue: mpsc::Sender<Call>,
    pending: Arc<Pending>,
    /// Dropped with the last user of the stream, which ends its task.
    _in_use: oneshot::Sender<()>,
}

impl SharedStream {
    pub fn new(env: &Env, channel: Channel) -> SharedStream {
        let (queue, calls) = mpsc::channel(CALLS_IN_FLIGHT_MAX);
        let (in_use, unused) = oneshot::channel();
        let pending = Arc::new(Pending::default());
        let task = exchange(channel, calls, FailsWhenDropped(pending.clone()));
        env.tasks.spawn("calls", async move {
            tokio::select! {
                biased;
                _ = unused => {}
                () = task => {}
            }
        });
        SharedStream { queue, pending, _in_use: in_use }
    }

    /// Whether another one must take its place.
    pub fn has_ended(&self) -> bool {
        matches!(self.pending.0.lock().end, Some(End::Broken(_)))
    }

    /// None: the server does not take calls on streams, or this one has ended before the call was made.
    async fn call(&self, call: call::Call) -> Result<Option<answer::Answer>, Status> {
        let (sender, answer) = oneshot::channel();
        let waiting = match self.pending.add(sender) {
            Ok(id) => Waiting { id, pending: &self.pending, queue: &self.queue },
            // Not sent: it can go alone.
            Err(_) => return Ok(None),
        };
        // A closed queue is that of a stream that has ended: then the answer is how.
        let _ = self.queue.send(Call { id: waiting.id, call: Some(call) }).await;
        match answer.await {
            Ok(Ok(answer::Answer::Error(error))) => Err(error.into()),
            Ok(Ok(answer)) => Ok(Some(answer)),
            Ok(Err(End::Unsupported)) => Ok(None),
            Ok(Err(End::Broken(status))) => Err(status),
            Err(_) => Err(lost()),
        }
    }
}

fn lost() -> Status {
    Status::unavailable("the stream of calls ended")
}

/// How a stream ended.
#[derive(Clone, Debug)]
enum End {
    Unsupported,
    Broken(Status),
}

impl End {
    /// A stream that was refused before it began.
    fn unopened(status: Status) -> End {
        match status.code() == Code::Unimplemented && status.details().is_empty() {
            true => End::Unsupported,
            false => End::Broken(status),
        }
    }
}

type Answered = oneshot::Sender<Result<answer::Answer, End>>;

/// Calls that wait for their answers.
#[derive(Default)]
struct Pending(Mutex<Waiters>);

#[derive(Default)]
struct Waiters {
    last_id: u64,
    by_id: BTreeMap<u64, Answered>,
    end: Option<End>,
}

/// A call's place among those that wait; when it is dropped before its answer came, the call is cancelled.
struct Waiting<'a> {
    id: u64,
    pending: &'a Pending,
    queue: &'a mpsc::Sender<Call>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let has_answer = self.pending.0.lock().by_id.remove(&self.id).is_none();
        if !has_answer {
            // When the queue is full, the answer comes and is dropped.
            let _ = self.queue.try_send(Call { id: self.id, call: Some(call::Call::Cancel(CancelCall {})) });
        }
    }
}

impl Pending {
    fn add(&self, sender: Answered) -> Result<u64, End> {
        let mut waiters = self.0.lock();
        if let Some(end) = &waiters.end {
            return Err(end.clone());
        }
        waiters.last_id += 1;
        let id = waiters.last_id;
        waiters.by_id.insert(id, sender);
        Ok(id)
    }

    fn answered(&self, batch: AnswerBatch) {
        let mut waiters = self.0.lock();
        for answer in batch.answers {
            // Whoever asked may have given up.
            if let Some(waiter) = waiters.by_id.remove(&answer.id) {
                let _ = waiter.send(answer.answer.ok_or_else(|| End::Broken(Status::internal("an empty answer"))));
            }
        }
    }

    /// The first end counts.
    fn fail(&self, end: End) {
        let mut waiters = self.0.lock();
        if waiters.end.is_none() {
            waiters.end = Some(end.clone());
        }
        for (_, waiter) in std::mem::take(&mut waiters.by_id) {
            let _ = waiter.send(Err(end.clone()));
        }
    }
}

/// Nobody waits for a task that is gone.
struct FailsWhenDropped(Arc<Pending>);

impl Drop for FailsWhenDropped {
    fn drop(&mut self) {
        self.0.fail(End::Broken(lost()));
    }
}

/// Opens the stream for the first call, sends what is queued and hands out answers, until the stream ends.
async fn exchange(channel: Channel, calls: mpsc::Receiver<Call>, waiting: FailsWhenDropped) {
    let pending = &waiting.0;
    let mut client = TabletServerCallsClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let mut messages = Box::pin(together(calls, Call::encoded_len));
    let Some(first) = messages.next().await else { return };
    let outgoing = futures::stream::iter([first]).chain(messages).map(|calls| CallBatch { calls });
    let mut answers = match client.calls(outgoing).await {
        Ok(response) => response.into_inner(),
        Err(status) => return pending.fail(End::unopened(status)),
    };
    loop {
        match answers.message().await {
            Ok(Some(batch)) => pending.answered(batch),
            Ok(None) => return pending.fail(End::Broken(lost())),
            // Whatever its code: it says nothing of the calls.
            Err(status) => return pending.fail(End::Broken(Status::unavailable(status.message()))),
        }
    }
}
