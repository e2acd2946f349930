//! Re-replication: fetches a chunk or a sealed segment from a server that has it, checks it against
//! the controller's checksum, and puts it in place.

use bytes::Bytes;
use uruk_base::disk::OpenMode;
use uruk_base::rpc;
use uruk_proto::RpcError;
use uruk_proto::dfs::chunk_server_client::ChunkServerClient;
use uruk_proto::dfs::{CopyOrder, ReadRequest};

use super::Core;
use super::error::StoreError;
use super::replica::LENGTH_MAX;
use crate::format::CHUNK_BYTES_MAX;
use crate::format::block_sums::BlockSums;
use crate::format::replica_file::{DATA_OFFSET, Mode, SealedMeta, encode_header};

/// Carries one order out, trying its sources in turn.
pub(super) async fn copy(core: &Core, order: CopyOrder) -> Result<(), StoreError> {
    let bytes_max = if order.is_segment { LENGTH_MAX } else { CHUNK_BYTES_MAX };
    if order.bytes > bytes_max {
        return Err(StoreError::Invalid(format!("a copy of {} bytes", order.bytes)));
    }
    let mut last = StoreError::Invalid("no source".into());
    for source in &order.sources {
        let copied = match order.is_segment {
            true => copy_segment(core, &order, source).await,
            false => copy_chunk(core, &order, source).await,
        };
        match copied {
            Ok(()) => return Ok(()),
            Err(error) => {
                tracing::debug!(id = order.id, source, %error, "a source fails");
                last = error;
            }
        }
    }
    Err(last)
}

async fn copy_chunk(core: &Core, order: &CopyOrder, source: &str) -> Result<(), StoreError> {
    let mut writer = core.chunks.begin(order.id, order.bytes, Mode::Fsync).await?;
    let mut fetch = Fetch::start(core, order, source).await;
    loop {
        let pushed = match &mut fetch {
            Ok(fetch) => match fetch.next().await {
                Ok(Some(data)) => writer.push(data).await,
                Ok(None) => return writer.finish(Some(order.crc)).await.map(|_| ()),
                Err(error) => Err(error),
            },
            Err(error) => Err(std::mem::replace(error, StoreError::Invalid(String::new()))),
        };
        if let Err(error) = pushed {
            writer.abort().await;
            return Err(error);
        }
    }
}

async fn copy_segment(core: &Core, order: &CopyOrder, source: &str) -> Result<(), StoreError> {
    let replica = core.segments.get_or_absent(order.id)?;
    let glance = replica.glance();
    if glance.sealed.is_some() && glance.unvouched.is_none() {
        core.host.changes.segment(order.id); // the leader does not know yet
        return Ok(());
    }
    let temporary = core.segments.temporary(order.id);
    let disk = &core.host.env.disk;
    let result = match fetch_segment(core, order, source, &temporary).await {
        Ok(sealed) => replica.install(&temporary, sealed).await,
        Err(error) => Err(error),
    };
    if result.is_err() && disk.exists(&temporary).await.unwrap_or(true) {
        let _ = disk.remove(&temporary).await; // removed at the next start otherwise
    }
    result
}

async fn fetch_segment(
    core: &Core,
    order: &CopyOrder,
    source: &str,
    temporary: &std::path::Path,
) -> Result<SealedMeta, StoreError> {
    core.host.space.take(DATA_OFFSET + order.bytes)?;
    let io = StoreError::io;
    let file = core.host.env.disk.open(temporary, OpenMode::CreateNew).await.map_err(io(temporary))?;
    file.write_at(0, encode_header(order.id)).await.map_err(io(temporary))?;
    let mut fetch = Fetch::start(core, order, source).await?;
    let mut sums = BlockSums::new();
    while let Some(data) = fetch.next().await? {
        let offset = sums.bytes();
        sums.update(&data);
        file.write_at(DATA_OFFSET + offset, data).await.map_err(io(temporary))?;
    }
    if sums.bytes() != order.bytes || sums.total() != order.crc {
        return Err(StoreError::State(format!("segment {} from {source} is not what was sealed", order.id)));
    }
    if let Err(error) = file.sync().await {
        core.host.fail(format!("sync of {}: {error}", temporary.display()));
        return Err(io(temporary)(error));
    }
    Ok(SealedMeta { length: order.bytes, crc: order.crc, blocks: sums.blocks() })
}

/// The bytes of a chunk or segment as another server streams them; never more than ordered.
struct Fetch<'a> {
    core: &'a Core,
    stream: tonic::Streaming<uruk_proto::dfs::ReadResponse>,
    left: u64,
}

impl<'a> Fetch<'a> {
    async fn start(core: &'a Core, order: &CopyOrder, source: &str) -> Result<Fetch<'a>, StoreError> {
        let mut client =
            ChunkServerClient::new(core.channels.get(source)).max_decoding_message_size(rpc::MESSAGE_BYTES_MAX);
        let request =
            ReadRequest { id: order.id, is_segment: order.is_segment, offset: 0, length: order.bytes, recovery: 0 };
        let limit = core.host.config.rpc_timeout();
        let stream = core.host.env.clock.timeout(limit, client.read(request)).await;
        let stream = stream.map_err(|elapsed| StoreError::State(format!("{source}: {elapsed}")))?;
        Ok(Fetch { core, stream: stream.map_err(|e| source_failed(e.into()))?.into_inner(), left: order.bytes })
    }

    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        let limit = self.core.host.config.idle_timeout();
        let message = self.core.host.env.clock.timeout(limit, self.stream.message()).await;
        let message = message.map_err(|elapsed| StoreError::State(elapsed.to_string()))?;
        let Some(message) = message.map_err(|e| source_failed(e.into()))? else { return Ok(None) };
        let bytes = message.data.len() as u64;
        self.left =
            self.left.checked_sub(bytes).ok_or_else(|| StoreError::State("more bytes than asked for".into()))?;
        Ok(Some(message.data))
    }
}

fn source_failed(error: RpcError) -> StoreError {
    StoreError::State(format!("the source answers: {error}"))
}
