//! Runs of the whole simulated cluster: a few seeds that must hold, and seeds that once broke something.

use std::process::Command;

/// Simulated seconds with faults in a run that is only a check of the harness.
const SHORT_SECONDS: &str = "12";

fn run(seed: u64, scenario: &str, seconds: &str, more: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_uruk-sim"))
        .args(["--seed", &seed.to_string(), "--scenario", scenario, "--seconds", seconds])
        .args(more)
        .output()
        .expect("the simulation starts");
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

fn holds(seed: u64, scenario: &str) {
    let (is_good, said) = run(seed, scenario, SHORT_SECONDS, &[]);
    assert!(is_good, "{said}");
}

#[test]
fn a_calm_cluster_serves() {
    holds(1, "calm");
}

#[test]
fn killed_processes_lose_nothing() {
    holds(2, "crash");
}

#[test]
fn power_loss_loses_nothing() {
    holds(3, "power");
}

#[test]
fn failovers_lose_nothing() {
    holds(4, "failover");
}

#[test]
fn everything_at_once_loses_nothing() {
    holds(5, "mix");
}

/// Both remove the older snapshots, and the second found one gone.
#[test]
fn a_snapshot_built_while_another_is_received_does_not_end_the_member() {
    let (is_good, said) = run(26, "crash-and-power", "30", &[]);
    assert!(is_good, "{said}");
}
