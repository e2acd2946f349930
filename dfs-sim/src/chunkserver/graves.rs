//! Ids of segments that were deleted here, for ever.
//!
//! A writer that was stopped before it created a segment may wake after the log was sealed and
//! deleted: its create must still be refused, so the fence outlives the data (S7).
//!
//! They are kept in the file `GRAVES`: see `format/graves_file.rs`. A deletion appends single ids; a start
//! replaces the file by one with a record for each run of ids, behind a head record that counts them. Segments
//! are numbered one after the other, so there are few.
//!
//! Invariants:
//! 1. A grave is durable before it is believed, and believed before anything is deleted. What a start
//!    reads may never have been synced, so it is written again and synced first.
//! 2. The file is replaced as a whole: a crash leaves the old one or the new one.
//! 3. A torn record belongs to a deletion that was not carried out; it can only lie behind the runs that
//!    the head counts. Damage among those is corruption: the chunk server does not start with fences lost.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use uruk_base::DiskFile;
use uruk_base::disk::{Disk, OpenMode};

use super::error::StoreError;
use super::host::Host;
use crate::format::graves_file::{RECORD_BYTES, Record, encode, parse, put_head};

/// The set of deleted segments.
#[derive(Debug)]
pub(super) struct Graves {
    host: Arc<Host>,
    path: PathBuf,
    ids: Mutex<Runs>,
    /// The file and where its next record goes.
    file: tokio::sync::Mutex<(Arc<dyn DiskFile>, u64)>,
}

impl Graves {
    pub(super) async fn open(host: Arc<Host>, dir: &Path) -> Result<Graves, StoreError> {
        let path = dir.join("GRAVES");
        let disk = host.env.disk.clone();
        let old = match disk.exists(&path).await.map_err(StoreError::io(&path))? {
            true => disk.read(&path).await.map_err(StoreError::io(&path))?,
            false => Bytes::new(),
        };
        let ids = load(&path, &old)?;
        let new = ids.encode();
        let end = store(&*disk, &path, &old, new).await.map_err(StoreError::io(&path))?;
        let file = disk.open(&path, OpenMode::Write).await.map_err(StoreError::io(&path))?;
        Ok(Graves { host, path, ids: Mutex::new(ids), file: tokio::sync::Mutex::new((file, end)) })
    }

    pub(super) fn contains(&self, id: u64) -> bool {
        self.ids.lock().contains(id)
    }

    /// Adds ids, durably.
    pub(super) async fn add(&self, ids: &[u64]) -> Result<(), StoreError> {
        let mut file = self.file.lock().await;
        let new: Vec<u64> = {
            let known = self.ids.lock();
            ids.iter().copied().filter(|id| !known.contains(*id)).collect()
        };
        if new.is_empty() {
            return Ok(());
        }
        let records = encode(new.iter().map(|id| (*id, *id)));
        let bytes = records.len() as u64;
        file.0.write_at(file.1, records).await.map_err(StoreError::io(&self.path))?;
        // Durable.
        if let Err(error) = file.0.sync().await {
            self.host.fail(format!("sync of {}: {error}", self.path.display()));
            return Err(StoreError::io(&self.path)(error));
        }
        file.1 += bytes;
        // Visible: no create passes from here on.
        let mut known = self.ids.lock();
        new.iter().for_each(|id| known.insert(*id, *id));
        Ok(())
    }
}

/// Makes the graves durable; where the next record goes.
async fn store(disk: &dyn Disk, path: &Path, old: &Bytes, new: Bytes) -> std::io::Result<u64> {
    let end = new.len() as u64;
    match disk.replace(path, new).await {
        Ok(()) => Ok(end),
        // The old file takes no room that it has not: its bytes are written to it again.
        Err(error) if error.kind() == std::io::ErrorKind::StorageFull && !old.is_empty() => {
            let file = disk.open(path, OpenMode::Write).await?;
            file.write_at(0, old.clone()).await?;
            file.sync().await?;
            Ok((old.len() / RECORD_BYTES * RECORD_BYTES) as u64)
        }
        Err(error) => Err(error),
    }
}

/// Ids as runs: the first of each, and the last.
#[derive(Debug, Default)]
struct Runs(BTreeMap<u64, u64>);

impl Runs {
    fn contains(&self, id: u64) -> bool {
        self.0.range(..=id).next_back().is_some_and(|(_, last)| id <= *last)
    }

    fn insert(&mut self, mut first: u64, mut last: u64) {
        // Runs that it meets or touches become one with it.
        while let Some((before, until)) = self.0.range(..=last.saturating_add(1)).next_back()
            && until.saturating_add(1) >= first
        {
            (first, last) = (first.min(*before), last.max(*until));
            let before = *before;
            self.0.remove(&before);
        }
        self.0.insert(first, last);
    }

    /// A whole file: the head, and a record for each run.
    fn encode(&self) -> Bytes {
        let runs = encode(self.0.iter().map(|(first, last)| (*first, *last)));
        let count = (runs.len() / RECORD_BYTES) as u32;
        let mut file = BytesMut::with_capacity(RECORD_BYTES + runs.len());
        put_head(&mut file, count);
        file.extend_from_slice(&runs);
        file.freeze()
    }
}

/// What the file says; damage that no crash explains is an error.
fn load(path: &Path, file: &[u8]) -> Result<Runs, StoreError> {
    let mut ids = Runs::default();
    let mut counted = 0;
    for (index, record) in file.chunks(RECORD_BYTES).enumerate() {
        match parse(record) {
            Some(Record::Head(runs)) if index == 0 => counted = runs,
            Some(Record::Run(first, last)) => ids.insert(first, last),
            Some(Record::Head(_)) | None if index <= counted => {
                let what =
                    "a record of deleted segments is damaged; remove the data folder, and its copies are made anew";
                let offset = (index * RECORD_BYTES) as u64;
                return Err(StoreError::Corrupt { file: path.to_owned(), offset, what: what.to_owned() });
            }
            // Torn: the deletion was not carried out.
            Some(Record::Head(_)) | None => {
                tracing::warn!(file = %path.display(), offset = index * RECORD_BYTES, "a record is torn");
            }
        }
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_hold_what_was_inserted_and_survive_their_encoding(
            inserted in proptest::collection::vec((0u64..200, 0u64..5), 0..60),
        ) {
            let (mut runs, mut model) = (Runs::default(), BTreeSet::new());
            for (first, more) in inserted {
                runs.insert(first, first + more);
                model.extend(first..=first + more);
            }
            let again = load(Path::new("GRAVES"), &runs.encode()).expect("whole");
            prop_assert_eq!(&again.0, &runs.0);
            for id in 0..210 {
                prop_assert_eq!(runs.contains(id), model.contains(&id), "{}", id);
            }
            let apart = runs.0.iter().zip(runs.0.iter().skip(1)).all(|((_, last), (first, _))| last + 1 < *first);
            prop_assert!(apart, "{:?}", runs.0);
        }
    }

    #[test]
    fn the_largest_ids_and_runs_are_kept() {
        let mut runs = Runs::default();
        runs.insert(u64::MAX - 1, u64::MAX - 1);
        runs.insert(0, u64::from(u32::MAX) + 5);
        let file = runs.encode();
        assert_eq!(file.len(), 4 * RECORD_BYTES, "a head, two records for the long run, one for the other");
        assert_eq!(load(Path::new("GRAVES"), &file).expect("whole").0, runs.0);
    }

    #[test]
    fn damage_among_what_a_start_wrote_is_an_error_and_a_torn_append_is_not() {
        let mut runs = Runs::default();
        runs.insert(3, 9);
        runs.insert(20, 20);
        let whole = runs.encode();
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let found = load(Path::new("GRAVES"), &damaged);
            assert!(matches!(found, Err(StoreError::Corrupt { .. })), "bit {bit}: {found:?}");
        }
        let appended = encode([(30, 30), (31, 31)].into_iter());
        for len in 0..=appended.len() {
            let file = [&whole[..], &appended[..len]].concat();
            let found = load(Path::new("GRAVES"), &file).expect("a crash explains it");
            assert!(found.contains(5) && found.contains(20), "{len}");
            assert_eq!(found.contains(30), len >= RECORD_BYTES, "{len}");
        }
    }
}
