//! The planner by scripts: what happens, and what it then plans.
//!
//! Lines that begin with `>` are what the planner answers to `plan`, and what is decided at `decide`. Other lines:
//!
//! | line | what happens |
//! |---|---|
//! | `server` | another tablet server registers |
//! | `table <name> <tablets>` | a table is made |
//! | `delete <name>` | a table is to go |
//! | `do` | everything planned is begun; assignments, deaths, drains and meta splits succeed at once |
//! | `end <action>`, `fail <action>` | the action, as `plan` prints it, ends |
//! | `opened <server>` | the server reports all that it is to open |
//! | `refuse <server>` | the server cannot open any of it |
//! | `flushed <server> <logs done>` | the server flushes all that it serves |
//! | `released <server>` | the server gives up what it is to close |
//! | `split <tablet>`, `merge <left> <right>`, `move <tablet> <server>` | the procedure starts |
//! | `has-split <tablet> <key>`, `has-merged <left> <right>` | its server has done it |
//! | `drained <server>`, `undrained <server>` | the server is to be left, by command; or not any more |
//! | `alter <table>`, `confirmed <server> <table>` | the schema changes; the server goes by it |
//! | `decline <tablet>` | its server does not do what it was ordered to |
//! | `size <tablet> <MiB>`, `heat <tablet> <requests/s> [permille of the hottest row]` | how large, how busy it is |
//! | `reports` | every server reports twice |
//! | `tune <setting> <number>` | a setting changes |
//! | `died <server>` | its watching parent says so |
//! | `sealed <server> <ends of pieces>`, `sorted <log> <piece> <server>` | recorded |
//! | `elected`, `renew <server>`, `drain <server>`, `report <server> [pinned file]` | what the leader hears |
//! | `late <server> <number> [pinned file]` | a report that was under way for long |
//! | `told <server> <number>` | the server names its last report number in a commit |
//! | `trimmable <server> <lsn>` | the server reports that its log is flushed up to there |
//! | `unname <path> ...` | files are put into the deletion queue, as if commands had un-named them |
//! | `delete-at-most <files>` | the most files in one deletion |
//! | `wait <ms>` | time passes |
//! | `pass <ms>` | time passes, and all live servers renew their leases |

use std::time::Duration;

use bytes::Bytes;
use uruk_base::Moment;
use uruk_consensus::{StateMachine, Term};
use uruk_proto::{SeqNo, ServerId, master};

use super::*;
use crate::balance::heat::Heat;
use crate::balance::{View, decide};
use crate::command::{Command, CommitFiles, FamilyChange, Reply, TabletSplit};
use crate::lease::Leases;
use crate::state::row::FileRef;
use crate::state::tests::{create_command, merge_of, open_all, register, split_of, unname};

struct World {
    state: State,
    volatile: Volatile,
    tuning: Tuning,
    ms: u64,
    serial: u64,
    reports: BTreeMap<ServerId, u64>,
}

fn show_move(planned: &PlannedMove) -> String {
    format!("{}@{} {}->{}", planned.key.tablet.0, planned.key.epoch.0, planned.from.0, planned.to.0)
}

fn show(action: &Action) -> String {
    let tablets = |keys: &[TabletKey]| {
        let each: Vec<String> = keys.iter().map(|key| format!("{}@{}", key.tablet.0, key.epoch.0)).collect();
        each.join(" ")
    };
    match action {
        Action::DeclareDead(server) => format!("declare-dead {}", server.0),
        Action::Seal(server) => format!("seal {}", server.0),
        Action::Sort { log, segment, sorter } => format!("sort {}/{segment} on {}", log.0, sorter.0),
        Action::Finish(server) => format!("finish {}", server.0),
        Action::Assign(assignments) => {
            let one = |one: &Assignment| format!("{}@{}->{}", one.key.tablet.0, one.key.epoch.0, one.server.0);
            format!("assign {}", assignments.iter().map(one).collect::<Vec<_>>().join(" "))
        }
        Action::Open { server, tablets: keys } => format!("open on {}: {}", server.0, tablets(keys)),
        Action::Abandon { server, tablets: keys, reason } => {
            format!("abandon on {}: {} ({reason})", server.0, tablets(keys))
        }
        Action::Close { server, kind, tablets: keys } => format!("close({kind:?}) on {}: {}", server.0, tablets(keys)),
        Action::Drain { server, tablets: keys } => format!("drain {}: {}", server.0, tablets(keys)),
        Action::Reshape { server, procedure } => format!("reshape {} on {}", procedure.0, server.0),
        Action::GiveUp { procedure, reason } => format!("give up {} ({reason})", procedure.0),
        Action::SetSchema { server, table } => format!("set-schema {} on {}", table.0, server.0),
        Action::Decide => "decide".to_owned(),
        Action::StartMove(planned) => format!("start-move {}", show_move(planned)),
        Action::Check => "check".to_owned(),
        Action::SplitMeta(meta) => format!("split-meta {}", meta.0),
        Action::Trim { server, upto } => format!("trim {} to {upto}", server.0),
        Action::DeleteFiles(files) => {
            format!("delete {}", files.iter().map(|(_, path)| &**path).collect::<Vec<_>>().join(" "))
        }
        Action::Sweep => "sweep".to_owned(),
    }
}

impl World {
    fn new() -> World {
        // Decisions come when the script asks for them.
        let never = 1_000_000_000_000;
        let tuning = Tuning { balance_every_ms: never, check_every_ms: never, ..Tuning::default() };
        let volatile = Volatile::new(Leases::new(tuning.lease_at_grantor()));
        let mut world = World { state: State::new(), volatile, tuning, ms: 1_000, serial: 0, reports: BTreeMap::new() };
        world.elect();
        world
    }

    fn now(&self) -> Now {
        let moment = Moment::from_start(Duration::from_millis(self.ms));
        Now { moment, wall_micros: self.ms as i64 * 1_000 }
    }

    fn elect(&mut self) {
        self.serial += 1;
        let now = self.now().moment;
        self.volatile.forget(now);
        self.volatile.leases.elected(Term(self.serial), self.state.servers.live().iter().copied(), now);
        self.volatile.follow(&self.state, now);
    }

    fn renew(&mut self, server: ServerId) {
        let (term, now) = (self.volatile.leases.term().unwrap(), self.now());
        self.volatile.leases.admit(server, now.moment);
        self.volatile.leases.grant(server, now.moment, now.wall_micros, term);
    }

    /// The server's next report.
    fn report(&mut self, server: ServerId, report: master::ServerLoad) {
        let number = self.reports.entry(server).or_default();
        *number += 1;
        self.volatile.report(server, *number, report, Moment::from_start(Duration::from_millis(self.ms)));
    }

    fn apply(&mut self, command: Command) {
        let reply = self.state.apply(command.clone());
        assert!(!matches!(reply, Reply::Refused(_)), "{command:?}: {reply:?}");
        let now = self.now().moment;
        self.volatile.follow(&self.state, now);
    }

    fn plan(&self) -> Vec<Action> {
        plan(&self.state, &self.volatile, &self.tuning, self.now())
    }

    fn begin_all(&mut self) {
        let micros = self.now().wall_micros;
        for action in self.plan() {
            self.volatile.begin(&action, self.now().moment);
            let key = action.key();
            match action {
                Action::DeclareDead(server) => {
                    self.apply(Command::DeclareDead { server, how: "lapsed".into(), last_heard_micros: None, micros });
                }
                Action::Assign(assignments) => self.apply(Command::Assign { assignments, micros }),
                Action::Abandon { server, tablets, reason } => {
                    for key in tablets {
                        let reason = reason.clone();
                        self.apply(Command::Fail { server, key, reason, lost_recovery_files: vec![], micros });
                    }
                }
                Action::Drain { tablets, .. } => self.apply(Command::Close { tablets }),
                Action::StartMove(planned) => {
                    let (tablet, target, reason) = (planned.key, planned.to, planned.reason);
                    self.apply(Command::StartMove { tablet, target, reason, request: 0, micros });
                }
                Action::GiveUp { procedure, reason } => {
                    self.apply(Command::EndProcedure { procedure, reason, micros });
                }
                Action::SplitMeta(meta) => {
                    self.apply(Command::SplitMeta { meta, rows_max: self.tuning.meta_tablet_rows_max });
                }
                _ => continue,
            }
            self.volatile.end(key, Ok(()), |_| Moment::default());
        }
    }

    fn end(&mut self, what: &str, result: Result<(), Arc<str>>) {
        let flights = self.volatile.flights.keys().cloned().collect::<Vec<_>>();
        let name = |key: &ActionKey| match key {
            ActionKey::Sort(log, segment, sorter) => format!("sort {}/{segment} on {}", log.0, sorter.0),
            ActionKey::Seal(server) => format!("seal {}", server.0),
            ActionKey::Open(server) => format!("open on {}", server.0),
            ActionKey::Reshape(procedure) => format!("reshape {}", procedure.0),
            ActionKey::SetSchema(server, table) => format!("set-schema {} on {}", table.0, server.0),
            ActionKey::Close(server, kind) => format!("close({kind:?}) on {}", server.0),
            other => format!("{other:?}"),
        };
        let key =
            flights.into_iter().find(|key| name(key) == what).unwrap_or_else(|| panic!("{what} is not under way"));
        let now = self.now().moment;
        let (taken, owned) = match &key {
            ActionKey::Open(server) => (Some(true), self.state.index.opening().get(server)),
            ActionKey::Close(server, _) => (Some(false), self.state.index.closing().get(server)),
            _ => (None, None),
        };
        if let (Some(is_open), Some(tablets), true) = (taken, owned, result.is_ok()) {
            for tablet in tablets {
                let epoch = self.state.row(*tablet).unwrap().epoch;
                let orders = if is_open { &mut self.volatile.opens_taken } else { &mut self.volatile.closes_taken };
                orders.insert(*tablet, (epoch, now));
            }
        }
        if let (ActionKey::Reshape(procedure), true) = (&key, result.is_ok()) {
            self.volatile.reshapes_taken.insert(*procedure, now);
        }
        self.volatile.end(key, result, |failures| now + Duration::from_millis(100) * failures);
    }

    fn run(&mut self, line: &str) {
        let micros = self.now().wall_micros;
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap_or_else(|_| panic!("{line}"));
        let server = |at: usize| ServerId(number(at));
        match words[0] {
            "server" => {
                self.serial += 1;
                register(&mut self.state, self.serial);
            }
            "table" => self.apply(create_command(words[1], number(2) as usize)),
            "delete" => self.apply(Command::DeleteTable { request: 1, name: words[1].into() }),
            "do" => self.begin_all(),
            "end" => self.end(&words[1..].join(" "), Ok(())),
            "fail" => self.end(&words[1..].join(" "), Err("problem".into())),
            "opened" => {
                let keys = self.keys(|row| row.state == TabletState::Opening(server(1)));
                open_all(&mut self.state, server(1), &keys);
            }
            "refuse" => {
                for key in self.keys(|row| row.state == TabletState::Opening(server(1))) {
                    let reason = "damaged".to_owned();
                    self.apply(Command::Fail { server: server(1), key, reason, lost_recovery_files: vec![], micros });
                }
            }
            "flushed" => {
                let logs_done: Vec<ServerId> = (2..words.len()).map(server).collect();
                for key in self.keys(|row| row.state == TabletState::Open(server(1))) {
                    self.flush(server(1), key, &logs_done);
                }
            }
            "released" => {
                for key in self.keys(|row| matches!(row.state, TabletState::Closing(owner, _) if owner == server(1))) {
                    self.apply(Command::Release { server: server(1), key });
                }
            }
            "split" => {
                let tablet = self.key(number(1));
                let (reason, by_load) = ("test".to_owned(), false);
                self.apply(Command::StartSplit { tablet, at: None, by_load, reason, request: 0, micros });
            }
            "merge" => {
                let (left, right) = (self.key(number(1)), self.key(number(2)));
                self.apply(Command::StartMerge { left, right, reason: "test".into(), request: 0, micros });
            }
            "move" => {
                let (tablet, target) = (self.key(number(1)), server(2));
                self.apply(Command::StartMove { tablet, target, reason: "test".into(), request: 0, micros });
            }
            "has-split" => {
                let row = self.state.row(TabletId(number(1))).unwrap();
                let split = split_of(row, row.procedure.unwrap(), micros);
                let at = Bytes::copy_from_slice(words[2].as_bytes());
                self.apply(Command::TabletSplit(Box::new(TabletSplit { at, ..split })));
            }
            "has-merged" => {
                let (left, right) = (self.key(number(1)), self.key(number(2)));
                let id = self.state.row(left.tablet).unwrap().procedure.unwrap();
                let merged = merge_of(&self.state, id, (left, right), 900).unwrap();
                self.apply(Command::TabletsMerged(Box::new(merged)));
            }
            "drained" => self.apply(Command::SetDraining { server: server(1), draining: true }),
            "undrained" => self.apply(Command::SetDraining { server: server(1), draining: false }),
            "alter" => {
                let changes = vec![FamilyChange::Drop("f".into())];
                self.apply(Command::StartAlter { request: 0, name: words[1].into(), changes, groups: vec![] });
            }
            "confirmed" => {
                self.apply(Command::ConfirmSchema { server: server(1), table: TableId(number(2)), version: 2 });
            }
            "decline" => {
                let row = self.state.row(TabletId(number(1))).unwrap();
                let (server, procedure) = (row.owner().unwrap(), row.procedure.unwrap());
                self.apply(Command::DeclineProcedure { server, procedure, reason: "one row".into(), micros });
            }
            "size" => {
                let key = self.key(number(1));
                let owner = self.state.row(key.tablet).and_then(|row| row.owner()).unwrap();
                self.flush_bytes(owner, key, &[], number(2) << 20);
            }
            "heat" => {
                let permille = words.get(3).map_or(0, |_| number(3) as u32);
                let heat = Heat {
                    requests_per_s: number(2) as f64,
                    hottest_row: Bytes::from_static(b"row"),
                    hottest_row_permille: permille,
                    ..Heat::default()
                };
                self.volatile.unreported.insert(TabletId(number(1)), heat);
            }
            "reports" => {
                for _ in 0..2 {
                    self.ms += 10;
                    for server in self.state.servers.live().clone() {
                        self.report(server, master::ServerLoad::default());
                    }
                }
            }
            "tune" => match words[1] {
                "merge-age" => self.tuning.merge_age_ms = number(2),
                "moves" => self.tuning.moves_max = number(2) as usize,
                other => panic!("unknown setting {other}"),
            },
            "died" => {
                let nonce = self.state.servers.get(server(1)).unwrap().registration.nonce;
                self.apply(Command::ReportDeath { nonce, how: "killed".into(), micros });
            }
            "sealed" => {
                let ends: Vec<u64> = (2..words.len()).map(number).collect();
                let starts = std::iter::once(0).chain(ends.iter().copied());
                let segments = starts.zip(&ends).map(|(start, end)| start..*end).collect();
                let end = ends.last().copied().unwrap_or(0);
                self.apply(Command::RecordSeal { server: server(1), segments, end, micros });
            }
            "sorted" => {
                self.serial += 1;
                let (log, segment, sorter) = (server(1), number(2) as u32, server(3));
                let path = format!("recovery/{}/{}", sorter.0, self.serial).into();
                self.apply(Command::RecordSort { log, segment, sorter, path, records: 1, bytes: 1, micros });
            }
            "elected" => self.elect(),
            "renew" => self.renew(server(1)),
            "drain" => {
                self.volatile.draining.insert(server(1));
            }
            "report" => {
                let pinned_files = words[2..].iter().map(|path| (*path).to_owned()).collect();
                self.report(server(1), master::ServerLoad { pinned_files, ..Default::default() });
            }
            "late" => {
                let pinned_files = words[3..].iter().map(|path| (*path).to_owned()).collect();
                let report = master::ServerLoad { pinned_files, ..Default::default() };
                self.volatile.report(server(1), number(2), report, self.now().moment);
            }
            "told" => {
                self.reports.insert(server(1), number(2));
                let nothing = Box::new(Command::ForgetFiles { entries: vec![] });
                self.apply(Command::Told { server: server(1), report_number: number(2), command: nothing });
            }
            "trimmable" => {
                self.report(server(1), master::ServerLoad { log_trim_lsn: number(2), ..Default::default() });
            }
            "unname" => {
                unname(&mut self.state, &words[1..]);
                self.volatile.follow(&self.state, self.now().moment);
            }
            "delete-at-most" => self.tuning.delete_files_max = number(1) as usize,
            "wait" => self.ms += number(1),
            "pass" => {
                let end = self.ms + number(1);
                while self.ms < end {
                    self.ms = end.min(self.ms + 1_000);
                    for server in self.state.servers.live().clone() {
                        self.renew(server);
                    }
                }
            }
            other => panic!("unknown line {other:?}"),
        }
        self.state.check().unwrap();
    }

    fn key(&self, tablet: u64) -> TabletKey {
        self.state.row(TabletId(tablet)).unwrap().key()
    }

    fn keys(&self, which: impl Fn(&crate::state::row::MetaRow) -> bool) -> Vec<TabletKey> {
        self.state.meta.rows().filter(|row| which(row)).map(|row| row.key()).collect()
    }

    /// What is decided, as lines; it is noted as the driver notes it.
    fn decide(&mut self) -> Vec<String> {
        let (survey, volatile) = (self.state.survey(), self.volatile.survey());
        let view = View { survey: &survey, volatile: &volatile, tuning: &self.tuning, now: self.now() };
        let decision = decide(view);
        let name = |key: &TabletKey| format!("{}@{}", key.tablet.0, key.epoch.0);
        let mut lines = Vec::new();
        for split in &decision.splits {
            let by = if split.by_load { "load" } else { "size" };
            lines.push(format!("> split {} by {by} ({})", name(&split.key), split.reason));
        }
        for row in &decision.hot_rows {
            lines.push(format!("> hot row in {}: {} permille ({})", row.tablet.0, row.permille, row.why));
        }
        for merge in &decision.merges {
            lines.push(format!("> merge {} {} ({})", name(&merge.left), name(&merge.right), merge.reason));
        }
        lines.extend(decision.plan.moves.iter().map(|planned| format!("> move {}", show_move(planned))));
        lines.push(format!("> {}", decision.plan.verdict));
        self.volatile.decide(&self.state, decision, true);
        lines
    }

    /// Replaces all files of the tablet by one.
    fn flush(&mut self, server: ServerId, key: TabletKey, logs_done: &[ServerId]) {
        self.flush_bytes(server, key, logs_done, 1);
    }

    fn flush_bytes(&mut self, server: ServerId, key: TabletKey, logs_done: &[ServerId], bytes: u64) {
        self.serial += 1;
        let row = self.state.row(key.tablet).unwrap();
        let seq = SeqNo::new(key.epoch, self.serial).unwrap();
        let path: Arc<str> = format!("tables/{}-{}", server.0, self.serial).into();
        let range = row.range.clone();
        let file = FileRef { path, range, bytes, cells: 1, min_seq: seq, max_seq: seq, level: 0 };
        let commit = CommitFiles {
            server,
            key,
            schema_version: 1,
            number: self.serial,
            flushed_seq: seq,
            memory_file: None,
            remove: row.files().map(|file| file.path.clone()).collect(),
            add: vec![(0, vec![file])],
            logs_done: logs_done.to_vec(),
        };
        self.apply(Command::CommitFiles(Box::new(commit)));
    }
}

/// Runs a script; compares every plan with the lines that follow it.
fn run(script: &str) {
    let mut world = World::new();
    let mut lines = script.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).peekable();
    while let Some(line) = lines.next() {
        let planned: Vec<String> = match line {
            "plan" => world.plan().iter().map(|action| format!("> {}", show(action))).collect(),
            "decide" => world.decide(),
            other => {
                world.run(other);
                continue;
            }
        };
        let mut expected = Vec::new();
        while let Some(answer) = lines.next_if(|line| line.starts_with('>')) {
            expected.push(answer.to_owned());
        }
        assert_eq!(planned, expected, "after {:?} at {} ms", script.lines().next(), world.ms);
    }
}

#[test]
fn spreads_new_tablets_and_orders_them_once() {
    run(include_str!("testdata/assignment.txt"));
}

#[test]
fn recovers_a_dead_server_step_by_step() {
    run(include_str!("testdata/recovery.txt"));
}

#[test]
fn a_slow_or_failing_sorter_is_helped_out() {
    run(include_str!("testdata/sorting.txt"));
}

#[test]
fn leases_lapse_after_a_full_lease() {
    run(include_str!("testdata/leases.txt"));
}

#[test]
fn closes_what_is_deleted_or_drained() {
    run(include_str!("testdata/closing.txt"));
}

#[test]
fn files_go_when_nobody_reads_them() {
    run(include_str!("testdata/files.txt"));
}

#[test]
fn files_that_cannot_be_deleted_hold_up_no_others() {
    run(include_str!("testdata/deleting.txt"));
}

#[test]
fn a_tablet_that_is_not_opened_goes_elsewhere() {
    run(include_str!("testdata/opening.txt"));
}

#[test]
fn a_new_leader_believes_no_report_that_is_older_than_what_was_committed() {
    run(include_str!("testdata/late_reports_new_leader.txt"));
}

#[test]
fn a_late_report_frees_no_file() {
    run(include_str!("testdata/late_reports.txt"));
}

#[test]
fn orders_splits_and_merges_until_they_are_over() {
    run(include_str!("testdata/procedures.txt"));
}

#[test]
fn a_drain_leaves_alone_what_is_in_a_procedure() {
    run(include_str!("testdata/draining.txt"));
}

#[test]
fn every_owner_is_told_the_new_schema() {
    run(include_str!("testdata/schema.txt"));
}

#[test]
fn large_and_hot_tablets_are_split_and_hot_rows_are_told() {
    run(include_str!("testdata/splitting.txt"));
}

#[test]
fn small_cold_old_neighbours_are_merged() {
    run(include_str!("testdata/merging.txt"));
}

#[test]
fn a_new_server_gets_its_share() {
    run(include_str!("testdata/balancing.txt"));
}
