//! What compactions of all files would leave: what space amplification is measured by.
//!
//! Runs whose keys overlap are taken as one heap, of which its largest run is what stays: everything smaller is
//! taken to overwrite or delete something in it. Runs that have no keys in common stay whole. RocksDB's estimates
//! do the same: a level's files are disjoint and all count, upper levels count as overhead over the last one, and
//! universal compaction compares all runs with the largest (oldest) one. It errs both ways: new cells beside old
//! ones in the same key range look like overhead until they are merged, and what is deleted or expired in the
//! largest run looks kept. The estimate needs no reading, and 1 is reached after every major compaction.

use bytes::Bytes;

use super::policy::FileFacts;

/// Bytes that a compaction of all these runs (sorted runs of one locality group) would leave, estimated. When
/// nothing is known of one of them it may overlap with all.
pub fn kept_bytes(runs: &[FileFacts]) -> u64 {
    let known: Option<Vec<(&Bytes, &Bytes, u64)>> =
        runs.iter().map(|run| run.known.as_ref().map(|known| (&known.key_min, &known.key_max, run.bytes))).collect();
    let Some(mut known) = known else { return runs.iter().map(|run| run.bytes).max().unwrap_or(0) };
    known.sort();
    let mut kept: u64 = 0;
    // Of the heap under way: its last key, its largest run.
    let mut heap: Option<(&Bytes, u64)> = None;
    for (min, max, bytes) in known {
        heap = match heap {
            Some((end, largest)) if min <= end => Some((end.max(max), largest.max(bytes))),
            Some((_, largest)) => {
                kept = kept.saturating_add(largest);
                Some((max, bytes))
            }
            None => Some((max, bytes)),
        };
    }
    kept.saturating_add(heap.map_or(0, |(_, largest)| largest))
}

#[cfg(test)]
mod tests {
    use super::super::policy::KnownFacts;
    use super::*;

    /// `10a-c` has 10 bytes and keys from a to c; of `10` nothing is known.
    fn run(word: &str) -> FileFacts {
        let at = word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len());
        let known = word[at..].split_once('-').map(|(min, max)| KnownFacts {
            key_min: Bytes::copy_from_slice(min.as_bytes()),
            key_max: Bytes::copy_from_slice(max.as_bytes()),
            ..KnownFacts::default()
        });
        FileFacts { bytes: word[..at].parse().unwrap(), known }
    }

    #[test]
    fn of_runs_that_overlap_the_largest_stays() {
        for (runs, kept) in [
            ("", 0),
            ("100a-z", 100),
            ("100a-z 10c-d", 100),
            ("10c-d 100a-z 30x-zz", 100),
            // Sorted input: nothing is overhead.
            ("10a-b 10c-d 10e-f", 30),
            ("10e-f 10a-b 10c-d", 30),
            // A chain is one heap; another one beside it.
            ("10a-c 20b-e 10d-g 5x-y", 25),
            ("10a-c 10c-e", 10),
            // A wide run holds those together that have nothing in common.
            ("1a-z 10b-c 10d-e", 10),
            ("10a-b 10c-d 7", 10),
            ("7", 7),
        ] {
            let facts: Vec<FileFacts> = runs.split_whitespace().map(run).collect();
            assert_eq!(kept_bytes(&facts), kept, "{runs}");
        }
    }
}
