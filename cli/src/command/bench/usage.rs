//! What processes use, as the operating system says: processor time beside throughput, since on a machine that
//! others use too it is the figure that stays the same.

use std::time::Duration;

/// Page size of every machine that we run on, in bytes.
const PAGE_BYTES: u64 = 4096;
/// Clock ticks of `/proc/PID/stat`: `USER_HZ` is 100 on Linux.
const TICK: Duration = Duration::from_millis(10);

/// One process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Of its process group: of whoever a local cluster started.
    pub group: u32,
    /// Since it began.
    pub cpu: Duration,
    /// Resident memory.
    pub memory_bytes: u64,
}

/// All processes of these groups. A tablet server's watching parent leads its worker's group.
pub fn of_groups(groups: &[u32]) -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(of).filter(|process| groups.contains(&process.group)).collect()
}

/// Processor time of this process so far.
pub fn own_cpu() -> Duration {
    of(std::process::id()).map_or(Duration::ZERO, |process| process.cpu)
}

/// This process, if it runs.
pub fn of(pid: u32) -> Option<Process> {
    parse(pid, &std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(pid: u32, stat: &str) -> Option<Process> {
    // The process's name may hold blanks; the fields are counted from behind its closing bracket.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Process {
        pid,
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
        let expected = Process { pid: 7, group: 5, cpu: Duration::from_millis(420), memory_bytes: 25 * 4096 };
        assert_eq!(parse(7, stat), Some(expected));
    }

    #[test]
    fn this_process_is_found_in_its_group() {
        let own = of(std::process::id()).expect("it runs");
        assert!(of_groups(&[own.group]).iter().any(|process| process.pid == own.pid));
        assert!(own.memory_bytes > 1 << 20);
    }
}
