//! Everything there is, and its sorted form.

use crate::controller::Controller;
use crate::mutations::Mutation;
use crate::recoverer::{Answer, Recoverer};
use crate::replica::Replica;
use crate::writer::{Phase, Writer};
use crate::{Bounds, SealModel};

/// Servers in the model. Those that are no members of the segments can get copies.
pub const SERVERS: usize = 3;
/// Segments at most.
pub const SEGMENTS_MAX: usize = 2;
/// Recoverers at most.
pub const RECOVERERS: usize = 2;

/// Which promise a transition broke. Kept in the state so that history need not be.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Broken {
    /// A seal ended before what `flush` had returned.
    S2,
    /// `flush` returned beyond the end of a sealed log.
    S3,
    /// Two callers of `seal` got different ends.
    S4,
    /// A writer that had shown an error acknowledged.
    S6,
    /// The log was trimmed after it was closed.
    S7,
    /// A sealed segment changed.
    I7,
}

/// A chunk server, and what others know of it. Together, so that servers can be sorted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Server {
    /// Of every segment.
    pub member: bool,
    /// Its disk is gone: it has another identity now.
    pub lost: bool,
    /// By segment.
    pub replicas: [Replica; SEGMENTS_MAX],
    /// The length that the writer heard it acknowledge in the writer's segment.
    pub heard: u8,
    /// Its answer to each recoverer's fence.
    pub answers: [Option<Answer>; RECOVERERS],
    /// Whether each recoverer counts it as a holder of all that is to be sealed.
    pub holds: [bool; RECOVERERS],
}

/// A state of the whole.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct State {
    /// Chunk servers.
    pub servers: [Server; SERVERS],
    /// What Raft holds.
    pub controller: Controller,
    /// The log's writer.
    pub writer: Writer,
    /// Those who seal it.
    pub recoverers: [Recoverer; RECOVERERS],
    /// How far readers have seen the log.
    pub read: u8,
    /// What the first `seal` returned.
    pub returned: Option<u8>,
    /// The first promise broken.
    pub broken: Option<Broken>,
    /// Crashes so far.
    pub crashes: u8,
    /// Disks lost and syncs failed so far.
    pub losses: u8,
    /// Recoverers that died so far.
    pub deaths: u8,
    /// A loss of power took bytes that were not synced.
    pub tore: bool,
}

impl State {
    /// An open log, its first segment nowhere created yet.
    pub fn new(bounds: &Bounds) -> State {
        let server = |i: usize| Server {
            member: i < bounds.members as usize,
            lost: false,
            replicas: Default::default(),
            heard: 0,
            answers: Default::default(),
            holds: Default::default(),
        };
        State {
            servers: std::array::from_fn(server),
            controller: Controller::new(),
            writer: Writer::new(),
            recoverers: Default::default(),
            read: 0,
            returned: None,
            broken: None,
            crashes: 0,
            losses: 0,
            deaths: 0,
            tore: false,
        }
    }

    /// Notes a broken promise, unless one is noted.
    pub fn break_promise(&mut self, broken: Broken) {
        self.broken.get_or_insert(broken);
    }

    /// The same state with what nobody asks for any more forgotten, servers and recoverers sorted.
    pub fn canonical(mut self, model: &SealModel) -> State {
        self.forget(model);
        let mut swapped = self;
        swapped.recoverers.swap(0, 1);
        for server in &mut swapped.servers {
            server.answers.swap(0, 1);
            server.holds.swap(0, 1);
        }
        self.sort_servers(model);
        if model.bounds.recoverers < 2 {
            return self;
        }
        swapped.sort_servers(model);
        self.min(swapped)
    }

    fn sort_servers(&mut self, model: &SealModel) {
        let (members, others) = self.servers.split_at_mut(model.bounds.members as usize);
        members.sort_unstable();
        others.sort_unstable();
    }

    /// Acknowledgements on their way matter only to a writer that takes them.
    fn forget(&mut self, model: &SealModel) {
        let takes = match self.writer.phase {
            Phase::Running => true,
            Phase::Rolling { .. } => model.has(Mutation::AcksAfterRollRequest),
            Phase::Ended => model.has(Mutation::AcksAfterError),
        };
        for server in &mut self.servers {
            if !takes {
                server.heard = 0;
            }
            for (segment, replica) in server.replicas.iter_mut().enumerate() {
                if !takes || segment != self.writer.segment as usize {
                    replica.promised = 0;
                }
            }
        }
    }
}
