//! Hand-made histories, right and wrong, and drawn ones: times are in milliseconds.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use uruk_base::Random;

use super::{FINAL, check};
use crate::history::{
    Cells, Ended, Expect, History, Mask, Node, Op, RowId, ScanOrder, ScanShape, SeenRow, Shown, Token, Told, Write,
};

#[derive(Default)]
struct Made(History);

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn row() -> RowId {
    RowId { table: "t", key: Bytes::from("r") }
}

fn value(token: Token) -> Write {
    Write::Value { token, mask: Mask::ALL }
}

fn whole(token: Token) -> Cells {
    if token == 0 { Cells::default() } else { Cells([token; 6]) }
}

fn unknown() -> Ended {
    Ended::Unknown("silence".into())
}

fn not_done() -> Ended {
    Ended::NotDone("refused".into())
}

fn done() -> Ended {
    Ended::Done(Told::Done)
}

impl Made {
    fn op(&self, start: u64, end: u64, op: Op, ended: Ended) -> &Made {
        self.of("hand", start, end, op, ended)
    }
    fn of(&self, who: &'static str, start: u64, end: u64, op: Op, ended: Ended) -> &Made {
        let id = self.0.begin_at(at(start), who, 1, op);
        self.0.end_at(at(end), id, ended);
        self
    }
    fn put(&self, start: u64, end: u64, token: Token, ended: Ended) -> &Made {
        self.op(start, end, Op::Write { row: row(), write: value(token) }, ended)
    }
    fn delete(&self, start: u64, end: u64, ended: Ended) -> &Made {
        self.op(start, end, Op::Write { row: row(), write: Write::Delete }, ended)
    }
    fn get(&self, start: u64, end: u64, token: Token) -> &Made {
        self.op(start, end, Op::Read { row: row() }, Ended::Done(Told::Cells(whole(token))))
    }
    fn last(&self, start: u64, end: u64, token: Token) -> &Made {
        self.of(FINAL, start, end, Op::Read { row: row() }, Ended::Done(Told::Cells(whole(token))))
    }
    fn cas(&self, start: u64, end: u64, from: Token, to: Token, ended: Ended) -> &Made {
        let op = Op::Check { row: row(), expect: Expect::Token(from), then: Some(value(to)), otherwise: None };
        self.op(start, end, op, ended)
    }
    fn append(&self, start: u64, end: u64, token: Token, told: Option<&[Token]>) -> &Made {
        let ended = told.map_or_else(unknown, log);
        self.op(start, end, Op::Append { row: row(), token }, ended)
    }
    fn log(&self, start: u64, end: u64, tokens: &[Token]) -> &Made {
        self.op(start, end, Op::ReadLog { row: row() }, log(tokens))
    }
    fn scan(&self, start: u64, end: u64, rows: &[(&'static str, Token)], shown: Shown) -> &Made {
        let (order, limit) = (ScanOrder::Ascending, 0);
        let shape = ScanShape { table: "t", start: Bytes::new(), end: Bytes::new(), order, limit, shown };
        let seen = |(key, token): &(&'static str, Token)| SeenRow {
            key: Bytes::from(*key),
            cells: Cells::of(*token, Mask::ALL, shown),
            at: at(end),
        };
        let rows = rows.iter().map(seen).collect();
        self.op(start, end, Op::Scan { shape }, Ended::Done(Told::Rows { rows, whole: true }))
    }
    fn found(&self) -> Vec<&'static str> {
        let mut found: Vec<_> = self.0.with(check).into_iter().map(|violation| violation.invariant).collect();
        found.dedup();
        found
    }
    fn right(&self) {
        let found = self.0.with(check);
        assert!(found.is_empty(), "{found:#?}");
    }
    fn wrong(&self, invariant: &str) {
        assert!(self.found().contains(&invariant), "{invariant} is not among {:?}", self.found());
    }
}

fn log(tokens: &[Token]) -> Ended {
    Ended::Done(Told::Log { tokens: tokens.to_vec(), count: tokens.len() as i64 })
}

fn made() -> Made {
    Made::default()
}

#[test]
fn concurrent_operations_may_come_in_either_order() {
    made().put(0, 10, 1, done()).put(5, 20, 2, done()).get(21, 22, 1).get(30, 31, 1).right();
    made().put(0, 10, 1, done()).put(5, 20, 2, done()).get(21, 22, 2).last(30, 31, 2).right();
    made().get(0, 30, 0).put(1, 2, 1, done()).right();
}

#[test]
fn a_stale_read_is_found() {
    let stale = made();
    stale.put(0, 1, 1, done()).put(2, 3, 2, done()).get(4, 5, 1).wrong("linearizable");
    made().put(0, 1, 1, done()).get(2, 3, 0).wrong("linearizable");
    made().put(0, 1, 1, done()).put(2, 9, 2, done()).get(3, 4, 2).get(5, 6, 1).wrong("linearizable");
}

#[test]
fn a_lost_write_is_found() {
    made().put(0, 1, 1, done()).put(2, 3, 2, done()).last(9, 10, 1).wrong("acknowledged");
    made().put(0, 1, 1, done()).last(9, 10, 0).wrong("acknowledged");
    made().delete(0, 1, done()).put(2, 3, 1, done()).last(9, 10, 0).wrong("acknowledged");
}

#[test]
fn an_unknown_write_may_come_late_or_never_but_only_once() {
    made().put(0, 1, 1, done()).put(2, 3, 2, unknown()).get(4, 5, 1).get(50, 51, 2).last(60, 61, 2).right();
    made().put(0, 1, 1, done()).put(2, 3, 2, unknown()).last(60, 61, 1).right();
    let twice = made();
    twice.put(0, 1, 1, done()).put(2, 3, 2, unknown()).get(4, 5, 2).put(6, 7, 3, done()).get(8, 9, 3);
    twice.right();
    twice.get(10, 11, 2).wrong("linearizable");
    made().put(2, 3, 2, unknown()).get(0, 1, 2).wrong("linearizable");
}

#[test]
fn what_was_refused_or_never_written_is_not_seen() {
    made().put(0, 1, 1, not_done()).get(2, 3, 1).wrong("acknowledged");
    made().put(0, 1, 1, done()).get(2, 3, 7).wrong("acknowledged");
    made().put(0, 1, 1, not_done()).get(2, 3, 0).right();
}

#[test]
fn deletions_explain_absences_in_their_time_only() {
    made().put(0, 1, 1, done()).delete(2, 3, done()).get(4, 5, 0).put(6, 7, 2, done()).get(8, 9, 2).right();
    made().put(0, 1, 1, done()).delete(2, 3, done()).get(4, 5, 1).wrong("linearizable");
    made().put(0, 1, 1, done()).delete(2, 3, unknown()).get(4, 5, 1).get(90, 91, 0).last(92, 93, 0).right();
    made().put(0, 1, 1, done()).delete(2, 3, not_done()).get(4, 5, 0).wrong("linearizable");
    made().put(0, 1, 1, done()).get(2, 3, 0).get(4, 5, 1).delete(2, 9, done()).wrong("linearizable");
}

#[test]
fn a_conditional_write_follows_what_it_asked_for() {
    let matched = || Ended::Done(Told::Matched(true));
    let missed = || Ended::Done(Told::Matched(false));
    made().put(0, 1, 1, done()).cas(2, 3, 1, 2, matched()).cas(4, 5, 2, 3, matched()).last(6, 7, 3).right();
    made().put(0, 1, 1, done()).cas(2, 9, 1, 2, matched()).cas(3, 8, 1, 3, matched()).wrong("linearizable");
    made().put(0, 1, 1, done()).cas(2, 3, 1, 2, missed()).get(4, 5, 1).wrong("linearizable");
    made().put(0, 1, 1, done()).cas(2, 3, 1, 2, missed()).get(4, 5, 2).wrong("acknowledged");
    made().put(0, 1, 1, done()).put(2, 3, 5, done()).cas(4, 5, 1, 2, matched()).wrong("linearizable");
    made().put(0, 1, 1, done()).cas(2, 3, 1, 2, unknown()).get(4, 5, 1).get(6, 7, 2).right();
    // Between the write it asked for and its own, nothing can come.
    let between = made();
    between.put(0, 1, 1, done()).put(2, 30, 9, done()).cas(3, 40, 1, 2, matched()).get(5, 6, 9).get(7, 8, 1);
    between.wrong("linearizable");
}

#[test]
fn logs_show_each_append_once_and_in_order() {
    made().append(0, 1, 1, Some(&[1])).append(2, 3, 2, Some(&[1, 2])).log(4, 5, &[1, 2]).right();
    made().append(0, 1, 1, None).append(2, 3, 2, Some(&[2])).log(4, 5, &[2]).log(6, 7, &[2, 1]).right();
    made().append(0, 1, 1, None).log(4, 5, &[]).right();
    made().append(0, 1, 1, Some(&[1])).log(2, 3, &[1, 1]).wrong("exactly_once");
    made().append(0, 1, 1, Some(&[1])).log(2, 3, &[]).wrong("exactly_once");
    made().op(0, 1, Op::Append { row: row(), token: 1 }, not_done()).log(2, 3, &[1]).wrong("exactly_once");
    let reordered = made();
    reordered.append(0, 9, 1, None).append(0, 9, 2, None).log(10, 11, &[1, 2]).log(12, 13, &[2, 1]);
    reordered.wrong("linearizable");
    made().append(0, 9, 1, None).append(0, 9, 2, None).log(1, 2, &[1, 2]).log(3, 4, &[1]).wrong("linearizable");
    // The counter is in the same write.
    let miscounted = Ended::Done(Told::Log { tokens: vec![1], count: 2 });
    made().append(0, 1, 1, Some(&[1])).op(2, 3, Op::ReadLog { row: row() }, miscounted).wrong("exactly_once");
}

#[test]
fn a_mixed_row_is_found() {
    let mut cells = whole(2);
    cells.0[0] = 1;
    let mixed = Ended::Done(Told::Cells(cells));
    made().put(0, 1, 1, done()).put(2, 3, 2, done()).op(4, 5, Op::Read { row: row() }, mixed).wrong("atomic_rows");
    cells.0[0] = 0;
    let part = Ended::Done(Told::Cells(cells));
    made().put(2, 3, 2, done()).op(4, 5, Op::Read { row: row() }, part).wrong("atomic_rows");
}

#[test]
fn scans_show_each_row_as_it_was_during_them() {
    let all = Shown::Columns(Mask::ALL);
    for shown in [all, Shown::First, Shown::Columns(Mask(8)), Shown::Value(1)] {
        made().put(0, 1, 1, done()).scan(2, 3, &[("r", 1)], shown).right();
    }
    made().put(0, 1, 1, done()).put(3, 9, 2, done()).scan(2, 10, &[("r", 1)], all).right();
    made().put(0, 1, 1, done()).scan(2, 3, &[], all).wrong("scans");
    made().put(0, 1, 1, done()).scan(2, 3, &[], Shown::Keys).wrong("scans");
    made().put(0, 1, 1, done()).put(2, 3, 2, done()).scan(4, 5, &[("r", 1)], all).wrong("scans");
    made().put(0, 1, 1, done()).scan(2, 3, &[("r", 1), ("r", 1)], all).wrong("scans");
    made().put(0, 1, 1, done()).scan(2, 3, &[("s", 1), ("r", 1)], all).wrong("scans");
    made().put(0, 1, 1, done()).scan(2, 3, &[("r", 1), ("s", 1)], Shown::Keys).wrong("acknowledged");
    made().put(0, 1, 1, done()).scan(2, 3, &[], Shown::Value(1)).get(4, 5, 1).wrong("scans");
}

#[test]
fn nodes_that_point_at_nothing_are_found() {
    let nodes = |nodes: &[(u64, Option<u64>)]| -> Vec<Node> {
        nodes.iter().map(|(id, next)| Node { id: *id, next: *next }).collect()
    };
    let write = |some: &[(u64, Option<u64>)]| Op::Nodes { nodes: Arc::new(nodes(some)) };
    let read = |some: &[(u64, Option<u64>)]| Ended::Done(Told::Nodes(nodes(some)));
    let list = || {
        let list = made();
        list.op(0, 1, write(&[(1, None)]), done()).op(2, 3, write(&[(2, Some(1))]), done());
        list.op(4, 5, write(&[(1, Some(2))]), done());
        list
    };
    list().op(9, 10, Op::ReadNodes, read(&[(1, Some(2)), (2, Some(1))])).right();
    list().op(9, 10, Op::ReadNodes, read(&[(2, Some(1))])).wrong("linked_list");
    list().op(9, 10, Op::ReadNodes, read(&[(1, None)])).wrong("linked_list");
    list().op(9, 10, Op::ReadNodes, read(&[(1, None), (2, Some(1))])).wrong("linked_list");
    list().op(9, 10, Op::ReadNodes, read(&[(1, Some(2)), (2, Some(1)), (3, None)])).wrong("linked_list");
    list()
        .op(6, 7, write(&[(3, None)]), unknown())
        .op(9, 10, Op::ReadNodes, read(&[(1, Some(2)), (2, Some(1))]))
        .right();
}

#[test]
fn tables_come_and_go_as_acknowledged() {
    let name: Arc<str> = "x".into();
    let create = || Op::CreateTable { name: name.clone() };
    let delete = || Op::DeleteTable { name: name.clone() };
    let write = |token| Op::TableWrite { name: name.clone(), token };
    let listed = |names: &[Arc<str>]| Ended::Done(Told::Tables(names.to_vec()));
    let rows = |tokens: &[Token]| Ended::Done(Told::Tokens(tokens.to_vec()));
    let scan = || Op::TableScan { name: name.clone() };
    let there = || {
        let there = made();
        there.op(0, 1, create(), done()).op(2, 3, write(1), done());
        there
    };
    let again = || {
        let again = there();
        again.op(4, 5, delete(), done()).op(6, 7, create(), done());
        again
    };
    there().op(8, 9, Op::ListTables, listed(std::slice::from_ref(&name))).op(8, 9, scan(), rows(&[1])).right();
    there().op(8, 9, Op::ListTables, listed(&[])).wrong("tables");
    there().op(8, 9, scan(), rows(&[])).wrong("tables");
    there().op(8, 9, scan(), done()).wrong("tables");
    there().op(4, 5, delete(), done()).op(8, 9, Op::ListTables, listed(std::slice::from_ref(&name))).wrong("tables");
    there().op(4, 5, delete(), unknown()).op(8, 9, Op::ListTables, listed(&[])).right();
    again().op(8, 9, scan(), rows(&[])).right();
    again().op(8, 9, scan(), rows(&[1])).wrong("tables");
    made().op(8, 9, Op::ListTables, listed(std::slice::from_ref(&name))).right();
}

/// Operations on one register in the order in which they happen: what each reads or writes.
#[derive(Clone, Copy)]
struct Step {
    start: u64,
    end: u64,
    kind: u64,
    token: Token,
    unknown: bool,
}

/// A history that a register really went through; operations overlap.
fn drawn(random: &Random, count: u64) -> Vec<Step> {
    let mut current = 0;
    (0..count)
        .map(|n| {
            // Each takes effect at 10n + 500, and lasts from somewhat before to somewhat after.
            let moment = 10 * n + 500;
            let (start, end) = (moment - random.range(0..60), moment + random.range(0..60));
            let kind = random.range(0..4);
            let unknown = kind < 2 && random.range(0..6) == 0;
            match kind {
                0 => current = n + 1,
                1 if random.range(0..3) == 0 => current = 0,
                _ => {}
            }
            let kind = if kind == 1 && current != 0 { 2 } else { kind };
            Step { start, end, kind, token: current, unknown }
        })
        .collect()
}

fn history(steps: &[Step]) -> Made {
    let made = made();
    let mut in_order = steps.to_vec();
    in_order.sort_by_key(|step| step.start);
    for step in in_order {
        let ended = if step.unknown { unknown() } else { done() };
        match step.kind {
            0 => drop(made.put(step.start, step.end, step.token, ended)),
            1 => drop(made.delete(step.start, step.end, ended)),
            _ => drop(made.get(step.start, step.end, step.token)),
        }
    }
    made
}

#[test]
fn what_a_register_really_went_through_is_right() {
    for seed in 0..300 {
        let steps = drawn(&Random::from_seed(seed), 200);
        let found = history(&steps).0.with(check);
        assert!(found.is_empty(), "seed {seed}: {found:#?}");
    }
}

#[test]
fn mutations_that_are_certainly_wrong_are_found() {
    for seed in 0..300 {
        let random = Random::from_seed(seed);
        let steps = drawn(&random, 200);
        let writes: Vec<Step> = steps.iter().filter(|step| step.kind == 0 && !step.unknown).copied().collect();
        let n = random.range(0..writes.len() as u64 - 20) as usize;
        // An old value after a much newer one was acknowledged; and a value nobody wrote.
        let (old, newer) = (writes[n], writes[n + 19]);
        let stale = history(&steps);
        stale.get(newer.end.max(old.end) + 100, newer.end.max(old.end) + 101, old.token);
        stale.wrong("linearizable");
        history(&steps).get(3_000, 3_001, 999_999).wrong("acknowledged");
        // A value before it was written.
        history(&steps).get(old.start - 2, old.start - 1, old.token).wrong("linearizable");
        // A write taken out of the history although its value was seen.
        if let Some(seen) = steps.iter().find(|step| step.kind >= 2 && step.token != 0) {
            let without: Vec<Step> =
                steps.iter().filter(|step| step.kind >= 2 || step.token != seen.token).copied().collect();
            history(&without).wrong("acknowledged");
        }
    }
}

#[test]
fn ten_thousand_operations_are_checked_in_near_linear_work() {
    // Quadratic work would be 10^8 steps and more; this ends at once.
    history(&drawn(&Random::from_seed(1), 10_000)).right();
}
