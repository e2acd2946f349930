//! Entries in, the bytes of a file out. No IO.
//!
//! Invariants: (1) keys ascend strictly; (2) what `take_output` has returned is final: a file is written
//! front to back.

use bytes::Bytes;
use uruk_proto::DecodeError;
use uruk_proto::key::KeyRef;
use uruk_proto::schema::FilterOn;

use super::super::config::EngineConfig;
use super::block::{BlockBuilder, shared_prefix_len};
use super::format::{BlockPacker, Compression, Footer, Handle, index_value};
use super::properties::Properties;
use super::row_filter::FilterBuilder;
use super::skip::Facts;

/// Builds one file.
pub struct TableBuilder {
    block_bytes: usize,
    filter_partition_bytes: usize,
    packer: BlockPacker,
    out: Vec<u8>,
    out_offset: u64,
    data: BlockBuilder,
    /// A separator for the data block under way: above every key before it, at or below its first.
    data_separator: Vec<u8>,
    data_facts: Facts,
    partition: BlockBuilder,
    partition_separator: Vec<u8>,
    partition_facts: Facts,
    file_facts: Facts,
    root: BlockBuilder,
    /// Of the partitions that the filter under way is for: separator, handle, facts.
    unfiltered: Vec<(Vec<u8>, Handle, Facts)>,
    filter: FilterBuilder,
    bloom_bits_per_row: usize,
    row_len: usize,
    column_len: usize,
    last_key: Vec<u8>,
    properties: Properties,
}

/// A finished file.
#[derive(Debug)]
pub struct BuiltTable {
    /// The bytes that `take_output` has not returned.
    pub output: Bytes,
    /// Length of the whole file.
    pub bytes: u64,
    /// What the file says about itself.
    pub properties: Properties,
}

impl TableBuilder {
    /// An empty file, written at this wall time (microseconds).
    pub fn new(config: &EngineConfig, compression: Compression, written_micros: i64) -> TableBuilder {
        TableBuilder {
            block_bytes: config.block_bytes,
            filter_partition_bytes: config.filter_partition_bytes,
            packer: BlockPacker::new(compression),
            out: Vec::new(),
            out_offset: 0,
            data: BlockBuilder::new(config.block_restart_interval),
            data_separator: Vec::new(),
            data_facts: Facts::NONE,
            partition: BlockBuilder::new(1),
            partition_separator: Vec::new(),
            partition_facts: Facts::NONE,
            file_facts: Facts::NONE,
            root: BlockBuilder::new(1),
            unfiltered: Vec::new(),
            filter: FilterBuilder::new(FilterOn::Row, config.bloom_bits_per_row),
            bloom_bits_per_row: config.bloom_bits_per_row,
            row_len: 0,
            column_len: 0,
            last_key: Vec::new(),
            properties: Properties {
                written_micros,
                filter: (config.bloom_bits_per_row > 0).then_some(FilterOn::Row),
                ..Properties::empty()
            },
        }
    }

    /// With filters that know this instead.
    pub fn with_filter(mut self, kind: FilterOn) -> TableBuilder {
        self.filter = FilterBuilder::new(kind, self.bloom_bits_per_row);
        self.properties.filter = (self.bloom_bits_per_row > 0).then_some(kind);
        self
    }

    /// With blocks of this size instead.
    pub fn with_block_bytes(self, block_bytes: usize) -> TableBuilder {
        TableBuilder { block_bytes, ..self }
    }

    /// Bytes of the file so far.
    pub fn bytes(&self) -> u64 {
        self.offset()
    }

    /// Adds an entry behind all others.
    pub fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), DecodeError> {
        assert!(self.last_key[..] < *key, "keys ascend");
        let parts = KeyRef::parse(key)?;
        if self.properties.entries() == 0 {
            self.properties.key_min = Bytes::copy_from_slice(key);
        }
        let is_same_row = self.row_len > 0 && key.starts_with(&self.last_key[..self.row_len]);
        let is_same_column = is_same_row
            && self.column_len == parts.column_len
            && key[self.row_len..self.column_len] == self.last_key[self.row_len..self.column_len];
        if !is_same_row {
            self.row_len = parts.row_len;
            self.properties.rows += 1;
        }
        self.column_len = parts.column_len;
        self.filter.add(&parts, is_same_row, is_same_column);
        if self.data.is_empty() && self.properties.entries() > 0 {
            let separator = shared_prefix_len(&self.last_key, key) + 1;
            self.data_separator.clear();
            self.data_separator.extend_from_slice(&key[..separator]);
        }
        self.properties.add(&parts, key.len() + value.len());
        self.data_facts.add(&parts);
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        self.data.add(key, value);
        if self.data.len() >= self.block_bytes {
            self.finish_data_block();
        }
        Ok(())
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.properties.entries() == 0
    }

    /// Bytes that `take_output` would return.
    pub fn output_len(&self) -> usize {
        self.out.len()
    }

    /// The bytes so far; the rest of the file follows them.
    pub fn take_output(&mut self) -> Bytes {
        self.out_offset += self.out.len() as u64;
        std::mem::take(&mut self.out).into()
    }

    /// Ends the file.
    pub fn finish(mut self) -> BuiltTable {
        if !self.data.is_empty() {
            self.finish_data_block();
        }
        if !self.partition.is_empty() {
            self.finish_partition();
        }
        self.finish_filter();
        self.properties.key_max = Bytes::copy_from_slice(&self.last_key);
        self.properties.set_facts(&self.file_facts);
        let filter = Handle { offset: self.offset(), len: 0 };
        let mut payload = Vec::new();
        self.properties.put(&mut payload);
        let properties = self.put(&payload);
        let payload = self.root.finish().to_vec();
        let root = self.put(&payload);
        Footer { filter, properties, root }.put(&mut self.out);
        let bytes = self.offset();
        BuiltTable { output: self.out.into(), bytes, properties: self.properties }
    }

    fn finish_data_block(&mut self) {
        let offset = self.offset();
        let handle = self.packer.put(&mut self.out, offset, self.data.finish());
        self.data.clear();
        if self.partition.is_empty() {
            self.partition_separator.clone_from(&self.data_separator);
        }
        self.partition.add(&self.data_separator, &index_value(handle, &self.data_facts, None));
        self.partition_facts.merge(&self.data_facts);
        self.data_facts = Facts::NONE;
        if self.partition.len() >= self.block_bytes || self.filter.bytes() >= self.filter_partition_bytes {
            self.finish_partition();
        }
    }

    fn finish_partition(&mut self) {
        let offset = self.offset();
        let handle = self.packer.put(&mut self.out, offset, self.partition.finish());
        self.partition.clear();
        self.unfiltered.push((self.partition_separator.clone(), handle, self.partition_facts));
        self.file_facts.merge(&self.partition_facts);
        self.partition_facts = Facts::NONE;
        if self.filter.bytes() >= self.filter_partition_bytes {
            self.finish_filter();
        }
    }

    /// One filter for the partitions since the last, which the root names only now.
    fn finish_filter(&mut self) {
        if self.unfiltered.is_empty() {
            return;
        }
        let filter = self.filter.finish().map(|filter| self.put(&filter));
        for (separator, handle, facts) in std::mem::take(&mut self.unfiltered) {
            self.root.add(&separator, &index_value(handle, &facts, filter));
        }
    }

    fn put(&mut self, payload: &[u8]) -> Handle {
        let offset = self.offset();
        self.packer.put(&mut self.out, offset, payload)
    }

    fn offset(&self) -> u64 {
        self.out_offset + self.out.len() as u64
    }
}
