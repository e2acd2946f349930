//! RPC errors: a closed set of codes that say what the caller should do.

use tonic::{Code, Status};

use crate::error_detail::ErrorDetail;

/// What the caller should do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
pub enum ErrorCode {
    /// Fix the request; it will never succeed as it is.
    InvalidArgument = 1,
    /// What was named does not exist.
    NotFound = 2,
    /// What was to be made exists.
    AlreadyExists = 3,
    /// Not in this state; a retry alone does not help.
    FailedPrecondition = 4,
    /// Ask the leader (named in the error when known). Not done.
    NotLeader = 5,
    /// The server does not own the tablet: look its location up again. Not done.
    StaleLocation = 6,
    /// Try again soon. Not done.
    Unavailable = 7,
    /// Try again after the given delay: out of memory budget, disk full, too many requests. Not done.
    Overloaded = 8,
    /// Nobody knows whether it was done.
    Unknown = 9,
    /// The caller's incarnation, epoch or fence is old: end it. Not done.
    Fenced = 10,
    /// Stored data is damaged; a person must look.
    Corrupt = 11,
    /// A deadline passed on the server; may or may not be done.
    DeadlineExceeded = 12,
    /// A bug.
    Internal = 13,
}

impl ErrorCode {
    /// The code of this number.
    pub fn from_u32(number: u32) -> Option<ErrorCode> {
        use ErrorCode::*;
        [
            InvalidArgument,
            NotFound,
            AlreadyExists,
            FailedPrecondition,
            NotLeader,
            StaleLocation,
            Unavailable,
            Overloaded,
            Unknown,
            Fenced,
            Corrupt,
            DeadlineExceeded,
            Internal,
        ]
        .into_iter()
        .find(|code| *code as u32 == number)
    }

    /// Whether the request certainly had no effect.
    pub fn is_not_done(self) -> bool {
        use ErrorCode::*;
        match self {
            InvalidArgument | NotFound | AlreadyExists | FailedPrecondition | NotLeader | StaleLocation
            | Unavailable | Overloaded | Fenced => true,
            Unknown | Corrupt | DeadlineExceeded | Internal => false,
        }
    }

    /// Whether the same request may succeed later.
    pub fn is_retriable(self) -> bool {
        use ErrorCode::*;
        match self {
            NotLeader | StaleLocation | Unavailable | Overloaded | Unknown | DeadlineExceeded => true,
            InvalidArgument | NotFound | AlreadyExists | FailedPrecondition | Fenced | Corrupt | Internal => false,
        }
    }

    fn grpc(self) -> Code {
        use ErrorCode::*;
        match self {
            InvalidArgument => Code::InvalidArgument,
            NotFound => Code::NotFound,
            AlreadyExists => Code::AlreadyExists,
            FailedPrecondition | Fenced => Code::FailedPrecondition,
            NotLeader | StaleLocation | Unavailable => Code::Unavailable,
            Overloaded => Code::ResourceExhausted,
            Unknown => Code::Unknown,
            Corrupt => Code::DataLoss,
            DeadlineExceeded => Code::DeadlineExceeded,
            Internal => Code::Internal,
        }
    }
}

/// An error as it crosses the wire.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct RpcError {
    /// What to do.
    pub code: ErrorCode,
    /// What happened, and to what: lower case, present tense.
    pub message: String,
    /// Address of the leader, with `NotLeader`, when known.
    pub leader: Option<String>,
    /// Wait this long before a retry, in milliseconds; 0 = the caller's own backoff.
    pub retry_after_ms: u64,
}

impl RpcError {
    /// An error with neither leader nor delay.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> RpcError {
        RpcError { code, message: message.into(), leader: None, retry_after_ms: 0 }
    }

    /// "Ask the leader."
    pub fn not_leader(leader: Option<String>) -> RpcError {
        let message = match &leader {
            Some(address) => format!("not the leader; the leader is at {address}"),
            None => "not the leader; no leader is known".to_owned(),
        };
        RpcError { code: ErrorCode::NotLeader, message, leader, retry_after_ms: 0 }
    }

    /// "Try again after this many milliseconds."
    pub fn overloaded(message: impl Into<String>, retry_after_ms: u64) -> RpcError {
        RpcError { code: ErrorCode::Overloaded, message: message.into(), leader: None, retry_after_ms }
    }
}

impl From<RpcError> for Status {
    fn from(error: RpcError) -> Status {
        let detail = ErrorDetail {
            code: error.code as u32,
            leader: error.leader.unwrap_or_default(),
            retry_after_ms: error.retry_after_ms,
        };
        let bytes = prost::Message::encode_to_vec(&detail);
        Status::with_details(error.code.grpc(), error.message, bytes.into())
    }
}

impl From<Status> for RpcError {
    /// A status without our details comes from the transport, which never tells whether a request
    /// arrived: unless it says otherwise, the outcome is unknown.
    fn from(status: Status) -> RpcError {
        let detail = <ErrorDetail as prost::Message>::decode(status.details()).unwrap_or_default();
        let code = ErrorCode::from_u32(detail.code).unwrap_or(match status.code() {
            Code::InvalidArgument | Code::OutOfRange => ErrorCode::InvalidArgument,
            Code::Unimplemented => ErrorCode::FailedPrecondition,
            Code::DeadlineExceeded => ErrorCode::DeadlineExceeded,
            _ => ErrorCode::Unknown,
        });
        RpcError {
            code,
            message: status.message().to_owned(),
            leader: (!detail.leader.is_empty()).then_some(detail.leader),
            retry_after_ms: detail.retry_after_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_the_wire() {
        for number in 1..=13 {
            let error = RpcError {
                code: ErrorCode::from_u32(number).expect("known"),
                message: "tablet-3 is moving".into(),
                leader: Some("a:1".into()),
                retry_after_ms: 7,
            };
            assert_eq!(RpcError::from(Status::from(error.clone())), error);
        }
        assert_eq!(ErrorCode::from_u32(0), None);
        assert_eq!(ErrorCode::from_u32(14), None);
    }

    #[test]
    fn a_transport_error_has_an_unknown_outcome() {
        assert_eq!(RpcError::from(Status::unavailable("connection reset")).code, ErrorCode::Unknown);
    }
}
