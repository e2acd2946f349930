//! Orders to split, to merge, and to go by another schema.
//!
//! Like all orders they may be repeated, and come late: the tablet server knows a procedure again by its id, a
//! schema by its version, and the command that tells the result is checked where it takes effect.

use uruk_consensus::Term;
use uruk_proto::tablet::{MergeTabletsOrder, SetSchemaRequest, SplitTabletOrder};
use uruk_proto::{ServerId, TableId, master};

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
