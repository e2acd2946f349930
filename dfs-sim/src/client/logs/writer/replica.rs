//! The ordered stream to one replica of the open segment.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use uruk_proto::dfs::{AppendOpen, AppendRequest, Member, SegmentInfo};
use uruk_proto::{ErrorCode, RpcError};

use super::super::super::connection::{Lane, Shared};
use super::super::window::MemberIndex;

/// What a replica says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReplicaEvent {
    /// It holds all bytes below this length.
    Holds(u64),
    /// It gets nothing more.
    Failed(RpcError),
}

/// Opens the stream to `member`. Requests may be sent at once; their number is bounded by how far a
/// replica may fall behind before it is left. Dropping the stream of events ends the call.
pub fn open(
    shared: &Shared,
    log_id: u64,
    segment: &SegmentInfo,
    index: MemberIndex,
    member: &Member,
) -> (mpsc::UnboundedSender<AppendRequest>, BoxStream<'static, (MemberIndex, ReplicaEvent)>) {
    let (requests, queue) = mpsc::unbounded_channel();
    let open = AppendOpen {
        segment_id: segment.segment_id,
        log_id,
        server_id: member.server_id,
        durability: shared.config.durability.to_wire(),
        create: true,
    };
    let first = AppendRequest { open: Some(open), ..AppendRequest::default() };
    let messages = stream::iter([first]).chain(UnboundedReceiverStream::new(queue));
    let mut server = shared.chunk_server(&member.address, Lane::Log);
    let clock = shared.env.clock.clone();
    let limit = Duration::from_millis(shared.config.log_stalled_replica_ms);
    let opened = async move {
        match clock.timeout(limit, server.append(messages)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(RpcError::from(status)),
            Err(elapsed) => Err(RpcError::new(ErrorCode::DeadlineExceeded, format!("cannot open: {elapsed}"))),
        }
    };
    let events = stream::once(opened)
        .flat_map(|opened| match opened {
            Ok(acks) => acks
                .map(|ack| match ack {
                    Ok(ack) => ReplicaEvent::Holds(ack.length),
                    Err(status) => ReplicaEvent::Failed(status.into()),
                })
                .chain(stream::iter([ReplicaEvent::Failed(RpcError::new(ErrorCode::Unavailable, "stream ended"))]))
                .boxed(),
            Err(error) => stream::iter([ReplicaEvent::Failed(error)]).boxed(),
        })
        .map(move |event| (index, event));
    (requests, events.boxed())
}
