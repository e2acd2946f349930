//! Every state of the protocol within small bounds. Larger ones: `docs/seal-model.md`.

use uruk_seal_model::{Bounds, Checked, SealModel, explore};

/// Visits all states; every property holds, and every state that must be reachable is.
fn holds_everywhere(bounds: Bounds) {
    bounds.validate().expect("sound bounds");
    let explored = explore(SealModel { bounds, mutations: &[], checked: Checked::All }, 1);
    if let Some((name, path)) = explored.violations.first() {
        panic!("violated: {name}, after {:#?}", path.clone().into_actions());
    }
    assert!(explored.unreached.is_empty(), "never reached: {:?}", explored.unreached);
    println!("{} states, depth {}: {bounds:?}", explored.states, explored.depth);
    assert!(explored.states > 10_000, "{} states are suspiciously few", explored.states);
}

#[test]
fn three_members_two_recoverers_and_a_crash_keep_every_promise() {
    holds_everywhere(Bounds { losses: 0, ..Bounds::SMALL });
}

#[test]
fn three_members_and_a_lost_disk_or_failed_sync_keep_every_promise() {
    holds_everywhere(Bounds { crashes: 0, ..Bounds::SMALL });
}

#[test]
fn two_members_and_a_copy_on_a_new_server_keep_every_promise() {
    holds_everywhere(Bounds { members: 2, ..Bounds::SMALL });
}

#[test]
fn rolls_and_trims_keep_every_promise() {
    holds_everywhere(Bounds {
        segments: 2,
        trims: true,
        recoverers: 1,
        rounds: 1,
        deaths: 0,
        crashes: 0,
        losses: 0,
        ..Bounds::SMALL
    });
}

#[test]
fn readers_keep_every_promise() {
    holds_everywhere(Bounds { readers: true, recoverers: 1, rounds: 1, deaths: 0, losses: 0, ..Bounds::SMALL });
}

#[test]
fn two_records_keep_every_promise() {
    holds_everywhere(Bounds { records: 2, deaths: 0, crashes: 0, losses: 0, ..Bounds::SMALL });
}
