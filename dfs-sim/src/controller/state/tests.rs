//! Random commands against the invariants in the header of `state.rs`, and single facts.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use uruk_base::commit_log::LogId;
use uruk_consensus::StateMachine;

use super::*;
use crate::controller::command::{CommitPut, LogDurability, RollSegment, SegmentPlan, WrittenChunk};
use crate::controller::id::PieceId;

const LOG: LogId = LogId(7);

fn register(folder_identity: u64) -> Command {
    let address = format!("host{folder_identity}:1");
    Command::RegisterServer { folder_identity, address, zone: String::new(), incarnation: 1, founding_seed: 4 }
}

/// Three servers, ids 1 to 3.
fn founded() -> ControllerState {
    let mut state = ControllerState::default();
    for folder in 1..=3 {
        state.apply(register(folder)).unwrap();
    }
    state
}

/// First id of the store of [`founded`].
fn first_id() -> u64 {
    5 << FOUNDING_SHIFT
}

fn plan(members: &[u64]) -> SegmentPlan {
    SegmentPlan {
        members: members.iter().map(|id| ChunkServerId(*id)).collect(),
        ack_quorum: 2,
        replicas: 3,
        allow_single_replica: false,
    }
}

fn create(log: LogId, writer: u64) -> Command {
    Command::CreateLog { log, writer, durability: LogDurability::Fsync, first: plan(&[1, 2, 3]) }
}

fn roll(log: LogId, writer: u64, index: u32, length: u64) -> Command {
    Command::RollSegment(RollSegment { log, writer, index, length, crc: 9, next: plan(&[1, 2, 3]) })
}

fn begin(log: LogId, index: u32, recovery: u64) -> Command {
    Command::BeginRecovery { log, index, recovery }
}

fn seal(log: LogId, index: u32, recovery: u64, length: u64) -> Command {
    Command::SealSegment { log, index, recovery, length, crc: length as u32 }
}

fn commit(put: u64, chunks: &[u64], path: &str) -> CommitPut {
    let written = |id: &u64| WrittenChunk {
        id: ChunkId(*id),
        bytes: 100,
        crc: 1,
        servers: vec![ChunkServerId(1), ChunkServerId(2)],
    };
    CommitPut {
        put: PutId(put),
        path: path.to_owned(),
        chunks: chunks.iter().map(written).collect(),
        must_be_new: false,
        modified_micros: 1,
        replicas: 3,
        allow_single_replica: false,
    }
}

fn log(state: &ControllerState) -> &Log {
    match state.log(LOG) {
        Some(LogRecord::Kept(log)) => log,
        other => panic!("{LOG} is {other:?}"),
    }
}

fn any_command() -> impl Strategy<Value = Command> {
    let log_id = || (1..=2u64).prop_map(LogId);
    let writer = || 1..=2u64;
    let index = || 0..=2u32;
    let recovery = || 1..=3u64;
    let length = || prop_oneof![Just(0u64), Just(10), Just(20)];
    let path = || prop_oneof![Just("a"), Just("b"), Just("b/c"), Just("d")].prop_map(str::to_owned);
    let id = || (0..12u64).prop_map(|offset| first_id() + offset);
    let members = || prop_oneof![6 => Just(vec![1, 2, 3]), 2 => Just(vec![2, 3]), 1 => Just(vec![1]), 1 => Just(vec![1, 1, 2]), 1 => Just(vec![9, 1])];
    prop_oneof![
        1 => (1..=4u64).prop_map(register),
        2 => (1..=12u32).prop_map(|count| Command::IssueIds { count }),
        1 => id().prop_map(|block| Command::ExpirePuts { block }),
        6 => (id(), prop::collection::vec(id(), 0..3), path(), any::<bool>()).prop_map(|(put, chunks, path, must_be_new)| {
            Command::CommitPut(CommitPut { must_be_new, ..commit(put, &chunks, &path) })
        }),
        2 => prop::collection::vec(path(), 0..3).prop_map(|paths| Command::DeleteFiles { paths }),
        3 => (path(), path(), any::<bool>(), any::<bool>()).prop_map(|(from, to, must_be_new, rename)| {
            Command::CopyFile { from, to, must_be_new, rename, modified_micros: 2 }
        }),
        4 => (log_id(), writer(), members()).prop_map(|(log, writer, members)| {
            Command::CreateLog { log, writer, durability: LogDurability::Replicated, first: plan(&members) }
        }),
        8 => (log_id(), writer(), index(), length(), members()).prop_map(|(log, writer, index, length, members)| {
            Command::RollSegment(RollSegment { log, writer, index, length, crc: 1, next: plan(&members) })
        }),
        2 => log_id().prop_map(|log| Command::CloseLog { log }),
        5 => (log_id(), index(), recovery()).prop_map(|(log, index, r)| begin(log, index, r)),
        5 => (log_id(), index(), recovery(), length()).prop_map(|(log, index, r, length)| seal(log, index, r, length)),
        3 => (log_id(), 0..50u64).prop_map(|(log, upto)| Command::TrimLog { log, upto }),
        1 => log_id().prop_map(|log| Command::DeleteLog { log }),
    ]
}

/// What must never be taken back.
#[derive(Default)]
struct History {
    ids_next: u64,
    sealed: BTreeMap<(LogId, u32), (u64, u32)>,
    closed: BTreeMap<LogId, (u32, u64)>,
    deleted: BTreeSet<LogId>,
    known: BTreeSet<LogId>,
    trimmed: BTreeMap<LogId, u64>,
    segment_names: BTreeMap<SegmentId, (LogId, u32)>,
    recoveries: BTreeMap<SegmentId, u64>,
    servers: BTreeMap<u64, ChunkServerId>,
}

impl History {
    fn check(&mut self, state: &ControllerState) {
        self.check_ids(state);
        check_files(state);
        for id in &self.known {
            assert!(state.logs.contains_key(id), "S7: {id} was forgotten");
        }
        for (id, record) in &state.logs {
            self.known.insert(*id);
            match record {
                LogRecord::Deleted => {
                    self.deleted.insert(*id);
                }
                LogRecord::Kept(log) => {
                    assert!(!self.deleted.contains(id), "S7: {id} came back");
                    self.check_log(*id, log);
                }
            }
        }
    }

    fn check_ids(&mut self, state: &ControllerState) {
        assert!(state.ids.next >= self.ids_next, "ids only grow");
        self.ids_next = state.ids.next;
        for (id, server) in &state.servers {
            let known = self.servers.entry(server.folder_identity).or_insert(*id);
            assert_eq!(known, id, "a folder keeps its id");
        }
        let distinct: BTreeSet<_> = self.servers.values().collect();
        assert_eq!(distinct.len(), self.servers.len(), "no two folders share an id");
        let mut indexed = BTreeMap::new();
        for (log_id, log) in state.kept_logs() {
            for (index, segment) in &log.segments {
                assert!(segment.id.0 >= state.ids.first && segment.id.0 < state.ids.next);
                assert!(!state.chunks.contains_key(&ChunkId(segment.id.0)), "chunks and segments share no number");
                assert_eq!(state.block_of(segment.id.0), None, "no put can get a segment's number");
                let name = self.segment_names.entry(segment.id).or_insert((log_id, *index));
                assert_eq!(*name, (log_id, *index), "{} names two segments", segment.id);
                indexed.insert(segment.id, (log_id, *index));
            }
        }
        assert_eq!(indexed, state.segments);
    }

    fn check_log(&mut self, id: LogId, log: &Log) {
        let mut base = log.trimmed_to;
        let last = log.segments.keys().next_back().copied();
        for (index, segment) in &log.segments {
            assert_eq!(segment.base, base, "{id} has a gap before segment {index}");
            match segment.state {
                SegmentState::Sealed { length, crc } => {
                    let first = self.sealed.entry((id, *index)).or_insert((length, crc));
                    assert_eq!(*first, (length, crc), "I7: segment {index} of {id} was sealed twice");
                    base += length;
                }
                SegmentState::Open | SegmentState::Recovering { .. } => {
                    assert_eq!(Some(*index), last, "only the last segment of {id} is unsealed");
                    assert!(!self.sealed.contains_key(&(id, *index)), "I7: segment {index} of {id} was opened again");
                    let is_open = segment.state == SegmentState::Open;
                    assert!(is_open || log.closed, "{id} recovers without being closed");
                    let held = self.recoveries.entry(segment.id).or_default();
                    match segment.state {
                        SegmentState::Recovering { recovery } if recovery >= *held => *held = recovery,
                        SegmentState::Open if *held == 0 => {}
                        other => panic!("segment {index} of {id} went back from recovery {held} to {other:?}"),
                    }
                }
            }
            let members: BTreeSet<_> = segment.members.iter().collect();
            assert_eq!(members.len(), segment.members.len());
            assert!(matches!((members.len(), segment.ack_quorum), (2 | 3, 2)), "{segment:?}");
        }
        let trimmed = self.trimmed.entry(id).or_default();
        assert!(log.trimmed_to >= *trimmed, "trims are not taken back");
        *trimmed = log.trimmed_to;
        if log.closed {
            let fixed = self.closed.entry(id).or_insert((log.next_index, log.trimmed_to));
            assert_eq!(*fixed, (log.next_index, log.trimmed_to), "S1, S3: {id} went on after it was closed");
        } else {
            assert!(!self.closed.contains_key(&id), "S7: {id} was opened again");
        }
    }
}

fn check_files(state: &ControllerState) {
    let mut references: BTreeMap<ChunkId, u32> = BTreeMap::new();
    for chunk in state.files.values().flat_map(|file| &file.chunks) {
        *references.entry(*chunk).or_default() += 1;
    }
    let counted: BTreeMap<ChunkId, u32> = state.chunks.iter().map(|(id, c)| (*id, c.references)).collect();
    assert_eq!(references, counted);
    assert_eq!(state.file_bytes, state.files.values().map(|f| f.bytes).sum::<u64>());
    for (id, chunk) in &state.chunks {
        assert!(matches!(state.want(PieceId::Chunk(*id)), Want::Copies(_)), "{id} {chunk:?} is not wanted");
    }
}

/// Chunks that a command may still name never are garbage.
fn garbage(state: &ControllerState) -> BTreeSet<PieceId> {
    let chunks = (0..40).map(|offset| PieceId::Chunk(ChunkId(first_id() + offset)));
    let segments = (0..40).map(|offset| PieceId::Segment(SegmentId(first_id() + offset)));
    chunks.chain(segments).filter(|piece| state.want(*piece) == Want::Garbage).collect()
}

fn is_repeatable(command: &Command) -> bool {
    match command {
        Command::IssueIds { .. } => false,
        // Their own effect refuses them.
        Command::CopyFile { .. } => false,
        Command::RegisterServer { .. }
        | Command::ExpirePuts { .. }
        | Command::CommitPut(_)
        | Command::DeleteFiles { .. }
        | Command::CreateLog { .. }
        | Command::RollSegment(_)
        | Command::CloseLog { .. }
        | Command::BeginRecovery { .. }
        | Command::SealSegment { .. }
        | Command::TrimLog { .. }
        | Command::DeleteLog { .. } => true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn invariants_hold_after_every_command(commands in prop::collection::vec(any_command(), 1..80)) {
        let mut state = founded();
        with_block(&mut state);
        let mut history = History::default();
        let mut garbage_before = BTreeSet::new();
        for command in commands {
            let before = state.clone();
            let reply = state.apply(command.clone());
            history.check(&state);
            if reply.is_err() {
                prop_assert_eq!(&before, &state, "a refusal changed the state: {:?}", command);
            }
            // Deletions act on this set: whatever entered it must stay in it.
            let garbage_now = garbage(&state);
            prop_assert!(garbage_before.is_subset(&garbage_now), "{:?} needs what may be deleted already", command);
            garbage_before = garbage_now;
            if is_repeatable(&command) && reply.is_ok() {
                let mut again = state.clone();
                let repeated = again.apply(command.clone());
                prop_assert!(repeated.is_ok(), "repeating {:?} gives {:?}", command, repeated);
                prop_assert_eq!(&again, &state, "repeating {:?} changed the state", command);
            }
        }
        let restored = ControllerState::restore(&state.snapshot()).expect("restores");
        prop_assert_eq!(restored, state);
    }

    #[test]
    fn damaged_snapshots_are_errors(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = ControllerState::restore(&bytes);
    }
}

#[test]
fn the_same_commands_give_the_same_state() {
    let commands =
        [create(LOG, 1), roll(LOG, 1, 0, 10), Command::IssueIds { count: 5 }, Command::CloseLog { log: LOG }];
    let (mut a, mut b) = (founded(), founded());
    for command in commands {
        assert_eq!(a.apply(command.clone()), b.apply(command));
    }
    assert_eq!(a.snapshot(), b.snapshot());
}

#[test]
fn a_snapshot_of_another_version_is_refused() {
    let mut bytes = founded().snapshot();
    bytes[0] = 99;
    let error = ControllerState::restore(&bytes).unwrap_err();
    assert!(error.to_string().contains("version 99"), "{error}");
    assert!(ControllerState::restore(&[]).is_err());
}

#[test]
fn a_log_has_one_writer_for_life() {
    let mut state = founded();
    state.apply(create(LOG, 1)).unwrap();
    assert_eq!(state.apply(create(LOG, 2)), Err(Refusal::LogFenced(LOG)));
    state.apply(create(LOG, 1)).expect("a retry finds its own log");
    assert_eq!(state.apply(roll(LOG, 2, 0, 5)), Err(Refusal::LogFenced(LOG)));
    state.apply(Command::CloseLog { log: LOG }).unwrap();
    assert_eq!(state.apply(create(LOG, 1)), Err(Refusal::LogFenced(LOG)), "create after seal");
}

#[test]
fn a_log_that_was_closed_first_is_never_created() {
    let mut state = founded();
    state.apply(Command::CloseLog { log: LOG }).unwrap();
    assert!(log(&state).is_sealed(), "nothing to recover");
    assert_eq!(state.apply(create(LOG, 1)), Err(Refusal::LogFenced(LOG)));
    state.apply(Command::DeleteLog { log: LOG }).unwrap();
    assert_eq!(state.apply(create(LOG, 1)), Err(Refusal::LogFenced(LOG)), "the fence outlives the data");
}

#[test]
fn a_roll_that_is_repeated_is_done_once() {
    let mut state = founded();
    state.apply(create(LOG, 1)).unwrap();
    state.apply(roll(LOG, 1, 0, 10)).unwrap();
    let before = state.clone();
    state.apply(roll(LOG, 1, 0, 10)).expect("repeated");
    let other = Refusal::OtherLength { log: LOG, index: 0, sealed: 10, wanted: 11 };
    assert_eq!(state.apply(roll(LOG, 1, 0, 11)), Err(other));
    assert_eq!(state, before);
    assert_eq!(log(&state).segments[&1].base, 10);
    state.apply(Command::CloseLog { log: LOG }).unwrap();
    state.apply(roll(LOG, 1, 0, 10)).expect("it was done, whatever happened since");
}

#[test]
fn a_roll_after_a_seal_at_the_same_length_is_fenced() {
    let mut state = founded();
    state.apply(create(LOG, 1)).unwrap();
    state.apply(Command::CloseLog { log: LOG }).unwrap();
    state.apply(begin(LOG, 0, 1)).unwrap();
    assert_eq!(state.apply(roll(LOG, 1, 0, 10)), Err(Refusal::LogFenced(LOG)));
    state.apply(seal(LOG, 0, 1, 10)).unwrap();
    assert_eq!(state.apply(roll(LOG, 1, 0, 10)), Err(Refusal::LogFenced(LOG)), "there is no next segment");
}

#[test]
fn sealing_takes_its_steps_in_order_and_the_loser_finds_the_winners_result() {
    let mut state = founded();
    state.apply(create(LOG, 1)).unwrap();
    assert_eq!(state.apply(begin(LOG, 0, 1)), Err(Refusal::LogNotClosed(LOG)));
    assert_eq!(state.apply(seal(LOG, 0, 1, 10)), Err(Refusal::LogNotClosed(LOG)));
    state.apply(Command::CloseLog { log: LOG }).unwrap();
    assert_eq!(state.apply(seal(LOG, 0, 1, 10)), Err(Refusal::NotRecovering { log: LOG, index: 0 }));
    state.apply(begin(LOG, 0, 2)).unwrap();
    state.apply(begin(LOG, 0, 5)).expect("a higher one takes over");
    let lower = Refusal::OtherRecovery { log: LOG, index: 0, held: 5, wanted: 2 };
    assert_eq!(state.apply(begin(LOG, 0, 2)), Err(lower.clone()));
    assert_eq!(state.apply(seal(LOG, 0, 2, 8)), Err(lower));
    state.apply(seal(LOG, 0, 5, 10)).unwrap();
    state.apply(seal(LOG, 0, 2, 8)).expect("the loser is told to look");
    assert_eq!(log(&state).segments[&0].state, SegmentState::Sealed { length: 10, crc: 10 });
    assert!(log(&state).is_sealed());
}

#[test]
fn closing_refuses_trims_and_rolls() {
    let mut state = founded();
    state.apply(create(LOG, 1)).unwrap();
    state.apply(roll(LOG, 1, 0, 10)).unwrap();
    state.apply(roll(LOG, 1, 1, 10)).unwrap();
    let trimmed = state.apply(Command::TrimLog { log: LOG, upto: 15 }).unwrap();
    assert_eq!(trimmed.touched.len(), 1, "whole segments only");
    assert_eq!(log(&state).trimmed_to, 10);
    state.apply(Command::CloseLog { log: LOG }).unwrap();
    assert_eq!(state.apply(Command::TrimLog { log: LOG, upto: 20 }), Err(Refusal::LogFenced(LOG)));
    state.apply(Command::TrimLog { log: LOG, upto: 10 }).expect("that was done before");
    assert_eq!(state.apply(roll(LOG, 1, 2, 10)), Err(Refusal::LogFenced(LOG)));
    assert_eq!(state.apply(Command::DeleteLog { log: LOG }), Err(Refusal::LogNotSealed(LOG)));
}

#[test]
fn a_roll_keeps_to_servers_that_exist_and_to_quorums_that_meet() {
    let mut state = founded();
    let with = |first| Command::CreateLog { log: LOG, writer: 1, durability: LogDurability::Fsync, first };
    let stranger = state.apply(with(plan(&[1, 2, 9])));
    assert_eq!(stranger, Err(Refusal::NoSuchServer(ChunkServerId(9))));
    for members in [&[][..], &[1], &[1, 1], &[1, 2, 2]] {
        let refused = state.apply(with(plan(members)));
        assert!(matches!(refused, Err(Refusal::BadQuorum { .. })), "{members:?}: {refused:?}");
    }
    let single = SegmentPlan { ack_quorum: 1, allow_single_replica: true, ..plan(&[1]) };
    let refused = state.apply(with(single.clone()));
    assert!(matches!(refused, Err(Refusal::BadQuorum { .. })), "three servers are registered");
    let mut alone = ControllerState::default();
    alone.apply(register(1)).unwrap();
    alone.apply(with(single)).expect("the only server there ever was");
}

/// A block of ten ids, and the first of them.
fn with_block(state: &mut ControllerState) -> u64 {
    match state.apply(Command::IssueIds { count: 10 }).unwrap().outcome {
        Outcome::Ids(ids) => ids.start,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_expired_put_cannot_be_committed() {
    let mut state = founded();
    let put = with_block(&mut state);
    let chunk = PieceId::Chunk(ChunkId(put + 1));
    assert_eq!(state.want(chunk), Want::Hold, "it may be being written");
    state.apply(Command::ExpirePuts { block: put }).unwrap();
    assert_eq!(state.want(chunk), Want::Garbage);
    let refused = state.apply(Command::CommitPut(commit(put, &[put + 1], "f")));
    assert_eq!(refused, Err(Refusal::PutExpired(PutId(put))));
    let other = with_block(&mut state);
    let refused = state.apply(Command::CommitPut(commit(other, &[put + 1], "f")));
    assert_eq!(refused, Err(Refusal::ChunkNotUsable(ChunkId(put + 1), PutId(other))));
}

#[test]
fn a_late_repeat_of_a_commit_does_not_bring_a_deleted_file_back() {
    let mut state = founded();
    let put = with_block(&mut state);
    let command = Command::CommitPut(commit(put, &[put + 1], "f"));
    state.apply(command.clone()).unwrap();
    state.apply(Command::DeleteFiles { paths: vec!["f".into()] }).unwrap();
    assert_eq!(state.want(PieceId::Chunk(ChunkId(put + 1))), Want::Garbage, "at once, not when the block ends");
    state.apply(command).expect("it was done");
    assert_eq!(state.file("f"), None);
    let reuse = state.apply(Command::CommitPut(commit(put + 5, &[put + 1], "g")));
    assert_eq!(reuse, Err(Refusal::ChunkNotUsable(ChunkId(put + 1), PutId(put + 5))));
}

#[test]
fn a_commit_is_answered_as_long_as_its_file_stands() {
    let mut state = founded();
    let put = with_block(&mut state);
    let command = Command::CommitPut(CommitPut { must_be_new: true, ..commit(put, &[put + 1], "f") });
    state.apply(command.clone()).unwrap();
    state.apply(Command::ExpirePuts { block: put }).unwrap();
    state.apply(command).expect("the file says so");
    assert!(matches!(state.want(PieceId::Chunk(ChunkId(put + 1))), Want::Copies(_)), "expiry spares what is named");
}

#[test]
fn a_put_over_a_file_lets_go_of_the_old_content() {
    let mut state = founded();
    let put = with_block(&mut state);
    state.apply(Command::CommitPut(commit(put, &[put + 1], "f"))).unwrap();
    let over = state.apply(Command::CommitPut(commit(put + 2, &[put + 3], "f"))).unwrap();
    assert!(over.touched.contains(&PieceId::Chunk(ChunkId(put + 1))));
    let exclusive = CommitPut { must_be_new: true, ..commit(put + 4, &[put + 5], "f") };
    assert_eq!(state.apply(Command::CommitPut(exclusive)), Err(Refusal::FileExists("f".into())));
    assert_eq!(state.file_totals(), (1, 100));
}

#[test]
fn a_commit_needs_two_servers_that_exist() {
    let mut state = founded();
    let put = with_block(&mut state);
    let mut one = commit(put, &[put + 1], "f");
    one.chunks[0].servers = vec![ChunkServerId(1), ChunkServerId(1)];
    let too_few = Refusal::TooFewCopies { chunk: ChunkId(put + 1), copies: 1, needed: 2 };
    assert_eq!(state.apply(Command::CommitPut(one.clone())), Err(too_few));
    one.chunks[0].servers = vec![ChunkServerId(1), ChunkServerId(8)];
    assert_eq!(state.apply(Command::CommitPut(one)), Err(Refusal::NoSuchServer(ChunkServerId(8))));
}

#[test]
fn a_copy_shares_chunks_until_both_names_are_gone() {
    let mut state = founded();
    let put = with_block(&mut state);
    let chunk = PieceId::Chunk(ChunkId(put + 1));
    state.apply(Command::CommitPut(commit(put, &[put + 1], "f"))).unwrap();
    let copy = |from: &str, to: &str, rename| Command::CopyFile {
        from: from.into(),
        to: to.into(),
        must_be_new: true,
        rename,
        modified_micros: 2,
    };
    state.apply(copy("f", "g", false)).unwrap();
    assert_eq!(state.apply(copy("f", "g", false)), Err(Refusal::FileExists("g".into())));
    state.apply(copy("f", "h", true)).unwrap();
    assert_eq!(state.apply(copy("f", "h", true)), Err(Refusal::NoSuchFile("f".into())));
    state.apply(Command::DeleteFiles { paths: vec!["g".into(), "none".into()] }).unwrap();
    assert!(matches!(state.want(chunk), Want::Copies(_)));
    state.apply(Command::DeleteFiles { paths: vec!["h".into()] }).unwrap();
    assert_eq!(state.want(chunk), Want::Garbage);
}

#[test]
fn pieces_of_another_store_are_foreign() {
    let state = founded();
    for id in [1, first_id() - 1, first_id(), first_id() + (1 << 41)] {
        assert_eq!(state.want(PieceId::Chunk(ChunkId(id))), Want::Foreign, "{id}: nothing was issued yet");
    }
}

#[test]
fn listing_starts_after_a_path_and_keeps_to_the_prefix() {
    let mut state = founded();
    let put = with_block(&mut state);
    for (offset, path) in ["a", "b/1", "b/2", "b0", "c"].into_iter().enumerate() {
        state.apply(Command::CommitPut(commit(put + offset as u64, &[], path))).unwrap();
    }
    let list = |prefix: &str, after: &str| state.files(prefix, after).map(|(p, _)| p.as_str()).collect::<Vec<_>>();
    assert_eq!(list("", ""), ["a", "b/1", "b/2", "b0", "c"]);
    assert_eq!(list("b/", ""), ["b/1", "b/2"]);
    assert_eq!(list("b/", "b/1"), ["b/2"]);
    assert_eq!(list("b/", "a"), ["b/1", "b/2"]);
    assert_eq!(list("b/", "c"), Vec::<&str>::new());
}
