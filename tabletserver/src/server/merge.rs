//! Merging two neighbours into one tablet, by the master's order: the mirror of a split
//! (`docs/adr/0004-split-and-merge.md`).
//!
//! Invariants: (1) the command is sent only when everything acknowledged of both is in committed files;
//! (2) the new tablet remembers all calls that either did, in one file written before the command;
//! (3) locks are taken in the order of keys, each kind of both before the next kind.

use std::sync::Arc;

use tokio::sync::MutexGuard;
use uruk_base::planted::{Planted, is_planted};
use uruk_proto::master::{TabletsMergedRequest, TabletsMergedResponse};
use uruk_proto::tablet::MergeTabletsOrder;
use uruk_proto::{RpcError, SeqNo};

use super::Server;
use super::freeze::{self, Quiet};
use super::memory::{Memory, RUNS_MAX};
use super::procedure::End;
use super::tablet::{Tablet, TabletState, TakenUp};

type Pair<'a> = [&'a Arc<Tablet>; 2];

/// What both remember, and the file that says so; empty: nothing.
struct Remembered {
    memory: Memory,
    file: String,
}

impl Server {
    /// Takes an order; the work goes on in the background. Repeated orders change nothing.
    pub fn order_merge(self: &Arc<Self>, order: MergeTabletsOrder) -> Result<(), RpcError> {
        let procedure = order.procedure;
        let (left, right) = (self.standing(order.left)?, self.standing(order.right)?);
        let (Some(left), Some(right)) = (left, right) else {
            self.spawn_decline(procedure, "one of the tablets is not here under its epoch".into());
            return Ok(());
        };
        match (left.take_up(procedure), right.take_up(procedure)) {
            (TakenUp::New, TakenUp::New) => {}
            (TakenUp::Running, TakenUp::Running) => return Ok(()),
            (TakenUp::New | TakenUp::Running | TakenUp::Over, _) => {
                // Both were taken up together, so at least one knows that it is over.
                [&left, &right].iter().for_each(|tablet| tablet.procedure_over(procedure));
                self.spawn_decline(procedure, "it is over here".into());
                return Ok(());
            }
        }
        let server = self.clone();
        self.tasks.spawn("merge tablets", async move {
            let pair = [&left, &right];
            let _left = left.operation.lock().await;
            let _right = right.operation.lock().await;
            if let End::Declined(reason) = merge(&server, pair, procedure).await {
                server.decline(procedure, &reason).await;
            }
            pair.iter().for_each(|tablet| tablet.procedure_over(procedure));
        });
        Ok(())
    }
}

async fn merge(server: &Arc<Server>, pair: Pair<'_>, procedure: u64) -> End {
    let [left, right] = pair;
    let started = server.env.clock.now();
    if left.table != right.table || left.range.end.is_empty() || left.range.end != right.range.start {
        return End::Declined(format!("{} and {} are no neighbours", left.id, right.id));
    }
    let [(calls, bytes), (more, more_bytes)] = pair.map(|tablet| tablet.with_gate(|gate| gate.memory.size()));
    if calls + more > RUNS_MAX || bytes + more_bytes > server.config.remembered_bytes_max {
        return End::Declined(format!("{} and {} remember too many calls for one tablet", left.id, right.id));
    }
    let flushed = futures::join!(freeze::pre_flush(server, left), freeze::pre_flush(server, right));
    if let (Err(error), _) | (_, Err(error)) = flushed {
        return End::Declined(format!("{} or {} cannot be flushed: {error}", left.id, right.id));
    }
    let alone = [&left.maintenance.lock().await, &right.maintenance.lock().await];
    if server.stop.is_asked() {
        return End::Declined("the server is about to stop".into());
    }
    let frozen = server.env.clock.now();
    if !pair.iter().all(|tablet| tablet.transition(&[TabletState::Open], TabletState::Frozen)) {
        freeze::thaw(&pair);
        return End::Declined(format!("{} or {} is not open", left.id, right.id));
    }
    let remembered = match freeze::while_patient(server, &pair, final_flush(server, pair, alone)).await {
        Ok(remembered) => remembered,
        Err(reason) => {
            freeze::thaw(&pair);
            return End::Declined(reason);
        }
    };
    let end = replace(server, pair, procedure, remembered).await;
    let clock = &server.env.clock;
    let (took, frozen, is_done) = (clock.since(started), clock.since(frozen), matches!(end, End::Gone));
    tracing::info!(left = %left.id, right = %right.id, is_done, ?took, ?frozen, "merge has ended");
    end
}

/// Flushes both, and writes what both remember.
async fn final_flush(server: &Server, pair: Pair<'_>, alone: [&MutexGuard<'_, ()>; 2]) -> Result<Remembered, String> {
    let [left, right] = pair;
    if !is_planted(Planted::FreezeWithoutDrain) {
        futures::join!(left.drain(), right.drain());
    }
    // Nothing is added to either from here on.
    let mut memory = left.with_gate(|gate| gate.memory.clone());
    memory.absorb(right.with_gate(|gate| gate.memory.clone()));
    memory.expire(server.env.clock.wall_micros());
    let upto = left.store.published().max(right.store.published());
    let path = server.file_name(left, "mem");
    let write = server.write_file(path.clone(), memory.encode(upto));
    let flushes = [0, 1].map(|i| freeze::drain_and_flush(server, pair[i], alone[i]));
    let (file, quiet) = futures::join!(write, futures::future::join_all(flushes));
    let failed = match (&file, &quiet[..]) {
        (Ok(_), [Quiet::Flushed, Quiet::Flushed]) => None,
        (Err(error), _) => Some(error.message.clone()),
        (Ok(_), _) if quiet.contains(&Quiet::Lost) => Some(format!("{} or {} is not here any more", left.id, right.id)),
        (Ok(_), _) => Some(format!("the final flush of {} and {} takes too long", left.id, right.id)),
    };
    match failed {
        None => Ok(Remembered { memory, file: path }),
        Some(reason) => {
            server.renounce(&[path]).await;
            Err(reason)
        }
    }
}

/// The command, until its outcome is known, and what follows from that.
async fn replace(server: &Arc<Server>, pair: Pair<'_>, procedure: u64, remembered: Remembered) -> End {
    let [left, right] = pair;
    let Remembered { memory, file } = remembered;
    // From here on what takes their place may be served, perhaps by others.
    if !pair.iter().all(|tablet| tablet.transition(&[TabletState::Frozen], TabletState::Replacing)) {
        server.renounce(&[file]).await;
        pair.iter().for_each(|tablet| {
            tablet.transition(&[TabletState::Replacing, TabletState::Frozen], TabletState::Open);
        });
        return End::Declined(format!("{} or {} is not here any more", left.id, right.id));
    }
    let files = pair.iter().flat_map(|tablet| tablet.store.files()).flat_map(|group| group.files);
    let _pinned = server.pins.hold(&files.map(|file| file.path).collect::<Vec<_>>());
    let request = TabletsMergedRequest {
        server_id: server.incarnation.server_id.0,
        left: Some(left.key()),
        right: Some(right.key()),
        procedure,
        left_flushed_seq: left.store.flushed_seq().0,
        right_flushed_seq: right.store.flushed_seq().0,
        memory_file: file.clone(),
        report_number: server.pins.last_report(),
    };
    let call = |mut master: super::masters::Client| {
        let request = request.clone();
        async move { master.tablets_merged(request).await }
    };
    match server.masters.call("tablets merged", call).await.result {
        Ok(TabletsMergedResponse { row }) => {
            let merged = row
                .filter(|row| row.memory_file == file)
                .and_then(|row| server.make_from_memory(&pair, &row, memory))
                .into_iter()
                .collect();
            // Requests for the two wait until the one is served.
            server.serve_made(merged);
            pair.iter().for_each(|tablet| server.tablets.close(tablet));
            End::Gone
        }
        Err(error) => match server.settle(&pair, procedure, &error).await {
            true => {
                server.renounce(&[file]).await;
                End::Settled
            }
            false => End::Gone,
        },
    }
}

/// The flushed SeqNo of what takes the place of these tablets.
pub fn flushed_seq(parents: &[&Arc<Tablet>]) -> SeqNo {
    parents.iter().map(|parent| parent.store.flushed_seq()).max().unwrap_or(SeqNo::ZERO)
}
