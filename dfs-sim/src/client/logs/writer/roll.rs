//! Ending one segment and beginning the next, by one command of the controller.

use std::sync::Arc;
use std::time::Duration;

use uruk_base::Moment;
use uruk_base::commit_log::{LogError, LogId};
use uruk_base::planted::{Planted, is_planted};
use uruk_proto::ErrorCode;
use uruk_proto::dfs::{RollSegmentRequest, SegmentInfo};

use super::super::super::connection::Shared;
use super::super::get_log;
use super::open_segment;

/// After this long without a new segment, servers to avoid are taken as well, and then in turns.
const AVOID_FOR: Duration = Duration::from_millis(500);

/// Rolls after `delay`; the next segment. Repeating the request is safe: the controller recognizes a
/// roll that it has done. [`LogError::Fenced`] when the log is closed, `Indeterminate` when `give_up`
/// passes first.
pub async fn roll(
    shared: Arc<Shared>,
    request: RollSegmentRequest,
    delay: Duration,
    give_up: Moment,
) -> Result<SegmentInfo, LogError> {
    let id = LogId(request.log_id);
    let clock = &shared.env.clock;
    if !delay.is_zero() {
        clock.sleep(delay).await;
    }
    let mut avoiding = true;
    loop {
        let left = give_up.saturating_since(clock.now());
        let attempt =
            RollSegmentRequest { avoid: if avoiding { request.avoid.clone() } else { Vec::new() }, ..request.clone() };
        let rolled = shared
            .controllers
            .call_within(left.min(AVOID_FOR), "roll segment", |mut controller| {
                let attempt = attempt.clone();
                async move { controller.roll_segment(attempt).await }
            })
            .await;
        let error = match rolled {
            Ok(answer) if answer.closed && !is_planted(Planted::SegmentAfterClosing) => {
                return Err(LogError::Fenced(id));
            }
            Ok(answer) => {
                return open_segment(&answer, Some(request.index + 1)).cloned().ok_or_else(|| {
                    LogError::Indeterminate(id, format!("no segment {} after a roll", request.index + 1))
                });
            }
            Err(error) => error,
        };
        if error.code() == ErrorCode::Fenced {
            return Err(LogError::Fenced(id));
        }
        if !error.is_unavailable() {
            // Refused for a reason of its own: a closed log explains it.
            return Err(match get_log(&shared, id).await {
                Ok(log) if log.closed => LogError::Fenced(id),
                Ok(_) | Err(_) => LogError::Indeterminate(id, error.to_string()),
            });
        }
        if clock.now() >= give_up {
            return Err(LogError::Indeterminate(id, error.to_string()));
        }
        tracing::warn!(log = id.0, index = request.index, %error, "cannot roll yet");
        avoiding = !avoiding;
        clock.sleep(shared.env.random.jitter(Duration::from_millis(shared.config.backoff_max_ms / 4))).await;
    }
}
