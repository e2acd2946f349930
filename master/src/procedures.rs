//! Splitting, merging, moving and draining, as callers see it.
//!
//! The procedures themselves are in the replicated state and in the planner; a caller that waits here only
//! watches. After a lost answer it asks again with the same `request` and finds its own procedure.

use uruk_proto::{ErrorCode, RpcError, ServerId, TabletId, master};

use crate::assign::best_target;
use crate::command::{Command, Reply, TabletKey};
use crate::shared::Shared;
use crate::state::State;
use crate::state::procedures::{Ending, Found, Procedure, ProcedureId, Work};
use crate::state::row::{MetaRow, RowKey};
use crate::tables::wait;

/// Why callers start procedures.
const REASON: &str = "by command";

/// Splits a tablet; answers once both halves are open, or tells why not.
pub async fn split(shared: &Shared, request: master::SplitTabletRequest) -> Result<master::ProcedureInfo, RpcError> {
    let choice = request.tablet.unwrap_or_default();
    let at = (!request.at.is_empty()).then_some(request.at);
    // A tablet that is named by a row only is the one where the split key lies, if that is all that is given.
    let choice = match &at {
        Some(at) if choice.tablet_id == 0 && choice.row.is_empty() => {
            master::TabletChoice { row: at.clone(), ..choice }
        }
        Some(_) | None => choice,
    };
    let start = |_: &State, row: &MetaRow| {
        let (reason, request, micros) = (REASON.to_owned(), request.request, shared.env.clock.wall_micros());
        Ok(Command::StartSplit { tablet: row.key(), at: at.clone(), by_load: false, reason, request, micros })
    };
    run(shared, request.request, &choice, start).await
}

/// Merges a tablet with its right neighbour; answers once the new one is open, or tells why not.
pub async fn merge(shared: &Shared, request: master::MergeTabletsRequest) -> Result<master::ProcedureInfo, RpcError> {
    let choice = request.tablet.unwrap_or_default();
    let start = |state: &State, row: &MetaRow| {
        let right = neighbour(state, row).ok_or_else(|| {
            RpcError::new(ErrorCode::FailedPrecondition, format!("{} is the last of its table", row.tablet))
        })?;
        let (reason, request, micros) = (REASON.to_owned(), request.request, shared.env.clock.wall_micros());
        Ok(Command::StartMerge { left: row.key(), right: right.key(), reason, request, micros })
    };
    run(shared, request.request, &choice, start).await
}

/// Moves a tablet; answers once it is open elsewhere, or tells why not.
pub async fn relocate(shared: &Shared, request: master::MoveTabletRequest) -> Result<master::ProcedureInfo, RpcError> {
    let choice = request.tablet.unwrap_or_default();
    let start = |state: &State, row: &MetaRow| {
        let target = match request.server_id {
            0 => best_target(state, &shared.volatile.lock(), row).ok_or_else(|| {
                RpcError::new(ErrorCode::FailedPrecondition, format!("there is no other server for {}", row.tablet))
            })?,
            id => ServerId(id),
        };
        let (reason, request, micros) = (REASON.to_owned(), request.request, shared.env.clock.wall_micros());
        Ok(Command::StartMove { tablet: row.key(), target, reason, request, micros })
    };
    run(shared, request.request, &choice, start).await
}

/// The tablet that follows in the table.
pub fn neighbour<'a>(state: &'a State, row: &MetaRow) -> Option<&'a MetaRow> {
    if row.range.end.is_empty() {
        return None;
    }
    state.meta.get(&RowKey { table: row.table, start: row.range.end.clone() }).map(|row| &**row)
}

fn choose<'a>(state: &'a State, choice: &master::TabletChoice) -> Result<&'a MetaRow, RpcError> {
    let missing = |what: String| RpcError::new(ErrorCode::NotFound, format!("{what} does not exist"));
    if choice.tablet_id != 0 {
        let tablet = TabletId(choice.tablet_id);
        return state.row(tablet).ok_or_else(|| missing(tablet.to_string()));
    }
    let table = state.tables.by_name(&choice.table).filter(|table| !table.is_deleting());
    let table = table.ok_or_else(|| missing(format!("table {}", choice.table)))?;
    state.meta.locate(table.schema.id, &choice.row).ok_or_else(|| missing("the tablet".to_owned()))
}

/// Starts the procedure once its tablets are there for it, and waits for its end.
async fn run(
    shared: &Shared,
    request: u64,
    choice: &master::TabletChoice,
    start: impl Fn(&State, &MetaRow) -> Result<Command, RpcError>,
) -> Result<master::ProcedureInfo, RpcError> {
    shared.read_linearizable().await?;
    let ready = |state: &State| {
        if let Some(id) = state.procedures.by_request(request) {
            return Some(Ok(Start::Begun(id)));
        }
        let row = match choose(state, choice) {
            Ok(row) => row,
            Err(error) => return Some(Err(error)),
        };
        // What is on its way is soon there.
        let is_free = row.is_open() && row.procedure.is_none();
        is_free.then(|| start(state, row).map(|command| Start::Propose(Box::new(command))))
    };
    let left = |state: &State| match choose(state, choice) {
        Ok(row) => format!("{} is {:?}, in {:?}", row.tablet, row.state, row.procedure),
        Err(error) => error.message,
    };
    let id = match wait(shared, ready, left).await?? {
        Start::Begun(id) => id,
        Start::Propose(command) => match shared.propose(*command).await? {
            Reply::Procedure(id) => id,
            reply => return Err(RpcError::new(ErrorCode::Internal, format!("unexpected reply {reply:?}"))),
        },
    };
    wait(shared, |state| finished(state, id), |_| format!("{id} goes on")).await
}

enum Start {
    Begun(ProcedureId),
    Propose(Box<Command>),
}

/// What callers learn once it has ended and its results are served.
fn finished(state: &State, id: ProcedureId) -> Option<master::ProcedureInfo> {
    let Some(Found::Ended(ended)) = state.procedures.find(id) else {
        let forgotten = master::ProcedureInfo { procedure: id.0, outcome: "forgotten".into(), ..Default::default() };
        return state.procedures.find(id).is_none().then_some(forgotten);
    };
    let results = match &ended.ending {
        Ending::Done(results) => results.as_slice(),
        Ending::Declined(_) | Ending::GroundGone(_) => &[],
    };
    let is_served = |tablet: &TabletId| state.row(*tablet).is_none_or(MetaRow::is_open);
    if !results.iter().all(is_served) {
        return None;
    }
    Some(master::ProcedureInfo {
        results: results.iter().map(|tablet| tablet.0).collect(),
        outcome: ended.outcome(),
        ended_micros: ended.ended_micros.unsigned_abs(),
        ..describe(&ended.procedure)
    })
}

fn describe(procedure: &Procedure) -> master::ProcedureInfo {
    let target = match &procedure.work {
        Work::Move { target, .. } => target.0,
        Work::Split { .. } | Work::Merge { .. } => 0,
    };
    master::ProcedureInfo {
        procedure: procedure.id.0,
        kind: procedure.work.name().to_owned(),
        reason: procedure.reason.clone(),
        tablets: procedure.work.keys().iter().map(|key: &TabletKey| key.tablet.0).collect(),
        started_micros: procedure.started_micros.unsigned_abs(),
        server_id: target,
        ..Default::default()
    }
}

/// Marks the server, and answers once it holds nothing and nothing is on its way to it; or takes the mark back.
pub async fn drain(
    shared: &Shared,
    request: master::DrainServerRequest,
) -> Result<master::DrainServerResponse, RpcError> {
    shared.read_linearizable().await?;
    let server = ServerId(request.server_id);
    let (others, held) = shared.consensus.read(|state| {
        let volatile = shared.volatile.lock();
        let stays = |other: &&ServerId| {
            **other != server && !state.servers.is_draining(**other) && !volatile.draining.contains(*other)
        };
        (state.servers.live().iter().filter(stays).count(), state.index.owned(server).len())
    });
    if !request.undo && others == 0 {
        let message = format!("there is no server to take the tablets of {server}");
        return Err(RpcError::new(ErrorCode::FailedPrecondition, message));
    }
    shared.propose(Command::SetDraining { server, draining: !request.undo }).await?;
    if request.undo {
        return Ok(master::DrainServerResponse { moved: 0 });
    }
    tracing::info!(%server, tablets = held, "drains a server");
    let is_target = |state: &State| {
        let mut running = state.procedures.running().values();
        running.any(|procedure| matches!(procedure.work, Work::Move { target, .. } if target == server))
    };
    let empty = |state: &State| {
        let undone = state.servers.is_live(server) && !state.servers.is_draining(server);
        let message = format!("the drain of {server} was taken back");
        match undone {
            true => Some(Err(RpcError::new(ErrorCode::FailedPrecondition, message))),
            false => (state.index.owned(server).len() == 0 && !is_target(state)).then_some(Ok(())),
        }
    };
    let left = |state: &State| format!("{server} still has {} tablets", state.index.owned(server).len());
    wait(shared, empty, left).await??;
    Ok(master::DrainServerResponse { moved: u32::try_from(held).unwrap_or(u32::MAX) })
}
