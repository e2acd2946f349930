//! The files of a tablet server besides table files, for people: what each holds, and where it is damaged. Any
//! bytes give a report.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use uruk_base::inspect::FileReport;
use uruk_proto::codec::DecodeError;

use super::memory::Memory;
use super::record::{RawRecord, Record};
use super::recovery_file;

pub use super::memory::FILE_MAGIC as MEMORY_MAGIC;
pub use super::recovery_file::FILE_MAGIC as RECOVERY_MAGIC;

/// A sorted piece of a dead server's log. Every slice is read, and every record in it.
pub fn recovery(file: &Bytes) -> FileReport {
    let mut report = FileReport::new("recovery file");
    let index_at = match recovery_file::parse_footer(file) {
        Ok((index_at, _)) if index_at <= file.len() as u64 => index_at,
        Ok((index_at, _)) => {
            report.damaged(index_at, format!("the index would lie beyond the {} bytes of the file", file.len()));
            return report;
        }
        Err(error) => {
            report.damaged(file.len().saturating_sub(recovery_file::FOOTER_BYTES) as u64, error);
            return report;
        }
    };
    let slices = match recovery_file::parse_index(&file.slice(index_at as usize..)) {
        Ok(slices) => slices,
        Err(error) => {
            report.damaged(index_at, error);
            return report;
        }
    };
    let (mut records, mut rows) = (BTreeMap::new(), 0);
    for (tablet, slice) in &slices {
        // Within the file: the index says where it starts itself.
        let bytes = file.slice(slice.offset as usize..(slice.offset + slice.len) as usize);
        match recovery_file::parse_slice(*tablet, slice, bytes) {
            Ok(raw) => {
                rows += check_records(&mut report, slice.offset, &raw);
                records.insert(*tablet, raw);
            }
            Err(error) => report.damaged(slice.offset, format!("{tablet}: {error}")),
        }
    }
    report.fact("tablets", slices.len());
    report.fact("records", records.values().map(Vec::len).sum::<usize>());
    report.fact("rows", rows);
    for (tablet, raw) in &records {
        if let (Some(first), Some(last)) = (raw.first(), raw.last()) {
            report.fact("slice", format!("{tablet}: {} records, {} to {}", raw.len(), first.first, last.last));
        }
    }
    report
}

/// The rows of a slice's records.
fn check_records(report: &mut FileReport, slice_at: u64, records: &[RawRecord]) -> usize {
    let (mut rows, mut at) = (0, slice_at);
    for record in records {
        match Record::parse(record.body.clone()) {
            Ok(parsed) => rows += parsed.rows.len(),
            Err(error) => report.damaged(at, error),
        }
        // Its length stands before it.
        at += record.body.len() as u64 + 4;
    }
    rows
}

/// What a tablet remembers besides cells.
pub fn memory(file: &Bytes) -> FileReport {
    let mut report = FileReport::new("memory file");
    match Memory::decode(file, Duration::MAX) {
        Err(DecodeError { what, offset, why }) => report.damaged(offset as u64, format!("{what}: {why}")),
        Ok((memory, upto)) => {
            let (runs, result_bytes) = memory.size();
            report.fact("flushed up to", upto);
            report.fact("highest timestamp", format!("{} µs", memory.highest_timestamp()));
            report.fact("runs of calls", runs);
            report.fact("bytes of results", result_bytes);
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use uruk_proto::{SeqNo, TabletId};

    use super::super::decode;
    use super::super::record::{Call, Piece, RowWrite, parse_frame, start_frame};
    use super::*;

    fn record(tablet: u64, seq: u64) -> Record {
        Record {
            tablet: TabletId(tablet),
            first: SeqNo(seq),
            last: SeqNo(seq),
            timestamp: 1_000,
            call: Some(Call { client: 1, sequence: seq, first_incomplete: 0, issued_micros: 5 }),
            result: Some(vec![1; 5].into()),
            piece: Piece::Whole,
            rows: vec![RowWrite { offset: 0, row: "row".into(), mutations: Bytes::new() }],
        }
    }

    fn recovery_of(records: &[Record]) -> Bytes {
        let mut frame = BytesMut::new();
        start_frame(&mut frame);
        records.iter().for_each(|record| record.put(&mut frame));
        recovery_file::build(parse_frame(frame.freeze()).expect("whole")).expect("has records")
    }

    fn assert_every_flipped_bit_is_seen(file: &Bytes, inspect: fn(&Bytes) -> FileReport) {
        assert_eq!(inspect(file).damage, []);
        for at in 0..file.len() {
            let mut bad = file.to_vec();
            bad[at] ^= 1 << (at % 8);
            assert!(!inspect(&bad.into()).damage.is_empty(), "byte {at}");
            assert!(!inspect(&file.slice(..at)).damage.is_empty(), "cut at {at}");
        }
    }

    #[test]
    fn a_recovery_file_is_told_and_its_damage_is_named() {
        let file = recovery_of(&[record(1, 1), record(2, 1), record(1, 2)]);
        assert!(file.ends_with(&RECOVERY_MAGIC));
        let report = recovery(&file);
        assert!(report.facts.contains(&("tablets", "2".to_owned())), "{report:?}");
        assert!(report.facts.contains(&("records", "3".to_owned())), "{report:?}");
        assert!(report.facts.contains(&("rows", "3".to_owned())), "{report:?}");
        assert_every_flipped_bit_is_seen(&file, recovery);
        let mut bad = file.to_vec();
        let index_at = recovery_file::parse_footer(&file).expect("sound").0 as usize;
        bad[2] ^= 1;
        bad[index_at - 2] ^= 1;
        let damage = recovery(&bad.into()).damage;
        assert_eq!(damage.len(), 2, "each damaged slice, not the first alone: {damage:?}");
    }

    #[test]
    fn a_memory_file_is_told_and_its_damage_is_seen() {
        let mut memory_of = Memory::new(Duration::from_secs(600));
        memory_of.remember(&record(1, 7));
        let file = memory_of.encode(SeqNo(9));
        assert!(file.starts_with(&MEMORY_MAGIC));
        let report = memory(&file);
        assert!(report.facts.contains(&("runs of calls", "1".to_owned())), "{report:?}");
        assert!(report.facts.contains(&("bytes of results", "5".to_owned())), "{report:?}");
        assert_every_flipped_bit_is_seen(&file, memory);
    }

    #[test]
    fn a_short_fuzz_run_from_valid_files_panics_nowhere() {
        const RUNS: u32 = 4000;
        let mut remembered = Memory::new(Duration::from_secs(600));
        remembered.remember(&record(1, 7));
        let mut frame = BytesMut::new();
        start_frame(&mut frame);
        record(3, 1).put(&mut frame);
        let recovery_file = recovery_of(&[record(1, 1), record(2, 1), record(1, 2)]);
        let corpus = [recovery_file, remembered.encode(SeqNo(9)), frame.freeze()];
        let random = uruk_base::Random::from_seed(1);
        let passes = |report: FileReport| !report.damage.iter().any(|damage| damage.what.contains("checksum"));
        let (mut memories, mut recoveries) = (0, 0);
        for _ in 0..RUNS {
            let input = uruk_base::splice::spliced(&corpus, &random);
            decode::recovery_file(&input);
            decode::memory_file(&input);
            decode::log_frame(&input);
            memories += u32::from(decode::signed_memory(&input).is_some_and(|signed| passes(memory(&signed))));
            recoveries += u32::from(decode::signed_recovery(&input).is_some_and(|signed| passes(recovery(&signed))));
        }
        // Behind the checksums, too.
        assert!(memories > RUNS / 2 && recoveries > RUNS / 10, "{memories}, {recoveries}");
    }
}
