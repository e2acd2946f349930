//! Idempotency keys: the client's side of RIFL (Lee et al., SOSP 2015).
//!
//! Every write has a sequence number; a batch of n rows has n in a row. All attempts of one write
//! carry the same number, so the tablet performs it once and gives the same answer again.
//!
//! Invariants: (1) a number is used for one write of one client, ever; (2) `first_incomplete` never
//! passes a number whose write may still be tried again; (3) it only grows.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use uruk_proto::tablet::IdempotencyKey;

/// Issues sequence numbers and knows which are settled.
#[derive(Debug)]
pub(crate) struct Sequencer {
    client_id: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    next: u64,
    /// Unsettled ranges: first number -> count.
    open: BTreeMap<u64, u64>,
}

impl Sequencer {
    /// `client_id` must be random, so that no two clients share it.
    pub fn new(client_id: u64) -> Arc<Sequencer> {
        Arc::new(Sequencer { client_id, state: Mutex::new(State { next: 1, open: BTreeMap::new() }) })
    }

    /// `count` numbers in a row, unsettled until the ticket is dropped. `issued_micros` is wall time.
    pub fn issue(self: &Arc<Sequencer>, count: u64, issued_micros: i64) -> Ticket {
        let mut state = self.state.lock();
        let first = state.next;
        state.next += count.max(1);
        state.open.insert(first, count.max(1));
        Ticket { sequencer: self.clone(), first, issued_micros }
    }

    /// The first number that is not settled.
    fn first_incomplete(&self) -> u64 {
        let state = self.state.lock();
        state.open.keys().next().copied().unwrap_or(state.next)
    }
}

/// The numbers of one call. Dropping it settles them: nobody asks about them again.
#[derive(Debug)]
pub(crate) struct Ticket {
    sequencer: Arc<Sequencer>,
    first: u64,
    issued_micros: i64,
}

impl Ticket {
    /// The key for an attempt whose first row is number `offset` of the call.
    pub fn key(&self, offset: usize) -> IdempotencyKey {
        IdempotencyKey {
            client_id: self.sequencer.client_id,
            sequence: self.first + offset as u64,
            first_incomplete: self.sequencer.first_incomplete(),
            issued_micros: self.issued_micros,
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.sequencer.state.lock().open.remove(&self.first);
    }
}

/// The contiguous stretches of ascending `offsets`, each cut where `fits` says no: the wire numbers
/// the rows of a request without gaps.
pub(crate) fn runs(offsets: &[usize], mut fits: impl FnMut(usize, usize) -> bool) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for offset in offsets {
        match runs.last_mut() {
            Some(run) if run.end == *offset && fits(run.start, *offset) => run.end += 1,
            _ => runs.push(*offset..*offset + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_retry_has_the_same_number_and_a_fresh_first_incomplete() {
        let sequencer = Sequencer::new(9);
        let early = sequencer.issue(1, 100);
        let batch = sequencer.issue(5, 200);
        assert_eq!(batch.key(2), IdempotencyKey { client_id: 9, sequence: 4, first_incomplete: 1, issued_micros: 200 });
        drop(early);
        assert_eq!(batch.key(2), IdempotencyKey { client_id: 9, sequence: 4, first_incomplete: 2, issued_micros: 200 });
        drop(batch);
        assert_eq!(sequencer.first_incomplete(), 7);
    }

    proptest! {
        #[test]
        fn first_incomplete_is_the_smallest_open_number_and_only_grows(
            steps in prop::collection::vec((0usize..6, 1u64..4), 1..60)
        ) {
            let sequencer = Sequencer::new(1);
            let mut open: Vec<Ticket> = Vec::new();
            let mut before = 1;
            for (which, count) in steps {
                if which < open.len() {
                    open.remove(which);
                } else {
                    open.push(sequencer.issue(count, 0));
                }
                let first = sequencer.first_incomplete();
                prop_assert!(first >= before);
                prop_assert!(open.iter().all(|ticket| ticket.first >= first));
                prop_assert!(open.is_empty() || open.iter().any(|ticket| ticket.first == first));
                before = first;
            }
        }

        #[test]
        fn numbers_are_never_shared(counts in prop::collection::vec(1u64..5, 1..20)) {
            let sequencer = Sequencer::new(1);
            let mut next = 1;
            for count in counts {
                let ticket = sequencer.issue(count, 0);
                prop_assert_eq!(ticket.first, next);
                next += count;
            }
        }

        #[test]
        fn runs_hold_every_offset_once_and_have_no_gaps(set in prop::collection::btree_set(0usize..40, 0..30), max in 1usize..6) {
            let offsets: Vec<usize> = set.into_iter().collect();
            let runs = runs(&offsets, |start, next| next - start < max);
            prop_assert!(runs.iter().all(|run| run.len() <= max));
            prop_assert_eq!(runs.into_iter().flatten().collect::<Vec<_>>(), offsets);
        }
    }
}
