//! The sealing protocol of commit logs (DESIGN §6) as a model small enough to visit every state.
//!
//! | file | is |
//! |---|---|
//! | [`state`] | everything there is: three servers, the controllers, one writer, two recoverers |
//! | [`network`] | the transitions, and what may be in flight |
//! | [`writer`] | appends, acknowledgements, rolls, trims |
//! | [`replica`] | one segment on one server; crashes |
//! | [`controller`] | what Raft makes atomic |
//! | [`recoverer`] | steps 1 to 8 |
//! | [`properties`] | S2 to S7, I1 to I9, and states that must be reachable |
//! | [`mutations`] | each step left out, and what breaks |
//!
//! Three things keep it small, and lose nothing:
//! 1. Messages are not stored. What was sent once may arrive at any time, any number of times, in any
//!    order, or never: so "in flight" follows from what the sender has done.
//! 2. An answer that comes late is an answer that comes at once to somebody who takes his time; an
//!    answer that is lost is a choice of its own.
//! 3. Servers are interchangeable, and so are recoverers: each state is sorted (`State::canonical`).

pub mod controller;
pub mod mutations;
pub mod network;
pub mod properties;
pub mod recoverer;
pub mod replica;
pub mod state;
pub mod writer;

use stateright::{Checker, HasDiscoveries, Model, Path, Property};

use self::mutations::Mutation;
use self::network::Action;
use self::state::{SEGMENTS_MAX, SERVERS, State};

/// How far to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// W: members of a segment. Servers beyond them can only get copies.
    pub members: u8,
    /// A.
    pub quorum: u8,
    /// Records that the writer has.
    pub records: u8,
    /// Segments: one more than rolls.
    pub segments: u8,
    /// Recoverers, two at most.
    pub recoverers: u8,
    /// Recovery numbers r drawn, of all recoverers together.
    pub rounds: u8,
    /// Recoverers that die, at any step.
    pub deaths: u8,
    /// Processes killed, or machines that lose power.
    pub crashes: u8,
    /// Disks lost or syncs failed; below A, else no promise holds.
    pub losses: u8,
    /// Trims, and deletion of the sealed log.
    pub trims: bool,
    /// Readers of unsealed data.
    pub readers: bool,
}

impl Bounds {
    /// One segment of three members, two recoverers.
    pub const SMALL: Bounds = Bounds {
        members: 3,
        quorum: 2,
        records: 1,
        segments: 1,
        recoverers: 2,
        rounds: 2,
        deaths: 1,
        crashes: 1,
        losses: 1,
        trims: false,
        readers: false,
    };

    /// Says what does not fit.
    pub fn validate(&self) -> Result<(), String> {
        let within = |name: &str, value: u8, range: std::ops::RangeInclusive<u8>| match range.contains(&value) {
            true => Ok(()),
            false => Err(format!("{name} is {value}, not within {range:?}")),
        };
        within("replicas", self.members, 2..=SERVERS as u8)?;
        within("quorum", self.quorum, 1..=self.members)?;
        within("records", self.records, 1..=6)?;
        within("segments", self.segments, 1..=SEGMENTS_MAX as u8)?;
        within("recoverers", self.recoverers, 1..=2)?;
        within("rounds", self.rounds, 1..=9)?;
        within("losses", self.losses, 0..=self.quorum - 1)
    }
}

/// Which properties a run checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checked {
    /// What callers were promised, and I1 to I9.
    All,
    /// What callers were promised only: a step left out must break a promise, not just its own rule.
    Promises,
}

/// The protocol, within bounds, perhaps with a step left out.
#[derive(Clone, Copy, Debug)]
pub struct SealModel {
    /// How far to go.
    pub bounds: Bounds,
    /// What is left out.
    pub mutations: &'static [Mutation],
    /// What is checked.
    pub checked: Checked,
}

impl SealModel {
    /// Whether this step is left out.
    pub fn has(&self, mutation: Mutation) -> bool {
        self.mutations.contains(&mutation)
    }
}

impl Model for SealModel {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(&self.bounds)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        network::candidates(self, state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        network::apply(self, &mut state, action)?;
        Some(state.canonical(self))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::properties(self.checked)
    }
}

/// What a run found.
#[derive(Debug)]
pub struct Explored {
    /// Different states, servers and recoverers being interchangeable.
    pub states: usize,
    /// The longest path to a state is at least this long.
    pub depth: usize,
    /// Whether every state within the bounds was visited.
    pub complete: bool,
    /// Properties that do not hold, with the shortest way there.
    pub violations: Vec<(&'static str, Path<State, Action>)>,
    /// States that must be reachable and were not.
    pub unreached: Vec<&'static str>,
}

/// Visits every state, breadth first; ends at the first violation.
pub fn explore(model: SealModel, threads: usize) -> Explored {
    let properties = model.properties();
    let reachable = |name: &str| {
        properties.iter().any(|p| p.name == name && matches!(p.expectation, stateright::Expectation::Sometimes))
    };
    let checker = model.checker().threads(threads).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let found = checker.discoveries();
    let unreached: Vec<_> =
        properties.iter().map(|p| p.name).filter(|name| reachable(name) && !found.contains_key(name)).collect();
    let violations: Vec<_> = found.into_iter().filter(|(name, _)| !reachable(name)).collect();
    Explored {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        complete: violations.is_empty(),
        violations,
        unreached: if !model.mutations.is_empty() { Vec::new() } else { unreached },
    }
}
