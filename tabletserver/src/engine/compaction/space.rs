//! What compactions of all files would leave: what space amplification is measured by.
//!
//! Runs that have no keys in common all stay; of runs whose keys overlap the smaller ones are taken to overwrite or
//! delete something in the larger ones. So what stays is the heaviest set of runs of which no two overlap. RocksDB's
//! estimates do the same: a level's files are disjoint and all count, upper levels count as overhead over the last
//! one, and universal compaction compares all runs with the largest (oldest) one.
//!
//! It is an estimate that errs both ways: new cells beside old ones in the same key range look like overhead until
//! they are merged, and what is deleted, expired or one version too many within a run looks kept. It needs no reading.

use super::super::sstable::FileHandle;

/// Where a run's keys end; ordered by that.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct End<'a> {
    /// It has no end.
    pub is_open: bool,
    /// The last key, or the first one beyond.
    pub key: &'a [u8],
    /// Whether the key itself is of the run.
    pub is_included: bool,
}

impl End<'_> {
    fn is_before(&self, low: &[u8]) -> bool {
        !self.is_open && (self.key < low || self.key == low && !self.is_included)
    }
}

/// A file, as far as a tablet's reference covers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run<'a> {
    /// No key of it is lower.
    pub low: &'a [u8],
    /// Nor beyond this.
    pub end: End<'a>,
    /// Stored bytes.
    pub bytes: u64,
}

impl Run<'_> {
    /// The keys that the reference covers, and that the file has as far as is known.
    pub fn of(file: &FileHandle) -> Run<'_> {
        let known = file.file.properties().map(|known| (&known.key_min[..], &known.key_max[..]));
        let (low, last) = known.unwrap_or_default();
        let high = file.high();
        let end = match (high.is_empty(), last.is_empty()) {
            (is_open, true) => End { is_open, key: high, is_included: false },
            (false, false) if high <= last => End { is_open: false, key: high, is_included: false },
            (_, false) => End { is_open: false, key: last, is_included: true },
        };
        Run { low: low.max(file.low()), end, bytes: file.reference.bytes }
    }
}

/// Bytes that a compaction of all these runs of one locality group would leave, estimated.
pub fn kept_bytes(mut runs: Vec<Run<'_>>) -> u64 {
    runs.sort_by_key(|run| run.end);
    // The most bytes of disjoint runs among the first n.
    let mut best: Vec<u64> = vec![0];
    for (i, run) in runs.iter().enumerate() {
        let apart = runs[..i].partition_point(|other| other.end.is_before(run.low));
        best.push(best[i].max(best[apart].saturating_add(run.bytes)));
    }
    best.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `10a-c` has 10 bytes and keys from a to c, `10a-<c` those below c, `10a-` those from a on.
    fn run(word: &str) -> Run<'_> {
        let at = word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len());
        let (low, end) = word[at..].split_once('-').unwrap();
        let key = end.trim_start_matches('<').as_bytes();
        let end = End { is_open: end.is_empty(), key, is_included: !end.starts_with('<') };
        Run { low: low.as_bytes(), end, bytes: word[..at].parse().unwrap() }
    }

    #[test]
    fn of_runs_that_overlap_the_heaviest_disjoint_ones_stay() {
        for (runs, kept) in [
            ("", 0),
            ("100a-z", 100),
            ("100a-z 10c-d", 100),
            ("10c-d 100a-z 30x-zz", 100),
            // Sorted input: nothing is overhead.
            ("10a-b 10c-d 10e-f", 30),
            ("10e-f 10a-b 10c-d", 30),
            ("10a-c 20b-e 10d-g 5x-y", 25),
            ("10a-c 10c-e", 10),
            // References to the two sides of a split.
            ("10a-<c 10c-e", 20),
            ("10a-<c 10c-", 20),
            ("10-<c 10c- 5-", 20),
            // A small wide run does not make overhead of those beneath it.
            ("1a-z 10b-c 10d-e", 20),
            ("10a-b 10c-d 7-", 20),
            ("10a-b 10c-d 27-", 27),
            ("7-", 7),
        ] {
            assert_eq!(kept_bytes(runs.split_whitespace().map(run).collect()), kept, "{runs}");
        }
    }
}
