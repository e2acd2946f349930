//! Leases as the leader grants them. Volatile: a new leader starts from its election.
//!
//! The holder counts from the moment it sent the renewal, the grantor from its arrival or later.
//! Invariants: (1) a lease is granted only under the term in which leadership was confirmed *after*
//! the renewal arrived; (2) a server is declared dead for silence only when
//! `now >= renewal + lease × (1 + ρ) / (1 − ρ)`, where an election counts as a renewal of every
//! known server; (3) a server that is condemned is never granted a lease again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use uruk_base::Moment;
use uruk_consensus::Term;
use uruk_proto::ServerId;

/// What the leader remembers about its tablet servers' leases.
#[derive(Clone, PartialEq, Debug)]
pub struct Leases {
    /// As the grantor counts it.
    lease: Duration,
    /// None: this node does not lead.
    term: Option<Term>,
    sessions: BTreeMap<ServerId, Session>,
}

/// One tablet server's lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Session {
    /// Arrival of the last renewal that was granted, or the election.
    pub renewed: Moment,
    /// The same in wall time, for display; None: not renewed since the election.
    pub renewed_micros: Option<i64>,
    state: SessionState,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SessionState {
    Held,
    /// To be declared dead: decided, maybe not yet committed.
    Condemned,
}

/// How a renewal ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Grant {
    Granted,
    /// The server is dead, or as good as dead.
    Refused,
    /// Another term than the one that was confirmed.
    NotLeader,
}

impl Leases {
    /// Of a node that does not lead. `lease` is what the grantor waits.
    pub fn new(lease: Duration) -> Leases {
        Leases { lease, term: None, sessions: BTreeMap::new() }
    }

    /// This node leads from now on: every known session counts as renewed.
    pub fn elected(&mut self, term: Term, live: impl Iterator<Item = ServerId>, now: Moment) {
        self.term = Some(term);
        self.sessions.clear();
        live.for_each(|server| self.admit(server, now));
    }

    /// This node leads no more.
    pub fn deposed(&mut self) {
        self.term = None;
        self.sessions.clear();
    }

    /// The term under which leases are granted.
    pub fn term(&self) -> Option<Term> {
        self.term
    }

    /// The server is alive by the committed state: without a session it counts as renewed now.
    pub fn admit(&mut self, server: ServerId, now: Moment) {
        let fresh = Session { renewed: now, renewed_micros: None, state: SessionState::Held };
        self.sessions.entry(server).or_insert(fresh);
    }

    /// Sessions follow the committed state: the live have one, the others none.
    pub fn follow(&mut self, live: &BTreeSet<ServerId>, now: Moment) {
        self.sessions.retain(|server, _| live.contains(server));
        live.iter().for_each(|server| self.admit(*server, now));
    }

    /// A renewal arrived at `arrival`, and leadership of `term` was confirmed after that.
    pub fn grant(&mut self, server: ServerId, arrival: Moment, arrival_micros: i64, term: Term) -> Grant {
        if self.term != Some(term) {
            return Grant::NotLeader;
        }
        match self.sessions.get_mut(&server) {
            Some(session) if session.state == SessionState::Held => {
                session.renewed = session.renewed.max(arrival);
                session.renewed_micros = Some(arrival_micros);
                Grant::Granted
            }
            Some(_) | None => Grant::Refused,
        }
    }

    /// Those whose leases have lapsed and who are not condemned yet.
    pub fn lapsed(&self, now: Moment) -> Vec<ServerId> {
        let held = self.sessions.iter().filter(|(_, session)| session.state == SessionState::Held);
        held.filter(|(_, session)| now >= session.renewed + self.lease).map(|(server, _)| *server).collect()
    }

    /// No more leases for this server, whatever arrives.
    pub fn condemn(&mut self, server: ServerId) {
        if let Some(session) = self.sessions.get_mut(&server) {
            session.state = SessionState::Condemned;
        }
    }

    /// Those that are to be declared dead, whether or not it was tried.
    pub fn condemned(&self) -> impl Iterator<Item = (ServerId, Session)> {
        let condemned = self.sessions.iter().filter(|(_, session)| session.state == SessionState::Condemned);
        condemned.map(|(server, session)| (*server, *session))
    }

    /// When the next lease lapses, if nothing is renewed.
    pub fn next_lapse(&self) -> Option<Moment> {
        let held = self.sessions.values().filter(|session| session.state == SessionState::Held);
        held.map(|session| session.renewed + self.lease).min()
    }

    pub fn session(&self, server: ServerId) -> Option<&Session> {
        self.sessions.get(&server)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ServerId = ServerId(1);
    const B: ServerId = ServerId(2);

    fn at(ms: u64) -> Moment {
        Moment::from_start(Duration::from_millis(ms))
    }

    fn led() -> Leases {
        let mut leases = Leases::new(Duration::from_millis(3_006));
        leases.elected(Term(5), [A, B].into_iter(), at(1_000));
        leases
    }

    #[test]
    fn a_new_leader_waits_a_full_lease_before_it_declares_anyone_dead() {
        let mut leases = led();
        assert_eq!(leases.lapsed(at(4_005)), []);
        assert_eq!(leases.next_lapse(), Some(at(4_006)));
        assert_eq!(leases.lapsed(at(4_006)), [A, B]);
        // A second election forgets what the first one knew.
        assert_eq!(leases.grant(A, at(1_500), 0, Term(5)), Grant::Granted);
        leases.elected(Term(9), [A, B].into_iter(), at(4_000));
        assert_eq!(leases.lapsed(at(7_005)), []);
        assert_eq!(leases.lapsed(at(7_006)), [A, B]);
    }

    #[test]
    fn a_renewal_counts_from_its_arrival() {
        let mut leases = led();
        assert_eq!(leases.grant(A, at(2_000), 0, Term(5)), Grant::Granted);
        // An older renewal that is confirmed later shortens nothing.
        assert_eq!(leases.grant(A, at(1_900), 0, Term(5)), Grant::Granted);
        assert_eq!(leases.lapsed(at(4_006)), [B]);
        assert_eq!(leases.lapsed(at(5_005)), [B]);
        assert_eq!(leases.lapsed(at(5_006)), [A, B]);
    }

    #[test]
    fn nothing_is_granted_without_the_confirmed_term() {
        let mut leases = led();
        assert_eq!(leases.grant(A, at(2_000), 0, Term(4)), Grant::NotLeader);
        assert_eq!(leases.grant(A, at(2_000), 0, Term(6)), Grant::NotLeader);
        leases.deposed();
        assert_eq!(leases.grant(A, at(2_000), 0, Term(5)), Grant::NotLeader);
        assert_eq!(leases.lapsed(at(100_000)), []);
    }

    #[test]
    fn the_condemned_are_never_renewed() {
        let mut leases = led();
        leases.condemn(A);
        assert_eq!(leases.grant(A, at(3_000), 0, Term(5)), Grant::Refused);
        leases.follow(&[A, B].into(), at(3_000));
        assert_eq!(leases.grant(A, at(3_000), 0, Term(5)), Grant::Refused);
        assert_eq!(leases.condemned().map(|(server, _)| server).collect::<Vec<_>>(), [A]);
        // Once its death is committed the session is gone.
        leases.follow(&[B].into(), at(3_000));
        assert_eq!(leases.grant(A, at(3_000), 0, Term(5)), Grant::Refused);
        assert_eq!(leases.condemned().count(), 0);
    }

    #[test]
    fn a_server_that_registers_later_gets_a_full_lease() {
        let mut leases = led();
        leases.follow(&[A, B, ServerId(3)].into(), at(4_000));
        assert_eq!(leases.lapsed(at(4_006)), [A, B]);
        assert_eq!(leases.lapsed(at(7_006)), [A, B, ServerId(3)]);
    }
}
