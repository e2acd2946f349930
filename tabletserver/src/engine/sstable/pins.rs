//! Memory beside the block cache: what of open files stays for as long as they are open, within limits.

use uruk_base::Metrics;
use uruk_base::metrics::Gauge;

/// Memory for index partitions and filters that are pinned: read once, then kept for as long as their file is open,
/// so that no scan pushes them out. Beyond the limit they go through the block cache, at high priority.
#[derive(Debug)]
pub struct IndexPins {
    bytes_max: u64,
    pub(super) bytes: Gauge,
}

impl IndexPins {
    /// Nothing is pinned.
    pub fn new(bytes_max: u64, metrics: &Metrics) -> IndexPins {
        let bytes = metrics.register(
            "uruk_tabletserver_index_pinned_bytes",
            "Index partitions and filters kept in memory beside the block cache.",
            Gauge::default(),
        );
        IndexPins { bytes_max, bytes }
    }

    /// Bytes that are pinned.
    pub fn bytes(&self) -> u64 {
        self.bytes.get().max(0) as u64
    }

    pub(super) fn has_room(&self) -> bool {
        self.bytes() < self.bytes_max
    }
}

/// Memory for the blocks of in-memory locality groups: read once, then kept for as long as their file is
/// open.
#[derive(Debug)]
pub struct Resident {
    bytes_max: u64,
    pub(super) bytes: Gauge,
}

impl Resident {
    /// Nothing is kept.
    pub fn new(bytes_max: u64, metrics: &Metrics) -> Resident {
        let bytes = metrics.register(
            "uruk_tabletserver_in_memory_group_bytes",
            "Blocks of in-memory locality groups, kept beside the block cache.",
            Gauge::default(),
        );
        Resident { bytes_max, bytes }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.get().max(0) as u64
    }

    pub(super) fn has_room(&self) -> bool {
        self.bytes() < self.bytes_max
    }
}
