//! What clients ask of the master.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use uruk_proto::master::master_server::Master;
use uruk_proto::master::{
    AlterTableRequest, BalanceRequest, BalanceResponse, CheckRequest, CheckResponse, CreateTableRequest,
    DeleteTableRequest, DeleteTableResponse, DrainServerRequest, DrainServerResponse, GetTableRequest,
    ListTablesRequest, ListTablesResponse, LocateRequest, LocateResponse, MergeTabletsRequest, MoveTabletRequest,
    ProcedureInfo, SplitTabletRequest, StatusRequest, StatusResponse, TableInfo, TabletLocation,
};
use uruk_proto::{ErrorCode, RpcError, TableId};

use crate::shared::Shared;
use crate::state::State;
use crate::state::row::{MetaRow, RowKey};
use crate::{check, orders, procedures, status, tables};

/// Most tablets in one answer.
const LOCATE_MAX: usize = 1_000;

/// Serves clients.
pub struct ClientService(pub Arc<Shared>);

impl ClientService {
    /// Any replica answers; what a follower does not know the leader may.
    async fn locate(&self, request: LocateRequest) -> Result<LocateResponse, RpcError> {
        if request.from_leader {
            self.0.read_linearizable().await?;
        }
        let table = TableId(request.table_id);
        let limit = (request.limit.max(1) as usize).min(LOCATE_MAX);
        let located = self.0.consensus.read(|state| locate(state, table, &request.row, limit));
        match located {
            Some(tablets) => Ok(LocateResponse { tablets }),
            None => {
                self.0.require_leader()?;
                Err(RpcError::new(ErrorCode::NotFound, format!("{table} does not exist")))
            }
        }
    }

    async fn get_table(&self, request: GetTableRequest) -> Result<TableInfo, RpcError> {
        self.0.read_linearizable().await?;
        let found = self.0.consensus.read(|state| Some(tables::info(state, tables::find(state, &request)?)));
        found.ok_or_else(|| {
            let what = match request.table_id {
                0 => request.name,
                id => TableId(id).to_string(),
            };
            RpcError::new(ErrorCode::NotFound, format!("table {what} does not exist"))
        })
    }
}

fn locate(state: &State, table: TableId, row: &[u8], limit: usize) -> Option<Vec<TabletLocation>> {
    if state.tables.get(table)?.is_deleting() {
        return None;
    }
    let first = state.meta.locate(table, row)?;
    let mut located = vec![location(state, first)];
    if limit > 1 && !first.range.end.is_empty() {
        let from = RowKey { table, start: first.range.end.clone() };
        let rows = state.meta.rows_from(from).take_while(|row| row.table == table).take(limit - 1);
        located.extend(rows.map(|row| location(state, row)));
    }
    Some(located)
}

fn location(state: &State, row: &MetaRow) -> TabletLocation {
    let server = row.owner().filter(|_| row.may_be_served());
    let address = server.and_then(|server| state.servers.address(server)).unwrap_or_default();
    TabletLocation {
        tablet_id: row.tablet.0,
        start: row.range.start.clone(),
        end: row.range.end.clone(),
        epoch: row.epoch.0,
        address: address.to_owned(),
        server_id: server.unwrap_or_default().0,
    }
}

#[tonic::async_trait]
impl Master for ClientService {
    async fn locate(&self, request: Request<LocateRequest>) -> Result<Response<LocateResponse>, Status> {
        Ok(Response::new(self.locate(request.into_inner()).await?))
    }

    async fn create_table(&self, request: Request<CreateTableRequest>) -> Result<Response<TableInfo>, Status> {
        Ok(Response::new(tables::create(&self.0, request.into_inner()).await?))
    }

    async fn get_table(&self, request: Request<GetTableRequest>) -> Result<Response<TableInfo>, Status> {
        Ok(Response::new(self.get_table(request.into_inner()).await?))
    }

    async fn list_tables(&self, _: Request<ListTablesRequest>) -> Result<Response<ListTablesResponse>, Status> {
        self.0.read_linearizable().await?;
        let tables = self.0.consensus.read(|state| {
            let tables = state.tables.all().filter(|table| !table.is_deleting());
            tables.map(|table| tables::info(state, table)).collect()
        });
        Ok(Response::new(ListTablesResponse { tables }))
    }

    async fn delete_table(
        &self,
        request: Request<DeleteTableRequest>,
    ) -> Result<Response<DeleteTableResponse>, Status> {
        tables::delete(&self.0, request.into_inner()).await?;
        Ok(Response::new(DeleteTableResponse {}))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        // Leases and loads are the leader's alone.
        self.0.require_leader()?;
        let path = request.into_inner().path;
        match status::json(&self.0, &path).await {
            Some(json) => Ok(Response::new(StatusResponse { json: json.into() })),
            None => Err(RpcError::new(ErrorCode::NotFound, format!("there is no status page {path:?}")).into()),
        }
    }

    async fn alter_table(&self, request: Request<AlterTableRequest>) -> Result<Response<TableInfo>, Status> {
        Ok(Response::new(tables::alter(&self.0, request.into_inner()).await?))
    }

    async fn split_tablet(&self, request: Request<SplitTabletRequest>) -> Result<Response<ProcedureInfo>, Status> {
        Ok(Response::new(procedures::split(&self.0, request.into_inner()).await?))
    }

    async fn merge_tablets(&self, request: Request<MergeTabletsRequest>) -> Result<Response<ProcedureInfo>, Status> {
        Ok(Response::new(procedures::merge(&self.0, request.into_inner()).await?))
    }

    async fn move_tablet(&self, request: Request<MoveTabletRequest>) -> Result<Response<ProcedureInfo>, Status> {
        Ok(Response::new(procedures::relocate(&self.0, request.into_inner()).await?))
    }

    async fn drain_server(
        &self,
        request: Request<DrainServerRequest>,
    ) -> Result<Response<DrainServerResponse>, Status> {
        Ok(Response::new(procedures::drain(&self.0, request.into_inner()).await?))
    }

    async fn balance(&self, request: Request<BalanceRequest>) -> Result<Response<BalanceResponse>, Status> {
        self.0.read_linearizable().await?;
        Ok(Response::new(orders::balance(&self.0, request.into_inner().run).await?))
    }

    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        self.0.read_linearizable().await?;
        Ok(Response::new(check::run(&self.0, request.into_inner().deep).await?))
    }
}

#[cfg(test)]
mod tests {
    use uruk_consensus::StateMachine;
    use uruk_proto::ServerId;

    use super::*;
    use crate::command::{Command, Reply, TabletSplit};
    use crate::state::procedures::ProcedureId;
    use crate::state::tests::{assign_all, create, open_all, register, split_of};

    fn addresses(state: &State, table: TableId) -> Vec<(String, ServerId)> {
        let located = locate(state, table, b"", 10).unwrap();
        located.into_iter().map(|tablet| (tablet.address, ServerId(tablet.server_id))).collect()
    }

    #[test]
    fn what_a_split_made_is_found_at_its_maker_before_it_is_reported() {
        let mut state = State::new();
        let server = register(&mut state, 1);
        let table = create(&mut state, "t", 1);
        let keys = assign_all(&mut state, server);
        assert_eq!(addresses(&state, table), [(String::new(), ServerId(0))], "not opened yet");
        open_all(&mut state, server, &keys);
        let address = state.servers.address(server).unwrap().to_owned();
        assert_eq!(addresses(&state, table), [(address.clone(), server)]);
        let (tablet, at) = (keys[0], Some("m".into()));
        let start = Command::StartSplit { tablet, at, by_load: false, reason: "test".into(), request: 0, micros: 1 };
        assert_eq!(state.apply(start), Reply::Procedure(ProcedureId(1)));
        let split = split_of(state.row(tablet.tablet).unwrap(), ProcedureId(1), 2);
        state.apply(Command::TabletSplit(Box::new(TabletSplit { at: "m".into(), ..split })));
        assert_eq!(addresses(&state, table), [(address.clone(), server), (address, server)]);
    }
}
