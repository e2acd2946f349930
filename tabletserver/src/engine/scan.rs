//! Rows as packed batches of cells.
//!
//! A [`RowScanner`] looks a single row up ([`point`]) or drives a merge through [`Visibility`] and the filter into a batch. The inner loop is
//! synchronous and allocates nothing per cell; it stops to wait only for blocks that are not in memory.
//!
//! Invariants: (1) a row comes out whole or in pieces that say so, never twice; (2) `last_scanned` names
//! only rows that were looked at completely; (3) an error is an error, never the end.

use std::sync::Arc;

use bytes::Bytes;
use uruk_proto::cell_batch::BatchBuilder;
use uruk_proto::{RowRange, key};

use super::columns::{Column, Columns, step_behind};
use super::error::EngineError;
use super::filter::Filter;
use super::merge::Merge;
use super::point::{self, PointRead};
use super::sstable::FileHandle;
use super::sstable::cursor::{CursorState, ReadOptions};
use super::sstable::row_filter::RowProbe;
use super::sstable::tail::Answer;
use super::store::Version;
use super::view::{ReadView, ScanRequest, ScanTargets};
use super::visible::{Seen, Visibility};

/// First window that a scan reads ahead.
const READAHEAD_BYTES_MIN: usize = 64 << 10;

/// Packed rows, and how far the scan got.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanBatch {
    /// `uruk_proto::cell_batch`; may be empty when nothing matched for a long while.
    pub data: Bytes,
    /// Everything up to and including this row (reverse: down to) has been looked at; empty: nothing
    /// complete yet.
    pub last_scanned: Bytes,
    /// Rows, or pieces of them, in `data`.
    pub rows: usize,
}

#[derive(Debug)]
enum Target {
    Range(RowRange),
    Row(Bytes),
}

/// What is left to read, in the order of reading.
#[derive(Debug)]
struct Targets {
    /// Next one last.
    left: Vec<Target>,
    reverse: bool,
}

impl Targets {
    fn new(targets: ScanTargets, tablet: &RowRange, reverse: bool) -> Targets {
        let mut left: Vec<Target> = match targets {
            ScanTargets::Ranges(ranges) => {
                let within = ranges.iter().map(|range| range.intersect(tablet));
                within.filter(|range| !range.is_empty()).map(Target::Range).collect()
            }
            ScanTargets::Rows(rows) => rows.into_iter().filter(|row| tablet.contains(row)).map(Target::Row).collect(),
        };
        if !reverse {
            left.reverse();
        }
        Targets { left, reverse }
    }
}

#[derive(Debug)]
enum Phase {
    /// Take the next target.
    NextTarget,
    /// Walk what the merge was positioned on, then do what `then` says.
    Walk(Then),
    /// Reverse: the merge stands before `bound`, to find the last row there.
    FindLast {
        low: Vec<u8>,
    },
    Ended,
}

#[derive(Debug)]
enum Then {
    NextTarget,
    /// This row (its prefix) was a target of its own.
    RowLooked(Vec<u8>),
    /// Reverse: this row (its prefix) is done; go on before it, down to `low`.
    Before {
        row: Vec<u8>,
        low: Vec<u8>,
    },
}

/// Where the walk is within its row.
#[derive(Debug, Default)]
pub(super) struct RowState {
    /// The row key, once a cell of it was let through.
    key: Vec<u8>,
    started: bool,
    pub(super) cells: u32,
    /// The column that the next fields are about.
    column: u64,
    verdict: Option<Column>,
    column_cells: u32,
    /// Unwanted entries stepped over since the last wanted one.
    steps: u32,
}

/// The last qualifier, to be shared by the next cells of its name.
#[derive(Debug, Default)]
pub(super) struct QualifierMemo {
    escaped: Vec<u8>,
    qualifier: Bytes,
}

impl QualifierMemo {
    pub(super) fn get(&mut self, escaped: &[u8]) -> &Bytes {
        if self.escaped != escaped {
            self.escaped.clear();
            self.escaped.extend_from_slice(escaped);
            self.qualifier = key::row_of_prefix(escaped);
        }
        &self.qualifier
    }
}

/// What to do with a cell.
pub(super) enum Verdict {
    Push,
    /// Unwanted, and so may be the one after it.
    Step,
    /// Nothing more of this column.
    SkipColumn,
    /// On to the family with this index, or nothing more of the row.
    SkipTo(Option<usize>),
}

enum Step {
    Batch(ScanBatch),
    Blocked,
    End,
}

/// A running read.
#[derive(Debug)]
pub struct RowScanner(Way);

#[derive(Debug)]
enum Way {
    /// One row, looked up.
    Row(Box<(ReadView, ScanRequest)>),
    /// A walk.
    Walk(Box<Scan>),
    Ended,
}

impl RowScanner {
    pub(super) fn start(view: &ReadView, request: ScanRequest) -> RowScanner {
        match &request.targets {
            ScanTargets::Rows(rows) if rows.len() == 1 => match view.range.contains(&rows[0]) {
                // The walk that it may have to become needs no bounds: they hold for the one row.
                true => RowScanner(Way::Row(Box::new((view.unbounded(), request)))),
                false => RowScanner(Way::Ended),
            },
            ScanTargets::Rows(_) | ScanTargets::Ranges(_) => {
                RowScanner(Way::Walk(Box::new(Scan::start(view, request))))
            }
        }
    }

    /// The next batch; None at the end. After an error the scan is over.
    pub async fn next_batch(&mut self) -> Result<Option<ScanBatch>, EngineError> {
        loop {
            match &mut self.0 {
                Way::Ended => return Ok(None),
                Way::Walk(scan) => return scan.next_batch().await,
                Way::Row(read) => {
                    let found = point::read(&read.0, &read.1).await;
                    let Way::Row(read) = std::mem::replace(&mut self.0, Way::Ended) else {
                        unreachable!("just matched");
                    };
                    match found? {
                        PointRead::Done(batch) => return Ok(batch),
                        PointRead::Large => self.0 = Way::Walk(Box::new(Scan::start(&read.0, read.1))),
                    }
                }
            }
        }
    }
}

/// A walk over ranges or rows.
#[derive(Debug)]
struct Scan {
    merge: Merge,
    visibility: Visibility,
    columns: Arc<Columns>,
    filter: Filter,
    now: i64,
    phase: Phase,
    targets: Targets,
    rows_left: u64,
    batch_bytes: usize,
    step_bytes: usize,
    steps_before_seek: u32,
    /// Bytes looked at since the last batch.
    examined: usize,
    batch: BatchBuilder,
    row: RowState,
    qualifier: QualifierMemo,
    /// Prefix of the last row that was looked at completely.
    last_scanned: Vec<u8>,
    _pins: Arc<Version>,
}

impl Scan {
    fn start(view: &ReadView, request: ScanRequest) -> Scan {
        let config = &view.context.config;
        let columns = view.version.columns(&request.filter);
        let now = view.context.env.clock.wall_micros();
        let options = ReadOptions {
            fill_cache: request.fill_cache,
            cache_fill_bytes_max: config.scan_cache_fill_bytes_max,
            readahead_bytes_min: READAHEAD_BYTES_MIN.min(config.readahead_bytes_max),
            readahead_bytes_max: config.readahead_bytes_max,
            wanted: columns.wanted(&request.filter, now),
        };
        let memtables = view.version.memtables_of(&columns);
        let probe = match &request.targets {
            ScanTargets::Rows(rows) if rows.len() == 1 => Some(columns.probe(key::row_prefix(&rows[0]))),
            ScanTargets::Rows(_) | ScanTargets::Ranges(_) => None,
        };
        let may_matter =
            |file: &&Arc<FileHandle>| probe.as_ref().is_none_or(|probe| file.ask(probe) != Some(Answer::Absent));
        let files = view.version.files_of(&columns).filter(may_matter);
        let merge = Merge::new(memtables, files, options);
        Scan {
            merge,
            visibility: Visibility::new(view.seq),
            columns: columns.clone(),
            filter: request.filter,
            now,
            phase: Phase::NextTarget,
            targets: Targets::new(request.targets, &view.range, request.reverse),
            rows_left: if request.rows_limit == 0 { u64::MAX } else { request.rows_limit },
            batch_bytes: config.scan_batch_bytes,
            step_bytes: config.scan_step_bytes,
            steps_before_seek: config.scan_steps_before_seek,
            examined: 0,
            batch: BatchBuilder::new(),
            row: RowState::default(),
            qualifier: QualifierMemo::default(),
            last_scanned: Vec::new(),
            _pins: view.version.clone(),
        }
    }

    async fn next_batch(&mut self) -> Result<Option<ScanBatch>, EngineError> {
        loop {
            match self.step() {
                Ok(Step::Batch(batch)) => return Ok(Some(batch)),
                Ok(Step::End) => return Ok(None),
                Ok(Step::Blocked) => {
                    if let Err(error) = self.merge.load().await {
                        self.phase = Phase::Ended;
                        return Err(error);
                    }
                }
                Err(error) => {
                    self.phase = Phase::Ended;
                    return Err(error);
                }
            }
        }
    }

    fn step(&mut self) -> Result<Step, EngineError> {
        loop {
            match &self.phase {
                Phase::Ended => return Ok(Step::End),
                Phase::NextTarget => self.next_target()?,
                Phase::FindLast { .. } if self.merge.state() == CursorState::Blocked => return Ok(Step::Blocked),
                Phase::FindLast { .. } => self.found_last()?,
                Phase::Walk(_) => {
                    if let Some(step) = self.walk()? {
                        return Ok(step);
                    }
                    self.end_walk()?;
                }
            }
            if matches!(self.phase, Phase::Ended) {
                self.batch.finish_row();
                if !self.batch.is_empty() {
                    return Ok(Step::Batch(self.take_batch()));
                }
            }
        }
    }

    fn next_target(&mut self) -> Result<(), EngineError> {
        let target = if self.rows_left == 0 { None } else { self.targets.left.pop() };
        self.phase = match target {
            None => Phase::Ended,
            Some(Target::Row(row)) => {
                let prefix = key::row_prefix(&row);
                self.seek_row(self.columns.probe(prefix.clone()))?;
                Phase::Walk(Then::RowLooked(prefix))
            }
            Some(Target::Range(range)) => {
                let (low, high) = (key::row_lower_bound(&range.start), key::row_lower_bound(&range.end));
                if self.targets.reverse {
                    self.merge.seek_before(&high, &low)?;
                    Phase::FindLast { low }
                } else {
                    self.merge.seek(&low, &high)?;
                    Phase::Walk(Then::NextTarget)
                }
            }
        };
        Ok(())
    }

    fn seek_row(&mut self, probe: RowProbe) -> Result<(), EngineError> {
        let mut upper = probe.row.prefix.clone();
        step_behind(&mut upper);
        self.merge.seek_row(&Arc::new(probe), &upper)
    }

    /// Reverse: the last row before the bound is known.
    fn found_last(&mut self) -> Result<(), EngineError> {
        let Phase::FindLast { low } = std::mem::replace(&mut self.phase, Phase::NextTarget) else {
            unreachable!("the caller matched it");
        };
        let Some(last) = self.merge.last_key() else { return Ok(()) };
        let row_len = key::row_prefix_len(last).ok_or_else(|| {
            self.merge.damaged(&uruk_proto::DecodeError { what: "key", offset: 0, why: "row without end" })
        })?;
        let row = last[..row_len].to_vec();
        self.seek_row(self.columns.probe(row.clone()).of_present())?;
        self.phase = Phase::Walk(Then::Before { row, low });
        Ok(())
    }

    /// The merge has ended: so has the row under way.
    fn end_walk(&mut self) -> Result<(), EngineError> {
        self.leave_row();
        let Phase::Walk(then) = std::mem::replace(&mut self.phase, Phase::NextTarget) else {
            unreachable!("the caller matched it");
        };
        match then {
            Then::NextTarget => {}
            Then::RowLooked(row) => self.last_scanned = row,
            Then::Before { row, low } => {
                if self.rows_left > 0 {
                    self.merge.seek_before(&row, &low)?;
                    self.phase = Phase::FindLast { low };
                }
            }
        }
        Ok(())
    }

    /// Packs what the merge yields. None at its end.
    fn walk(&mut self) -> Result<Option<Step>, EngineError> {
        loop {
            match self.merge.state() {
                CursorState::At => {}
                CursorState::Blocked => return Ok(Some(Step::Blocked)),
                CursorState::End => return Ok(None),
            }
            let new_row = self.visibility.is_new_row(self.merge.key());
            if new_row {
                self.leave_row();
                if self.rows_left == 0 {
                    self.phase = Phase::Ended;
                    return Ok(Some(match self.batch.is_empty() {
                        true => Step::End,
                        false => Step::Batch(self.take_batch()),
                    }));
                }
            }
            let full = self.batch.len() >= self.batch_bytes;
            if new_row && full || self.examined >= self.step_bytes && (new_row || self.batch.is_empty()) {
                return Ok(Some(Step::Batch(self.take_batch())));
            }
            let (key, value) = (self.merge.key(), self.merge.value());
            self.examined += key.len() + value.len();
            let seen = self.visibility.see(key, value).map_err(|error| self.merge.damaged(&error))?;
            let verdict = match seen {
                Seen::Cell { version } => {
                    judge(&self.columns, &self.filter, self.now, &self.visibility, &mut self.row, version, value)
                }
                Seen::Hidden | Seen::Deletion => {
                    self.merge.advance()?;
                    continue;
                }
            };
            match verdict {
                Verdict::Push => {
                    let batch = (full && self.row.started).then(|| {
                        self.batch.break_row();
                        self.take_batch()
                    });
                    self.push(batch.is_some());
                    self.merge.advance()?;
                    if let Some(batch) = batch {
                        return Ok(Some(Step::Batch(batch)));
                    }
                }
                Verdict::Step => self.merge.advance()?,
                Verdict::SkipColumn | Verdict::SkipTo(_) => self.skip(verdict)?,
            }
        }
    }

    /// Adds the current cell to the batch; `goes_on`: the batch is new and begins within the row.
    fn push(&mut self, goes_on: bool) {
        let visibility = &self.visibility;
        if !self.row.started {
            self.row.started = true;
            self.row.key.clear();
            key::put_unescaped(&mut self.row.key, visibility.row());
            self.batch.start_row(&self.row.key, false);
            self.rows_left -= 1;
        } else if goes_on {
            self.batch.start_row(&self.row.key, true);
        }
        self.row.steps = 0;
        self.row.cells += 1;
        let qualifier = self.qualifier.get(visibility.escaped_qualifier());
        let value = if self.filter.strip_values { &[] } else { self.merge.value() };
        self.batch.push(visibility.family(), qualifier, visibility.timestamp(), value);
    }

    /// Goes on behind what is not wanted: by a step at first, by a seek if that takes too many.
    fn skip(&mut self, verdict: Verdict) -> Result<(), EngineError> {
        self.row.steps += 1;
        if self.row.steps <= self.steps_before_seek {
            return self.merge.advance();
        }
        self.row.steps = 0;
        let target = match verdict {
            Verdict::SkipColumn => {
                let mut target = self.visibility.column().to_vec();
                step_behind(&mut target);
                target
            }
            Verdict::SkipTo(next) => {
                let mut target = self.visibility.row().to_vec();
                self.columns.skip_target(&mut target, self.visibility.family(), next);
                target
            }
            Verdict::Push | Verdict::Step => unreachable!("nothing to skip"),
        };
        self.merge.skip_to(&target)
    }

    /// The row under way, if any, has been looked at completely.
    fn leave_row(&mut self) {
        self.batch.finish_row();
        if !self.visibility.row().is_empty() {
            self.last_scanned.clear();
            self.last_scanned.extend_from_slice(self.visibility.row());
        }
        self.row.started = false;
        self.row.cells = 0;
        self.row.steps = 0;
    }

    fn take_batch(&mut self) -> ScanBatch {
        self.examined = 0;
        let mut last_scanned = Vec::with_capacity(self.last_scanned.len());
        key::put_unescaped(&mut last_scanned, &self.last_scanned);
        let rows = self.batch.rows();
        ScanBatch { data: self.batch.finish(), last_scanned: last_scanned.into(), rows }
    }
}

/// What the GC rule and the filter say of a shown cell.
#[inline]
pub(super) fn judge(
    columns: &Columns,
    filter: &Filter,
    now: i64,
    visibility: &Visibility,
    row: &mut RowState,
    version: u32,
    value: &[u8],
) -> Verdict {
    if row.column != visibility.columns_seen() || row.verdict.is_none() {
        row.column = visibility.columns_seen();
        row.column_cells = 0;
        let column = &visibility.column()[visibility.row().len()..];
        row.verdict = Some(columns.judge(visibility.family(), column));
    }
    let family = match row.verdict {
        Some(Column::Wanted(family)) => columns.family(family),
        Some(Column::Skip(next)) => return Verdict::SkipTo(next),
        None => unreachable!("just judged"),
    };
    if filter.cells_per_row.is_some_and(|limit| row.cells >= limit) {
        return Verdict::SkipTo(None);
    }
    let timestamp = visibility.timestamp();
    // Rules let go of all that is older, too: what they judge by only grows along a column.
    if timestamp < filter.timestamp_min || family.gc.lets_go(version, timestamp, now) {
        return Verdict::SkipColumn;
    }
    if filter.timestamp_end.is_some_and(|end| timestamp >= end) {
        return Verdict::Step;
    }
    if filter.cells_per_column.is_some_and(|limit| row.column_cells >= limit) {
        return Verdict::SkipColumn;
    }
    row.column_cells += 1;
    match &filter.value {
        Some(wanted) if wanted[..] != *value => Verdict::Step,
        Some(_) | None => Verdict::Push,
    }
}

#[cfg(test)]
mod tests;
