//! Splitting a tablet in two, by the master's order (`docs/adr/0004-split-and-merge.md`).
//!
//! Invariants: (1) the command is sent only when everything acknowledged is in committed files; (2) a half
//! remembers all calls that the parent did; (3) the parent's files are reported as read until all of its
//! scans have ended; (4) a half that this server cannot make from what it has in memory is left to the
//! order to open it; (5) one that it can make is served at the master's answer, which is the word that it may,
//! and only under the epoch that the split gave it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::MutexGuard;
use uruk_base::Moment;
use uruk_base::planted::{Planted, is_planted};
use uruk_proto::master::{MetaRow, TabletSplitRequest, TabletSplitResponse, TabletState as RowState};
use uruk_proto::schema::validate_row_key;
use uruk_proto::tablet::SplitTabletOrder;
use uruk_proto::{Epoch, RpcError, SeqNo, TabletId};

use super::Server;
use super::freeze::{self, Quiet};
use super::memory::Memory;
use super::procedure::End;
use super::tablet::{Tablet, TabletState, TakenUp};
use crate::engine::TabletStore;

impl Server {
    /// Takes an order; the work goes on in the background. Repeated orders change nothing.
    pub fn order_split(self: &Arc<Self>, order: SplitTabletOrder) -> Result<(), RpcError> {
        let Some(tablet) = self.standing(order.tablet)? else {
            self.spawn_decline(order.procedure, "the tablet is not here under this epoch".into());
            return Ok(());
        };
        match tablet.take_up(order.procedure) {
            TakenUp::New => {}
            TakenUp::Running => return Ok(()),
            TakenUp::Over => {
                self.spawn_decline(order.procedure, "it is over here".into());
                return Ok(());
            }
        }
        let server = self.clone();
        self.tasks.spawn("split tablet", async move {
            let _operation = tablet.operation.lock().await;
            if let End::Declined(reason) = split(&server, &tablet, &order).await {
                server.decline(order.procedure, &reason).await;
            }
            tablet.procedure_over(order.procedure);
        });
        Ok(())
    }
}

async fn split(server: &Arc<Server>, tablet: &Arc<Tablet>, order: &SplitTabletOrder) -> End {
    let started = server.env.clock.now();
    if let Err(error) = freeze::pre_flush(server, tablet).await {
        return End::Declined(format!("{} cannot be flushed: {error}", tablet.id));
    }
    let at = match choose(tablet, order).await {
        Ok(at) => at,
        Err(reason) => return End::Declined(reason),
    };
    // Reads what the shares need while the tablet is served.
    if let Err(error) = tablet.store.shares(&at).await {
        return End::Declined(format!("{}: {error}", tablet.id));
    }
    // A commit under way ends first.
    let alone = tablet.maintenance.lock().await;
    if server.stop.is_asked() {
        return End::Declined("the server is about to stop".into());
    }
    if !tablet.transition(&[TabletState::Open], TabletState::Frozen) {
        return End::Declined(format!("{} is not open", tablet.id));
    }
    let frozen = server.env.clock.now();
    let (drained, quiet) = freeze::while_patient(server, &[tablet], final_flush(server, tablet, &alone)).await;
    let flushed = server.env.clock.now();
    match quiet {
        Quiet::Flushed => {}
        Quiet::Thawed => return End::Declined(format!("the final flush of {} takes too long", tablet.id)),
        Quiet::Lost => return End::Declined(format!("{} is not here any more", tablet.id)),
    }
    let end = replace(server, tablet, order.procedure, &at).await;
    let clock = &server.env.clock;
    let [drain, flush] = [drained.saturating_since(frozen), flushed.saturating_since(drained)];
    let (took, frozen) = (clock.since(started), clock.since(frozen));
    let at = at.escape_ascii();
    match &end {
        // What is neither drain nor flush is the command.
        End::Gone => tracing::info!(tablet = %tablet.id, %at, ?took, ?frozen, ?drain, ?flush, "tablet is split"),
        End::Declined(reason) => tracing::info!(tablet = %tablet.id, reason, ?frozen, "tablet is not split"),
        End::Settled => tracing::info!(tablet = %tablet.id, ?took, ?frozen, "tablet is not split; thawed"),
    }
    end
}

/// Also says when the tablet was drained.
async fn final_flush(server: &Server, tablet: &Arc<Tablet>, alone: &MutexGuard<'_, ()>) -> (Moment, Quiet) {
    freeze::drain(tablet).await;
    let drained = server.env.clock.now();
    if is_planted(Planted::SplitWithoutFinalFlush) {
        return (drained, Quiet::Flushed);
    }
    (drained, freeze::flush_what_is_left(server, tablet, alone).await)
}

/// The first row of the right half, or why there is none.
async fn choose(tablet: &Tablet, order: &SplitTabletOrder) -> Result<Bytes, String> {
    let id = tablet.id;
    let at = if !order.at.is_empty() {
        order.at.clone()
    } else if order.by_load {
        tablet.samples.middle().map_err(|why| format!("{id}: {why}"))?
    } else {
        match tablet.store.middle().await {
            Ok(Some(at)) => at,
            Ok(None) => return Err(format!("{id} has fewer than two rows: nothing to split")),
            Err(error) => return Err(format!("{id}: {error}")),
        }
    };
    validate_row_key(&at).map_err(|error| format!("{id} cannot be split: {error}"))?;
    if !tablet.range.contains(&at) || at == tablet.range.start {
        return Err(format!("row \"{}\" is not strictly inside of {id}", at.escape_ascii()));
    }
    Ok(at)
}

/// The command, until its outcome is known, and what follows from that.
async fn replace(server: &Arc<Server>, tablet: &Arc<Tablet>, procedure: u64, at: &Bytes) -> End {
    let files = match tablet.store.shares(at).await {
        Ok(files) => files,
        Err(error) => {
            freeze::thaw(&[tablet]);
            return End::Declined(format!("{}: {error}", tablet.id));
        }
    };
    // From here on what takes its place may be served, perhaps by others.
    if !tablet.transition(&[TabletState::Frozen], TabletState::Replacing) {
        return End::Declined(format!("{} is not here any more", tablet.id));
    }
    // A file that neither half names is named by nobody once the command has committed.
    let paths: Vec<String> = files.iter().map(|file| file.path.clone()).collect();
    let _pinned = server.pins.hold(&paths);
    let request = TabletSplitRequest {
        server_id: server.incarnation.server_id.0,
        tablet: Some(tablet.key()),
        procedure,
        at: at.clone(),
        files,
        flushed_seq: tablet.store.flushed_seq().0,
        report_number: server.pins.last_report(),
    };
    let call = |mut master: super::masters::Client| {
        let request = request.clone();
        async move { master.tablet_split(request).await }
    };
    if is_planted(Planted::SplitReplyLostThaws) && server.masters.attempt(call).await.is_err() {
        tablet.transition(&[TabletState::Replacing], TabletState::Open);
        return End::Settled;
    }
    match server.masters.call("tablet split", call).await.result {
        Ok(TabletSplitResponse { left, right }) => {
            let halves = [left, right].into_iter().flatten();
            let memory = tablet.with_gate(|gate| gate.memory.clone());
            let halves = halves.filter_map(|row| server.make_from_memory(&[tablet], &row, memory.clone())).collect();
            // Requests for the parent wait until the halves are served.
            server.serve_made(halves);
            server.tablets.close(tablet);
            End::Gone
        }
        Err(error) => match server.settle(&[tablet], procedure, &error).await {
            true => End::Settled,
            false => End::Gone,
        },
    }
}

impl Server {
    /// A tablet as the master's answer names it, made of what its `parents` have in memory; it may be served at
    /// once. None when the order to open it must do the work, or has done it.
    pub fn make_from_memory(
        self: &Arc<Self>,
        parents: &[&Arc<Tablet>],
        row: &MetaRow,
        memory: Memory,
    ) -> Option<Arc<Tablet>> {
        let (id, epoch) = (TabletId(row.tablet_id), Epoch(row.epoch));
        let own = self.incarnation.server_id.0;
        let flushed = super::merge::flushed_seq(parents);
        // A repeated answer may be old, or tell of later times, when it came back to us by an order: then memory
        // does not fit the row, or the answer is not the word that it may be served.
        let born = parents.iter().map(|parent| parent.epoch.0 + 1).max();
        let fits = row.server_id == own
            && row.state == RowState::Opening as i32
            && row.needed_logs == [own]
            && SeqNo(row.flushed_seq) == flushed
            && Some(row.epoch) == born;
        if !fits || !self.tablets.start_opening(id, epoch) {
            return None;
        }
        let schema = parents.iter().map(|parent| parent.store.schema()).max_by_key(|schema| schema.version)?;
        let store = match TabletStore::open(&self.engine, schema, row) {
            Ok(store) => store,
            Err(error) => {
                tracing::error!(tablet = %id, %error, "cannot make a tablet of what is in memory; waiting for the order");
                self.tablets.abort_opening(id, epoch);
                return None;
            }
        };
        let tablet = Arc::new(Tablet::new(Arc::new(store), row, memory, Vec::new(), self.env.random.u64()));
        let is_here = self.tablets.finish_opening(tablet.clone());
        self.schemas.apply(&tablet);
        is_here.then_some(tablet)
    }
}
