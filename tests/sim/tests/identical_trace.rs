//! One seed gives one trace, in two processes; another seed gives another one. With and without faults.

use std::process::Command;

fn run(seed: u64, scenario: &str) -> serde_json::Value {
    let output = Command::new(env!("CARGO_BIN_EXE_uruk-sim"))
        .args(["--json", "--seconds", "8", "--scenario", scenario, "--seed", &seed.to_string()])
        .output()
        .expect("the simulation starts");
    let text = String::from_utf8(output.stdout).expect("text");
    serde_json::from_str(text.lines().last().expect("one line")).expect("JSON")
}

#[test]
fn one_seed_gives_one_trace() {
    let (first, second, other) = (run(7, "calm"), run(7, "calm"), run(8, "calm"));
    assert_eq!(first, second);
    assert_ne!(first["trace"], other["trace"]);
    assert!(first["operations"].as_u64() > Some(0) && first["events"].as_u64() > Some(1000), "{first}");
}

#[test]
fn one_seed_gives_one_trace_with_faults() {
    let (first, second) = (run(7, "mix"), run(7, "mix"));
    assert_eq!(first, second);
    assert!(first["faults"].as_u64() > Some(0), "{first}");
}
