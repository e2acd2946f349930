//! The write path: from a request to a published, acknowledged write.
//!
//! | step | where |
//! |---|---|
//! | lease, budgets | [`Server::admit_write`] |
//! | keys, families, sizes | [`parse`](super::write_parse) |
//! | row latches | [`Latches`](super::latch::Latches); exclusive before the first read |
//! | owner, duplicates, SeqNo, timestamp, place in the log: one step under the tablet's gate | [`enqueue`] |
//! | durable, visible, acknowledged | [`CommitLog`](super::commit_log::CommitLog) |
//! | lease again, answer | here |

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use uruk_base::planted::{Planted, is_planted};
use uruk_proto::cell_batch::BatchBuilder;
use uruk_proto::tablet::{
    CheckAndMutateRequest, CheckAndMutateResponse, MutateRowsRequest, MutateRowsResponse, ReadModifyWriteRequest,
    ReadModifyWriteResponse, RowError,
};
use uruk_proto::{ErrorCode, RpcError, SeqNo};

use super::Server;
use super::commit_log::{QueuePermit, Submission, SubmissionEnd};
use super::config::{RECORD_OVERHEAD_BYTES, RESULT_BYTES_MAX};
use super::latch::Latched;
use super::memory::{MemoryError, RUN_BYTES, Seen};
use super::read_modify_write;
use super::record::{Call, Piece, Record, RowWrite};
use super::tablet::{Gate, Tablet, TabletState};
use super::write_parse::{ParsedRow, parse_call, parse_mutations, parse_row, parse_row_key};
use crate::engine::Filter;

/// A request waits this long for a tablet that is about to be given away.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// Requests that may wait so.
pub const PAUSED_MAX: usize = 1024;

/// What became of an enqueued record.
enum Ticket {
    /// It is on its way: told when it is published.
    Enqueued(oneshot::Receiver<()>),
    /// An earlier attempt is, up to this SeqNo.
    Duplicate(SeqNo),
}

/// Rows of one record with the room for it.
struct Batch {
    rows: Vec<ParsedRow>,
    call: Option<Call>,
    result: Option<Bytes>,
    latches: Option<Arc<Latched>>,
    permit: QueuePermit,
}

impl Server {
    /// Waits, for a short while, until the tablet is in none of these states: who tries again is slower.
    pub async fn wait_while(&self, tablet: &Tablet, states: &[TabletState]) {
        if !states.contains(&tablet.state()) {
            return;
        }
        let Ok(_slot) = self.pause_slots.try_acquire() else { return };
        let over = tablet.reached(|state| !states.contains(&state));
        // Whoever called looks at the state again.
        let _ = self.env.clock.timeout(PAUSE_MAX, over).await;
    }

    /// Whether a write may start: lease and budgets. Never waits.
    fn admit_write(&self) -> Result<(), RpcError> {
        self.incarnation.check()?;
        self.budget.check()
    }

    /// Several rows, each atomic. The answer names those that failed.
    pub async fn mutate_rows(self: &Arc<Self>, request: MutateRowsRequest) -> Result<MutateRowsResponse, RpcError> {
        self.admit_write()?;
        let tablet = self.tablets.find(request.tablet.as_ref())?;
        self.wait_while(&tablet, &[TabletState::Frozen, TabletState::Replacing]).await;
        let call = parse_call(request.key.as_ref());
        if let Some(call) = &call {
            self.admit_call(&tablet, call)?;
        }
        let schema = tablet.store.schema();
        let mut errors = Vec::new();
        let mut rows = Vec::with_capacity(request.entries.len());
        for (index, entry) in request.entries.into_iter().enumerate() {
            match parse_row(index as u32, entry, &tablet, &schema) {
                Ok(row) => rows.push(row),
                Err(error) => errors.push(row_error(index as u32, error)),
            }
        }
        let keys = rows.iter().map(|row| &row.write.row[..]);
        let latches = Arc::new(self.latches.shared(tablet.id, keys).await);
        let mut waiting = Vec::with_capacity(1);
        for rows in split_by_bytes(rows, self.config.record_bytes_max) {
            let offsets: Vec<u32> = rows.iter().map(|row| row.write.offset).collect();
            let outcome = self.enqueue_rows(&tablet, rows, call, &latches, &mut errors, &mut waiting);
            if let Err(error) = outcome {
                if waiting.is_empty() {
                    return Err(error);
                }
                errors.extend(offsets.into_iter().map(|index| row_error(index, error.clone())));
            }
        }
        drop(latches);
        for ticket in waiting {
            self.wait(&tablet, ticket).await?;
        }
        self.incarnation.check_write_done()?;
        errors.sort_by_key(|error| error.index);
        Ok(MutateRowsResponse { errors })
    }

    /// Enqueues rows as one record, leaving out those that were written before.
    fn enqueue_rows(
        self: &Arc<Self>,
        tablet: &Arc<Tablet>,
        mut rows: Vec<ParsedRow>,
        call: Option<Call>,
        latches: &Arc<Latched>,
        errors: &mut Vec<RowError>,
        waiting: &mut Vec<Ticket>,
    ) -> Result<(), RpcError> {
        let bytes = RECORD_OVERHEAD_BYTES + rows.iter().map(ParsedRow::bytes).sum::<usize>();
        let permit = self.log.reserve(bytes)?;
        tablet.with_gate(|gate| {
            gate.check_writable(tablet)?;
            if let Some(call) = &call {
                // Usually nothing of the batch is known, and one look tells.
                let (first, last) = match (rows.first(), rows.last()) {
                    (Some(first), Some(last)) => (first.write.offset, last.write.offset),
                    (None, _) | (_, None) => return Ok(()),
                };
                let sequence = |offset: u32| call.sequence.saturating_add(u64::from(offset));
                if gate.memory.seen_any(call.client, sequence(first), u64::from(last - first) + 1) {
                    let mut fresh = Vec::new();
                    for row in std::mem::take(&mut rows) {
                        match gate.memory.seen(call.client, sequence(row.write.offset)) {
                            Seen::New => fresh.push(row),
                            Seen::Written { last, .. } => waiting.push(Ticket::Duplicate(last)),
                            Seen::Settled => errors.push(row_error(row.write.offset, settled())),
                        }
                    }
                    rows = fresh;
                }
            }
            if rows.is_empty() {
                return Ok(());
            }
            let batch = Batch { rows, call, result: None, latches: Some(latches.clone()), permit };
            waiting.push(self.enqueue(tablet, gate, batch)?);
            Ok(())
        })
    }

    /// Gives a record its numbers, its time and its place in the log, and remembers its call.
    fn enqueue(&self, tablet: &Arc<Tablet>, gate: &mut Gate, batch: Batch) -> Result<Ticket, RpcError> {
        batch.rows.iter().for_each(|row| tablet.samples.note(&row.write.row));
        let count: usize = batch.rows.iter().map(|row| row.mutations.len()).sum();
        let (pieces, piece_bytes) = self.cut(&batch.rows);
        let (first, last) = gate.assign(tablet, pieces + count.max(1) as u64)?;
        let timestamp = gate.memory.next_timestamp(self.env.clock.wall_micros());
        let (mut rows, mutations): (Vec<RowWrite>, Vec<_>) =
            batch.rows.into_iter().map(|row| (row.write, row.mutations)).unzip();
        let whole = Record {
            tablet: tablet.id,
            first: SeqNo(first.0 + pieces),
            last,
            timestamp,
            call: batch.call,
            result: batch.result,
            piece: if pieces == 0 { Piece::Whole } else { Piece::Last },
            rows: Vec::new(),
        };
        for i in 0..pieces {
            let number = SeqNo(first.0 + i);
            let row = RowWrite { mutations: rows[0].mutations.split_to(piece_bytes), ..rows[0].clone() };
            let record = Record {
                tablet: tablet.id,
                first: number,
                last: number,
                timestamp,
                call: None,
                result: None,
                piece: if i == 0 { Piece::First } else { Piece::Middle },
                rows: vec![row],
            };
            self.log.push(Submission { tablet: tablet.clone(), record, mutations: Vec::new(), end: None });
        }
        let record = Record { rows, ..whole };
        let before = gate.memory.bytes();
        gate.memory.remember(&record);
        self.budget.remembers(gate.memory.bytes().saturating_sub(before));
        let (done, receiver) = oneshot::channel();
        let end = Some(SubmissionEnd { latches: batch.latches, permit: batch.permit, done });
        self.log.push(Submission { tablet: tablet.clone(), record, mutations, end });
        Ok(Ticket::Enqueued(receiver))
    }

    /// How many pieces go ahead of the last one when a row is too large for one record, and their bytes.
    fn cut(&self, rows: &[ParsedRow]) -> (u64, usize) {
        let [row] = rows else { return (0, 0) };
        let other_bytes = RECORD_OVERHEAD_BYTES + row.bytes() - row.write.mutations.len();
        let piece_bytes = self.config.record_bytes_max - other_bytes;
        // The last one is never empty.
        ((row.write.mutations.len().saturating_sub(1) / piece_bytes) as u64, piece_bytes)
    }

    /// Waits until the write is published; the outcome is unknown if the incarnation ends first.
    async fn wait(&self, tablet: &Tablet, ticket: Ticket) -> Result<(), RpcError> {
        if is_planted(Planted::AckBeforeDurable) {
            return Ok(());
        }
        let published = async {
            match ticket {
                Ticket::Enqueued(done) => done.await.is_ok(),
                Ticket::Duplicate(last) => {
                    tablet.wait_published(last).await;
                    true
                }
            }
        };
        let ended = async {
            self.incarnation.ended().await;
            false
        };
        let is_published = tokio::select! {
            biased;
            is_published = published => is_published,
            is_published = ended => is_published,
        };
        match is_published {
            true => Ok(()),
            false => Err(RpcError::new(ErrorCode::Unknown, "the server ends before the write's outcome is known")),
        }
    }

    fn admit_call(&self, tablet: &Tablet, call: &Call) -> Result<(), RpcError> {
        let now = self.env.clock.wall_micros();
        tablet.with_gate(|gate| gate.memory.admit(call, now)).map_err(|error| self.refusal(&error))?;
        self.check_room_to_remember(RUN_BYTES)
    }

    /// Refuses what all tablets together cannot remember. The caller holds no tablet's gate.
    fn check_room_to_remember(&self, bytes: usize) -> Result<(), RpcError> {
        if self.budget.has_room_to_remember(bytes) {
            return Ok(());
        }
        // What is past its time goes first; what was settled is not counted any more.
        let now = self.env.clock.wall_micros();
        self.tablets.loaded().iter().for_each(|tablet| tablet.with_gate(|gate| gate.memory.expire(now)));
        self.measure();
        match self.budget.has_room_to_remember(bytes) {
            true => Ok(()),
            false => {
                let message = format!(
                    "{} bytes of calls and their results are remembered; {bytes} more would go beyond the server's limit",
                    self.budget.remembered_bytes()
                );
                self.budget.refused_call();
                Err(RpcError::overloaded(message, self.config.overload_retry_ms))
            }
        }
    }

    fn refusal(&self, error: &MemoryError) -> RpcError {
        match error {
            MemoryError::TooOld(_) => RpcError::new(ErrorCode::FailedPrecondition, error.to_string()),
            MemoryError::Full(_) | MemoryError::FullOfResults(..) => {
                self.budget.refused_call();
                RpcError::overloaded(error.to_string(), self.config.overload_retry_ms)
            }
        }
    }

    /// Mutates a row one way or the other, by what a filter lets through of it.
    pub async fn check_and_mutate(
        self: &Arc<Self>,
        request: CheckAndMutateRequest,
    ) -> Result<CheckAndMutateResponse, RpcError> {
        self.admit_write()?;
        let tablet = self.tablets.find(request.tablet.as_ref())?;
        self.wait_while(&tablet, &[TabletState::Frozen, TabletState::Replacing]).await;
        let call = parse_call(request.key.as_ref());
        let schema = tablet.store.schema();
        let row = parse_row_key(request.row, &tablet)?;
        let filter = Filter::try_from(&request.predicate.unwrap_or_default())?;
        let if_true = parse_mutations(request.true_mutations, &schema)?;
        let if_false = parse_mutations(request.false_mutations, &schema)?;
        if if_true.is_none() && if_false.is_none() {
            return Err(RpcError::new(ErrorCode::InvalidArgument, "No mutations provided"));
        }
        let latches = self.latches.exclusive(tablet.id, &row).await;
        if let Some(remembered) = self.remembered(&tablet, call.as_ref()).await? {
            return Ok(CheckAndMutateResponse { matched: remembered[..] == [1] });
        }
        let matched = !tablet.store.snapshot().get(&row, &filter).await?.cells.is_empty();
        let chosen = if matched { if_true } else { if_false };
        let rows: Vec<ParsedRow> = chosen.into_iter().map(|chosen| chosen.of_row(row.clone())).collect();
        if !rows.is_empty() || call.is_some() {
            let result = call.is_some().then(|| Bytes::from_static(if matched { &[1] } else { &[0] }));
            self.write_exclusively(&tablet, rows, call, result, latches).await?;
        } else {
            // Nothing is written, so nothing else has checked that the tablet is still ours.
            tablet.check_readable()?;
        }
        self.incarnation.check_write_done()?;
        Ok(CheckAndMutateResponse { matched })
    }

    /// Appends to or increments columns of a row; answers with the new cells.
    pub async fn read_modify_write(
        self: &Arc<Self>,
        request: ReadModifyWriteRequest,
    ) -> Result<ReadModifyWriteResponse, RpcError> {
        self.admit_write()?;
        let tablet = self.tablets.find(request.tablet.as_ref())?;
        self.wait_while(&tablet, &[TabletState::Frozen, TabletState::Replacing]).await;
        let call = parse_call(request.key.as_ref());
        let row = parse_row_key(request.row, &tablet)?;
        read_modify_write::check_rules(&request.rules, &tablet.store.schema())?;
        let latches = self.latches.exclusive(tablet.id, &row).await;
        if let Some(batch) = self.remembered(&tablet, call.as_ref()).await? {
            return Ok(ReadModifyWriteResponse { batch });
        }
        let view = tablet.store.snapshot();
        let now = self.env.clock.wall_micros();
        let timestamp = tablet.with_gate(|gate| gate.memory.next_timestamp(now));
        let cells = read_modify_write::new_cells(&view, &row, request.rules, timestamp).await?;
        let mut answer = BatchBuilder::new();
        answer.start_row(&row, false);
        for cell in &cells {
            answer.push(cell.family, &cell.qualifier, cell.timestamp, &cell.value);
        }
        let batch = answer.finish();
        let rows = vec![ParsedRow::set_cells(row, cells)];
        let result = call.is_some().then(|| batch.clone());
        self.write_exclusively(&tablet, rows, call, result, latches).await?;
        self.incarnation.check_write_done()?;
        Ok(ReadModifyWriteResponse { batch })
    }

    /// What the call answered, if it was done before. The caller holds the row's latch, so an
    /// earlier attempt of the same call is either published or has not begun.
    async fn remembered(&self, tablet: &Tablet, call: Option<&Call>) -> Result<Option<Bytes>, RpcError> {
        let Some(call) = call else { return Ok(None) };
        self.admit_call(tablet, call)?;
        match tablet.with_gate(|gate| gate.memory.seen(call.client, call.sequence)) {
            Seen::New => Ok(None),
            Seen::Settled => Err(settled()),
            Seen::Written { last, result } => {
                self.wait(tablet, Ticket::Duplicate(last)).await?;
                self.incarnation.check_write_done()?;
                let other = || RpcError::new(ErrorCode::InvalidArgument, "sequence number of another kind of call");
                result.map(Some).ok_or_else(other)
            }
        }
    }

    async fn write_exclusively(
        &self,
        tablet: &Arc<Tablet>,
        rows: Vec<ParsedRow>,
        call: Option<Call>,
        result: Option<Bytes>,
        latches: Latched,
    ) -> Result<(), RpcError> {
        let (result_bytes, now) = (result.as_ref().map_or(0, Bytes::len), self.env.clock.wall_micros());
        let bytes = RECORD_OVERHEAD_BYTES + rows.iter().map(ParsedRow::bytes).sum::<usize>() + result_bytes;
        check_result(result.as_ref())?;
        self.check_room_to_remember(result_bytes)?;
        let permit = self.log.reserve(bytes)?;
        let batch = Batch { rows, call, result, latches: Some(Arc::new(latches)), permit };
        let ticket = tablet.with_gate(|gate| {
            gate.check_writable(tablet)?;
            // The same call may have come in on another row's latch: check where it counts.
            if let Some(call) = &call
                && gate.memory.seen(call.client, call.sequence) != Seen::New
            {
                return Err(RpcError::new(ErrorCode::InvalidArgument, "sequence number of another call"));
            }
            let room = gate.memory.check_room(result_bytes, self.config.remembered_bytes_max, now);
            room.map_err(|error| self.refusal(&error))?;
            self.enqueue(tablet, gate, batch)
        })?;
        self.wait(tablet, ticket).await
    }
}

/// Groups rows, in order, so that each group's record stays within `bytes_max`.
fn split_by_bytes(rows: Vec<ParsedRow>, bytes_max: usize) -> Vec<Vec<ParsedRow>> {
    let total: usize = RECORD_OVERHEAD_BYTES + rows.iter().map(ParsedRow::bytes).sum::<usize>();
    if total <= bytes_max {
        return vec![rows];
    }
    let (mut groups, mut group, mut bytes) = (Vec::new(), Vec::new(), RECORD_OVERHEAD_BYTES);
    for row in rows {
        if bytes + row.bytes() > bytes_max && !group.is_empty() {
            groups.push(std::mem::take(&mut group));
            bytes = RECORD_OVERHEAD_BYTES;
        }
        bytes += row.bytes();
        group.push(row);
    }
    groups.push(group);
    groups
}

/// Results are remembered for a while, in memory and in one record.
fn check_result(result: Option<&Bytes>) -> Result<(), RpcError> {
    match result.map(Bytes::len) {
        Some(bytes) if bytes > RESULT_BYTES_MAX => {
            let message =
                format!("the new cells are {bytes} bytes; a read-modify-write makes {RESULT_BYTES_MAX} at most");
            Err(RpcError::new(ErrorCode::InvalidArgument, message))
        }
        Some(_) | None => Ok(()),
    }
}

fn settled() -> RpcError {
    RpcError::new(ErrorCode::FailedPrecondition, "the call is settled: its client said so before")
}

fn row_error(index: u32, error: RpcError) -> RowError {
    RowError { index, code: error.code as u32, message: error.message }
}
