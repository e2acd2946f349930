//! Each step of the protocol left out breaks a promise, or another step is known to make up for it.

use uruk_seal_model::mutations::{Fate, Mutation};
use uruk_seal_model::{SealModel, explore};

#[test]
fn each_step_left_out_breaks_the_promise_it_is_there_for() {
    let mut wrong = Vec::new();
    for mutation in Mutation::ALL.iter().copied() {
        let Fate::Breaks(promises) = mutation.fate() else { continue };
        let explored = explore(mutation.model(), 1);
        let expected = |name: &str| promises.iter().any(|beginning| name.starts_with(beginning));
        if !explored.violations.iter().any(|(name, _)| expected(name)) {
            wrong.push((
                mutation,
                explored.states,
                explored.violations.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
            ));
        }
    }
    assert!(wrong.is_empty(), "not found, or others than {wrong:#?}");
}

/// If one of these begins to fail, something else was taken away that made up for it.
#[test]
fn what_is_called_redundant_breaks_nothing_alone() {
    for mutation in Mutation::ALL.iter().copied().filter(|m| m.fate() == Fate::Redundant) {
        let explored = explore(mutation.model(), 1);
        let broken: Vec<_> = explored.violations.iter().map(|(name, _)| *name).collect();
        assert!(broken.is_empty(), "{mutation:?} breaks {broken:?}");
    }
}

/// Each makes up for the other: an overtaken recoverer's plan is short only of what was acknowledged since.
#[test]
fn acknowledging_completions_and_sealing_when_overtaken_break_a_promise_together() {
    let mutations = &[Mutation::AckAfterCompletion, Mutation::AnyRecovererSeals];
    let explored = explore(SealModel { mutations, ..Mutation::AnyRecovererSeals.model() }, 1);
    assert!(explored.violations.iter().any(|(name, _)| name.starts_with("S2") || name.starts_with("S3")));
}
