//! What procedures, alterations, drains and decisions need next.

use std::time::Duration;

use uruk_proto::ServerId;

use super::{Action, Plan};
use crate::command::TabletKey;
use crate::state::procedures::{Procedure, Work};
use crate::state::row::MetaRow;

/// A server has this long to open by itself what it made by a split or a merge; then it is ordered to, as it
/// may never have learned that it did.
const MAKING: Duration = Duration::from_secs(1);

impl Plan<'_> {
    pub(super) fn procedures(&mut self) {
        let state = self.state;
        for (id, procedure) in state.procedures.running() {
            let since = self.volatile.running_since.get(id).copied().unwrap_or(self.now.moment);
            let ran = self.now.moment.saturating_since(since);
            let patience = Duration::from_millis(self.tuning.procedure_patience_ms);
            // A move needs no end: it goes on as any tablet does that was closed or assigned.
            if !matches!(procedure.work, Work::Move { .. }) && ran >= patience {
                let reason = match self.volatile.problem(&super::ActionKey::Reshape(*id)) {
                    Some(problem) => format!("not done after {} s: {problem}", ran.as_secs()),
                    None => format!("not done after {} s", ran.as_secs()),
                };
                self.add(Action::GiveUp { procedure: *id, reason });
                continue;
            }
            let repeat = Duration::from_millis(self.tuning.order_repeat_ms);
            let taken = self.volatile.reshapes_taken.get(id);
            let is_due = taken.is_none_or(|at| self.now.moment.saturating_since(*at) >= repeat);
            if let Some(server) = self.reshaper(procedure).filter(|_| is_due) {
                self.add(Action::Reshape { server, procedure: *id });
            }
        }
    }

    /// Who is to split or merge now, if all that it takes is there.
    fn reshaper(&self, procedure: &Procedure) -> Option<ServerId> {
        let open_at = |key: &TabletKey| self.state.row(key.tablet).filter(|row| row.is_open()).and_then(MetaRow::owner);
        match &procedure.work {
            Work::Split { tablet, .. } => open_at(tablet),
            Work::Merge { left, right } => open_at(left).filter(|server| open_at(right) == Some(*server)),
            Work::Move { .. } => None,
        }
    }

    /// Whether the owner may be about to open what it made, from what it has in memory.
    pub(super) fn is_being_made(&self, row: &MetaRow) -> bool {
        let since = self.volatile.opening_since.get(&row.tablet).map_or(self.now.moment, |(_, since)| *since);
        row.is_made_there() && self.now.moment.saturating_since(since) < MAKING
    }

    pub(super) fn schemas(&mut self) {
        for table in self.state.tables.all() {
            for server in table.alteration.iter().flat_map(|alteration| &alteration.waiting) {
                self.add(Action::SetSchema { server: *server, table: table.schema.id });
            }
        }
    }

    /// The moves whose turn it is, then the next decisions.
    pub(super) fn decisions(&mut self) {
        let mut under_way: Vec<ServerId> = Vec::new();
        for procedure in self.state.procedures.running().values() {
            if let Work::Move { tablet, target } = &procedure.work {
                under_way.push(*target);
                under_way.extend(self.state.row(tablet.tablet).and_then(MetaRow::owner));
            }
        }
        let running = |procedure: &&Procedure| matches!(procedure.work, Work::Move { .. });
        let mut moves = self.state.procedures.running().values().filter(running).count();
        for planned in &self.volatile.moves {
            let busy = |server| under_way.iter().filter(|busy| **busy == server).count();
            let most = busy(planned.from).max(busy(planned.to));
            if moves < self.tuning.moves_max && most < self.tuning.moves_per_server_max {
                moves += 1;
                under_way.extend([planned.from, planned.to]);
                self.add(Action::StartMove(planned.clone()));
            }
        }
        let since =
            |at: Option<uruk_base::Moment>| self.now.moment.saturating_since(at.unwrap_or(self.volatile.elected));
        let (decided, checked) = (since(self.volatile.decided), since(self.volatile.checked));
        if decided >= Duration::from_millis(self.tuning.balance_every_ms) {
            self.add(Action::Decide);
        }
        if checked >= Duration::from_millis(self.tuning.check_every_ms) {
            self.add(Action::Check);
        }
    }

    /// By command, or on its own since it ends.
    pub(super) fn is_draining(&self, server: ServerId) -> bool {
        self.volatile.draining.contains(&server) || self.state.servers.is_draining(server)
    }

    /// Off the draining servers, as long as there is another one to go to: a few at a time, since each waits
    /// for its turn without being served. What is in a procedure comes when that is over.
    pub(super) fn drains(&mut self) {
        let state = self.state;
        if state.servers.live().iter().all(|server| self.is_draining(*server)) {
            return;
        }
        for server in self.volatile.draining.union(state.servers.draining()) {
            let closing = state.index.closing().get(server).map_or(0, |tablets| tablets.len());
            let rows = state.index.owned(*server).filter_map(|tablet| state.row(tablet));
            let open = rows.filter(|row| row.is_open() && row.procedure.is_none()).map(MetaRow::key);
            let tablets: Vec<TabletKey> = open.take(self.tuning.drain_moves_max.saturating_sub(closing)).collect();
            if !tablets.is_empty() {
                self.add(Action::Drain { server: *server, tablets });
            }
        }
    }
}
