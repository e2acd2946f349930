//! Orders to split, to merge, and to go by another schema; and what the master starts by itself.
//!
//! Like all orders they may be repeated, and come late: the tablet server knows a procedure again by its id, a
//! schema by its version, and the command that tells the result is checked where it takes effect.

use uruk_consensus::Term;
use uruk_proto::tablet::{MergeTabletsOrder, SetSchemaRequest, SplitTabletOrder};
use uruk_proto::{ErrorCode, RpcError, ServerId, TableId, master};

use crate::assign::Now;
use crate::balance::moves::PlannedMove;
use crate::balance::{Decision, View, decide as decide_all};
use crate::command::{Command, TabletKey};
use crate::driver::{Outcome, propose_done};
use crate::recovery::{call, client};
use crate::shared::Shared;
use crate::state::procedures::{ProcedureId, Work};

/// Orders the split or merge.
pub async fn reshape(shared: &Shared, server: ServerId, id: ProcedureId) -> Outcome {
    let planned = shared.consensus.read(|state| {
        let address = state.servers.address(server)?.to_owned();
        Some((address, state.procedures.running().get(&id)?.work.clone()))
    });
    let Some((address, work)) = planned else { return Ok(()) };
    let key = |key: TabletKey| Some(master::TabletKey { tablet_id: key.tablet.0, epoch: key.epoch.0 });
    let (server_id, procedure) = (server.0, id.0);
    let (mut client, deadline) = (client(shared, &address), shared.order_deadline());
    match work {
        Work::Split { tablet, at, by_load } => {
            let (tablet, at) = (key(tablet), at.unwrap_or_default());
            let order = SplitTabletOrder { server_id, tablet, procedure, at, by_load };
            call(shared, server, &address, deadline, client.split_tablet(order)).await?;
        }
        Work::Merge { left, right } => {
            let order = MergeTabletsOrder { server_id, left: key(left), right: key(right), procedure };
            call(shared, server, &address, deadline, client.merge_tablets(order)).await?;
        }
        Work::Move { .. } => return Ok(()),
    }
    let now = shared.env.clock.now();
    shared.volatile.lock().reshapes_taken.insert(id, now);
    Ok(())
}

/// Tells the schema, and records that the server goes by it.
pub async fn set_schema(shared: &Shared, term: Term, server: ServerId, table: TableId) -> Outcome {
    let planned = shared.consensus.read(|state| {
        let address = state.servers.address(server)?.to_owned();
        Some((address, state.tables.get(table)?.schema.clone()))
    });
    let Some((address, schema)) = planned else { return Ok(()) };
    let request = SetSchemaRequest { server_id: server.0, schema: Some((&schema).into()) };
    call(shared, server, &address, shared.order_deadline(), client(shared, &address).set_schema(request)).await?;
    let version = schema.version;
    propose_done(shared, term, Command::ConfirmSchema { server, table, version }).await
}

/// What is to be decided from what is known now. It looks at every tablet, and holds nothing up: neither commands
/// nor renewals wait for it.
async fn decision(shared: &Shared, now: Now) -> Decision {
    let (survey, volatile) = shared.consensus.read(|state| (state.survey(), shared.volatile.lock().survey()));
    let tuning = shared.tuning.clone();
    let deciding = move || decide_all(View { survey: &survey, volatile: &volatile, tuning: &tuning, now });
    shared.env.tasks.blocking(deciding).await
}

/// Decides what to split, merge and move; starts the splits and merges. Moves wait for their turn.
pub async fn decide(shared: &Shared, term: Term) {
    let now = shared.now();
    let decision = decision(shared, now).await;
    let (splits, merges) = (decision.splits.clone(), decision.merges.clone());
    if !keep(shared, term, decision, shared.tuning.auto_balance) {
        return;
    }
    let micros = now.wall_micros;
    for split in splits {
        let (tablet, by_load, reason) = (split.key, split.by_load, split.reason);
        tracing::info!(tablet = %tablet.tablet, reason, "splits a tablet");
        start(shared, term, Command::StartSplit { tablet, at: None, by_load, reason, request: 0, micros }).await;
    }
    for merge in merges {
        let (left, right, reason) = (merge.left, merge.right, merge.reason);
        tracing::info!(left = %left.tablet, right = %right.tablet, reason, "merges tablets");
        start(shared, term, Command::StartMerge { left, right, reason, request: 0, micros }).await;
    }
}

/// What has changed since it was decided is refused, and decided anew: no failure.
async fn start(shared: &Shared, term: Term, command: Command) {
    if let Err(error) = shared.propose_in(term, command).await {
        tracing::debug!(%error, "a procedure was not started");
    }
}

/// Starts a move that the balancer has planned.
pub async fn start_move(shared: &Shared, term: Term, planned: PlannedMove) -> Outcome {
    let (tablet, target, reason) = (planned.key, planned.to, planned.reason);
    tracing::info!(tablet = %tablet.tablet, from = %planned.from, to = %target, reason, "moves a tablet");
    let micros = shared.env.clock.wall_micros();
    let command = Command::StartMove { tablet, target, reason, request: 0, micros };
    match shared.propose_in(term, command).await {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.code, ErrorCode::FailedPrecondition | ErrorCode::NotFound) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Takes what was decided, if this is still the leadership that knew what it was decided from.
fn keep(shared: &Shared, term: Term, decision: Decision, start_moves: bool) -> bool {
    shared.consensus.read(|state| {
        let mut volatile = shared.volatile.lock();
        let is_current = volatile.leases.term() == Some(term);
        if is_current {
            volatile.decide(state, decision, start_moves);
        }
        is_current
    })
}

/// What the balancer would do now; with `run` the moves wait for their turn from now on.
pub async fn balance(shared: &Shared, run: bool) -> Result<master::BalanceResponse, RpcError> {
    let term = shared.volatile.lock().leases.term().ok_or_else(|| RpcError::not_leader(None))?;
    let decision = decision(shared, shared.now()).await;
    let plan = decision.plan.clone();
    if run {
        if !keep(shared, term, decision, true) {
            return Err(RpcError::not_leader(None));
        }
        shared.wake.notify_one();
    }
    let planned = |planned: PlannedMove| master::PlannedMove {
        tablet_id: planned.key.tablet.0,
        from: planned.from.0,
        to: planned.to.0,
        reason: planned.reason,
        gain: planned.gain,
    };
    let count = |tablets: usize| u32::try_from(tablets).unwrap_or(u32::MAX);
    let servers = plan.servers.iter().map(|server| master::BalancedServer {
        server_id: server.server.0,
        load: server.load,
        load_after: server.load_after,
        tablets: count(server.tablets),
        tablets_after: count(server.tablets_after),
    });
    Ok(master::BalanceResponse {
        servers: servers.collect(),
        moves: plan.moves.into_iter().map(planned).collect(),
        cost: plan.cost,
        cost_after: plan.cost_after,
        verdict: plan.verdict,
    })
}
