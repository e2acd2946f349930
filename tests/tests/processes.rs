//! Processes that lose the one who started them: nothing is left behind, and nothing is in the way.

#![allow(clippy::disallowed_methods)] // real processes

use std::process::{Command, Stdio};
use std::time::Duration;

use uruk_tests::{Dev, kill, lives, uruk_binary, wait_until};

/// Well below a planned end's limit of 12 s, which only a worker reaches that finds nobody to take its tablets.
const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_worker_whose_parent_was_killed_gives_up_its_tablets_and_its_port() {
    let dev = Dev::start(&["--tablet-servers", "2"]);
    dev.ok(&["table", "create", "t", "--families", "f", "--splits", "c,f,i,m,p,t"]);
    for row in ["a", "d", "g", "k", "n", "r", "u"] {
        dev.ok(&["put", "t", row, &format!("f:name={row}")]);
    }
    let (parent, worker) = (dev.pid("tabletserver-1"), dev.worker_pid("tabletserver-1"));
    let address =
        dev.processes.iter().find(|process| process["name"] == "tabletserver-1").expect("runs")["address"].clone();
    kill(parent);
    wait_until("the worker ends with its parent", SOON, || !lives(worker));
    wait_until("a new one serves at the same address", Duration::from_secs(20), || {
        let servers = dev.api("servers");
        servers["servers"].as_array().expect("a list").iter().any(|server| {
            server["address"] == address && server["state"] == "live" && server["pid"].as_u64() != Some(worker.into())
        })
    });
    assert_eq!(dev.ok(&["scan", "t", "--json"]).lines().count(), 7);
    // Its death is noticed by its lease; it had nothing left to recover.
    wait_until("its death is noticed", SOON, || {
        !dev.api("recoveries")["recoveries"].as_array().expect("a list").is_empty()
    });
    let recoveries = dev.api("recoveries");
    assert!(
        recoveries["recoveries"].as_array().expect("a list").iter().all(|recovery| recovery["tablets"] == 0),
        "{recoveries}"
    );
}

#[test]
fn a_worker_that_waits_for_its_masters_ends_with_its_parent() {
    let nobody = "127.0.0.1:1";
    let mut parent = Command::new(uruk_binary())
        .args(["tabletserver", "--listen", "127.0.0.1:0", "--masters", nobody, "--controllers", nobody])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("uruk starts");
    let pid = parent.id();
    let mut worker = None;
    wait_until("there is a worker", SOON, || {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        worker = children.split_whitespace().next().and_then(|child| child.parse().ok());
        worker.is_some()
    });
    parent.kill().expect("it lives");
    parent.wait().expect("it ends");
    let worker = worker.expect("was found");
    wait_until("the worker ends with its parent", SOON, || !lives(worker));
}

#[test]
fn nothing_outlives_a_killed_dev() {
    let dev = Dev::start(&[]);
    let pids = ["pid", "worker_pid"].map(|key| dev.processes.iter().filter_map(move |process| process[key].as_u64()));
    let pids: Vec<u32> = pids.into_iter().flatten().map(|pid| pid as u32).collect();
    assert_eq!(pids.len(), 1 + 1 + 3 + 3 + 3, "{:?}", dev.processes);
    assert!(pids.iter().all(|pid| lives(*pid)));
    dev.kill();
    wait_until("all have ended", SOON, || pids.iter().all(|pid| !lives(*pid)));
}
