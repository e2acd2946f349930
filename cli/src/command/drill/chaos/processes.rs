//! The processes of the local cluster as the kernel sees them: who is whose child, and signals that
//! reach nobody else.
//!
//! A pid alone names nothing for long: a signal is sent only to a process that, in this moment, still
//! is the child of who it should be, or began when it should have.

use std::path::Path;

use rustix::process::Signal;

use crate::cluster::LocalCluster;
use crate::command::drill::signal;

/// One process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Process {
    pub pid: u32,
    pub parent: u32,
    /// In ticks since boot: with the pid, it names one process for ever.
    pub started: u64,
    pub is_stopped: bool,
}

impl Process {
    /// The process that has this pid now.
    pub fn find(pid: u32) -> Option<Process> {
        let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
        parse_stat(&stat)
    }

    /// Whether it still runs.
    pub fn lives(&self) -> bool {
        Process::find(self.pid).is_some_and(|now| now.started == self.started)
    }

    /// Sends the signal if the process still runs; tells whether it did.
    pub fn signal(&self, what: Signal) -> bool {
        self.lives() && signal(self.pid, what).is_ok()
    }
}

/// The cluster's process of this name, if it runs.
pub fn named(cluster: &LocalCluster, name: &str) -> Option<Process> {
    let info = cluster.processes().into_iter().find(|process| process.name == name)?;
    Process::find(info.pid).filter(|process| process.parent == std::process::id())
}

/// The worker that a tablet server's parent watches, if it runs.
pub fn worker_of(parent: &Process) -> Option<Process> {
    let pids = std::fs::read_dir("/proc").ok()?.flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(Process::find).find(|process| process.parent == parent.pid)
}

/// `pid (name) state parent ...`; the name may hold anything, also parentheses. A zombie is none.
fn parse_stat(stat: &str) -> Option<Process> {
    let (before, after) = stat.rsplit_once(')')?;
    let pid = before.split_once(' ')?.0.parse().ok()?;
    let fields: Vec<&str> = after.split_ascii_whitespace().collect();
    let state = *fields.first()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    let (parent, started) = (fields.get(1)?.parse().ok()?, fields.get(19)?.parse().ok()?);
    Some(Process { pid, parent, started, is_stopped: state == "T" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_line_is_understood() {
        let line = "77 (a (b) c) T 12 77 12 0 -1 4194560 1 0 0 0 1 2 3 4 20 0 1 0 998877 100 5 18446744073709551615";
        let process = Process { pid: 77, parent: 12, started: 998_877, is_stopped: true };
        assert_eq!(parse_stat(line), Some(process));
        assert_eq!(parse_stat(&line.replace(") T ", ") Z ")), None);
        assert_eq!(parse_stat("nonsense"), None);
    }

    #[test]
    fn this_process_lives_and_its_pid_in_another_life_does_not() {
        let me = Process::find(std::process::id()).unwrap();
        assert!(me.lives());
        assert!(!Process { started: me.started + 1, ..me }.lives());
    }
}
