//! Where a tablet may be divided, and what of its files lies on either side.
//!
//! A position in a file is the offset of the block where a key would stand; rows are found by seeking, so
//! that every key that comes out is a row's. Small tablets are read as a whole instead.
//!
//! Invariant: a share is nothing only if the reference surely covers no entry on that side.

use std::sync::Arc;

use bytes::Bytes;
use uruk_proto::RowRange;
use uruk_proto::key;
use uruk_proto::master::{FileRef, FileShare};

use super::error::EngineError;
use super::filter::Filter;
use super::merge::Merge;
use super::sstable::cursor::{CursorState, FileCursor, ReadOptions};
use super::sstable::skip::Wanted;
use super::sstable::{FileHandle, SstableFile};
use super::store::TabletStore;
use super::view::{ScanRequest, ScanTargets};

/// Tablets up to this size are read to find their middle.
const READ_BYTES_MAX: u64 = 1 << 20;
/// Seeks to find the middle of a larger one.
const PROBES_MAX: usize = 160;
/// Close enough to the middle, in parts of the whole.
const TOLERANCE: f64 = 0.01;

const OPTIONS: ReadOptions = ReadOptions {
    fill_cache: true,
    cache_fill_bytes_max: u64::MAX,
    readahead_bytes_min: 0,
    readahead_bytes_max: 0,
    wanted: Wanted::ALL,
};

/// A reference and where it begins and ends in its file.
struct Extent {
    file: Arc<FileHandle>,
    start: u64,
    end: u64,
}

impl TabletStore {
    /// A row in the middle of the tablet's bytes, and not its first one; None with fewer than two rows.
    pub async fn middle(&self) -> Result<Option<Bytes>, EngineError> {
        let files = self.handles();
        let bytes: u64 = files.iter().map(|file| file.reference.bytes).sum();
        if bytes + self.memtable_bytes() <= READ_BYTES_MAX {
            return self.middle_of_rows().await;
        }
        let mut extents = Vec::with_capacity(files.len());
        for file in files {
            extents.push(self.extent(file).await?);
        }
        self.middle_of_extents(&extents).await
    }

    /// How each file reference is shared out between the rows below `at` and the others.
    pub async fn shares(&self, at: &Bytes) -> Result<Vec<FileShare>, EngineError> {
        let mut shares = Vec::new();
        for file in self.handles() {
            shares.push(self.share(file, at).await?);
        }
        Ok(shares)
    }

    async fn middle_of_rows(&self) -> Result<Option<Bytes>, EngineError> {
        let request = ScanRequest {
            targets: ScanTargets::Ranges(vec![RowRange::ALL]),
            filter: Filter::all(),
            rows_limit: 0,
            reverse: false,
            fill_cache: true,
        };
        let mut scanner = self.snapshot().scan(request)?;
        let mut rows: Vec<(Bytes, u64)> = Vec::new();
        while let Some(batch) = scanner.next_batch().await? {
            for piece in uruk_proto::cell_batch::unpack(batch.data).expect("the scanner packed it") {
                let bytes: usize =
                    piece.row.cells.iter().map(|cell| cell.qualifier.len() + cell.value.len() + 16).sum();
                match rows.last_mut().filter(|_| piece.goes_on_from_before) {
                    Some(row) => row.1 += bytes as u64,
                    None => rows.push((piece.row.key.clone(), (bytes + piece.row.key.len()) as u64)),
                }
            }
        }
        let total: u64 = rows.iter().map(|(_, bytes)| bytes).sum();
        let mut left = 0;
        let boundaries = rows.windows(2).map(|pair| {
            left += pair[0].1;
            (left.abs_diff(total - left), &pair[1].0)
        });
        Ok(boundaries.min_by_key(|(difference, _)| *difference).map(|(_, row)| row.clone()))
    }

    /// Bisects the key space between two rows that exist.
    async fn middle_of_extents(&self, extents: &[Extent]) -> Result<Option<Bytes>, EngineError> {
        let total: u64 = extents.iter().map(|extent| extent.file.reference.bytes).sum();
        let files: Vec<_> = extents.iter().map(|extent| extent.file.clone()).collect();
        let Some(first) = row_at_or_after(&files, &[]).await? else { return Ok(None) };
        let Some(last) = last_row(&files).await?.filter(|last| *last > first) else { return Ok(None) };
        let (mut low, mut high) = (first.clone(), last.clone());
        let mut best = (self.bytes_before(extents, &last).await?.abs_diff(total / 2), last);
        for _ in 0..PROBES_MAX {
            let middle = between(&low, &high);
            // The first row that exists from there on: at most `high`.
            let Some(row) = row_at_or_after(&files, &middle).await? else { break };
            if row >= high && middle <= low {
                break;
            }
            let before = self.bytes_before(extents, &row).await?;
            let distance = before.abs_diff(total / 2);
            if row > first && distance < best.0 {
                best = (distance, row.clone());
            }
            if best.0 as f64 <= total as f64 * TOLERANCE {
                break;
            }
            if before < total / 2 && row < high {
                low = row;
            } else if middle < high {
                high = middle.into();
            } else {
                break;
            }
            if low >= high {
                break;
            }
        }
        Ok(Some(best.1))
    }

    /// Bytes of all references below a row.
    async fn bytes_before(&self, extents: &[Extent], row: &[u8]) -> Result<u64, EngineError> {
        let mut bytes = 0;
        for extent in extents {
            let (left, _) = self.divide(extent, row).await?;
            bytes += left;
        }
        Ok(bytes)
    }

    async fn extent(&self, file: Arc<FileHandle>) -> Result<Extent, EngineError> {
        let blocks_end = file.file.open().await?.blocks_end;
        let start = match file.reference.low.is_empty() {
            true => 0,
            false => self.offset(&file.file, &file.reference.low).await?,
        };
        let end = match file.reference.high.is_empty() {
            true => blocks_end,
            false => self.offset(&file.file, &file.reference.high).await?,
        };
        Ok(Extent { file, start, end: end.max(start) })
    }

    /// The reference's bytes below the row, and the others, by blocks.
    async fn divide(&self, extent: &Extent, row: &[u8]) -> Result<(u64, u64), EngineError> {
        let bytes = extent.file.reference.bytes;
        let at = self.offset(&extent.file.file, row).await?.clamp(extent.start, extent.end);
        let span = extent.end - extent.start;
        let left = match span {
            0 => bytes / 2,
            _ => (u128::from(bytes) * u128::from(at - extent.start) / u128::from(span)) as u64,
        };
        Ok((left, bytes - left))
    }

    /// Where in the whole file the first entry at or after a row stands.
    async fn offset(&self, file: &Arc<SstableFile>, row: &[u8]) -> Result<u64, EngineError> {
        let whole = FileRef { path: file.path().to_string(), ..FileRef::default() };
        let handle = Arc::new(self.context().files.handle(&whole)?);
        let mut cursor = FileCursor::new(handle, OPTIONS);
        cursor.seek(&key::row_lower_bound(row), &[], None)?;
        while cursor.state() == CursorState::Blocked {
            cursor.load().await?;
        }
        match cursor.state() {
            CursorState::At => Ok(cursor.offset()),
            CursorState::End | CursorState::Blocked => Ok(file.open().await?.blocks_end),
        }
    }

    async fn share(&self, file: Arc<FileHandle>, at: &Bytes) -> Result<FileShare, EngineError> {
        let reference = file.reference.clone();
        let (has_left, has_right) = sides(&file, at).await?;
        let (left_bytes, right_bytes) = match (has_left, has_right) {
            (true, true) if is_small(&file) => (reference.bytes / 2, reference.bytes - reference.bytes / 2),
            (true, true) => {
                let extent = self.extent(file).await?;
                self.divide(&extent, at).await?
            }
            (true, false) => (reference.bytes, 0),
            (false, _) => (0, reference.bytes),
        };
        let left_cells = match reference.bytes {
            0 => 0,
            bytes => (u128::from(reference.cells) * u128::from(left_bytes) / u128::from(bytes)) as u64,
        };
        let at_least = |is_there: bool, number: u64| if is_there { number.max(1) } else { 0 };
        Ok(FileShare {
            path: reference.path,
            low: reference.low,
            left_bytes: at_least(has_left, left_bytes),
            left_cells: at_least(has_left, left_cells),
            right_bytes: at_least(has_right, right_bytes),
            right_cells: at_least(has_right, reference.cells.saturating_sub(left_cells)),
        })
    }
}

/// Just written, and too small for its blocks to matter: it need not be read.
fn is_small(file: &FileHandle) -> bool {
    file.file.tail().is_none() && file.reference.bytes <= READ_BYTES_MAX
}

/// Whether the reference covers any entry below the row, and any at or above it.
async fn sides(file: &Arc<FileHandle>, at: &[u8]) -> Result<(bool, bool), EngineError> {
    let bound = key::row_lower_bound(at);
    // What was just written says what it holds, if it is whole.
    if let Some(properties) = file.file.properties()
        && file.low() <= &properties.key_min[..]
        && (file.high().is_empty() || properties.key_max[..] < *file.high())
    {
        return Ok((properties.key_min[..] < bound[..], properties.key_max[..] >= bound[..]));
    }
    let mut sides = [false; 2];
    for (side, (low, high)) in sides.iter_mut().zip([(&[][..], &bound[..]), (&bound[..], &[][..])]) {
        let mut cursor = FileCursor::new(file.clone(), OPTIONS);
        cursor.seek(low, high, None)?;
        while cursor.state() == CursorState::Blocked {
            cursor.load().await?;
        }
        *side = cursor.state() == CursorState::At;
    }
    Ok((sides[0], sides[1]))
}

async fn row_at_or_after(files: &[Arc<FileHandle>], row: &[u8]) -> Result<Option<Bytes>, EngineError> {
    let mut merge = Merge::new([], files, OPTIONS);
    merge.seek(&key::row_lower_bound(row), &[])?;
    while merge.state() == CursorState::Blocked {
        merge.load().await?;
    }
    Ok((merge.state() == CursorState::At).then(|| row_of(merge.key())))
}

async fn last_row(files: &[Arc<FileHandle>]) -> Result<Option<Bytes>, EngineError> {
    let mut merge = Merge::new([], files, OPTIONS);
    merge.seek_before(&[], &[])?;
    while merge.state() == CursorState::Blocked {
        merge.load().await?;
    }
    Ok(merge.last_key().map(row_of))
}

fn row_of(key: &[u8]) -> Bytes {
    key::row_of_prefix(&key[..key::row_prefix_len(key).unwrap_or(key.len())])
}

/// A key between two, about half way: `low` < it <= `high`.
fn between(low: &[u8], high: &[u8]) -> Vec<u8> {
    // As fractions in base 256, from the first digit on in which they differ.
    const DIGITS: usize = 15;
    let same = low.iter().zip(high).take_while(|(a, b)| a == b).count();
    let digit = |key: &[u8], i: usize| u128::from(key.get(same + i).copied().unwrap_or(0));
    let digits = |key: &[u8]| (0..DIGITS).fold(0, |number, i| number << 8 | digit(key, i));
    let (a, b) = (digits(low), digits(high));
    let mut middle = high[..same.min(high.len())].to_vec();
    middle.extend_from_slice(&((a + b) / 2).to_be_bytes()[1..]);
    while middle.last() == Some(&0) {
        middle.pop();
    }
    if middle[..] > *low && middle[..] < *high { middle } else { high.to_vec() }
}

#[cfg(test)]
mod tests;
