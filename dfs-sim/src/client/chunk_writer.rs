//! Writes one chunk to its targets, all at once, and knows when enough of them have it.
//!
//! Invariants: (1) a chunk counts as written only where the server's checksum equals ours; (2) at
//! least two servers have it, or one where the controller names but one; (3) a server that is merely slower goes on
//! in the background, so that the chunk need not be copied again: the controller learns of that copy from the server's
//! next report, well within the grace before it would order another.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::{self, FuturesUnordered};
use uruk_proto::dfs::{ChunkTarget, WriteChunkHeader, WriteChunkRequest, WrittenChunk};
use uruk_proto::{ErrorCode, RpcError};

use super::config::Durability;
use super::connection::{Lane, Shared};

/// Data bytes per message.
const MESSAGE_DATA_BYTES: usize = 1 << 20;
/// Pieces of a payload smaller than this are put together.
const SMALL_PIECE_BYTES: usize = 64 << 10;
/// Replicas that make a chunk safe. The controller names fewer only where the store is configured to
/// have but one copy.
const SAFE_REPLICAS: usize = 2;
/// The rest of the servers are waited for at least this long, and at most as long again as the first
/// ones took.
const STRAGGLER_WAIT_MIN: Duration = Duration::from_millis(30);
/// Chunks up to this size do not wait for the rest: somebody waits for a small file, as a split does for its last
/// flush. Larger ones do, so that a slow disk holds back those who fill it.
const SMALL_CHUNK_BYTES: u64 = 1 << 20;

/// The bytes of one chunk, cut into messages, with their checksum.
#[derive(Clone, Debug)]
pub struct ChunkData {
    messages: Arc<[Bytes]>,
    pub bytes: u64,
    pub crc: u32,
}

impl ChunkData {
    /// `pieces` one after the other.
    pub fn new(pieces: Vec<Bytes>) -> ChunkData {
        let mut messages = Vec::new();
        let mut small = BytesMut::new();
        let mut hasher = crc32fast::Hasher::new();
        let mut bytes = 0;
        for mut piece in pieces {
            hasher.update(&piece);
            bytes += piece.len() as u64;
            if piece.len() < SMALL_PIECE_BYTES {
                small.extend_from_slice(&piece);
                if small.len() >= SMALL_PIECE_BYTES {
                    messages.push(small.split().freeze());
                }
                continue;
            }
            if !small.is_empty() {
                messages.push(small.split().freeze());
            }
            while !piece.is_empty() {
                messages.push(piece.split_to(piece.len().min(MESSAGE_DATA_BYTES)));
            }
        }
        if !small.is_empty() {
            messages.push(small.freeze());
        }
        ChunkData { messages: messages.into(), bytes, crc: hasher.finalize() }
    }
}

/// Cuts `pieces` into chunks of at most `chunk_bytes`.
pub fn cut_into_chunks(pieces: impl IntoIterator<Item = Bytes>, chunk_bytes: u64) -> Vec<ChunkData> {
    let mut chunks = Vec::new();
    let (mut current, mut room) = (Vec::new(), chunk_bytes);
    for mut piece in pieces {
        while !piece.is_empty() {
            let part = piece.split_to((piece.len() as u64).min(room) as usize);
            room -= part.len() as u64;
            current.push(part);
            if room == 0 {
                chunks.push(ChunkData::new(std::mem::take(&mut current)));
                room = chunk_bytes;
            }
        }
    }
    if !current.is_empty() {
        chunks.push(ChunkData::new(current));
    }
    chunks
}

/// Too few servers have the chunk.
#[derive(Clone, Debug)]
pub struct ChunkNotWritten {
    /// Addresses that failed.
    pub failed: Vec<String>,
    pub error: RpcError,
}

/// Writes `data` to the servers of `target`; returns once enough of them have it.
pub async fn write_chunk(
    shared: &Arc<Shared>,
    target: &ChunkTarget,
    data: &ChunkData,
    durability: Durability,
) -> Result<WrittenChunk, ChunkNotWritten> {
    let clock = shared.env.clock.clone();
    let start = clock.now();
    let needed = target.addresses.len().clamp(1, SAFE_REPLICAS);
    let mut writes: FuturesUnordered<_> = target
        .addresses
        .iter()
        .map(|address| write_replica(shared.clone(), address.clone(), target.chunk_id, data.clone(), durability))
        .collect();
    let mut servers = BTreeSet::new();
    let mut failed = Vec::new();
    let mut error = RpcError::new(ErrorCode::Unavailable, "the controller named no chunk server");
    while servers.len() < needed {
        match writes.next().await {
            Some(Ok(server)) => {
                servers.insert(server);
            }
            Some(Err((address, why))) => {
                tracing::warn!(chunk = target.chunk_id, %address, error = %why, "cannot write a replica");
                shared.suspects.add(&address);
                error = RpcError { message: format!("{address}: {}", why.message), ..why };
                failed.push(address);
            }
            None => return Err(ChunkNotWritten { failed, error }),
        }
    }
    if data.bytes > SMALL_CHUNK_BYTES {
        let wait = clock.since(start).max(STRAGGLER_WAIT_MIN);
        let stragglers = async {
            while let Some(written) = writes.next().await {
                match written {
                    Ok(server) => drop(servers.insert(server)),
                    Err((address, _)) => shared.suspects.add(&address),
                }
            }
        };
        let _ = clock.timeout(wait, stragglers).await;
    }
    if !writes.is_empty() {
        let shared_too = shared.clone();
        shared.env.tasks.spawn("dfs-chunk-straggler", async move {
            while let Some(written) = writes.next().await {
                if let Err((address, _)) = written {
                    shared_too.suspects.add(&address);
                }
            }
        });
    }
    Ok(WrittenChunk {
        chunk_id: target.chunk_id,
        bytes: data.bytes,
        crc: data.crc,
        server_ids: servers.into_iter().collect(),
    })
}

/// Writes `data` to one server; its id, or its address and what went wrong.
async fn write_replica(
    shared: Arc<Shared>,
    address: String,
    chunk_id: u64,
    data: ChunkData,
    durability: Durability,
) -> Result<u64, (String, RpcError)> {
    let header = WriteChunkHeader { chunk_id, bytes: data.bytes, durability: durability.to_wire() };
    let first = WriteChunkRequest { header: Some(header), data: Bytes::new() };
    let messages = data.messages.clone();
    let rest = (0..messages.len()).map(move |i| WriteChunkRequest { header: None, data: messages[i].clone() });
    let request = stream::iter(std::iter::once(first).chain(rest));
    let mut server = shared.chunk_server(&address, Lane::Write);
    let limit = Duration::from_millis(shared.config.chunk_write_ms);
    let error = match shared.env.clock.timeout(limit, server.write_chunk(request)).await {
        Ok(Ok(response)) => {
            let written = response.into_inner();
            if written.crc == data.crc {
                shared.suspects.clear(&address);
                return Ok(written.server_id);
            }
            RpcError::new(
                ErrorCode::Corrupt,
                format!("chunk {chunk_id} arrived with checksum {:#x}, not {:#x}", written.crc, data.crc),
            )
        }
        Ok(Err(status)) => RpcError::from(status),
        Err(elapsed) => RpcError::new(ErrorCode::DeadlineExceeded, elapsed.to_string()),
    };
    Err((address, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(data: &ChunkData) -> Vec<u8> {
        data.messages.concat()
    }

    #[test]
    fn chunks_are_cut_at_the_limit_whatever_the_pieces() {
        let content: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
        for pieces in [vec![1000], vec![10; 100], vec![999, 1], vec![128, 128, 744]] {
            let mut rest = Bytes::from(content.clone());
            let pieces: Vec<Bytes> = pieces.into_iter().map(|n| rest.split_to(n)).collect();
            let chunks = cut_into_chunks(pieces, 256);
            assert_eq!(chunks.iter().map(|c| c.bytes).collect::<Vec<_>>(), [256, 256, 256, 232]);
            assert_eq!(chunks.iter().flat_map(joined).collect::<Vec<_>>(), content);
            assert!(chunks.iter().all(|c| c.crc == crc32fast::hash(&joined(c))));
        }
    }

    #[test]
    fn no_bytes_are_no_chunks() {
        assert!(cut_into_chunks([], 256).is_empty());
        assert!(cut_into_chunks([Bytes::new()], 256).is_empty());
    }

    #[test]
    fn small_pieces_share_messages_and_large_ones_are_cut() {
        let small = ChunkData::new(vec![Bytes::from_static(b"ab"); 50]);
        assert_eq!(small.messages.len(), 1);
        let large = ChunkData::new(vec![Bytes::from(vec![1; 2 * MESSAGE_DATA_BYTES + 1])]);
        assert_eq!(large.messages.len(), 3);
    }
}
