//! What a process uses, as Linux tells it under `/proc`. Zeros elsewhere.
//!
//! Not through [`crate::Env`]: these are no files of ours, and nothing that is simulated asks.

use std::time::Duration;

/// Page size of every machine that we run on, in bytes.
const PAGE_BYTES: u64 = 4096;
/// Clock ticks of `/proc/PID/stat`: `USER_HZ` is 100 on Linux.
const TICK: Duration = Duration::from_millis(10);

/// What a process uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Of its process group: of whoever a local cluster started.
    pub group: u32,
    /// Processor time since it began.
    pub cpu: Duration,
    /// Resident memory.
    pub memory_bytes: u64,
}

/// Of this process.
pub fn own_usage() -> Usage {
    usage_of(std::process::id()).unwrap_or_default()
}

/// Of a process, if it runs.
pub fn usage_of(pid: u32) -> Option<Usage> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The most memory that was resident since this process began, in bytes.
pub fn own_memory_peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    named(&status, "VmHWM:").map_or(0, |kibibytes| kibibytes * 1024)
}

/// The number behind a name at the start of a line, as in `/proc/meminfo`.
pub fn named(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

fn parse(stat: &str) -> Option<Usage> {
    // The process's name may hold blanks; the fields are counted from behind its closing bracket.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Usage {
        group: number(2)? as u32,
        cpu: TICK * (number(11)? + number(12)?) as u32,
        memory_bytes: number(21)? * PAGE_BYTES,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_a_bracket_in_its_name_is_read() {
        let stat = "7 (a) b) S 1 5 5 0 -1 4194560 1 2 3 4 30 12 0 0 20 0 1 0 9 1000 25 18446744073709551615 1";
        let expected = Usage { group: 5, cpu: Duration::from_millis(420), memory_bytes: 25 * 4096 };
        assert_eq!(parse(stat), Some(expected));
        assert_eq!((parse("7 (a) S 1 5"), parse("")), (None, None));
    }

    #[test]
    fn numbers_are_found_by_name() {
        assert_eq!(named("MemFree: 3 kB\nMemTotal:  16 kB\n", "MemTotal:"), Some(16));
        assert_eq!((named("", "x"), named("x: y", "x:")), (None, None));
    }

    #[test]
    fn this_process_uses_memory_and_never_more_than_its_peak() {
        let own = own_usage();
        assert!(own.memory_bytes > 1 << 20 && own.group > 0, "{own:?}");
        assert!(own_memory_peak_bytes() >= own.memory_bytes / 2, "{own:?}");
    }
}
