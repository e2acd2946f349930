//! Drills on real processes: kill -9 and SIGSTOP under load, with nothing acknowledged lost.

use std::time::Duration;

use uruk_tests::{Dev, drill, http_get, uruk_ok};

fn assert_nothing_lost(report: &serde_json::Value) {
    assert_eq!(report["lost"], 0, "{report}");
    assert_eq!(report["wrong_answers"], 0, "{report}");
    assert!(report["acknowledged"].as_u64() > Some(1000), "the drill had no load: {report}");
}

#[test]
fn killed_tablet_servers_lose_nothing() {
    let report = drill(&["kill-tabletserver", "--times", "3", "--tablets", "12", "--unflushed-mib", "8"]);
    assert_nothing_lost(&report);
    assert_eq!(report["kills"], 3, "{report}");
    assert!(report["log_bytes"].as_u64() >= Some(8 << 20), "{report}");
    // Far above the goal: this machine may be busy. The figures are measured, not tested.
    assert!(report["unavailable_ms"]["max"].as_u64() < Some(10_000), "{report}");
}

#[test]
fn tablet_servers_killed_with_their_parents_lose_nothing() {
    let report =
        drill(&["kill-tabletserver", "--with-parent", "--times", "1", "--tablets", "6", "--unflushed-mib", "4"]);
    assert_nothing_lost(&report);
    let unavailable = report["unavailable_ms"]["max"].as_u64();
    // Nobody proved the death: the lease of 3 s had to run out, counted from its last renewal.
    assert!(unavailable > Some(1_000) && unavailable < Some(15_000), "{report}");
}

#[test]
fn a_stopped_tablet_server_that_wakes_answers_nothing() {
    let report = drill(&["pause-tabletserver", "--times", "1", "--tablets", "6"]);
    assert_nothing_lost(&report);
    assert_eq!(report["reads_answered"], 0, "{report}");
    assert_eq!(report["writes_accepted"], 0, "{report}");
    assert!(report["refusals"].as_u64() > Some(0), "nobody asked: {report}");
}

#[test]
fn a_tablet_server_that_is_asked_to_end_leaves_nothing_to_recover() {
    let report = drill(&["stop-tabletserver", "--times", "2", "--tablets", "6"]);
    assert_nothing_lost(&report);
    assert_eq!((&report["stops"], &report["tablets_recovered"]), (&2.into(), &0.into()), "{report}");
    assert!(report["unavailable_ms"]["max"].as_u64() < Some(5_000), "{report}");
}

#[test]
fn killed_masters_controllers_and_chunk_servers_lose_nothing() {
    let report = drill(&["kill-process", "--times", "2", "--tablets", "6"]);
    assert_nothing_lost(&report);
    assert_eq!(report["kills"], 6, "{report}");
}

#[test]
fn with_three_masters_a_killed_leader_costs_no_lease_and_no_write() {
    // Long enough that another one leads, and that every lease has to be renewed there.
    let group = ["--masters", "3", "--controllers", "3", "--down-ms", "5000"];
    let report = drill(&[&["kill-process", "--role", "master", "--times", "3", "--tablets", "6"], &group[..]].concat());
    assert_nothing_lost(&report);
    assert_eq!(report["kills"], 3, "{report}");
    assert_eq!(report["leases_lost"], 0, "{report}");
    // Reads and writes need no master: they went on.
    assert!(report["unavailable_ms"]["max"].as_u64() < Some(3_000), "{report}");
}

#[test]
fn with_three_controllers_any_killed_one_costs_no_lease_and_no_write() {
    let group = ["--masters", "3", "--controllers", "3", "--down-ms", "5000"];
    let report =
        drill(&[&["kill-process", "--role", "dfs-controller", "--times", "3", "--tablets", "6"], &group[..]].concat());
    assert_nothing_lost(&report);
    assert_eq!((&report["kills"], &report["leases_lost"]), (&3.into(), &0.into()), "{report}");
    assert!(report["unavailable_ms"]["max"].as_u64() < Some(5_000), "{report}");
}

#[test]
fn chaos_loses_no_node_and_leaves_no_pointer_without_its_node() {
    // One round of blows at least, drawn from the seed.
    let report = drill(&["chaos", "--minutes", "0.25", "--seed", "7", "--masters", "3", "--controllers", "3"]);
    assert_eq!(report["failure"], serde_json::Value::Null, "{report}");
    for none in ["undefined", "lost", "torn", "wrong_answers"] {
        assert_eq!(report[none], 0, "{none}: {report}");
    }
    let blows = ["kills", "pauses", "restarts"].map(|blow| report[blow].as_u64().unwrap_or_default());
    assert!(report["rounds"].as_u64() > Some(0) && blows.iter().sum::<u64>() > 2, "nothing was done: {report}");
    assert!(report["acknowledged"].as_u64() > Some(1000), "the drill had no load: {report}");
}

#[test]
fn any_of_three_masters_leads_to_the_data() {
    let dev = Dev::start(&["--masters", "3", "--controllers", "3"]);
    assert_eq!(dev.masters.len(), 3);
    assert_eq!(dev.processes.iter().filter(|process| process["role"] == "dfs-controller").count(), 3);
    for (number, master) in dev.masters.iter().enumerate() {
        let table = format!("t{number}");
        uruk_ok(&["table", "create", &table, "--families", "f", "--splits", "m", "--master", master]);
        uruk_ok(&["put", &table, "row", "f:a=hello", "--master", master]);
        for other in &dev.masters {
            let row = uruk_ok(&["get", &table, "row", "--master", other]);
            assert!(row.contains("hello"), "{row}");
            assert!(uruk_ok(&["status", "--master", other]).contains(&table));
        }
    }
    // Followers send the browser to the leader's page, and show themselves when asked to.
    let pages = dev.processes.iter().filter_map(|process| process["http"].as_str());
    let answers: Vec<(String, String)> = pages.map(|page| (page.to_owned(), http_get(page, "/servers"))).collect();
    let (led, sent): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(_, text)| text.contains(" 200 OK"));
    assert_eq!((led.len(), sent.len()), (1, 2), "{led:?} {sent:?}");
    for (page, answer) in sent {
        assert!(answer.contains(&format!("location: http://{}/servers", led[0].0)), "{answer}");
        assert!(http_get(&page, "/servers?here").contains(" 200 OK"));
    }
    // Nobody gives up tablets when there is nobody to take them; a planned end may take 12 s.
    assert!(dev.interrupt() < Duration::from_secs(8));
}
