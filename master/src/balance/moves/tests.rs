//! The balancer on clusters drawn at random.

use std::time::Duration;

use proptest::prelude::*;
use uruk_base::Moment;
use uruk_consensus::StateMachine;
use uruk_proto::{TabletId, master};

use super::*;
use crate::assign::Now;
use crate::balance::heat::Heat;
use crate::command::{Assignment, Command, Reply};
use crate::config::Tuning;
use crate::lease::Leases;
use crate::state::State;
use crate::state::tests::{create, open_all, register};
use crate::volatile::Volatile;

const NOW: Now = Now { moment: Moment::from_start(Duration::from_secs(900)), wall_micros: 900_000_000 };

/// Servers, and for each tablet where it is and how many requests it gets.
fn cluster(servers: usize, tablets: &[(usize, u64)]) -> (State, Volatile) {
    let mut state = State::new();
    let ids: Vec<ServerId> = (1..=servers as u64).map(|nonce| register(&mut state, nonce)).collect();
    create(&mut state, "t", tablets.len());
    let keys: Vec<TabletKey> = state.meta.rows().map(|row| row.key()).collect();
    let mut volatile = Volatile::new(Leases::new(Duration::from_secs(3)));
    let place =
        |(key, (server, _)): (&TabletKey, &(usize, u64))| Assignment { key: *key, server: ids[server % servers] };
    let assignments: Vec<Assignment> = keys.iter().zip(tablets).map(place).collect();
    let Reply::Assigned(keys) = state.apply(Command::Assign { assignments, micros: 0 }) else { panic!("refused") };
    for server in &ids {
        open_all(&mut state, *server, &keys);
        for number in 1..3 {
            let at = Moment::from_start(Duration::from_secs(number));
            volatile.report(*server, number, master::ServerLoad::default(), at);
        }
    }
    for (key, (_, requests)) in keys.iter().zip(tablets) {
        let heat = Heat { requests_per_s: *requests as f64, cpu_permille: *requests as f64 / 20.0, ..Heat::default() };
        volatile.unreported.insert(key.tablet, heat);
    }
    (state, volatile)
}

fn planned(state: &State, volatile: &Volatile) -> MovePlan {
    let (survey, volatile) = (state.survey(), volatile.survey());
    let tuning = Tuning::default();
    let view = View { survey: &survey, volatile: &volatile, tuning: &tuning, now: NOW };
    plan(view, &Look::at(view))
}

/// Everything arrives where it was planned to go.
fn perform(state: &mut State, plan: &MovePlan) {
    for planned in &plan.moves {
        let key = planned.key;
        state.apply(Command::Close { tablets: vec![key] });
        state.apply(Command::Release { server: planned.from, key });
        state.apply(Command::Assign { assignments: vec![Assignment { key, server: planned.to }], micros: 0 });
        let key = state.row(key.tablet).unwrap().key();
        open_all(state, planned.to, &[key]);
    }
    state.check().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn after_its_moves_loads_are_even_and_nothing_moves_any_more(
        servers in 2_usize..7,
        tablets in prop::collection::vec((0_usize..3, 100_u64..1_000), 70..130),
    ) {
        let (mut state, volatile) = cluster(servers, &tablets);
        let first = planned(&state, &volatile);
        prop_assert!(first.cost_after <= first.cost);
        let most = first.servers.iter().map(|server| server.load_after).fold(0.0, f64::max);
        prop_assert!(most <= 1.25, "{:?}", first.servers);
        let gains: f64 = first.moves.iter().map(|planned| planned.gain).sum();
        prop_assert!((first.cost - first.cost_after - gains).abs() < 1e-6, "the gains add up to the whole");
        perform(&mut state, &first);
        let second = planned(&state, &volatile);
        prop_assert!(second.moves.is_empty(), "{second:?}");
        prop_assert!((second.cost - first.cost_after).abs() < 1e-6, "what was foreseen has come");
    }
}

#[test]
fn a_single_hot_tablet_is_not_sent_around() {
    let tablets: Vec<(usize, u64)> = (0..12).map(|n| (n % 3, if n == 0 { 50_000 } else { 10 })).collect();
    let (mut state, volatile) = cluster(3, &tablets);
    let first = planned(&state, &volatile);
    assert!(first.moves.iter().all(|planned| planned.key.tablet != TabletId(1)), "{:?}", first.moves);
    perform(&mut state, &first);
    assert_eq!(planned(&state, &volatile).moves, []);
}

#[test]
fn a_drained_server_gets_nothing() {
    let tablets: Vec<(usize, u64)> = (0..24).map(|_| (0, 500)).collect();
    let (mut state, volatile) = cluster(3, &tablets);
    state.apply(Command::SetDraining { server: ServerId(2), draining: true });
    let plan = planned(&state, &volatile);
    assert!(!plan.moves.is_empty() && plan.moves.iter().all(|planned| planned.to == ServerId(3)));
}
