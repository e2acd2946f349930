//! A master that keeps meta rows and applies commands as the real one does, with switches for its
//! faults.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tonic::{Request, Response, Status};
use uruk_proto::master::master_control_server::{MasterControl, MasterControlServer};
use uruk_proto::master::*;
use uruk_proto::{ErrorCode, RpcError};

/// What happens to the next call of a kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It is not done, and its caller does not know that.
    LostBefore,
    /// It is done, and its caller does not know that.
    LostAfter,
    /// It is refused.
    Refused,
    /// Refused, though the row names its files, as after an attempt that nobody heard of.
    RefusedButNamed,
}

#[derive(Debug, Default)]
pub struct State {
    pub rows: BTreeMap<u64, MetaRow>,
    pub last_server: u64,
    /// Renewals get no answer while set.
    pub hangs_renewals: bool,
    pub refuses_renewals: bool,
    /// TabletsOpened gets no answer while set.
    pub hangs_opened: bool,
    /// TabletsOpened is refused while set.
    pub refuses_opened: bool,
    /// TabletsOpened answers that nothing is owned.
    pub owns_nothing: bool,
    /// CommitFiles is answered "unavailable" while set.
    pub hangs_commits: bool,
    /// So is it for compactions while set; they are noted in `compactions`.
    pub hangs_compactions: bool,
    pub compactions: Vec<CommitFilesRequest>,
    /// CommitFiles is answered "unavailable" once so many were taken.
    pub commits_max: Option<usize>,
    pub commit_faults: VecDeque<Fault>,
    /// CommitFiles of these servers is answered "fenced".
    pub dead: std::collections::BTreeSet<u64>,
    pub commits: Vec<CommitFilesRequest>,
    /// CommitFiles made under another version of the schema is refused.
    pub schema_version: Option<u64>,
    pub opened_calls: Vec<Vec<TabletKey>>,
    pub released: Vec<TabletKey>,
    /// Servers that said that they are about to end; and whether each release came after that.
    pub draining: std::collections::BTreeSet<u64>,
    pub released_draining: Vec<bool>,
    /// The report number of each release.
    pub released_reports: Vec<u64>,
    pub failed: Vec<TabletFailedRequest>,
    pub loads: BTreeMap<u64, ServerLoad>,
    /// Of each report: server, number, pinned files.
    pub reports: Vec<(u64, u64, Vec<String>)>,
    pub deaths: Vec<ReportDeathRequest>,
    /// Reports of deaths are for another master while set.
    pub leader: Option<String>,
    pub lease_ms: u32,
    pub renewal_ms: u32,
    /// Of each command by server and number: repeats get it again.
    pub answers: BTreeMap<(u64, u64), Result<MetaRow, RpcError>>,
    /// Splits and merges, by id.
    pub procedures: BTreeMap<u64, Procedure>,
    pub last_tablet: u64,
    /// TabletSplit and TabletsMerged are answered "unavailable" while set.
    pub hangs_replacements: bool,
    /// So are they after they were done.
    pub hangs_replacement_replies: bool,
    pub replacement_faults: VecDeque<Fault>,
    /// Attempts of them, by procedure.
    pub attempts: Vec<u64>,
    pub split_requests: Vec<TabletSplitRequest>,
    pub merge_requests: Vec<TabletsMergedRequest>,
    /// ProcedureDeclined is answered "unavailable" while set.
    pub hangs_declines: bool,
    pub declined: Vec<(u64, String)>,
}

/// A split or merge.
#[derive(Clone, Debug)]
pub struct Procedure {
    /// What it takes: one tablet, or two neighbours.
    pub tablets: Vec<u64>,
    /// What it has put in their place, once it is done.
    pub results: Option<Vec<MetaRow>>,
    pub is_over: bool,
}

#[derive(Clone, Debug)]
pub struct FakeMaster(pub Arc<Mutex<State>>);

impl FakeMaster {
    pub fn new() -> FakeMaster {
        FakeMaster(Arc::new(Mutex::new(State { lease_ms: 3000, renewal_ms: 100, ..State::default() })))
    }

    pub fn routes(&self) -> tonic::service::Routes {
        tonic::service::Routes::new(MasterControlServer::new(self.clone()))
    }

    pub fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.0.lock())
    }

    pub fn row(&self, tablet: u64) -> MetaRow {
        self.with(|state| state.rows[&tablet].clone())
    }

    /// Starts a split of one tablet, or a merge of two.
    pub fn start(&self, tablets: &[u64]) -> u64 {
        self.with(|state| {
            let id = state.procedures.len() as u64 + 1;
            for tablet in tablets {
                state.rows.get_mut(tablet).into_iter().for_each(|row| row.procedure = id);
            }
            state.procedures.insert(id, Procedure { tablets: tablets.to_vec(), results: None, is_over: false });
            id
        })
    }

    /// What a procedure has made, by range.
    pub fn results(&self, procedure: u64) -> Option<Vec<MetaRow>> {
        self.with(|state| state.procedures[&procedure].results.clone())
    }
}

impl State {
    fn commit(&mut self, request: &CommitFilesRequest) -> Result<MetaRow, RpcError> {
        let key = request.tablet.unwrap_or_default();
        let refuse = |why: &str| Err(RpcError::new(ErrorCode::FailedPrecondition, why));
        let Some(row) = self.rows.get_mut(&key.tablet_id) else { return refuse("no such tablet") };
        if row.epoch != key.epoch || row.server_id != request.server_id {
            return refuse("stale epoch or server");
        }
        if self.schema_version.is_some_and(|version| version != request.schema_version) {
            return refuse("another schema version");
        }
        let named = |path: &String| row.groups.iter().flat_map(|g| &g.files).any(|f| f.path == *path);
        if !request.remove.iter().all(named) {
            return refuse("a file to remove is not named");
        }
        for group in &mut row.groups {
            group.files.retain(|file| !request.remove.contains(&file.path));
        }
        for add in &request.add {
            match row.groups.iter_mut().find(|group| group.locality_group == add.locality_group) {
                Some(group) => group.files.extend(add.files.clone()),
                None => row.groups.push(add.clone()),
            }
        }
        for group in &mut row.groups {
            group.files.sort_by_key(|file| std::cmp::Reverse(file.max_seq));
        }
        row.flushed_seq = row.flushed_seq.max(request.flushed_seq);
        if !request.memory_file.is_empty() {
            row.memory_file = request.memory_file.clone();
        }
        row.needed_logs.retain(|log| !request.logs_done.contains(log));
        Ok(row.clone())
    }
}

/// `range` of a stored reference, clipped; None when nothing is left.
fn clipped(file: &FileRef, start: &bytes::Bytes, end: &bytes::Bytes) -> Option<FileRef> {
    let range = uruk_proto::RowRange::new(file.low.clone(), file.high.clone());
    let range = range.intersect(&uruk_proto::RowRange::new(start.clone(), end.clone()));
    (!range.is_empty()).then(|| FileRef { low: range.start, high: range.end, ..file.clone() })
}

impl State {
    /// The rows that a procedure's server gives up, if all is as the command says.
    fn replaceable(&self, server: u64, procedure: u64, keys: &[TabletKey]) -> Result<Vec<MetaRow>, RpcError> {
        let refuse = |why: &str| Err(RpcError::new(ErrorCode::FailedPrecondition, why));
        let tablets: Vec<u64> = keys.iter().map(|key| key.tablet_id).collect();
        match self.procedures.get(&procedure) {
            Some(known) if !known.is_over && known.tablets == tablets => {}
            Some(_) | None => return refuse("the procedure does not run"),
        }
        let mut rows = Vec::new();
        for key in keys {
            match self.rows.get(&key.tablet_id) {
                Some(row)
                    if row.epoch == key.epoch && row.server_id == server && row.state == TabletState::Open as i32 =>
                {
                    rows.push(row.clone());
                }
                Some(_) | None => return refuse("stale epoch, server or state"),
            }
        }
        match rows.iter().all(|row| row.needed_logs == [server]) {
            true => Ok(rows),
            false => refuse("other logs are needed"),
        }
    }

    fn take_the_place(&mut self, procedure: u64, results: Vec<MetaRow>) -> Vec<MetaRow> {
        let known = self.procedures.get_mut(&procedure).expect("looked at before");
        (known.results, known.is_over) = (Some(results.clone()), true);
        for tablet in known.tablets.clone() {
            self.rows.remove(&tablet);
        }
        self.rows.extend(results.iter().map(|row| (row.tablet_id, row.clone())));
        results
    }

    fn new_tablet(&mut self) -> u64 {
        self.last_tablet = self.last_tablet.max(1000) + 1;
        self.last_tablet
    }

    fn split(&mut self, request: &TabletSplitRequest) -> Result<Vec<MetaRow>, RpcError> {
        let refuse = |why: &str| Err(RpcError::new(ErrorCode::FailedPrecondition, why));
        if let Some(results) = self.procedures.get(&request.procedure).and_then(|known| known.results.clone()) {
            return Ok(results);
        }
        let row = self.replaceable(request.server_id, request.procedure, &[request.tablet.unwrap_or_default()])?;
        let row = row.into_iter().next().expect("one");
        let named = row.groups.iter().flat_map(|group| &group.files).map(|file| (file.path.clone(), file.low.clone()));
        let shared = request.files.iter().map(|file| (file.path.clone(), file.low.clone()));
        let mut named: Vec<_> = named.collect();
        let mut shared: Vec<_> = shared.collect();
        named.sort();
        shared.sort();
        if named != shared || row.flushed_seq != request.flushed_seq {
            return refuse("other files, or flushed less far");
        }
        if request.at <= row.start || (!row.end.is_empty() && request.at >= row.end) {
            return refuse("not strictly inside");
        }
        let mut halves = Vec::new();
        for (start, end, is_left) in
            [(row.start.clone(), request.at.clone(), true), (request.at.clone(), row.end.clone(), false)]
        {
            let mut half = MetaRow {
                tablet_id: self.new_tablet(),
                epoch: row.epoch + 1,
                state: TabletState::Opening as i32,
                start: start.clone(),
                end: end.clone(),
                procedure: 0,
                ..row.clone()
            };
            for group in &mut half.groups {
                let of_half = group.files.iter().filter_map(|file| {
                    let is_it = |share: &&FileShare| share.path == file.path && share.low == file.low;
                    let share = request.files.iter().find(is_it).expect("compared before");
                    let (bytes, cells) = match is_left {
                        true => (share.left_bytes, share.left_cells),
                        false => (share.right_bytes, share.right_cells),
                    };
                    let file = clipped(file, &start, &end).filter(|_| bytes > 0)?;
                    Some(FileRef { bytes, cells, ..file })
                });
                group.files = of_half.collect();
            }
            half.groups.retain(|group| !group.files.is_empty());
            halves.push(half);
        }
        Ok(self.take_the_place(request.procedure, halves))
    }

    fn merge(&mut self, request: &TabletsMergedRequest) -> Result<Vec<MetaRow>, RpcError> {
        let refuse = |why: &str| Err(RpcError::new(ErrorCode::FailedPrecondition, why));
        if let Some(results) = self.procedures.get(&request.procedure).and_then(|known| known.results.clone()) {
            return Ok(results);
        }
        let keys = [request.left.unwrap_or_default(), request.right.unwrap_or_default()];
        let rows = self.replaceable(request.server_id, request.procedure, &keys)?;
        let (left, right) = (&rows[0], &rows[1]);
        if left.flushed_seq != request.left_flushed_seq || right.flushed_seq != request.right_flushed_seq {
            return refuse("flushed less far");
        }
        if left.end != right.start || left.end.is_empty() {
            return refuse("no neighbours");
        }
        if request.memory_file.is_empty() && rows.iter().any(|row| !row.memory_file.is_empty()) {
            return refuse("what a half remembers would be forgotten");
        }
        let mut groups: BTreeMap<u32, LocalityGroupFiles> = BTreeMap::new();
        for group in left.groups.iter().chain(&right.groups) {
            let new = || LocalityGroupFiles { locality_group: group.locality_group, files: Vec::new() };
            groups.entry(group.locality_group).or_insert_with(new).files.extend(group.files.clone());
        }
        let merged = MetaRow {
            tablet_id: self.new_tablet(),
            epoch: left.epoch.max(right.epoch) + 1,
            state: TabletState::Opening as i32,
            end: right.end.clone(),
            flushed_seq: left.flushed_seq.max(right.flushed_seq),
            memory_file: request.memory_file.clone(),
            procedure: 0,
            groups: groups.into_values().collect(),
            ..left.clone()
        };
        Ok(self.take_the_place(request.procedure, vec![merged]))
    }

    /// One attempt of a command that replaces tablets, with its faults.
    fn replace(
        &mut self,
        (server, procedure): (u64, u64),
        command: impl FnOnce(&mut State) -> Result<Vec<MetaRow>, RpcError>,
    ) -> Result<Vec<MetaRow>, Status> {
        self.attempts.push(procedure);
        if self.dead.contains(&server) {
            return Err(RpcError::new(ErrorCode::Fenced, "the server is dead").into());
        }
        if self.hangs_replacements {
            return Err(RpcError::new(ErrorCode::Unavailable, "no quorum").into());
        }
        let fault = self.replacement_faults.pop_front();
        match fault {
            Some(Fault::LostBefore) => return Err(Status::unavailable("connection reset")),
            Some(Fault::Refused | Fault::RefusedButNamed) => {
                return Err(RpcError::new(ErrorCode::FailedPrecondition, "refused on purpose").into());
            }
            Some(Fault::LostAfter) | None => {}
        }
        let answer = command(self)?;
        match fault == Some(Fault::LostAfter) || self.hangs_replacement_replies {
            true => Err(Status::unavailable("connection reset")),
            false => Ok(answer),
        }
    }
}

async fn hang() {
    std::future::pending().await
}

#[tonic::async_trait]
impl MasterControl for FakeMaster {
    async fn register(&self, _: Request<RegisterRequest>) -> Result<Response<RegisterResponse>, Status> {
        self.with(|state| {
            state.last_server += 1;
            Ok(Response::new(RegisterResponse {
                server_id: state.last_server,
                lease_ms: state.lease_ms,
                renewal_ms: state.renewal_ms,
                clock_rate_error_ppm: 1000,
            }))
        })
    }

    async fn renew_lease(&self, request: Request<RenewLeaseRequest>) -> Result<Response<RenewLeaseResponse>, Status> {
        let request = request.into_inner();
        if self.with(|state| state.hangs_renewals) {
            hang().await;
        }
        self.with(|state| {
            if request.draining {
                state.draining.insert(request.server_id);
            }
            let load = request.load.unwrap_or_default();
            state.reports.push((request.server_id, request.report_number, load.pinned_files.clone()));
            state.loads.insert(request.server_id, load);
            Ok(Response::new(RenewLeaseResponse { granted: !state.refuses_renewals, master: "m".into() }))
        })
    }

    async fn report_death(
        &self,
        request: Request<ReportDeathRequest>,
    ) -> Result<Response<ReportDeathResponse>, Status> {
        self.with(|state| {
            if state.leader.is_some() {
                return Err(RpcError::not_leader(state.leader.clone()).into());
            }
            state.deaths.push(request.into_inner());
            Ok(Response::new(ReportDeathResponse {}))
        })
    }

    async fn tablets_opened(
        &self,
        request: Request<TabletsOpenedRequest>,
    ) -> Result<Response<TabletsOpenedResponse>, Status> {
        let request = request.into_inner();
        self.with(|state| state.opened_calls.push(request.tablets.clone()));
        if self.with(|state| state.hangs_opened) {
            hang().await;
        }
        if self.with(|state| state.refuses_opened) {
            return Err(RpcError::new(ErrorCode::FailedPrecondition, "refused on purpose").into());
        }
        self.with(|state| {
            let mut owned = request.tablets;
            owned.retain(|key| {
                let row = state.rows.get_mut(&key.tablet_id);
                let row = row.filter(|row| row.epoch == key.epoch && row.server_id == request.server_id);
                let is_owned = !state.owns_nothing && row.is_some();
                if let Some(row) = row.filter(|_| is_owned) {
                    row.state = TabletState::Open as i32;
                }
                is_owned
            });
            Ok(Response::new(TabletsOpenedResponse { owned }))
        })
    }

    async fn tablet_failed(
        &self,
        request: Request<TabletFailedRequest>,
    ) -> Result<Response<TabletFailedResponse>, Status> {
        self.with(|state| state.failed.push(request.into_inner()));
        Ok(Response::new(TabletFailedResponse {}))
    }

    async fn commit_files(
        &self,
        request: Request<CommitFilesRequest>,
    ) -> Result<Response<CommitFilesResponse>, Status> {
        let request = request.into_inner();
        let lost = || Status::unavailable("connection reset");
        let is_compaction = !request.remove.is_empty();
        let hangs = |state: &mut State| {
            if is_compaction {
                state.compactions.push(request.clone());
            }
            let is_full = state.commits_max.is_some_and(|max| state.commits.len() >= max);
            state.hangs_commits || is_full || (is_compaction && state.hangs_compactions)
        };
        if self.with(hangs) {
            return Err(RpcError::new(ErrorCode::Unavailable, "no quorum").into());
        }
        self.with(|state| {
            if state.dead.contains(&request.server_id) {
                return Err(RpcError::new(ErrorCode::Fenced, "the server is dead").into());
            }
            let id = (request.server_id, request.command);
            if let Some(answer) = state.answers.get(&id) {
                let row = answer.clone()?;
                return Ok(Response::new(CommitFilesResponse { row: Some(row) }));
            }
            let fault = state.commit_faults.pop_front();
            if fault == Some(Fault::LostBefore) {
                return Err(lost());
            }
            state.commits.push(request.clone());
            let answer = match fault {
                Some(Fault::Refused) => Err(RpcError::new(ErrorCode::FailedPrecondition, "refused on purpose")),
                Some(Fault::RefusedButNamed) => {
                    let flushed_seq = state.rows[&request.tablet.unwrap_or_default().tablet_id].flushed_seq;
                    state.commit(&request).map(|row| {
                        state.rows.insert(row.tablet_id, MetaRow { flushed_seq, ..row });
                    })?;
                    Err(RpcError::new(ErrorCode::FailedPrecondition, "refused on purpose"))
                }
                Some(Fault::LostAfter | Fault::LostBefore) | None => state.commit(&request),
            };
            state.answers.insert(id, answer.clone());
            match fault {
                Some(Fault::LostAfter) => Err(lost()),
                Some(Fault::Refused | Fault::RefusedButNamed | Fault::LostBefore) | None => {
                    Ok(Response::new(CommitFilesResponse { row: Some(answer?) }))
                }
            }
        })
    }

    async fn tablet_released(
        &self,
        request: Request<TabletReleasedRequest>,
    ) -> Result<Response<TabletReleasedResponse>, Status> {
        let request = request.into_inner();
        self.with(|state| {
            state.released.push(request.tablet.unwrap_or_default());
            state.released_reports.push(request.report_number);
            state.released_draining.push(state.draining.contains(&request.server_id));
        });
        Ok(Response::new(TabletReleasedResponse {}))
    }

    async fn get_tablet(&self, request: Request<GetTabletRequest>) -> Result<Response<GetTabletResponse>, Status> {
        let id = request.into_inner().tablet_id;
        let row = self.with(|state| state.rows.get(&id).cloned());
        let missing = || RpcError::new(ErrorCode::NotFound, "no such tablet");
        Ok(Response::new(GetTabletResponse { row: Some(row.ok_or_else(missing)?) }))
    }

    async fn tablet_split(
        &self,
        request: Request<TabletSplitRequest>,
    ) -> Result<Response<TabletSplitResponse>, Status> {
        let request = request.into_inner();
        self.with(|state| {
            state.split_requests.push(request.clone());
            let halves = state.replace((request.server_id, request.procedure), |state| state.split(&request))?;
            Ok(Response::new(TabletSplitResponse { left: Some(halves[0].clone()), right: Some(halves[1].clone()) }))
        })
    }

    async fn tablets_merged(
        &self,
        request: Request<TabletsMergedRequest>,
    ) -> Result<Response<TabletsMergedResponse>, Status> {
        let request = request.into_inner();
        self.with(|state| {
            state.merge_requests.push(request.clone());
            let merged = state.replace((request.server_id, request.procedure), |state| state.merge(&request))?;
            Ok(Response::new(TabletsMergedResponse { row: Some(merged[0].clone()) }))
        })
    }

    async fn procedure_declined(
        &self,
        request: Request<ProcedureDeclinedRequest>,
    ) -> Result<Response<ProcedureDeclinedResponse>, Status> {
        let request = request.into_inner();
        self.with(|state| {
            if state.hangs_declines {
                return Err(RpcError::new(ErrorCode::Unavailable, "no quorum").into());
            }
            state.declined.push((request.procedure, request.reason));
            if let Some(known) = state.procedures.get_mut(&request.procedure) {
                known.is_over = true;
            }
            for row in state.rows.values_mut().filter(|row| row.procedure == request.procedure) {
                row.procedure = 0;
            }
            Ok(Response::new(ProcedureDeclinedResponse {}))
        })
    }
}
