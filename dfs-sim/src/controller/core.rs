//! What the RPC service and the repair loop share: the replicated state, and this leader's soft one.
//!
//! Lock order: the replicated state (inside `Consensus::read`), then `fleet`, then `allotment`. None
//! is held across an await.

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use uruk_base::data_folder::DataFolder;
use uruk_base::{Clock, Env, Moment, Random};
use uruk_consensus::{Consensus, ProposeError};
use uruk_proto::{ErrorCode, RpcError};

use super::allotment::Allotment;
use super::command::{Applied, Command, Outcome};
use super::config::ControllerConfig;
use super::fleet::Fleet;
use super::state::ControllerState;

/// A retry after this time finds what a new leader has yet to learn, in milliseconds.
pub const RETRY_SOON_MS: u64 = 200;

/// One controller's state, replicated and soft.
#[derive(Debug)]
pub struct Core {
    pub(super) clock: Clock,
    pub(super) random: Random,
    pub(super) config: ControllerConfig,
    pub(super) consensus: Consensus<ControllerState>,
    fleet: Mutex<Fleet>,
    allotment: Mutex<Allotment>,
    /// One permit: whoever finds no ids left fetches a block for all who wait.
    refill: Semaphore,
    /// Kept for as long as anything of the controller runs.
    _folder: DataFolder,
}

impl Core {
    /// Knows nothing yet.
    pub fn new(env: &Env, config: ControllerConfig, folder: DataFolder, consensus: Consensus<ControllerState>) -> Core {
        Core {
            clock: env.clock.clone(),
            random: env.random.clone(),
            fleet: Mutex::new(Fleet::new(config.clone())),
            allotment: Mutex::new(Allotment::new(config.put_lifetime)),
            config,
            consensus,
            refill: Semaphore::new(1),
            _folder: folder,
        }
    }

    /// The term in which this node leads, as far as it knows.
    pub fn leading(&self) -> Result<u64, RpcError> {
        let leadership = self.consensus.leadership();
        let leadership = leadership.borrow();
        match leadership.is_leader {
            true => Ok(leadership.term.0),
            // A leader that has yet to apply its predecessors' commands answers with its own address.
            false => Err(RpcError::not_leader(leadership.leader.as_ref().map(|l| l.address.clone()))),
        }
    }

    /// Looks at the local replicated state.
    pub fn read<R>(&self, f: impl FnOnce(&ControllerState) -> R) -> R {
        self.consensus.read(f)
    }

    /// After this, [`Core::read`] sees everything that was acknowledged before.
    pub async fn catch_up(&self) -> Result<(), RpcError> {
        self.consensus.read_linearizable().await.map_err(|error| RpcError::not_leader(error.leader))
    }

    /// Looks at the replicated state and this term's soft one.
    pub fn with_fleet<R>(&self, f: impl FnOnce(&ControllerState, &mut Fleet, Moment) -> R) -> Result<R, RpcError> {
        let term = self.leading()?;
        let now = self.clock.now();
        self.read(|state| {
            let mut fleet = self.fleet.lock();
            match fleet.enter(term, now, state) {
                true => Ok(f(state, &mut fleet, now)),
                false => Err(RpcError::not_leader(None)), // deposed since
            }
        })
    }

    /// Looks at this term's blocks of ids.
    pub fn with_allotment<R>(
        &self,
        f: impl FnOnce(&ControllerState, &mut Allotment, Moment) -> R,
    ) -> Result<R, RpcError> {
        let term = self.leading()?;
        let now = self.clock.now();
        self.read(|state| {
            let mut allotment = self.allotment.lock();
            if allotment.term() < term {
                allotment.enter(term, now, state.blocks());
            }
            Ok(f(state, &mut allotment, now))
        })
    }

    /// Commits a command and has repair look at what it touched.
    pub async fn propose(&self, command: Command) -> Result<Outcome, RpcError> {
        let reply = self.consensus.propose(command).await.map_err(|error| match error {
            ProposeError::NotLeader { leader } => RpcError::not_leader(leader),
            ProposeError::TooLarge { .. } => RpcError::new(ErrorCode::InvalidArgument, error.to_string()),
            ProposeError::Unknown(_) | ProposeError::ShutDown => RpcError::new(ErrorCode::Unknown, error.to_string()),
        })?;
        let Applied { outcome, touched } = reply?;
        if !touched.is_empty() {
            // Committed, whoever leads now: a new leader examines everything anyway.
            let _ = self.with_fleet(|_, fleet, _| fleet.touch(touched));
        }
        Ok(outcome)
    }

    /// `count` consecutive ids for a put and its chunks.
    pub async fn take_ids(&self, count: u32) -> Result<std::ops::Range<u64>, RpcError> {
        let take = || self.with_allotment(|_, allotment, now| allotment.take(u64::from(count), now));
        if let Some(ids) = take()? {
            return Ok(ids);
        }
        let _permit = self.refill.acquire().await.expect("the semaphore is never closed");
        if let Some(ids) = take()? {
            return Ok(ids); // somebody else fetched them meanwhile
        }
        let asked_at = self.clock.now();
        let block = count.max(self.config.ids_per_block);
        let Outcome::Ids(ids) = self.propose(Command::IssueIds { count: block }).await? else {
            return Err(RpcError::new(ErrorCode::Internal, "ids were asked for, and others answered"));
        };
        self.with_allotment(|_, allotment, now| allotment.install(ids, asked_at, now))?;
        take()?.ok_or_else(|| RpcError::new(ErrorCode::Unavailable, "a block of ids came too late"))
    }
}
