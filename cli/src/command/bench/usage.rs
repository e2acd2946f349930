//! What processes use: processor time beside throughput, since on a machine that others use too it is the figure that
//! stays the same.

use std::time::Duration;

use uruk_base::process::{own_usage, usage_of};

/// Processor time of all processes of these groups so far. A tablet server's watching parent leads its worker's group.
pub fn cpu_of_groups(groups: &[u32]) -> Duration {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Duration::ZERO };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(usage_of).filter(|process| groups.contains(&process.group)).map(|process| process.cpu).sum()
}

/// Processor time of this process so far.
pub fn own_cpu() -> Duration {
    own_usage().cpu
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_in_its_group() {
        // Some processor time, so that there is something to be found.
        while own_cpu() < Duration::from_millis(20) {
            std::hint::black_box((0..1_000_000u64).sum::<u64>());
        }
        let own = own_cpu();
        assert!(cpu_of_groups(&[own_usage().group]) >= own);
        assert_eq!(cpu_of_groups(&[]), Duration::ZERO);
    }
}
