//! The log's files.
//!
//! Invariants:
//! 1. When `append`, `cut`, `save_vote` or `purge` returns, its effect survives any crash.
//! 2. A segment is begun only after the one before it was synced; only the newest is written.
//! 3. Segments go oldest first, each removal durable before the next: what remains is always a tail.
//! 4. After an error the files are in doubt: the owner stops.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uruk_base::disk::{Disk, DiskFile, OpenMode};

use crate::error::StartError;
use crate::hard_state::HardState;
use crate::log::format::{EntriesBody, SEGMENT_HEADER_BYTES, Scan, cut_frame, scan_segment, segment_header};
use crate::log::replay::Replay;
use crate::types::{Entry, LogId, Vote};

const PREFIX: &str = "log-";

/// The log's files, opened for writing.
#[derive(Debug)]
pub(crate) struct Segments {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    bytes_max: u64,
    state: HardState,
    /// Full segments, oldest first.
    sealed: VecDeque<Sealed>,
    active: Option<Active>,
    next_sequence: u64,
}

#[derive(Clone, Copy, Debug)]
struct Sealed {
    sequence: u64,
    /// The highest index that an entry in it ever had; none if it holds cuts alone.
    highest: Option<u64>,
}

#[derive(Debug)]
struct Active {
    sequence: u64,
    highest: Option<u64>,
    file: Arc<dyn DiskFile>,
    len: u64,
}

impl Segments {
    /// Opens the log in `folder`, or begins one, and returns its entries.
    pub(crate) async fn open(
        disk: Arc<dyn Disk>,
        folder: &Path,
        group: &str,
        node: u64,
        bytes_max: u64,
    ) -> Result<(Segments, VecDeque<Entry>), StartError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| StartError::Disk { path, source }
        };
        let sequences = sequences(&*disk, folder).await.map_err(at(folder))?;
        let state = match HardState::read(&*disk, folder, group, node).await? {
            Some(state) => state,
            None if sequences.is_empty() => {
                let state = HardState::new(group, node);
                state.write(&*disk, folder).await.map_err(at(&HardState::path(folder)))?;
                state
            }
            None => {
                let problem = "it is missing, but there is a log".to_owned();
                return Err(StartError::Corrupt { path: HardState::path(folder), offset: 0, problem });
            }
        };
        let mut segments = Segments {
            disk,
            folder: folder.to_owned(),
            bytes_max,
            state,
            sealed: VecDeque::new(),
            active: None,
            next_sequence: sequences.last().map_or(1, |last| last + 1),
        };
        let mut replay = Replay::new(segments.state.purged());
        for sequence in &sequences {
            let path = segments.path(*sequence);
            let bytes = segments.disk.read(&path).await.map_err(at(&path))?;
            let scan = scan_segment(&bytes, *sequence);
            segments.take(*sequence, sequences.last() == Some(sequence), bytes.len() as u64, scan, &mut replay).await?;
        }
        let entries = replay.finish().map_err(|problem| {
            let path = segments.path(sequences.first().copied().unwrap_or_default());
            StartError::Corrupt { path, offset: 0, problem }
        })?;
        // What a killed process had written without syncing was read above as if it were durable.
        if let Some(active) = &segments.active {
            active.file.sync().await.map_err(at(folder))?;
        }
        segments.disk.sync_dir(folder).await.map_err(at(folder))?;
        Ok((segments, entries))
    }

    /// Takes over one segment that was found.
    async fn take(
        &mut self,
        sequence: u64,
        is_last: bool,
        len: u64,
        scan: Scan,
        replay: &mut Replay,
    ) -> Result<(), StartError> {
        let path = self.path(sequence);
        if let Some(bad) = &scan.bad {
            if !(is_last && bad.torn) {
                return Err(StartError::Corrupt { path, offset: bad.offset, problem: bad.problem.clone() });
            }
            tracing::info!(path = %path.display(), offset = bad.offset, bytes = len - bad.offset, "cutting off a torn tail");
        }
        let mut highest = None;
        for (offset, frame) in scan.frames {
            if let crate::log::format::Frame::Entries(entries) = &frame {
                highest = entries.iter().map(|entry| entry.log_id.index).max().max(highest);
            }
            replay.apply(frame).map_err(|problem| StartError::Corrupt { path: path.clone(), offset, problem })?;
        }
        let at = |source| StartError::Disk { path: path.clone(), source };
        if !is_last {
            self.sealed.push_back(Sealed { sequence, highest });
        } else if scan.good_bytes < SEGMENT_HEADER_BYTES as u64 {
            // Its creation was torn: nothing was ever acknowledged from it.
            self.disk.remove(&path).await.map_err(at)?;
            self.next_sequence = sequence;
        } else {
            let file = self.disk.open(&path, OpenMode::Write).await.map_err(at)?;
            if scan.good_bytes < len {
                file.set_len(scan.good_bytes).await.map_err(at)?;
            }
            self.active = Some(Active { sequence, highest, file, len: scan.good_bytes });
        }
        Ok(())
    }

    /// The vote and the purge point, as they are on disk.
    pub(crate) fn state(&self) -> &HardState {
        &self.state
    }

    /// Appends one frame of entries, the last of which has the index `highest`.
    pub(crate) async fn append(&mut self, body: EntriesBody, highest: u64) -> io::Result<()> {
        self.write(Some(highest), |offset| body.into_frame(offset)).await
    }

    /// Voids the entries at `from` and behind it.
    pub(crate) async fn cut(&mut self, from: u64) -> io::Result<()> {
        self.write(None, |offset| cut_frame(offset, from)).await
    }

    async fn write(&mut self, highest: Option<u64>, frame: impl FnOnce(u64) -> bytes::Bytes) -> io::Result<()> {
        if let Some(full) = self.active.take_if(|active| active.len >= self.bytes_max) {
            self.sealed.push_back(Sealed { sequence: full.sequence, highest: full.highest });
        }
        if self.active.is_none() {
            self.active = Some(self.create().await?);
        }
        let active = self.active.as_mut().expect("created above");
        let frame = frame(active.len);
        let len = frame.len() as u64;
        active.file.write_at(active.len, frame).await?;
        active.file.sync().await?; // durable
        active.len += len;
        active.highest = active.highest.max(highest);
        Ok(())
    }

    async fn create(&mut self) -> io::Result<Active> {
        let sequence = self.next_sequence;
        let file = self.disk.open(&self.path(sequence), OpenMode::CreateNew).await?;
        file.write_at(0, segment_header(sequence)).await?;
        file.sync().await?;
        self.disk.sync_dir(&self.folder).await?;
        self.next_sequence += 1;
        Ok(Active { sequence, highest: None, file, len: SEGMENT_HEADER_BYTES as u64 })
    }

    /// Remembers the vote.
    pub(crate) async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.state.set_vote(vote);
        self.state.write(&*self.disk, &self.folder).await
    }

    /// Forgets entries up to and with `upto`; `all` says that no entry remains.
    pub(crate) async fn purge(&mut self, upto: LogId, all: bool) -> io::Result<()> {
        self.state.set_purged(upto);
        self.state.write(&*self.disk, &self.folder).await?; // durable; the rest only frees space
        while let Some(oldest) = self.sealed.front().copied()
            && (all || oldest.highest.is_none_or(|highest| highest <= upto.index))
        {
            self.remove(oldest.sequence).await?;
            self.sealed.pop_front();
        }
        // The next entry may leave a gap behind these, so it begins a segment of its own.
        if all && let Some(active) = self.active.take() {
            self.remove(active.sequence).await?;
        }
        Ok(())
    }

    async fn remove(&self, sequence: u64) -> io::Result<()> {
        self.disk.remove(&self.path(sequence)).await?;
        self.disk.sync_dir(&self.folder).await
    }

    fn path(&self, sequence: u64) -> PathBuf {
        self.folder.join(format!("{PREFIX}{sequence:020}"))
    }
}

/// The sequence numbers of the segments in `folder`, ascending.
async fn sequences(disk: &dyn Disk, folder: &Path) -> io::Result<Vec<u64>> {
    let entries = disk.list(folder).await?;
    let mut found: Vec<u64> =
        entries.iter().filter_map(|entry| entry.name.strip_prefix(PREFIX)?.parse().ok()).collect();
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests;
