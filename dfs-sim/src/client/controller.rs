//! Calls to the controller group: finds the leader, follows it, retries until a deadline.

use std::future::Future;
use std::time::Duration;

use parking_lot::Mutex;
use tonic::transport::Channel;
use tonic::{Response, Status};
use uruk_base::rpc::{Channels, MESSAGE_BYTES_MAX};
use uruk_base::{Clock, Random};
use uruk_proto::dfs::controller_client::ControllerClient;
use uruk_proto::{ErrorCode, RpcError};

use super::config::DfsClientConfig;
use super::error::CallError;

/// Where the leader is believed to be, and how to ask it.
#[derive(Debug)]
pub struct Controllers {
    clock: Clock,
    random: Random,
    channels: Channels,
    config: DfsClientConfig,
    leader: Mutex<String>,
}

/// What to do after a failed attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Next {
    /// The caller gets the error.
    GiveUp,
    /// Ask the leader at once.
    AskLeader(String),
    /// Ask the same one after a while.
    Wait,
    /// Ask another one after a while.
    TryAnother,
}

impl Controllers {
    /// `config.controllers` is not empty.
    pub fn new(clock: Clock, random: Random, channels: Channels, config: DfsClientConfig) -> Controllers {
        let first = config.controllers.first().cloned().expect("a validated configuration names a controller");
        Controllers { clock, random, channels, config, leader: Mutex::new(first) }
    }

    /// Calls the leader, with the configured deadline. `call` names the RPC for errors; `request`
    /// makes one attempt and must be safe to repeat.
    pub async fn call<T, F, R>(&self, call: &'static str, request: F) -> Result<T, CallError>
    where
        F: Fn(ControllerClient<Channel>) -> R,
        R: Future<Output = Result<Response<T>, Status>>,
    {
        self.call_within(Duration::from_millis(self.config.controller_deadline_ms), call, request).await
    }

    /// As [`Self::call`], with a deadline of its own.
    pub async fn call_within<T, F, R>(&self, deadline: Duration, call: &'static str, request: F) -> Result<T, CallError>
    where
        F: Fn(ControllerClient<Channel>) -> R,
        R: Future<Output = Result<Response<T>, Status>>,
    {
        let start = self.clock.now();
        let (mut uncertain, mut waits, mut hints) = (false, 0, 0);
        loop {
            let address = self.leader.lock().clone();
            let left = deadline.saturating_sub(self.clock.since(start));
            let attempt = left.min(Duration::from_millis(self.config.controller_attempt_ms));
            let error = match self.clock.timeout(attempt, request(self.client(&address))).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => RpcError::from(status),
                Err(elapsed) => RpcError::new(ErrorCode::DeadlineExceeded, format!("controller {address}: {elapsed}")),
            };
            let next = decide(&error, &address, hints);
            let failed = CallError { call, error, uncertain };
            if next == Next::GiveUp {
                return Err(failed);
            }
            uncertain |= !failed.error.code.is_not_done();
            if let Next::AskLeader(leader) = next {
                hints += 1;
                *self.leader.lock() = leader;
                continue;
            }
            hints = 0;
            let hinted = Duration::from_millis(failed.error.retry_after_ms);
            let delay = self.random.jitter(self.config.backoff(waits)).max(hinted);
            waits += 1;
            if self.clock.since(start) + delay >= deadline {
                return Err(CallError { uncertain, ..failed });
            }
            if next == Next::TryAnother {
                self.move_on_from(&address);
            }
            self.clock.sleep(delay).await;
        }
    }

    fn client(&self, address: &str) -> ControllerClient<Channel> {
        ControllerClient::new(self.channels.get(address))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Points at the controller after `address`, unless somebody else has already moved on.
    fn move_on_from(&self, address: &str) {
        let mut leader = self.leader.lock();
        if *leader == address {
            let all = &self.config.controllers;
            let next = all.iter().position(|a| a == address).map_or(0, |i| (i + 1) % all.len());
            *leader = all[next].clone();
        }
    }
}

/// Leaders named one after the other without a pause; past it the group is electing.
const HINTS_MAX: u32 = 3;

fn decide(error: &RpcError, asked: &str, hints: u32) -> Next {
    match error.code {
        ErrorCode::NotLeader => match &error.leader {
            Some(leader) if leader != asked && hints < HINTS_MAX => Next::AskLeader(leader.clone()),
            Some(_) | None => Next::TryAnother,
        },
        ErrorCode::Overloaded => Next::Wait,
        // The leader itself may say Unavailable (too few chunk servers), others when they start up.
        ErrorCode::Unavailable | ErrorCode::Unknown | ErrorCode::DeadlineExceeded | ErrorCode::StaleLocation => {
            Next::TryAnother
        }
        ErrorCode::InvalidArgument
        | ErrorCode::NotFound
        | ErrorCode::AlreadyExists
        | ErrorCode::FailedPrecondition
        | ErrorCode::Fenced
        | ErrorCode::Corrupt
        | ErrorCode::Internal => Next::GiveUp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_a_named_leader_but_not_for_ever() {
        let error = RpcError::not_leader(Some("b:1".into()));
        assert_eq!(decide(&error, "a:1", 0), Next::AskLeader("b:1".into()));
        assert_eq!(decide(&error, "a:1", HINTS_MAX), Next::TryAnother);
        assert_eq!(decide(&error, "b:1", 0), Next::TryAnother);
        assert_eq!(decide(&RpcError::not_leader(None), "a:1", 0), Next::TryAnother);
    }

    #[test]
    fn what_never_succeeds_is_not_repeated() {
        let decide = |code| decide(&RpcError::new(code, ""), "a:1", 0);
        assert_eq!(decide(ErrorCode::Fenced), Next::GiveUp);
        assert_eq!(decide(ErrorCode::AlreadyExists), Next::GiveUp);
        assert_eq!(decide(ErrorCode::Overloaded), Next::Wait);
        assert_eq!(decide(ErrorCode::Unknown), Next::TryAnother);
    }
}
