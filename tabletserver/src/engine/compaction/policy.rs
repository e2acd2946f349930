//! Which files to merge: HBase's exploring policy, as a pure function.
//!
//! Of all runs of neighbouring files, `files_min` to `files_max` long, in which no file is larger than
//! `ratio` times the sum of the others, it takes the longest, and of those the smallest. So every byte is
//! rewritten about a logarithmic number of times, and small files don't pile up.

use bytes::Bytes;
use uruk_proto::schema::{GcRule, TableSchema};

use super::super::config::EngineConfig;
use super::super::sstable::Properties;

/// Why a compaction runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// A run of files of similar size.
    Ratio,
    /// So many files that the ratio no longer counts.
    Stuck,
    /// Too many of the entries are deletions.
    Deletions,
    /// Too many of the cells are past their age.
    Expired,
    /// It is long ago that the files were merged.
    Age,
    /// A family has moved to another locality group.
    Moved,
    /// Somebody asked for a major compaction.
    Requested,
}

impl Reason {
    /// In a word, for people.
    pub fn word(self) -> &'static str {
        match self {
            Reason::Ratio => "ratio",
            Reason::Stuck => "stuck",
            Reason::Deletions => "deletions",
            Reason::Expired => "expired",
            Reason::Age => "age",
            Reason::Moved => "moved",
            Reason::Requested => "requested",
        }
    }
}

/// The files to merge, as indices into the list that was given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pick {
    /// First file.
    pub start: usize,
    /// First file beyond.
    pub end: usize,
    /// Why.
    pub reason: Reason,
}

/// What the choice knows of a file.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct FileFacts {
    /// Stored bytes.
    pub bytes: u64,
    /// What it says about itself; None when it has not been read by this process, nor written.
    pub known: Option<KnownFacts>,
}

/// What is read from a file's properties.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct KnownFacts {
    /// First key.
    pub key_min: Bytes,
    /// Last key.
    pub key_max: Bytes,
    /// Cells.
    pub cells: u64,
    /// Deletions.
    pub deletions: u64,
    /// Oldest timestamp of a cell.
    pub timestamp_min: i64,
    /// Newest timestamp of a cell.
    pub timestamp_max: i64,
    /// When it was written; 0 for unknown. Microseconds, as all times here.
    pub written_micros: i64,
}

impl KnownFacts {
    /// What is known of two files together.
    pub fn merge(self, other: KnownFacts) -> KnownFacts {
        KnownFacts {
            key_min: self.key_min.min(other.key_min),
            key_max: self.key_max.max(other.key_max),
            cells: self.cells + other.cells,
            deletions: self.deletions + other.deletions,
            timestamp_min: self.timestamp_min.min(other.timestamp_min),
            timestamp_max: self.timestamp_max.max(other.timestamp_max),
            written_micros: self.written_micros.min(other.written_micros),
        }
    }
}

impl From<&Properties> for KnownFacts {
    fn from(properties: &Properties) -> KnownFacts {
        KnownFacts {
            key_min: properties.key_min.clone(),
            key_max: properties.key_max.clone(),
            cells: properties.cells,
            deletions: properties.deletions,
            timestamp_min: properties.timestamp_min,
            timestamp_max: properties.timestamp_max,
            written_micros: properties.written_micros,
        }
    }
}

/// Picks a run out of files, given in the order of their sequence numbers.
///
/// A run of which no two files have keys in common is left alone, unless all are small: a read skips all but one of them anyhow,
/// and whoever writes in key order would pay for merging what is sorted already.
pub fn pick(files: &[FileFacts], config: &EngineConfig) -> Option<Pick> {
    let bytes: Vec<u64> = files.iter().map(|file| file.bytes).collect();
    let found = runs(&bytes, config)
        .filter(|run| within_ratio(&bytes[run.0..run.1], config) && is_worth_it(&files[run.0..run.1], config))
        .min_by_key(|run| {
            let len = run.1 - run.0;
            (std::cmp::Reverse(len), total(&bytes[run.0..run.1]))
        });
    if let Some((start, end)) = found {
        return Some(Pick { start, end, reason: Reason::Ratio });
    }
    if bytes.len() < config.compaction_files_stuck {
        return None;
    }
    // The cheapest way to have fewer files.
    let (start, end) = runs(&bytes, config).min_by_key(|run| (total(&bytes[run.0..run.1]), run.0))?;
    Some(Pick { start, end, reason: Reason::Stuck })
}

/// Whether it is time to merge all files of a group. `age_max` is the largest age that its families keep
/// (None: some keeps for ever). Files of which nothing is known count for nothing.
pub fn major_reason(
    files: &[FileFacts],
    age_max_micros: Option<u64>,
    now_micros: i64,
    config: &EngineConfig,
) -> Option<Reason> {
    let known = || files.iter().filter_map(|file| file.known.as_ref());
    let cells: u64 = known().map(|file| file.cells).sum();
    let deletions: u64 = known().map(|file| file.deletions).sum();
    if deletions as f64 > (cells + deletions) as f64 * config.compaction_deletions_share_max {
        return Some(Reason::Deletions);
    }
    if let Some(age) = age_max_micros {
        let cutoff = now_micros.saturating_sub(i64::try_from(age).unwrap_or(i64::MAX));
        let expired: f64 = known().map(|file| file.cells as f64 * expired_share(file, cutoff)).sum();
        if expired > cells as f64 * config.compaction_expired_share_max {
            return Some(Reason::Expired);
        }
    }
    let age_max = i64::try_from(config.compaction_age_seconds_max.saturating_mul(1_000_000)).unwrap_or(i64::MAX);
    let is_old =
        |file: &KnownFacts| file.written_micros > 0 && now_micros.saturating_sub(file.written_micros) > age_max;
    let has_use = files.len() > 1 || deletions > 0;
    (age_max > 0 && has_use && known().any(is_old)).then_some(Reason::Age)
}

/// The largest age that the families of a group keep; None when one of them keeps cells for ever.
pub fn age_max(schema: &TableSchema, group: u32) -> Option<u64> {
    let families = schema.families.iter().filter(|family| family.locality_group == group);
    longest(families.map(|family| age_bound(&family.gc)))
}

/// The age that no cell outlives under this rule, whatever its version; None when some may.
pub fn age_bound(rule: &GcRule) -> Option<u64> {
    match rule {
        GcRule::MaxAge(age) => Some(*age),
        GcRule::KeepAll | GcRule::MaxVersions(_) => None,
        // Any of them lets go, so the shortest counts; all of them must, so the longest does.
        GcRule::Union(rules) => rules.iter().filter_map(age_bound).min(),
        GcRule::Intersection(rules) => longest(rules.iter().map(age_bound)),
    }
}

/// The longest of ages, where None is without end; None also without any.
pub fn longest(ages: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    ages.max_by_key(|age| age.unwrap_or(u64::MAX)).flatten()
}

/// The share of the cells that are older than `cutoff`, as if their times were spread evenly.
fn expired_share(file: &KnownFacts, cutoff: i64) -> f64 {
    if file.timestamp_max < cutoff {
        return 1.0;
    }
    if file.timestamp_min >= cutoff {
        return 0.0;
    }
    (cutoff as f64 - file.timestamp_min as f64) / (file.timestamp_max as f64 - file.timestamp_min as f64 + 1.0)
}

/// Whether reads gain by a merge: two files of the run may have keys in common, or all are small.
fn is_worth_it(run: &[FileFacts], config: &EngineConfig) -> bool {
    if run.iter().all(|file| file.bytes <= config.compaction_ratio_exempt_bytes) {
        return true;
    }
    let both = |a: &FileFacts, b: &FileFacts| match (&a.known, &b.known) {
        (Some(a), Some(b)) => a.key_min <= b.key_max && b.key_min <= a.key_max,
        _ => true,
    };
    run.iter().enumerate().any(|(i, a)| run[i + 1..].iter().any(|b| both(a, b)))
}

/// All runs of acceptable length and size.
fn runs<'a>(bytes: &'a [u64], config: &'a EngineConfig) -> impl Iterator<Item = (usize, usize)> + 'a {
    (0..bytes.len())
        .flat_map(|start| {
            (config.compaction_files_min..=config.compaction_files_max).map(move |len| (start, start + len))
        })
        .filter(|run| run.1 <= bytes.len())
        .filter(|run| total(&bytes[run.0..run.1]) <= config.compaction_bytes_max)
}

fn within_ratio(run: &[u64], config: &EngineConfig) -> bool {
    let total = total(run);
    run.iter().all(|bytes| {
        *bytes <= config.compaction_ratio_exempt_bytes
            || *bytes as f64 <= (total - *bytes) as f64 * config.compaction_ratio
    })
}

fn total(run: &[u64]) -> u64 {
    run.iter().fold(0, |sum, bytes| sum.saturating_add(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `testdata/compaction_pick.txt`: blocks of `files SIZES..` (MiB), optional `KEY VALUE`
    /// settings that hold from there on, and `expect START..END REASON | none`.
    #[test]
    fn picks_what_the_script_says() {
        let script = include_str!("../testdata/compaction_pick.txt");
        let mut config = EngineConfig { compaction_ratio_exempt_bytes: 0, ..EngineConfig::default() };
        let mut files = Vec::new();
        let mut cases = 0;
        for (number, line) in script.lines().enumerate() {
            let mut words = line.split('#').next().unwrap().split_whitespace();
            let Some(first) = words.next() else { continue };
            let rest: Vec<&str> = words.collect();
            let mib = |word: &str| word.parse::<u64>().unwrap() << 20;
            match first {
                "files" => files = rest.iter().map(|word| FileFacts { bytes: mib(word), known: None }).collect(),
                // Keys of the files before, as FIRST-LAST each.
                "keys" => {
                    for (file, word) in files.iter_mut().zip(&rest) {
                        let (min, max) = word.split_once('-').unwrap();
                        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
                        let known = KnownFacts { key_min: bytes(min), key_max: bytes(max), ..KnownFacts::default() };
                        file.known = Some(known);
                    }
                }
                "ratio" => config.compaction_ratio = rest[0].parse().unwrap(),
                "exempt" => config.compaction_ratio_exempt_bytes = mib(rest[0]),
                "files_max" => config.compaction_files_max = rest[0].parse().unwrap(),
                "bytes_max" => config.compaction_bytes_max = mib(rest[0]),
                "expect" => {
                    let picked = match pick(&files, &config) {
                        None => "none".to_owned(),
                        Some(Pick { start, end, reason }) => format!("{start}..{end} {reason:?}"),
                    };
                    assert_eq!(picked, rest.join(" "), "line {}: {files:?}", number + 1);
                    cases += 1;
                }
                other => panic!("line {}: unknown word {other}", number + 1),
            }
        }
        assert!(cases > 12, "{cases} cases");
    }

    const DAY: i64 = 24 * 3600 * 1_000_000;

    fn known(cells: u64, deletions: u64, timestamps: (i64, i64), written_micros: i64) -> FileFacts {
        let (timestamp_min, timestamp_max) = timestamps;
        let known =
            KnownFacts { cells, deletions, timestamp_min, timestamp_max, written_micros, ..KnownFacts::default() };
        FileFacts { bytes: 1, known: Some(known) }
    }

    #[test]
    fn major_compactions_are_due_by_deletions_expired_cells_and_age() {
        let config = EngineConfig::default();
        let now = 100 * DAY;
        let reason = |files: &[FileFacts], age: Option<u64>| major_reason(files, age, now, &config);
        let young = (now - DAY, now);
        assert_eq!(reason(&[known(70, 29, young, now)], None), None);
        assert_eq!(reason(&[known(60, 40, young, now)], None), Some(Reason::Deletions));
        assert_eq!(reason(&[known(60, 40, young, now), known(900, 0, young, now)], None), None);
        let ten_days = Some(10 * DAY as u64);
        let spread = (now - 14 * DAY, now);
        assert_eq!(reason(&[known(100, 0, spread, now)], ten_days), None, "four of fourteen days");
        assert_eq!(reason(&[known(100, 0, (now - 20 * DAY, now), now)], ten_days), Some(Reason::Expired));
        assert_eq!(reason(&[known(100, 0, (now - 20 * DAY, now), now)], None), None, "kept for ever");
        let old = now - 8 * DAY;
        assert_eq!(reason(&[known(100, 1, young, old)], None), Some(Reason::Age));
        assert_eq!(reason(&[known(100, 0, young, old)], None), None, "alone and clean: nothing to gain");
        assert_eq!(reason(&[known(100, 0, young, old), known(100, 0, young, now)], None), Some(Reason::Age));
        assert_eq!(reason(&[FileFacts::default(), FileFacts::default()], ten_days), None, "nothing is known");
    }
}
