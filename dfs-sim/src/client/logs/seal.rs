//! Ending a log that may have a living writer.
//!
//! | step | does | function |
//! |---|---|---|
//! | 1 | the controllers mark the *log* closing: no new segments, no trims | [`close_log`] |
//! | 2 | an open segment becomes RECOVERING(r), r larger than any seen | [`begin_recovery`] |
//! | 3 | every member stores r, acknowledges nothing more, and tells what it holds | [`fence`] |
//! | 4, 5 | enough answers of members: the length; too few: wait; a contradiction: corrupt | [`decide`] |
//! | 6 | copy what is missing until A replicas hold it all | [`copy`] |
//! | 7 | RECOVERING(r) becomes SEALED; the loser adopts the winner's result | [`seal_segment`] |
//! | 8 | only then members cut to the length | [`finish_in_background`] |
//!
//! Steps 2 to 7 begin anew with a larger r whenever another recoverer got in between. Numbers r are
//! unique: two recoverers never share a fence.

mod copy;
mod decide;
mod fence;
mod round;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use uruk_base::Moment;
use uruk_base::commit_log::{LogError, LogId, Lsn, SealedLog};
use uruk_proto::dfs::{
    BeginRecoveryRequest, CloseLogRequest, FinishSegmentRequest, LogInfo, Member, SealSegmentRequest, SegmentInfo,
    segment_info,
};
use uruk_proto::{ErrorCode, RpcError};

pub use self::decide::{Decision, MemberAnswer, Plan, decide};
pub use self::round::next_recovery;
use super::super::connection::{Lane, Shared};
use super::super::error::CallError;
use super::{get_log, refused, sealed_length, sealed_log};

/// A recoverer that was overtaken lets the other one finish for about this long.
const OVERTAKEN_WAIT: Duration = Duration::from_millis(20);
/// A seal waits this long for the first member to finish, so that the log can be read at once.
const FINISH_WAIT: Duration = Duration::from_millis(100);
/// Attempts to tell a member where its segment ends; the controllers tell it later in any case.
const FINISH_ATTEMPTS: u32 = 3;

/// How one attempt at a segment ended.
enum Attempt {
    /// The segment is sealed, by us or by another.
    Sealed(LogInfo),
    /// Another recoverer came with a larger r, or a replica was lost: again, from step 2.
    Again(String),
}

/// Ends the log; every caller gets the same end.
pub(super) async fn seal(shared: &Arc<Shared>, id: LogId) -> Result<SealedLog, LogError> {
    let deadline = shared.env.clock.now() + Duration::from_millis(shared.config.seal_deadline_ms);
    let mut log = close_log(shared, id).await.map_err(|e| refused(id, e))?;
    let mut failures = 0;
    loop {
        if log.deleted {
            // Its fence is left; where it ended is not known to anybody.
            return Err(LogError::Trimmed(id, Lsn(u64::MAX)));
        }
        let Some(segment) = log.segments.iter().find(|s| sealed_length(s).is_none()).cloned() else {
            return sealed_log(&log)
                .ok_or_else(|| LogError::Unavailable(id, "the controllers did not close the log".into()));
        };
        let why = match attempt(shared, id, &segment, deadline).await? {
            Attempt::Sealed(now) => {
                log = now;
                continue;
            }
            Attempt::Again(why) => why,
        };
        tracing::info!(log = id.0, segment = segment.index, why, "sealing again");
        let wait = shared.env.random.jitter(OVERTAKEN_WAIT.max(shared.config.backoff(failures)));
        failures += 1;
        if shared.env.clock.now() + wait >= deadline {
            return Err(LogError::Unavailable(id, why));
        }
        shared.env.clock.sleep(wait).await;
        log = get_log(shared, id).await.map_err(|e| refused(id, e))?;
    }
}

/// Steps 2 to 8 for one segment.
async fn attempt(
    shared: &Arc<Shared>,
    id: LogId,
    segment: &SegmentInfo,
    deadline: Moment,
) -> Result<Attempt, LogError> {
    let seen = match &segment.state {
        Some(segment_info::State::Recovering(recovering)) => recovering.recovery,
        Some(segment_info::State::Open(_) | segment_info::State::Sealed(_)) | None => 0,
    };
    let recovery = next_recovery(seen, &shared.env.random);
    let segment = match begin_recovery(shared, id, segment.index, recovery).await {
        Ok(log) => match state_under(&log, segment.index, recovery) {
            State::Ours(segment) => segment,
            State::Sealed => return Ok(Attempt::Sealed(log)),
            State::Other => return Ok(Attempt::Again("another recoverer holds the segment".into())),
        },
        Err(error) if error.is_unavailable() => return Err(refused(id, error)),
        Err(error) => return Ok(Attempt::Again(error.to_string())),
    };
    let (segment, plan) = match fence::fence(shared, id, segment, recovery, deadline).await? {
        fence::Fenced::Enough(segment, plan) => (segment, plan),
        fence::Fenced::Sealed(log) => return Ok(Attempt::Sealed(log)),
        fence::Fenced::Overtaken => return Ok(Attempt::Again("a larger fence is stored".into())),
    };
    let crc = match copy::replicate(shared, id, &segment, recovery, &plan).await {
        Ok(crc) => crc,
        Err(why) => return Ok(Attempt::Again(why)),
    };
    shared.counters.seals.inc();
    match seal_segment(shared, id, segment.index, recovery, plan.length, crc).await {
        Ok(log) => match state_under(&log, segment.index, recovery) {
            State::Sealed => {
                let mut finished = finish_in_background(shared, segment, plan.length, crc);
                // Nobody finished, or nobody will: the log is sealed all the same.
                let _ = shared.env.clock.timeout(FINISH_WAIT, finished.recv()).await;
                Ok(Attempt::Sealed(log))
            }
            State::Ours(_) | State::Other => Ok(Attempt::Again("another recoverer holds the segment".into())),
        },
        Err(error) if error.is_unavailable() => Err(refused(id, error)),
        Err(error) => Ok(Attempt::Again(error.to_string())),
    }
}

/// Whose the segment is.
enum State {
    /// RECOVERING under our own number.
    Ours(SegmentInfo),
    /// Nobody's any more; also when it was trimmed away since.
    Sealed,
    Other,
}

fn state_under(log: &LogInfo, index: u32, recovery: u64) -> State {
    let Some(segment) = log.segments.iter().find(|s| s.index == index) else { return State::Sealed };
    match &segment.state {
        Some(segment_info::State::Recovering(now)) if now.recovery == recovery => State::Ours(segment.clone()),
        Some(segment_info::State::Sealed(_)) => State::Sealed,
        Some(segment_info::State::Recovering(_) | segment_info::State::Open(_)) | None => State::Other,
    }
}

/// Step 1.
async fn close_log(shared: &Shared, id: LogId) -> Result<LogInfo, CallError> {
    let request = CloseLogRequest { log_id: id.0 };
    let call =
        shared.controllers.call("close log", |mut controller| async move { controller.close_log(request).await });
    call.await
}

/// Step 2.
async fn begin_recovery(shared: &Shared, id: LogId, index: u32, recovery: u64) -> Result<LogInfo, CallError> {
    let request = BeginRecoveryRequest { log_id: id.0, index, recovery };
    let call = shared
        .controllers
        .call("begin recovery", |mut controller| async move { controller.begin_recovery(request).await });
    call.await
}

/// Step 7.
async fn seal_segment(
    shared: &Shared,
    id: LogId,
    index: u32,
    recovery: u64,
    length: u64,
    crc: u32,
) -> Result<LogInfo, CallError> {
    let request = SealSegmentRequest { log_id: id.0, index, recovery, length, crc };
    let call =
        shared.controllers.call("seal segment", |mut controller| async move { controller.seal_segment(request).await });
    call.await
}

/// Step 8, also after a roll: tells the members, as far as they can be reached, where the sealed
/// segment ends. Receives one message for each that is done.
pub(super) fn finish_in_background(
    shared: &Arc<Shared>,
    segment: SegmentInfo,
    length: u64,
    crc: u32,
) -> mpsc::UnboundedReceiver<()> {
    let (done, finished) = mpsc::unbounded_channel();
    for member in segment.members {
        let (task, shared, done) = (shared.env.tasks.clone(), shared.clone(), done.clone());
        let request = FinishSegmentRequest { segment_id: segment.segment_id, length, crc };
        task.spawn("dfs-log-finish", async move {
            if finish(&shared, &member, request).await {
                // Nobody need be waiting.
                let _ = done.send(());
            }
        });
    }
    finished
}

/// Whether the member is done.
async fn finish(shared: &Shared, member: &Member, request: FinishSegmentRequest) -> bool {
    let limit = Duration::from_millis(shared.config.seal_attempt_ms);
    for attempt in 0..FINISH_ATTEMPTS {
        let mut server = shared.chunk_server(&member.address, Lane::Log);
        let error = match shared.env.clock.timeout(limit, server.finish_segment(request)).await {
            Ok(Ok(_)) => return true,
            Ok(Err(status)) => RpcError::from(status),
            Err(elapsed) => RpcError::new(ErrorCode::DeadlineExceeded, elapsed.to_string()),
        };
        tracing::debug!(segment = request.segment_id, address = %member.address, %error, "cannot finish");
        if !error.code.is_retriable() {
            break;
        }
        shared.env.clock.sleep(shared.env.random.jitter(shared.config.backoff(attempt + 4))).await;
    }
    false
}

/// Damage that no member can make good.
fn corrupt(id: LogId, segment: &SegmentInfo, offset: u64, what: String) -> LogError {
    let what = format!("segment {} at offset {offset}: {what}", segment.segment_id);
    LogError::Corrupt { log: id, lsn: Lsn(segment.base + offset), what }
}

/// Whether a member's refusal means that a larger fence is stored there.
fn is_overtaken(code: ErrorCode) -> bool {
    code == ErrorCode::Fenced
}
