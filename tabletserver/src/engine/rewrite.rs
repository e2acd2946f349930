//! A merge written to new files: what flush and compaction have in common.
//!
//! | entry | goes to |
//! |---|---|
//! | of a family that has moved to another locality group | a file of that group |
//! | deletion of a whole row | the group's own file, and a copy to each group that families move to |
//! | any other | the group's own file |
//!
//! A file that has reached its target size ends with its row; the next row starts another one. The
//! references of a group's files share out the tablet's rows, and carry the same range of sequence numbers.
//!
//! The work is cut into pieces that block for a bounded time each; between pieces the async part uploads
//! what is finished and loads what the merge waits for. Dropping the future cancels it between pieces.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use uruk_proto::master::{FileRef, LocalityGroupFiles};
use uruk_proto::schema::{FilterOn, TableSchema};
use uruk_proto::{FamilyId, RowRange, SeqNo, key};

use super::columns::{Column, Columns};
use super::config::GroupOptions;
use super::context::EngineContext;
use super::error::EngineError;
use super::merge::Merge;
use super::progress::Progress;
use super::sstable::TableBuilder;
use super::sstable::builder::BuiltTable;
use super::sstable::cursor::CursorState;
use super::sstable::upload::Upload;
use super::visible::{Seen, Visibility};

/// What need not be written.
#[derive(Clone, Debug)]
pub enum Purge {
    /// What other inputs hide. Deletions stay: they may hide something in older files.
    Hidden,
    /// Nothing older overlaps: also deletions, what GC rules let go at `now`, and families that the
    /// schema names no more.
    Everything {
        /// The schema's families.
        columns: Columns,
        /// Wall time, microseconds.
        now: i64,
    },
}

/// The files to be written.
pub struct Output<'a> {
    /// The tablet's rows: what the references will be clipped to, so that after a merge of tablets they
    /// say which rows' history is in the files.
    pub range: &'a RowRange,
    /// For display.
    pub level: u32,
    /// The locality group that is rewritten.
    pub group: u32,
    /// Families that have moved, and where to; by id.
    pub moved: Vec<(FamilyId, u32)>,
    /// Whether the files stay long: they are packed for that.
    pub is_major: bool,
    /// A file of this size ends with its row.
    pub file_bytes_max: u64,
    /// Told how far it has come.
    pub progress: &'a Arc<Progress>,
    /// Names a new file of a group: a path that was never used before.
    pub path: &'a mut (dyn FnMut(u32) -> String + Send),
}

/// Writes what a merge yields to new files, by group; none when nothing is left to write.
pub async fn rewrite(
    context: &EngineContext,
    schema: &TableSchema,
    mut merge: Merge,
    purge: Purge,
    output: Output<'_>,
) -> Result<Vec<LocalityGroupFiles>, EngineError> {
    merge.seek(&[], &[])?;
    let written_micros = context.env.clock.wall_micros();
    let groups = std::iter::once(output.group).chain(output.moved.iter().map(|(_, group)| *group));
    let formats = groups.map(|group| {
        let options = GroupOptions::of(&context.config, schema, group);
        let compression = if output.is_major { options.compression_major } else { options.compression };
        (group, Format { block_bytes: options.block_bytes, compression, filter: options.filter, written_micros })
    });
    let rewrite = Rewrite {
        merge,
        // Whoever reads an older snapshot holds the inputs themselves.
        visibility: Visibility::new(SeqNo::MAX),
        purge,
        piece_bytes: context.config.merge_piece_bytes,
        column: 0,
        wanted: None,
        config: context.config.clone(),
        group: output.group,
        moved: output.moved.clone(),
        file_bytes_max: output.file_bytes_max,
        progress: output.progress.clone(),
        formats: formats.collect(),
        open: BTreeMap::new(),
        written: Vec::new(),
    };
    let mut files = Files { context, output, open: BTreeMap::new(), done: BTreeMap::new() };
    match run(context, rewrite, &mut files).await {
        Ok(()) => Ok(files.finish()),
        Err(error) => {
            for (_, file) in std::mem::take(&mut files.open) {
                file.upload.abort().await;
            }
            Err(error)
        }
    }
}

async fn run(context: &EngineContext, mut rewrite: Rewrite, files: &mut Files<'_, '_>) -> Result<(), EngineError> {
    loop {
        let piece;
        (rewrite, piece) = context
            .env
            .tasks
            .blocking(move || {
                let piece = rewrite.piece();
                (rewrite, piece)
            })
            .await;
        for written in std::mem::take(&mut rewrite.written) {
            context.compaction_rate.wait(&context.env, files.output.level, written.bytes.len() as u64).await;
            files.take(written).await?;
        }
        match piece? {
            Piece::More => {}
            Piece::Blocked => rewrite.merge.load().await?,
            Piece::End => return Ok(()),
        }
    }
}

/// How the files of a group are built.
struct Format {
    block_bytes: usize,
    compression: super::sstable::format::Compression,
    filter: FilterOn,
    written_micros: i64,
}

/// A file under construction.
struct Open {
    builder: TableBuilder,
    /// Prefix of its last row.
    row: Vec<u8>,
}

/// More of a group's file.
struct Written {
    group: u32,
    bytes: Bytes,
    /// Its end, and the next file's first row (its key); empty: there is none.
    end: Option<(BuiltTable, Bytes)>,
}

struct Rewrite {
    merge: Merge,
    visibility: Visibility,
    purge: Purge,
    piece_bytes: usize,
    /// The column that `wanted` is about.
    column: u64,
    wanted: Option<usize>,
    config: super::config::EngineConfig,
    group: u32,
    moved: Vec<(FamilyId, u32)>,
    file_bytes_max: u64,
    progress: Arc<Progress>,
    formats: BTreeMap<u32, Format>,
    open: BTreeMap<u32, Open>,
    written: Vec<Written>,
}

enum Piece {
    More,
    Blocked,
    End,
}

impl Rewrite {
    fn piece(&mut self) -> Result<Piece, EngineError> {
        let mut entries = 0;
        let piece = self.merge_piece(&mut entries);
        self.progress.merged(entries);
        piece
    }

    fn merge_piece(&mut self, entries: &mut u64) -> Result<Piece, EngineError> {
        let mut bytes = 0;
        loop {
            match self.merge.state() {
                CursorState::At => {}
                CursorState::Blocked => return Ok(Piece::Blocked),
                CursorState::End => {
                    let groups: Vec<u32> = self.open.keys().copied().collect();
                    groups.into_iter().for_each(|group| self.end_file(group, Bytes::new()));
                    return Ok(Piece::End);
                }
            }
            if bytes >= self.piece_bytes {
                for (group, open) in &mut self.open {
                    let bytes = open.builder.take_output();
                    self.written.push(Written { group: *group, bytes, end: None });
                }
                return Ok(Piece::More);
            }
            let (key, value) = (self.merge.key(), self.merge.value());
            bytes += key.len() + value.len();
            *entries += 1;
            let seen = self.visibility.see(key, value).map_err(|error| self.merge.damaged(&error))?;
            if self.keeps(seen) {
                self.add()?;
            }
            self.merge.advance()?;
        }
    }

    fn keeps(&mut self, seen: Seen) -> bool {
        match (seen, &self.purge) {
            (Seen::Hidden, _) => false,
            (Seen::Deletion | Seen::Cell { .. }, Purge::Hidden) => true,
            (Seen::Deletion, Purge::Everything { .. }) => false,
            (Seen::Cell { version }, Purge::Everything { columns, now }) => {
                if self.column != self.visibility.columns_seen() {
                    self.column = self.visibility.columns_seen();
                    let row_len = self.visibility.row().len();
                    let column = &self.visibility.column()[row_len..];
                    self.wanted = match columns.judge(self.visibility.family(), column) {
                        Column::Wanted(family) => Some(family),
                        Column::Skip(_) => None,
                    };
                }
                let timestamp = self.visibility.timestamp();
                self.wanted.is_some_and(|family| !columns.family(family).gc.lets_go(version, timestamp, *now))
            }
        }
    }

    /// Writes the current entry to where it belongs.
    fn add(&mut self) -> Result<(), EngineError> {
        let family = self.visibility.family();
        if self.moved.is_empty() {
            return self.add_to(self.group);
        }
        if family == FamilyId(0) {
            let groups: Vec<u32> = self.formats.keys().copied().collect();
            return groups.into_iter().try_for_each(|group| self.add_to(group));
        }
        match self.moved.binary_search_by_key(&family, |(family, _)| *family) {
            Ok(at) => self.add_to(self.moved[at].1),
            Err(_) => self.add_to(self.group),
        }
    }

    fn add_to(&mut self, group: u32) -> Result<(), EngineError> {
        let is_full = |open: &Open| open.builder.bytes() >= self.file_bytes_max;
        if self.open.get(&group).is_some_and(is_full) && self.open[&group].row != self.visibility.row() {
            self.end_file(group, key::row_of_prefix(self.visibility.row()));
        }
        let open = self.open.entry(group).or_insert_with(|| {
            let format = &self.formats[&group];
            let builder = TableBuilder::new(&self.config, format.compression, format.written_micros);
            let builder = builder.with_block_bytes(format.block_bytes).with_filter(format.filter);
            Open { builder, row: Vec::new() }
        });
        let (key, value) = (self.merge.key(), self.merge.value());
        open.builder.add(key, value).map_err(|error| self.merge.damaged(&error))?;
        if open.row != self.visibility.row() {
            open.row.clear();
            open.row.extend_from_slice(self.visibility.row());
        }
        Ok(())
    }

    fn end_file(&mut self, group: u32, next_row: Bytes) {
        if let Some(open) = self.open.remove(&group) {
            let mut built = open.builder.finish();
            let bytes = std::mem::take(&mut built.output);
            self.written.push(Written { group, bytes, end: Some((built, next_row)) });
        }
    }
}

/// A file on its way to the object store.
struct OpenFile {
    path: String,
    upload: Upload,
}

/// The files: those under way, and the references of those that are complete.
struct Files<'c, 'o> {
    context: &'c EngineContext,
    output: Output<'o>,
    open: BTreeMap<u32, OpenFile>,
    done: BTreeMap<u32, Vec<FileRef>>,
}

impl Files<'_, '_> {
    async fn take(&mut self, written: Written) -> Result<(), EngineError> {
        let group = written.group;
        if !self.open.contains_key(&group) {
            let path = (self.output.path)(group);
            let location = Path::parse(&path)
                .map_err(|error| EngineError::Store { file: path.clone(), why: error.to_string() })?;
            let upload = Upload::new(self.context.files.store().clone(), location, &self.context.config);
            self.open.insert(group, OpenFile { path, upload });
        }
        let file = self.open.get_mut(&group).expect("just put there");
        if !written.bytes.is_empty() {
            self.output.progress.wrote(written.bytes.len() as u64);
            file.upload.add(written.bytes).await?;
        }
        let Some((built, next_row)) = written.end else { return Ok(()) };
        let OpenFile { path, upload } = self.open.remove(&group).expect("just used");
        upload.finish().await?;
        self.context.files.note_written(&path, &built.properties);
        let done = self.done.entry(group).or_default();
        // From where the one before it ended, to where the next one starts.
        let low = done.last().map_or_else(|| self.output.range.start.clone(), |before| before.high.clone());
        let high = if next_row.is_empty() { self.output.range.end.clone() } else { next_row };
        done.push(FileRef {
            path,
            low,
            high,
            bytes: built.bytes,
            cells: built.properties.entries(),
            min_seq: built.properties.seq_min.0,
            max_seq: built.properties.seq_max.0,
            level: self.output.level,
        });
        Ok(())
    }

    fn finish(self) -> Vec<LocalityGroupFiles> {
        let groups = self.done.into_iter().map(|(locality_group, mut files)| {
            let min_seq = files.iter().map(|file| file.min_seq).min().unwrap_or(0);
            let max_seq = files.iter().map(|file| file.max_seq).max().unwrap_or(0);
            // What was cut apart is one unit to who picks files to merge.
            files.iter_mut().for_each(|file| (file.min_seq, file.max_seq) = (min_seq, max_seq));
            LocalityGroupFiles { locality_group, files }
        });
        groups.collect()
    }
}
