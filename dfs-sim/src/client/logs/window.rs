//! What a log's writer knows of its open segment: pure bookkeeping, no IO.
//!
//! Offsets count from the segment's start. Invariants:
//! 1. `committed <= ` the A-th largest of the members' acknowledged lengths, and is the end of a frame.
//! 2. `committed` never decreases, and never changes once the window is frozen: from the moment of a
//!    roll request nothing more in the segment is acknowledged.
//! 3. A member's acknowledged length never exceeds what was sent.
//! 4. `prefix_crc` is the CRC-32 of bytes `[0, committed)`.

use std::collections::VecDeque;
use std::time::Duration;

use uruk_base::Moment;

/// A member by its place in the segment's list.
pub type MemberIndex = usize;

/// How long replicas may lag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// Behind all others for this long: slow.
    pub slow: Duration,
    /// A frame unacknowledged for this long, whatever the others do: failed.
    pub stalled: Duration,
}

/// A frame that not every live member has acknowledged yet.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Slot {
    end: u64,
    bytes: u64,
    crc: u32,
    sent: Moment,
    acked: Vec<Option<Moment>>,
}

/// The segment that its writer appends to.
#[derive(Clone, Debug)]
pub struct Window {
    ack_quorum: usize,
    /// Acknowledged length of each member; None once it failed.
    members: Vec<Option<u64>>,
    slots: VecDeque<Slot>,
    sent: u64,
    committed: u64,
    prefix_crc: crc32fast::Hasher,
    frozen: bool,
}

impl Window {
    /// An empty segment with this many members, `ack_quorum` of which make a frame durable.
    pub fn new(members: usize, ack_quorum: usize) -> Window {
        assert!(0 < ack_quorum && ack_quorum <= members, "a quorum of {ack_quorum} of {members} members");
        Window {
            ack_quorum,
            members: vec![Some(0); members],
            slots: VecDeque::new(),
            sent: 0,
            committed: 0,
            prefix_crc: crc32fast::Hasher::new(),
            frozen: false,
        }
    }

    /// Where the next frame goes.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Everything below it is acknowledged by the quorum.
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// CRC-32 of bytes `[0, committed)`.
    pub fn prefix_crc(&self) -> u32 {
        self.prefix_crc.clone().finalize()
    }

    /// Whether all live members have all that was sent.
    pub fn is_drained(&self) -> bool {
        self.slots.is_empty()
    }

    /// Whether a roll was requested.
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Members that have not failed.
    pub fn live(&self) -> impl Iterator<Item = MemberIndex> + '_ {
        self.members.iter().enumerate().filter(|(_, acked)| acked.is_some()).map(|(i, _)| i)
    }

    /// A frame of `bytes` bytes with checksum `crc` goes to all live members.
    pub fn on_sent(&mut self, bytes: u64, crc: u32, now: Moment) {
        assert!(!self.frozen, "nothing is sent after a roll request");
        self.sent += bytes;
        self.slots.push_back(Slot { end: self.sent, bytes, crc, sent: now, acked: vec![None; self.members.len()] });
    }

    /// `member` holds all bytes below `length`. Returns the committed length if it grew.
    pub fn on_ack(&mut self, member: MemberIndex, length: u64, now: Moment) -> Option<u64> {
        let acked = self.members[member].as_mut()?;
        if self.frozen || length <= *acked || length > self.sent {
            return None;
        }
        *acked = length;
        for slot in self.slots.iter_mut().filter(|slot| slot.end <= length) {
            slot.acked[member].get_or_insert(now);
        }
        let grew = self.advance();
        self.forget_done();
        grew
    }

    /// `member` gets and acknowledges nothing more.
    pub fn on_failed(&mut self, member: MemberIndex) {
        self.members[member] = None;
        self.forget_done();
    }

    /// A roll is about to be requested: nothing more is acknowledged here. Returns the length and
    /// checksum to seal at.
    pub fn freeze(&mut self) -> (u64, u32) {
        self.frozen = true;
        (self.committed, self.prefix_crc())
    }

    /// Members to leave behind now: the failed, the slow and the stalled.
    pub fn lagging(&self, patience: Patience, now: Moment) -> Vec<MemberIndex> {
        let late = |i: MemberIndex| {
            let due = self.slots.iter().filter_map(|slot| slot.due(i, &self.members, patience)).min();
            due.is_some_and(|due| due <= now)
        };
        (0..self.members.len()).filter(|i| self.members[*i].is_none() || late(*i)).collect()
    }

    /// When [`Self::lagging`] may next name a further member.
    pub fn next_check(&self, patience: Patience) -> Option<Moment> {
        let due = |slot: &Slot| self.live().filter_map(|i| slot.due(i, &self.members, patience)).min();
        self.slots.iter().filter_map(due).min()
    }

    /// Moves `committed` to the last frame that the quorum holds.
    fn advance(&mut self) -> Option<u64> {
        let mut lengths: Vec<u64> = self.members.iter().flatten().copied().collect();
        if lengths.len() < self.ack_quorum {
            return None;
        }
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        let held = lengths[self.ack_quorum - 1];
        let before = self.committed;
        for slot in &self.slots {
            if slot.end > held {
                break;
            }
            if slot.end > self.committed {
                self.committed = slot.end;
                self.prefix_crc.combine(&crc32fast::Hasher::new_with_initial_len(slot.crc, slot.bytes));
            }
        }
        (self.committed > before).then_some(self.committed)
    }

    /// Forgets frames that are committed and that every live member holds.
    fn forget_done(&mut self) {
        while let Some(slot) = self.slots.front()
            && slot.end <= self.committed
            && self.members.iter().flatten().all(|acked| *acked >= slot.end)
        {
            self.slots.pop_front();
        }
    }
}

impl Slot {
    /// When `member`, if it has not acknowledged this frame by then, is late.
    fn due(&self, member: MemberIndex, members: &[Option<u64>], patience: Patience) -> Option<Moment> {
        if members[member].is_none() || self.acked[member].is_some() {
            return None;
        }
        let stalled = self.sent + patience.stalled;
        let mut others_done = None;
        for (i, acked) in self.acked.iter().enumerate() {
            if i == member || members[i].is_none() {
                continue;
            }
            match acked {
                Some(at) => others_done = others_done.max(Some(*at)),
                None => return Some(stalled),
            }
        }
        Some(others_done.map_or(stalled, |at| stalled.min(at + patience.slow)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PATIENCE: Patience = Patience { slow: Duration::from_millis(300), stalled: Duration::from_millis(2_000) };

    fn at(ms: u64) -> Moment {
        Moment::from_start(Duration::from_millis(ms))
    }

    fn with_frames(frames: &[&[u8]]) -> Window {
        let mut window = Window::new(3, 2);
        for frame in frames {
            window.on_sent(frame.len() as u64, crc32fast::hash(frame), at(0));
        }
        window
    }

    #[test]
    fn two_of_three_commit_and_the_checksum_covers_exactly_what_is_committed() {
        let mut window = with_frames(&[b"abc", b"de", b"f"]);
        assert_eq!(window.on_ack(0, 6, at(1)), None);
        assert_eq!(window.on_ack(1, 5, at(2)), Some(5));
        assert_eq!(window.prefix_crc(), crc32fast::hash(b"abcde"));
        assert!(!window.is_drained());
        assert_eq!(window.on_ack(2, 6, at(3)), Some(6));
        assert_eq!(window.prefix_crc(), crc32fast::hash(b"abcdef"));
    }

    #[test]
    fn an_ack_in_the_middle_of_a_frame_commits_only_whole_frames() {
        let mut window = with_frames(&[b"abc", b"de"]);
        window.on_ack(0, 4, at(1));
        assert_eq!(window.on_ack(1, 4, at(1)), Some(3));
    }

    #[test]
    fn nothing_is_acknowledged_after_the_roll_request() {
        let mut window = with_frames(&[b"abc", b"de"]);
        window.on_ack(0, 5, at(1));
        window.on_ack(1, 3, at(1));
        assert_eq!(window.freeze(), (3, crc32fast::hash(b"abc")));
        assert_eq!(window.on_ack(1, 5, at(2)), None);
        assert_eq!(window.committed(), 3);
    }

    #[test]
    fn a_failed_member_does_not_count() {
        let mut window = with_frames(&[b"abc"]);
        window.on_ack(0, 3, at(1));
        window.on_failed(0);
        assert_eq!(window.on_ack(1, 3, at(1)), None);
        assert_eq!(window.on_ack(2, 3, at(1)), Some(3));
        assert_eq!(window.lagging(PATIENCE, at(1)), [0]);
    }

    #[test]
    fn acks_beyond_what_was_sent_are_ignored() {
        let mut window = with_frames(&[b"abc"]);
        assert_eq!(window.on_ack(0, 99, at(1)), None);
        assert_eq!(window.on_ack(1, 99, at(1)), None);
        assert_eq!(window.committed(), 0);
    }

    #[test]
    fn a_member_alone_behind_is_slow_after_its_time() {
        let mut window = with_frames(&[b"abc"]);
        window.on_ack(0, 3, at(10));
        assert_eq!(window.next_check(PATIENCE), Some(at(2_000)));
        window.on_ack(1, 3, at(20));
        assert_eq!(window.next_check(PATIENCE), Some(at(320)));
        assert!(window.lagging(PATIENCE, at(319)).is_empty());
        assert_eq!(window.lagging(PATIENCE, at(320)), [2]);
        window.on_ack(2, 3, at(321));
        assert!(window.lagging(PATIENCE, at(9_999)).is_empty());
        assert_eq!(window.next_check(PATIENCE), None);
    }

    #[test]
    fn two_members_behind_are_not_slow_but_stall_in_the_end() {
        let mut window = with_frames(&[b"abc"]);
        window.on_ack(0, 3, at(10));
        assert!(window.lagging(PATIENCE, at(1_999)).is_empty());
        assert_eq!(window.lagging(PATIENCE, at(2_000)), [1, 2]);
    }

    #[test]
    fn a_member_that_moves_but_never_catches_up_is_slow() {
        let mut window = Window::new(3, 2);
        for i in 0..10 {
            window.on_sent(1, 0, at(i * 100));
            window.on_ack(0, i + 1, at(i * 100 + 1));
            window.on_ack(1, i + 1, at(i * 100 + 1));
            if i >= 5 {
                window.on_ack(2, i - 4, at(i * 100 + 1));
            }
        }
        assert_eq!(window.lagging(PATIENCE, at(901)), [2]);
    }

    #[derive(Clone, Debug)]
    enum Event {
        Send(u64),
        Ack(usize, u64),
        Fail(usize),
        Freeze,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (1u64..50).prop_map(Event::Send),
            8 => (0usize..3, 0u64..120).prop_map(|(m, percent)| Event::Ack(m, percent)),
            1 => (0usize..3).prop_map(Event::Fail),
            1 => Just(Event::Freeze),
        ]
    }

    proptest! {
        /// Whatever happens: committed only grows, is held by a quorum at the time it grows, ends at a
        /// frame's end, and stands still once frozen.
        #[test]
        fn committed_is_always_held_by_a_quorum(events in proptest::collection::vec(event(), 1..80)) {
            let mut window = Window::new(3, 2);
            let (mut held, mut ends, mut committed) = ([0u64; 3], vec![0u64], 0);
            for (now, event) in events.into_iter().enumerate() {
                let (now, frozen) = (at(now as u64), window.is_frozen());
                match event {
                    Event::Send(bytes) if !frozen => {
                        window.on_sent(bytes, 0, now);
                        ends.push(window.sent());
                    }
                    Event::Send(_) => {}
                    Event::Ack(member, percent) => {
                        let length = window.sent() * percent / 100;
                        if length <= window.sent() {
                            held[member] = held[member].max(length);
                        }
                        window.on_ack(member, length, now);
                    }
                    Event::Fail(member) => window.on_failed(member),
                    Event::Freeze => drop(window.freeze()),
                }
                prop_assert!(window.committed() >= committed);
                prop_assert!(!frozen || window.committed() == committed);
                committed = window.committed();
                prop_assert!(held.iter().filter(|h| **h >= committed).count() >= 2);
                prop_assert!(ends.contains(&committed));
            }
        }
    }
}
