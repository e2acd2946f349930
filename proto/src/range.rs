//! Ranges of row keys.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Row keys in `[start, end)`. An empty `start` is before every key, an empty `end` after every key.
#[derive(Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct RowRange {
    /// First key; empty for no bound.
    pub start: Bytes,
    /// First key beyond; empty for no bound.
    pub end: Bytes,
}

impl RowRange {
    /// Every key.
    pub const ALL: RowRange = RowRange { start: Bytes::new(), end: Bytes::new() };

    /// Keys in `[start, end)`; empty means unbounded.
    pub fn new(start: impl Into<Bytes>, end: impl Into<Bytes>) -> RowRange {
        RowRange { start: start.into(), end: end.into() }
    }

    /// Exactly one key.
    pub fn single(row: &[u8]) -> RowRange {
        let mut end = Vec::with_capacity(row.len() + 1);
        end.extend_from_slice(row);
        end.push(0);
        RowRange { start: Bytes::copy_from_slice(row), end: end.into() }
    }

    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: &[u8]) -> RowRange {
        let mut end = prefix.to_vec();
        while let Some(last) = end.last_mut() {
            if *last < 0xFF {
                *last += 1;
                break;
            }
            end.pop();
        }
        RowRange { start: Bytes::copy_from_slice(prefix), end: end.into() }
    }

    /// Whether no key lies in it.
    pub fn is_empty(&self) -> bool {
        !self.end.is_empty() && self.start >= self.end
    }

    /// Whether `row` lies in it.
    pub fn contains(&self, row: &[u8]) -> bool {
        self.start[..] <= *row && self.is_before_end(row)
    }

    /// Whether `row` lies before the end.
    pub fn is_before_end(&self, row: &[u8]) -> bool {
        self.end.is_empty() || *row < self.end[..]
    }

    /// Whether all of `other` lies in it.
    pub fn covers(&self, other: &RowRange) -> bool {
        other.is_empty()
            || (self.start <= other.start && (self.end.is_empty() || (!other.end.is_empty() && other.end <= self.end)))
    }

    /// The keys that lie in both; possibly empty.
    pub fn intersect(&self, other: &RowRange) -> RowRange {
        let start = self.start.clone().max(other.start.clone());
        let end = match (self.end.is_empty(), other.end.is_empty()) {
            (true, _) => other.end.clone(),
            (_, true) => self.end.clone(),
            (false, false) => self.end.clone().min(other.end.clone()),
        };
        RowRange { start, end }
    }
}

impl fmt::Debug for RowRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", show_key(&self.start, "-inf"), show_key(&self.end, "+inf"))
    }
}

fn show_key(key: &[u8], unbounded: &str) -> String {
    if key.is_empty() { unbounded.to_owned() } else { format!("\"{}\"", key.escape_ascii()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_ends_after_its_last_key() {
        assert_eq!(RowRange::prefix(b"ab"), RowRange::new("ab", "ac"));
        assert_eq!(RowRange::prefix(b"a\xff"), RowRange::new(&b"a\xff"[..], "b"));
        assert_eq!(RowRange::prefix(b"\xff"), RowRange::new(&b"\xff"[..], ""));
        assert_eq!(RowRange::prefix(b""), RowRange::ALL);
    }

    #[test]
    fn intersections_and_covers_agree() {
        let bounds = ["", "a", "b", "c"];
        let all: Vec<RowRange> =
            bounds.iter().flat_map(|s| bounds.iter().map(move |e| RowRange::new(*s, *e))).collect();
        for a in &all {
            for b in &all {
                let both = a.intersect(b);
                for key in [&b"a"[..], b"aa", b"b", b"bb", b"c", b"cc"] {
                    assert_eq!(both.contains(key), a.contains(key) && b.contains(key), "{a:?} {b:?} {key:?}");
                    if a.covers(b) && b.contains(key) {
                        assert!(a.contains(key), "{a:?} covers {b:?} but not {key:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_single_row_has_no_neighbour() {
        let range = RowRange::single(b"k");
        assert!(range.contains(b"k") && !range.contains(b"k\0") && !range.contains(b"j"));
    }
}
