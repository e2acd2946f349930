//! One seed gives one trace, in two processes; another seed gives another one.

use std::process::Command;

fn run(seed: u64) -> serde_json::Value {
    let output = Command::new(env!("CARGO_BIN_EXE_uruk-sim"))
        .args(["--json", "--seed", &seed.to_string()])
        .output()
        .expect("the simulation starts");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "seed {seed}: {text}\n{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(text.lines().last().expect("one line")).expect("JSON")
}

#[test]
fn one_seed_gives_one_trace() {
    let (first, second, other) = (run(7), run(7), run(8));
    assert_eq!(first, second);
    assert_ne!(first["trace"], other["trace"]);
    assert!(first["rows"].as_u64() > Some(0) && first["events"].as_u64() > Some(1000), "{first}");
}
