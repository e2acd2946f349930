//! What tablet servers and their watching parents ask of the master.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use uruk_base::Moment;
use uruk_base::planted::{Planted, is_planted};
use uruk_consensus::Term;
use uruk_proto::master::master_control_server::MasterControl;
use uruk_proto::master::{
    CommitFilesRequest, CommitFilesResponse, GetTabletRequest, GetTabletResponse, ProcedureDeclinedRequest,
    ProcedureDeclinedResponse, RegisterRequest, RegisterResponse, RenewLeaseRequest, RenewLeaseResponse,
    ReportDeathRequest, ReportDeathResponse, TabletFailedRequest, TabletFailedResponse, TabletReleasedRequest,
    TabletReleasedResponse, TabletSplitRequest, TabletSplitResponse, TabletsMergedRequest, TabletsMergedResponse,
    TabletsOpenedRequest, TabletsOpenedResponse,
};
use uruk_proto::{Epoch, ErrorCode, RpcError, SeqNo, ServerId, TabletId, master};

use crate::assign::Now;
use crate::command::{Command, CommitFiles, FileShare, Registration, Reply, TabletKey, TabletSplit, TabletsMerged};
use crate::lease::Grant;
use crate::shared::Shared;
use crate::state::State;
use crate::state::procedures::ProcedureId;
use crate::state::row::{FileRef, MetaRow};
use crate::volatile::Volatile;

/// Serves tablet servers.
pub struct ControlService(pub Arc<Shared>);

fn key(message: Option<master::TabletKey>) -> Result<TabletKey, RpcError> {
    let message = message.ok_or_else(|| RpcError::new(ErrorCode::InvalidArgument, "no tablet given"))?;
    Ok(TabletKey { tablet: TabletId(message.tablet_id), epoch: Epoch(message.epoch) })
}

fn unexpected(reply: Reply) -> RpcError {
    RpcError::new(ErrorCode::Internal, format!("unexpected reply {reply:?}"))
}

/// What became of a renewal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Renewed {
    /// Whether it was granted.
    pub grant: Grant,
    /// Its server says for the first time that it ends on its own.
    pub is_new_drain: bool,
}

/// A renewal that came at `arrival`, before leadership of `term` was confirmed. Thousands come each second, and each
/// reports thousands of tablets: no row is looked at.
pub fn renew(
    state: &State,
    volatile: &mut Volatile,
    request: RenewLeaseRequest,
    arrival: Now,
    term: Term,
    now: Moment,
) -> Renewed {
    let server = ServerId(request.server_id);
    if state.servers.is_live(server) {
        volatile.leases.admit(server, arrival.moment);
    }
    let grant = volatile.leases.grant(server, arrival.moment, arrival.wall_micros, term);
    if grant != Grant::Granted {
        return Renewed { grant, is_new_drain: false };
    }
    volatile.report(server, request.report_number, request.load.unwrap_or_default(), now);
    Renewed { grant, is_new_drain: request.draining && volatile.draining.insert(server) }
}

impl ControlService {
    async fn register(&self, request: RegisterRequest) -> Result<RegisterResponse, RpcError> {
        if request.address.is_empty() {
            return Err(RpcError::new(ErrorCode::InvalidArgument, "a tablet server registers with its address"));
        }
        let registration = Registration {
            nonce: request.nonce,
            address: request.address,
            zone: request.zone,
            version: request.version,
            pid: request.pid,
            parent_pid: request.parent_pid,
        };
        let address = registration.address.clone();
        let micros = self.0.env.clock.wall_micros();
        match self.0.propose(Command::Register { registration, micros }).await? {
            Reply::Registered(server) => {
                tracing::info!(%server, address, "registered a tablet server");
                let tuning = &self.0.tuning;
                Ok(RegisterResponse {
                    server_id: server.0,
                    lease_ms: tuning.lease_ms,
                    renewal_ms: tuning.renewal_ms,
                    clock_rate_error_ppm: tuning.clock_rate_error_ppm,
                })
            }
            reply => Err(unexpected(reply)),
        }
    }

    async fn renew_lease(&self, request: RenewLeaseRequest) -> Result<RenewLeaseResponse, RpcError> {
        let arrival = self.0.now();
        self.0.require_leader()?;
        // Only after the renewal arrived: else a leader that was cut off would go on granting.
        let term = match is_planted(Planted::UnconfirmedRenewal) {
            false => self.0.confirm_leadership().await?,
            true => self.0.consensus.leadership().borrow().term,
        };
        let renewed = self.0.consensus.read(|state| {
            let mut volatile = self.0.volatile.lock();
            renew(state, &mut volatile, request, arrival, term, self.0.env.clock.now())
        });
        if renewed.is_new_drain {
            self.0.wake.notify_one();
        }
        let granted = match renewed.grant {
            Grant::NotLeader => return Err(RpcError::not_leader(None)),
            Grant::Granted => {
                self.0.metrics.leases_granted.inc();
                true
            }
            Grant::Refused => {
                self.0.metrics.leases_refused.inc();
                false
            }
        };
        Ok(RenewLeaseResponse { granted, master: self.0.address.clone() })
    }

    async fn report_death(&self, request: ReportDeathRequest) -> Result<(), RpcError> {
        tracing::info!(nonce = request.nonce, how = request.how, "a watching parent reports its child's death");
        let micros = self.0.env.clock.wall_micros();
        self.0.propose(Command::ReportDeath { nonce: request.nonce, how: request.how, micros }).await?;
        Ok(())
    }

    async fn tablets_opened(&self, request: TabletsOpenedRequest) -> Result<TabletsOpenedResponse, RpcError> {
        let tablets = request.tablets.into_iter().map(|tablet| key(Some(tablet))).collect::<Result<_, _>>()?;
        let micros = self.0.env.clock.wall_micros();
        match self.0.propose(Command::Opened { server: ServerId(request.server_id), tablets, micros }).await? {
            Reply::Owned(owned) => {
                let message = |key: TabletKey| master::TabletKey { tablet_id: key.tablet.0, epoch: key.epoch.0 };
                Ok(TabletsOpenedResponse { owned: owned.into_iter().map(message).collect() })
            }
            reply => Err(unexpected(reply)),
        }
    }

    async fn tablet_failed(&self, request: TabletFailedRequest) -> Result<(), RpcError> {
        let (server, key) = (ServerId(request.server_id), key(request.tablet)?);
        tracing::error!(tablet = %key.tablet, %server, reason = request.reason, "a tablet cannot be served");
        let lost_recovery_files = request.lost_recovery_files.into_iter().map(Into::into).collect();
        let micros = self.0.env.clock.wall_micros();
        let command = Command::Fail { server, key, reason: request.reason, lost_recovery_files, micros };
        self.0.propose(command).await?;
        Ok(())
    }

    async fn commit_files(&self, request: CommitFilesRequest) -> Result<MetaRow, RpcError> {
        let files = |files: Vec<master::FileRef>| files.into_iter().map(FileRef::from_message).collect();
        let commit = CommitFiles {
            server: ServerId(request.server_id),
            key: key(request.tablet)?,
            schema_version: request.schema_version,
            number: request.command,
            flushed_seq: SeqNo(request.flushed_seq),
            memory_file: (!request.memory_file.is_empty()).then(|| request.memory_file.into()),
            remove: request.remove.into_iter().map(Into::into).collect(),
            add: request.add.into_iter().map(|group| (group.locality_group, files(group.files))).collect(),
            logs_done: request.logs_done.into_iter().map(ServerId).collect(),
        };
        let (server, command) = (commit.server, Box::new(Command::CommitFiles(Box::new(commit))));
        match self.0.propose(Command::Told { server, report_number: request.report_number, command }).await? {
            Reply::Row(row) => Ok(*row),
            reply => Err(unexpected(reply)),
        }
    }

    async fn tablet_split(&self, request: TabletSplitRequest) -> Result<[MetaRow; 2], RpcError> {
        let share = |share: master::FileShare| FileShare {
            path: share.path.into(),
            low: share.low,
            left_bytes: share.left_bytes,
            left_cells: share.left_cells,
            right_bytes: share.right_bytes,
            right_cells: share.right_cells,
        };
        let split = TabletSplit {
            server: ServerId(request.server_id),
            key: key(request.tablet)?,
            procedure: ProcedureId(request.procedure),
            at: request.at,
            files: request.files.into_iter().map(share).collect(),
            flushed_seq: SeqNo(request.flushed_seq),
            micros: self.0.env.clock.wall_micros(),
        };
        let (server, parent) = (split.server, split.key.tablet);
        let command = Box::new(Command::TabletSplit(Box::new(split)));
        match self.0.propose(Command::Told { server, report_number: request.report_number, command }).await? {
            Reply::Split(rows) => {
                tracing::info!(tablet = %parent, left = %rows[0].tablet, right = %rows[1].tablet, "split a tablet");
                Ok(*rows)
            }
            reply => Err(unexpected(reply)),
        }
    }

    async fn tablets_merged(&self, request: TabletsMergedRequest) -> Result<MetaRow, RpcError> {
        let merged = TabletsMerged {
            server: ServerId(request.server_id),
            left: key(request.left)?,
            right: key(request.right)?,
            procedure: ProcedureId(request.procedure),
            left_flushed_seq: SeqNo(request.left_flushed_seq),
            right_flushed_seq: SeqNo(request.right_flushed_seq),
            memory_file: (!request.memory_file.is_empty()).then(|| request.memory_file.into()),
            micros: self.0.env.clock.wall_micros(),
        };
        let (server, left, right) = (merged.server, merged.left.tablet, merged.right.tablet);
        let command = Box::new(Command::TabletsMerged(Box::new(merged)));
        match self.0.propose(Command::Told { server, report_number: request.report_number, command }).await? {
            Reply::Row(row) => {
                tracing::info!(%left, %right, tablet = %row.tablet, "merged two tablets");
                Ok(*row)
            }
            reply => Err(unexpected(reply)),
        }
    }

    async fn procedure_declined(&self, request: ProcedureDeclinedRequest) -> Result<(), RpcError> {
        let (server, procedure) = (ServerId(request.server_id), ProcedureId(request.procedure));
        let (reason, micros) = (request.reason, self.0.env.clock.wall_micros());
        tracing::info!(%procedure, %server, reason, "a procedure is declined");
        self.0.propose(Command::DeclineProcedure { server, procedure, reason, micros }).await?;
        Ok(())
    }

    async fn get_tablet(&self, request: GetTabletRequest) -> Result<MetaRow, RpcError> {
        self.0.read_linearizable().await?;
        let tablet = TabletId(request.tablet_id);
        let row = self.0.consensus.read(|state| state.row(tablet).cloned());
        row.ok_or_else(|| RpcError::new(ErrorCode::NotFound, format!("{tablet} does not exist")))
    }
}

#[tonic::async_trait]
impl MasterControl for ControlService {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<RegisterResponse>, Status> {
        Ok(Response::new(self.register(request.into_inner()).await?))
    }

    async fn renew_lease(&self, request: Request<RenewLeaseRequest>) -> Result<Response<RenewLeaseResponse>, Status> {
        Ok(Response::new(self.renew_lease(request.into_inner()).await?))
    }

    async fn report_death(
        &self,
        request: Request<ReportDeathRequest>,
    ) -> Result<Response<ReportDeathResponse>, Status> {
        self.report_death(request.into_inner()).await?;
        Ok(Response::new(ReportDeathResponse {}))
    }

    async fn tablets_opened(
        &self,
        request: Request<TabletsOpenedRequest>,
    ) -> Result<Response<TabletsOpenedResponse>, Status> {
        Ok(Response::new(self.tablets_opened(request.into_inner()).await?))
    }

    async fn tablet_failed(
        &self,
        request: Request<TabletFailedRequest>,
    ) -> Result<Response<TabletFailedResponse>, Status> {
        self.tablet_failed(request.into_inner()).await?;
        Ok(Response::new(TabletFailedResponse {}))
    }

    async fn commit_files(
        &self,
        request: Request<CommitFilesRequest>,
    ) -> Result<Response<CommitFilesResponse>, Status> {
        let row = self.commit_files(request.into_inner()).await?;
        Ok(Response::new(CommitFilesResponse { row: Some(row.to_message()) }))
    }

    async fn tablet_released(
        &self,
        request: Request<TabletReleasedRequest>,
    ) -> Result<Response<TabletReleasedResponse>, Status> {
        let request = request.into_inner();
        let server = ServerId(request.server_id);
        let command = Box::new(Command::Release { server, key: key(request.tablet)? });
        self.0.propose(Command::Told { server, report_number: request.report_number, command }).await?;
        Ok(Response::new(TabletReleasedResponse {}))
    }

    async fn get_tablet(&self, request: Request<GetTabletRequest>) -> Result<Response<GetTabletResponse>, Status> {
        let row = self.get_tablet(request.into_inner()).await?;
        Ok(Response::new(GetTabletResponse { row: Some(row.to_message()) }))
    }

    async fn tablet_split(
        &self,
        request: Request<TabletSplitRequest>,
    ) -> Result<Response<TabletSplitResponse>, Status> {
        let [left, right] = self.tablet_split(request.into_inner()).await?;
        Ok(Response::new(TabletSplitResponse { left: Some(left.to_message()), right: Some(right.to_message()) }))
    }

    async fn tablets_merged(
        &self,
        request: Request<TabletsMergedRequest>,
    ) -> Result<Response<TabletsMergedResponse>, Status> {
        let row = self.tablets_merged(request.into_inner()).await?;
        Ok(Response::new(TabletsMergedResponse { row: Some(row.to_message()) }))
    }

    async fn procedure_declined(
        &self,
        request: Request<ProcedureDeclinedRequest>,
    ) -> Result<Response<ProcedureDeclinedResponse>, Status> {
        self.procedure_declined(request.into_inner()).await?;
        Ok(Response::new(ProcedureDeclinedResponse {}))
    }
}
