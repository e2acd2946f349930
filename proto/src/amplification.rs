//! Write and space amplification, by what a tablet server (or a whole cluster, as a sum) has counted.
//!
//! | number | is | so that |
//! |---|---|---|
//! | write amplification | (log + flushed + written by compactions) / log | 1 is the least: everything is logged once |
//! | space amplification | bytes of files / bytes that compactions of all files would leave, estimated | 1 is the least |
//!
//! Both are about bytes before replication. The first counts from a server's start, so a server that flushes or
//! compacts what others have logged shows more than it causes. The second is an estimate, see the engine's
//! `compaction::space`.

use crate::master::MaintenanceTotals;

impl MaintenanceTotals {
    /// Bytes written to storage for each byte that users wrote; None before the first.
    pub fn write_amplification(&self) -> Option<f64> {
        let written = self.log_bytes as f64 + self.flushed_bytes as f64 + self.compaction_written_bytes as f64;
        (self.log_bytes > 0).then(|| written / self.log_bytes as f64)
    }

    /// Bytes of files for each byte that has to be there; None without files.
    pub fn space_amplification(&self) -> Option<f64> {
        (self.kept_bytes > 0).then(|| self.file_bytes as f64 / self.kept_bytes as f64)
    }

    /// Those of two servers together.
    pub fn plus(&self, other: &MaintenanceTotals) -> MaintenanceTotals {
        MaintenanceTotals {
            log_bytes: self.log_bytes.saturating_add(other.log_bytes),
            flushed_bytes: self.flushed_bytes.saturating_add(other.flushed_bytes),
            compaction_read_bytes: self.compaction_read_bytes.saturating_add(other.compaction_read_bytes),
            compaction_written_bytes: self.compaction_written_bytes.saturating_add(other.compaction_written_bytes),
            file_bytes: self.file_bytes.saturating_add(other.file_bytes),
            kept_bytes: self.kept_bytes.saturating_add(other.kept_bytes),
            flushes: self.flushes.saturating_add(other.flushes),
            compactions: self.compactions.saturating_add(other.compactions),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amplification_is_what_the_table_says() {
        // Log, flushed, written by compactions, files, kept; write and space amplification.
        for (log, flushed, compacted, files, kept, write, space) in [
            (0, 0, 0, 0, 0, None, None),
            (0, 500, 900, 0, 0, None, None),
            (100, 0, 0, 0, 0, Some(1.0), None),
            (100, 100, 0, 100, 100, Some(2.0), Some(1.0)),
            (100, 50, 150, 150, 100, Some(3.0), Some(1.5)),
            (1 << 40, 1 << 40, 8 << 40, 3 << 40, 1 << 40, Some(10.0), Some(3.0)),
            (u64::MAX, u64::MAX, u64::MAX, u64::MAX, 1, Some(3.0), Some(u64::MAX as f64)),
        ] {
            let totals = MaintenanceTotals {
                log_bytes: log,
                flushed_bytes: flushed,
                compaction_written_bytes: compacted,
                file_bytes: files,
                kept_bytes: kept,
                ..MaintenanceTotals::default()
            };
            assert_eq!((totals.write_amplification(), totals.space_amplification()), (write, space), "{totals:?}");
        }
    }

    #[test]
    fn what_compactions_read_is_not_written() {
        let totals = MaintenanceTotals { log_bytes: 10, compaction_read_bytes: 990, ..Default::default() };
        assert_eq!(totals.write_amplification(), Some(1.0));
    }

    #[test]
    fn a_cluster_s_amplification_weighs_servers_by_their_bytes() {
        let busy = MaintenanceTotals { log_bytes: 900, flushed_bytes: 900, ..Default::default() };
        let quiet = MaintenanceTotals { log_bytes: 100, compaction_written_bytes: 1_100, ..Default::default() };
        assert_eq!(busy.plus(&quiet).write_amplification(), Some(3.0));
    }
}
