//! Calls to the master group: find the leader, retry elsewhere.

use std::future::Future;
use std::time::Duration;

use parking_lot::Mutex;
use tonic::transport::Channel;
use tonic::{Response, Status};
use uruk_base::Env;
use uruk_base::rpc::{Channels, MESSAGE_BYTES_MAX};
use uruk_proto::master::master_control_client::MasterControlClient;
use uruk_proto::{ErrorCode, RpcError};

/// First pause between attempts.
const RETRY_DELAY_MIN: Duration = Duration::from_millis(10);
/// Longest pause between attempts.
const RETRY_DELAY_MAX: Duration = Duration::from_millis(500);

/// A client of `MasterControl`.
pub type Client = MasterControlClient<Channel>;

/// What came of a call that was repeated until somebody answered it.
#[derive(Debug)]
pub struct Answer<T> {
    /// The answer: success, or an error that a repetition would not change.
    pub result: Result<T, RpcError>,
    /// An attempt before it may have been done without our knowing.
    pub uncertain: bool,
}

/// The master group.
#[derive(Debug)]
pub struct Masters {
    env: Env,
    channels: Channels,
    call_timeout: Duration,
    state: Mutex<Addresses>,
}

#[derive(Debug)]
struct Addresses {
    known: Vec<String>,
    current: String,
}

impl Masters {
    /// The masters at `addresses`, of which there is at least one.
    pub fn new(env: &Env, addresses: &[String], call_timeout: Duration) -> Masters {
        let current = addresses.first().expect("validated: at least one master").clone();
        let state = Mutex::new(Addresses { known: addresses.to_vec(), current });
        Masters { env: env.clone(), channels: Channels::new(env.transport.clone()), call_timeout, state }
    }

    /// Where the leader is believed to be.
    pub fn current(&self) -> String {
        self.state.lock().current.clone()
    }

    /// A client of the master at `address`.
    pub fn client(&self, address: &str) -> Client {
        MasterControlClient::new(self.channels.get(address))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Learns from a failed attempt at `address` where to try next.
    pub fn failed_at(&self, address: &str, error: &RpcError) {
        let mut state = self.state.lock();
        if state.current != address {
            return; // somebody else has moved on already
        }
        let next = match &error.leader {
            Some(leader) if leader != address => leader.clone(),
            Some(_) | None => {
                let at = state.known.iter().position(|known| known == address).map_or(0, |at| at + 1);
                state.known[at % state.known.len()].clone()
            }
        };
        state.current = next;
    }

    /// One attempt, at the believed leader.
    pub async fn attempt<T, F>(&self, call: impl FnOnce(Client) -> F) -> Result<T, RpcError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let address = self.current();
        let result = match self.env.clock.timeout(self.call_timeout, call(self.client(&address))).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(RpcError::from(status)),
            Err(elapsed) => Err(RpcError::new(ErrorCode::DeadlineExceeded, format!("master {address}: {elapsed}"))),
        };
        if let Err(error) = &result
            && error.code.is_retriable()
        {
            self.failed_at(&address, error);
        }
        result
    }

    /// Attempts until somebody answers. Never gives up: it is dropped when the incarnation ends.
    pub async fn call<T, F>(&self, what: &'static str, call: impl Fn(Client) -> F) -> Answer<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let (mut uncertain, mut delay) = (false, RETRY_DELAY_MIN);
        loop {
            match self.attempt(&call).await {
                Err(error) if error.code.is_retriable() => {
                    uncertain |= !error.code.is_not_done();
                    tracing::debug!(what, %error, "master does not answer yet");
                }
                result => return Answer { result, uncertain },
            }
            self.env.clock.sleep(self.env.random.jitter(delay)).await;
            delay = (delay * 2).min(RETRY_DELAY_MAX);
        }
    }
}
