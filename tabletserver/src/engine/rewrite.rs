//! A merge written to one new file: what flush and compaction have in common.
//!
//! The work is cut into pieces that block for a bounded time each; between pieces the async part uploads
//! what is finished and loads what the merge waits for. Dropping the future cancels it between pieces.

use object_store::path::Path;
use uruk_proto::master::FileRef;
use uruk_proto::{RowRange, SeqNo};

use super::columns::{Column, Columns};
use super::context::EngineContext;
use super::error::EngineError;
use super::merge::Merge;
use super::sstable::TableBuilder;
use super::sstable::cursor::CursorState;
use super::sstable::format::Compression;
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

struct Rewrite {
    merge: Merge,
    visibility: Visibility,
    builder: TableBuilder,
    purge: Purge,
    piece_bytes: usize,
    /// The column that `wanted` is about.
    column: u64,
    wanted: Option<usize>,
}

enum Piece {
    More,
    Blocked,
    End,
}

impl Rewrite {
    fn piece(&mut self) -> Result<Piece, EngineError> {
        let mut bytes = 0;
        loop {
            match self.merge.state() {
                CursorState::At => {}
                CursorState::Blocked => return Ok(Piece::Blocked),
                CursorState::End => return Ok(Piece::End),
            }
            if bytes >= self.piece_bytes {
                return Ok(Piece::More);
            }
            let (key, value) = (self.merge.key(), self.merge.value());
            bytes += key.len() + value.len();
            let seen = self.visibility.see(key, value).map_err(|error| self.merge.damaged(&error))?;
            let keep = match (seen, &self.purge) {
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
            };
            if keep {
                self.builder.add(key, value).map_err(|error| self.merge.damaged(&error))?;
            }
            self.merge.advance()?;
        }
    }
}

/// The file to be written.
pub struct Output<'a> {
    /// A path that was never used before.
    pub path: &'a str,
    /// The tablet's rows: what the reference will be clipped to, so that after a merge of tablets it
    /// says which rows' history is in the file.
    pub range: &'a RowRange,
    /// For display.
    pub level: u32,
    /// How its blocks are packed.
    pub compression: Compression,
}

/// Writes what a merge yields to a new file. None when nothing is left to write; then there is no file.
pub async fn rewrite(
    context: &EngineContext,
    mut merge: Merge,
    purge: Purge,
    output: Output<'_>,
) -> Result<Option<FileRef>, EngineError> {
    let location = Path::parse(output.path)
        .map_err(|error| EngineError::Store { file: output.path.to_owned(), why: error.to_string() })?;
    merge.seek(&[], &[])?;
    let rewrite = Rewrite {
        merge,
        // Whoever reads an older snapshot holds the inputs themselves.
        visibility: Visibility::new(SeqNo::MAX),
        builder: TableBuilder::new(&context.config, output.compression, context.env.clock.wall_micros()),
        purge,
        piece_bytes: context.config.merge_piece_bytes,
        column: 0,
        wanted: None,
    };
    let mut upload = Upload::new(context.files.store().clone(), location, &context.config);
    let result = run(context, rewrite, &mut upload).await;
    let built = match result {
        Ok(Some(built)) => built,
        Ok(None) => return Ok(None),
        Err(error) => {
            upload.abort().await;
            return Err(error);
        }
    };
    upload.finish().await?;
    context.files.note_written(output.path, &built.properties);
    Ok(Some(FileRef {
        path: output.path.to_owned(),
        low: output.range.start.clone(),
        high: output.range.end.clone(),
        bytes: built.bytes,
        cells: built.properties.entries(),
        min_seq: built.properties.seq_min.0,
        max_seq: built.properties.seq_max.0,
        level: output.level,
    }))
}

async fn run(
    context: &EngineContext,
    mut rewrite: Rewrite,
    upload: &mut Upload,
) -> Result<Option<super::sstable::builder::BuiltTable>, EngineError> {
    loop {
        let (piece, output);
        (rewrite, piece, output) = context
            .env
            .tasks
            .blocking(move || {
                let piece = rewrite.piece();
                let output = rewrite.builder.take_output();
                (rewrite, piece, output)
            })
            .await;
        if !output.is_empty() {
            upload.add(output).await?;
        }
        match piece? {
            Piece::More => {}
            Piece::Blocked => rewrite.merge.load().await?,
            Piece::End if rewrite.builder.is_empty() => return Ok(None),
            Piece::End => {
                let mut built = context.env.tasks.blocking(move || rewrite.builder.finish()).await;
                upload.add(std::mem::take(&mut built.output)).await?;
                return Ok(Some(built));
            }
        }
    }
}
