//! The engine's limits, by name.

use serde::{Deserialize, Serialize};
use uruk_proto::schema::{self, TableSchema};

use super::sstable::format::Compression;

/// Limits and sizes of the storage engine.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// Target size of a data or index block, before compression.
    pub block_bytes: usize,
    /// Entries between restart points of a data block.
    pub block_restart_interval: usize,
    /// How flushes and merging compactions pack blocks.
    pub compression: Compression,
    /// How major compactions do, whose output stays longest.
    pub compression_major: Compression,
    /// Bloom filter size, for each row (and each of its columns, where filters know them); 0 for none.
    pub bloom_bits_per_row: usize,
    /// A filter ends, and its index partition with it, with the data block that takes it to this size.
    pub filter_partition_bytes: usize,
    /// Files below this are written with one `put`, the others in parts.
    pub put_bytes_max: usize,
    /// Size of those parts.
    pub multipart_part_bytes: usize,
    /// Weight of all cached blocks of all tablets.
    pub block_cache_bytes: u64,
    /// Index partitions and filters of open files that stay in memory beside the cache; beyond it they go through
    /// the cache at high priority.
    pub index_pinned_bytes_max: u64,
    /// Blocks of files of in-memory locality groups that are kept whatever else is read; beyond it they go
    /// through the cache like any block.
    pub in_memory_bytes_max: u64,
    /// A scan that has put this much of one file into the cache puts no more of it there: what is read
    /// once must not push out what is read often.
    pub scan_cache_fill_bytes_max: u64,
    /// Most that a sequential reader fetches at once.
    pub readahead_bytes_max: usize,
    /// A batch of a scan ends at the first cell beyond this.
    pub scan_batch_bytes: usize,
    /// A scan yields (perhaps nothing but how far it got) after looking at this much.
    pub scan_step_bytes: usize,
    /// Unwanted entries that a scan steps over before it seeks instead.
    pub scan_steps_before_seek: u32,
    /// Bytes of entries that a flush or compaction handles in one piece of blocking work.
    pub merge_piece_bytes: usize,
    /// Frozen sets of memtables that may wait for their flush.
    pub frozen_sets_max: usize,
    /// Fewest files that a merging compaction takes.
    pub compaction_files_min: usize,
    /// Most files that a merging compaction takes.
    pub compaction_files_max: usize,
    /// No file of a merging compaction is larger than this times the sum of the others.
    pub compaction_ratio: f64,
    /// With this many files the ratio is ignored, so that reads don't degrade without end.
    pub compaction_files_stuck: usize,
    /// Files smaller than this are always within the ratio.
    pub compaction_ratio_exempt_bytes: u64,
    /// A file that a compaction writes ends with the row that takes it to this size.
    pub compaction_file_bytes: u64,
    /// All compactions of a server together write at most this much a second, and less while less will do;
    /// flushes never wait. 0: no limit.
    pub compaction_bytes_per_second_max: u64,
    /// Merging compactions leave larger inputs to major ones.
    pub compaction_bytes_max: u64,
    /// A major compaction is due when more than this share of a group's entries are deletions.
    pub compaction_deletions_share_max: f64,
    /// Or when more than this share of its cells is past its family's age, as far as can be told.
    pub compaction_expired_share_max: f64,
    /// Or when a file older than this still has deletions or shares its group with others; 0 for never.
    pub compaction_age_seconds_max: u64,
}

impl Default for EngineConfig {
    fn default() -> EngineConfig {
        EngineConfig {
            block_bytes: 16 << 10,
            block_restart_interval: 16,
            compression: Compression::Lz4,
            compression_major: Compression::Zstd,
            bloom_bits_per_row: 10,
            filter_partition_bytes: 32 << 10,
            put_bytes_max: 64 << 20,
            multipart_part_bytes: 8 << 20,
            block_cache_bytes: 256 << 20,
            index_pinned_bytes_max: 64 << 20,
            in_memory_bytes_max: 256 << 20,
            scan_cache_fill_bytes_max: 8 << 20,
            readahead_bytes_max: 1 << 20,
            scan_batch_bytes: 512 << 10,
            scan_step_bytes: 4 << 20,
            scan_steps_before_seek: 16,
            merge_piece_bytes: 1 << 20,
            frozen_sets_max: 8,
            compaction_files_min: 3,
            compaction_files_max: 10,
            compaction_ratio: 1.2,
            compaction_files_stuck: 16,
            compaction_ratio_exempt_bytes: 1 << 20,
            compaction_file_bytes: 256 << 20,
            compaction_bytes_per_second_max: 256 << 20,
            compaction_bytes_max: 2 << 30,
            compaction_deletions_share_max: 0.3,
            compaction_expired_share_max: 0.3,
            compaction_age_seconds_max: 7 * 24 * 3600,
        }
    }
}

/// How the files of one locality group are kept: what the schema says of it, else what the limits say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupOptions {
    /// Target size of a block, before compression.
    pub block_bytes: usize,
    /// How flushes and merging compactions pack blocks.
    pub compression: Compression,
    /// How major compactions do.
    pub compression_major: Compression,
    /// Blocks stay in memory once they were read, as far as `in_memory_bytes_max` allows.
    pub in_memory: bool,
    /// What files' filters know.
    pub filter: schema::FilterOn,
}

impl GroupOptions {
    /// Those of a group of a table.
    pub fn of(config: &EngineConfig, schema: &TableSchema, group: u32) -> GroupOptions {
        let group = schema.group(group);
        let (compression, compression_major) = match group.compression {
            schema::Compression::Auto => (config.compression, config.compression_major),
            schema::Compression::None => (Compression::Raw, Compression::Raw),
            schema::Compression::Lz4 => (Compression::Lz4, Compression::Lz4),
            schema::Compression::Zstd => (Compression::Zstd, Compression::Zstd),
        };
        let block_bytes = match group.block_bytes {
            0 => config.block_bytes,
            bytes => bytes as usize,
        };
        GroupOptions { block_bytes, compression, compression_major, in_memory: group.in_memory, filter: group.filter }
    }
}

/// A limit that makes no sense.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("engine.{field} {why}")]
pub struct ConfigError {
    /// Which field.
    pub field: &'static str,
    /// What is wrong with it.
    pub why: &'static str,
}

impl EngineConfig {
    /// Checks every limit.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let checks = [
            ((256..=4 << 20).contains(&self.block_bytes), "block_bytes", "is not within 256 bytes and 4 MiB"),
            ((1..=1024).contains(&self.block_restart_interval), "block_restart_interval", "is not within 1 and 1024"),
            (self.bloom_bits_per_row <= 64, "bloom_bits_per_row", "is above 64"),
            (
                (1..=4 << 20).contains(&self.filter_partition_bytes),
                "filter_partition_bytes",
                "is not within 1 byte and 4 MiB",
            ),
            (self.put_bytes_max <= 1 << 30, "put_bytes_max", "is above 1 GiB"),
            (
                (5 << 20..=1 << 30).contains(&self.multipart_part_bytes),
                "multipart_part_bytes",
                "is not within 5 MiB and 1 GiB",
            ),
            (self.readahead_bytes_max <= 64 << 20, "readahead_bytes_max", "is above 64 MiB"),
            ((1..=32 << 20).contains(&self.scan_batch_bytes), "scan_batch_bytes", "is not within 1 byte and 32 MiB"),
            (self.scan_step_bytes >= 1, "scan_step_bytes", "is 0"),
            (self.merge_piece_bytes >= 1, "merge_piece_bytes", "is 0"),
            (self.frozen_sets_max >= 1, "frozen_sets_max", "is 0"),
            (self.compaction_files_min >= 2, "compaction_files_min", "is below 2"),
            (
                self.compaction_files_max >= self.compaction_files_min,
                "compaction_files_max",
                "is below compaction_files_min",
            ),
            (self.compaction_ratio.is_finite() && self.compaction_ratio > 0.0, "compaction_ratio", "is not positive"),
            (
                self.compaction_files_stuck >= self.compaction_files_min,
                "compaction_files_stuck",
                "is below compaction_files_min",
            ),
            (self.compaction_bytes_max >= 1, "compaction_bytes_max", "is 0"),
            (self.compaction_file_bytes >= 1, "compaction_file_bytes", "is 0"),
            (self.compaction_deletions_share_max > 0.0, "compaction_deletions_share_max", "is not positive"),
            (self.compaction_expired_share_max > 0.0, "compaction_expired_share_max", "is not positive"),
        ];
        match checks.into_iter().find(|(holds, _, _)| !holds) {
            Some((_, field, why)) => Err(ConfigError { field, why }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        EngineConfig::default().validate().unwrap();
    }

    #[test]
    fn a_bad_limit_is_named() {
        let config = EngineConfig { compaction_files_max: 2, ..EngineConfig::default() };
        assert_eq!(
            config.validate().unwrap_err().to_string(),
            "engine.compaction_files_max is below compaction_files_min"
        );
    }
}
