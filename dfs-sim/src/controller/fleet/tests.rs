//! A fleet on its own: time, reports and the state are given, orders come out.

use std::time::Duration;

use uruk_base::commit_log::LogId;
use uruk_consensus::StateMachine;

use super::*;
use crate::controller::command::{Command, CommitPut, LogDurability, Outcome, RollSegment, SegmentPlan, WrittenChunk};
use crate::controller::id::{PutId, SegmentId};
use crate::controller::state::LogRecord;

const TERM: u64 = 7;
const BYTES: u64 = 100;

/// A store of servers 1 to n, the fleet of its leader, and the time.
struct Store {
    state: ControllerState,
    fleet: Fleet,
    now: Moment,
    next_id: u64,
    servers: u64,
}

fn at(seconds: u64) -> Moment {
    Moment::from_start(Duration::from_secs(seconds))
}

impl Store {
    /// Nobody has reported yet.
    fn new(servers: u64) -> Store {
        let mut state = ControllerState::default();
        for folder_identity in 1..=servers {
            let address = format!("host{folder_identity}:1");
            let zone = String::new();
            let register = Command::RegisterServer { folder_identity, address, zone, incarnation: 1, founding_seed: 0 };
            state.apply(register).unwrap();
        }
        let Outcome::Ids(ids) = state.apply(Command::IssueIds { count: 1000 }).unwrap().outcome else { panic!() };
        let mut fleet = Fleet::new(ControllerConfig::new("folder", "host:1"));
        assert!(fleet.enter(TERM, at(0), &state));
        Store { state, fleet, now: at(0), next_id: ids.start, servers }
    }

    /// All servers have reported that they hold `held`, long ago.
    fn settled(servers: u64, held: &[(u64, PieceReport)]) -> Store {
        let mut store = Store::new(servers);
        store.report_all(held);
        store
    }

    fn report_all(&mut self, held: &[(u64, PieceReport)]) {
        for server in 1..=self.servers {
            let pieces = held.iter().filter(|(s, _)| *s == server).map(|(_, report)| *report).collect();
            self.report(server, Report { full: true, pieces, ..report() });
        }
    }

    fn report(&mut self, server: u64, report: Report) -> Orders {
        self.fleet.heartbeat(self.now, ChunkServerId(server), report)
    }

    /// A heartbeat without news.
    fn beat(&mut self, server: u64) -> Orders {
        self.report(server, report())
    }

    /// `seconds` pass, each with a heartbeat of every server but `silent` and a repair pass; gives
    /// all orders by server.
    fn pass(&mut self, seconds: u64, silent: &[u64]) -> BTreeMap<u64, Orders> {
        let mut all: BTreeMap<u64, Orders> = BTreeMap::new();
        for _ in 0..seconds {
            self.now = self.now + Duration::from_secs(1);
            self.repair();
            for server in (1..=self.servers).filter(|s| !silent.contains(s)) {
                let got = self.beat(server);
                let orders = all.entry(server).or_default();
                orders.delete.extend(got.delete);
                orders.finish.extend(got.finish);
                orders.copies.extend(got.copies);
            }
        }
        all.retain(|_, orders| *orders != Orders::default());
        all
    }

    fn repair(&mut self) {
        self.fleet.pulse(self.now);
        let mark = self.fleet.mark();
        self.fleet.plan(&self.state, self.now, mark);
    }

    /// A file of one chunk, committed with acknowledgements of servers 1 and 2; nobody reported it.
    fn file(&mut self, path: &str) -> PieceId {
        let put = self.next_id;
        self.next_id += 2;
        let chunk = WrittenChunk {
            id: ChunkId(put + 1),
            bytes: BYTES,
            crc: 1,
            servers: vec![ChunkServerId(1), ChunkServerId(2)],
        };
        let commit = CommitPut {
            put: PutId(put),
            path: path.into(),
            chunks: vec![chunk],
            must_be_new: true,
            modified_micros: 0,
            replicas: 3,
            allow_single_replica: false,
        };
        self.apply(Command::CommitPut(commit));
        PieceId::Chunk(ChunkId(put + 1))
    }

    fn apply(&mut self, command: Command) {
        let touched = self.state.apply(command).unwrap().touched;
        self.fleet.touch(touched);
    }

    /// A log whose first segment is sealed at [`BYTES`].
    fn sealed_segment(&mut self) -> PieceId {
        let log = LogId(1);
        let plan = || SegmentPlan {
            members: (1..=3).map(ChunkServerId).collect(),
            ack_quorum: 2,
            replicas: 3,
            allow_single_replica: false,
        };
        self.apply(Command::CreateLog { log, writer: 1, durability: LogDurability::Fsync, first: plan() });
        let id = match self.state.log(log) {
            Some(LogRecord::Kept(log)) => log.segments[&0].id,
            other => panic!("{other:?}"),
        };
        self.apply(Command::RollSegment(RollSegment { log, writer: 1, index: 0, length: BYTES, crc: 2, next: plan() }));
        PieceId::Segment(id)
    }
}

fn report() -> Report {
    Report { term_seen: TERM, free_bytes: 1 << 40, ..Report::default() }
}

fn good(piece: PieceId) -> PieceReport {
    PieceReport { piece, bytes: BYTES, sealed: true, damaged: false, behind: false, deleted: false }
}

fn damaged(piece: PieceId) -> PieceReport {
    PieceReport { damaged: true, ..good(piece) }
}

fn deleted(piece: PieceId) -> PieceReport {
    PieceReport { deleted: true, ..good(piece) }
}

fn unsealed(piece: PieceId, bytes: u64) -> PieceReport {
    PieceReport { bytes, sealed: false, ..good(piece) }
}

fn change(report_of: PieceReport) -> Report {
    Report { pieces: vec![report_of], ..report() }
}

#[test]
fn a_dead_servers_copies_are_made_again_after_the_grace() {
    let mut store = Store::new(4);
    let piece = store.file("f");
    store.report_all(&[(1, good(piece)), (2, good(piece)), (3, good(piece))]);
    assert_eq!(store.pass(12, &[]), BTreeMap::new(), "three copies are enough");
    assert_eq!(store.pass(9, &[2]), BTreeMap::new(), "it may come back");
    let orders = store.pass(2, &[2]);
    assert_eq!(orders.keys().copied().collect::<Vec<_>>(), [4]);
    let (id, wanted, sources) = &orders[&4].copies[0];
    assert_eq!((*id, wanted.bytes, wanted.crc), (piece, BYTES, 1));
    assert_eq!(sources.len(), 2, "not from the dead one: {sources:?}");
    assert!(!sources.contains(&"host2:1".to_owned()));
    assert_eq!(store.fleet.copy_health().copies_in_flight, 1);
    assert_eq!(store.pass(5, &[2]), BTreeMap::new(), "one copy at a time");

    store.report(4, change(good(piece)));
    store.pass(1, &[2]);
    let health = store.fleet.copy_health();
    assert_eq!((health.under_replicated, health.copies_in_flight, health.repaired), (0, 0, 1));
}

#[test]
fn a_server_that_comes_back_makes_one_copy_superfluous() {
    let mut store = Store::new(4);
    let piece = store.file("f");
    store.report_all(&[(1, good(piece)), (2, good(piece)), (3, good(piece)), (4, good(piece))]);
    assert_eq!(store.pass(9, &[]), BTreeMap::new(), "not before the grace");
    let orders = store.pass(3, &[]);
    let deletes: Vec<_> = orders.values().flat_map(|o| &o.delete).collect();
    assert_eq!(deletes, [&piece], "one, once");
}

#[test]
fn a_deletion_that_was_not_carried_out_is_decided_anew() {
    let mut store = Store::new(4);
    let piece = store.file("f");
    store.report_all(&[(1, good(piece)), (2, good(piece)), (3, good(piece)), (4, good(piece))]);
    let orders = store.pass(12, &[]);
    let victim = *orders.keys().next().expect("one deletion");
    // The order got lost, and now another copy is damaged: nothing is superfluous any more.
    let other = (1..=4).find(|s| *s != victim).expect("four servers");
    store.report(other, change(damaged(piece)));
    let orders = store.pass(8, &[]);
    assert!(!orders.contains_key(&victim), "{orders:?}");
    assert!(orders[&other].delete.contains(&piece), "the damaged one goes: three good ones are left");
}

#[test]
fn a_damaged_copy_is_replaced_in_place_by_a_good_one() {
    let mut store = Store::new(4);
    let piece = store.file("f");
    store.report_all(&[(1, good(piece)), (2, good(piece)), (3, good(piece))]);
    store.pass(12, &[]);
    store.report(3, change(damaged(piece)));
    let orders = store.pass(2, &[]);
    assert_eq!(orders.keys().copied().collect::<Vec<_>>(), [3]);
    let (id, _, sources) = &orders[&3].copies[0];
    assert_eq!((*id, sources.len(), sources.contains(&"host3:1".to_owned())), (piece, 2, false));
    assert_eq!(store.fleet.copy_health().damaged_found, 1);
    store.report(3, change(good(piece)));
    store.pass(1, &[]);
    assert_eq!(store.fleet.copy_health(), CopyHealth { damaged_found: 1, repaired: 1, ..CopyHealth::default() });
}

#[test]
fn a_copy_that_is_behind_is_replaced_and_counts_as_no_damage() {
    let mut store = Store::new(4);
    let piece = store.file("f");
    store.report_all(&[(1, good(piece)), (2, good(piece)), (3, good(piece))]);
    store.pass(12, &[]);
    store.report(3, change(PieceReport { behind: true, damaged: true, ..unsealed(piece, 1) }));
    assert_eq!(store.pass(2, &[]).keys().copied().collect::<Vec<_>>(), [3]);
    assert_eq!(store.fleet.copy_health().damaged_found, 0);
}

#[test]
fn where_replacing_in_place_fails_another_server_gets_the_copy() {
    let mut store = Store::new(4);
    let piece = store.file("f");
    store.report_all(&[(1, good(piece)), (2, good(piece)), (3, good(piece))]);
    store.pass(12, &[]);
    store.report(3, change(damaged(piece)));
    assert_eq!(store.pass(1, &[])[&3].copies.len(), 1);
    store.report(3, change(damaged(piece)));
    let orders = store.pass(2, &[]);
    assert_eq!(orders.keys().copied().collect::<Vec<_>>(), [4]);
    store.report(4, change(good(piece)));
    let orders = store.pass(12, &[]);
    assert_eq!(orders[&3].delete, [piece], "three good copies stay");
}

#[test]
fn a_segments_replicas_go_only_with_their_log() {
    let mut store = Store::settled(5, &[]);
    let piece = store.sealed_segment();
    for server in 1..=4 {
        store.report(server, change(good(piece)));
    }
    store.report(5, change(damaged(piece)));
    assert_eq!(store.pass(30, &[]), BTreeMap::new(), "four good ones and a damaged one");
    store.apply(Command::TrimLog { log: LogId(1), upto: BYTES });
    let orders = store.pass(1, &[]);
    assert_eq!(orders.values().filter(|o| o.delete == [piece]).count(), 5);
}

#[test]
fn the_last_copies_are_never_deleted_however_damaged() {
    let mut store = Store::new(3);
    let piece = store.file("f");
    store.report_all(&[(1, damaged(piece)), (2, damaged(piece)), (3, damaged(piece))]);
    assert_eq!(store.pass(40, &[]), BTreeMap::new());
    assert_eq!(store.fleet.copy_health().unavailable, 1);
}

#[test]
fn garbage_is_deleted_once_its_server_has_reported_it_to_this_leader() {
    let mut store = Store::new(3);
    let piece = store.file("f");
    store.apply(Command::DeleteFiles { paths: vec!["f".into()] });
    // Known only from a report that was made before the server saw this term.
    for server in 1..=3 {
        let old = Report { full: true, term_seen: TERM - 1, pieces: vec![good(piece)], ..report() };
        assert!(store.report(server, old).report_all);
    }
    assert_eq!(store.pass(3, &[]), BTreeMap::new());
    store.report_all(&[(1, good(piece)), (2, good(piece))]);
    let orders = store.pass(1, &[]);
    assert_eq!((orders[&1].delete.len(), orders[&2].delete.len()), (1, 1));
    assert!(!orders.contains_key(&3), "its full report no longer has it");
    store.report(1, change(deleted(piece)));
    store.report(2, change(deleted(piece)));
    assert_eq!(store.pass(10, &[]), BTreeMap::new());
}

#[test]
fn a_put_in_progress_is_spared_until_it_expires() {
    let mut store = Store::new(3);
    let block = store.next_id;
    let piece = PieceId::Chunk(ChunkId(block + 5));
    store.report_all(&[(1, good(piece))]);
    assert_eq!(store.pass(30, &[]), BTreeMap::new());
    let expired = store.state.apply(Command::ExpirePuts { block }).unwrap();
    let Outcome::Ids(ids) = expired.outcome else { panic!("{expired:?}") };
    store.fleet.touch_chunks(ids);
    assert_eq!(store.pass(1, &[])[&1].delete, [piece]);
}

#[test]
fn pieces_of_another_store_are_left_alone() {
    let piece = PieceId::Chunk(ChunkId(3));
    let mut store = Store::settled(3, &[(1, good(piece)), (2, damaged(piece))]);
    assert_eq!(store.pass(30, &[]), BTreeMap::new());
}

#[test]
fn nothing_is_repaired_before_every_server_reported_or_had_the_time() {
    let mut store = Store::new(4);
    let garbage = store.file("f");
    store.apply(Command::DeleteFiles { paths: vec!["f".into()] });
    for server in 1..=3 {
        store.report(server, Report { full: true, pieces: vec![good(garbage)], ..report() });
    }
    assert_eq!(store.pass(9, &[4]), BTreeMap::new(), "server 4 may still report");
    let orders = store.pass(1, &[4]);
    assert_eq!(orders.values().map(|o| o.delete.len()).sum::<usize>(), 3);
}

#[test]
fn a_report_that_came_after_the_confirmation_allows_no_deletion() {
    let mut store = Store::settled(3, &[]);
    let piece = store.file("f");
    store.apply(Command::DeleteFiles { paths: vec!["f".into()] });
    store.repair();
    let mark = store.fleet.mark();
    store.report(1, change(good(piece)));
    store.fleet.plan(&store.state, store.now, mark);
    assert_eq!(store.beat(1).delete, []);
    let mark = store.fleet.mark();
    store.fleet.plan(&store.state, store.now, mark);
    assert_eq!(store.beat(1).delete, [piece], "the next confirmation covers it");
}

#[test]
fn a_new_term_forgets_everything_and_an_old_one_is_refused() {
    let mut store = Store::new(3);
    let piece = store.file("f");
    store.report_all(&[(1, good(piece)), (2, good(piece)), (3, damaged(piece))]);
    store.repair();
    assert!(store.fleet.enter(TERM + 1, at(1), &store.state));
    assert!(!store.fleet.enter(TERM, at(1), &store.state));
    assert_eq!(store.fleet.addresses(&store.state, piece, at(1)), Vec::<String>::new());
    let answer = store.beat(3);
    assert!(answer.report_all);
    assert_eq!(answer.delete, [], "the order was another leader's");
}

#[test]
fn replicas_of_a_sealed_segment_are_told_to_finish() {
    let mut store = Store::settled(3, &[]);
    let piece = store.sealed_segment();
    store.report(1, change(good(piece)));
    store.report(2, change(unsealed(piece, BYTES + 20)));
    store.report(3, change(unsealed(piece, BYTES)));
    let orders = store.pass(1, &[]);
    assert_eq!(orders.keys().copied().collect::<Vec<_>>(), [2, 3]);
    assert_eq!((orders[&2].finish[0].0, orders[&2].finish[0].1.bytes), (piece, BYTES));
    store.report(2, change(good(piece)));
    store.report(3, change(good(piece)));
    assert_eq!(store.pass(20, &[]), BTreeMap::new());
}

#[test]
fn replicas_whose_orders_were_lost_for_long_are_still_told_to_finish() {
    let mut store = Store::settled(3, &[]);
    let piece = store.sealed_segment();
    for server in 1..=3 {
        store.report(server, change(unsealed(piece, BYTES + 20)));
    }
    // Every answer is lost on its way: the servers are heard of, and hear nothing.
    let lost = store.pass(60, &[]);
    assert!(lost.values().all(|orders| !orders.finish.is_empty()), "{lost:?}");
    let orders = store.pass(10, &[]);
    let told: Vec<u64> = orders.iter().filter(|(_, o)| o.finish.iter().any(|f| f.0 == piece)).map(|o| *o.0).collect();
    assert_eq!(told, [1, 2, 3], "{orders:?}");
}

#[test]
fn a_replica_that_cannot_finish_is_replaced() {
    let mut store = Store::settled(3, &[]);
    let piece = store.sealed_segment();
    store.report(1, change(good(piece)));
    store.report(2, change(good(piece)));
    store.report(3, change(unsealed(piece, BYTES - 1)));
    let orders = store.pass(10, &[]);
    assert!(orders[&3].delete.is_empty() && !orders[&3].finish.is_empty(), "it gets the time: {orders:?}");
    // The server gives it up, or says nothing at all.
    let orders = store.pass(8, &[]);
    assert_eq!((orders[&3].copies.len(), orders[&3].delete.len()), (1, 0), "{orders:?}");
}

#[test]
fn open_segments_are_never_touched() {
    let mut store = Store::settled(4, &[]);
    let sealed = store.sealed_segment();
    let open = PieceId::Segment(SegmentId(sealed.number() + 1));
    for server in 1..=4 {
        store.report(server, change(unsealed(open, server)));
    }
    store.report(1, change(PieceReport { damaged: true, ..unsealed(open, 1) }));
    let orders = store.pass(40, &[2]);
    let touched = orders.values().any(|o| {
        o.delete.contains(&open) || o.finish.iter().any(|f| f.0 == open) || o.copies.iter().any(|c| c.0 == open)
    });
    assert!(!touched, "{orders:?}");
}

#[test]
fn fewest_live_copies_come_first_and_copies_in_flight_are_bounded() {
    let mut store = Store::new(4);
    store.fleet.config.copies_in_flight_max = 3;
    store.fleet.config.copies_per_server_max = 2;
    let two_left: Vec<PieceId> = (0..5).map(|n| store.file(&format!("two{n}"))).collect();
    let one_left: Vec<PieceId> = (0..2).map(|n| store.file(&format!("one{n}"))).collect();
    let mut held = Vec::new();
    for piece in &two_left {
        held.extend([(1, good(*piece)), (2, good(*piece))]);
    }
    held.extend(one_left.iter().map(|piece| (1, good(*piece))));
    store.report_all(&held);
    let orders = store.pass(11, &[]);
    let mut ordered: Vec<PieceId> = orders.values().flat_map(|o| o.copies.iter().map(|c| c.0)).collect();
    ordered.sort_unstable();
    assert_eq!(ordered.len(), 3);
    assert!(one_left.iter().all(|piece| ordered.contains(piece)), "{ordered:?} lacks some of {one_left:?}");
    assert!(orders.values().all(|o| o.copies.len() <= 2));
    assert_eq!(store.fleet.copy_health().under_replicated, 7);
}

#[test]
fn a_copy_that_takes_too_long_is_ordered_again() {
    let mut store = Store::new(4);
    let piece = store.file("f");
    store.report_all(&[(1, good(piece)), (2, good(piece))]);
    let first = store.pass(12, &[]);
    assert_eq!(first.values().map(|o| o.copies.len()).sum::<usize>(), 1);
    let again = store.pass(61, &[]);
    assert_eq!(again.values().map(|o| o.copies.len()).sum::<usize>(), 1);
}

#[test]
fn a_store_with_a_dead_third_server_does_no_work_and_says_so() {
    let mut store = Store::new(3);
    let piece = store.file("f");
    store.report_all(&[(1, good(piece)), (2, good(piece)), (3, good(piece))]);
    assert_eq!(store.pass(30, &[3]), BTreeMap::new(), "nowhere to copy to");
    assert_eq!(store.fleet.copy_health().under_replicated, 1);
    assert!(!store.fleet.has_work(store.now));
    store.pass(2, &[]);
    assert_eq!(store.fleet.copy_health().under_replicated, 0, "it was only away");
}

#[test]
fn a_commits_claim_serves_readers_but_not_for_ever() {
    let mut store = Store::settled(3, &[]);
    let piece = store.file("f");
    let PieceId::Chunk(chunk) = piece else { panic!() };
    store.fleet.claim(store.now, chunk, &[ChunkServerId(1), ChunkServerId(2)]);
    let mut addresses = store.fleet.addresses(&store.state, piece, store.now);
    addresses.sort();
    assert_eq!(addresses, ["host1:1", "host2:1"]);
    store.report(1, change(good(piece)));
    store.pass(11, &[]);
    assert_eq!(store.fleet.addresses(&store.state, piece, store.now), ["host1:1"]);
    assert_eq!(store.fleet.copy_health().under_replicated, 1);
}

#[test]
fn servers_that_are_silent_full_or_refusing_get_nothing_new() {
    let mut store = Store::settled(5, &[]);
    store.now = at(3);
    store.report(1, Report { refusing_writes: "disk full".into(), ..report() });
    store.report(2, Report { free_bytes: 10, ..report() });
    store.report(3, report());
    store.report(4, Report { used_bytes: 5, ..report() });
    store.fleet.pulse(store.now); // server 5 was heard at 0
    let found = store.fleet.candidates(&store.state, 11, |id| id.0 == 4);
    let found: Vec<_> = found.iter().map(|c| (c.id.0, c.avoided)).collect();
    assert_eq!(found, [(3, false), (4, true)]);
    assert_eq!(store.fleet.refusal(), Some("disk full"));
}

#[test]
fn a_restarted_server_allows_no_deletion_until_it_reports() {
    let mut store = Store::new(4);
    let piece = store.file("f");
    store.report_all(&[(1, good(piece)), (2, good(piece)), (3, good(piece)), (4, good(piece))]);
    store.pass(5, &[]);
    store.fleet.registered(ChunkServerId(2), 2);
    assert_eq!(store.pass(20, &[]), BTreeMap::new(), "three confirmed copies are no surplus");
    assert!(store.beat(2).report_all);
    store.report(2, Report { full: true, ..report() });
    assert_eq!(store.pass(20, &[]), BTreeMap::new(), "it has lost its copy");
}

#[test]
fn a_sweep_comes_round_in_bounded_steps() {
    let mut store = Store::new(3);
    store.fleet.config.sweep_per_tick_max = 2;
    let pieces: Vec<PieceId> = (0..5).map(|n| store.file(&format!("f{n}"))).collect();
    let held: Vec<_> = pieces.iter().flat_map(|p| (1..=3).map(|s| (s, good(*p)))).collect();
    store.report_all(&held);
    store.pass(1, &[]);
    // A lost answer: the state changed, and nobody told the fleet.
    store.state.apply(Command::DeleteFiles { paths: vec!["f4".into()] }).unwrap();
    store.repair();
    assert_eq!(store.beat(1).delete, []);
    for _ in 0..3 {
        store.fleet.sweep();
        store.repair();
    }
    assert!(store.fleet.is_sweep_done());
    assert_eq!(store.beat(1).delete, [pieces[4]]);
}

#[test]
fn a_copy_that_fails_is_ordered_again_soon_and_then_less_and_less_often() {
    let mut store = Store::new(4);
    let piece = store.file("f");
    store.report_all(&[(1, good(piece)), (2, good(piece))]);
    let mut targets: Vec<u64> = store.pass(12, &[]).into_keys().collect();
    assert_eq!(targets.len(), 1);
    store.report(targets[0], change(deleted(piece)));
    targets.extend(store.pass(2, &[]).into_keys());
    assert_eq!(targets.len(), 2, "at once");
    assert_ne!(targets[0], targets[1], "elsewhere");
    for _ in 0..200 {
        store.report(*targets.last().expect("some"), change(deleted(piece)));
        targets.extend(store.pass(1, &[]).into_keys());
    }
    assert!((6..14).contains(&targets.len()), "with growing pauses: {}", targets.len());
    store.report(*targets.last().expect("some"), change(good(piece)));
    store.pass(1, &[]);
    assert_eq!(store.fleet.copy_health().under_replicated, 0);
}

#[test]
fn whether_copies_lack_is_unknown_until_every_piece_was_looked_at() {
    let mut store = Store::new(3);
    store.fleet.config.pieces_per_tick_max = 2;
    let pieces: Vec<PieceId> = (0..5).map(|n| store.file(&format!("f{n}"))).collect();
    store.repair();
    assert!(!store.fleet.is_counted(), "nobody has reported");
    let held: Vec<_> = pieces.iter().flat_map(|p| [(1, good(*p)), (2, good(*p))]).collect();
    store.report_all(&held);
    store.repair();
    assert!(!store.fleet.is_counted(), "two of five");
    store.pass(3, &[]);
    assert!(store.fleet.is_counted());
    assert_eq!(store.fleet.copy_health().under_replicated, 5);
    assert!(store.fleet.enter(TERM + 1, store.now, &store.state));
    assert!(!store.fleet.is_counted(), "another leader's count");
}

#[test]
fn all_are_heard_once_each_has_reported_and_none_is_silent_but_the_dead() {
    let mut store = Store::new(3);
    assert!(!store.fleet.are_all_heard(store.now), "nobody has reported yet");
    store.report_all(&[]);
    assert!(store.fleet.are_all_heard(store.now));
    store.pass(5, &[3]);
    assert!(!store.fleet.are_all_heard(store.now), "a silent one may hold what was written shortly before");
    store.fleet.registered(ChunkServerId(1), 2);
    store.pass(10, &[3]);
    assert!(!store.fleet.are_all_heard(store.now), "a new process has not said what it holds");
    store.report(1, Report { full: true, ..report() });
    assert!(store.fleet.are_all_heard(store.now), "a dead one is not waited for");
}
