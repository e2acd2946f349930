//! Which files to merge: HBase's exploring policy, as a pure function.
//!
//! Of all runs of neighbouring files, `files_min` to `files_max` long, in which no file is larger than
//! `ratio` times the sum of the others, it takes the longest, and of those the smallest. So every byte is
//! rewritten about a logarithmic number of times, and small files don't pile up.

use super::super::config::EngineConfig;

/// Why a compaction runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// A run of files of similar size.
    Ratio,
    /// So many files that the ratio no longer counts.
    Stuck,
    /// Somebody asked for a major compaction.
    Requested,
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

/// Picks a run out of files of these sizes, given in the order of their sequence numbers.
pub fn pick(bytes: &[u64], config: &EngineConfig) -> Option<Pick> {
    let found = runs(bytes, config).filter(|run| within_ratio(&bytes[run.0..run.1], config)).min_by_key(|run| {
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
    let (start, end) = runs(bytes, config).min_by_key(|run| (total(&bytes[run.0..run.1]), run.0))?;
    Some(Pick { start, end, reason: Reason::Stuck })
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
                "files" => files = rest.iter().map(|word| mib(word)).collect(),
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
}
