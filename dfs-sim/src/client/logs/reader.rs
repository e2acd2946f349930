//! Streams the records of sealed segments.
//!
//! A record that lies within one message is a slice of it, without a copy; one that straddles messages
//! is put together. Every frame is checked against its own place, whatever the chunk server checked.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt};
use uruk_base::commit_log::{LogError, LogId, LogRecord, Lsn, SealedLog};
use uruk_proto::ErrorCode;
use uruk_proto::dfs::{LogInfo, SegmentInfo};

use super::super::chunk_reader::{ChunkReader, Locate, Located, ReadError, Target};
use super::super::connection::Shared;
use super::super::error::CallError;
use super::{get_log, refused, sealed_length};
use crate::format::{FRAME_HEADER_BYTES, Frame, FrameError, Frames, SegmentKey, frame_bytes};

/// The records in `range`.
pub fn read(
    shared: Arc<Shared>,
    log: &SealedLog,
    range: Range<Lsn>,
) -> BoxStream<'static, Result<LogRecord, LogError>> {
    let (id, end) = (log.id, log.end);
    let range = range.start..range.end.min(end);
    if range.start >= range.end {
        return stream::empty().boxed();
    }
    let opened = async move {
        let log = get_log(&shared, id).await.map_err(|e| refused(id, e))?;
        segments(&shared, &log, range)
    };
    stream::once(opened)
        .flat_map(|segments| match segments {
            Ok(segments) => stream::unfold(segments, next_record).boxed(),
            Err(error) => stream::iter([Err(error)]).boxed(),
        })
        .boxed()
}

/// Readers of the segments that hold `range`.
fn segments(shared: &Arc<Shared>, log: &LogInfo, range: Range<Lsn>) -> Result<VecDeque<SegmentReader>, LogError> {
    let id = LogId(log.log_id);
    let mut readers = VecDeque::new();
    let mut expected = range.start.0;
    for segment in &log.segments {
        let Some(length) = sealed_length(segment) else { continue };
        let within = range.start.0.max(segment.base)..range.end.0.min(segment.base + length);
        if within.start < within.end && within.start == expected {
            expected = within.end;
            readers.push_back(SegmentReader::new(shared, id, segment, within));
        }
    }
    if expected < range.end.0 {
        // Segments go from the front, by trims, or all at once.
        return Err(LogError::Trimmed(id, Lsn(log.trimmed_to.max(expected))));
    }
    Ok(readers)
}

type Readers = VecDeque<SegmentReader>;

async fn next_record(mut readers: Readers) -> Option<(Result<LogRecord, LogError>, Readers)> {
    while let Some(reader) = readers.front_mut() {
        match reader.next().await {
            Ok(Some(record)) => return Some((Ok(record), readers)),
            Ok(None) => drop(readers.pop_front()),
            Err(error) => return Some((Err(error), Readers::new())),
        }
    }
    None
}

struct SegmentReader {
    id: LogId,
    base: u64,
    key: SegmentKey,
    end: u64,
    source: ChunkReader,
    /// Frames in the last message.
    frames: Frames,
    /// The same bytes, for a frame that goes on in the next message.
    message: Bytes,
    message_start: u64,
    /// Received after `message`; ends at the source's offset.
    queued: Bytes,
}

impl SegmentReader {
    fn new(shared: &Arc<Shared>, id: LogId, segment: &SegmentInfo, range: Range<u64>) -> SegmentReader {
        let key = SegmentKey { log_id: id.0, segment_id: segment.segment_id };
        let range = range.start - segment.base..range.end - segment.base;
        let locate = SegmentLocate { shared: shared.clone(), id, segment_id: segment.segment_id };
        let target = Target { id: segment.segment_id, is_segment: true, recovery: 0 };
        let (start, end) = (range.start, range.end);
        SegmentReader {
            id,
            base: segment.base,
            key,
            end,
            source: ChunkReader::new(shared.clone(), target, &segment.addresses, Arc::new(locate), range),
            frames: Frames::new(key, start, Bytes::new()),
            message: Bytes::new(),
            message_start: start,
            queued: Bytes::new(),
        }
    }

    async fn next(&mut self) -> Result<Option<LogRecord>, LogError> {
        loop {
            match self.frames.next() {
                Some(Ok(Frame { end, payload })) => {
                    return Ok(Some(LogRecord { end: Lsn(self.base + end), payload }));
                }
                Some(Err(FrameError::Torn { offset })) if self.has_more() => {
                    let rest = self.message.slice((offset - self.message_start) as usize..);
                    let message = self.join(rest).await?;
                    self.start(offset, message);
                }
                Some(Err(error)) => {
                    self.source.blame(error.offset(), &error.to_string());
                    self.queued.clear();
                    self.start(error.offset(), Bytes::new());
                }
                None => match self.fetch().await? {
                    Some(message) => self.start(self.source.offset() - message.len() as u64, message),
                    None => return Ok(None),
                },
            }
        }
    }

    fn has_more(&self) -> bool {
        !self.queued.is_empty() || self.source.offset() < self.end
    }

    fn start(&mut self, offset: u64, message: Bytes) {
        self.frames = Frames::new(self.key, offset, message.clone());
        self.message = message;
        self.message_start = offset;
    }

    /// `rest`, the beginning of a frame, with as much of what follows as makes the frame whole. Its
    /// length is trusted only once its header is whole, since `Frames` then has checked it; until then
    /// only the header is completed.
    async fn join(&mut self, rest: Bytes) -> Result<Bytes, LogError> {
        let mut joined = BytesMut::from(&rest[..]);
        loop {
            let needed = match joined.first_chunk::<4>() {
                Some(length) if rest.len() >= FRAME_HEADER_BYTES => {
                    frame_bytes(u32::from_le_bytes(*length) as usize) as usize
                }
                Some(_) | None => FRAME_HEADER_BYTES,
            };
            if joined.len() >= needed {
                return Ok(joined.freeze());
            }
            joined.reserve(needed - joined.len());
            match self.fetch().await? {
                Some(mut more) => {
                    let part = more.split_to(more.len().min(needed - joined.len()));
                    joined.extend_from_slice(&part);
                    self.queued = more;
                }
                None => return Ok(joined.freeze()),
            }
        }
    }

    async fn fetch(&mut self) -> Result<Option<Bytes>, LogError> {
        if !self.queued.is_empty() {
            return Ok(Some(std::mem::take(&mut self.queued)));
        }
        let at = Lsn(self.base + self.source.offset());
        self.source.next().await.map_err(|error| match error {
            ReadError::Deleted(_) => LogError::Trimmed(self.id, at),
            ReadError::Corrupt(what) => LogError::Corrupt { log: self.id, lsn: at, what },
            ReadError::Unavailable(what) => LogError::Unavailable(self.id, what),
            ReadError::Lost(_) => LogError::Unavailable(self.id, error.to_string()),
        })
    }
}

struct SegmentLocate {
    shared: Arc<Shared>,
    id: LogId,
    segment_id: u64,
}

#[async_trait]
impl Locate for SegmentLocate {
    async fn locate(&self) -> Result<Located, CallError> {
        match get_log(&self.shared, self.id).await {
            Ok(log) => Ok(match log.segments.into_iter().find(|s| s.segment_id == self.segment_id) {
                Some(segment) => Located::At(segment.addresses),
                None => Located::Deleted,
            }),
            Err(error) if error.code() == ErrorCode::NotFound => Ok(Located::Deleted),
            Err(error) => Err(error),
        }
    }
}
