//! How the work grows with the number of tablets: counted in rows that are looked at, which no busy machine changes.

use std::time::Duration;

use uruk_base::Moment;
use uruk_proto::ServerId;
use uruk_proto::master::{RenewLeaseRequest, ServerLoad, TabletLoad};

use crate::assign::{Now, plan};
use crate::balance::{View, decide};
use crate::command::TabletKey;
use crate::config::Tuning;
use crate::lease::{Grant, Leases};
use crate::service::control::{Renewed, renew};
use crate::state::State;
use crate::state::meta::examined;
use crate::state::tests::{assign_all, create, kill, open_all, register};
use crate::volatile::Volatile;
use uruk_consensus::{StateMachine, Term};

const SERVERS: u64 = 4;

fn at(seconds: u64) -> Now {
    Now { moment: Moment::from_start(Duration::from_secs(seconds)), wall_micros: seconds as i64 * 1_000_000 }
}

fn report(tablets: &[TabletKey], reads: u64) -> ServerLoad {
    let of =
        |key: &TabletKey| TabletLoad { tablet_id: key.tablet.0, epoch: key.epoch.0, reads, ..TabletLoad::default() };
    ServerLoad { tablets: tablets.iter().map(of).collect(), ..ServerLoad::default() }
}

/// As many tables as servers, one of them open at each; all report.
fn cluster(tablets: usize) -> (State, Volatile, Vec<ServerId>) {
    let mut state = State::new();
    let servers: Vec<ServerId> = (1..=SERVERS).map(|nonce| register(&mut state, nonce)).collect();
    let mut volatile = Volatile::new(Leases::new(Duration::from_secs(3)));
    for server in &servers {
        create(&mut state, &format!("t{}", server.0), tablets / servers.len());
        let keys = assign_all(&mut state, *server);
        open_all(&mut state, *server, &keys);
        for second in 1..=3 {
            volatile.report(*server, second, report(&keys, 5), at(second).moment);
        }
    }
    volatile.follow(&state, at(3).moment);
    (state, volatile, servers)
}

/// Rows that one look of the driver looks at.
fn rows_in_a_look(state: &State, volatile: &mut Volatile) -> u64 {
    let tuning = Tuning { balance_every_ms: u64::MAX, check_every_ms: u64::MAX, ..Tuning::default() };
    let look = || {
        volatile.follow(state, at(4).moment);
        let _ = plan(state, volatile, &tuning, at(4));
    };
    examined::by(look).0
}

#[test]
fn a_look_with_nothing_to_do_looks_at_no_row() {
    for tablets in [40, 400, 4_000] {
        let (state, mut volatile, _) = cluster(tablets);
        assert_eq!(rows_in_a_look(&state, &mut volatile), 0, "{tablets} tablets");
    }
}

#[test]
fn a_look_after_a_death_looks_at_the_dead_servers_tablets_alone() {
    for tablets in [400, 4_000] {
        let (mut state, mut volatile, servers) = cluster(tablets);
        kill(&mut state, servers[0]);
        let lost = tablets as u64 / SERVERS;
        let rows = rows_in_a_look(&state, &mut volatile);
        assert!(rows <= 3 * lost, "{rows} rows for {lost} of {tablets} tablets");
    }
}

#[test]
fn a_renewal_looks_at_no_row() {
    let (state, mut volatile, servers) = cluster(4_000);
    let keys: Vec<TabletKey> = state.index.owned(servers[0]).map(|tablet| state.row(tablet).unwrap().key()).collect();
    volatile.leases.elected(Term(1), servers.iter().copied(), at(3).moment);
    let request =
        RenewLeaseRequest { server_id: servers[0].0, report_number: 4, load: Some(report(&keys, 5)), draining: true };
    let (rows, renewed) = examined::by(|| renew(&state, &mut volatile, request, at(4), Term(1), at(4).moment));
    assert_eq!(renewed, Renewed { grant: Grant::Granted, is_new_drain: true });
    assert_eq!(volatile.loads[&servers[0]].tablets.values().count(), 1_000);
    assert_eq!(rows, 0);
}

#[test]
fn a_decision_looks_at_each_row_once() {
    for tablets in [400, 4_000] {
        let (state, volatile, _) = cluster(tablets);
        let (survey, volatile, tuning) = (state.survey(), volatile.survey(), Tuning::default());
        let view = View { survey: &survey, volatile: &volatile, tuning: &tuning, now: at(4) };
        let (rows, decision) = examined::by(|| decide(view));
        assert_eq!(rows, tablets as u64, "{rows} rows for {tablets} tablets: {decision:?}");
    }
}

#[test]
fn what_was_captured_stays_as_it_was_and_becomes_the_same_snapshot() {
    let (mut state, _, servers) = cluster(400);
    let (before, captured) = (state.snapshot(), state.capture());
    kill(&mut state, servers[1]);
    assert_eq!(captured(), before);
    assert_ne!(state.snapshot(), before);
    state.check().unwrap();
    assert_eq!(State::restore(&state.snapshot()).unwrap(), state);
}
