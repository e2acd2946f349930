//! Tablets that split, merge and move, servers that are drained, tables that change: on real processes.

use serde_json::Value;
use uruk_tests::{Dev, drill};

fn assert_nothing_noticed(report: &Value) {
    assert_eq!(report["lost"], 0, "{report}");
    assert_eq!(report["wrong_answers"], 0, "{report}");
    assert_eq!(report["failed_requests"], 0, "{report}");
    assert!(report["acknowledged"].as_u64() > Some(1000), "the drill had no load: {report}");
}

/// Far above the goal: this machine may be busy. The figures are measured, not tested.
fn assert_short_pauses(report: &Value) {
    let pause = report["pause_ms"]["max"].as_f64().expect("a number");
    assert!(pause < 5_000.0, "{report}");
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {text}"))).collect()
}

fn tablets(dev: &Dev, table: &str) -> Vec<Value> {
    json_lines(&dev.ok(&["tablet", "list", table, "--json"]))
}

#[test]
fn splits_under_load_lose_nothing() {
    let report = drill(&["split", "--times", "6", "--tablets", "6"]);
    assert_nothing_noticed(&report);
    assert_eq!((&report["times"], &report["tablets_at_the_end"]), (&6.into(), &12.into()), "{report}");
    assert_short_pauses(&report);
}

#[test]
fn moves_under_load_lose_nothing() {
    let report = drill(&["move", "--times", "6", "--tablets", "6"]);
    assert_nothing_noticed(&report);
    assert_eq!((&report["times"], &report["tablets_at_the_end"]), (&6.into(), &6.into()), "{report}");
    assert_short_pauses(&report);
}

#[test]
fn merges_under_load_lose_nothing() {
    let report = drill(&["merge", "--times", "4", "--tablets", "8"]);
    assert_nothing_noticed(&report);
    assert_eq!((&report["times"], &report["tablets_at_the_end"]), (&4.into(), &4.into()), "{report}");
    assert_short_pauses(&report);
}

#[test]
fn a_rolling_restart_fails_no_request() {
    let report = drill(&["restart", "--rolling", "--times", "1", "--tablets", "6"]);
    assert_nothing_noticed(&report);
    assert_eq!(report["restarts"], 3, "{report}");
}

#[test]
fn tablets_are_split_moved_and_merged_by_hand_and_rows_stay() {
    let dev = Dev::start(&["--tablet-servers", "2"]);
    dev.ok(&["table", "create", "t", "--families", "f"]);
    for row in ["ada", "bob", "zoe"] {
        dev.ok(&["put", "t", row, &format!("f:name={row}")]);
    }
    let before = dev.ok(&["scan", "t", "--json"]);
    let split = json_lines(&dev.ok(&["tablet", "split", "t", "--at", "m", "--json"])).remove(0);
    assert_eq!(split["results"].as_array().map(Vec::len), Some(2), "{split}");
    let halves = tablets(&dev, "t");
    assert_eq!((&halves[0]["end"], &halves[1]["start"]), (&"m".into(), &"m".into()), "{halves:?}");
    assert_eq!(dev.ok(&["scan", "t", "--json"]), before);

    let moved = json_lines(&dev.ok(&["tablet", "move", "t:zoe", "--json"])).remove(0);
    let after = tablets(&dev, "t");
    assert_ne!(after[1]["server_id"], halves[1]["server_id"], "{after:?}");
    assert_eq!(after[1]["server_id"], moved["target_server_id"]);
    assert_eq!(dev.ok(&["scan", "t", "--json"]), before);

    dev.ok(&["tablet", "merge", "t:ada"]);
    assert_eq!(tablets(&dev, "t").len(), 1);
    assert_eq!(dev.ok(&["scan", "t", "--json"]), before);
    let status = dev.ok(&["status"]);
    assert!(status.contains("PROCEDURE") && status.contains("merge"), "{status}");

    for (args, wanted) in [
        (vec!["tablet", "split", "nowhere:a"], "nowhere"),
        (vec!["tablet", "split", "t", "--at", ""], "split"),
        (vec!["tablet", "merge", "t"], "last"),
        (vec!["tablet", "move", "999999"], "does not exist"),
        (vec!["tablet", "move", "t", "--to", "999"], "999"),
        (vec!["tablet", "list", "nowhere"], "does not exist"),
    ] {
        let text = dev.fails(&args);
        assert!(text.contains(wanted), "{args:?}: {text}");
    }
}

#[test]
fn a_drained_server_has_no_tablets_until_it_is_undrained() {
    let dev = Dev::start(&["--tablet-servers", "2"]);
    dev.ok(&["table", "create", "t", "--families", "f", "--splits", "c,g,m,t"]);
    dev.ok(&["put", "t", "ada", "f:name=Ada"]);
    let servers = json_lines(&dev.ok(&["server", "list", "--json"]));
    assert_eq!(servers.len(), 2, "{servers:?}");
    let drained = servers[0]["server_id"].to_string();
    dev.ok(&["server", "drain", &drained]);
    assert!(tablets(&dev, "t").iter().all(|tablet| tablet["server_id"] != servers[0]["server_id"]));
    let text = dev.ok(&["server", "list"]);
    assert!(text.contains("draining"), "{text}");
    assert!(dev.ok(&["get", "t", "ada"]).contains("Ada"));
    dev.ok(&["server", "undrain", &drained]);
    dev.ok(&["tablet", "move", "t:ada", "--to", &drained]);
    assert!(dev.ok(&["get", "t", "ada"]).contains("Ada"));
    assert!(dev.fails(&["server", "drain", "999"]).contains("999"));
}

#[test]
fn a_running_cluster_is_restarted_server_by_server() {
    let dev = Dev::start(&["--tablet-servers", "2"]);
    dev.ok(&["table", "create", "t", "--families", "f", "--splits", "m"]);
    dev.ok(&["put", "t", "ada", "f:name=Ada"]);
    let report = json_lines(&dev.ok(&["cluster", "restart", "--rolling", "--json"])).remove(0);
    let restarted = report["restarted"].as_array().expect("a list");
    assert_eq!(restarted.len(), 2, "{report}");
    assert!(restarted.iter().all(|one| one["successor_id"].as_u64() > one["server_id"].as_u64()), "{report}");
    assert!(dev.ok(&["get", "t", "ada"]).contains("Ada"));
}

#[test]
fn families_come_and_go_while_the_table_is_served() {
    let dev = Dev::start(&["--tablet-servers", "2"]);
    dev.ok(&["table", "create", "t", "--families", "f", "--splits", "m"]);
    dev.ok(&["put", "t", "ada", "f:name=Ada"]);
    dev.ok(&["table", "alter", "t", "--add-family", "g:versions=1", "--set-gc", "f:versions=3"]);
    dev.ok(&["put", "t", "ada", "g:x=1"]);
    let text = dev.ok(&["table", "describe", "t", "--json"]);
    assert!(text.contains("versions=3") && text.contains("\"name\":\"g\""), "{text}");
    dev.ok(&["table", "alter", "t", "--drop-family", "g", "--group", "0:compression=zstd"]);
    assert!(!dev.ok(&["get", "t", "ada"]).contains("g:x"));
    assert!(dev.fails(&["put", "t", "ada", "g:x=1"]).contains("family"));
    assert!(dev.fails(&["table", "alter", "t"]).contains("nothing to change"));
    assert!(dev.fails(&["table", "alter", "nowhere", "--drop-family", "g"]).contains("nowhere"));
}

#[test]
fn a_salted_table_spreads_its_rows_and_scans_in_order() {
    let dev = Dev::start(&["--tablet-servers", "2"]);
    dev.ok(&["table", "create", "events", "--families", "f", "--salt", "4"]);
    assert_eq!(tablets(&dev, "events").len(), 4);
    let rows: Vec<String> = (0..12).map(|n| format!("2026-11-{n:02}")).collect();
    for row in &rows {
        dev.ok(&["put", "events", row, "f:a=1"]);
    }
    let scanned = json_lines(&dev.ok(&["scan", "events", "--json"]));
    assert_eq!(scanned.iter().map(|row| row["row"].as_str().unwrap_or_default()).collect::<Vec<_>>(), rows);
    let scanned = json_lines(&dev.ok(&["scan", "events", "--json", "--start", "2026-11-03", "--limit", "2"]));
    assert_eq!(scanned.iter().map(|row| row["row"].as_str().unwrap_or_default()).collect::<Vec<_>>(), rows[3..5]);
    assert!(dev.ok(&["get", "events", "2026-11-07"]).contains("f:a"));
    assert!(dev.ok(&["table", "describe", "events"]).contains("4 ranges"));
}
