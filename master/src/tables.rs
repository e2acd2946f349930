//! Creating, altering, describing and deleting tables, as callers see it.
//!
//! The procedures themselves are in the replicated state and in the planner; a caller that waits here
//! only watches. After a lost answer it asks again with the same `request` and finds its own table.

use std::time::Duration;

use uruk_proto::schema::{Family, LocalityGroup, TableSchema};
use uruk_proto::{ErrorCode, FamilyId, RpcError, TableId, master};

use crate::command::{Command, FamilyChange, Reply};
use crate::shared::Shared;
use crate::state::State;
use crate::state::tables::{Table, TableState};

/// Creates a table; answers once all of its tablets are open.
pub async fn create(shared: &Shared, request: master::CreateTableRequest) -> Result<master::TableInfo, RpcError> {
    let max = shared.tuning.table_tablets_max;
    if request.splits.len() >= max {
        let message = format!("{} tablets; the limit is {max}", request.splits.len() + 1);
        return Err(RpcError::new(ErrorCode::InvalidArgument, message));
    }
    let mut families = request.families.iter().map(Family::try_from).collect::<Result<Vec<_>, _>>()?;
    families.iter_mut().for_each(|family| family.id = FamilyId(0));
    let mut groups = request.groups.iter().map(LocalityGroup::try_from).collect::<Result<Vec<_>, _>>()?;
    groups.sort_by_key(|group| group.number);
    let (id, salt, split_bytes) = (TableId(0), request.salt, request.split_bytes);
    let schema = TableSchema { id, name: request.name, version: 0, families, groups, salt, split_bytes };
    schema.validate()?;
    let splits = request.splits.into_iter().collect();
    let micros = shared.env.clock.wall_micros();
    let command = Command::CreateTable { request: request.request, schema, splits, micros };
    let Reply::Table(id) = shared.propose(command).await? else {
        return Err(RpcError::new(ErrorCode::Internal, "a table without id"));
    };
    tracing::info!(table = %id, "created a table");
    let ready = |state: &State| match state.tables.get(id) {
        None => Some(Err(RpcError::new(ErrorCode::NotFound, format!("{id} was deleted meanwhile")))),
        Some(table) => (table.state == TableState::Ready).then(|| Ok(info(state, table))),
    };
    wait(shared, ready, |state| {
        let counts = state.index.counts(id);
        format!(
            "{id} exists, but only {} of its {} tablets are open; {} tablet servers are alive",
            counts.open,
            counts.tablets,
            state.servers.live().len()
        )
    })
    .await?
}

/// Deletes a table; answers once every owner has given its tablets up, or is dead.
pub async fn delete(shared: &Shared, request: master::DeleteTableRequest) -> Result<(), RpcError> {
    let command = Command::DeleteTable { request: request.request, name: request.name };
    let Reply::Table(id) = shared.propose(command).await? else { return Ok(()) };
    tracing::info!(table = %id, "deletes a table");
    wait(
        shared,
        |state| state.tables.get(id).is_none().then_some(()),
        |state| format!("{id} is being deleted: {} tablets are left", state.index.counts(id).tablets),
    )
    .await
}

/// Alters a table; answers once every owner of a tablet goes by the new schema, or is dead.
pub async fn alter(shared: &Shared, request: master::AlterTableRequest) -> Result<master::TableInfo, RpcError> {
    let changes = request.changes.iter().map(change).collect::<Result<Vec<_>, _>>()?;
    let groups = request.groups.iter().map(LocalityGroup::try_from).collect::<Result<Vec<_>, _>>()?;
    let command = Command::StartAlter { request: request.request, name: request.name, changes, groups };
    let Reply::Altered(id, version) = shared.propose(command).await? else {
        return Err(RpcError::new(ErrorCode::Internal, "an alteration without version"));
    };
    tracing::info!(table = %id, version, "alters a table");
    let confirmed = |state: &State| match state.tables.get(id) {
        None => Some(Err(RpcError::new(ErrorCode::NotFound, format!("{id} was deleted meanwhile")))),
        // A later alteration waits for the same owners, and for no fewer.
        Some(table) => table.alteration.is_none().then(|| Ok(info(state, table))),
    };
    wait(shared, confirmed, |state| {
        let waiting = state.tables.get(id).and_then(|table| table.alteration.as_ref());
        format!("{id} is altered, but {:?} have not confirmed it", waiting.map(|alteration| &alteration.waiting))
    })
    .await?
}

fn change(change: &master::FamilyChange) -> Result<FamilyChange, RpcError> {
    use master::family_change::Change;
    match &change.change {
        Some(Change::Create(family)) => Ok(FamilyChange::Create(Family::try_from(family)?)),
        Some(Change::Update(family)) => Ok(FamilyChange::Update(Family::try_from(family)?)),
        Some(Change::Drop(name)) => Ok(FamilyChange::Drop(name.clone())),
        None => Err(RpcError::new(ErrorCode::InvalidArgument, "an empty change of a family")),
    }
}

/// Waits until the local state shows it, or the deadline for tables passes.
pub async fn wait<T>(
    shared: &Shared,
    done: impl Fn(&State) -> Option<T>,
    left: impl Fn(&State) -> String,
) -> Result<T, RpcError> {
    let mut applied = shared.consensus.applied();
    let watching = async {
        loop {
            applied.borrow_and_update();
            if let Some(result) = shared.consensus.read(&done) {
                return Some(result);
            }
            if applied.changed().await.is_err() {
                return None;
            }
        }
    };
    match shared.env.clock.timeout(Duration::from_millis(shared.tuning.table_deadline_ms), watching).await {
        Ok(Some(result)) => Ok(result),
        Ok(None) => Err(RpcError::new(ErrorCode::Unknown, "the master shuts down")),
        Err(_) => Err(RpcError::new(ErrorCode::DeadlineExceeded, shared.consensus.read(left))),
    }
}

/// What callers learn about a table.
pub fn info(state: &State, table: &Table) -> master::TableInfo {
    let counts = state.index.counts(table.schema.id);
    master::TableInfo {
        schema: Some((&table.schema).into()),
        tablets: counts.tablets,
        tablets_open: counts.open,
        bytes: counts.bytes,
    }
}

/// The table of this name or id, unless it is being deleted.
pub fn find<'a>(state: &'a State, request: &master::GetTableRequest) -> Option<&'a Table> {
    let found = match request.table_id {
        0 => state.tables.by_name(&request.name),
        id => state.tables.get(TableId(id)),
    };
    found.filter(|table| !table.is_deleting())
}
