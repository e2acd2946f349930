//! A table file as a whole, for people: its parts, and the first damage in each of them.
//!
//! Unlike a reader it goes on behind damage: a data block that cannot be read is noted, and the next one is
//! looked at. It trusts nothing: any bytes give a report.

use bytes::Bytes;
use uruk_proto::key::KeyRef;
use uruk_proto::schema::FilterOn;
use uruk_proto::{DecodeError, key};

use super::block::{Block, BlockCursor, shared_prefix_len};
use super::bloom::{self, Bloom};
use super::format::{FOOTER_BYTES, Footer, Handle, unpack_facts, unpack_partition, unpack_payload};
use super::properties::Properties;
use super::skip::Facts;

/// Something that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// Where the damaged piece starts.
    pub offset: u64,
    /// What it is and what is wrong with it.
    pub what: String,
}

/// A block that the index names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockReport {
    /// Where it lies.
    pub handle: Handle,
    /// Its length when unpacked.
    pub bytes: usize,
    /// Entries in it.
    pub entries: u64,
    /// Its first key.
    pub key_first: Bytes,
}

/// What a table file holds.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct TableReport {
    /// Length of the file.
    pub bytes: u64,
    /// Where filter, properties and index root lie.
    pub footer: Option<Footer>,
    /// What the file says about itself.
    pub properties: Option<Properties>,
    /// Bytes of all filters; 0 without one.
    pub filter_bytes: usize,
    /// Filters: one of some partitions each, before version 4 one of the file.
    pub filters: Vec<Handle>,
    /// Index partitions.
    pub partitions: Vec<Handle>,
    /// Data blocks.
    pub blocks: Vec<BlockReport>,
    /// Entries that could be read.
    pub entries: u64,
    /// All that is wrong, as it was found.
    pub damage: Vec<Damage>,
}

/// Reads all of a table file.
pub fn inspect(file: &Bytes) -> TableReport {
    let mut inspection = Inspection { file, report: TableReport::default(), last_key: Vec::new() };
    inspection.report.bytes = file.len() as u64;
    inspection.run();
    inspection.report
}

struct Inspection<'a> {
    file: &'a Bytes,
    report: TableReport,
    last_key: Vec<u8>,
}

/// What an index block says of a block.
struct Indexed {
    separator: Vec<u8>,
    handle: Handle,
    facts: Option<Facts>,
    filter: Option<Handle>,
}

/// Reads what an index entry says besides the block that it names.
type UnpackEntry = fn(&[u8], u64) -> Result<(Option<Facts>, Option<Handle>), DecodeError>;

/// Of an index partition: only the root names filters.
fn unpack_block(value: &[u8], _limit: u64) -> Result<(Option<Facts>, Option<Handle>), DecodeError> {
    Ok((unpack_facts(value)?, None))
}

impl Inspection<'_> {
    fn run(&mut self) {
        let footer = match Footer::parse(self.file, self.file.len() as u64) {
            Ok(footer) => footer,
            Err(error) => return self.damaged(self.file.len().saturating_sub(FOOTER_BYTES) as u64, &error),
        };
        self.report.footer = Some(footer);
        if let Some(properties) = self.piece(footer.properties, Properties::parse) {
            self.report.properties = Some(properties);
        }
        let whole = (footer.filter.len > 0).then(|| self.filter(footer.filter)).flatten();
        if let Some(root) = self.piece(footer.root, Block::parse) {
            // Partitions in a row share one.
            let (mut last, mut own) = (None, None);
            for partition in self.handles(footer.root.offset, root, footer.filter.offset, unpack_partition) {
                self.report.partitions.push(partition.handle);
                if partition.filter != last {
                    last = partition.filter;
                    own = partition.filter.and_then(|handle| self.filter(handle));
                }
                let Some(block) = self.piece(partition.handle, Block::parse) else { continue };
                let mut found = Facts::NONE;
                let entries = self.handles(partition.handle.offset, block, footer.filter.offset, unpack_block);
                for (i, entry) in entries.into_iter().enumerate() {
                    if i == 0 && partition.filter.is_some() {
                        self.compare_separator(partition.handle.offset, &partition.separator, entry.handle);
                    }
                    let filter = own.as_ref().or(whole.as_ref());
                    let Some(facts) = self.data_block(entry.handle, filter) else { continue };
                    self.compare_facts(entry.handle.offset, &facts, entry.facts);
                    found.merge(&facts);
                }
                self.compare_facts(partition.handle.offset, &found, partition.facts);
            }
        }
        let has_filters = self.report.filters.iter().any(|filter| *filter != footer.filter);
        if self.report.properties.as_ref().is_some_and(|properties| properties.filter.is_some() != has_filters)
            && self.report.damage.is_empty()
        {
            self.note(footer.properties.offset, "the properties state other filters than there are".to_owned());
        }
        self.compare_counts(footer.properties.offset);
    }

    fn filter(&mut self, handle: Handle) -> Option<Bloom> {
        let filter = self.piece(handle, Bloom::parse);
        self.report.filters.push(handle);
        self.report.filter_bytes += filter.as_ref().map_or(0, Bloom::len);
        filter
    }

    /// A longer separator than it takes would lead look-ups of filters to the partition before.
    fn compare_separator(&mut self, offset: u64, separator: &[u8], first_block: Handle) {
        let Some(block) = self.piece(first_block, Block::parse) else { return };
        let mut cursor = BlockCursor::new(block);
        let Ok(true) = cursor.first() else { return };
        let len = if self.last_key.is_empty() { 0 } else { shared_prefix_len(&self.last_key, cursor.key()) + 1 };
        if cursor.key().get(..len) != Some(separator) && self.report.damage.is_empty() {
            self.note(offset, "the partition's separator is not the shortest".to_owned());
        }
    }

    /// What an index block says.
    fn handles(&mut self, offset: u64, block: Block, limit: u64, unpack: UnpackEntry) -> Vec<Indexed> {
        let mut handles = Vec::new();
        let mut cursor = BlockCursor::new(block);
        let mut at = cursor.first();
        loop {
            match at {
                Ok(true) => {
                    let handle = Handle::unpack(cursor.value(), limit);
                    match handle.and_then(|handle| Ok((handle, unpack(cursor.value(), limit)?))) {
                        Ok((handle, (facts, filter))) => {
                            let separator = cursor.key().to_vec();
                            handles.push(Indexed { separator, handle, facts, filter });
                        }
                        Err(error) => self.damaged(offset, &error),
                    }
                }
                Ok(false) => return handles,
                Err(error) => {
                    self.damaged(offset, &error);
                    return handles;
                }
            }
            at = cursor.advance();
        }
    }

    /// What is in a block; None where it cannot be told.
    fn data_block(&mut self, handle: Handle, filter: Option<&Bloom>) -> Option<Facts> {
        let block = self.piece(handle, Block::parse)?;
        let mut facts = Facts::NONE;
        let mut report = BlockReport { handle, bytes: block.len(), entries: 0, key_first: Bytes::new() };
        let mut cursor = BlockCursor::new(block);
        let mut at = cursor.first();
        while let Ok(true) = at {
            let key = cursor.key();
            if report.entries == 0 {
                report.key_first = Bytes::copy_from_slice(key);
            }
            match KeyRef::parse(key) {
                Ok(parts) => facts.add(&parts),
                Err(error) => self.damaged(handle.offset, &error),
            }
            if let (Some(filter), Some(len)) = (filter, key::row_prefix_len(key)) {
                if !filter.may_contain(bloom::row_hash(&key[..len])) {
                    self.note(handle.offset, "the filter does not know a row of this block".to_owned());
                }
                let column = key.len().checked_sub(key::SUFFIX_BYTES).filter(|_| self.knows_columns());
                if column.is_some_and(|len| !filter.may_contain(bloom::row_hash(&key[..len]))) {
                    self.note(handle.offset, "the filter does not know a column of this block".to_owned());
                }
            }
            if *self.last_key >= *key && !self.last_key.is_empty() {
                self.note(handle.offset, format!("entry {} is not above the one before it", report.entries));
            }
            self.last_key.clear();
            self.last_key.extend_from_slice(key);
            report.entries += 1;
            at = cursor.advance();
        }
        if let Err(error) = at {
            self.damaged(handle.offset, &error);
        }
        self.report.entries += report.entries;
        self.report.blocks.push(report);
        Some(facts)
    }

    fn knows_columns(&self) -> bool {
        self.report.properties.as_ref().is_some_and(|properties| properties.filter == Some(FilterOn::RowColumn))
    }

    /// The index must not promise less than there is: readers would skip it.
    fn compare_facts(&mut self, offset: u64, found: &Facts, stated: Option<Facts>) {
        let mut both = *found;
        if let Some(stated) = stated {
            both.merge(&stated);
            if both != stated {
                self.note(offset, "the index states other times, families or deletions than there are".to_owned());
            }
        }
    }

    fn compare_counts(&mut self, offset: u64) {
        let counted = self.report.entries;
        let stated =
            self.report.properties.as_ref().map(|properties| properties.cells.saturating_add(properties.deletions));
        if let Some(stated) = stated.filter(|stated| *stated != counted && self.report.damage.is_empty()) {
            self.note(offset, format!("the properties state {stated} entries, {counted} are there"));
        }
    }

    /// A stored block, unpacked and parsed.
    fn piece<T>(&mut self, handle: Handle, parse: impl FnOnce(Bytes) -> Result<T, DecodeError>) -> Option<T> {
        let stored = self.file.get(handle.offset as usize..handle.end() as usize);
        let error = || DecodeError { what: "block handle", offset: 0, why: "reaches beyond the file" };
        let parsed = stored.ok_or_else(error).and_then(|stored| unpack_payload(stored, handle.offset)).and_then(parse);
        parsed.map_err(|error| self.damaged(handle.offset, &error)).ok()
    }

    fn damaged(&mut self, offset: u64, error: &DecodeError) {
        self.note(offset, error.to_string());
    }

    fn note(&mut self, offset: u64, what: String) {
        self.report.damage.push(Damage { offset, what });
    }
}

#[cfg(test)]
mod tests {
    use super::super::block::BlockBuilder;
    use super::super::format::index_value;
    use super::*;

    #[test]
    fn a_filter_that_an_index_partition_names_is_damage() {
        let handle = Handle { offset: 0, len: 9 };
        let damage = |filter, unpack: UnpackEntry| {
            let mut block = BlockBuilder::new(1);
            block.add(&[], &index_value(handle, &Facts::NONE, filter));
            let block = Block::parse(Bytes::copy_from_slice(block.finish())).unwrap();
            let file = Bytes::new();
            let mut inspection = Inspection { file: &file, report: TableReport::default(), last_key: Vec::new() };
            inspection.handles(0, block, 100, unpack);
            inspection.report.damage.len()
        };
        assert_eq!((damage(None, unpack_partition), damage(Some(handle), unpack_partition)), (0, 0));
        assert_eq!((damage(None, unpack_block), damage(Some(handle), unpack_block)), (0, 1));
    }
}
