//! The fake master.

use tonic::{Request, Response, Status};
use uruk_proto::master::master_server::Master;
use uruk_proto::master::{
    CreateTableRequest, DeleteTableRequest, DeleteTableResponse, GetTableRequest, ListTablesRequest,
    ListTablesResponse, LocateRequest, LocateResponse, StatusRequest, StatusResponse, TableInfo, TabletLocation,
};
use uruk_proto::schema::TableSchema;
use uruk_proto::{ErrorCode, RpcError};

use super::{Cluster, State};

fn not_found(what: &str) -> Status {
    RpcError::new(ErrorCode::NotFound, format!("{what} does not exist")).into()
}

fn info(state: &State, schema: &TableSchema) -> TableInfo {
    let tablets = state.tablets.values().filter(|tablet| tablet.table == schema.id.0).count() as u32;
    TableInfo { schema: Some(schema.into()), tablets, tablets_open: tablets, bytes: 0 }
}

#[tonic::async_trait]
impl Master for Cluster {
    async fn locate(&self, request: Request<LocateRequest>) -> Result<Response<LocateResponse>, Status> {
        let request = request.into_inner();
        let now = self.now();
        let mut state = self.lock();
        state.locates += 1;
        if !state.tables.contains_key(&request.table_id) {
            return Err(not_found("the table"));
        }
        let old = state.old_news > 0 && !request.from_leader;
        state.old_news = state.old_news.saturating_sub(usize::from(old));
        let tablets = if old { &state.before } else { &state.tablets };
        let mut found: Vec<TabletLocation> = tablets
            .iter()
            .filter(|(_, tablet)| tablet.table == request.table_id)
            .filter(|(_, tablet)| tablet.range.end.is_empty() || tablet.range.end > request.row)
            .map(|(id, tablet)| TabletLocation {
                tablet_id: *id,
                start: tablet.range.start.clone(),
                end: tablet.range.end.clone(),
                epoch: tablet.epoch,
                address: match tablet.unserved_until <= now {
                    true => Cluster::address(tablet.server),
                    false => String::new(),
                },
                server_id: tablet.server as u64 + 1,
            })
            .collect();
        found.sort_by(|a, b| a.start.cmp(&b.start));
        found.truncate(request.limit.max(1) as usize);
        Ok(Response::new(LocateResponse { tablets: found }))
    }

    async fn create_table(&self, request: Request<CreateTableRequest>) -> Result<Response<TableInfo>, Status> {
        let request = request.into_inner();
        let mut state = self.lock();
        let table = match state.table_requests.get(&request.request) {
            Some(table) => *table,
            None if state.tables.values().any(|schema| schema.name == request.name) => {
                return Err(RpcError::new(ErrorCode::AlreadyExists, "the table exists").into());
            }
            None => {
                let families: Vec<String> = request.families.iter().map(|family| family.name.clone()).collect();
                let table = state.add_table(&request.name, &families, &request.splits);
                state.table_requests.insert(request.request, table);
                table
            }
        };
        if let Some(super::Fault::BreakAfter { .. }) = state.faults.pop_front() {
            self.net.cut("master:1");
        }
        Ok(Response::new(info(&state, &state.tables[&table])))
    }

    async fn get_table(&self, request: Request<GetTableRequest>) -> Result<Response<TableInfo>, Status> {
        let request = request.into_inner();
        let state = self.lock();
        let schema = state.tables.values().find(|schema| schema.name == request.name);
        Ok(Response::new(info(&state, schema.ok_or_else(|| not_found("the table"))?)))
    }

    async fn list_tables(&self, _: Request<ListTablesRequest>) -> Result<Response<ListTablesResponse>, Status> {
        let state = self.lock();
        let tables = state.tables.values().map(|schema| info(&state, schema)).collect();
        Ok(Response::new(ListTablesResponse { tables }))
    }

    async fn delete_table(
        &self,
        request: Request<DeleteTableRequest>,
    ) -> Result<Response<DeleteTableResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.lock();
        let table = state.tables.iter().find(|(_, schema)| schema.name == request.name).map(|(id, _)| *id);
        state.drop_table(table.ok_or_else(|| not_found("the table"))?);
        Ok(Response::new(DeleteTableResponse {}))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let json = format!("{{\"path\":\"{}\"}}", request.into_inner().path).into();
        Ok(Response::new(StatusResponse { json }))
    }

    async fn alter_table(
        &self,
        _: tonic::Request<uruk_proto::master::AlterTableRequest>,
    ) -> Result<tonic::Response<uruk_proto::master::TableInfo>, tonic::Status> {
        Err(tonic::Status::unimplemented("alter_table"))
    }

    async fn split_tablet(
        &self,
        _: tonic::Request<uruk_proto::master::SplitTabletRequest>,
    ) -> Result<tonic::Response<uruk_proto::master::ProcedureInfo>, tonic::Status> {
        Err(tonic::Status::unimplemented("split_tablet"))
    }

    async fn merge_tablets(
        &self,
        _: tonic::Request<uruk_proto::master::MergeTabletsRequest>,
    ) -> Result<tonic::Response<uruk_proto::master::ProcedureInfo>, tonic::Status> {
        Err(tonic::Status::unimplemented("merge_tablets"))
    }

    async fn move_tablet(
        &self,
        _: tonic::Request<uruk_proto::master::MoveTabletRequest>,
    ) -> Result<tonic::Response<uruk_proto::master::ProcedureInfo>, tonic::Status> {
        Err(tonic::Status::unimplemented("move_tablet"))
    }

    async fn drain_server(
        &self,
        _: tonic::Request<uruk_proto::master::DrainServerRequest>,
    ) -> Result<tonic::Response<uruk_proto::master::DrainServerResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("drain_server"))
    }

    async fn balance(
        &self,
        _: tonic::Request<uruk_proto::master::BalanceRequest>,
    ) -> Result<tonic::Response<uruk_proto::master::BalanceResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("balance"))
    }

    async fn check(
        &self,
        _: tonic::Request<uruk_proto::master::CheckRequest>,
    ) -> Result<tonic::Response<uruk_proto::master::CheckResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("check"))
    }
}
