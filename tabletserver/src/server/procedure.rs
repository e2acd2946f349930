//! The master's procedures, as the server that carries one out sees them: orders, and unknown outcomes.
//!
//! | the command was | it was answered | then |
//! |---|---|---|
//! | not sent | | thaw, decline |
//! | sent | done | what the answer names is served, the old tablets are dropped |
//! | sent | not at all | repeat it, for as long as the incarnation lives |
//! | sent | refused, or nobody knows | decline; once that is answered, read the rows: ours as before: thaw; else drop |
//!
//! Invariant: after a command was sent a tablet thaws only when its procedure is known to be over and its
//! row, read after that, is still ours and does not name it. The answer to `ProcedureDeclined` is that
//! knowledge: behind that command no attempt of the procedure's own can commit any more, however late it arrives.

use std::sync::Arc;
use std::time::Duration;

use uruk_proto::master::{MetaRow, ProcedureDeclinedRequest, TabletKey};
use uruk_proto::{Epoch, ErrorCode, RpcError, TabletId};

use super::Server;
use super::incarnation::Ended;
use super::tablet::{Tablet, TabletState};
use super::tablets::Presence;

/// Pause before the master is told again.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// How an order ended.
pub enum End {
    /// Others have taken the tablets' place, or they are not ours any more.
    Gone,
    /// Nothing was sent, and they are served as before.
    Declined(String),
    /// The master knows that the procedure is over, and they are served as before.
    Settled,
}

impl Server {
    /// The tablet that an order means; None when it is not served here under this epoch: it never was, or it
    /// is over (no command of ours is on its way then, for a tablet stays here until the outcome is known).
    /// What this server cannot tell yet must be ordered again.
    pub fn standing(&self, key: Option<TabletKey>) -> Result<Option<Arc<Tablet>>, RpcError> {
        let key = key.unwrap_or_default();
        let (id, epoch) = (TabletId(key.tablet_id), Epoch(key.epoch));
        let opening = || Err(RpcError::new(ErrorCode::Unavailable, format!("{id} is opening")));
        match self.tablets.at_epoch(id, epoch) {
            Presence::Loaded(tablet) if tablet.state() == TabletState::Loaded => opening(),
            Presence::Loaded(tablet) => Ok(Some(tablet)),
            Presence::Opening => opening(),
            Presence::Absent => Ok(None),
        }
    }

    /// Declines, in the background, what will never be done here.
    pub fn spawn_decline(self: &Arc<Self>, procedure: u64, reason: String) {
        let server = self.clone();
        self.tasks.spawn("decline procedure", async move { server.decline(procedure, &reason).await });
    }

    /// Ends the procedure; returns when the master knows, and so nothing of it will be committed.
    pub async fn decline(&self, procedure: u64, reason: &str) {
        tracing::info!(procedure, reason, "procedure is declined");
        let server_id = self.incarnation.server_id.0;
        let request = ProcedureDeclinedRequest { server_id, procedure, reason: reason.to_owned() };
        loop {
            let call = |mut master: super::masters::Client| {
                let request = request.clone();
                async move { master.procedure_declined(request).await }
            };
            match self.masters.call("procedure declined", call).await.result {
                Ok(_) => return,
                // It was over before.
                Err(error) if matches!(error.code, ErrorCode::NotFound | ErrorCode::FailedPrecondition) => return,
                Err(error) => {
                    self.end_if_fenced(&error);
                    tracing::warn!(procedure, %error, "the master does not take the refusal of a procedure yet");
                }
            }
            self.env.clock.sleep(RETRY_DELAY).await;
        }
    }

    /// After an answer to the replacing command that was not "done": finds out what became of the tablets.
    /// True when they are ours as before, and thawed.
    pub async fn settle(&self, tablets: &[&Arc<Tablet>], procedure: u64, error: &RpcError) -> bool {
        self.end_if_fenced(error);
        self.decline(procedure, &error.message).await;
        let mut all_ours = true;
        for tablet in tablets {
            match self.read_row_after(tablet, procedure).await {
                Some(row) if self.is_own(tablet, &row) => {
                    // The refusal may have come from our knowing the row less well than we should.
                    if let Err(error) = tablet.install(&row, None) {
                        tracing::error!(tablet = %tablet.id, %error, "cannot take over the row as it was read");
                    }
                    tablet.transition(&[TabletState::Replacing, TabletState::Frozen], TabletState::Open);
                }
                Some(_) | None => {
                    all_ours = false;
                    tracing::info!(tablet = %tablet.id, epoch = %tablet.epoch, "tablet is replaced, or another's");
                    self.tablets.close(tablet);
                }
            }
        }
        all_ours
    }

    /// The row once it does not name the procedure any more.
    async fn read_row_after(&self, tablet: &Tablet, procedure: u64) -> Option<MetaRow> {
        loop {
            let row = self.read_row(tablet).await;
            if row.as_ref().is_none_or(|row| row.procedure != procedure) {
                return row;
            }
            tracing::error!(tablet = %tablet.id, procedure, "the row names a procedure that is over; asking again");
            self.env.clock.sleep(RETRY_DELAY).await;
            self.decline(procedure, "it was declined before").await;
        }
    }

    fn is_own(&self, tablet: &Tablet, row: &MetaRow) -> bool {
        row.server_id == self.incarnation.server_id.0 && row.epoch == tablet.epoch.0
    }

    fn end_if_fenced(&self, error: &RpcError) {
        if error.code == ErrorCode::Fenced {
            self.incarnation.end(Ended::DeclaredDead(error.message.clone()));
        }
    }
}
