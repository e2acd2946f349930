//! Steps 4 and 5: what the members' answers say about where a segment ends. Pure.
//!
//! With W members of which A make a frame durable, any W-A+1 members include one that holds every
//! acknowledged byte; so the longest of that many answers covers them all (I6). A committed length
//! above that longest is a contradiction: a member lost what it had acknowledged.

use uruk_base::planted::{Planted, is_planted};

use super::super::window::MemberIndex;

/// A fenced member that vouches for its content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemberAnswer {
    /// Who.
    pub member: MemberIndex,
    /// Validated length.
    pub length: u64,
    /// Highest committed length it was told.
    pub committed: u64,
    /// CRC-32 of what it holds, if it knows.
    pub crc: Option<u32>,
}

/// Where to seal, and what must be done first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Seal at this length.
    pub length: u64,
    /// CRC-32 of bytes `[0, length)`, if a holder knows it.
    pub crc: Option<u32>,
    /// Fenced members that hold all of it.
    pub holders: Vec<MemberIndex>,
    /// Fenced members that lack the end, with what they hold; longest first.
    pub short: Vec<(MemberIndex, u64)>,
    /// Copies to make before the segment may be sealed.
    pub copies_needed: usize,
}

/// What the answers so far mean.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Too few answers: wait, never proceed.
    Wait,
    /// The answers contradict each other, and a further one may explain it: wait. As it stands, bytes
    /// from `at` on are lost or damaged.
    Doubt {
        /// Where the damage starts.
        at: u64,
        /// What does not fit.
        what: String,
    },
    /// Do this.
    Seal(Plan),
}

/// What `answers`, one per member at most, mean for a segment with this many members.
pub fn decide(members: usize, ack_quorum: usize, answers: &[MemberAnswer]) -> Decision {
    assert!(0 < ack_quorum && ack_quorum <= members, "a quorum of {ack_quorum} of {members} members");
    let spared = usize::from(is_planted(Planted::TooFewAnswers));
    if answers.len() < members - ack_quorum + 1 - spared {
        return Decision::Wait;
    }
    let length = answers.iter().map(|a| a.length).max().unwrap_or(0);
    let committed = answers.iter().map(|a| a.committed).max().unwrap_or(0);
    if length < committed {
        let what =
            format!("{committed} bytes are committed, but the longest of {} members has {length}", answers.len());
        return Decision::Doubt { at: length, what };
    }
    let holders: Vec<&MemberAnswer> = answers.iter().filter(|a| a.length == length).collect();
    let mut crcs = holders.iter().filter_map(|a| a.crc);
    let crc = crcs.next();
    if crcs.any(|other| Some(other) != crc) {
        return Decision::Doubt { at: 0, what: format!("members differ in the checksum of the first {length} bytes") };
    }
    let mut short: Vec<(MemberIndex, u64)> =
        answers.iter().filter(|a| a.length < length).map(|a| (a.member, a.length)).collect();
    short.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    Decision::Seal(Plan {
        length,
        crc,
        copies_needed: (ack_quorum - spared).saturating_sub(holders.len()),
        holders: holders.iter().map(|a| a.member).collect(),
        short,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(member: usize, length: u64, committed: u64) -> MemberAnswer {
        MemberAnswer { member, length, committed, crc: None }
    }

    fn sealed_at(decision: &Decision) -> u64 {
        match decision {
            Decision::Seal(plan) => plan.length,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_answer_of_three_is_not_enough() {
        assert_eq!(decide(3, 2, &[]), Decision::Wait);
        assert_eq!(decide(3, 2, &[answer(0, 10, 10)]), Decision::Wait);
    }

    #[test]
    fn two_of_three_suffice_and_the_longest_wins() {
        let decision = decide(3, 2, &[answer(0, 10, 4), answer(2, 14, 8)]);
        let plan = Plan { length: 14, crc: None, holders: vec![2], short: vec![(0, 10)], copies_needed: 1 };
        assert_eq!(decision, Decision::Seal(plan));
    }

    #[test]
    fn of_two_members_one_answer_suffices_but_a_copy_is_needed() {
        let plan = Plan { length: 5, crc: None, holders: vec![1], short: vec![], copies_needed: 1 };
        assert_eq!(decide(2, 2, &[answer(1, 5, 5)]), Decision::Seal(plan));
    }

    #[test]
    fn committed_beyond_every_answer_is_doubtful_until_the_third_explains_it() {
        let two = [answer(0, 5, 0), answer(1, 8, 10)];
        assert!(matches!(decide(3, 2, &two), Decision::Doubt { at: 8, .. }));
        let three = [two[0], two[1], answer(2, 12, 10)];
        assert_eq!(sealed_at(&decide(3, 2, &three)), 12);
        let lost = [two[0], two[1], answer(2, 9, 10)];
        assert!(matches!(decide(3, 2, &lost), Decision::Doubt { at: 9, .. }));
    }

    #[test]
    fn holders_that_differ_are_doubtful() {
        let with_crc = |member, crc| MemberAnswer { crc: Some(crc), ..answer(member, 5, 5) };
        assert!(matches!(decide(3, 2, &[with_crc(0, 1), with_crc(1, 2)]), Decision::Doubt { .. }));
        assert_eq!(sealed_at(&decide(3, 2, &[with_crc(0, 1), with_crc(1, 1)])), 5);
    }

    proptest! {
        /// Members that acknowledged prefixes, any subset of which answers: the decision never cuts what
        /// two of them acknowledged.
        #[test]
        fn no_acknowledged_byte_is_cut(
            held in proptest::array::uniform3(0u64..100),
            answering in proptest::sample::subsequence(vec![0usize, 1, 2], 0..=3),
        ) {
            let mut sorted = held;
            sorted.sort_unstable();
            let acknowledged = sorted[1];
            let answers: Vec<_> = answering.iter().map(|i| answer(*i, held[*i], acknowledged.min(held[*i]))).collect();
            match decide(3, 2, &answers) {
                Decision::Wait => prop_assert!(answers.len() < 2),
                Decision::Seal(plan) => prop_assert!(plan.length >= acknowledged),
                Decision::Doubt { .. } => prop_assert!(false, "honest members never contradict each other"),
            }
        }
    }
}
