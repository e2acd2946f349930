//! The lease, as its holder counts it (DESIGN.md §5).
//!
//! Invariants: (1) the lease ends at or before (moment the granted renewal was *sent*) + lease;
//! (2) an answer that comes late never shortens it; (3) once it was seen lapsed it stays lapsed:
//! the server comes back only as a new incarnation.

use std::time::Duration;

use parking_lot::Mutex;
use uruk_base::Moment;

/// When a lease ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseState {
    lease: Duration,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Never granted yet.
    Waiting,
    /// Held before this moment.
    HeldUntil(Moment),
    /// Lapsed, for good.
    Lapsed,
}

/// What a holder may do now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeaseStatus {
    /// The first grant is still to come: serve nothing.
    Waiting,
    /// Serve; time left.
    Held(Duration),
    /// Serve nothing any more: the incarnation is over.
    Lapsed,
}

impl LeaseState {
    /// A lease of this length, not granted yet.
    pub fn new(lease: Duration) -> LeaseState {
        LeaseState { lease, phase: Phase::Waiting }
    }

    /// The renewal that was sent at `sent` is granted; its answer arrived at `now`.
    pub fn granted(self, sent: Moment, now: Moment) -> LeaseState {
        let until = sent + self.lease;
        let phase = match self.phase {
            Phase::Lapsed => Phase::Lapsed,
            Phase::HeldUntil(before) if before <= now => Phase::Lapsed,
            Phase::HeldUntil(before) => Phase::HeldUntil(before.max(until)),
            Phase::Waiting if until <= now => Phase::Waiting,
            Phase::Waiting => Phase::HeldUntil(until),
        };
        LeaseState { phase, ..self }
    }

    /// What may be done at `now`.
    pub fn status(self, now: Moment) -> LeaseStatus {
        match self.phase {
            Phase::Waiting => LeaseStatus::Waiting,
            Phase::HeldUntil(until) if now < until => LeaseStatus::Held(until.saturating_since(now)),
            Phase::HeldUntil(_) | Phase::Lapsed => LeaseStatus::Lapsed,
        }
    }
}

/// The lease of this process, shared by all requests.
#[derive(Debug)]
pub struct Lease(Mutex<LeaseState>);

impl Lease {
    /// Not granted yet.
    pub fn new(lease: Duration) -> Lease {
        Lease(Mutex::new(LeaseState::new(lease)))
    }

    /// See [`LeaseState::granted`].
    pub fn granted(&self, sent: Moment, now: Moment) {
        let mut state = self.0.lock();
        *state = state.granted(sent, now);
    }

    /// Whether it is held at `now`; remembers nothing.
    pub fn peek(&self, now: Moment) -> bool {
        matches!(self.0.lock().status(now), LeaseStatus::Held(_))
    }

    /// See [`LeaseState::status`]; remembers a lapse.
    pub fn status(&self, now: Moment) -> LeaseStatus {
        let mut state = self.0.lock();
        let status = state.status(now);
        if status == LeaseStatus::Lapsed {
            state.phase = Phase::Lapsed;
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_start(Duration::from_millis(ms))
    }

    fn held(ms: u64) -> LeaseStatus {
        LeaseStatus::Held(Duration::from_millis(ms))
    }

    #[test]
    fn counts_from_the_moment_the_renewal_was_sent() {
        let lease = LeaseState::new(Duration::from_millis(3000));
        assert_eq!(lease.status(at(0)), LeaseStatus::Waiting);
        let lease = lease.granted(at(100), at(900));
        assert_eq!(lease.status(at(900)), held(2200));
        assert_eq!(lease.status(at(3099)), held(1));
        assert_eq!(lease.status(at(3100)), LeaseStatus::Lapsed);
    }

    #[test]
    fn a_late_answer_never_shortens_and_never_revives() {
        let lease = LeaseState::new(Duration::from_millis(3000)).granted(at(100), at(110));
        let longer = lease.granted(at(2000), at(2010));
        assert_eq!(longer.granted(at(1000), at(2020)), longer, "the answer to an older renewal");
        assert_eq!(longer.status(at(4000)), held(1000));
        assert_eq!(lease.granted(at(3000), at(3100)).status(at(3101)), LeaseStatus::Lapsed, "came after the end");
    }

    #[test]
    fn a_grant_that_is_already_over_is_no_grant() {
        let lease = LeaseState::new(Duration::from_millis(3000)).granted(at(0), at(3000));
        assert_eq!(lease.status(at(3000)), LeaseStatus::Waiting);
        assert_eq!(lease.granted(at(3000), at(3001)).status(at(3001)), held(2999));
    }

    #[test]
    fn a_lapse_once_seen_stays() {
        let lease = Lease::new(Duration::from_millis(10));
        lease.granted(at(0), at(1));
        assert_eq!(lease.status(at(10)), LeaseStatus::Lapsed);
        lease.granted(at(9), at(9));
        assert_eq!(lease.status(at(11)), LeaseStatus::Lapsed);
    }
}
