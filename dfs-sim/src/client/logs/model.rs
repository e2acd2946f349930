//! One segment as a model: members, a writer's [`Window`], recoverers that use [`decide`], and a
//! controller's compare-and-set, under random interleavings of every message. No IO, no time.
//!
//! Checked at every step: what the writer acknowledges is below the sealed length (S2, S3), the sealed
//! length covers what was acknowledged (I6), A members hold it when it is sealed, and it never changes
//! (I7).

use std::collections::VecDeque;

use proptest::prelude::*;
use uruk_base::Moment;

use super::seal::{Decision, MemberAnswer, decide};
use super::window::Window;

const MEMBERS: usize = 3;
const QUORUM: usize = 2;
const SEALERS: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Segment {
    Open,
    Recovering(u64),
    Sealed(u64),
}

#[derive(Debug, Default)]
struct Member {
    held: u64,
    committed: u64,
    fence: u64,
    down: bool,
    /// Frames on their way: (end, committed).
    requests: VecDeque<(u64, u64)>,
    /// Acknowledgements on their way.
    acks: VecDeque<u64>,
}

#[derive(Debug, Default)]
struct Sealer {
    recovery: u64,
    answers: Vec<MemberAnswer>,
    /// Decided length, once enough members hold it.
    ready: Option<u64>,
}

#[derive(Debug)]
struct Model {
    segment: Segment,
    closed: bool,
    window: Window,
    members: Vec<Member>,
    sealers: Vec<Sealer>,
    next_recovery: u64,
    acknowledged: u64,
    final_length: Option<u64>,
}

#[derive(Clone, Debug)]
enum Step {
    Send(u64),
    Deliver(usize),
    Acknowledge(usize),
    /// The writer asks for a roll; the command arrives at once.
    Roll,
    BeginRecovery(usize),
    Fence(usize, usize),
    Decide(usize),
    Seal(usize),
    /// A member stops answering, or answers again, with all that it held.
    Toggle(usize),
}

impl Model {
    fn new() -> Model {
        Model {
            segment: Segment::Open,
            closed: false,
            window: Window::new(MEMBERS, QUORUM),
            members: (0..MEMBERS).map(|_| Member::default()).collect(),
            sealers: (0..SEALERS).map(|_| Sealer::default()).collect(),
            next_recovery: 1,
            acknowledged: 0,
            final_length: None,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Send(bytes) if !self.window.is_frozen() => {
                let committed = self.window.committed();
                self.window.on_sent(bytes, 0, Moment::default());
                let end = self.window.sent();
                self.members.iter_mut().for_each(|m| m.requests.push_back((end, committed)));
            }
            Step::Send(_) => {}
            Step::Deliver(i) => self.deliver(i),
            Step::Acknowledge(i) => self.acknowledge(i),
            Step::Roll => {
                let (length, _) = self.window.freeze();
                if self.segment == Segment::Open && !self.closed {
                    self.seal_at(length);
                }
            }
            Step::BeginRecovery(s) => self.begin_recovery(s),
            Step::Fence(s, i) => self.fence(s, i),
            Step::Decide(s) => self.decide(s),
            Step::Seal(s) => {
                if let Some(length) = self.sealers[s].ready
                    && self.segment == Segment::Recovering(self.sealers[s].recovery)
                {
                    let holders = self.members.iter().filter(|m| m.held >= length).count();
                    assert!(holders >= QUORUM, "sealed at {length} with {holders} holders");
                    self.seal_at(length);
                }
            }
            Step::Toggle(i) => self.members[i].down ^= true,
        }
    }

    fn deliver(&mut self, i: usize) {
        let member = &mut self.members[i];
        if member.down || member.fence > 0 {
            return;
        }
        if let Some((end, committed)) = member.requests.pop_front() {
            member.held = end;
            member.committed = member.committed.max(committed);
            member.acks.push_back(end);
        }
    }

    fn acknowledge(&mut self, i: usize) {
        let Some(length) = self.members[i].acks.pop_front() else { return };
        if let Some(committed) = self.window.on_ack(i, length, Moment::default()) {
            self.acknowledged = committed;
            assert!(self.final_length.is_none_or(|end| committed <= end), "acknowledged beyond the end");
        }
    }

    fn begin_recovery(&mut self, s: usize) {
        self.closed = true;
        if !matches!(self.segment, Segment::Sealed(_)) {
            let recovery = self.next_recovery;
            self.next_recovery += 1;
            self.segment = Segment::Recovering(recovery);
            self.sealers[s] = Sealer { recovery, ..Sealer::default() };
        }
    }

    fn fence(&mut self, s: usize, i: usize) {
        let (sealer, member) = (&mut self.sealers[s], &mut self.members[i]);
        if sealer.recovery == 0 || member.down || member.fence > sealer.recovery {
            return;
        }
        member.fence = sealer.recovery;
        sealer.answers.retain(|a| a.member != i);
        let answer = MemberAnswer { member: i, length: member.held, committed: member.committed, crc: None };
        sealer.answers.push(answer);
    }

    fn decide(&mut self, s: usize) {
        let sealer = &mut self.sealers[s];
        let plan = match decide(MEMBERS, QUORUM, &sealer.answers) {
            Decision::Seal(plan) => plan,
            Decision::Wait => return,
            Decision::Doubt { what, .. } => panic!("honest members contradict each other: {what}"),
        };
        let mut missing = plan.copies_needed;
        for (i, _) in plan.short {
            let member = &mut self.members[i];
            if missing > 0 && !member.down && member.fence == sealer.recovery {
                member.held = member.held.max(plan.length);
                missing -= 1;
            }
        }
        sealer.ready = (missing == 0).then_some(plan.length);
    }

    fn seal_at(&mut self, length: u64) {
        assert!(length >= self.acknowledged, "sealed at {length}, {} acknowledged", self.acknowledged);
        assert_eq!(self.final_length, None, "sealed is final");
        self.segment = Segment::Sealed(length);
        self.final_length = Some(length);
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1u64..9).prop_map(Step::Send),
        12 => (0..MEMBERS).prop_map(Step::Deliver),
        12 => (0..MEMBERS).prop_map(Step::Acknowledge),
        1 => Just(Step::Roll),
        2 => (0..SEALERS).prop_map(Step::BeginRecovery),
        8 => (0..SEALERS, 0..MEMBERS).prop_map(|(s, i)| Step::Fence(s, i)),
        4 => (0..SEALERS).prop_map(Step::Decide),
        3 => (0..SEALERS).prop_map(Step::Seal),
        2 => (0..MEMBERS).prop_map(Step::Toggle),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn no_interleaving_loses_or_adds_an_acknowledgement(steps in proptest::collection::vec(step(), 1..150)) {
        let mut model = Model::new();
        for step in steps {
            model.step(step);
        }
    }
}

/// The model reaches the states that it is about.
#[test]
fn a_recoverer_seals_what_one_member_alone_knows_to_be_acknowledged() {
    let mut model = Model::new();
    let steps = [
        Step::Send(5),
        Step::Deliver(0),
        Step::Deliver(1),
        Step::Acknowledge(0),
        Step::Acknowledge(1),
        Step::Toggle(1),
        Step::BeginRecovery(0),
        Step::Fence(0, 0),
        Step::Decide(0),
        Step::Seal(0),
        Step::Fence(0, 2),
        Step::Decide(0),
        Step::Seal(0),
    ];
    for step in steps {
        model.step(step);
    }
    assert_eq!((model.acknowledged, model.final_length), (5, Some(5)));
    assert_eq!(model.members[2].held, 5);
}
