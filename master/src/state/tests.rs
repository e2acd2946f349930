//! Random commands against the state machine: every invariant after every one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use uruk_consensus::StateMachine;
use uruk_proto::schema::{Family, GcRule, TableSchema};
use uruk_proto::{Epoch, FamilyId, RowRange, SeqNo, ServerId, TableId, TabletId};

use super::State;
use super::procedures::{Found, Procedure, ProcedureId, Work};
use super::row::{CloseKind, FileRef, MetaRow, TabletState};
use super::tables::TableState;
use crate::command::{
    Assignment, Command, CommitFiles, FamilyChange, FileShare, Reason, Registration, Reply, TabletKey, TabletSplit,
    TabletsMerged,
};

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
    assert_eq!(row.needed_logs, BTreeSet::from([dead, other]));
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
    assert_eq!(state.row(keys[0].tablet).unwrap().needed_logs, BTreeSet::from([first, second, third]));
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
    for (bad, reason) in [
        (CommitFiles { schema_version: 0, ..next.clone() }, Reason::FailedPrecondition),
        (CommitFiles { key: key_of(0), ..next.clone() }, Reason::StaleOwner),
        (CommitFiles { key: key_of(2), ..next.clone() }, Reason::StaleOwner),
        (CommitFiles { server: ServerId(9), ..next.clone() }, Reason::Fenced),
        (CommitFiles { remove: vec!["tables/1-7".into()], ..next.clone() }, Reason::FailedPrecondition),
        (CommitFiles { add: vec![(0, vec![file("tables/1-1")])], ..next.clone() }, Reason::InvalidArgument),
        (CommitFiles { add: vec![(0, vec![file("tables/9-1")])], ..next.clone() }, Reason::InvalidArgument),
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

/// What a random command is made of: a kind, and numbers that choose among what there is.
type Dice = (u8, u16, u16, u16);

fn pick<T: Clone>(from: &[T], number: u16) -> Option<T> {
    (!from.is_empty()).then(|| from[usize::from(number) % from.len()].clone())
}

/// A command that is often right, sometimes stale, sometimes nonsense.
fn command((kind, a, b, c): Dice, state: &State, step: u64) -> Option<Command> {
    let micros = step as i64;
    let rows: Vec<&MetaRow> = state.meta.rows().collect();
    let row = pick(&rows, a);
    let any_server = ServerId(1 + u64::from(b % 6));
    // Mostly the owner under the present epoch; else somebody, somewhen.
    let (server, key) = match row {
        Some(row) if c % 4 > 0 => (row.owner().unwrap_or(any_server), row.key()),
        Some(row) => (any_server, TabletKey { epoch: Epoch(u64::from(c % 5)), ..row.key() }),
        None => (any_server, TabletKey { tablet: TabletId(1), epoch: Epoch(1) }),
    };
    let unfinished: Vec<ServerId> = state.unfinished_recoveries().iter().copied().collect();
    let live: Vec<ServerId> = state.servers.live().iter().copied().collect();
    let log = pick(&unfinished, a).unwrap_or(any_server);
    if kind % 32 >= 20 {
        return procedure_command((kind, a, b, c), state, step, (server, key));
    }
    Some(match kind % 32 {
        0 => Command::Register { registration: registration(u64::from(a % 12)), micros },
        1 => Command::ReportDeath { nonce: u64::from(a % 12), how: "killed".into(), micros },
        2 => Command::DeclareDead { server: pick(&live, a)?, how: "lapsed".into(), last_heard_micros: None, micros },
        3 | 4 => {
            let pieces = u64::from(log.0 as u16 % 3); // the same at every seal of one log
            let segments = (0..pieces).map(|n| n * 10..n * 10 + 10).collect();
            Command::RecordSeal { server: log, segments, end: pieces * 10, micros }
        }
        5 | 6 => Command::RecordSort {
            log,
            segment: u32::from(b % 3),
            sorter: pick(&live, c).filter(|_| c % 5 > 0).unwrap_or(any_server),
            path: if c % 7 == 0 { "".into() } else { format!("recovery/{}/{step}", any_server.0).into() },
            records: 1,
            bytes: 1,
            micros,
        },
        7 => Command::FinishRecovery { server: log, micros },
        8 | 9 => {
            let chosen = rows.iter().skip(usize::from(a) % 3).step_by(1 + usize::from(b % 3));
            let server = pick(&live, b).unwrap_or(any_server);
            let stale = u64::from(c % 6 == 0);
            let key = |row: &&MetaRow| TabletKey { epoch: Epoch(row.epoch.0 + stale), ..row.key() };
            Command::Assign { assignments: chosen.map(|row| Assignment { key: key(row), server }).collect(), micros }
        }
        10..=12 => {
            let mine = rows.iter().filter(|row| row.owner() == Some(server)).map(|row| row.key());
            Command::Opened { server, tablets: mine.chain([key]).collect(), micros }
        }
        13 => {
            let names =
                state.recoveries.all().flat_map(|recovery| recovery.seal.iter().flat_map(|seal| &seal.segments));
            let names: Vec<Arc<str>> = names.filter_map(|piece| Some(piece.sorted.as_ref()?.path.clone())).collect();
            let lost_recovery_files = pick(&names, b).into_iter().collect();
            Command::Fail { server, key, reason: "damaged".into(), lost_recovery_files, micros }
        }
        14..=16 => {
            let row = row?;
            let old: Vec<Arc<str>> = row.files().map(|file| file.path.clone()).collect();
            let number = step - u64::from(b % 3); // now and then a number that was used before
            Command::CommitFiles(Box::new(CommitFiles {
                schema_version: state.tables.get(row.table)?.schema.version - u64::from(c % 9 == 0),
                remove: pick(&old, b).filter(|_| c % 2 == 0).into_iter().collect(),
                memory_file: (b % 4 == 0).then(|| format!("tables/{}-{step}.mem", server.0).into()),
                logs_done: row.needed_logs.iter().copied().filter(|log| *log != server && c % 3 == 0).collect(),
                ..flush(server, key, number, &format!("tables/{}-{number}", server.0))
            }))
        }
        17 if c % 2 == 0 => Command::Close { tablets: vec![key] },
        17 => Command::Release { server, key },
        18 if c % 3 > 0 => {
            let name = ["t", "u", "v"][usize::from(a % 3)];
            let splits = (0..b % 5).map(|n| Bytes::from(format!("{n}"))).collect();
            Command::CreateTable { request: u64::from(c), schema: schema(name), splits, micros }
        }
        18 => Command::DeleteTable { request: u64::from(c % 8), name: ["t", "u", "v"][usize::from(a % 3)].into() },
        _ if c % 2 == 0 => {
            let (meta, _) = pick(&state.meta.sizes().collect::<Vec<_>>(), a)?;
            Command::SplitMeta { meta, rows_max: 2 }
        }
        _ => Command::ForgetFiles { entries: state.deletions.entries().keys().copied().take(2).collect() },
    })
}

/// The same, of splits, merges, moves, drains and alterations.
fn procedure_command(
    (kind, a, b, c): Dice,
    state: &State,
    step: u64,
    (server, key): (ServerId, TabletKey),
) -> Option<Command> {
    let micros = step as i64;
    let (reason, request) = ("test".to_owned(), u64::from(c % 50));
    let live: Vec<ServerId> = state.servers.live().iter().copied().collect();
    let running: Vec<&Procedure> = state.procedures.running().values().collect();
    let ended: Vec<&Procedure> = state.procedures.ended().map(|ended| &ended.procedure).collect();
    // Mostly one that runs; sometimes one that is over.
    let procedure = pick(&running, a).filter(|_| b % 8 > 0).or_else(|| pick(&ended, a));
    Some(match kind % 32 {
        20 => {
            let at = (b % 2 == 0).then(|| split_key(state, key.tablet, c)).flatten();
            Command::StartSplit { tablet: key, at, by_load: c % 2 == 0, reason, request, micros }
        }
        21..=23 => {
            let procedure = procedure?;
            let Work::Split { tablet, at, .. } = &procedure.work else { return None };
            let row = state.row(tablet.tablet)?;
            let mut split = TabletSplit {
                at: at.clone().or_else(|| split_key(state, tablet.tablet, c))?,
                ..split_of(row, procedure.id, micros)
            };
            clip_shares(row, &mut split, b);
            match c % 12 {
                0 => split.files.truncate(row.files().count() / 2),
                1 => split.flushed_seq = SeqNo(split.flushed_seq.0 + 1),
                2 => split.server = server,
                3 => split.key = key,
                _ => {}
            }
            Command::TabletSplit(Box::new(split))
        }
        24 => {
            let row = state.row(key.tablet)?;
            let right = match c % 10 {
                0 => pick(&state.meta.rows().collect::<Vec<_>>(), b)?,
                _ => state.meta.rows_of(row.table).find(|next| next.range.start == row.range.end)?,
            };
            Command::StartMerge { left: key, right: right.key(), reason, request, micros }
        }
        25 | 26 => {
            let procedure = procedure?;
            let Work::Merge { left, right } = procedure.work else { return None };
            let mut merged = merge_of(state, procedure.id, (left, right), step)?;
            match c % 12 {
                0 => merged.memory_file = None,
                1 => merged.server = server,
                2 => merged.left_flushed_seq = SeqNo(1),
                _ => {}
            }
            Command::TabletsMerged(Box::new(merged))
        }
        27 => Command::StartMove { tablet: key, target: pick(&live, b)?, reason, request, micros },
        28 if c % 3 > 0 => {
            let procedure = procedure?.id;
            Command::DeclineProcedure { server, procedure, reason, micros }
        }
        28 => Command::EndProcedure { procedure: procedure?.id, reason, micros },
        29 => Command::SetDraining { server: pick(&live, b)?, draining: c % 2 == 0 },
        30 => {
            let family = |name: &str| Family {
                name: name.into(),
                id: FamilyId(0),
                gc: GcRule::MaxVersions(u32::from(c) + 1),
                locality_group: u32::from(b % 9 == 0),
            };
            let change = match c % 3 {
                0 => FamilyChange::Create(family("g")),
                1 => FamilyChange::Update(family("f")),
                _ => FamilyChange::Drop("g".into()),
            };
            let name = ["t", "u", "v"][usize::from(a % 3)].into();
            Command::StartAlter { request, name, changes: vec![change], groups: vec![] }
        }
        _ => {
            let table = state.tables.all().nth(usize::from(a % 3))?;
            let version = table.schema.version - u64::from(c % 5 == 0);
            Command::ConfirmSchema { server, table: table.schema.id, version }
        }
    })
}

/// A key inside of the tablet, or nearly.
fn split_key(state: &State, tablet: TabletId, number: u16) -> Option<Bytes> {
    let range = &state.row(tablet)?.range;
    let mut key = range.start.to_vec();
    key.extend_from_slice(format!("{}", number % 10).as_bytes());
    Some(if number.is_multiple_of(13) { range.end.clone() } else { key.into() })
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

/// Nothing where a reference has nothing; and sometimes nothing where it might have something.
fn clip_shares(row: &MetaRow, split: &mut TabletSplit, dice: u16) {
    for (file, share) in row.files().zip(&mut split.files) {
        let (start, end) = (&file.range.start, &file.range.end);
        if *start >= split.at || dice.is_multiple_of(5) {
            (share.left_bytes, share.left_cells) = (0, 0);
        }
        if !end.is_empty() && *end <= split.at || dice % 5 == 1 {
            (share.right_bytes, share.right_cells) = (0, 0);
        }
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

/// What must hold between the states before and after one command.
fn check_step(before: &State, command: &Command, reply: &Reply, after: &State) -> Result<(), String> {
    after.check()?;
    if matches!(reply, Reply::Refused(_)) && before != after {
        return Err("a refused command changed something".into());
    }
    for new in after.meta.rows() {
        let Some(old) = before.row(new.tablet) else { continue };
        check_row(before, command, old, new)
            .map_err(|broken| format!("{}: {broken}: {old:?} -> {new:?}", new.tablet))?;
    }
    check_references(before, command, after)?;
    check_reshaped(before, command, reply, after)?;
    for path in after.deletions.entries().values() {
        if !before.is_named(path) && before.deletions.entries().values().all(|queued| queued != path) {
            let is_sorted = matches!(command, Command::RecordSort { path: sorted, .. } if sorted == path);
            let is_new = matches!(command, Command::CommitFiles(_) | Command::TabletsMerged(_));
            if !is_sorted && !is_new {
                return Err(format!("{path} was let go, but not named before"));
            }
        }
    }
    Ok(())
}

/// No part of a file that was named before is named anew: what was clipped away stays away.
fn check_references(before: &State, command: &Command, after: &State) -> Result<(), String> {
    if matches!(command, Command::CommitFiles(_)) {
        return Ok(());
    }
    for (row, file) in after.meta.rows().flat_map(|row| row.files().map(move |file| (row, file))) {
        let covers = |old: &&FileRef| old.path == file.path && old.range.covers(&file.range);
        if !before.meta.rows().flat_map(MetaRow::files).any(|old| covers(&old)) {
            return Err(format!("{}: the reference {file:?} is wider than any before", row.tablet));
        }
    }
    Ok(())
}

/// Nothing is split or merged that is not in files, and the results are the owner's to open.
fn check_reshaped(before: &State, command: &Command, reply: &Reply, after: &State) -> Result<(), String> {
    let (made, old): (Vec<&MetaRow>, Vec<TabletId>) = match (command, reply) {
        (Command::TabletSplit(split), Reply::Split(rows)) => (rows.iter().collect(), vec![split.key.tablet]),
        (Command::TabletsMerged(merged), Reply::Row(row)) => (vec![row], vec![merged.left.tablet, merged.right.tablet]),
        _ => return Ok(()),
    };
    let old: Vec<&MetaRow> = old.iter().filter_map(|tablet| before.row(*tablet)).collect();
    if old.is_empty() {
        return if before == after { Ok(()) } else { Err("a repeat changed something".into()) };
    }
    for row in &old {
        let TabletState::Open(server) = row.state else { return Err(format!("{} was not open", row.tablet)) };
        if row.needed_logs != BTreeSet::from([server]) {
            return Err(format!("{} needed other logs than its owner's", row.tablet));
        }
        if made.iter().any(|new| new.state != TabletState::Opening(server) || new.epoch <= row.epoch) {
            return Err(format!("what became of {} is not opened by its owner under a higher epoch", row.tablet));
        }
        if made.iter().any(|new| new.flushed_seq < row.flushed_seq || new.needed_logs != row.needed_logs) {
            return Err(format!("what became of {} has other logs or less flushed", row.tablet));
        }
    }
    Ok(())
}

fn check_row(before: &State, command: &Command, old: &MetaRow, new: &MetaRow) -> Result<(), String> {
    let is_assignment = new.epoch != old.epoch;
    if is_assignment {
        let Command::Assign { .. } = command else { return Err("the epoch changed".into()) };
        let TabletState::Opening(server) = new.state else { return Err("assigned, but not opening".into()) };
        if new.epoch.0 != old.epoch.0 + 1 || old.owner().is_some() {
            return Err("an epoch was skipped, or an owner".into());
        }
        if !new.needed_logs.contains(&server) || !new.needed_logs.is_superset(&old.needed_logs) {
            return Err("the needed logs are not those before and the owner's".into());
        }
        for log in &old.needed_logs {
            let recovery = before.recoveries.get(*log).ok_or("needs a log without recovery")?;
            if !recovery.is_sorted() {
                return Err(format!("assigned before the log of {log} was sealed and sorted"));
            }
        }
    }
    if new.is_open() && !old.is_open() {
        let Command::Opened { server, tablets, .. } = command else { return Err("open without a report".into()) };
        if old.state != TabletState::Opening(*server) || !tablets.contains(&old.key()) {
            return Err("opened by another report than the row's (server, epoch)".into());
        }
    }
    if new.flushed_seq < old.flushed_seq {
        return Err("the flushed sequence number fell".into());
    }
    for gone in old.needed_logs.difference(&new.needed_logs) {
        let may = match command {
            Command::CommitFiles(commit) => commit.logs_done.contains(gone) && *gone != commit.server,
            Command::Release { server, .. } => server == gone,
            Command::Fail { server, .. } => server == gone && old.state == TabletState::Opening(*server),
            _ => false,
        };
        if !may {
            return Err(format!("the log of {gone} is not needed any more"));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn invariants_hold_whatever_is_commanded(dice in prop::collection::vec(any::<Dice>(), 1..260)) {
        let mut state = State::new();
        let mut answered: BTreeMap<(ServerId, TabletKey, u64), Reply> = BTreeMap::new();
        let (mut servers, mut tablets) = (BTreeSet::new(), BTreeSet::new());
        for (step, dice) in dice.into_iter().enumerate() {
            let Some(command) = command(dice, &state, step as u64 + 10) else { continue };
            let before = state.clone();
            let reply = state.apply(command.clone());
            if let Err(broken) = check_step(&before, &command, &reply, &state) {
                return Err(TestCaseError::fail(format!("{command:?} -> {reply:?}: {broken}")));
            }
            // Identities are never used again.
            for server in state.servers.live().difference(before.servers.live()) {
                prop_assert!(servers.insert(*server));
            }
            for row in state.meta.rows().filter(|row| before.row(row.tablet).is_none()) {
                prop_assert!(tablets.insert(row.tablet));
            }
            // A repeat at once is answered alike and changes nothing more.
            if let Command::CommitFiles(commit) = &command {
                let repeat = state.clone().apply(command.clone());
                prop_assert_eq!(&repeat, &reply);
                answered.insert((commit.server, commit.key, commit.number), reply);
            }
            prop_assert_eq!(&State::restore(&state.snapshot()).unwrap(), &state);
        }
    }
}

mod procedures;
