//! Reads a range of one chunk or sealed segment, going on with another replica after an error.
//!
//! Invariants: (1) bytes come out in order, each exactly once, none from beyond the range; (2) what a
//! chunk server sends passed its checksum there; the caller may find more (a frame, a whole chunk)
//! and then calls [`ChunkReader::blame`]; (3) a round over all known replicas without progress is
//! followed by a look at where replicas are now, until the deadline or the word that nobody holds it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tonic::Streaming;
use uruk_base::Moment;
use uruk_proto::dfs::{ReadRequest, ReadResponse};
use uruk_proto::{ErrorCode, RpcError};

use super::connection::{Lane, Shared};
use super::error::CallError;

/// What to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    pub id: u64,
    pub is_segment: bool,
    /// The fence under which an unsealed segment is read; 0 for everything else.
    pub recovery: u64,
}

/// Where replicas are now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Located {
    /// At these addresses; none: at a server that is not heard of, perhaps.
    At(Vec<String>),
    /// Nowhere: all servers have said so or are dead.
    Lost,
    /// There is no such chunk any more.
    Deleted,
}

/// Says where replicas are now.
#[async_trait]
pub trait Locate: Send + Sync {
    async fn locate(&self) -> Result<Located, CallError>;

    /// The replica at this address failed: whoever remembers it should ask again.
    fn failed_at(&self, _address: &str) {}
}

/// Why a read ended without all of its bytes.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadError {
    /// The file or log that the bytes belong to is gone.
    #[error("{0} is deleted")]
    Deleted(String),
    /// Every replica that answered is damaged.
    #[error("{0}")]
    Corrupt(String),
    /// No replica answers.
    #[error("{0}")]
    Unavailable(String),
    /// Waiting does not help, unless a dead server comes back.
    #[error("{0}: no live server holds it")]
    Lost(String),
}

pub struct ChunkReader {
    shared: Arc<Shared>,
    target: Target,
    locate: Arc<dyn Locate>,
    range: Range<u64>,
    /// Replicas not yet tried in this round.
    candidates: VecDeque<String>,
    stream: Option<(String, Streaming<ReadResponse>)>,
    rounds: u32,
    progress: Moment,
    last_error: Option<(String, RpcError)>,
    corrupt: Option<String>,
}

impl ChunkReader {
    pub fn new(
        shared: Arc<Shared>,
        target: Target,
        addresses: &[String],
        locate: Arc<dyn Locate>,
        range: Range<u64>,
    ) -> ChunkReader {
        let candidates = shared.suspects.order(addresses).into();
        let progress = shared.env.clock.now();
        ChunkReader {
            shared,
            target,
            locate,
            range,
            candidates,
            stream: None,
            rounds: 0,
            progress,
            last_error: None,
            corrupt: None,
        }
    }

    /// Where the next bytes start.
    pub fn offset(&self) -> u64 {
        self.range.start
    }

    /// The next bytes; None at the end of the range.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        while self.range.start < self.range.end {
            let Some((address, mut stream)) = self.stream.take() else {
                self.open().await?;
                continue;
            };
            let left = self.range.end - self.range.start;
            let message = self.shared.env.clock.timeout(self.attempt(), stream.message()).await;
            let error = match message {
                Ok(Ok(Some(ReadResponse { data }))) if data.len() as u64 > left => {
                    RpcError::new(ErrorCode::Internal, format!("sent {} bytes where {left} were asked", data.len()))
                }
                Ok(Ok(Some(ReadResponse { data }))) => {
                    self.range.start += data.len() as u64;
                    if !data.is_empty() {
                        self.progress = self.shared.env.clock.now();
                        self.stream = Some((address, stream));
                        return Ok(Some(data));
                    }
                    self.stream = Some((address, stream));
                    continue;
                }
                Ok(Ok(None)) => RpcError::new(ErrorCode::Unknown, format!("ended {left} bytes early")),
                Ok(Err(status)) => RpcError::from(status),
                Err(elapsed) => RpcError::new(ErrorCode::DeadlineExceeded, elapsed.to_string()),
            };
            self.failed(address, error);
        }
        Ok(None)
    }

    /// All bytes that are left, in one piece; no copy when they came in one message.
    pub async fn read_all(mut self) -> Result<Bytes, ReadError> {
        let total = (self.range.end - self.range.start) as usize;
        let Some(first) = self.next().await? else { return Ok(Bytes::new()) };
        if first.len() == total {
            return Ok(first);
        }
        let mut all = Vec::with_capacity(total);
        all.extend_from_slice(&first);
        while let Some(more) = self.next().await? {
            all.extend_from_slice(&more);
        }
        Ok(all.into())
    }

    /// The bytes from `offset` on, which came from the replica being read, are damaged: goes back
    /// there, to another replica.
    pub fn blame(&mut self, offset: u64, what: &str) {
        self.range.start = offset;
        let address = match self.stream.take() {
            Some((address, _)) => address,
            None => "the last replica read".to_owned(),
        };
        self.failed(address, RpcError::new(ErrorCode::Corrupt, what));
    }

    fn failed(&mut self, address: String, error: RpcError) {
        tracing::warn!(
            id = self.target.id,
            segment = self.target.is_segment,
            offset = self.range.start,
            %address,
            %error,
            "cannot read from this replica; going on with another"
        );
        self.shared.counters.read_failovers.inc();
        match error.code {
            ErrorCode::Corrupt => self.corrupt = Some(format!("{address}: {error}")),
            // It lacks this chunk, or is not done with sealing it; otherwise it is well.
            ErrorCode::NotFound | ErrorCode::FailedPrecondition => {}
            _ => self.shared.suspects.add(&address),
        }
        self.locate.failed_at(&address);
        self.last_error = Some((address, error));
    }

    async fn open(&mut self) -> Result<(), ReadError> {
        let Some(address) = self.candidates.pop_front() else { return self.next_round().await };
        let request = ReadRequest {
            id: self.target.id,
            is_segment: self.target.is_segment,
            offset: self.range.start,
            length: self.range.end - self.range.start,
            recovery: self.target.recovery,
        };
        let mut server = self.shared.chunk_server(&address, Lane::Read);
        match self.shared.env.clock.timeout(self.attempt(), server.read(request)).await {
            Ok(Ok(response)) => {
                self.shared.suspects.clear(&address);
                self.stream = Some((address, response.into_inner()));
            }
            Ok(Err(status)) => self.failed(address, status.into()),
            Err(elapsed) => {
                self.failed(address, RpcError::new(ErrorCode::DeadlineExceeded, elapsed.to_string()));
            }
        }
        Ok(())
    }

    /// Every known replica failed: asks where replicas are now, or gives up.
    async fn next_round(&mut self) -> Result<(), ReadError> {
        let clock = &self.shared.env.clock;
        if clock.since(self.progress) >= Duration::from_millis(self.shared.config.read_deadline_ms)
            // Two rounds over all replicas: damage does not go away by waiting.
            || (self.rounds >= 2 && self.corrupt.is_some())
        {
            return Err(self.give_up());
        }
        if self.rounds > 0 {
            clock.sleep(self.shared.env.random.jitter(self.shared.config.backoff(self.rounds))).await;
        }
        self.rounds += 1;
        match self.locate.locate().await {
            Ok(Located::At(addresses)) => self.candidates = self.shared.suspects.order(&addresses).into(),
            Ok(Located::Lost) => return Err(self.lost()),
            Ok(Located::Deleted) => return Err(ReadError::Deleted(self.name())),
            Err(error) => self.last_error = Some(("controller".into(), error.into())),
        }
        Ok(())
    }

    fn give_up(&self) -> ReadError {
        let name = self.name();
        let at = self.range.start;
        match (&self.corrupt, &self.last_error) {
            (Some(what), _) => ReadError::Corrupt(format!("{name} at offset {at}: {what}")),
            (None, Some((address, error))) => {
                ReadError::Unavailable(format!("{name} at offset {at}: {address}: {error}"))
            }
            (None, None) => ReadError::Unavailable(format!("{name}: no live server holds it; some are not heard of")),
        }
    }

    /// Damage is the better reason: the controller does not count damaged replicas.
    fn lost(&self) -> ReadError {
        match self.corrupt {
            Some(_) => self.give_up(),
            None => ReadError::Lost(self.name()),
        }
    }

    fn name(&self) -> String {
        format!("{} {}", if self.target.is_segment { "segment" } else { "chunk" }, self.target.id)
    }

    /// Longer with every round: when all servers are slow, patience gets further than haste.
    fn attempt(&self) -> Duration {
        Duration::from_millis(self.shared.config.read_attempt_ms) * (1 + self.rounds)
    }
}
