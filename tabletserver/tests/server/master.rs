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
}

impl State {
    fn commit(&mut self, request: &CommitFilesRequest) -> Result<MetaRow, RpcError> {
        let key = request.tablet.unwrap_or_default();
        let refuse = |why: &str| Err(RpcError::new(ErrorCode::FailedPrecondition, why));
        let Some(row) = self.rows.get_mut(&key.tablet_id) else { return refuse("no such tablet") };
        if row.epoch != key.epoch || row.server_id != request.server_id {
            return refuse("stale epoch or server");
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
        self.with(|state| {
            let mut owned = request.tablets;
            owned.retain(|key| {
                let row = state.rows.get(&key.tablet_id);
                !state.owns_nothing && row.is_some_and(|r| r.epoch == key.epoch && r.server_id == request.server_id)
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
                Some(Fault::LostAfter | Fault::LostBefore) | None => state.commit(&request),
            };
            state.answers.insert(id, answer.clone());
            match fault {
                Some(Fault::LostAfter) => Err(lost()),
                Some(Fault::Refused | Fault::LostBefore) | None => {
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
        _: tonic::Request<uruk_proto::master::TabletSplitRequest>,
    ) -> Result<tonic::Response<uruk_proto::master::TabletSplitResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("tablet_split"))
    }

    async fn tablets_merged(
        &self,
        _: tonic::Request<uruk_proto::master::TabletsMergedRequest>,
    ) -> Result<tonic::Response<uruk_proto::master::TabletsMergedResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("tablets_merged"))
    }

    async fn procedure_declined(
        &self,
        _: tonic::Request<uruk_proto::master::ProcedureDeclinedRequest>,
    ) -> Result<tonic::Response<uruk_proto::master::ProcedureDeclinedResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("procedure_declined"))
    }
}
