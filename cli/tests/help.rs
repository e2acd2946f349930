//! The binary starts and explains itself. (This test also makes `cargo test` build the binary, which
//! the drills in `tests/` run.)

use std::process::Command;

fn uruk(args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_uruk")).args(args).output().expect("uruk starts");
    (
        output.status.code(),
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
    )
}

#[test]
fn help_names_every_command() {
    let (code, text) = uruk(&["--help"]);
    assert_eq!(code, Some(0));
    for command in [
        "demo",
        "dev",
        "table",
        "tablet",
        "server",
        "balance",
        "check",
        "cluster",
        "put",
        "get",
        "scan",
        "import",
        "status",
        "drill",
        "bench",
        "master",
        "tabletserver",
        "dfs-controller",
        "chunkserver",
    ] {
        assert!(text.contains(command), "{command} is not in:\n{text}");
    }
}

#[test]
fn unknown_flags_are_refused_and_named() {
    let (code, text) = uruk(&["dev", "--tablet-server", "3"]);
    assert_eq!(code, Some(2));
    assert!(text.contains("--tablet-server") && text.contains("--tablet-servers"), "{text}");
}

#[test]
fn a_bad_name_is_refused_with_what_to_do() {
    for (args, wanted) in [
        (vec!["server", "drain", "three"], "uruk server list"),
        (vec!["tablet", "move", "1", "--to", "x"], "uruk server list"),
        (vec!["table", "create", "t", "--families", "f", "--split-bytes", "1X"], "512MiB"),
        (vec!["table", "create", "t", "--families", "f", "--salt", "257"], "256"),
        (vec!["cluster", "restart"], "--rolling"),
        (vec!["table", "alter", "t", "--group", "1:gzip"], "compression"),
    ] {
        let (code, text) = uruk(&args);
        assert_eq!(code, Some(2), "{args:?}");
        assert!(text.contains(wanted), "{args:?}: {text}");
    }
}

#[test]
fn a_missing_option_is_named() {
    let (code, text) = uruk(&["chunkserver", "--listen", "127.0.0.1:0"]);
    assert_eq!(code, Some(2));
    assert!(text.contains("--dir is missing"), "{text}");
}

#[test]
#[allow(clippy::disallowed_methods)] // a user's file
fn bad_toml_is_refused_with_file_and_key() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let file = dir.path().join("cs.toml");
    std::fs::write(&file, "dir = \"/x\"\nlisten_on = \"127.0.0.1:0\"\n").expect("writes");
    let (code, text) = uruk(&["chunkserver", "--config", file.to_str().expect("text")]);
    assert_eq!(code, Some(2));
    assert!(text.contains("cs.toml") && text.contains("listen_on"), "{text}");
}

#[test]
fn a_cluster_that_is_not_there_is_said_so() {
    let (code, text) = uruk(&["table", "list", "--master", "127.0.0.1:1"]);
    assert_eq!(code, Some(2));
    assert!(text.contains("127.0.0.1:1") && text.contains("uruk dev"), "{text}");
}
