//! One row, looked up: no scanner, no merge of cursors that could walk on.
//!
//! A point read asks each source for the row's entries: a memtable by its list, a file by filter, index and
//! at most one block. The entries then go through the same [`Visibility`] and filter as a walk's. What does
//! not fit (a row that goes on in the next block, is larger than a batch, or takes many steps) is left to a
//! walk, which starts over.
//!
//! Invariant: a point read that answers sees exactly what a walk over the same view sees.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;
use uruk_proto::cell_batch::BatchBuilder;
use uruk_proto::{DecodeError, key};

use super::columns::step_behind;
use super::error::EngineError;
use super::memtable::MemtableCursor;
use super::scan::{QualifierMemo, RowState, ScanBatch, Verdict, judge};
use super::sstable::FileHandle;
use super::sstable::block::BlockCursor;
use super::sstable::format::{Handle, unpack_facts};
use super::sstable::row_filter::RowProbe;
use super::sstable::skip::Wanted;
use super::sstable::tail::{Answer, Tail};
use super::view::{ReadView, ScanRequest, ScanTargets};
use super::visible::{Seen, Visibility};

/// Entries of a row that are not wanted; a walk seeks over more.
const STEPS_MAX: u32 = 64;

/// What came of it.
pub(super) enum PointRead {
    /// The row; None when nothing of it is wanted.
    Done(Option<ScanBatch>),
    /// It takes a walk.
    Large,
}

/// The row sought.
struct Target {
    probe: RowProbe,
    wanted: Wanted,
    fill_cache: bool,
}

impl Target {
    fn prefix(&self) -> &[u8] {
        &self.probe.row.prefix
    }
}

/// Where some of the row's entries are.
enum Source<'a> {
    Memtable(MemtableCursor),
    Block { file: &'a FileHandle, handle: Handle, cursor: BlockCursor },
}

/// What a file has of the row.
enum Found<'a> {
    Nothing,
    Entries(Source<'a>),
    /// More than one block.
    Large,
}

impl Source<'_> {
    #[inline]
    fn key(&self) -> &[u8] {
        match self {
            Source::Memtable(cursor) => cursor.key(),
            Source::Block { cursor, .. } => cursor.key(),
        }
    }

    #[inline]
    fn value(&self) -> &[u8] {
        match self {
            Source::Memtable(cursor) => cursor.value(),
            Source::Block { cursor, .. } => cursor.value(),
        }
    }

    /// To the row's next entry; false behind the last.
    fn advance(&mut self, prefix: &[u8]) -> Result<bool, EngineError> {
        match self {
            Source::Memtable(cursor) => {
                cursor.advance();
                Ok(cursor.is_at())
            }
            Source::Block { file, handle, cursor } => match cursor.advance() {
                Ok(found) => Ok(found && cursor.key().starts_with(prefix)),
                Err(error) => Err(file.file.damaged(handle.offset, &error)),
            },
        }
    }

    fn damaged(&self, error: &DecodeError) -> EngineError {
        match self {
            Source::Block { file, handle, .. } => file.file.damaged(handle.offset, error),
            Source::Memtable(_) => panic!("the memtable holds keys that this process made: {error}"),
        }
    }
}

/// Reads the one row of the request, which lies in the view's range.
pub(super) async fn read(view: &ReadView, request: &ScanRequest) -> Result<PointRead, EngineError> {
    let ScanTargets::Rows(rows) = &request.targets else { unreachable!("the caller has looked") };
    let [row] = &rows[..] else { unreachable!("the caller has counted") };
    let columns = view.version.columns(&request.filter);
    let now = view.context.env.clock.wall_micros();
    let target = Target {
        probe: columns.probe(key::row_prefix(row)),
        wanted: columns.wanted(&request.filter, now),
        fill_cache: request.fill_cache,
    };
    let mut sources = Vec::new();
    for memtable in view.version.memtables_of(&columns) {
        let mut upper = target.prefix().to_vec();
        step_behind(&mut upper);
        let mut cursor = MemtableCursor::new(memtable.clone());
        cursor.seek(target.prefix(), &upper);
        if cursor.is_at() {
            sources.push(Source::Memtable(cursor));
        }
    }
    let candidate = |file: &'_ Arc<FileHandle>| match file.covers(target.prefix()) {
        true => Some(file.ask(&target.probe)).filter(|answer| *answer != Some(Answer::Absent)),
        false => None,
    };
    let mut files = view.version.files_of(&columns).filter_map(|file| Some((&**file, candidate(file)?)));
    let found = match (files.next(), files.next()) {
        (None, _) => Vec::new(),
        (Some((file, answer)), None) => match find(file, answer, &target).await? {
            Found::Entries(source) => {
                sources.push(source);
                Vec::new()
            }
            found => vec![found],
        },
        // Several, so their blocks are fetched at once.
        (Some(first), Some(second)) => {
            let files = [first, second].into_iter().chain(files);
            try_join_all(files.map(|(file, answer)| find(file, answer, &target))).await?
        }
    };
    for found in found {
        match found {
            Found::Nothing => {}
            Found::Entries(source) => sources.push(source),
            Found::Large => return Ok(PointRead::Large),
        }
    }
    let mut entries = Entries { sources, prefix: target.prefix() };
    pack(view, request, row, now, &columns, &mut entries)
}

/// The row's entries of all sources, in order.
struct Entries<'a> {
    sources: Vec<Source<'a>>,
    prefix: &'a [u8],
}

impl Entries<'_> {
    /// The source that stands on the least key.
    fn least(&self) -> Option<usize> {
        match self.sources.len() {
            0 => None,
            1 => Some(0),
            len => (0..len).min_by(|a, b| self.sources[*a].key().cmp(self.sources[*b].key())),
        }
    }

    fn advance(&mut self, at: usize) -> Result<(), EngineError> {
        if !self.sources[at].advance(self.prefix)? {
            self.sources.swap_remove(at);
        }
        Ok(())
    }
}

fn pack(
    view: &ReadView,
    request: &ScanRequest,
    row: &Bytes,
    now: i64,
    columns: &super::columns::Columns,
    entries: &mut Entries<'_>,
) -> Result<PointRead, EngineError> {
    let mut visibility = Visibility::new(view.seq);
    let (mut state, mut qualifier) = (RowState::default(), QualifierMemo::default());
    let (mut batch, mut steps) = (BatchBuilder::new(), 0);
    while let Some(at) = entries.least() {
        let source = &entries.sources[at];
        let (key, value) = (source.key(), source.value());
        let verdict = match visibility.see(key, value).map_err(|error| source.damaged(&error))? {
            Seen::Cell { version } => judge(columns, &request.filter, now, &visibility, &mut state, version, value),
            Seen::Hidden | Seen::Deletion => Verdict::Step,
        };
        match verdict {
            Verdict::Push => {
                if state.cells == 0 {
                    batch.start_row(row, false);
                } else if batch.len() >= view.context.config.scan_batch_bytes {
                    return Ok(PointRead::Large);
                }
                state.cells += 1;
                let value = if request.filter.strip_values { &[] } else { value };
                let qualifier = qualifier.get(visibility.escaped_qualifier());
                batch.push(visibility.family(), qualifier, visibility.timestamp(), value);
            }
            Verdict::SkipTo(None) => break,
            Verdict::Step | Verdict::SkipColumn | Verdict::SkipTo(Some(_)) => {
                steps += 1;
                if steps > STEPS_MAX {
                    return Ok(PointRead::Large);
                }
            }
        }
        entries.advance(at)?;
    }
    let found = state.cells > 0;
    Ok(PointRead::Done(found.then(|| ScanBatch { data: batch.finish(), last_scanned: row.clone(), rows: 1 })))
}

/// What a file has of the row, after what its filters have answered already.
async fn find<'a>(file: &'a FileHandle, answer: Option<Answer>, target: &Target) -> Result<Found<'a>, EngineError> {
    let table = &*file.file;
    let tail = match table.tail() {
        Some(tail) => tail,
        None => table.open().await?,
    };
    if misses(tail, target) || answer != Some(Answer::Maybe) && is_excluded(file, tail, target).await? {
        return Ok(Found::Nothing);
    }
    let damaged = |offset: u64| move |error: DecodeError| table.damaged(offset, &error);
    let prefix = target.prefix();
    let Some((partition, next_partition)) = tail.partition_of(prefix).map_err(damaged(tail.blocks_end))? else {
        return Ok(Found::Large);
    };
    let handle = partition.handle;
    let partition = match table.cached_partition(handle) {
        Some(partition) => partition,
        None if target.fill_cache => table.partition(handle).await?,
        None => table.block_uncached(handle).await?,
    };
    let Some((value, next)) = partition.lookup(prefix).map_err(damaged(handle.offset))? else {
        return Ok(Found::Large);
    };
    // The separator of the next block has the row's prefix if and only if the row goes on there.
    if next.or(next_partition).is_some_and(|separator| separator.starts_with(prefix)) {
        return Ok(Found::Large);
    }
    if target.wanted != Wanted::ALL
        && let Some(facts) = unpack_facts(value).map_err(damaged(handle.offset))?
        && target.wanted.skips(&facts)
    {
        return Ok(Found::Nothing);
    }
    let handle = Handle::unpack(value, tail.blocks_end).map_err(damaged(handle.offset))?;
    let block = match table.cached(handle) {
        Some(block) => block,
        None if target.fill_cache => table.block(handle).await?,
        None => table.block_uncached(handle).await?,
    };
    let mut cursor = BlockCursor::new(block);
    match cursor.seek_prefix(prefix).map_err(damaged(handle.offset))? {
        true => Ok(Found::Entries(Source::Block { file, handle, cursor })),
        false => Ok(Found::Nothing),
    }
}

/// Whether filters exclude that the file has something of what is sought; reads them if they will stay.
async fn is_excluded(file: &FileHandle, tail: &Tail, target: &Target) -> Result<bool, EngineError> {
    let (mut reads, mut last) = (0, None);
    loop {
        match file.file.ask(tail, &target.probe) {
            Answer::Absent => return Ok(true),
            // The same once more: there is no room for it.
            Answer::Unread(number) if last == Some(number) => return Ok(false),
            Answer::Unread(number) if target.fill_cache && reads < target.probe.filters_read_max => {
                (reads, last) = (reads + 1, Some(number));
                let Some(filter) = tail.filter(number) else { return Ok(false) };
                file.file.read_filter(filter).await?;
            }
            Answer::Maybe | Answer::Unread(_) => return Ok(false),
        }
    }
}

/// Whether properties exclude that the file has something of the row.
fn misses(tail: &Tail, target: &Target) -> bool {
    let properties = &tail.properties;
    let prefix = target.prefix();
    target.wanted != Wanted::ALL && target.wanted.skips(&properties.facts())
        || properties.key_max[..] < *prefix
        || properties.key_min[..] > *prefix && !properties.key_min.starts_with(prefix)
}
