//! A fake tablet server.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status};
use uruk_proto::cell_batch::{BatchBuilder, Cell};
use uruk_proto::mutation::{Mutation, SERVER_TIME, unpack};
use uruk_proto::tablet::tablet_server_server::TabletServer;
use uruk_proto::tablet::{
    CheckAndMutateRequest, CheckAndMutateResponse, IdempotencyKey, MutateRowsRequest, MutateRowsResponse, ReadFilter,
    ReadModifyWriteRequest, ReadModifyWriteResponse, ReadRequest, ReadResponse, RowError, TabletRef,
    read_modify_write_rule::Rule,
};
use uruk_proto::{ErrorCode, FamilyId, RpcError};

use super::{Answer, Cluster, Fault, State};

#[derive(Clone)]
pub struct Server {
    pub cluster: Cluster,
    pub number: usize,
}

/// What is left of a fault once the request may be performed.
enum Then {
    Answer,
    Break { batches: usize },
    Unexplained { batches: usize },
    RowFails(ErrorCode),
}

impl Server {
    fn address(&self) -> String {
        Cluster::address(self.number)
    }

    /// Never answers: the connection is about to go.
    async fn broken<T>(&self) -> Result<T, Status> {
        self.cluster.net.cut(&self.address());
        std::future::pending().await
    }

    /// Gives this server's tablets to the others; false if it is the last one.
    fn fails_over(&self, unserved_until: Duration) -> bool {
        let mut state = self.cluster.lock();
        state.fail_over(self.number, unserved_until);
        !state.alive[self.number]
    }

    /// Meets the next fault.
    async fn meet(&self, tablet: u64) -> Result<Then, Status> {
        let fault = self.cluster.lock().faults.pop_front().unwrap_or(Fault::None);
        let now = self.cluster.now();
        let code = |code| Err(Status::from(RpcError::new(code, "as ordered")));
        match fault {
            Fault::None => Ok(Then::Answer),
            Fault::Stale => code(ErrorCode::StaleLocation),
            Fault::Unavailable => code(ErrorCode::Unavailable),
            Fault::Overloaded { retry_after_ms } => Err(RpcError::overloaded("as ordered", retry_after_ms).into()),
            Fault::Code(which) => code(which),
            Fault::BreakBefore => self.broken().await,
            Fault::BreakAfter { batches } => Ok(Then::Break { batches }),
            Fault::Unexplained { batches } => Ok(Then::Unexplained { batches }),
            Fault::RowFails(which) => Ok(Then::RowFails(which)),
            Fault::Slow { ms } => {
                self.cluster.env.clock.sleep(Duration::from_millis(ms)).await;
                Ok(Then::Answer)
            }
            Fault::Move => {
                let mut state = self.cluster.lock();
                if state.tablets.contains_key(&tablet) {
                    state.move_tablet(tablet, Duration::ZERO);
                }
                Ok(Then::Answer)
            }
            Fault::Split => {
                let mut state = self.cluster.lock();
                if state.tablets.contains_key(&tablet) {
                    state.split(tablet);
                }
                Ok(Then::Answer)
            }
            Fault::Merge => {
                let mut state = self.cluster.lock();
                if state.tablets.contains_key(&tablet) {
                    state.merge(tablet);
                }
                Ok(Then::Answer)
            }
            Fault::FreezeAndSplit { ms } => {
                if let Some(frozen) = self.cluster.lock().tablets.get_mut(&tablet) {
                    frozen.frozen_until = Some(now + Duration::from_millis(ms));
                }
                Ok(Then::Answer)
            }
            Fault::Die { unserved_ms } => {
                if self.fails_over(now + Duration::from_millis(unserved_ms)) {
                    self.cluster.net.kill(&self.address());
                    std::future::pending().await
                }
                Ok(Then::Answer)
            }
            Fault::Freeze { unserved_ms } => {
                if self.fails_over(now + Duration::from_millis(unserved_ms)) {
                    self.cluster.net.freeze(&self.address());
                    std::future::pending().await
                }
                Ok(Then::Answer)
            }
        }
    }

    fn tablet_id(tablet: &Option<TabletRef>) -> u64 {
        tablet.as_ref().expect("the client names a tablet").tablet_id
    }
}

impl State {
    /// Checks a key's rules and remembers that it was seen.
    fn see(&mut self, key: Option<&IdempotencyKey>, rows: u64) -> IdempotencyKey {
        let Some(key) = key.copied() else {
            self.violations.push("a write comes without key".into());
            return IdempotencyKey::default();
        };
        if key.sequence < key.first_incomplete {
            self.violations.push(format!("{key:?} is settled and comes again"));
        }
        for known in self.keys.iter().filter(|known| known.client_id == key.client_id) {
            if known.first_incomplete > key.sequence {
                self.violations.push(format!("{key:?} comes after {known:?} settled it"));
            }
            let same = known.sequence == key.sequence;
            if same && known.issued_micros != key.issued_micros {
                self.violations.push(format!("{key:?} changes the time of {known:?}"));
            }
        }
        for row in 0..rows {
            self.keys.push(IdempotencyKey { sequence: key.sequence + row, ..key });
        }
        key
    }

    fn apply(&mut self, table: u64, row: &Bytes, packed: Bytes) -> Result<(), RpcError> {
        let mutations = unpack(packed).map_err(|e| RpcError::new(ErrorCode::InvalidArgument, e.to_string()))?;
        let families: Vec<FamilyId> = self.tables[&table].families.iter().map(|family| family.id).collect();
        if mutations.iter().filter_map(Mutation::family).any(|family| !families.contains(&family)) {
            return Err(RpcError::new(ErrorCode::NotFound, "Requested column family not found"));
        }
        for mutation in mutations {
            let cells = self.rows.entry((table, row.clone())).or_default();
            match mutation {
                Mutation::SetCell { family, qualifier, mut timestamp, value } => {
                    if timestamp == SERVER_TIME {
                        self.timestamp += 1_000;
                        timestamp = self.timestamp;
                    }
                    cells.retain(|c| (c.family, &c.qualifier, c.timestamp) != (family, &qualifier, timestamp));
                    cells.push(Cell { family, qualifier, timestamp, value });
                    cells.sort_by(|a, b| {
                        (a.family, &a.qualifier, -a.timestamp).cmp(&(b.family, &b.qualifier, -b.timestamp))
                    });
                }
                Mutation::DeleteFromColumn { family, qualifier, start, end } => {
                    let range = start..end;
                    cells.retain(|c| c.family != family || c.qualifier != qualifier || !range.contains(&c.timestamp));
                }
                Mutation::DeleteFromFamily { family } => cells.retain(|c| c.family != family),
                Mutation::DeleteFromRow => cells.clear(),
            }
        }
        self.rows.retain(|_, cells| !cells.is_empty());
        Ok(())
    }
}

/// The cells that `filter` lets through.
fn filtered(cells: &[Cell], filter: &ReadFilter) -> Vec<Cell> {
    let mut per_column = 0;
    let mut column: Option<(FamilyId, Bytes)> = None;
    let mut through = Vec::new();
    for cell in cells {
        let this = (cell.family, cell.qualifier.clone());
        per_column = if column.as_ref() == Some(&this) { per_column + 1 } else { 1 };
        column = Some(this);
        let family = filter.families.is_empty() || filter.families.contains(&cell.family.0);
        let qualifier = !filter.exact_qualifier || cell.qualifier == filter.qualifier_start;
        let value = !filter.match_value || cell.value == filter.value;
        let newest = filter.cells_per_column == 0 || per_column <= filter.cells_per_column;
        if family && qualifier && value && newest {
            let mut cell = cell.clone();
            if filter.strip_values {
                cell.value = Bytes::new();
            }
            through.push(cell);
        }
    }
    through
}

/// Packs rows into responses of so many cells, in the middle of rows too.
fn responses(rows: &[(Bytes, Vec<Cell>)], cells_per_batch: usize) -> Vec<ReadResponse> {
    let mut out = Vec::new();
    let mut builder = BatchBuilder::new();
    let (mut in_batch, mut last_scanned) = (0, Bytes::new());
    for (key, cells) in rows {
        for (n, cell) in cells.iter().enumerate() {
            if in_batch == cells_per_batch {
                if n > 0 {
                    builder.break_row();
                }
                out.push(ReadResponse { batch: builder.finish(), last_scanned: last_scanned.clone() });
                in_batch = 0;
            }
            if n == 0 || in_batch == 0 {
                builder.start_row(key, n > 0);
            }
            builder.push(cell.family, &cell.qualifier, cell.timestamp, &cell.value);
            in_batch += 1;
        }
        last_scanned = key.clone();
    }
    if !builder.is_empty() {
        out.push(ReadResponse { batch: builder.finish(), last_scanned });
    }
    out
}

#[tonic::async_trait]
impl TabletServer for Server {
    type ReadStream = Pin<Box<dyn Stream<Item = Result<ReadResponse, Status>> + Send>>;

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let tablet = Server::tablet_id(&request.tablet);
        self.cluster.lock().reads += 1;
        let then = self.meet(tablet).await?;
        let responses = {
            let mut state = self.cluster.lock();
            let now = self.cluster.now();
            state.thaw(now);
            let owned = state.owned(self.number, tablet, now)?.clone();
            let outside = |start: &Bytes, end: &Bytes| {
                let asked = uruk_proto::RowRange::new(start.clone(), end.clone());
                asked.is_empty() || !owned.range.covers(&asked)
            };
            if request.ranges.iter().any(|range| outside(&range.start, &range.end)) {
                state.violations.push(format!("{:?} is outside of {:?}", request.ranges, owned.range));
            }
            let filter = request.filter.clone().unwrap_or_default();
            let wanted = |key: &Bytes| match request.rows.is_empty() {
                true => request
                    .ranges
                    .iter()
                    .any(|range| uruk_proto::RowRange::new(range.start.clone(), range.end.clone()).contains(key)),
                false => request.rows.contains(key),
            };
            let mut rows: Vec<(Bytes, Vec<Cell>)> = state
                .rows
                .iter()
                .filter(|((table, key), _)| *table == owned.table && owned.range.contains(key) && wanted(key))
                .map(|((_, key), cells)| (key.clone(), filtered(cells, &filter)))
                .filter(|(_, cells)| !cells.is_empty())
                .collect();
            if request.reverse {
                rows.reverse();
            }
            if request.rows_limit > 0 {
                rows.truncate(request.rows_limit as usize);
            }
            responses(&rows, state.cells_per_batch)
        };
        let (cut, unexplained) = match then {
            Then::Answer | Then::RowFails(_) => return Ok(Response::new(answer(responses).boxed())),
            Then::Break { batches } => (batches.min(responses.len()), false),
            Then::Unexplained { batches } => (batches.min(responses.len()), true),
        };
        let head = answer(responses[..cut].to_vec());
        if unexplained {
            let end = futures::stream::iter([Err(Status::unknown("as ordered"))]);
            return Ok(Response::new(head.chain(end).boxed()));
        }
        let (net, address, clock) = (self.cluster.net.clone(), self.address(), self.cluster.env.clock.clone());
        let end = futures::stream::once(async move {
            // Time for what was sent to arrive.
            clock.sleep(Duration::from_millis(1)).await;
            net.cut(&address);
            std::future::pending::<Result<ReadResponse, Status>>().await
        });
        Ok(Response::new(head.chain(end).boxed()))
    }

    async fn mutate_rows(&self, request: Request<MutateRowsRequest>) -> Result<Response<MutateRowsResponse>, Status> {
        let request = request.into_inner();
        let tablet = Server::tablet_id(&request.tablet);
        let bytes: usize = request.entries.iter().map(|entry| entry.row.len() + entry.mutations.len()).sum();
        {
            let mut state = self.cluster.lock();
            state.writes += 1;
            state.bytes_in_flight += bytes;
            state.bytes_in_flight_max = state.bytes_in_flight_max.max(state.bytes_in_flight);
            state.batch_rows.push(request.entries.len());
        }
        let held = Held { cluster: &self.cluster, bytes };
        let then = self.meet(tablet).await?;
        let mut errors = Vec::new();
        {
            let mut state = self.cluster.lock();
            let now = self.cluster.now();
            let owned = state.writable(self.number, tablet, now)?;
            let key = state.see(request.key.as_ref(), request.entries.len() as u64);
            for (index, entry) in request.entries.iter().enumerate() {
                let mut fail = |code, message: &str| {
                    errors.push(RowError { index: index as u32, code: code as u32, message: message.to_owned() });
                };
                let id = (key.client_id, key.sequence + index as u64);
                if let (0, Then::RowFails(code)) = (index, &then) {
                    fail(*code, "as ordered");
                } else if !owned.range.contains(&entry.row) {
                    fail(ErrorCode::StaleLocation, "the row is not in the tablet");
                } else if !state.remembered.contains_key(&id) {
                    match state.apply(owned.table, &entry.row, entry.mutations.clone()) {
                        Ok(()) => {
                            state.remembered.insert(id, Answer::Done);
                            state.performed.push((id.0, id.1, entry.row.clone()));
                        }
                        Err(error) => fail(error.code, &error.message),
                    }
                }
            }
        }
        drop(held);
        match then {
            Then::Break { .. } => self.broken().await,
            Then::Unexplained { .. } => Err(Status::unknown("as ordered")),
            Then::Answer | Then::RowFails(_) => Ok(Response::new(MutateRowsResponse { errors })),
        }
    }

    async fn check_and_mutate(
        &self,
        request: Request<CheckAndMutateRequest>,
    ) -> Result<Response<CheckAndMutateResponse>, Status> {
        let request = request.into_inner();
        let tablet = Server::tablet_id(&request.tablet);
        let then = self.meet(tablet).await?;
        let matched = {
            let mut state = self.cluster.lock();
            let now = self.cluster.now();
            let owned = state.writable(self.number, tablet, now)?;
            let key = state.see(request.key.as_ref(), 1);
            let id = (key.client_id, key.sequence);
            match state.remembered.get(&id) {
                Some(Answer::Matched(matched)) => *matched,
                _ => {
                    let filter = request.predicate.clone().unwrap_or_default();
                    let cells = state.rows.get(&(owned.table, request.row.clone()));
                    let matched = cells.is_some_and(|cells| !filtered(cells, &filter).is_empty());
                    let packed = if matched { request.true_mutations } else { request.false_mutations };
                    if !packed.is_empty() {
                        state.apply(owned.table, &request.row, packed)?;
                    }
                    state.remembered.insert(id, Answer::Matched(matched));
                    state.performed.push((id.0, id.1, request.row.clone()));
                    matched
                }
            }
        };
        match then {
            Then::Break { .. } => self.broken().await,
            Then::Unexplained { .. } => Err(Status::unknown("as ordered")),
            Then::Answer | Then::RowFails(_) => Ok(Response::new(CheckAndMutateResponse { matched })),
        }
    }

    async fn read_modify_write(
        &self,
        request: Request<ReadModifyWriteRequest>,
    ) -> Result<Response<ReadModifyWriteResponse>, Status> {
        let request = request.into_inner();
        let tablet = Server::tablet_id(&request.tablet);
        let then = self.meet(tablet).await?;
        let batch = {
            let mut state = self.cluster.lock();
            let now = self.cluster.now();
            let owned = state.writable(self.number, tablet, now)?;
            let key = state.see(request.key.as_ref(), 1);
            let id = (key.client_id, key.sequence);
            match state.remembered.get(&id) {
                Some(Answer::Cells(batch)) => batch.clone(),
                _ => {
                    let batch = modify(&mut state, owned.table, &request)?;
                    state.remembered.insert(id, Answer::Cells(batch.clone()));
                    state.performed.push((id.0, id.1, request.row.clone()));
                    batch
                }
            }
        };
        match then {
            Then::Break { .. } => self.broken().await,
            Then::Unexplained { .. } => Err(Status::unknown("as ordered")),
            Then::Answer | Then::RowFails(_) => Ok(Response::new(ReadModifyWriteResponse { batch })),
        }
    }
}

fn modify(state: &mut State, table: u64, request: &ReadModifyWriteRequest) -> Result<Bytes, RpcError> {
    let mut builder = BatchBuilder::new();
    builder.start_row(&request.row, false);
    for rule in &request.rules {
        let family = FamilyId(rule.family_id);
        let cells = state.rows.get(&(table, request.row.clone())).cloned().unwrap_or_default();
        let old = cells.iter().find(|c| c.family == family && c.qualifier == rule.qualifier);
        let old = old.map(|cell| cell.value.clone()).unwrap_or_default();
        let value: Bytes = match rule.rule.as_ref().expect("a rule has a kind") {
            Rule::Append(more) => [&old[..], &more[..]].concat().into(),
            Rule::Increment(by) => {
                let number = match old.len() {
                    0 => 0,
                    8 => i64::from_be_bytes(old[..].try_into().expect("8 bytes")),
                    _ => return Err(RpcError::new(ErrorCode::InvalidArgument, "not a 64-bit integer")),
                };
                Bytes::copy_from_slice(&number.wrapping_add(*by).to_be_bytes())
            }
        };
        let (qualifier, timestamp) = (rule.qualifier.clone(), SERVER_TIME);
        let set = Mutation::SetCell { family, qualifier, timestamp, value: value.clone() };
        state.apply(table, &request.row, uruk_proto::mutation::pack([&set]))?;
        builder.push(family, &rule.qualifier, state.timestamp, &value);
    }
    Ok(builder.finish())
}

fn answer(responses: Vec<ReadResponse>) -> impl Stream<Item = Result<ReadResponse, Status>> + Send {
    futures::stream::iter(responses.into_iter().map(Ok))
}

/// Bytes of a request that is being served.
struct Held<'a> {
    cluster: &'a Cluster,
    bytes: usize,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.cluster.lock().bytes_in_flight -= self.bytes;
    }
}
