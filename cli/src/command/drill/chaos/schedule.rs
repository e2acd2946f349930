//! What is done to which process, and when: drawn from the seed alone.
//!
//! Invariants: (1) the same seed, round and shape give the same events; (2) of the chunk servers, at
//! most one at a time is down for longer than a [`MOMENT`], its way back included: the store promises
//! to survive one dead machine, and any number of killed processes that start again.

use std::fmt;
use std::time::Duration;

use uruk_base::Random;

/// A process that is back within this time was away for a moment.
pub const MOMENT: Duration = Duration::from_secs(1);
/// What a chunk server that was down gets to come back, before the next one may go.
const BACK_AGAIN: Duration = Duration::from_secs(3);
/// Tablet servers' lease, in whose terms pauses are short or long.
const LEASE: Duration = Duration::from_secs(3);
/// A round's events begin within this time.
const ROUND: Duration = Duration::from_secs(15);
/// A burst's events begin within this time.
const BURST: Duration = Duration::from_millis(300);
const EVENTS_MIN: u64 = 3;
const EVENTS_MAX: u64 = 9;

/// How many processes of each kind there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    pub masters: usize,
    pub controllers: usize,
    pub tablet_servers: usize,
    pub chunk_servers: usize,
}

/// A kind of process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// The worker of a tablet server: it serves.
    Worker,
    /// The watching parent of a tablet server.
    Parent,
    /// Both at once: nobody reports the death.
    TabletServer,
    Master,
    Controller,
    ChunkServer,
}

const KINDS: [Kind; 6] =
    [Kind::Worker, Kind::Parent, Kind::TabletServer, Kind::Master, Kind::Controller, Kind::ChunkServer];

/// Something done to a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blow {
    /// SIGKILL; it is started again at once.
    Kill,
    /// SIGTERM: it ends as planned, and is started again.
    Restart,
    /// SIGSTOP, and SIGCONT after this time.
    Pause(Duration),
    /// SIGKILL; it is started again only after this time.
    Down(Duration),
}

/// One event of a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// Since the round began.
    pub at: Duration,
    pub kind: Kind,
    /// Which of its kind, from 0.
    pub place: usize,
    pub blow: Blow,
}

/// The pattern of a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pattern {
    /// Anything, one after the other.
    Mixed,
    /// One kind only, one after the other.
    OneKind(Kind),
    /// Anything, at almost the same time.
    Burst,
    /// Every process of one kind killed at almost the same time.
    WholeKind(Kind),
}

/// The events of a round, in order of time.
pub fn round(seed: u64, number: u64, shape: &Shape) -> Vec<Event> {
    let random = Random::from_seed(seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let kind = KINDS[random.range(0..KINDS.len() as u64) as usize];
    let pattern = match random.range(0..10) {
        0..5 => Pattern::Mixed,
        5..7 => Pattern::OneKind(kind),
        7..9 => Pattern::Burst,
        _ => Pattern::WholeKind(kind),
    };
    let mut events: Vec<Event> = match pattern {
        Pattern::WholeKind(kind) => (0..shape.count(kind))
            .map(|place| Event { at: within(&random, BURST), kind, place, blow: Blow::Kill })
            .collect(),
        Pattern::Mixed | Pattern::OneKind(_) | Pattern::Burst => {
            (0..random.range(EVENTS_MIN..EVENTS_MAX + 1)).map(|_| draw(&random, pattern, shape)).collect()
        }
    };
    events.sort_by_key(|event| event.at);
    spare_chunk_servers(&mut events);
    events
}

fn draw(random: &Random, pattern: Pattern, shape: &Shape) -> Event {
    let (span, kind) = match pattern {
        Pattern::OneKind(kind) => (ROUND, kind),
        Pattern::Burst => (BURST, any_kind(random)),
        Pattern::Mixed | Pattern::WholeKind(_) => (ROUND, any_kind(random)),
    };
    let blow = match random.range(0..20) {
        0..8 => Blow::Kill,
        8..10 => Blow::Restart,
        10..18 => Blow::Pause(pause_length(random)),
        _ => Blow::Down(between(random, MOMENT * 2, LEASE * 5)),
    };
    Event { at: within(random, span), kind, place: random.range(0..shape.count(kind) as u64) as usize, blow }
}

fn any_kind(random: &Random) -> Kind {
    KINDS[random.range(0..KINDS.len() as u64) as usize]
}

/// Half of them well below the lease, most others beyond it, some far beyond.
fn pause_length(random: &Random) -> Duration {
    match random.range(0..10) {
        0..5 => between(random, Duration::from_millis(50), LEASE * 2 / 3),
        5..9 => between(random, LEASE + Duration::from_millis(500), LEASE * 5 / 2),
        _ => between(random, LEASE * 3, LEASE * 5),
    }
}

fn within(random: &Random, span: Duration) -> Duration {
    between(random, Duration::ZERO, span)
}

fn between(random: &Random, least: Duration, most: Duration) -> Duration {
    Duration::from_millis(random.range(least.as_millis() as u64..most.as_millis() as u64 + 1))
}

/// Makes a moment of what would take a second chunk server down while one is.
fn spare_chunk_servers(events: &mut [Event]) {
    let mut all_up_at = Duration::ZERO;
    for event in events.iter_mut().filter(|event| event.kind == Kind::ChunkServer) {
        let Some(length) = event.blow.downtime() else { continue };
        if event.at < all_up_at {
            event.blow = Blow::Kill;
        } else {
            all_up_at = event.at + length + BACK_AGAIN;
        }
    }
}

impl Shape {
    /// How many there are of the kind.
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Worker | Kind::Parent | Kind::TabletServer => self.tablet_servers,
            Kind::Master => self.masters,
            Kind::Controller => self.controllers,
            Kind::ChunkServer => self.chunk_servers,
        }
    }
}

impl Blow {
    /// How long the process is away, if for longer than a moment.
    pub fn downtime(self) -> Option<Duration> {
        match self {
            Blow::Kill | Blow::Restart => None,
            Blow::Pause(length) | Blow::Down(length) => (length > MOMENT).then_some(length),
        }
    }

    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Blow::Kill => "kill",
            Blow::Restart => "restart",
            Blow::Pause(length) if length < LEASE => "pause (short)",
            Blow::Pause(_) => "pause (beyond lease)",
            Blow::Down(_) => "kill and keep down",
        }
    }
}

impl Kind {
    /// Name of the process in the local cluster.
    pub fn process(self, place: usize) -> String {
        let role = match self {
            Kind::Worker | Kind::Parent | Kind::TabletServer => "tabletserver",
            Kind::Master => "master",
            Kind::Controller => "dfs-controller",
            Kind::ChunkServer => "chunkserver",
        };
        format!("{role}-{}", place + 1)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Worker => "worker",
            Kind::Parent => "parent",
            Kind::TabletServer => "worker and parent",
            Kind::Master => "master",
            Kind::Controller => "controller",
            Kind::ChunkServer => "chunk server",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SHAPE: Shape = Shape { masters: 3, controllers: 1, tablet_servers: 3, chunk_servers: 4 };

    fn all_rounds() -> Vec<Vec<Event>> {
        (0..400).map(|number| round(11, number, &SHAPE)).collect()
    }

    #[test]
    fn a_seed_gives_the_same_rounds_again() {
        assert_eq!(all_rounds(), all_rounds());
        assert_ne!(round(11, 3, &SHAPE), round(12, 3, &SHAPE));
        assert_ne!(round(11, 3, &SHAPE), round(11, 4, &SHAPE));
    }

    #[test]
    fn never_are_two_chunk_servers_down_for_longer_than_a_moment() {
        let mut longer = 0;
        for events in all_rounds() {
            let down: Vec<&Event> = events
                .iter()
                .filter(|event| event.kind == Kind::ChunkServer && event.blow.downtime().is_some())
                .collect();
            longer += down.len();
            for pair in down.windows(2) {
                let end = pair[0].at + pair[0].blow.downtime().unwrap();
                assert!(end < pair[1].at, "{pair:?}");
            }
        }
        assert!(longer > 50, "chunk servers are down {longer} times");
    }

    #[test]
    fn every_kind_of_process_suffers_every_blow() {
        let seen: BTreeSet<(Kind, &str)> =
            all_rounds().into_iter().flatten().map(|event| (event.kind, event.blow.name())).collect();
        assert_eq!(seen.len(), KINDS.len() * 5, "{seen:?}");
    }

    #[test]
    fn events_name_processes_that_exist_in_order_of_time() {
        for events in all_rounds() {
            assert!(!events.is_empty());
            assert!(events.windows(2).all(|pair| pair[0].at <= pair[1].at));
            assert!(events.iter().all(|event| event.place < SHAPE.count(event.kind) && event.at <= ROUND));
        }
    }
}
