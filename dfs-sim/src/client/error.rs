//! Errors of calls to the chunk store.

use uruk_proto::{ErrorCode, RpcError};

/// A call that failed, after its retries.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{call}: {error}")]
pub struct CallError {
    /// Which call.
    pub call: &'static str,
    /// The last attempt's error.
    pub error: RpcError,
    /// Whether an attempt may have taken effect although none reported success.
    pub uncertain: bool,
}

impl CallError {
    /// What the caller should do.
    pub fn code(&self) -> ErrorCode {
        self.error.code
    }

    /// Whether the call ended because time was up, not because it was refused.
    pub fn is_unavailable(&self) -> bool {
        self.error.code.is_retriable()
    }
}

impl From<CallError> for RpcError {
    fn from(error: CallError) -> RpcError {
        let CallError { call, error, uncertain } = error;
        let code = if uncertain && error.code.is_not_done() { ErrorCode::Unknown } else { error.code };
        RpcError { code, message: format!("{call}: {}", error.message), ..error }
    }
}
