//! Calls to the master group: any replica for look-ups, the leader for the rest.
//!
//! Invariant: the master that answered last is asked first; one that cannot be reached, is silent or
//! is not the leader gives way to the leader it names, or else to the next of the list.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use parking_lot::Mutex;
use tonic::Status;
use tonic::transport::Channel;
use uruk_base::Env;
use uruk_base::rpc::{self, MESSAGE_BYTES_MAX};
use uruk_proto::ErrorCode;
use uruk_proto::master::master_client::MasterClient as Generated;

use crate::error::Result;
use crate::retry::{Attempts, Effect, Failure, Origin, RetryPolicy, Step};

/// The generated client, with our message limits.
pub(crate) type MasterClient = Generated<Channel>;

/// The master group.
#[derive(Debug)]
pub(crate) struct Masters {
    env: Env,
    policy: RetryPolicy,
    /// As configured; never empty.
    addresses: Vec<String>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    current: String,
    clients: BTreeMap<String, MasterClient>,
}

/// How long a call may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadlines {
    /// With all retries.
    pub call: Duration,
    /// One attempt.
    pub attempt: Duration,
}

impl Masters {
    pub fn new(env: Env, policy: RetryPolicy, addresses: Vec<String>) -> Masters {
        assert!(!addresses.is_empty(), "the client's constructor checks the addresses");
        let state = State { current: addresses[0].clone(), clients: BTreeMap::new() };
        Masters { env, policy, addresses, state: Mutex::new(state) }
    }

    /// Calls one master after another until one answers.
    pub async fn call<T, F>(
        &self,
        effect: Effect,
        deadlines: Deadlines,
        request: impl Fn(MasterClient) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let clock = &self.env.clock;
        let mut attempts = Attempts::new(effect, clock.now(), deadlines.call);
        loop {
            let (address, client) = self.current();
            let limit = deadlines.attempt.min(attempts.left(clock.now()));
            let failure = match clock.timeout(limit, request(client)).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => Failure::from(status),
                Err(_) => Failure::silent(format!("master at {address} is silent")),
            };
            tracing::debug!(master = %address, ?failure, "a call to the master fails");
            self.move_on(&address, &failure);
            match attempts.failed(&failure, clock.now(), self.env.random.unit(), &self.policy) {
                Step::Fail | Step::Resolve => return Err(attempts.error(failure)),
                Step::Retry { after: Duration::ZERO, .. } => {}
                Step::Retry { after, .. } => clock.sleep(after).await,
            }
        }
    }

    fn current(&self) -> (String, MasterClient) {
        let mut state = self.state.lock();
        let address = state.current.clone();
        let client = state.clients.entry(address.clone()).or_insert_with(|| {
            Generated::new(rpc::channel(&self.env.transport, &address))
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX)
        });
        (address, client.clone())
    }

    /// Points at another master, if `failure` of the one at `address` asks for it.
    fn move_on(&self, address: &str, failure: &Failure) {
        let mut state = self.state.lock();
        if failure.origin == Origin::Silent {
            state.clients.remove(address);
        }
        let elsewhere = failure.origin != Origin::Server
            || matches!(failure.code, ErrorCode::NotLeader | ErrorCode::Unavailable | ErrorCode::Fenced);
        if !elsewhere || state.current != address {
            return;
        }
        state.current = match &failure.leader {
            Some(leader) => leader.clone(),
            None => {
                let here = self.addresses.iter().position(|known| known == address);
                let next = here.map_or(0, |here| (here + 1) % self.addresses.len());
                self.addresses[next].clone()
            }
        };
        let (addresses, current) = (&self.addresses, state.current.clone());
        state.clients.retain(|known, _| addresses.contains(known) || *known == current);
    }
}
