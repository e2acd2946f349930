//! The state machine command by command; what is random is in `tests/random.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use uruk_consensus::StateMachine;
use uruk_proto::schema::{Compression, Family, FilterOn, GcRule, LocalityGroup, TableSchema};
use uruk_proto::{Epoch, FamilyId, RowRange, SeqNo, ServerId, TableId, TabletId};

use super::State;
use super::few::FewSet;
use super::procedures::{Found, Procedure, ProcedureId, Work};
use super::row::{CloseKind, FileRef, MetaRow, TabletState};
use super::tables::TableState;
use crate::command::{
    Assignment, Command, CommitFiles, FamilyChange, FileShare, Reason, Registration, Reply, TabletKey, TabletSplit,
    TabletsMerged,
};

mod procedures;
mod random;

pub fn registration(nonce: u64) -> Registration {
    Registration {
        nonce,
        address: format!("host-{nonce}:1"),
        zone: String::new(),
        version: String::new(),
        pid: 1,
        parent_pid: 0,
    }
}

pub fn register(state: &mut State, nonce: u64) -> ServerId {
    match state.apply(Command::Register { registration: registration(nonce), micros: 0 }) {
        Reply::Registered(server) => server,
        reply => panic!("{reply:?}"),
    }
}

pub fn schema(name: &str) -> TableSchema {
    let family = Family { name: "f".into(), id: FamilyId(0), gc: GcRule::KeepAll, locality_group: 0 };
    TableSchema { id: TableId(0), name: name.into(), version: 0, families: vec![family], ..TableSchema::default() }
}

/// A table of so many tablets.
pub fn create_command(name: &str, tablets: usize) -> Command {
    let splits = (1..tablets).map(|n| Bytes::from(format!("{n:04}"))).collect();
    Command::CreateTable { request: 7, schema: schema(name), splits, micros: 0 }
}

pub fn create(state: &mut State, name: &str, tablets: usize) -> TableId {
    match state.apply(create_command(name, tablets)) {
        Reply::Table(table) => table,
        reply => panic!("{reply:?}"),
    }
}

pub fn assign_all(state: &mut State, server: ServerId) -> Vec<TabletKey> {
    let keys = state.index.waiting().iter().map(|tablet| state.row(*tablet).unwrap().key());
    let assignments = keys.map(|key| Assignment { key, server }).collect();
    match state.apply(Command::Assign { assignments, micros: 5 }) {
        Reply::Assigned(assigned) => assigned,
        reply => panic!("{reply:?}"),
    }
}

/// Puts files into the deletion queue, as if commands had un-named them.
pub fn unname(state: &mut State, paths: &[&str]) {
    state.deletions.add_all(paths.iter().map(|path| (*path).into()).collect());
}

pub fn open_all(state: &mut State, server: ServerId, keys: &[TabletKey]) -> Vec<TabletKey> {
    match state.apply(Command::Opened { server, tablets: keys.to_vec(), micros: 6 }) {
        Reply::Owned(owned) => owned,
        reply => panic!("{reply:?}"),
    }
}

pub fn kill(state: &mut State, server: ServerId) {
    let how = "killed".to_owned();
    assert_eq!(state.apply(Command::DeclareDead { server, how, last_heard_micros: None, micros: 1 }), Reply::Done);
}

fn file(path: &str) -> FileRef {
    let max_seq = SeqNo::new(Epoch(1), 9).unwrap();
    FileRef { path: path.into(), range: RowRange::ALL, bytes: 10, cells: 1, min_seq: SeqNo(1), max_seq, level: 0 }
}

fn flush(server: ServerId, key: TabletKey, number: u64, path: &str) -> CommitFiles {
    CommitFiles {
        server,
        key,
        schema_version: 1,
        number,
        flushed_seq: SeqNo::new(key.epoch, number).unwrap(),
        memory_file: None,
        remove: vec![],
        add: vec![(0, vec![file(path)])],
        logs_done: vec![],
    }
}

/// The split that its server reports: half of everything on either side.
pub fn split_of(row: &MetaRow, procedure: ProcedureId, micros: i64) -> TabletSplit {
    let share = |file: &FileRef| FileShare {
        path: file.path.clone(),
        low: file.range.start.clone(),
        left_bytes: file.bytes / 2,
        left_cells: 1,
        right_bytes: file.bytes.div_ceil(2),
        right_cells: 1,
    };
    TabletSplit {
        server: row.owner().unwrap_or_default(),
        key: row.key(),
        procedure,
        at: Bytes::new(),
        files: row.files().map(share).collect(),
        flushed_seq: row.flushed_seq,
        micros,
    }
}

/// The merge that its server reports.
pub fn merge_of(
    state: &State,
    procedure: ProcedureId,
    (left, right): (TabletKey, TabletKey),
    step: u64,
) -> Option<TabletsMerged> {
    let (left_row, right_row) = (state.row(left.tablet)?, state.row(right.tablet)?);
    let server = left_row.owner().unwrap_or_default();
    Some(TabletsMerged {
        server,
        left,
        right,
        procedure,
        left_flushed_seq: left_row.flushed_seq,
        right_flushed_seq: right_row.flushed_seq,
        memory_file: Some(format!("tables/{}-{step}.mem", server.0).into()),
        micros: step as i64,
    })
}

fn commit(state: &mut State, commit: CommitFiles) -> Reply {
    state.apply(Command::CommitFiles(Box::new(commit)))
}

fn refused(reply: Reply) -> Reason {
    match reply {
        Reply::Refused(refusal) => refusal.reason,
        reply => panic!("not refused: {reply:?}"),
    }
}

/// One server with an open table of two tablets.
fn served() -> (State, ServerId, Vec<TabletKey>) {
    let mut state = State::new();
    let server = register(&mut state, 1);
    create(&mut state, "t", 2);
    let keys = assign_all(&mut state, server);
    assert_eq!(open_all(&mut state, server, &keys), keys);
    (state, server, keys)
}

#[test]
fn a_nonce_is_bound_once_and_dies_once() {
    let mut state = State::new();
    let first = register(&mut state, 5);
    assert_eq!(register(&mut state, 5), first);
    let report = |nonce| Command::ReportDeath { nonce, how: "killed by signal 9".into(), micros: 3 };
    state.apply(report(5));
    assert_eq!(refused(state.apply(Command::Register { registration: registration(5), micros: 0 })), Reason::Fenced);
    // A launch that died before it could register never comes to life.
    state.apply(report(6));
    assert_eq!(refused(state.apply(Command::Register { registration: registration(6), micros: 0 })), Reason::Fenced);
    // The successor is another incarnation, and late reports miss it.
    let second = register(&mut state, 7);
    assert_ne!(second, first);
    state.apply(report(5));
    assert!(state.servers.is_live(second));
}

#[test]
fn a_dead_servers_tablets_wait_for_its_log() {
    let (mut state, dead, keys) = served();
    let other = register(&mut state, 2);
    kill(&mut state, dead);
    assert_eq!(assign_all(&mut state, other), []);
    let seal = Command::RecordSeal { server: dead, segments: vec![0..10, 10..30], end: 30, micros: 2 };
    assert_eq!(state.apply(seal.clone()), Reply::Done);
    assert_eq!(assign_all(&mut state, other), []);
    let sort = |segment, path: &str| {
        let path: Arc<str> = path.into();
        Command::RecordSort { log: dead, segment, sorter: other, path, records: 1, bytes: 1, micros: 3 }
    };
    state.apply(sort(0, "recovery/2/1"));
    assert_eq!(assign_all(&mut state, other), []);
    state.apply(sort(1, ""));
    let assigned = assign_all(&mut state, other);
    assert_eq!(assigned.len(), keys.len());
    assert!(assigned.iter().zip(&keys).all(|(new, old)| new.epoch.0 == old.epoch.0 + 1));
    let row = state.row(keys[0].tablet).unwrap();
    assert_eq!(row.needed_logs, FewSet::from([dead, other]));
    // Late reports of the dead are refused; so is a report under another epoch.
    assert_eq!(
        refused(state.apply(Command::Opened { server: dead, tablets: keys.clone(), micros: 0 })),
        Reason::Fenced
    );
    assert_eq!(refused(commit(&mut state, flush(dead, keys[0], 1, "tables/1-9"))), Reason::Fenced);
    assert_eq!(open_all(&mut state, other, &keys), []);
    assert_eq!(open_all(&mut state, other, &assigned), assigned);
    // Only a committed flush lets go of the log.
    assert_eq!(refused(state.apply(Command::FinishRecovery { server: dead, micros: 9 })), Reason::FailedPrecondition);
    for (number, key) in assigned.iter().enumerate() {
        let number = number as u64 + 1;
        let done = CommitFiles { logs_done: vec![dead], ..flush(other, *key, number, &format!("tables/2-{number}")) };
        assert!(matches!(commit(&mut state, done), Reply::Row(_)));
    }
    assert_eq!(state.apply(Command::FinishRecovery { server: dead, micros: 9 }), Reply::Done);
    assert_eq!(state.deletions.entries().values().map(|path| &**path).collect::<Vec<_>>(), ["recovery/2/1"]);
    let recovery = state.recoveries.get(dead).unwrap();
    assert_eq!((recovery.served_micros, recovery.done_micros), (Some(6), Some(9)));
    state.check().unwrap();
}

#[test]
fn a_file_is_abandoned_when_its_living_creator_lost_its_tablet() {
    let (mut state, server, keys) = served();
    let other = register(&mut state, 2);
    let made_by = |server: ServerId| format!("tables/1/{}/{}-9.sst", keys[0].tablet.0, server.0);
    assert!(!state.is_abandoned(&made_by(server), server), "it may still be named");
    assert!(state.is_abandoned(&made_by(other), other), "its creator never had the tablet, or lost it");
    // The names of rows and queues are looked for besides; a name without a tablet tells nothing.
    assert!(!state.is_abandoned(&format!("tables/{}-9.sst", server.0), server));
    assert!(state.is_abandoned(&format!("tables/1/4711/{}-9.sst", server.0), server), "the tablet is gone");
    kill(&mut state, server);
    assert!(state.is_abandoned(&made_by(server), server));
}

#[test]
fn recoveries_chain_when_the_new_owner_dies_too() {
    let (mut state, first, keys) = served();
    let (second, third) = (register(&mut state, 2), register(&mut state, 3));
    let seal = |server| Command::RecordSeal { server, segments: vec![0u64..10; 1], end: 10, micros: 2 };
    let sort = |log, path: &str| {
        let path: Arc<str> = path.into();
        Command::RecordSort { log, segment: 0, sorter: third, path, records: 1, bytes: 1, micros: 3 }
    };
    kill(&mut state, first);
    state.apply(seal(first));
    state.apply(sort(first, "recovery/3/1"));
    assert_eq!(assign_all(&mut state, second).len(), 2);
    kill(&mut state, second); // while it opens them
    assert_eq!(assign_all(&mut state, third), []);
    state.apply(seal(second));
    assert_eq!(assign_all(&mut state, third), []);
    state.apply(sort(second, "recovery/3/2"));
    let assigned = assign_all(&mut state, third);
    assert_eq!(assigned[0].epoch, Epoch(3));
    assert_eq!(state.row(keys[0].tablet).unwrap().needed_logs, FewSet::from([first, second, third]));
    open_all(&mut state, third, &assigned);
    assert!(state.recoveries.get(first).unwrap().served_micros.is_some());
    assert!(state.recoveries.get(second).unwrap().served_micros.is_some());
    state.check().unwrap();
}

#[test]
fn a_lost_recovery_file_is_sorted_anew() {
    let (mut state, dead, keys) = served();
    let other = register(&mut state, 2);
    kill(&mut state, dead);
    state.apply(Command::RecordSeal { server: dead, segments: vec![0u64..10; 1], end: 10, micros: 2 });
    let sort = |path: &str| {
        let path: Arc<str> = path.into();
        Command::RecordSort { log: dead, segment: 0, sorter: other, path, records: 1, bytes: 1, micros: 3 }
    };
    state.apply(sort("recovery/2/1"));
    state.apply(sort("recovery/2/2")); // came second: let go
    let assigned = assign_all(&mut state, other);
    let lost = vec!["recovery/2/1".into()];
    let fail =
        |key| Command::Fail { server: other, key, reason: "r".into(), lost_recovery_files: lost.clone(), micros: 4 };
    assert_eq!(state.apply(fail(assigned[0])), Reply::Done);
    assert_eq!(state.deletions.entries().len(), 2);
    assert_eq!(assign_all(&mut state, other), []);
    state.apply(sort("recovery/2/3"));
    // The one that failed goes again; the other is still being opened.
    assert_eq!(assign_all(&mut state, other), [TabletKey { tablet: keys[0].tablet, epoch: Epoch(3) }]);
    state.check().unwrap();
}

#[test]
fn a_lost_recovery_file_is_believed_also_of_a_tablet_that_has_moved_on() {
    let (mut state, dead, _) = served();
    let (slow, next) = (register(&mut state, 2), register(&mut state, 3));
    kill(&mut state, dead);
    state.apply(Command::RecordSeal { server: dead, segments: vec![0u64..10; 1], end: 10, micros: 2 });
    let (path, micros): (Arc<str>, _) = ("recovery/2/1".into(), 3);
    let sort = Command::RecordSort { log: dead, segment: 0, sorter: slow, path, records: 1, bytes: 1, micros };
    state.apply(sort);
    let fail = |key, lost_recovery_files| Command::Fail {
        server: slow,
        key,
        reason: "r".into(),
        lost_recovery_files,
        micros: 4,
    };
    let late = assign_all(&mut state, slow)[0];
    // It took too long; while it still tries, the tablet goes to another server.
    assert_eq!(state.apply(fail(late, vec![])), Reply::Done);
    let moved = assign_all(&mut state, next);
    assert_eq!(moved[0].tablet, late.tablet);
    let before = state.row(late.tablet).unwrap().clone();
    assert_eq!(state.apply(fail(late, vec!["recovery/2/1".into()])), Reply::Done);
    assert_eq!(state.row(late.tablet), Some(&before), "the tablet is no longer its business");
    let again = state.apply(fail(late, vec!["recovery/2/1".into()]));
    assert!(matches!(again, Reply::Refused(_)), "it says nothing new: {again:?}");
    assert_eq!(state.deletions.entries().len(), 1);
    assert!(!state.is_openable(&before), "the file is made anew first");
    state.check().unwrap();
}

#[test]
fn a_commit_is_refused_unless_all_of_it_is_current() {
    let (mut state, server, keys) = served();
    let key = keys[0];
    let good = flush(server, key, 1, "tables/1-1");
    let before = commit(&mut state, good.clone());
    assert!(matches!(before, Reply::Row(_)));
    assert_eq!(commit(&mut state, good.clone()), before, "a repeat is answered alike");
    let key_of = |epoch| TabletKey { epoch: Epoch(epoch), ..key };
    let next = flush(server, key, 2, "tables/1-2");
    let of_another = format!("tables/1/{}/1-2.sst", keys[1].tablet.0);
    for (bad, reason) in [
        (CommitFiles { schema_version: 0, ..next.clone() }, Reason::FailedPrecondition),
        (CommitFiles { key: key_of(0), ..next.clone() }, Reason::StaleOwner),
        (CommitFiles { key: key_of(2), ..next.clone() }, Reason::StaleOwner),
        (CommitFiles { server: ServerId(9), ..next.clone() }, Reason::Fenced),
        (CommitFiles { remove: vec!["tables/1-7".into()], ..next.clone() }, Reason::FailedPrecondition),
        (CommitFiles { add: vec![(0, vec![file("tables/1-1")])], ..next.clone() }, Reason::InvalidArgument),
        (CommitFiles { add: vec![(0, vec![file("tables/9-1")])], ..next.clone() }, Reason::InvalidArgument),
        (CommitFiles { add: vec![(0, vec![file(&of_another)])], ..next.clone() }, Reason::InvalidArgument),
        (CommitFiles { memory_file: Some(of_another.as_str().into()), ..next.clone() }, Reason::InvalidArgument),
        (CommitFiles { flushed_seq: SeqNo(1), ..next.clone() }, Reason::InvalidArgument),
        (CommitFiles { logs_done: vec![server], ..next.clone() }, Reason::InvalidArgument),
    ] {
        let before = state.clone();
        assert_eq!(refused(commit(&mut state, bad.clone())), reason, "{bad:?}");
        assert_eq!(state, before);
    }
    let merge = CommitFiles {
        remove: vec!["tables/1-1".into()],
        flushed_seq: SeqNo::ZERO,
        memory_file: Some("tables/1-4.mem".into()),
        ..flush(server, key, 3, "tables/1-3")
    };
    let Reply::Row(row) = commit(&mut state, merge) else { panic!("refused") };
    assert_eq!(row.flushed_seq, good.flushed_seq);
    assert_eq!(row.names().map(|name| &**name).collect::<Vec<_>>(), ["tables/1-3", "tables/1-4.mem"]);
    assert_eq!(state.deletions.entries().values().map(|path| &**path).collect::<Vec<_>>(), ["tables/1-1"]);
    // An unbounded reference is clipped to the tablet.
    assert_eq!(row.files().next().unwrap().range, row.range);
}

#[test]
fn a_late_first_attempt_of_a_flush_brings_no_older_memory_file_back() {
    let (mut state, server, keys) = served();
    let attempt = |number, path: &str, memory: &str| CommitFiles {
        memory_file: Some(memory.into()),
        flushed_seq: SeqNo::new(keys[0].epoch, 9).unwrap(),
        ..flush(server, keys[0], number, path)
    };
    // Its answer was lost, and the row did not show it; the next flush had nothing new but a remembered call.
    let late = attempt(1, "tables/1-1", "tables/1-1.mem");
    assert!(matches!(commit(&mut state, attempt(2, "tables/1-2", "tables/1-2.mem")), Reply::Row(_)));
    let before = state.clone();
    assert_eq!(refused(commit(&mut state, late)), Reason::FailedPrecondition);
    assert_eq!(state, before);
}

#[test]
fn deleting_a_table_waits_for_its_owners_or_their_deaths() {
    let (mut state, server, keys) = served();
    let other = register(&mut state, 2);
    commit(&mut state, flush(server, keys[0], 1, "tables/1-1"));
    let delete = Command::DeleteTable { request: 3, name: "t".into() };
    let Reply::Table(table) = state.apply(delete.clone()) else { panic!("refused") };
    assert_eq!(state.apply(delete.clone()), Reply::Table(table));
    assert_eq!(refused(state.apply(create_command("t", 1))), Reason::FailedPrecondition);
    assert!(
        keys.iter().all(|key| state.row(key.tablet).unwrap().state == TabletState::Closing(server, CloseKind::Discard))
    );
    assert_eq!(open_all(&mut state, server, &keys), [], "a closing tablet is not owned any more");
    assert_eq!(state.apply(Command::Release { server, key: keys[0] }), Reply::Done);
    assert_eq!(state.deletions.entries().len(), 1);
    assert!(state.tables.get(table).is_some());
    kill(&mut state, server);
    assert_eq!(state.tables.get(table), None);
    assert_eq!(state.apply(delete), Reply::Done, "a repeat after the end");
    assert_eq!(refused(state.apply(Command::DeleteTable { request: 4, name: "t".into() })), Reason::NotFound);
    assert_ne!(create(&mut state, "t", 1), table);
    assert_eq!(assign_all(&mut state, other).len(), 1);
    state.check().unwrap();
}

#[test]
fn a_repeated_deletion_spares_a_new_table_of_the_same_name() {
    let (mut state, server, _) = served();
    let delete = Command::DeleteTable { request: 3, name: "t".into() };
    state.apply(delete.clone());
    kill(&mut state, server);
    let Reply::Table(again) = state.apply(create_command("t", 9)) else { panic!("refused") };
    // The reply to the first try was lost; its client asks once more.
    assert_eq!(state.apply(delete), Reply::Done);
    assert_eq!(state.tables.get(again).unwrap().state, TableState::Creating);
}

#[test]
fn creating_a_table_again_finds_it_only_by_its_request() {
    let mut state = State::new();
    let table = create(&mut state, "t", 3);
    assert_eq!(create(&mut state, "t", 3), table);
    let other = Command::CreateTable { request: 8, schema: schema("t"), splits: vec![], micros: 0 };
    assert_eq!(refused(state.apply(other)), Reason::AlreadyExists);
    for splits in [vec!["a", "a"], vec![""]] {
        let splits = splits.into_iter().map(Bytes::from_static_str).collect();
        let bad = Command::CreateTable { request: 9, schema: schema("u"), splits, micros: 0 };
        assert_eq!(refused(state.apply(bad)), Reason::InvalidArgument);
    }
}

trait FromStaticStr {
    fn from_static_str(text: &'static str) -> Bytes;
}

impl FromStaticStr for Bytes {
    fn from_static_str(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }
}

#[test]
fn a_locality_group_without_newer_options_is_stored_as_ever() {
    for in_memory in [false, true] {
        let group = LocalityGroup {
            number: 3,
            block_bytes: 300,
            compression: Compression::Zstd,
            in_memory,
            ..LocalityGroup::default()
        };
        let stored = postcard::to_stdvec(&group).unwrap();
        assert_eq!(stored, postcard::to_stdvec(&(3u32, 300u32, Compression::Zstd, in_memory)).unwrap());
        for filter in [FilterOn::Row, FilterOn::RowColumn] {
            let group = LocalityGroup { filter, ..group };
            let stored = postcard::to_stdvec(&group).unwrap();
            assert_eq!(postcard::from_bytes::<LocalityGroup>(&stored).unwrap(), group);
        }
    }
    let unknown = postcard::to_stdvec(&(3u32, 300u32, Compression::Zstd, 4u8)).unwrap();
    assert!(postcard::from_bytes::<LocalityGroup>(&unknown).is_err());
}
