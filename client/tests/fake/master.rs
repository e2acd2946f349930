//! The fake master.

use tonic::{Request, Response, Status};
use uruk_proto::master::family_change::Change;
use uruk_proto::master::master_server::Master;
use uruk_proto::master::{
    AlterTableRequest, BalanceRequest, BalanceResponse, CheckRequest, CheckResponse, CreateTableRequest,
    DeleteTableRequest, DeleteTableResponse, DrainServerRequest, DrainServerResponse, GetTableRequest,
    ListTablesRequest, ListTablesResponse, LocateRequest, LocateResponse, MergeTabletsRequest, MoveTabletRequest,
    ProcedureInfo, SplitTabletRequest, StatusRequest, StatusResponse, TableInfo, TabletChoice, TabletLocation,
};
use uruk_proto::schema::{Family, TableSchema};
use uruk_proto::{ErrorCode, FamilyId, RpcError};

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
        state.thaw(now);
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
                let schema = state.tables.get_mut(&table).expect("just made");
                (schema.salt, schema.split_bytes) = (request.salt, request.split_bytes);
                state.table_requests.insert(request.request, table);
                table
            }
        };
        self.break_off(&mut state);
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

    async fn alter_table(&self, request: Request<AlterTableRequest>) -> Result<Response<TableInfo>, Status> {
        let request = request.into_inner();
        let mut state = self.lock();
        let id = state.id();
        let is_repeat = state.alters.contains(&request.request);
        let schema = state.tables.values_mut().find(|schema| schema.name == request.name);
        let schema = schema.ok_or_else(|| not_found("the table"))?;
        if !is_repeat {
            for change in request.changes {
                match change.change.expect("the client says which") {
                    Change::Create(family) => {
                        let family = Family { id: FamilyId(id), ..Family::try_from(&family)? };
                        schema.families.push(family);
                    }
                    Change::Update(family) => {
                        let known = schema.families.iter_mut().find(|known| known.name == family.name);
                        let known = known.ok_or_else(|| not_found("the family"))?;
                        *known = Family { id: known.id, ..Family::try_from(&family)? };
                    }
                    Change::Drop(name) => schema.families.retain(|family| family.name != name),
                }
            }
            schema.version += 1;
        }
        let schema = schema.clone();
        state.alters.insert(request.request);
        self.break_off(&mut state);
        Ok(Response::new(info(&state, &schema)))
    }

    async fn split_tablet(&self, request: Request<SplitTabletRequest>) -> Result<Response<ProcedureInfo>, Status> {
        let request = request.into_inner();
        self.procedure("split", request.tablet, request.request, |state, tablet| {
            let before: Vec<u64> = state.tablets.keys().copied().collect();
            let is_split = match request.at.is_empty() {
                true => state.split(tablet),
                false => state.split_at(tablet, request.at),
            };
            let results = state.tablets.keys().copied().filter(|id| !before.contains(id)).collect();
            is_split.then_some(results).ok_or("there is nothing to split")
        })
    }

    async fn merge_tablets(&self, request: Request<MergeTabletsRequest>) -> Result<Response<ProcedureInfo>, Status> {
        let request = request.into_inner();
        self.procedure("merge", request.tablet, request.request, |state, tablet| {
            state.merge(tablet).map(|merged| vec![merged]).ok_or("it is the last")
        })
    }

    async fn move_tablet(&self, request: Request<MoveTabletRequest>) -> Result<Response<ProcedureInfo>, Status> {
        let request = request.into_inner();
        self.procedure("move", request.tablet, request.request, |state, tablet| {
            state.move_tablet(tablet, std::time::Duration::ZERO);
            Ok(vec![tablet])
        })
    }

    async fn drain_server(
        &self,
        request: Request<DrainServerRequest>,
    ) -> Result<Response<DrainServerResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.lock();
        if request.server_id == 0 || request.server_id > state.alive.len() as u64 {
            return Err(not_found("the server"));
        }
        match request.undo {
            true => state.draining.remove(&request.server_id),
            false => state.draining.insert(request.server_id),
        };
        Ok(Response::new(DrainServerResponse { moved: 3 }))
    }

    async fn balance(&self, request: Request<BalanceRequest>) -> Result<Response<BalanceResponse>, Status> {
        let verdict = if request.into_inner().run { "done" } else { "would be done" };
        Ok(Response::new(BalanceResponse { verdict: verdict.into(), ..Default::default() }))
    }

    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let files = if request.into_inner().deep { 7 } else { 0 };
        Ok(Response::new(CheckResponse { files, ..Default::default() }))
    }
}

impl Cluster {
    /// The connection breaks, if the next fault says so.
    fn break_off(&self, state: &mut State) {
        if let Some(super::Fault::BreakAfter { .. }) = state.faults.pop_front() {
            self.net.cut("master:1");
        }
    }

    /// Does `work` once for each request, and answers repeats alike.
    fn procedure(
        &self,
        kind: &str,
        choice: Option<TabletChoice>,
        request: u64,
        work: impl FnOnce(&mut State, u64) -> Result<Vec<u64>, &'static str>,
    ) -> Result<Response<ProcedureInfo>, Status> {
        let mut state = self.lock();
        if let Some(known) = state.procedures.get(&request) {
            return Ok(Response::new(known.clone()));
        }
        let choice = choice.expect("the client names a tablet");
        let table = state.tables.values().find(|schema| schema.name == choice.table).map(|schema| schema.id.0);
        let holds = |id: u64, tablet: &super::Tablet| match choice.tablet_id {
            0 => Some(tablet.table) == table && tablet.range.contains(&choice.row),
            wanted => id == wanted,
        };
        let tablet = state.tablets.iter().find(|(id, tablet)| holds(**id, tablet)).map(|(id, _)| *id);
        let tablet = tablet.ok_or_else(|| not_found("the tablet"))?;
        let (results, outcome) = match state.decline.clone() {
            Some(why) => (Vec::new(), why),
            None => match work(&mut state, tablet) {
                Ok(results) => (results, "done".to_owned()),
                Err(why) => (Vec::new(), why.to_owned()),
            },
        };
        let (kind, tablets, procedure) = (kind.to_owned(), vec![tablet], state.id());
        let info = ProcedureInfo { procedure, kind, tablets, results, outcome, ..Default::default() };
        state.procedures.insert(request, info.clone());
        self.break_off(&mut state);
        Ok(Response::new(info))
    }
}
