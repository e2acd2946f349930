//! Step 6: copies what is missing until enough replicas hold the segment up to its end.
//!
//! A fenced member that lacks the end gets just that; where there is none, a server that never was a
//! member gets the whole, which counts as a copy but never as an answer.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use uruk_base::commit_log::LogId;
use uruk_proto::dfs::{CompleteSegmentHeader, CompleteSegmentRequest, SegmentInfo};
use uruk_proto::{ErrorCode, RpcError};

use super::super::super::chunk_reader::{ChunkReader, Locate, Located, Target};
use super::super::super::connection::{Lane, Shared};
use super::super::super::error::CallError;
use super::decide::Plan;

/// Messages of a copy that are read ahead.
const MESSAGES_AHEAD: usize = 4;

/// Where missing bytes go.
struct Destination {
    address: String,
    /// What it holds already.
    from: u64,
    is_new: bool,
}

/// Copies until the plan's needs are met; the checksum of the whole segment. An error says why it was
/// not possible now.
pub async fn replicate(
    shared: &Arc<Shared>,
    id: LogId,
    segment: &SegmentInfo,
    recovery: u64,
    plan: &Plan,
) -> Result<u32, String> {
    let sources: Vec<String> = plan.holders.iter().map(|i| segment.members[*i].address.clone()).collect();
    let mut missing = plan.copies_needed;
    let mut last_error = "no chunk server is left to copy to".to_owned();
    if missing > 0 {
        let mut destinations: Vec<Destination> = plan
            .short
            .iter()
            .map(|(i, length)| Destination {
                address: segment.members[*i].address.clone(),
                from: *length,
                is_new: false,
            })
            .collect();
        // A short member may be short because its disk is full: then others take its place.
        match new_servers(shared, segment).await {
            Ok(others) => destinations.extend(others),
            Err(error) if destinations.len() < missing => return Err(error.to_string()),
            Err(error) => tracing::warn!(%error, "no other chunk servers are known for a seal"),
        }
        for to in destinations {
            tracing::info!(log = id.0, segment = segment.index, to = %to.address, from = to.from, "completing a replica");
            match copy(shared, segment, recovery, &sources, &to, plan.length).await {
                Ok(()) => missing -= 1,
                Err(error) => last_error = format!("copying to {}: {error}", to.address),
            }
            if missing == 0 {
                break;
            }
        }
    }
    if missing > 0 {
        return Err(format!("segment {} lacks {missing} copies: {last_error}", segment.segment_id));
    }
    match plan.crc {
        Some(crc) => Ok(crc),
        None if plan.length == 0 => Ok(crc32fast::hash(&[])),
        None => checksum(shared, segment, recovery, &sources, plan.length).await,
    }
}

/// Live servers that are no members.
async fn new_servers(shared: &Shared, segment: &SegmentInfo) -> Result<Vec<Destination>, CallError> {
    let health = shared.health().await?;
    let is_member = |id: u64| segment.members.iter().any(|m| m.server_id == id);
    let usable = health.servers.into_iter().filter(|s| s.live && s.refusing_writes.is_empty());
    Ok(usable
        .filter(|s| !is_member(s.server_id))
        .map(|s| Destination { address: s.address, from: 0, is_new: true })
        .collect())
}

/// Bytes `[to.from, length)` from a holder to `to`; durable there when it returns.
async fn copy(
    shared: &Arc<Shared>,
    segment: &SegmentInfo,
    recovery: u64,
    sources: &[String],
    to: &Destination,
    length: u64,
) -> Result<(), RpcError> {
    let header = CompleteSegmentHeader {
        segment_id: segment.segment_id,
        recovery,
        offset: to.from,
        length,
        create: to.is_new,
        durability: shared.config.durability.to_wire(),
    };
    let mut reader = reader(shared, segment, recovery, sources, to.from..length);
    let (data, queue) = mpsc::channel(MESSAGES_AHEAD);
    let first = CompleteSegmentRequest { header: Some(header), data: Bytes::new() };
    let rest = ReceiverStream::new(queue).map(|data| CompleteSegmentRequest { header: None, data });
    let mut server = shared.chunk_server(&to.address, Lane::Write);
    let write = server.complete_segment(stream::iter([first]).chain(rest));
    let read = async move {
        loop {
            match reader.next().await {
                Ok(Some(bytes)) => {
                    if data.send(bytes).await.is_err() {
                        return Ok(()); // the write says why
                    }
                }
                Ok(None) => return Ok(()),
                Err(error) => return Err(RpcError::new(ErrorCode::Unavailable, error.to_string())),
            }
        }
    };
    let limit = Duration::from_millis(shared.config.chunk_write_ms);
    let both = async {
        let (read, written) = futures::join!(read, write);
        read?;
        Ok::<_, RpcError>(written?.into_inner().length)
    };
    match shared.env.clock.timeout(limit, both).await {
        // More is what an earlier round copied, never acknowledged; it is cut when the seal has been recorded.
        Ok(Ok(reached)) if reached >= length => Ok(()),
        Ok(Ok(reached)) => Err(RpcError::new(ErrorCode::Internal, format!("it has {reached} bytes, not {length}"))),
        Ok(Err(error)) => Err(error),
        Err(elapsed) => Err(RpcError::new(ErrorCode::DeadlineExceeded, elapsed.to_string())),
    }
}

/// CRC-32 of bytes `[0, length)`, read from a holder.
async fn checksum(
    shared: &Arc<Shared>,
    segment: &SegmentInfo,
    recovery: u64,
    sources: &[String],
    length: u64,
) -> Result<u32, String> {
    let mut reader = reader(shared, segment, recovery, sources, 0..length);
    let mut hasher = crc32fast::Hasher::new();
    while let Some(bytes) = reader.next().await.map_err(|e| e.to_string())? {
        hasher.update(&bytes);
    }
    Ok(hasher.finalize())
}

fn reader(
    shared: &Arc<Shared>,
    segment: &SegmentInfo,
    recovery: u64,
    sources: &[String],
    range: std::ops::Range<u64>,
) -> ChunkReader {
    let target = Target { id: segment.segment_id, is_segment: true, recovery };
    ChunkReader::new(shared.clone(), target, sources, Arc::new(Holders), range)
}

/// Holders do not change during one attempt: when all of them fail, the attempt is made anew.
struct Holders;

#[async_trait]
impl Locate for Holders {
    async fn locate(&self) -> Result<Located, CallError> {
        Ok(Located::Deleted)
    }
}
