//! Reading files. A file that was read before costs one round trip to one chunk server.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult, GetResultPayload, Result};
use uruk_proto::ErrorCode;
use uruk_proto::dfs::{ChunkInfo, FileInfo};

use super::super::chunk_reader::{ChunkReader, Locate, Located, Target};
use super::super::connection::Shared;
use super::super::error::CallError;
use super::errors;

/// Ranges closer than this are read together, in bytes.
const COALESCE_BYTES: u64 = 256 << 10;
/// Ranges of one call that are read at once.
const RANGES_IN_FLIGHT: usize = 8;

pub async fn get(shared: &Arc<Shared>, location: &Path, options: GetOptions) -> Result<GetResult> {
    let conditional = options.if_match.is_some()
        || options.if_none_match.is_some()
        || options.if_modified_since.is_some()
        || options.if_unmodified_since.is_some();
    // Only a plain read may trust the cache: the others ask about the file as it is now.
    let file = if conditional || options.head {
        shared.fetch_file(location.as_ref()).await
    } else {
        shared.file(location.as_ref()).await
    };
    let file = file.map_err(|e| errors::from_call(location, e))?;
    let meta = errors::object_meta(&file)?;
    options.check_preconditions(&meta)?;
    let range = match &options.range {
        None => 0..file.bytes,
        Some(range) => resolve(location, range, file.bytes)?,
    };
    let payload = if options.head {
        GetResultPayload::Stream(stream::empty().boxed())
    } else {
        GetResultPayload::Stream(read_stream(shared.clone(), location.clone(), file, range.clone()))
    };
    Ok(GetResult { payload, meta, range, attributes: Default::default(), extensions: Default::default() })
}

pub async fn get_ranges(shared: &Arc<Shared>, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
    let file = shared.file(location.as_ref()).await.map_err(|e| errors::from_call(location, e))?;
    let ranges: Vec<_> = ranges
        .iter()
        .map(|range| resolve(location, &GetRange::Bounded(range.clone()), file.bytes))
        .collect::<Result<_>>()?;
    let merged = merge(&ranges, COALESCE_BYTES);
    let pieces: Vec<Bytes> = stream::iter(merged.clone())
        .map(|range| read_bytes(shared, location, &file, range))
        .buffered(RANGES_IN_FLIGHT)
        .try_collect()
        .await?;
    let cut = |range: &Range<u64>| {
        let i = merged.partition_point(|m| m.start <= range.start) - 1;
        let from = (range.start - merged[i].start) as usize;
        pieces[i].slice(from..from + (range.end - range.start) as usize)
    };
    Ok(ranges.iter().map(cut).collect())
}

fn resolve(location: &Path, range: &GetRange, bytes: u64) -> Result<Range<u64>> {
    range.as_range(bytes).map_err(|e| errors::corrupt(format!("{location}: {e}")))
}

/// The union of `ranges`, gaps of at most `gap` bytes filled, in order.
fn merge(ranges: &[Range<u64>], gap: u64) -> Vec<Range<u64>> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable_by_key(|r| r.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(gap) => last.end = last.end.max(range.end),
            Some(_) | None => merged.push(range),
        }
    }
    merged
}

/// One piece of a read: a range within one chunk.
#[derive(Clone, Debug)]
struct Piece {
    chunk: ChunkInfo,
    range: Range<u64>,
}

impl Piece {
    fn is_whole_chunk(&self) -> bool {
        self.range == (0..self.chunk.bytes)
    }

    fn reader(&self, shared: &Arc<Shared>, file: &FileInfo) -> ChunkReader {
        let target = Target { id: self.chunk.chunk_id, is_segment: false, recovery: 0 };
        let locate = FileLocate { shared: shared.clone(), path: file.path.clone(), chunk_id: self.chunk.chunk_id };
        ChunkReader::new(shared.clone(), target, &self.chunk.addresses, Arc::new(locate), self.range.clone())
    }
}

/// Where bytes `range` of the file lie.
fn pieces(file: &FileInfo, range: Range<u64>) -> Vec<Piece> {
    let mut pieces = Vec::new();
    if range.is_empty() {
        return pieces;
    }
    let mut start = 0;
    for chunk in &file.chunks {
        let end = start + chunk.bytes;
        if range.start < end && start < range.end {
            let within = range.start.max(start) - start..range.end.min(end) - start;
            pieces.push(Piece { chunk: chunk.clone(), range: within });
        }
        start = end;
    }
    pieces
}

async fn read_bytes(shared: &Arc<Shared>, location: &Path, file: &FileInfo, range: Range<u64>) -> Result<Bytes> {
    let pieces = pieces(file, range);
    if let [piece] = &pieces[..] {
        return piece.reader(shared, file).read_all().await.map_err(|e| errors::from_read(location, e));
    }
    let mut all = Vec::new();
    for piece in pieces {
        let bytes = piece.reader(shared, file).read_all().await.map_err(|e| errors::from_read(location, e))?;
        all.extend_from_slice(&bytes);
    }
    Ok(all.into())
}

fn read_stream(
    shared: Arc<Shared>,
    location: Path,
    file: Arc<FileInfo>,
    range: Range<u64>,
) -> BoxStream<'static, Result<Bytes>> {
    stream::iter(pieces(&file, range))
        .flat_map(move |piece| read_piece(piece.reader(&shared, &file), piece, location.clone()))
        .boxed()
}

fn read_piece(reader: ChunkReader, piece: Piece, location: Path) -> BoxStream<'static, Result<Bytes>> {
    let hasher = piece.is_whole_chunk().then(crc32fast::Hasher::new);
    stream::try_unfold((reader, hasher), move |(mut reader, mut hasher)| {
        let (location, expected, id) = (location.clone(), piece.chunk.crc, piece.chunk.chunk_id);
        async move {
            let next = reader.next().await.map_err(|e| errors::from_read(&location, e))?;
            match (&next, &mut hasher) {
                (Some(data), Some(hasher)) => hasher.update(data),
                (Some(_), None) | (None, None) => {}
                (None, Some(seen)) => {
                    let found = seen.clone().finalize();
                    if found != expected {
                        return Err(errors::corrupt(format!(
                            "{location}: chunk {id} has checksum {found:#010x}, not {expected:#010x}"
                        )));
                    }
                }
            }
            Ok(next.map(|data| (data, (reader, hasher))))
        }
    })
    .boxed()
}

struct FileLocate {
    shared: Arc<Shared>,
    path: String,
    chunk_id: u64,
}

#[async_trait]
impl Locate for FileLocate {
    async fn locate(&self) -> Result<Located, CallError> {
        match self.shared.fetch_file(&self.path).await {
            Ok(file) => Ok(match file.chunks.iter().find(|c| c.chunk_id == self.chunk_id) {
                Some(chunk) if chunk.lost => Located::Lost,
                Some(chunk) => Located::At(chunk.addresses.clone()),
                None => Located::Deleted,
            }),
            Err(error) if error.code() == ErrorCode::NotFound => Ok(Located::Deleted),
            Err(error) => Err(error),
        }
    }

    fn failed_at(&self, address: &str) {
        if !self.shared.files.forget_address(&self.path, self.chunk_id, address) {
            return;
        }
        // In the background: the other replicas serve meanwhile, also while the controller is away.
        let (shared, path) = (self.shared.clone(), self.path.clone());
        self.shared.env.tasks.spawn("refresh a file's locations", async move {
            if let Err(error) = shared.refresh_file(&path).await {
                tracing::debug!(path, %error, "cannot refresh a file's locations");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(sizes: &[u64]) -> FileInfo {
        let chunks = sizes.iter().zip(1..).map(|(bytes, chunk_id)| ChunkInfo {
            chunk_id,
            bytes: *bytes,
            ..ChunkInfo::default()
        });
        FileInfo { bytes: sizes.iter().sum(), chunks: chunks.collect(), ..FileInfo::default() }
    }

    #[test]
    fn a_range_touches_only_its_chunks() {
        let file = file(&[10, 20, 5]);
        let show = |range| pieces(&file, range).iter().map(|p| (p.chunk.chunk_id, p.range.clone())).collect::<Vec<_>>();
        assert_eq!(show(0..35), [(1, 0..10), (2, 0..20), (3, 0..5)]);
        assert_eq!(show(9..11), [(1, 9..10), (2, 0..1)]);
        assert_eq!(show(10..30), [(2, 0..20)]);
        assert_eq!(show(31..33), [(3, 1..3)]);
        assert_eq!(show(5..5), []);
    }

    #[test]
    fn near_ranges_are_read_together() {
        assert_eq!(merge(&[20..30, 0..10, 5..7, 100..101], 10), [0..30, 100..101]);
        assert_eq!(merge(&[20..30, 0..10, 5..7], 9), [0..10, 20..30]);
        assert_eq!(merge(&[], 9), []);
    }
}
