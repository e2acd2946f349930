//! Tablets split, merged and moved by hand; servers drained; the balancer and the check.
//!
//! Invariant: every call that changes something carries one number for all of its attempts, so that a
//! retry finds the procedure that an earlier attempt started instead of starting another.

use bytes::Bytes;
use uruk_proto::master::{
    BalanceRequest, BalanceResponse, CheckRequest, CheckResponse, DrainServerRequest, MergeTabletsRequest,
    MoveTabletRequest, ProcedureInfo, SplitTabletRequest, TabletChoice as ChoiceMessage,
};
use uruk_proto::{ErrorCode, ServerId, TabletId};

use crate::client::Client;
use crate::error::{Error, Outcome, Result};
use crate::masters::MasterClient;
use crate::mutation::check_row_key;
use crate::retry::Effect;

/// What a procedure that did its work calls its outcome.
const DONE: &str = "done";

/// Which tablet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TabletChoice {
    /// The one with this id.
    Id(TabletId),
    /// The one that holds this row of this table.
    Row {
        /// The table's name.
        table: String,
        /// A row key, of a row that may exist or not.
        row: Bytes,
    },
}

impl TabletChoice {
    /// The tablet that holds `row`.
    pub fn row(table: impl Into<String>, row: impl Into<Bytes>) -> TabletChoice {
        TabletChoice::Row { table: table.into(), row: row.into() }
    }
}

/// A split, merge or move that is done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Procedure {
    /// Its number.
    pub procedure: u64,
    /// `split`, `merge` or `move`.
    pub kind: String,
    /// Why it was started.
    pub reason: String,
    /// The tablets that it was about.
    pub tablets: Vec<TabletId>,
    /// Those that came of it.
    pub results: Vec<TabletId>,
    /// Of a move: where to.
    pub server: Option<ServerId>,
    /// Wall time, microseconds.
    pub started_micros: u64,
    /// Wall time, microseconds.
    pub ended_micros: u64,
}

/// Whether the balancer only says what it would do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BalanceMode {
    /// Only says it.
    DryRun,
    /// Does it as well.
    Run,
}

/// How much a check looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CheckDepth {
    /// The master's rows, and what the servers report.
    Rows,
    /// Storage too: files without references.
    Storage,
}

impl Client {
    /// Splits a tablet at `at`, which becomes the first row of its right half, or in the middle of its
    /// bytes. A tablet chosen by a row of a salted table is cut at the key as it is stored behind that
    /// row's prefix; one chosen by its id is cut at exactly `at`.
    ///
    /// # Errors
    /// The tablet is not there, is busy with something else, or has nothing to split.
    pub async fn split_tablet(&self, tablet: &TabletChoice, at: Option<Bytes>) -> Result<Procedure> {
        let (tablet, at) = self.choose(tablet, at).await?;
        let request = SplitTabletRequest { tablet: Some(tablet), at, request: self.core.env.random.u64() };
        let info = self.core.masters.call(Effect::Command, self.admin_deadlines(), |mut master| {
            let request = request.clone();
            async move { master.split_tablet(request).await }
        });
        procedure(info.await?)
    }

    /// Merges a tablet with its right neighbour.
    ///
    /// # Errors
    /// The tablet is not there or the last of its table, or one of both is busy with something else.
    pub async fn merge_tablets(&self, left: &TabletChoice) -> Result<Procedure> {
        let (tablet, _) = self.choose(left, None).await?;
        let request = MergeTabletsRequest { tablet: Some(tablet), request: self.core.env.random.u64() };
        let info = self.core.masters.call(Effect::Command, self.admin_deadlines(), |mut master| {
            let request = request.clone();
            async move { master.merge_tablets(request).await }
        });
        procedure(info.await?)
    }

    /// Moves a tablet to a server, or to one that the master chooses.
    ///
    /// # Errors
    /// Tablet or server are not there, the server is draining, or the tablet is busy with something else.
    pub async fn move_tablet(&self, tablet: &TabletChoice, to: Option<ServerId>) -> Result<Procedure> {
        let (tablet, _) = self.choose(tablet, None).await?;
        let server_id = to.unwrap_or_default().0;
        let request = MoveTabletRequest { tablet: Some(tablet), server_id, request: self.core.env.random.u64() };
        let info = self.core.masters.call(Effect::Command, self.admin_deadlines(), |mut master| {
            let request = request.clone();
            async move { master.move_tablet(request).await }
        });
        procedure(info.await?)
    }

    /// Moves every tablet off the server and gives it no more; answers, with how many were moved, when it
    /// has none.
    ///
    /// # Errors
    /// There is no such live server, or none that could take its tablets.
    pub async fn drain_server(&self, server: ServerId) -> Result<u32> {
        self.set_draining(DrainServerRequest { server_id: server.0, undo: false }).await
    }

    /// Lets a drained server have tablets again.
    ///
    /// # Errors
    /// There is no such live server.
    pub async fn undrain_server(&self, server: ServerId) -> Result<()> {
        self.set_draining(DrainServerRequest { server_id: server.0, undo: true }).await.map(drop)
    }

    async fn set_draining(&self, request: DrainServerRequest) -> Result<u32> {
        let call = |mut master: MasterClient| async move { master.drain_server(request).await };
        let answer = self.core.masters.call(Effect::Command, self.admin_deadlines(), call);
        Ok(answer.await?.moved)
    }

    /// What the balancer would do now, with costs and reasons.
    ///
    /// # Errors
    /// No master answers.
    pub async fn balance(&self, mode: BalanceMode) -> Result<BalanceResponse> {
        let request = BalanceRequest { run: mode == BalanceMode::Run };
        let (effect, deadlines) = match mode {
            BalanceMode::DryRun => (Effect::Read, self.read_deadlines()),
            BalanceMode::Run => (Effect::Command, self.admin_deadlines()),
        };
        let call = |mut master: MasterClient| async move { master.balance(request).await };
        self.core.masters.call(effect, deadlines, call).await
    }

    /// Compares what the master knows with what servers and storage have. Changes nothing.
    ///
    /// # Errors
    /// No master answers.
    pub async fn check(&self, depth: CheckDepth) -> Result<CheckResponse> {
        let request = CheckRequest { deep: depth == CheckDepth::Storage };
        let call = |mut master: MasterClient| async move { master.check(request).await };
        self.core.masters.call(Effect::Read, self.admin_deadlines(), call).await
    }

    /// With keys as they are stored.
    async fn choose(&self, tablet: &TabletChoice, at: Option<Bytes>) -> Result<(ChoiceMessage, Bytes)> {
        let at = at.unwrap_or_default();
        match tablet {
            TabletChoice::Id(id) => {
                Ok((ChoiceMessage { tablet_id: id.0, table: String::new(), row: Bytes::new() }, at))
            }
            TabletChoice::Row { table, row } => {
                let salt = self.table(table).await?.salt();
                // An empty key is before the first row.
                let row = if row.is_empty() && salt.is_none() { Bytes::new() } else { salt.row(row)? };
                let at = match at.is_empty() || salt.is_none() {
                    true => at,
                    false => [&row[..1], &at[..]].concat().into(),
                };
                if !at.is_empty() {
                    check_row_key(&at)?;
                }
                Ok((ChoiceMessage { tablet_id: 0, table: table.clone(), row }, at))
            }
        }
    }
}

/// A procedure that ended without doing its work is an error: it changed nothing.
fn procedure(info: ProcedureInfo) -> Result<Procedure> {
    if info.outcome != DONE {
        let tablets: Vec<String> = info.tablets.iter().map(|tablet| TabletId(*tablet).to_string()).collect();
        let message = format!("the {} of {} was given up: {}", info.kind, tablets.join(" and "), info.outcome);
        return Err(Error::Refused { code: ErrorCode::FailedPrecondition, message, outcome: Outcome::NotDone });
    }
    let tablets = |ids: Vec<u64>| ids.into_iter().map(TabletId).collect();
    Ok(Procedure {
        procedure: info.procedure,
        kind: info.kind,
        reason: info.reason,
        tablets: tablets(info.tablets),
        results: tablets(info.results),
        server: (info.server_id != 0).then_some(ServerId(info.server_id)),
        started_micros: info.started_micros,
        ended_micros: info.ended_micros,
    })
}
