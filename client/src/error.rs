//! How a call ends. There are three ways: done (`Ok`), not done, and unknown.
//!
//! Invariants: (1) [`Outcome::NotDone`] is said only when no attempt of the call has had, or will
//! have, an effect; (2) a call whose any attempt might have had one ends as [`Outcome::Unknown`],
//! unless a later attempt got a definite answer under the same idempotency key.

use std::time::Duration;

use uruk_proto::{ErrorCode, RpcError};

/// What is known about the effect of a call that failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It had no effect, and will have none.
    NotDone,
    /// It may have had its effect, or may still have it.
    Unknown,
}

/// Why a call failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// The arguments break a rule; found before anything was sent.
    #[error("{message}")]
    InvalidArgument {
        /// Which rule.
        message: String,
    },
    /// The table has no such family.
    #[error("Requested column family not found: table {table} has no family {family:?}")]
    UnknownFamily {
        /// The table.
        table: String,
        /// The family that was named.
        family: String,
    },
    /// There is no such table.
    #[error("table {table:?} does not exist")]
    UnknownTable {
        /// The name that was given.
        table: String,
    },
    /// A server's final answer.
    #[error("{message}")]
    Refused {
        /// What the caller should do.
        code: ErrorCode,
        /// What the server says.
        message: String,
        /// What is known about the call's effect.
        outcome: Outcome,
    },
    /// The call was tried until its deadline.
    #[error("not answered within {after:?} ({attempts} attempts); the last failure: {last}")]
    DeadlineExceeded {
        /// The deadline.
        after: Duration,
        /// How often it was tried.
        attempts: u32,
        /// Why the last attempt failed.
        last: String,
        /// The code of the last failure: overloaded, unavailable and so on.
        last_code: ErrorCode,
        /// What is known about the call's effect.
        outcome: Outcome,
    },
    /// A server answered what the protocol does not allow.
    #[error("bad response: {message}")]
    BadResponse {
        /// What is wrong with it.
        message: String,
        /// What is known about the call's effect.
        outcome: Outcome,
    },
    /// The client was shut down before the call ended.
    #[error("the client is shut down")]
    ShutDown {
        /// What is known about the call's effect.
        outcome: Outcome,
    },
}

impl Error {
    /// What is known about the effect of the call.
    pub fn outcome(&self) -> Outcome {
        match self {
            Error::InvalidArgument { .. } | Error::UnknownFamily { .. } | Error::UnknownTable { .. } => {
                Outcome::NotDone
            }
            Error::Refused { outcome, .. }
            | Error::DeadlineExceeded { outcome, .. }
            | Error::BadResponse { outcome, .. }
            | Error::ShutDown { outcome } => *outcome,
        }
    }

    /// The code that a server in front of this client would pass on.
    pub fn code(&self) -> ErrorCode {
        match self {
            Error::InvalidArgument { .. } => ErrorCode::InvalidArgument,
            Error::UnknownFamily { .. } | Error::UnknownTable { .. } => ErrorCode::NotFound,
            Error::Refused { code, .. } => *code,
            Error::DeadlineExceeded { last_code: ErrorCode::Overloaded, outcome: Outcome::NotDone, .. } => {
                ErrorCode::Overloaded
            }
            Error::DeadlineExceeded { outcome: Outcome::NotDone, .. } => ErrorCode::Unavailable,
            Error::DeadlineExceeded { outcome: Outcome::Unknown, .. } => ErrorCode::DeadlineExceeded,
            Error::BadResponse { .. } => ErrorCode::Internal,
            Error::ShutDown { .. } => ErrorCode::Unavailable,
        }
    }

    /// The same error about a call with this outcome.
    pub(crate) fn with_outcome(self, outcome: Outcome) -> Error {
        match self {
            Error::InvalidArgument { .. } | Error::UnknownFamily { .. } | Error::UnknownTable { .. } => match outcome {
                Outcome::NotDone => self,
                Outcome::Unknown => Error::Refused { code: self.code(), message: self.to_string(), outcome },
            },
            Error::Refused { code, message, .. } => Error::Refused { code, message, outcome },
            Error::DeadlineExceeded { after, attempts, last, last_code, .. } => {
                Error::DeadlineExceeded { after, attempts, last, last_code, outcome }
            }
            Error::BadResponse { message, .. } => Error::BadResponse { message, outcome },
            Error::ShutDown { .. } => Error::ShutDown { outcome },
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Error {
        Error::InvalidArgument { message: message.into() }
    }

    /// A bad answer to a read.
    pub(crate) fn bad_response(message: impl Into<String>) -> Error {
        Error::BadResponse { message: message.into(), outcome: Outcome::NotDone }
    }
}

/// A rule that `uruk_proto` checks, broken by the arguments.
pub(crate) fn from_check(error: RpcError) -> Error {
    Error::InvalidArgument { message: error.message }
}

/// The result of a call.
pub type Result<T, E = Error> = std::result::Result<T, E>;
