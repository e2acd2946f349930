//! Walks a file's entries within a key range.
//!
//! The cursor never waits: when it needs a piece of the file that is not in memory it stops with
//! [`CursorState::Blocked`]; [`FileCursor::load`] fetches the piece and goes on. So the loops above it
//! are plain synchronous code as long as blocks are cached.
//!
//! A scan that runs on from block to block reads ahead: it fetches a window of adjacent blocks in one
//! read, doubling up to a limit, and unpacks them as it reaches them.

use std::sync::Arc;

use bytes::Bytes;
use uruk_proto::DecodeError;

use super::super::error::EngineError;
use super::block::{Block, BlockCursor};
use super::file::FileHandle;
use super::format::{Handle, unpack_facts, unpack_partition};
use super::row_filter::RowProbe;
use super::skip::{Facts, Wanted};
use super::tail::{Answer, Tail};

/// Where a cursor stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CursorState {
    /// On an entry.
    At,
    /// Behind the last entry of its range (or before the first, for `seek_before`).
    End,
    /// It needs a piece of the file.
    Blocked,
}

/// How a cursor reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadOptions {
    /// Whether blocks that were read stay in the cache.
    pub fill_cache: bool,
    /// After this many bytes in a row they stay no more.
    pub cache_fill_bytes_max: u64,
    /// Size of the first window that is read ahead.
    pub readahead_bytes_min: usize,
    /// Largest window; 0 reads nothing ahead.
    pub readahead_bytes_max: usize,
    /// Files, partitions and blocks without anything of it are not read.
    pub wanted: Wanted,
}

/// What the cursor is on its way to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Goal {
    /// First entry at or after `target`.
    AtOrAfter,
    /// Last entry before `target`.
    Before,
    /// First entry of the next block.
    Next,
}

/// Which piece comes next on that way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Tail,
    /// The filter with this number.
    Filter(usize),
    Partition(Handle),
    Data(Handle),
}

/// A cursor over one file.
#[derive(Debug)]
pub struct FileCursor {
    file: Arc<FileHandle>,
    options: ReadOptions,
    state: CursorState,
    goal: Goal,
    stage: Stage,
    target: Vec<u8>,
    upper: Vec<u8>,
    /// What is sought, if it is one row, and filters have not been asked yet.
    probe: Option<Arc<RowProbe>>,
    filters_read: u32,
    filter_last: Option<usize>,
    root: Option<BlockCursor>,
    partition: Option<(Handle, BlockCursor)>,
    data: Option<(Handle, BlockCursor)>,
    /// Loaded and not yet used.
    loaded: Option<(Handle, Block)>,
    window: Bytes,
    window_offset: u64,
    window_bytes: usize,
    /// Blocks that were reached from the one before and had to be read.
    sequential: u32,
    /// Bytes put into the cache since the last seek.
    filled_bytes: u64,
}

impl FileCursor {
    /// A cursor, not positioned. Reads nothing.
    pub fn new(file: Arc<FileHandle>, options: ReadOptions) -> FileCursor {
        FileCursor {
            file,
            options,
            state: CursorState::End,
            goal: Goal::AtOrAfter,
            stage: Stage::Tail,
            target: Vec::new(),
            upper: Vec::new(),
            probe: None,
            filters_read: 0,
            filter_last: None,
            root: None,
            partition: None,
            data: None,
            loaded: None,
            window: Bytes::new(),
            window_offset: 0,
            window_bytes: options.readahead_bytes_min,
            sequential: 0,
            filled_bytes: 0,
        }
    }

    /// Where it stands.
    #[inline]
    pub fn state(&self) -> CursorState {
        self.state
    }

    /// The current key.
    #[inline]
    pub fn key(&self) -> &[u8] {
        self.data.as_ref().map_or(&[], |(_, data)| data.key())
    }

    /// The current value.
    #[inline]
    pub fn value(&self) -> &[u8] {
        self.data.as_ref().map_or(&[], |(_, data)| data.value())
    }

    /// Where in the file the current entry's block stands.
    pub fn offset(&self) -> u64 {
        self.data.as_ref().map_or(0, |(handle, _)| handle.offset)
    }

    /// To the first entry in `[target, upper)` (upper empty: no bound). With a `probe` the range is that row; a file
    /// whose filters exclude it, or the columns that the probe names, has none.
    pub fn seek(&mut self, target: &[u8], upper: &[u8], probe: Option<&Arc<RowProbe>>) -> Result<(), EngineError> {
        self.probe = probe.cloned();
        (self.filters_read, self.filter_last) = (0, None);
        self.upper.clear();
        self.upper.extend_from_slice(lesser_bound(upper, self.file.high()));
        self.seek_within(target)
    }

    /// To the first entry at or after `target`, under the bound of the last `seek`.
    pub fn seek_within(&mut self, target: &[u8]) -> Result<(), EngineError> {
        self.goal = Goal::AtOrAfter;
        self.target.clear();
        self.target.extend_from_slice(target.max(self.file.low()));
        self.start()
    }

    /// To the last entry before `bound` (empty: no bound) and at or after `low`.
    pub fn seek_before(&mut self, bound: &[u8], low: &[u8]) -> Result<(), EngineError> {
        self.probe = None;
        self.goal = Goal::Before;
        self.target.clear();
        self.target.extend_from_slice(lesser_bound(bound, self.file.high()));
        // The lower bound stands in for the upper one, which this direction has no use for.
        self.upper.clear();
        self.upper.extend_from_slice(low.max(self.file.low()));
        self.start()
    }

    /// To the next entry.
    #[inline]
    pub fn advance(&mut self) -> Result<(), EngineError> {
        debug_assert_eq!(self.state, CursorState::At);
        let (handle, data) = self.data.as_mut().expect("a positioned cursor has a block");
        match data.advance() {
            Ok(true) => {
                if !self.upper.is_empty() && *data.key() >= self.upper[..] {
                    self.state = CursorState::End;
                }
                Ok(())
            }
            Ok(false) => self.next_block(),
            Err(error) => Err(self.file.file.damaged(handle.offset, &error)),
        }
    }

    /// Fetches what a blocked cursor needs, and goes on.
    pub async fn load(&mut self) -> Result<(), EngineError> {
        debug_assert_eq!(self.state, CursorState::Blocked);
        let handle = match self.stage {
            Stage::Tail => {
                self.file.file.open().await?;
                return self.run();
            }
            Stage::Filter(number) => {
                (self.filters_read, self.filter_last) = (self.filters_read + 1, Some(number));
                let tail = self.file.file.open().await?;
                if let Some(filter) = tail.filter(number) {
                    self.file.file.read_filter(filter).await?;
                }
                self.stage = Stage::Tail;
                return self.run();
            }
            Stage::Partition(handle) | Stage::Data(handle) => handle,
        };
        if let (Stage::Partition(_), true) = (self.stage, self.options.fill_cache) {
            let block = self.file.file.partition(handle).await?;
            self.loaded = Some((handle, block));
        } else if self.reads_ahead() {
            self.load_window(handle).await?;
        } else {
            let block = match self.fills_cache() {
                true => self.file.file.block(handle).await?,
                false => self.file.file.block_uncached(handle).await?,
            };
            self.loaded = Some((handle, block));
        }
        self.run()
    }

    /// The error for an entry of the current block that makes no sense.
    pub fn damaged(&self, error: &DecodeError) -> EngineError {
        self.file.file.damaged(self.data.as_ref().map_or(0, |(handle, _)| handle.offset), error)
    }

    fn fills_cache(&self) -> bool {
        self.options.fill_cache && self.filled_bytes < self.options.cache_fill_bytes_max
    }

    fn reads_ahead(&mut self) -> bool {
        match self.goal {
            Goal::Next => self.sequential += 1,
            Goal::AtOrAfter | Goal::Before => {}
        }
        self.options.readahead_bytes_max > 0
            && self.goal == Goal::Next
            && (self.sequential >= 2 || self.options.readahead_bytes_min == self.options.readahead_bytes_max)
    }

    async fn load_window(&mut self, handle: Handle) -> Result<(), EngineError> {
        let blocks_end = self.file.file.tail().map_or(handle.end(), |tail| tail.blocks_end);
        let wanted = (self.window_bytes as u64).max(u64::from(handle.len));
        let len = wanted.min(blocks_end.saturating_sub(handle.offset)).max(u64::from(handle.len));
        self.file.file.count_miss();
        self.window = self.file.file.read(handle.offset, len).await?;
        self.window_offset = handle.offset;
        self.window_bytes = (self.window_bytes * 2).clamp(1, self.options.readahead_bytes_max);
        Ok(())
    }

    fn start(&mut self) -> Result<(), EngineError> {
        self.stage = Stage::Tail;
        self.sequential = 0;
        self.filled_bytes = 0;
        // A reference to other rows: the file need not even be opened.
        let is_empty = match self.goal {
            Goal::Before => !self.target.is_empty() && self.target <= self.upper,
            Goal::AtOrAfter | Goal::Next => self.is_beyond(&self.target),
        };
        if is_empty {
            self.state = CursorState::End;
            return Ok(());
        }
        self.run()
    }

    /// Whether a key, or all that stands behind a separator, lies beyond the upper bound.
    fn is_beyond(&self, key: &[u8]) -> bool {
        !self.upper.is_empty() && *key >= self.upper[..]
    }

    fn next_block(&mut self) -> Result<(), EngineError> {
        self.goal = Goal::Next;
        match self.next_data_handle()? {
            Some(stage) => {
                self.stage = stage;
                self.run()
            }
            None => {
                self.state = CursorState::End;
                Ok(())
            }
        }
    }

    /// The next block that is of use: of this partition, or the next such partition.
    fn next_data_handle(&mut self) -> Result<Option<Stage>, EngineError> {
        loop {
            let (at, partition) = self.partition.as_mut().expect("a data block was found through a partition");
            let at = at.offset;
            if !partition.advance().map_err(|error| self.file.file.damaged(at, &error))? {
                return self.next_partition();
            }
            let (_, partition) = self.partition.as_ref().expect("just used");
            if self.is_beyond(partition.key()) {
                return Ok(None);
            }
            if let Some(handle) = self.useful_block(partition.value())? {
                return Ok(Some(Stage::Data(handle)));
            }
        }
    }

    fn next_partition(&mut self) -> Result<Option<Stage>, EngineError> {
        loop {
            let root = self.root.as_mut().expect("a partition was found through the root");
            if !root.advance().map_err(|error| self.file.file.damaged(0, &error))? {
                return Ok(None);
            }
            let root = self.root.as_ref().expect("just used");
            if self.is_beyond(root.key()) {
                return Ok(None);
            }
            if let Some(handle) = self.useful_partition(root.value())? {
                return Ok(Some(Stage::Partition(handle)));
            }
        }
    }

    /// Goes on until it stands somewhere, or needs a piece that is not in memory.
    fn run(&mut self) -> Result<(), EngineError> {
        loop {
            let next = match self.stage {
                Stage::Tail | Stage::Filter(_) => self.run_tail()?,
                Stage::Partition(handle) => self.run_partition(handle)?,
                Stage::Data(handle) => self.run_data(handle)?,
            };
            match next {
                Run::Stage(stage) => self.stage = stage,
                Run::NextBlock => {
                    self.goal = Goal::Next;
                    match self.next_data_handle()? {
                        Some(stage) => self.stage = stage,
                        None => break self.state = CursorState::End,
                    }
                }
                Run::Stop(state) => break self.state = state,
            }
        }
        Ok(())
    }

    fn run_tail(&mut self) -> Result<Run, EngineError> {
        let file = self.file.clone();
        let Some(tail) = file.file.tail() else { return Ok(Run::Stop(CursorState::Blocked)) };
        if self.misses(tail) {
            return Ok(Run::Stop(CursorState::End));
        }
        if let Some(probe) = &self.probe {
            match file.file.ask(tail, probe) {
                Answer::Absent => return Ok(Run::Stop(CursorState::End)),
                // A filter that nobody keeps, or that there is no room for, is not worth the reading.
                Answer::Unread(number)
                    if self.options.fill_cache
                        && self.filters_read < probe.filters_read_max
                        && self.filter_last != Some(number) =>
                {
                    self.stage = Stage::Filter(number);
                    return Ok(Run::Stop(CursorState::Blocked));
                }
                Answer::Maybe | Answer::Unread(_) => self.probe = None,
            }
        }
        let root = self.root.get_or_insert_with(|| BlockCursor::new(tail.root.clone()));
        let found = match self.goal {
            Goal::AtOrAfter => root.seek_at_or_before(&self.target),
            Goal::Before if self.target.is_empty() => root.last(),
            Goal::Before => root.seek_before(&self.target),
            Goal::Next => Ok(false),
        };
        // The first separator is empty, so something is found, but trust no file.
        let found = found.and_then(|found| if found { Ok(true) } else { root.first() });
        if !found.map_err(|error| file.file.damaged(tail.blocks_end, &error))? {
            return Ok(Run::Stop(CursorState::End));
        }
        let root = self.root.as_ref().expect("just set");
        match (self.useful_partition(root.value())?, self.goal) {
            (Some(handle), _) => Ok(Run::Stage(Stage::Partition(handle))),
            (None, Goal::Before) => {
                let separator = root.key().to_vec();
                Ok(self.before_separator(&separator))
            }
            (None, Goal::AtOrAfter | Goal::Next) => {
                self.goal = Goal::Next;
                Ok(self.next_partition()?.map_or(Run::Stop(CursorState::End), Run::Stage))
            }
        }
    }

    /// Whether what is known of the file excludes that the file has what is sought.
    fn misses(&self, tail: &Tail) -> bool {
        let properties = &tail.properties;
        if self.options.wanted.skips(&properties.facts()) {
            return true;
        }
        match self.goal {
            Goal::Before => {
                (!self.target.is_empty() && properties.key_min[..] >= self.target[..])
                    || properties.key_max[..] < self.upper[..]
            }
            Goal::AtOrAfter | Goal::Next => {
                properties.key_max[..] < self.target[..]
                    || (!self.upper.is_empty() && properties.key_min[..] >= self.upper[..])
            }
        }
    }

    fn run_partition(&mut self, handle: Handle) -> Result<Run, EngineError> {
        if self.partition.as_ref().is_none_or(|(at, _)| *at != handle) {
            let Some(block) = self.fetch(handle)? else { return Ok(Run::Stop(CursorState::Blocked)) };
            replace(&mut self.partition, handle, block);
        }
        let (_, partition) = self.partition.as_mut().expect("just set");
        let found = match self.goal {
            Goal::AtOrAfter => partition.seek_at_or_before(&self.target),
            Goal::Before if self.target.is_empty() => partition.last(),
            Goal::Before => partition.seek_before(&self.target),
            Goal::Next => Ok(false),
        };
        let found = found.and_then(|found| if found { Ok(true) } else { partition.first() });
        if !found.map_err(|error| self.file.file.damaged(handle.offset, &error))? {
            return Ok(Run::NextBlock);
        }
        let (_, partition) = self.partition.as_ref().expect("just set");
        Ok(match (self.useful_block(partition.value())?, self.goal) {
            (Some(handle), _) => Run::Stage(Stage::Data(handle)),
            (None, Goal::Before) => self.previous_block(),
            (None, Goal::AtOrAfter | Goal::Next) => Run::NextBlock,
        })
    }

    fn run_data(&mut self, handle: Handle) -> Result<Run, EngineError> {
        if self.data.as_ref().is_none_or(|(at, _)| *at != handle) {
            let Some(block) = self.fetch(handle)? else { return Ok(Run::Stop(CursorState::Blocked)) };
            replace(&mut self.data, handle, block);
        }
        let (_, data) = self.data.as_mut().expect("just set");
        let found = match self.goal {
            Goal::AtOrAfter => data.seek(&self.target),
            Goal::Before if self.target.is_empty() => data.last(),
            Goal::Before => data.seek_before(&self.target),
            Goal::Next => data.first(),
        };
        let found = found.map_err(|error| self.file.file.damaged(handle.offset, &error))?;
        let beyond = match self.goal {
            Goal::Before => *data.key() < self.upper[..],
            Goal::AtOrAfter | Goal::Next => !self.upper.is_empty() && *data.key() >= self.upper[..],
        };
        Ok(match (found, self.goal) {
            (true, _) if beyond => Run::Stop(CursorState::End),
            (true, _) => Run::Stop(CursorState::At),
            (false, Goal::Before) => self.previous_block(),
            (false, Goal::AtOrAfter | Goal::Next) => Run::NextBlock,
        })
    }

    /// The bound lies between the block's separator and its first key, or nothing of the block is wanted:
    /// everything sought stands before the separator.
    fn previous_block(&mut self) -> Run {
        let separator = self.partition.as_ref().map_or(Vec::new(), |(_, partition)| partition.key().to_vec());
        self.before_separator(&separator)
    }

    fn before_separator(&mut self, separator: &[u8]) -> Run {
        self.target.clear();
        self.target.extend_from_slice(separator);
        // The first block's separator is empty; the lower bound stands in `upper`.
        if self.target <= self.upper { Run::Stop(CursorState::End) } else { Run::Stage(Stage::Tail) }
    }

    /// A block that is in memory.
    fn fetch(&mut self, handle: Handle) -> Result<Option<Block>, EngineError> {
        if let Some((at, block)) = self.loaded.take()
            && at == handle
        {
            return Ok(Some(block));
        }
        let cached = match self.stage {
            Stage::Partition(_) => self.file.file.cached_partition(handle),
            Stage::Data(_) | Stage::Tail | Stage::Filter(_) => self.file.file.cached(handle),
        };
        if cached.is_some() {
            return Ok(cached);
        }
        let window_end = self.window_offset + self.window.len() as u64;
        if handle.offset < self.window_offset || handle.end() > window_end {
            return Ok(None);
        }
        let at = (handle.offset - self.window_offset) as usize;
        let block = self.file.file.unpack(handle, &self.window[at..at + handle.len as usize])?;
        if self.fills_cache() {
            self.filled_bytes += block.len() as u64;
            self.file.file.keep(handle, block.clone());
        }
        Ok(Some(block))
    }

    /// The data block that an index partition names; None when nothing of it is wanted.
    fn useful_block(&self, value: &[u8]) -> Result<Option<Handle>, EngineError> {
        self.useful(value, |value, _| unpack_facts(value))
    }

    /// The index partition that the root names; None when nothing of it is wanted.
    fn useful_partition(&self, value: &[u8]) -> Result<Option<Handle>, EngineError> {
        self.useful(value, |value, limit| Ok(unpack_partition(value, limit)?.0))
    }

    fn useful(
        &self,
        value: &[u8],
        unpack: impl FnOnce(&[u8], u64) -> Result<Option<Facts>, DecodeError>,
    ) -> Result<Option<Handle>, EngineError> {
        let limit = self.file.file.tail().map_or(0, |tail| tail.blocks_end);
        let damaged = |error| self.file.file.damaged(limit, &error);
        if self.options.wanted != Wanted::ALL
            && let Some(facts) = unpack(value, limit).map_err(damaged)?
            && self.options.wanted.skips(&facts)
        {
            return Ok(None);
        }
        Handle::unpack(value, limit).map(Some).map_err(damaged)
    }
}

enum Run {
    Stage(Stage),
    NextBlock,
    Stop(CursorState),
}

fn replace(slot: &mut Option<(Handle, BlockCursor)>, handle: Handle, block: Block) {
    match slot {
        Some((at, cursor)) => {
            *at = handle;
            cursor.set_block(block);
        }
        None => *slot = Some((handle, BlockCursor::new(block))),
    }
}

/// The lower of two upper bounds; an empty one is no bound.
fn lesser_bound<'a>(a: &'a [u8], b: &'a [u8]) -> &'a [u8] {
    match (a.is_empty(), b.is_empty()) {
        (true, _) => b,
        (_, true) => a,
        (false, false) => a.min(b),
    }
}
