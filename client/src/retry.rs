//! When to try again. Pure: no clock, no randomness, no IO of its own.
//!
//! What a failed attempt means for the call:
//!
//! | failure                                   | next                             | its effect  |
//! |-------------------------------------------|----------------------------------|-------------|
//! | cannot connect                            | look up, at once; then back off  | not done    |
//! | connection broke, unexplained status      | look up, at once; then back off  | unknown     |
//! | silent, or the tablet moved meanwhile     | look up, at once; then back off  | unknown     |
//! | `StaleLocation`                           | look up, at once; then the leader; then back off | not done |
//! | `NotLeader`                               | the leader, at once; then back off | not done  |
//! | `Unavailable`, `Overloaded`               | back off, as long as the server asks | not done |
//! | `Unknown`, `DeadlineExceeded`             | back off                         | unknown     |
//! | `NotFound`                                | resolve the table's name once; then fail | not done |
//! | `InvalidArgument`, `AlreadyExists`, `FailedPrecondition`, `Fenced` | fail    | not done    |
//! | `Corrupt`, `Internal`                     | fail                             | unknown     |
//!
//! Invariants: (1) once any attempt's effect is unknown, the call's is, until an attempt succeeds;
//! (2) a refusal after an unknown attempt says nothing about that one (it may still be on its way),
//! so it ends the call as unknown. Two refusals do say: `InvalidArgument` (the same bytes are refused
//! always), and any answer to a command that the receiver remembers with its result;
//! (3) a wait is never shorter than a server asks, and the sum of waits never passes the deadline.

use std::time::Duration;

use tonic::{ConnectError, Status};
use uruk_base::Moment;
use uruk_proto::{ErrorCode, RpcError};

use crate::config::ClientConfig;
use crate::error::{Error, Outcome};

/// Attempts without any wait after failures that more knowledge can mend, in a row.
const AT_ONCE_MAX: u32 = 2;

/// What a call changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Effect {
    /// Nothing: no attempt of it can have an unknown effect.
    Read,
    /// A row, under an idempotency key.
    Write,
    /// The cluster, by a command whose answer the master remembers.
    Command,
}

/// Where a failure was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// The server answered it.
    Server,
    /// No connection could be made: nothing was sent.
    Connect,
    /// The connection broke, or the status is not one of ours.
    Transport,
    /// No answer in time, or the tablet moved while we waited.
    Silent,
}

/// A failed attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Failure {
    pub code: ErrorCode,
    pub origin: Origin,
    pub message: String,
    pub leader: Option<String>,
    pub retry_after: Duration,
}

impl Failure {
    /// A failure that a server answered, perhaps for one row of several.
    pub fn answered(code: ErrorCode, message: impl Into<String>) -> Failure {
        Failure { code, origin: Origin::Server, message: message.into(), leader: None, retry_after: Duration::ZERO }
    }

    /// No answer, and none is waited for any more.
    pub fn silent(message: impl Into<String>) -> Failure {
        Failure { origin: Origin::Silent, ..Failure::answered(ErrorCode::DeadlineExceeded, message) }
    }

    /// Whether the attempt may have had, or may still have, its effect.
    pub fn is_unknown(&self) -> bool {
        match self.origin {
            Origin::Connect => false,
            Origin::Transport | Origin::Silent => true,
            Origin::Server => !self.code.is_not_done(),
        }
    }

    /// Whether trying again may help.
    pub fn is_retriable(&self) -> bool {
        match self.origin {
            Origin::Connect | Origin::Silent => true,
            Origin::Transport | Origin::Server => self.code.is_retriable(),
        }
    }

    /// Whether the tablet's location may be another by now.
    pub fn doubts_location(&self) -> bool {
        match self.origin {
            Origin::Connect | Origin::Transport | Origin::Silent => true,
            Origin::Server => matches!(
                self.code,
                ErrorCode::StaleLocation | ErrorCode::NotFound | ErrorCode::Unavailable | ErrorCode::NotLeader
            ),
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        // A status with our details was written by a server of ours; one without comes from the
        // transport, at either end.
        let origin = if !status.details().is_empty() {
            Origin::Server
        } else if has_connect_error(&status) {
            Origin::Connect
        } else if matches!(status.code(), tonic::Code::InvalidArgument | tonic::Code::Unimplemented) {
            Origin::Server
        } else {
            Origin::Transport
        };
        let error = RpcError::from(status);
        Failure {
            code: if origin == Origin::Connect { ErrorCode::Unavailable } else { error.code },
            origin,
            message: error.message,
            leader: error.leader,
            retry_after: Duration::from_millis(error.retry_after_ms),
        }
    }
}

fn has_connect_error(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// How waits grow.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct RetryPolicy {
    pub first: Duration,
    pub factor: f64,
    pub wait_max: Duration,
    pub retry_after_max: Duration,
}

impl RetryPolicy {
    pub fn new(config: &ClientConfig) -> RetryPolicy {
        RetryPolicy {
            first: Duration::from_millis(config.retry_first_ms),
            factor: config.retry_factor,
            wait_max: Duration::from_millis(config.retry_wait_ms_max),
            retry_after_max: Duration::from_millis(config.retry_after_ms_max),
        }
    }

    /// The `n`th wait (from 0); `unit` in [0, 1) spreads it over 0.7 to 1.3 times its length.
    pub fn wait(&self, n: u32, unit: f64) -> Duration {
        let grown = self.first.as_secs_f64() * self.factor.powi(n.min(1_000) as i32);
        Duration::from_secs_f64(grown.min(self.wait_max.as_secs_f64()) * (0.7 + 0.6 * unit))
    }
}

/// What to do after a failed attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Try again, after this wait; ask the leader where the tablet is when `ask_leader`.
    Retry { after: Duration, ask_leader: bool },
    /// Resolve the table's name again, then retry if the table has another id, else fail.
    Resolve,
    /// Give up.
    Fail,
}

/// A call's attempts so far.
#[derive(Clone, Debug)]
pub(crate) struct Attempts {
    effect: Effect,
    started: Moment,
    deadline: Duration,
    made: u32,
    waits: u32,
    at_once: u32,
    stale: u32,
    resolved: bool,
    unknown: bool,
    /// Failed since the last progress.
    failing: bool,
}

impl Attempts {
    pub fn new(effect: Effect, started: Moment, deadline: Duration) -> Attempts {
        Attempts {
            effect,
            started,
            deadline,
            made: 0,
            waits: 0,
            at_once: 0,
            stale: 0,
            resolved: false,
            unknown: false,
            failing: false,
        }
    }

    /// When the call must have ended.
    pub fn deadline(&self) -> Moment {
        self.started + self.deadline
    }

    /// Time left.
    pub fn left(&self, now: Moment) -> Duration {
        self.deadline().saturating_since(now)
    }

    /// Something was achieved: waits start over, and so does the deadline (for scans).
    pub fn progressed(&mut self, now: Moment) {
        self.started = now;
        (self.waits, self.at_once, self.stale) = (0, 0, 0);
        (self.resolved, self.failing) = (false, false);
    }

    /// The caller was busy elsewhere: unless attempts have failed, the deadline starts over.
    pub fn idle(&mut self, now: Moment) {
        if !self.failing {
            self.started = now;
        }
    }

    /// What to do after `failure`.
    pub fn failed(&mut self, failure: &Failure, now: Moment, unit: f64, policy: &RetryPolicy) -> Step {
        self.made += 1;
        self.failing = true;
        if self.effect != Effect::Read && failure.is_unknown() {
            self.unknown = true;
        }
        if failure.origin == Origin::Server && failure.code == ErrorCode::NotFound && !self.resolved {
            self.resolved = true;
            return Step::Resolve;
        }
        if !failure.is_retriable() {
            return Step::Fail;
        }
        let is_stale = failure.code == ErrorCode::StaleLocation;
        self.stale = if is_stale { self.stale + 1 } else { 0 };
        let mended_by_knowledge =
            failure.origin != Origin::Server || matches!(failure.code, ErrorCode::StaleLocation | ErrorCode::NotLeader);
        let after = if mended_by_knowledge && self.at_once < AT_ONCE_MAX {
            self.at_once += 1;
            Duration::ZERO
        } else {
            self.waits += 1;
            let wait = policy.wait(self.waits - 1, unit);
            wait.max(failure.retry_after.min(policy.retry_after_max))
        };
        if after >= self.left(now) {
            return Step::Fail;
        }
        Step::Retry { after, ask_leader: self.stale >= 2 }
    }

    /// The error of a call that ends with `failure`.
    pub fn error(&self, failure: Failure) -> Error {
        if failure.is_retriable() {
            return Error::DeadlineExceeded {
                after: self.deadline,
                attempts: self.made,
                last: failure.message,
                last_code: failure.code,
                outcome: self.outcome(),
            };
        }
        let answer_counts = match self.effect {
            Effect::Read => true,
            Effect::Command => failure.origin == Origin::Server && failure.code.is_not_done(),
            Effect::Write => failure.origin == Origin::Server && failure.code == ErrorCode::InvalidArgument,
        };
        let outcome = if answer_counts { Outcome::NotDone } else { self.outcome() };
        Error::Refused { code: failure.code, message: failure.message, outcome }
    }

    /// `error`, found by ourselves, as the end of this call.
    pub fn ends_with(&self, error: Error) -> Error {
        match (self.effect, self.outcome()) {
            (Effect::Read, _) => error.with_outcome(Outcome::NotDone),
            (Effect::Write | Effect::Command, Outcome::Unknown) => error.with_outcome(Outcome::Unknown),
            (Effect::Write | Effect::Command, Outcome::NotDone) => error,
        }
    }

    /// Whether the table's name was resolved again since the last progress.
    pub fn has_resolved(&self) -> bool {
        self.resolved
    }

    /// What is known about the call's effect, from the attempts so far.
    pub fn outcome(&self) -> Outcome {
        if self.unknown { Outcome::Unknown } else { Outcome::NotDone }
    }

    /// Marks an unknown effect that was learned elsewhere.
    pub fn mark_unknown(&mut self) {
        self.unknown = self.effect != Effect::Read;
    }
}

#[cfg(test)]
mod tests;
