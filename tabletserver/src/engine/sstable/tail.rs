//! What is kept of an open file: its properties, the root of its index, where index partitions and filters lie, and as
//! many of those as there is room for.
//!
//! Invariant: filters exclude only what is not there (`row_filter` says why); what is not in memory excludes nothing.

use bytes::Bytes;
use tokio::sync::OnceCell;
use uruk_proto::DecodeError;
use uruk_proto::schema::FilterOn;

use super::block::{Block, BlockCursor, shared_prefix_len, word_of};
use super::bloom::Bloom;
use super::format::{Handle, unpack_partition};
use super::properties::Properties;
use super::row_filter::{Probe, RowProbe};
use super::skip::Facts;

/// What is kept of an open file.
#[derive(Debug)]
pub struct Tail {
    /// Index of the index partitions.
    pub root: Block,
    /// What the file says about itself.
    pub properties: Properties,
    /// End of the blocks that the index names.
    pub blocks_end: u64,
    /// The whole file's filter on rows, if it has one: before version 4.
    filter: Option<Bloom>,
    /// In the order of the root's entries.
    partitions: Vec<Partition>,
    filters: Filters,
}

/// An index partition.
#[derive(Debug)]
pub struct Partition {
    /// Where it lies.
    pub handle: Handle,
    /// Kept here for good once it was read and there was room.
    pub(super) pinned: OnceCell<Block>,
}

/// A partition, and the separator of the one behind it.
pub type PartitionEntry<'a> = (&'a Partition, Option<&'a [u8]>);

/// The filter of some index partitions in a row.
#[derive(Debug)]
pub struct PartitionFilter {
    /// Where it lies.
    pub handle: Handle,
    /// Separator of the first of its partitions.
    separator: Bytes,
    /// Of all of them.
    facts: Facts,
    /// Kept here for good once it was read and there was room.
    pub(super) pinned: OnceCell<Bloom>,
}

/// What filters say of a row, or of columns of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The file has nothing of it.
    Absent,
    /// It may have.
    Maybe,
    /// The filter with this number is not in memory.
    Unread(usize),
}

impl Tail {
    pub(super) fn new(
        root: Block,
        properties: Properties,
        filter: Option<Bloom>,
        blocks_end: u64,
    ) -> Result<Tail, DecodeError> {
        let mut cursor = BlockCursor::new(root.clone());
        let (mut partitions, mut filters) = (Vec::new(), Vec::new());
        let mut at = cursor.first()?;
        while at {
            let handle = Handle::unpack(cursor.value(), blocks_end)?;
            partitions.push(Partition { handle, pinned: OnceCell::new() });
            if let (Some(facts), Some(handle)) = unpack_partition(cursor.value(), blocks_end)? {
                add_filter(&mut filters, handle, &facts, cursor.key());
            }
            at = cursor.advance()?;
        }
        // In a file that is what it should be they ascend; in any other a search may miss one, no more.
        Ok(Tail { root, properties, blocks_end, filter, partitions, filters: Filters::new(filters) })
    }

    /// The filter with this number.
    pub fn filter(&self, number: usize) -> Option<&PartitionFilter> {
        self.filters.all.get(number)
    }

    /// The partition that lies there.
    pub fn partition_at(&self, handle: Handle) -> Option<&Partition> {
        let at = self.partitions.binary_search_by_key(&handle.offset, |partition| partition.handle.offset).ok()?;
        Some(&self.partitions[at])
    }

    /// Which partition the index names for a row, given its prefix, and the separator of the one behind it; None when
    /// it takes a walk to tell.
    #[inline]
    pub fn partition_of(&self, row_prefix: &[u8]) -> Result<Option<PartitionEntry<'_>>, DecodeError> {
        let Some(number) = self.root.position(row_prefix)? else { return Ok(None) };
        let Some(partition) = self.partitions.get(number) else { return Ok(None) };
        Ok(Some((partition, self.root.key_at(number + 1)?)))
    }

    /// Whether filters exclude that the file has something that matters to a look-up. `knows` asks a filter for a
    /// hash; None: it is not in memory.
    #[inline]
    pub fn ask(&self, probe: &RowProbe, knows: impl Fn(&PartitionFilter, u64) -> Option<bool>) -> Answer {
        if let Some(filter) = &self.filter {
            return if filter.may_contain(probe.row.hash) { Answer::Maybe } else { Answer::Absent };
        }
        let answer = self.ask_filter(&probe.row, &knows);
        let knows_columns = self.properties.filter == Some(FilterOn::RowColumn) && !probe.columns.is_empty();
        if answer != Answer::Maybe || !knows_columns {
            return answer;
        }
        let mut unread = None;
        for column in &probe.columns {
            match self.ask_filter(column, &knows) {
                Answer::Absent => {}
                Answer::Maybe => return Answer::Maybe,
                Answer::Unread(number) => unread = unread.or(Some(number)),
            }
        }
        unread.map_or(Answer::Absent, Answer::Unread)
    }

    /// Whether the filter that the index names for a prefix may know it: if not, the file has no entry of it.
    #[inline]
    fn ask_filter(&self, probe: &Probe, knows: impl Fn(&PartitionFilter, u64) -> Option<bool>) -> Answer {
        let Some((number, filter)) = self.filters.of(&probe.prefix) else { return Answer::Maybe };
        if !probe.may_be_in(&filter.facts) {
            return Answer::Absent;
        }
        match knows(filter, probe.hash) {
            Some(true) => Answer::Maybe,
            Some(false) => Answer::Absent,
            None => Answer::Unread(number),
        }
    }
}

fn add_filter(filters: &mut Vec<PartitionFilter>, handle: Handle, facts: &Facts, separator: &[u8]) {
    match filters.last_mut() {
        Some(last) if last.handle == handle => last.facts.merge(facts),
        Some(_) | None => {
            let separator = Bytes::copy_from_slice(separator);
            filters.push(PartitionFilter { handle, separator, facts: *facts, pinned: OnceCell::new() });
        }
    }
}

/// The filters of a file, and what makes it fast to find the one that is asked: what all separators but the first (it
/// is empty) start with, and of each the eight bytes behind that.
#[derive(Debug)]
struct Filters {
    all: Vec<PartitionFilter>,
    common: Bytes,
    words: Vec<u64>,
}

impl Filters {
    fn new(all: Vec<PartitionFilter>) -> Filters {
        let (common, words) = match &all[..] {
            [_, rest @ ..] if !rest.is_empty() => {
                let (first, last) = (&rest[0].separator, &rest[rest.len() - 1].separator);
                let common = first.slice(..shared_prefix_len(first, last));
                let word = |filter: &PartitionFilter| word_of(filter.separator.get(common.len()..).unwrap_or(&[]));
                let words = rest.iter().map(word).collect();
                (common, words)
            }
            _ => (Bytes::new(), Vec::new()),
        };
        Filters { all, common, words }
    }

    /// The last one whose first partition's separator is at or below a prefix, and its number.
    #[inline]
    fn of(&self, prefix: &[u8]) -> Option<(usize, &PartitionFilter)> {
        let mut number = match prefix.strip_prefix(&self.common[..]) {
            Some(rest) => {
                let word = word_of(rest);
                self.words.partition_point(|other| *other <= word)
            }
            None if *prefix < self.common[..] => 0,
            None => self.words.len(),
        };
        // Those with the same word are told apart by all of their bytes.
        while number > 0 && self.all[number].separator[..] > *prefix {
            number -= 1;
        }
        Some((number, self.all.get(number)?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_filter_that_is_asked_is_the_last_at_or_below(
            separators in prop::collection::btree_set(prop::collection::vec(97u8..100, 1..12), 0..20),
            prefix in prop::collection::vec(96u8..101, 0..14),
            common in prop::collection::vec(97u8..100, 0..9),
            is_within in any::<bool>(),
        ) {
            let with = |bytes: &[u8]| [&common[..], bytes].concat();
            let separators: Vec<Vec<u8>> = std::iter::once(Vec::new()).chain(separators.iter().map(|it| with(it))).collect();
            let mut filters = Vec::new();
            for (i, separator) in separators.iter().enumerate() {
                add_filter(&mut filters, Handle { offset: i as u64, len: 1 }, &Facts::NONE, separator);
            }
            let prefix = if is_within { with(&prefix) } else { prefix };
            let expected = separators.partition_point(|separator| *separator <= prefix) - 1;
            prop_assert_eq!(Filters::new(filters).of(&prefix).map(|(number, _)| number), Some(expected));
        }
    }

    #[test]
    fn without_filters_none_is_asked() {
        assert!(Filters::new(Vec::new()).of(b"row").is_none());
    }
}
