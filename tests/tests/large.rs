//! The largest cell and the largest row, through real processes: over the wire, into the log, into files.

#![allow(clippy::disallowed_methods)] // files that are imported

use std::time::Duration;

use uruk_tests::{Dev, kill, lives, wait_until};

const MIB: usize = 1 << 20;

/// Letters that no compression makes small.
fn letters(bytes: usize, mut seed: u64) -> String {
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'a' + (seed >> 58) as u8 % 26)
    };
    (0..bytes).map(|_| next()).collect()
}

/// The pid of the only worker that lives.
fn worker(dev: &Dev) -> u32 {
    let servers = dev.api("servers");
    let mut live = servers["servers"].as_array().expect("a list").iter().filter(|server| server["state"] == "live");
    live.next_back().and_then(|server| server["pid"].as_u64()).expect("a worker lives") as u32
}

fn kill_worker(dev: &Dev) {
    let pid = worker(dev);
    kill(pid);
    wait_until("the worker is dead", Duration::from_secs(10), || !lives(pid));
}

#[test]
fn a_cell_of_100_mib_and_a_row_of_118_mib_outlive_their_server_before_and_after_a_flush() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let (cell, halves) = (letters(100 * MIB, 1), [letters(59 * MIB, 2), letters(59 * MIB, 3)]);
    let lines = dir.path().join("rows.jsonl");
    let row = |key: &str, cells: &[(&str, &str)]| {
        let cells: String = cells.iter().map(|(name, value)| format!(",\"{name}\":\"{value}\"")).collect();
        format!("{{\"key\":\"{key}\"{cells}}}\n")
    };
    let text = [row("cell", &[("a", &cell)]), row("row", &[("a", &halves[0]), ("b", &halves[1])])];
    std::fs::write(&lines, text.concat()).expect("writes");
    // Nothing is flushed before the memtables hold 200 MiB; a restart then reads all of it from the log.
    let dev = Dev::start(&[
        "--tablet-servers",
        "1",
        "--durability",
        "replicated",
        "--tabletserver-flags",
        "--memtable-mib=400",
    ]);
    dev.ok(&["table", "create", "t", "--families", "f"]);
    let import = |from: &str| dev.ok(&["import", "t", from, "--key", "key", "--family", "f", "--json"]);
    let lines = lines.to_str().expect("text");
    assert!(import(lines).contains("\"rows\":2"));
    let read_back = |when: &str| {
        let got = dev.ok(&["get", "t", "cell", "--json"]);
        assert!(got.contains(&cell), "{when}: the cell has {} bytes of JSON", got.len());
        let got = dev.ok(&["get", "t", "row", "--json"]);
        assert!(halves.iter().all(|half| got.contains(half)), "{when}: the row has {} bytes of JSON", got.len());
    };
    kill_worker(&dev);
    read_back("from the log");
    // What was replayed is flushed once nothing is opened any more; the log that it came from is let go then.
    wait_until("it is flushed", Duration::from_secs(60), || {
        let tablets = dev.api("tablets");
        tablets["tablets"]
            .as_array()
            .expect("a list")
            .iter()
            .all(|tablet| tablet["file_bytes"].as_u64() > Some(200 << 20))
    });
    kill_worker(&dev);
    read_back("from files");
}
