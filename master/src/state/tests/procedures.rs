//! Splits, merges, moves, drains and alterations, step by step, and with a death at every step.

use super::*;
use crate::state::few::FewSet;
use crate::state::history::Event;

fn started(state: &mut State, command: Command) -> ProcedureId {
    match state.apply(command) {
        Reply::Procedure(id) => id,
        reply => panic!("{reply:?}"),
    }
}

fn start_split(tablet: TabletKey, at: Option<&'static str>) -> Command {
    let at = at.map(|at| Bytes::from_static(at.as_bytes()));
    Command::StartSplit { tablet, at, by_load: false, reason: "test".into(), request: 0, micros: 10 }
}

fn start_move(tablet: TabletKey, target: ServerId) -> Command {
    Command::StartMove { tablet, target, reason: "test".into(), request: 0, micros: 10 }
}

fn start_merge(left: TabletKey, right: TabletKey) -> Command {
    Command::StartMerge { left, right, reason: "test".into(), request: 0, micros: 10 }
}

fn split_at(state: &State, id: ProcedureId, tablet: TabletId, at: &'static str) -> TabletSplit {
    TabletSplit { at: Bytes::from_static(at.as_bytes()), ..split_of(state.row(tablet).unwrap(), id, 20) }
}

fn do_split(state: &mut State, split: TabletSplit) -> [MetaRow; 2] {
    match state.apply(Command::TabletSplit(Box::new(split))) {
        Reply::Split(rows) => *rows,
        reply => panic!("{reply:?}"),
    }
}

fn outcome(state: &State, id: ProcedureId) -> String {
    match state.procedures.find(id) {
        Some(Found::Ended(ended)) => ended.outcome(),
        other => panic!("{other:?}"),
    }
}

/// One server with an open tablet of one file and a memory file.
fn one_tablet() -> (State, ServerId, TabletKey) {
    let mut state = State::new();
    let server = register(&mut state, 1);
    create(&mut state, "t", 1);
    let key = assign_all(&mut state, server)[0];
    open_all(&mut state, server, &[key]);
    let with_memory = CommitFiles { memory_file: Some("tables/1-9.mem".into()), ..flush(server, key, 1, "tables/1-1") };
    assert!(matches!(commit(&mut state, with_memory), Reply::Row(_)));
    (state, server, key)
}

/// The same, split at "m" and open.
fn two_halves() -> (State, ServerId, [TabletKey; 2]) {
    let (mut state, server, key) = one_tablet();
    let id = started(&mut state, start_split(key, Some("m")));
    let split = split_at(&state, id, key.tablet, "m");
    let keys = do_split(&mut state, split).map(|row| row.key());
    assert_eq!(open_all(&mut state, server, &keys), keys);
    (state, server, keys)
}

#[test]
fn a_split_replaces_one_row_by_two_that_share_its_files() {
    let (mut state, server, key) = one_tablet();
    let id = started(&mut state, start_split(key, None));
    let split = split_at(&state, id, key.tablet, "m");
    let [left, right] = do_split(&mut state, split.clone());
    assert_eq!(state.row(key.tablet), None);
    assert_eq!((left.range.clone(), right.range.clone()), (RowRange::new("", "m"), RowRange::new("m", "")));
    for half in [&left, &right] {
        assert_eq!(state.row(half.tablet), Some(half));
        assert_eq!((half.state, half.epoch), (TabletState::Opening(server), Epoch(2)));
        assert_eq!(half.needed_logs, FewSet::from([server]));
        assert_eq!(half.names().map(|name| &**name).collect::<Vec<_>>(), ["tables/1-1", "tables/1-9.mem"]);
        assert_eq!(half.files().next().unwrap().range, half.range);
        assert_eq!(half.procedure, None);
    }
    assert!(state.deletions.entries().is_empty(), "both halves still name the files");
    // The answer was lost: it is given again, and after the opening too.
    assert_eq!(do_split(&mut state, split.clone()), [left.clone(), right.clone()]);
    let keys = [left.key(), right.key()];
    assert_eq!(open_all(&mut state, server, &keys), keys);
    assert_eq!(do_split(&mut state, split.clone()).map(|row| row.is_open()), [true, true]);
    // A file goes when the last half lets go of it.
    let compact = |key, number| CommitFiles {
        remove: vec!["tables/1-1".into()],
        flushed_seq: SeqNo::ZERO,
        ..flush(server, key, number, &format!("tables/1-{}", number + 20))
    };
    assert!(matches!(commit(&mut state, compact(keys[0], 1)), Reply::Row(_)));
    assert!(state.deletions.entries().is_empty());
    assert!(matches!(commit(&mut state, compact(keys[1], 2)), Reply::Row(_)));
    assert_eq!(state.deletions.entries().len(), 1);
    state.check().unwrap();
    // Its results have moved on: whoever repeats must read the rows.
    kill(&mut state, server);
    let next = register(&mut state, 2);
    assert_eq!(refused(state.apply(Command::TabletSplit(Box::new(split.clone())))), Reason::Fenced);
    let late = TabletSplit { server: next, ..split };
    assert_eq!(refused(state.apply(Command::TabletSplit(Box::new(late)))), Reason::StaleOwner);
}

#[test]
fn what_a_split_made_stays_its_makers_whatever_fails_before_it_is_reported() {
    let (mut state, server, key) = one_tablet();
    let id = started(&mut state, start_split(key, Some("m")));
    let split = split_at(&state, id, key.tablet, "m");
    let keys = do_split(&mut state, split).map(|row| row.key());
    for key in keys {
        let reason = "not opened in time".to_owned();
        let fail = Command::Fail { server, key, reason, lost_recovery_files: vec![], micros: 30 };
        assert_eq!(state.apply(fail), Reply::Done);
        let row = state.row(key.tablet).unwrap();
        assert_eq!(row.state, TabletState::Opening(server), "its maker serves it");
        assert_eq!(row.needed_logs, FewSet::from([server]), "with writes that are in its log alone");
        assert!(row.failure.is_some(), "for people to see");
        // What it flushes meanwhile is named.
        let flushed = flush(server, key, 7, &format!("tables/1-{}", key.tablet.0 + 50));
        assert!(matches!(commit(&mut state, flushed), Reply::Row(_)));
    }
    state.check().unwrap();
    assert_eq!(open_all(&mut state, server, &keys), keys);
    // Once it has been elsewhere it is opened like any other.
    assert_eq!(state.apply(Command::Release { server, key: keys[0] }), Reply::Done);
    let back = assign_all(&mut state, server)[0];
    let reason = "damaged".to_owned();
    let fail = Command::Fail { server, key: back, reason, lost_recovery_files: vec![], micros: 40 };
    assert_eq!(state.apply(fail), Reply::Done);
    assert_eq!(state.row(back.tablet).unwrap().state, TabletState::Failed);
    state.check().unwrap();
}

#[test]
fn the_log_of_a_maker_that_died_before_it_reported_is_needed() {
    let (mut state, server, key) = one_tablet();
    let id = started(&mut state, start_split(key, Some("m")));
    let split = split_at(&state, id, key.tablet, "m");
    let keys = do_split(&mut state, split).map(|row| row.key());
    kill(&mut state, server);
    for key in keys {
        let row = state.row(key.tablet).unwrap();
        assert_eq!((row.state, &row.needed_logs), (TabletState::Unassigned, &FewSet::from([server])));
    }
    state.check().unwrap();
}

#[test]
fn a_split_is_refused_unless_all_of_it_is_current() {
    let (mut state, server, key) = one_tablet();
    for at in ["", "\0"] {
        let good = !at.is_empty();
        let reply = state.clone().apply(start_split(key, Some(at)));
        assert_eq!(matches!(reply, Reply::Procedure(_)), good, "{at:?}: {reply:?}");
    }
    let id = started(&mut state, start_split(key, Some("m")));
    assert_eq!(refused(state.apply(start_split(key, None))), Reason::FailedPrecondition, "one at a time");
    let good = split_at(&state, id, key.tablet, "m");
    let share = good.files[0].clone();
    let shares = |share: FileShare| TabletSplit { files: vec![share], ..good.clone() };
    let twice = vec![share.clone(), share.clone()];
    for (bad, reason) in [
        (TabletSplit { server: ServerId(9), ..good.clone() }, Reason::Fenced),
        (TabletSplit { key: TabletKey { epoch: Epoch(2), ..key }, ..good.clone() }, Reason::FailedPrecondition),
        (TabletSplit { procedure: ProcedureId(9), ..good.clone() }, Reason::FailedPrecondition),
        (TabletSplit { at: "n".into(), ..good.clone() }, Reason::InvalidArgument),
        (TabletSplit { flushed_seq: SeqNo(1), ..good.clone() }, Reason::FailedPrecondition),
        (TabletSplit { files: vec![], ..good.clone() }, Reason::FailedPrecondition),
        (TabletSplit { files: twice, ..good.clone() }, Reason::FailedPrecondition),
        (shares(FileShare { path: "tables/1-2".into(), ..share.clone() }), Reason::FailedPrecondition),
        (shares(FileShare { low: "a".into(), ..share.clone() }), Reason::FailedPrecondition),
    ] {
        let before = state.clone();
        assert_eq!(refused(state.apply(Command::TabletSplit(Box::new(bad.clone())))), reason, "{bad:?}");
        assert_eq!(state, before);
    }
    // A flush that came in between makes the report old.
    assert!(matches!(commit(&mut state, flush(server, key, 2, "tables/1-2")), Reply::Row(_)));
    assert_eq!(refused(state.apply(Command::TabletSplit(Box::new(good)))), Reason::FailedPrecondition);
    let fresh = split_at(&state, id, key.tablet, "m");
    do_split(&mut state, fresh);
    state.check().unwrap();
}

#[test]
fn a_tablet_that_needs_a_dead_servers_log_is_not_split() {
    let (mut state, dead, key) = one_tablet();
    let server = register(&mut state, 2);
    kill(&mut state, dead);
    state.apply(Command::RecordSeal { server: dead, segments: vec![], end: 0, micros: 2 });
    let key = TabletKey { epoch: Epoch(2), ..key };
    assert_eq!(assign_all(&mut state, server), [key]);
    open_all(&mut state, server, &[key]);
    let id = started(&mut state, start_split(key, None));
    let split = split_at(&state, id, key.tablet, "m");
    assert_eq!(refused(state.apply(Command::TabletSplit(Box::new(split)))), Reason::FailedPrecondition);
    let done = CommitFiles { logs_done: vec![dead], ..flush(server, key, 7, "tables/2-7") };
    assert!(matches!(commit(&mut state, done), Reply::Row(_)));
    let split = split_at(&state, id, key.tablet, "m");
    do_split(&mut state, split);
    state.check().unwrap();
}

#[test]
fn a_half_does_not_name_what_holds_nothing_for_it() {
    let (mut state, server, key) = one_tablet();
    let id = started(&mut state, start_split(key, None));
    let mut split = split_at(&state, id, key.tablet, "m");
    (split.files[0].right_bytes, split.files[0].right_cells) = (0, 0);
    let [left, right] = do_split(&mut state, split);
    assert_eq!((left.files().count(), right.files().count()), (1, 0));
    // The next split is to the right of all that the left half's file has for it.
    open_all(&mut state, server, &[left.key(), right.key()]);
    let id = started(&mut state, start_split(right.key(), None));
    let split = split_at(&state, id, right.tablet, "t");
    do_split(&mut state, split);
    state.check().unwrap();
}

#[test]
fn the_owners_death_ends_a_split_at_any_point() {
    // While it splits: the whole tablet is recovered, and a late report is refused.
    let (mut state, server, key) = one_tablet();
    let id = started(&mut state, start_split(key, None));
    let split = split_at(&state, id, key.tablet, "m");
    let other = register(&mut state, 2);
    kill(&mut state, server);
    assert_eq!(outcome(&state, id), "given up: server-1 died");
    assert_eq!(refused(state.apply(Command::TabletSplit(Box::new(split.clone())))), Reason::Fenced);
    state.apply(Command::RecordSeal { server, segments: vec![], end: 0, micros: 2 });
    let keys = assign_all(&mut state, other);
    assert_eq!(keys, [TabletKey { epoch: Epoch(2), ..key }]);
    open_all(&mut state, other, &keys);
    let again = started(&mut state, start_split(keys[0], None));
    assert_ne!(again, id);
    state.check().unwrap();
    // After the command: both halves need its log, as any tablet does.
    let (mut state, server, key) = one_tablet();
    let id = started(&mut state, start_split(key, None));
    let split = split_at(&state, id, key.tablet, "m");
    let halves = do_split(&mut state, split);
    let other = register(&mut state, 2);
    kill(&mut state, server);
    assert_eq!(state.recoveries.get(server).unwrap().tablets.len(), 2);
    assert_eq!(assign_all(&mut state, other), [], "not before the log is sealed");
    state.apply(Command::RecordSeal { server, segments: vec![], end: 0, micros: 2 });
    let keys = assign_all(&mut state, other);
    assert_eq!(keys.len(), 2);
    for (key, half) in keys.iter().zip(&halves) {
        assert_eq!(*key, TabletKey { tablet: half.tablet, epoch: Epoch(3) });
        assert_eq!(state.row(key.tablet).unwrap().needed_logs, FewSet::from([server, other]));
    }
    state.check().unwrap();
}

#[test]
fn what_is_over_never_runs_again() {
    let (mut state, server, key) = one_tablet();
    let other = register(&mut state, 2);
    let id = started(&mut state, start_split(key, None));
    let split = split_at(&state, id, key.tablet, "m");
    let decline = |server| Command::DeclineProcedure { server, procedure: id, reason: "one row".into(), micros: 30 };
    assert_eq!(refused(state.apply(decline(other))), Reason::StaleOwner);
    assert_eq!(state.apply(decline(server)), Reply::Done);
    assert_eq!(state.apply(decline(server)), Reply::Done, "a repeat");
    assert_eq!(outcome(&state, id), "declined: one row");
    // The first attempt was only delayed. Had it been accepted, what was written since would be lost.
    assert_eq!(refused(state.apply(Command::TabletSplit(Box::new(split)))), Reason::FailedPrecondition);
    assert_eq!(state.row(key.tablet).unwrap().procedure, None);
    let end = |procedure| Command::EndProcedure { procedure, reason: "too long".into(), micros: 40 };
    let next = started(&mut state, start_split(key, None));
    assert_eq!(state.apply(end(next)), Reply::Done);
    assert_eq!(outcome(&state, next), "given up: too long");
    assert_eq!(state.apply(decline(server)), Reply::Done);
    state.check().unwrap();
}

#[test]
fn a_request_finds_its_procedure_while_it_runs_and_after() {
    let (mut state, server, key) = one_tablet();
    let start = |request| Command::StartSplit {
        tablet: key,
        at: None,
        by_load: false,
        reason: String::new(),
        request,
        micros: 0,
    };
    let id = started(&mut state, start(5));
    assert_eq!(started(&mut state, start(5)), id);
    let split = split_at(&state, id, key.tablet, "m");
    do_split(&mut state, split);
    assert_eq!(started(&mut state, start(5)), id);
    assert_eq!(refused(state.apply(start(6))), Reason::NotFound, "the tablet is gone");
    assert!(state.servers.is_live(server));
}

#[test]
fn a_merge_keeps_each_reference_as_narrow_as_it_was() {
    let (mut state, server, [left, right]) = two_halves();
    let id = started(&mut state, start_merge(left, right));
    let merged = merge_of(&state, id, (left, right), 50).unwrap();
    for (bad, reason) in [
        (TabletsMerged { memory_file: None, ..merged.clone() }, Reason::InvalidArgument),
        (TabletsMerged { memory_file: Some("tables/1-9.mem".into()), ..merged.clone() }, Reason::InvalidArgument),
        (TabletsMerged { memory_file: Some("tables/7-9.mem".into()), ..merged.clone() }, Reason::InvalidArgument),
        (TabletsMerged { left: right, right: left, ..merged.clone() }, Reason::FailedPrecondition),
        (TabletsMerged { right_flushed_seq: SeqNo(1), ..merged.clone() }, Reason::FailedPrecondition),
        (TabletsMerged { server: ServerId(8), ..merged.clone() }, Reason::Fenced),
    ] {
        let before = state.clone();
        assert_eq!(refused(state.apply(Command::TabletsMerged(Box::new(bad.clone())))), reason, "{bad:?}");
        assert_eq!(state, before);
    }
    let Reply::Row(row) = state.apply(Command::TabletsMerged(Box::new(merged.clone()))) else { panic!("refused") };
    assert_eq!((row.range.clone(), row.epoch), (RowRange::ALL, Epoch(3)));
    assert_eq!((row.state, row.needed_logs.clone()), (TabletState::Opening(server), FewSet::from([server])));
    // Two references to one file, each as it was.
    let ranges: Vec<_> = row.files().map(|file| (&*file.path, file.range.clone())).collect();
    let path = "tables/1-1";
    assert_eq!(ranges, [(path, RowRange::new("", "m")), (path, RowRange::new("m", ""))]);
    assert_eq!(state.deletions.entries().values().map(|path| &**path).collect::<Vec<_>>(), ["tables/1-9.mem"]);
    assert_eq!(state.apply(Command::TabletsMerged(Box::new(merged))), Reply::Row(row.clone()), "a repeat");
    // A compaction takes both references out at once.
    open_all(&mut state, server, &[row.key()]);
    let compact = CommitFiles {
        remove: vec![path.into()],
        flushed_seq: SeqNo::ZERO,
        ..flush(server, row.key(), 60, "tables/1-60")
    };
    assert!(matches!(commit(&mut state, compact), Reply::Row(_)));
    assert_eq!(state.row(row.tablet).unwrap().files().count(), 1);
    state.check().unwrap();
    let events: Vec<Event> = state.history.of(row.tablet).iter().map(|(_, event)| *event).collect();
    assert_eq!(events, [Event::MergedFrom(left.tablet, right.tablet)]);
    assert_eq!(state.history.of(left.tablet).last().unwrap().1, Event::MergedInto(row.tablet));
}

#[test]
fn a_merge_brings_the_right_tablet_to_the_left_ones_server_first() {
    let (mut state, a, [left, right]) = two_halves();
    let b = register(&mut state, 2);
    // The right one is somewhere else.
    let id = started(&mut state, start_move(right, b));
    assert_eq!(state.row(right.tablet).unwrap().state, TabletState::Closing(a, CloseKind::Flush));
    assert_eq!(state.wanted_at(state.row(right.tablet).unwrap()), Some(b));
    assert_eq!(state.apply(Command::Release { server: a, key: right }), Reply::Done);
    let right = assign_all(&mut state, b)[0];
    open_all(&mut state, b, &[right]);
    assert_eq!(outcome(&state, id), "done");
    assert_eq!(state.row(right.tablet).unwrap().procedure, None);
    assert_eq!(state.history.of(right.tablet).last().unwrap().1, Event::Opened(b));
    // Brought back by the merge.
    let id = started(&mut state, start_merge(left, right));
    assert_eq!(refused(state.apply(start_move(left, b))), Reason::FailedPrecondition, "one at a time");
    let early = merge_of(&state, id, (left, right), 50).unwrap();
    assert!(matches!(state.apply(Command::TabletsMerged(Box::new(early))), Reply::Refused(_)));
    assert_eq!(state.wanted_at(state.row(right.tablet).unwrap()), Some(a));
    state.apply(Command::Release { server: b, key: right });
    let right = assign_all(&mut state, a)[0];
    open_all(&mut state, a, &[right]);
    let merged = merge_of(&state, id, (left, right), 50).unwrap();
    let Reply::Row(row) = state.apply(Command::TabletsMerged(Box::new(merged))) else { panic!("refused") };
    assert_eq!(row.epoch, Epoch(right.epoch.0 + 1));
    state.check().unwrap();
}

#[test]
fn a_merge_ends_when_either_owner_dies_or_the_right_tablet_lands_elsewhere() {
    let moved = || {
        let (mut state, a, [left, right]) = two_halves();
        let b = register(&mut state, 2);
        started(&mut state, start_move(right, b));
        state.apply(Command::Release { server: a, key: right });
        let right = assign_all(&mut state, b)[0];
        open_all(&mut state, b, &[right]);
        let id = started(&mut state, start_merge(left, right));
        (state, (a, b), (left, right), id)
    };
    let (mut state, (a, _), _, id) = moved();
    kill(&mut state, a);
    assert_eq!(outcome(&state, id), "given up: server-1 died");
    state.check().unwrap();
    let (mut state, (_, b), _, id) = moved();
    kill(&mut state, b);
    assert_eq!(outcome(&state, id), "given up: server-2 died");
    state.check().unwrap();
    let (mut state, (_, b), (_, right), id) = moved();
    state.apply(Command::Release { server: b, key: right });
    state.check().unwrap();
    let keys = assign_all(&mut state, b);
    open_all(&mut state, b, &keys);
    assert!(outcome(&state, id).contains("not beside"), "{}", outcome(&state, id));
    assert!(state.meta.rows().all(|row| row.is_open() && row.procedure.is_none()));
    // Only neighbours merge.
    let (mut state, _, [left, right]) = two_halves();
    assert_eq!(refused(state.apply(start_merge(right, left))), Reason::InvalidArgument);
    state.check().unwrap();
}

#[test]
fn a_move_goes_on_without_its_target_and_ends_with_its_owner() {
    let (mut state, a, key) = one_tablet();
    let (b, c) = (register(&mut state, 2), register(&mut state, 3));
    assert_eq!(refused(state.apply(start_move(key, a))), Reason::InvalidArgument);
    state.apply(Command::SetDraining { server: c, draining: true });
    assert_eq!(refused(state.apply(start_move(key, c))), Reason::FailedPrecondition);
    state.apply(Command::SetDraining { server: c, draining: false });
    // The target dies: whoever opens it ends the move.
    let id = started(&mut state, start_move(key, b));
    kill(&mut state, b);
    state.apply(Command::Release { server: a, key });
    let key = assign_all(&mut state, c)[0];
    open_all(&mut state, c, &[key]);
    assert_eq!(outcome(&state, id), "done");
    // The tablet cannot be opened there: it is assigned as any other.
    let id = started(&mut state, start_move(key, a));
    state.apply(Command::Release { server: c, key });
    let key = assign_all(&mut state, a)[0];
    let fail = Command::Fail { server: a, key, reason: "damaged".into(), lost_recovery_files: vec![], micros: 70 };
    state.apply(fail);
    assert_eq!(outcome(&state, id), "given up: server-1 could not open it");
    let key = assign_all(&mut state, c)[0];
    open_all(&mut state, c, &[key]);
    // Its owner dies before it has released.
    let id = started(&mut state, start_move(key, a));
    kill(&mut state, c);
    assert_eq!(outcome(&state, id), "given up: server-3 died");
    assert_eq!(refused(state.apply(Command::Release { server: c, key })), Reason::Fenced);
    state.check().unwrap();
}

#[test]
fn deleting_the_table_ends_its_procedures() {
    let (mut state, server, [left, right]) = two_halves();
    let id = started(&mut state, start_merge(left, right));
    let merged = merge_of(&state, id, (left, right), 50).unwrap();
    state.apply(Command::DeleteTable { request: 9, name: "t".into() });
    assert_eq!(outcome(&state, id), "given up: its table is deleted");
    assert!(matches!(state.apply(Command::TabletsMerged(Box::new(merged))), Reply::Refused(_)));
    state.check().unwrap();
    for key in [left, right] {
        assert_eq!(state.apply(Command::Release { server, key }), Reply::Done);
    }
    assert_eq!(state.deletions.entries().len(), 2);
    state.check().unwrap();
}

#[test]
fn a_tablet_in_a_procedure_is_not_closed_besides() {
    let (mut state, server, key) = one_tablet();
    let id = started(&mut state, start_split(key, None));
    state.apply(Command::Close { tablets: vec![key] });
    assert!(state.row(key.tablet).unwrap().is_open());
    // The server gives it up on its own: the split has lost its ground.
    assert_eq!(state.apply(Command::Release { server, key }), Reply::Done);
    assert_eq!(outcome(&state, id), "given up: server-1 has released it");
    state.check().unwrap();
}

#[test]
fn a_drain_is_remembered_until_the_server_dies() {
    let (mut state, server, _) = one_tablet();
    let drain = |server, draining| Command::SetDraining { server, draining };
    assert_eq!(state.apply(drain(server, true)), Reply::Done);
    let restored = State::restore(&state.snapshot()).unwrap();
    assert!(restored.servers.is_draining(server));
    kill(&mut state, server);
    assert!(!state.servers.is_draining(server));
    assert_eq!(refused(state.apply(drain(server, true))), Reason::NotFound);
    state.check().unwrap();
}

fn alter(state: &mut State, request: u64, changes: Vec<FamilyChange>) -> Reply {
    state.apply(Command::StartAlter { request, name: "t".into(), changes, groups: vec![] })
}

fn family(name: &str) -> Family {
    Family { name: name.into(), id: FamilyId(99), gc: GcRule::MaxVersions(1), locality_group: 0 }
}

#[test]
fn an_alteration_waits_for_every_owner_that_lives() {
    let (mut state, a, keys) = served();
    let b = register(&mut state, 2);
    // One tablet is on its way to the other server.
    started(&mut state, start_move(keys[1], b));
    state.apply(Command::Release { server: a, key: keys[1] });
    assign_all(&mut state, b);
    let table = state.row(keys[0].tablet).unwrap().table;
    let waiting = |state: &State| state.tables.get(table).unwrap().alteration.clone().map(|alter| alter.waiting);
    let reply = alter(&mut state, 5, vec![FamilyChange::Create(family("g"))]);
    assert_eq!(reply, Reply::Altered(table, 2));
    assert_eq!(alter(&mut state, 5, vec![FamilyChange::Create(family("g"))]), reply, "a repeat");
    assert_eq!(waiting(&state), Some(BTreeSet::from([a, b])));
    // What is made under the old schema is refused at once.
    let old = flush(a, keys[0], 1, "tables/1-1");
    assert_eq!(refused(commit(&mut state, old)), Reason::FailedPrecondition);
    let confirm = |server, version| Command::ConfirmSchema { server, table, version };
    state.apply(confirm(a, 1));
    assert_eq!(waiting(&state).unwrap().len(), 2, "an old confirmation does not count");
    state.apply(confirm(a, 2));
    assert_eq!(waiting(&state), Some(BTreeSet::from([b])));
    state.check().unwrap();
    kill(&mut state, b);
    assert_eq!(waiting(&state), None);
    state.check().unwrap();
}

#[test]
fn families_come_change_and_go_under_new_ids() {
    let (mut state, _, _) = served();
    let schema = |state: &State| state.tables.by_name("t").unwrap().schema.clone();
    let first = schema(&state).families[0].id;
    alter(&mut state, 0, vec![FamilyChange::Create(family("g")), FamilyChange::Update(family("f"))]);
    let second = schema(&state);
    assert_eq!((second.version, second.families[0].id), (2, first));
    assert_eq!(second.families[0].gc, GcRule::MaxVersions(1));
    let id = second.family("g").unwrap().id;
    assert!(id > first && id != FamilyId(99), "ids are issued, not taken over");
    // A family of the same name is another one: the old data stays invisible.
    alter(&mut state, 0, vec![FamilyChange::Drop("g".into())]);
    alter(&mut state, 0, vec![FamilyChange::Create(family("g"))]);
    assert!(schema(&state).family("g").unwrap().id > id);
    assert_eq!(schema(&state).version, 4);
    alter(&mut state, 0, vec![FamilyChange::Update(Family { locality_group: 1, ..family("f") })]);
    let moved = schema(&state).family("f").unwrap().clone();
    assert_eq!((moved.id, moved.locality_group), (first, 1), "it is the same family in another group");
    for (bad, reason) in [
        (FamilyChange::Create(family("g")), Reason::AlreadyExists),
        (FamilyChange::Create(family("a b")), Reason::InvalidArgument),
        (FamilyChange::Update(family("h")), Reason::NotFound),
        (FamilyChange::Drop("h".into()), Reason::NotFound),
    ] {
        let before = state.clone();
        assert_eq!(refused(alter(&mut state, 0, vec![bad.clone()])), reason, "{bad:?}");
        assert_eq!(state, before);
    }
}

#[test]
fn the_history_of_a_tablet_is_bounded() {
    let (mut state, a, mut key) = one_tablet();
    let b = register(&mut state, 2);
    for n in 0..40 {
        let (from, to) = if n % 2 == 0 { (a, b) } else { (b, a) };
        started(&mut state, start_move(key, to));
        state.apply(Command::Release { server: from, key });
        key = assign_all(&mut state, to)[0];
        open_all(&mut state, to, &[key]);
    }
    assert_eq!(state.history.of(key.tablet).len(), 16);
    assert_eq!(state.procedures.ended().count(), 40);
    state.check().unwrap();
}
