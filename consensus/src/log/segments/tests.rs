use bytes::Bytes;
use openraft::EntryPayload;
use openraft::impls::leader_id_std::LeaderId;
use tempfile::TempDir;
use uruk_base::disk::RealDisk;

use super::*;
use crate::types::{Command, log_id};

async fn open(folder: &Path, bytes_max: u64) -> Result<(Segments, Vec<Entry>), StartError> {
    let (segments, entries) = Segments::open(Arc::new(RealDisk), folder, "g", 1, bytes_max).await?;
    Ok((segments, entries.into()))
}

fn entry(term: u64, index: u64) -> Entry {
    let command = Bytes::from(format!("command {index} of term {term}"));
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(Command(command)) }
}

fn entries(term: u64, range: std::ops::Range<u64>) -> Vec<Entry> {
    range.map(|index| entry(term, index)).collect()
}

async fn append(segments: &mut Segments, entries: &[Entry]) {
    let mut body = EntriesBody::new();
    entries.iter().for_each(|entry| body.push(entry));
    segments.append(body, entries.last().unwrap().log_id.index).await.unwrap();
}

/// Bytes of the file.
async fn read(path: &Path) -> Vec<u8> {
    RealDisk.read(path).await.unwrap().to_vec()
}

async fn write(path: &Path, content: &[u8]) {
    RealDisk.replace(path, Bytes::copy_from_slice(content)).await.unwrap();
}

fn first_segment(folder: &TempDir) -> PathBuf {
    folder.path().join("log-00000000000000000001")
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let vote = Vote { leader_id: LeaderId { term: 4, voted_for: 2 }, committed: true };
    for round in 0..4 {
        let (mut segments, found) = open(folder.path(), 300).await.unwrap();
        assert_eq!(found, entries(1, 0..round * 10));
        for at in 0..5 {
            append(&mut segments, &entries(1, round * 10 + at * 2..round * 10 + at * 2 + 2)).await;
        }
        segments.save_vote(&vote).await.unwrap();
    }
    let (segments, found) = open(folder.path(), 300).await.unwrap();
    assert_eq!(found, entries(1, 0..40));
    assert_eq!(segments.state().vote(), Some(vote));
    assert!(segments.sealed.len() > 3, "segments were rolled");
}

#[tokio::test]
async fn a_cut_is_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let (mut segments, _) = open(folder.path(), 200).await.unwrap();
    for at in 0..10 {
        append(&mut segments, &[entry(1, at)]).await;
    }
    segments.cut(3).await.unwrap();
    append(&mut segments, &entries(2, 3..5)).await;
    let (_, found) = open(folder.path(), 200).await.unwrap();
    assert_eq!(found, [entries(1, 0..3), entries(2, 3..5)].concat());
}

#[tokio::test]
async fn a_purge_removes_old_segments_and_keeps_the_rest_readable() {
    let folder = tempfile::tempdir().unwrap();
    let (mut segments, _) = open(folder.path(), 200).await.unwrap();
    for at in 0..30 {
        append(&mut segments, &[entry(1, at)]).await;
    }
    let before = segments.sealed.len();
    segments.purge(log_id(1, 20), false).await.unwrap();
    assert!(segments.sealed.len() < before / 2 + 1);
    let (mut segments, found) = open(folder.path(), 200).await.unwrap();
    assert_eq!(found, entries(1, 21..30));
    // A snapshot that is far ahead of the log replaces all of it.
    segments.purge(log_id(7, 100), true).await.unwrap();
    append(&mut segments, &entries(7, 101..103)).await;
    let (segments, found) = open(folder.path(), 200).await.unwrap();
    assert_eq!(found, entries(7, 101..103));
    assert_eq!(segments.state().purged(), Some(log_id(7, 100)));
}

#[tokio::test]
async fn a_crash_in_the_middle_of_a_purge_resurrects_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (mut segments, _) = open(folder.path(), 100).await.unwrap();
    for at in 0..20 {
        append(&mut segments, &[entry(1, at)]).await;
    }
    segments.cut(5).await.unwrap();
    append(&mut segments, &entries(2, 5..8)).await;
    segments.state.set_purged(log_id(3, 10));
    segments.state.write(&RealDisk, folder.path()).await.unwrap();
    // The state is written, and any number of the oldest segments is gone.
    while let Some(oldest) = sequences(&RealDisk, folder.path()).await.unwrap().first().copied() {
        let (_, found) = open(folder.path(), 100).await.unwrap();
        assert_eq!(found, [], "before segment {oldest} goes");
        RealDisk.remove(&segments.path(oldest)).await.unwrap();
    }
}

#[tokio::test]
async fn a_crash_at_any_byte_keeps_a_prefix_and_the_log_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = first_segment(&folder);
    let (mut segments, _) = open(folder.path(), u64::MAX).await.unwrap();
    // After each step: the file's length, and the log that was acknowledged by then.
    let mut acknowledged = vec![(0, Vec::new())];
    for (term, range) in [(1, 0..2), (1, 2..3), (1, 3..6)] {
        append(&mut segments, &entries(term, range.clone())).await;
        acknowledged.push((read(&path).await.len(), entries(1, 0..range.end)));
    }
    segments.cut(4).await.unwrap();
    acknowledged.push((read(&path).await.len(), entries(1, 0..4)));
    append(&mut segments, &[entry(2, 4)]).await;
    acknowledged.push((read(&path).await.len(), [entries(1, 0..4), vec![entry(2, 4)]].concat()));
    let whole = read(&path).await;
    for len in 0..=whole.len() {
        write(&path, &whole[..len]).await;
        let (_, expected) = acknowledged.iter().rfind(|(end, _)| *end <= len).unwrap();
        let (mut segments, found) = open(folder.path(), u64::MAX).await.unwrap();
        assert_eq!(found, *expected, "cut off at {len}");
        let next = entry(9, found.len() as u64);
        append(&mut segments, std::slice::from_ref(&next)).await;
        let (_, found) = open(folder.path(), u64::MAX).await.unwrap();
        assert_eq!(found, [expected.clone(), vec![next]].concat(), "cut off at {len}, then appended");
    }
}

#[tokio::test]
async fn a_torn_tail_of_zeros_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let (mut segments, _) = open(folder.path(), u64::MAX).await.unwrap();
    append(&mut segments, &entries(1, 0..3)).await;
    let mut bytes = read(&first_segment(&folder)).await;
    let good = bytes.len();
    bytes.resize(good + 5000, 0);
    write(&first_segment(&folder), &bytes).await;
    let (_, found) = open(folder.path(), u64::MAX).await.unwrap();
    assert_eq!(found, entries(1, 0..3));
    assert_eq!(read(&first_segment(&folder)).await.len(), good);
}

#[tokio::test]
async fn damage_before_the_last_write_names_file_and_offset() {
    let folder = tempfile::tempdir().unwrap();
    let path = first_segment(&folder);
    let (mut segments, _) = open(folder.path(), u64::MAX).await.unwrap();
    let mut offsets = Vec::new();
    for at in 0..3 {
        offsets.push(segments.active.as_ref().map_or(SEGMENT_HEADER_BYTES as u64, |active| active.len));
        append(&mut segments, &[entry(1, at)]).await;
    }
    let whole = read(&path).await;
    for place in 0..offsets[2] as usize {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x10;
        write(&path, &bytes).await;
        let expected = offsets.iter().rfind(|at| **at as usize <= place).copied().unwrap_or(0);
        match open(folder.path(), u64::MAX).await {
            Err(StartError::Corrupt { path: named, offset, .. }) => {
                assert_eq!((named, offset), (path.clone(), expected))
            }
            other => panic!("byte {place}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_torn_tail_in_an_older_segment_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let (mut segments, _) = open(folder.path(), 1).await.unwrap();
    append(&mut segments, &entries(1, 0..3)).await;
    append(&mut segments, &entries(1, 3..4)).await;
    let path = first_segment(&folder);
    let bytes = read(&path).await;
    write(&path, &bytes[..bytes.len() - 1]).await;
    let error = open(folder.path(), 1).await.unwrap_err();
    assert!(matches!(&error, StartError::Corrupt { path: named, offset: 24, .. } if *named == path), "{error}");
}

#[tokio::test]
async fn a_missing_segment_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let (mut segments, _) = open(folder.path(), 1).await.unwrap();
    for at in 0..3 {
        append(&mut segments, &[entry(1, at)]).await;
    }
    RealDisk.remove(&segments.path(2)).await.unwrap();
    let error = open(folder.path(), 1).await.unwrap_err();
    assert!(matches!(&error, StartError::Corrupt { path, .. } if *path == segments.path(3)), "{error}");
}

#[tokio::test]
async fn a_log_without_its_state_or_of_another_node_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (mut segments, _) = open(folder.path(), 1000).await.unwrap();
    append(&mut segments, &[entry(1, 0)]).await;
    let other = Segments::open(Arc::new(RealDisk), folder.path(), "g", 2, 1000).await;
    assert!(matches!(other, Err(StartError::WrongOwner { found_node: 1, .. })));
    RealDisk.remove(&folder.path().join("state")).await.unwrap();
    assert!(matches!(open(folder.path(), 1000).await, Err(StartError::Corrupt { .. })));
}
