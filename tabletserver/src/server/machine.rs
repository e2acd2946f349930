//! What the operating system says of this process and of what it may use.
//!
//! Not through `Env::disk`: these are no files, and simulation leaves them out.

use std::num::NonZeroUsize;

use uruk_base::process::{named, own_usage};

/// What the process has used; zeros where the system does not tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Resident memory.
    pub memory_bytes: u64,
    /// Processor time since it began.
    pub cpu_micros: u64,
    /// Bytes sent to disks since it began.
    pub disk_bytes_written: u64,
}

/// What the process may use; zeros where the system does not tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// Memory of its control group or machine.
    pub memory_bytes: u64,
    /// Processors, in thousandths.
    pub cpus_milli: u32,
}

fn text(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn field(text: &str, at: usize) -> Option<u64> {
    text.split_whitespace().nth(at).and_then(|field| field.parse().ok())
}

impl Usage {
    /// Asks the system.
    pub fn now() -> Usage {
        let own = own_usage();
        Usage {
            memory_bytes: own.memory_bytes,
            cpu_micros: own.cpu.as_micros() as u64,
            disk_bytes_written: named(&text("/proc/self/io"), "write_bytes:").unwrap_or(0),
        }
    }
}

impl Limits {
    /// Asks the system; they do not change while the process runs.
    pub fn now() -> Limits {
        let machine = named(&text("/proc/meminfo"), "MemTotal:").map_or(0, |kibibytes| kibibytes * 1024);
        // "max" without a limit.
        let group = field(&text("/sys/fs/cgroup/memory.max"), 0).unwrap_or(u64::MAX);
        let all = std::thread::available_parallelism().map_or(1, NonZeroUsize::get) as u64 * 1000;
        let quota = text("/sys/fs/cgroup/cpu.max");
        let share = match (field(&quota, 0), field(&quota, 1)) {
            (Some(micros), Some(period @ 1..)) => micros * 1000 / period,
            (None, _) | (_, None) | (_, Some(0)) => u64::MAX,
        };
        Limits { memory_bytes: machine.min(group), cpus_milli: all.min(share) as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_uses_memory_within_its_limits() {
        let (usage, limits) = (Usage::now(), Limits::now());
        assert!(usage.memory_bytes > 1 << 20 && usage.memory_bytes < limits.memory_bytes, "{usage:?} {limits:?}");
        assert!(limits.cpus_milli >= 100);
    }

    #[test]
    fn a_limit_that_is_no_number_is_none() {
        assert_eq!((field("max 100000", 0), field("max 100000", 1)), (None, Some(100_000)));
    }
}
