//! Bad input: a clear error that names what and where, and nothing lost.

#![allow(clippy::disallowed_methods)] // files that no part of uruk would write

use std::net::TcpListener;

use uruk_tests::{Dev, uruk_fails, uruk_ok};

#[test]
fn a_port_in_use_is_said_so() {
    let held = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = held.local_addr().expect("bound").port().to_string();
    let text = uruk_fails(&["dev", "--port-base", &port]);
    assert!(text.contains(&port) && text.contains("in use"), "{text}");
    let dir = tempfile::tempdir().expect("temporary folder");
    let folder = dir.path().join("c").display().to_string();
    let text = uruk_fails(&["dfs-controller", "--dir", &folder, "--listen", &format!("127.0.0.1:{port}")]);
    assert!(text.contains(&port) && text.contains("another process"), "{text}");
}

#[test]
fn a_folder_of_another_process_role_or_version_is_refused() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let keep = dir.path().join("keep").display().to_string();
    let dev = Dev::start(&["--dir", &keep, "--tablet-servers", "1", "--chunk-servers", "2"]);
    let controller = dir.path().join("keep/dfs-controller-1").display().to_string();
    let text = uruk_fails(&["dfs-controller", "--dir", &controller, "--listen", "127.0.0.1:0"]);
    assert!(text.contains(&controller) && text.contains("in use by another process"), "{text}");
    dev.interrupt();
    let text =
        uruk_fails(&["chunkserver", "--dir", &controller, "--listen", "127.0.0.1:0", "--controllers", "127.0.0.1:1"]);
    assert!(text.contains("belongs to a dfs-controller"), "{text}");
    let marker = dir.path().join("keep/dfs-controller-1/URUK");
    let newer = std::fs::read_to_string(&marker).expect("a marker").replace("format = 1", "format = 99");
    std::fs::write(&marker, newer).expect("writes");
    let text = uruk_fails(&["dfs-controller", "--dir", &controller, "--listen", "127.0.0.1:0"]);
    assert!(text.contains("format 99") && text.contains("newer uruk"), "{text}");
}

#[test]
fn bad_rows_tables_and_families_are_refused_and_data_stays_over_a_restart() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let keep = dir.path().join("keep").display().to_string();
    let dev = Dev::start(&["--dir", &keep, "--tablet-servers", "2"]);
    dev.ok(&["table", "create", "t", "--families", "f", "--splits", "m"]);
    dev.ok(&["put", "t", "ada", "f:name=Ada"]);
    dev.ok(&["put", "t", "zoe", "f:name=Zoe"]);
    for (args, wanted) in [
        (vec!["table", "create", "t", "--families", "f"], "exists"),
        (vec!["table", "create", "a b", "--families", "f"], "bad table name"),
        (vec!["put", "t", "", "f:name=x"], "non-empty"),
        (vec!["put", "t", "ada", "g:name=x"], "family"),
        (vec!["get", "nowhere", "ada"], "does not exist"),
        (vec!["put", "t", "ada", "name=x"], "family:qualifier=value"),
    ] {
        let text = dev.fails(&args);
        assert!(text.contains(wanted), "{args:?}: {text}");
    }
    let long = "k".repeat(4097);
    assert!(dev.fails(&["put", "t", &long, "f:name=x"]).contains("4096"));
    let before = dev.ok(&["scan", "t", "--json"]);
    assert_eq!(before.lines().count(), 2, "{before}");
    dev.interrupt();

    let dev = Dev::start(&["--dir", &keep, "--tablet-servers", "2"]);
    assert_eq!(dev.ok(&["scan", "t", "--json"]), before);
    dev.ok(&["table", "delete", "t"]);
    assert!(!dev.ok(&["table", "list"]).contains(" 2 "), "the table is gone");
}

#[test]
fn csv_and_json_lines_are_imported_and_a_bad_line_is_named() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let csv = dir.path().join("people.csv");
    std::fs::write(&csv, "name,born,log:last\nada,1815,hello\nalan,1912,bye\n").expect("writes");
    let lines = dir.path().join("people.jsonl");
    std::fs::write(&lines, "{\"id\":\"grace\",\"born\":1906}\n{\"id\":\"bad\"\n").expect("writes");
    let dev = Dev::start(&["--tablet-servers", "1"]);
    dev.ok(&["table", "create", "people", "--families", "p,log"]);
    let text = dev.ok(&["import", "people", csv.to_str().expect("text"), "--family", "p", "--json"]);
    assert!(text.contains("\"rows\":2"), "{text}");
    let text = dev.fails(&["import", "people", lines.to_str().expect("text"), "--key", "id", "--family", "p"]);
    assert!(text.contains("line 2") && text.contains("1 rows are imported"), "{text}");
    let ada = dev.ok(&["get", "people", "ada"]);
    assert!(ada.contains("log:last") && ada.contains("\"hello\"") && ada.contains("\"1815\""), "{ada}");
    assert!(dev.ok(&["get", "people", "grace"]).contains("\"1906\""));
}

#[test]
fn a_cluster_that_is_not_there_is_said_so_soon() {
    for args in
        [&["status"][..], &["get", "t", "row"], &["table", "list"], &["table", "create", "t", "--families", "f"]]
    {
        let asked = std::time::Instant::now();
        let text = uruk_fails(&[args, &["--master", "127.0.0.1:1"]].concat());
        assert!(text.contains("127.0.0.1:1") && text.contains("uruk dev"), "{text}");
        assert!(asked.elapsed() < std::time::Duration::from_secs(8), "{args:?} took {:?}", asked.elapsed());
    }
}

#[test]
fn help_of_every_process_is_there() {
    for process in ["master", "tabletserver", "dfs-controller", "chunkserver"] {
        assert!(uruk_ok(&[process, "--help"]).contains("--listen"), "{process}");
    }
}
