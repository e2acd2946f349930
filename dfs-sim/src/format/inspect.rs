//! The files of a chunk server, for people: what each holds, and where it is damaged. Any bytes give a report.

use bytes::Bytes;
use uruk_base::inspect::FileReport;

use super::block_sums;
use super::chunk_file::{FOOTER_BYTES, data_bytes, parse_trailer};
use super::graves_file::{self, RECORD_BYTES, Record};
use super::replica_file::{DATA_OFFSET, ReplicaMeta, parse_header, parse_meta};
use super::{CHECKSUM_BLOCK_BYTES, FRAME_HEADER_BYTES, FrameError, Frames, SegmentKey};

/// The last eight bytes of a chunk's file.
pub const CHUNK_MAGIC: [u8; 8] = *b"URUKCHNK";
/// The first eight bytes of a replica's bytes.
pub const SEGMENT_MAGIC: [u8; 8] = *b"URUKSEGM";
/// The first eight bytes of a replica's state.
pub const STATE_MAGIC: [u8; 8] = *b"URUKMETA";

/// A chunk's file, and the chunk itself as far as its length is known.
pub fn chunk(file: &Bytes) -> (FileReport, Option<Bytes>) {
    let mut report = FileReport::new("chunk");
    let Some(bytes) = data_bytes(file.len() as u64) else {
        report.damaged(0, format!("no chunk's file has {} bytes", file.len()));
        return (report, None);
    };
    let footer_at = file.len() - FOOTER_BYTES as usize;
    let id = u64_at(file, footer_at);
    report.fact("chunk", format!("{id:016x}"));
    report.fact("bytes of data", bytes);
    let data = file.slice(..bytes as usize);
    match parse_trailer(id, file.len() as u64, &file[bytes as usize..]) {
        Err(error) => report.damaged(bytes, error),
        Ok(trailer) => {
            report.fact("checksums", trailer.blocks.len());
            check_blocks(&mut report, &trailer.blocks, &data, 0);
            if report.damage.is_empty() && crc32fast::hash(&data) != trailer.crc {
                report.damaged(footer_at as u64 + 16, "the checksum of the whole does not fit those of its parts");
            }
        }
    }
    (report, Some(data))
}

/// The bytes of a segment's replica; `state` is the content of the file beside it, without which payloads cannot
/// be checked: their checksums cover the number of the log.
pub fn segment(file: &Bytes, state: Option<&ReplicaMeta>) -> FileReport {
    let mut report = FileReport::new("replica of a log segment");
    if file.len() < DATA_OFFSET as usize {
        report.damaged(0, "the file ends within its first page");
        return report;
    }
    let id = u64_at(file, 16);
    report.fact("segment", format!("{id:016x}"));
    let mut vouched = 0;
    match parse_header(id, &file[..DATA_OFFSET as usize]) {
        Ok(watermark) => {
            report.fact("acknowledged", watermark.acknowledged);
            report.fact("committed", watermark.committed);
            vouched = watermark.acknowledged.max(watermark.committed);
        }
        Err(error) => report.damaged(0, error),
    }
    let mut data = file.slice(DATA_OFFSET as usize..);
    if let Some(state) = state {
        if state.segment_id != id {
            report.damaged(16, format!("the state beside it is of segment {:016x}", state.segment_id));
        }
        vouched = vouched.max(state.fence_length);
        if let Some(sealed) = &state.sealed {
            vouched = vouched.max(sealed.length);
            data.truncate(sealed.length as usize);
            check_blocks(&mut report, &sealed.blocks, &data, DATA_OFFSET);
        }
    }
    let log_id = state.map(|state| state.log_id).filter(|log_id| *log_id != 0);
    let (frames, valid) = match log_id {
        Some(log_id) => walk(SegmentKey { log_id, segment_id: id }, &data),
        None => walk_headers(&data),
    };
    report.fact("payloads", if log_id.is_some() { "checked" } else { "not checked: no state beside it" });
    report.fact("frames", frames);
    report.fact("bytes of frames", valid);
    match valid {
        valid if valid == data.len() as u64 && valid >= vouched => {}
        valid if valid >= vouched => {
            let rest = &data[valid as usize..];
            match rest.iter().all(|byte| *byte == 0) {
                true => report.fact("room ahead", format!("{} bytes of zeros", rest.len())),
                false => report.fact("torn tail", format!("{} bytes, never acknowledged", rest.len())),
            }
        }
        valid => report
            .damaged(DATA_OFFSET + valid, format!("no valid frame, where the replica vouches for {vouched} bytes")),
    }
    report
}

/// The state of a segment's replica, and what it says.
pub fn state(file: &Bytes) -> (FileReport, Option<ReplicaMeta>) {
    let mut report = FileReport::new("state of a log segment's replica");
    // The id lies within the body: first in postcard, as a varint.
    let id = file.get(16..).and_then(|body| postcard::take_from_bytes::<u64>(body).ok()).map_or(0, |(id, _)| id);
    match parse_meta(id, file) {
        Err(error) => {
            report.damaged(0, error);
            (report, None)
        }
        Ok(meta) => {
            report.fact("segment", format!("{id:016x}"));
            report.fact("log", meta.log_id);
            report.fact("origin, mode", format!("{:?}, {:?}", meta.origin, meta.mode));
            report.fact("boot", &meta.boot_id);
            report.fact("has bytes", meta.has_log);
            report.fact("fence", format!("{} at {} bytes", meta.fence, meta.fence_length));
            if let Some(why) = &meta.distrusted {
                report.fact("distrusted", why);
            }
            report.fact("sealed at", meta.sealed.as_ref().map_or("-".to_owned(), |sealed| sealed.length.to_string()));
            (report, Some(meta))
        }
    }
}

/// The deleted segments of a chunk server.
pub fn graves(file: &[u8]) -> FileReport {
    let mut report = FileReport::new("deleted segments of a chunk server");
    let (mut ids, mut counted) = (0_u64, 0);
    for (index, record) in file.chunks(RECORD_BYTES).enumerate() {
        let offset = (index * RECORD_BYTES) as u64;
        match graves_file::parse(record) {
            Some(Record::Head(runs)) if index == 0 => counted = runs,
            Some(Record::Run(first, last)) => ids = ids.saturating_add((last - first).saturating_add(1)),
            Some(Record::Head(_)) | None if index <= counted => report.damaged(offset, "this record is damaged"),
            Some(Record::Head(_)) | None => report.fact("torn append", format!("at byte {offset}")),
        }
    }
    if counted > 0 && file.len() / RECORD_BYTES <= counted {
        report.damaged(file.len() as u64, format!("the head counts {counted} records, and the file ends before"));
    }
    report.fact("deleted segments", ids);
    report.fact("records that the last start wrote", counted);
    report.fact("records appended since", (file.len() / RECORD_BYTES).saturating_sub(counted + 1));
    report
}

/// Every bad block, not the first alone.
fn check_blocks(report: &mut FileReport, blocks: &[u32], data: &[u8], at: u64) {
    for (number, block) in data.chunks(CHECKSUM_BLOCK_BYTES as usize).enumerate() {
        if block_sums::verify(blocks, number as u64, block).is_err() {
            let offset = at + number as u64 * CHECKSUM_BLOCK_BYTES;
            report.damaged(offset, format!("{} bytes from here fail their checksum", block.len()));
        }
    }
    if blocks.len() as u64 != block_sums::block_count(data.len() as u64) {
        report.damaged(at + data.len() as u64, format!("{} checksums for {} bytes", blocks.len(), data.len()));
    }
}

/// Valid frames from the start, and their bytes.
fn walk(key: SegmentKey, data: &Bytes) -> (u64, u64) {
    let (mut count, mut end) = (0, 0);
    for frame in Frames::new(key, 0, data.clone()) {
        match frame {
            Ok(frame) => (count, end) = (count + 1, frame.end),
            Err(FrameError::Torn { .. } | FrameError::BadChecksum { .. }) => break,
        }
    }
    (count, end)
}

/// The same by headers alone.
fn walk_headers(data: &[u8]) -> (u64, u64) {
    let (mut count, mut at) = (0, 0);
    while let Some(header) = data.get(at..at + FRAME_HEADER_BYTES) {
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let end = at + FRAME_HEADER_BYTES + word(0) as usize;
        if word(8) != crc32fast::hash(&header[..8]) || word(0) == 0 || end > data.len() {
            break;
        }
        (count, at) = (count + 1, end);
    }
    (count, at as u64)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::super::block_sums::BlockSums;
    use super::super::chunk_file::encode_trailer;
    use super::super::decode;
    use super::super::encode_frame;
    use super::super::replica_file::{
        Mode, Origin, SealedMeta, WATERMARK_OFFSET, Watermark, encode_header, encode_meta, encode_watermark,
    };
    use super::*;

    fn chunk_file() -> Bytes {
        let data: Vec<u8> = (0..150_000u32).map(|i| (i * 7 % 251) as u8).collect();
        let mut file = data.clone();
        file.extend_from_slice(&encode_trailer(5, &BlockSums::of(&data)));
        file.into()
    }

    #[test]
    fn a_damaged_block_of_a_chunk_is_named() {
        let file = chunk_file();
        let (report, data) = chunk(&file);
        assert_eq!((report.damage, data.unwrap().len()), (vec![], 150_000));
        for at in (0..file.len()).step_by(997).chain(file.len() - 60..file.len()) {
            let mut bad = file.to_vec();
            bad[at] ^= 1;
            let damage = chunk(&bad.into()).0.damage;
            assert!(!damage.is_empty(), "byte {at}");
            if at < 150_000 {
                assert_eq!(damage[0].offset, at as u64 / CHECKSUM_BLOCK_BYTES * CHECKSUM_BLOCK_BYTES);
            }
        }
        (0..200).for_each(|len| assert!(!chunk(&file.slice(..len)).0.damage.is_empty()));
    }

    fn replica() -> (ReplicaMeta, Vec<u8>) {
        let key = SegmentKey { log_id: 7, segment_id: 9 };
        let mut data = BytesMut::new();
        for i in 1..20u8 {
            let offset = data.len() as u64;
            encode_frame(key, offset, &[i; 30], &mut data);
        }
        let mut file = encode_header(9).to_vec();
        let acknowledged = Watermark { acknowledged: data.len() as u64, committed: 0 };
        let watermark = encode_watermark(acknowledged);
        file[WATERMARK_OFFSET as usize..WATERMARK_OFFSET as usize + watermark.len()].copy_from_slice(&watermark);
        file.extend_from_slice(&data);
        let meta = ReplicaMeta {
            segment_id: 9,
            log_id: 7,
            origin: Origin::Member,
            mode: Mode::Fsync,
            boot_id: "b".into(),
            has_log: true,
            fence: 0,
            fence_length: 0,
            distrusted: None,
            sealed: None,
        };
        (meta, file)
    }

    #[test]
    fn a_torn_tail_of_a_replica_is_told_from_damage() {
        let (meta, file) = replica();
        let good = segment(&file.clone().into(), Some(&meta));
        assert_eq!(good.damage, []);
        assert!(good.facts.contains(&("frames", "19".to_owned())));
        assert_eq!(segment(&file.clone().into(), None).damage, []);
        let mut torn = file.clone();
        torn.extend_from_slice(&[3; 10]);
        let report = segment(&torn.into(), Some(&meta));
        assert!(report.damage.is_empty() && report.facts.iter().any(|(name, _)| *name == "torn tail"));
        let mut ahead = file.clone();
        ahead.extend_from_slice(&[0; 4096]);
        let report = segment(&ahead.into(), Some(&meta));
        assert!(report.damage.is_empty() && report.facts.contains(&("room ahead", "4096 bytes of zeros".to_owned())));
        let mut bad = file.clone();
        let at = DATA_OFFSET as usize + 5 * 42 + 20;
        bad[at] ^= 4;
        assert_eq!(segment(&bad.into(), Some(&meta)).damage[0].offset, DATA_OFFSET + 5 * 42);
        (0..4200).step_by(41).for_each(|len| assert!(!segment(&file[..len].to_vec().into(), None).damage.is_empty()));
    }

    #[test]
    fn a_sealed_replica_is_checked_by_its_blocks_and_its_state_is_told() {
        let (mut meta, file) = replica();
        let sums = BlockSums::of(&file[DATA_OFFSET as usize..]);
        meta.sealed = Some(SealedMeta { length: sums.bytes(), crc: sums.total(), blocks: sums.blocks() });
        assert_eq!(segment(&file.clone().into(), Some(&meta)).damage, []);
        let mut bad = file.clone();
        bad[DATA_OFFSET as usize + 3] ^= 1;
        assert_eq!(segment(&bad.into(), Some(&meta)).damage[0].offset, DATA_OFFSET);
        let encoded = encode_meta(&meta);
        assert_eq!(state(&encoded), (state(&encoded).0, Some(meta)));
        for at in 0..encoded.len() {
            let mut bad = encoded.to_vec();
            bad[at] ^= 1;
            assert!(!state(&bad.into()).0.damage.is_empty(), "byte {at}");
        }
    }

    #[test]
    fn damaged_graves_are_named_and_a_torn_append_is_none() {
        let mut file = BytesMut::new();
        graves_file::put_head(&mut file, 2);
        file.extend_from_slice(&graves_file::encode([(3, 9), (20, 20)].into_iter()));
        let whole = graves(&file);
        assert_eq!(whole.damage, []);
        assert!(whole.facts.contains(&("deleted segments", "8".to_owned())));
        for at in 0..file.len() {
            let mut bad = file.to_vec();
            bad[at] ^= 1;
            let damage = graves(&bad).damage;
            assert_eq!(damage.first().map(|damage| damage.offset), Some((at / RECORD_BYTES * RECORD_BYTES) as u64));
        }
        assert!(!graves(&file[..2 * RECORD_BYTES]).damage.is_empty());
        file.extend_from_slice(&graves_file::encode([(30, 30)].into_iter())[..10]);
        assert_eq!(graves(&file).damage, []);
    }

    #[test]
    fn a_short_fuzz_run_from_valid_files_panics_nowhere() {
        const RUNS: u32 = 4000;
        let (meta, file) = replica();
        let graves_file = graves_file::encode([(3, 9), (20, 20)].into_iter());
        let corpus = [chunk_file().slice(140_000..), file.into(), encode_meta(&meta), graves_file];
        let random = uruk_base::Random::from_seed(1);
        let mut passed = [0; 4];
        for _ in 0..RUNS {
            let input = uruk_base::splice::spliced(&corpus, &random);
            decode::chunk(&input);
            decode::segment(&input);
            decode::segment_with(&input, Some(&meta));
            decode::segment_state(&input);
            decode::graves(&input);
            let id = input.len().checked_sub(FOOTER_BYTES as usize).map_or(0, |at| u64_at(&input, at));
            let signed = decode::signed_chunk(&input);
            let data_at = data_bytes(signed.len() as u64).unwrap_or_default() as usize;
            passed[0] += u32::from(parse_trailer(id, signed.len() as u64, &signed[data_at..]).is_ok());
            passed[1] += u32::from(segment(&decode::signed_segment(&input), None).facts.len() > 4);
            passed[2] += u32::from(state(&decode::signed_state(&input)).1.is_some());
            passed[3] += u32::from(graves(&decode::signed_graves(&input)).damage.is_empty());
        }
        // Behind the checksums, too.
        assert!(passed.iter().all(|passed| *passed > RUNS / 50), "{passed:?}");
    }
}
