//! Drills on real processes and checks of the workspace itself; see `tests/`.
//!
//! Everything here goes through the `uruk` binary, as a user would.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The `uruk` binary of the build that this test belongs to.
pub fn uruk_binary() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let folder = test.parent().and_then(|deps| deps.parent()).expect("tests are built into <target>/<profile>/deps");
    let binary = folder.join("uruk");
    assert!(binary.exists(), "{} is missing: run `cargo test --workspace`, or `cargo build` first", binary.display());
    binary
}

/// Runs `uruk` to its end.
pub fn uruk(args: &[&str]) -> Output {
    Command::new(uruk_binary()).args(args).stdin(Stdio::null()).output().expect("uruk starts")
}

/// Runs `uruk`, which must succeed, and returns what it printed.
pub fn uruk_ok(args: &[&str]) -> String {
    let output = uruk(args);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "uruk {args:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

/// Runs `uruk`, which must fail, and returns what it said.
pub fn uruk_fails(args: &[&str]) -> String {
    let output = uruk(args);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success(), "uruk {args:?} succeeds:\n{text}");
    text
}

/// Runs a drill, whose last line is one JSON object.
pub fn drill(args: &[&str]) -> serde_json::Value {
    let text = uruk_ok(&[&["drill"], args, &["--json"]].concat());
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|error| panic!("not JSON ({error}): {text}"))
}

/// Kills a process as `kill -9` does.
pub fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it lives");
}

/// Whether a process runs; one that has ended and was not waited for does not.
pub fn lives(pid: u32) -> bool {
    #[allow(clippy::disallowed_methods)] // the kernel's, not a part of uruk
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, after)| !after.trim_start().starts_with(['Z', 'X']))
}

/// Waits until something holds of real processes; panics when that takes longer than `limit`.
#[allow(clippy::disallowed_methods)] // real processes, real time
pub fn wait_until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What a page answers.
pub fn http_get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the page answers");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").expect("asks");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("text");
    answer
}

/// A running `uruk dev` on free ports.
pub struct Dev {
    child: Child,
    /// One JSON object per process: name, role, pid, worker_pid, address.
    pub processes: Vec<serde_json::Value>,
    /// The masters' addresses.
    pub masters: Vec<String>,
    /// The same, as `--master` takes them.
    pub master: String,
    /// The status page.
    pub status_page: String,
}

impl Dev {
    /// Starts it and waits until it serves.
    pub fn start(args: &[&str]) -> Dev {
        let mut child = Command::new(uruk_binary())
            .args(["dev", "--json", "--port-base", "0"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("uruk starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut processes = Vec::new();
        for line in &mut lines {
            let line: serde_json::Value = serde_json::from_str(&line.expect("text")).expect("JSON");
            if let (Some(masters), Some(page)) = (line["masters"].as_array(), line["status_page"].as_str()) {
                let masters: Vec<String> =
                    masters.iter().map(|master| master.as_str().expect("an address").to_owned()).collect();
                let (master, status_page) = (masters.join(","), page.to_owned());
                // Keep the pipe open and empty, so that dev never blocks on it.
                #[allow(clippy::disallowed_methods)] // ends with the child
                std::thread::spawn(move || lines.for_each(drop));
                return Dev { child, processes, masters, master, status_page };
            }
            processes.push(line);
        }
        let status = child.wait().expect("dev ends");
        panic!("uruk dev {args:?} does not start: {status}");
    }

    /// The pid of a process by its name.
    pub fn pid(&self, name: &str) -> u32 {
        let process = self.processes.iter().find(|process| process["name"] == name);
        process.and_then(|process| process["pid"].as_u64()).unwrap_or_else(|| panic!("no process {name}")) as u32
    }

    /// The pid of a tablet server's worker, as it was at the start.
    pub fn worker_pid(&self, name: &str) -> u32 {
        let process = self.processes.iter().find(|process| process["name"] == name);
        process.and_then(|process| process["worker_pid"].as_u64()).unwrap_or_else(|| panic!("no worker {name}")) as u32
    }

    /// What the leader tells under `/api/v1/`.
    pub fn api(&self, path: &str) -> serde_json::Value {
        let page = self.status_page.trim_start_matches("http://").trim_end_matches('/');
        let answer = http_get(page, &format!("/api/v1/{path}"));
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str(body).unwrap_or_else(|error| panic!("not JSON ({error}): {answer}"))
    }

    /// Kills it as `kill -9` does.
    pub fn kill(mut self) {
        self.child.kill().expect("dev lives");
        self.child.wait().expect("dev ends");
    }

    /// `uruk ARGS --master <this cluster>`, which must succeed.
    pub fn ok(&self, args: &[&str]) -> String {
        uruk_ok(&[args, &["--master", &self.master]].concat())
    }

    /// `uruk ARGS --master <this cluster>`, which must fail.
    pub fn fails(&self, args: &[&str]) -> String {
        uruk_fails(&[args, &["--master", &self.master]].concat())
    }

    /// Ends it as Ctrl-C does, and checks that it ends well; returns how long that took.
    #[allow(clippy::disallowed_methods)] // real processes, real time
    pub fn interrupt(mut self) -> Duration {
        let asked = Instant::now();
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("dev lives");
        let status = self.child.wait().expect("dev ends");
        assert!(status.success(), "dev ends with {status}");
        asked.elapsed()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Its processes end with it: they hold pipes from it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
