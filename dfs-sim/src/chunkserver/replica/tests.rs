use bytes::{Bytes, BytesMut};

use super::*;
use crate::chunkserver::block_reader::Source;
use crate::chunkserver::testing::*;
use crate::format::encode_frame;

mod crashes;
mod graves;

async fn start(seed: u64, mode: Mode) -> (Machine, Process, Arc<Replica>) {
    let machine = Machine::new(seed);
    let process = machine.start().await;
    let replica = process.open(mode).await;
    (machine, process, replica)
}

/// `n` frames of 100 payload bytes each.
async fn filled(replica: &Replica, n: u64) -> Bytes {
    let mut all = BytesMut::new();
    for i in 0..n {
        let frame = frame(all.len() as u64, &[i as u8; 100]);
        append(replica, all.len() as u64, &frame).await;
        all.extend_from_slice(&frame);
    }
    held(replica, all.len() as u64).await;
    all.freeze()
}

async fn refusal(replica: &Replica, offset: u64, data: &Bytes) -> StoreError {
    replica.append(offset, data.clone(), crc32fast::hash(data), 0).await.expect_err("refused")
}

fn known(answer: FenceAnswer) -> (u64, u64) {
    match answer {
        FenceAnswer::Known { length, committed, .. } => (length, committed),
        FenceAnswer::Unknown { reason } => panic!("unknown: {reason}"),
    }
}

fn unknown(answer: FenceAnswer) -> String {
    match answer {
        FenceAnswer::Known { length, .. } => panic!("known: {length} bytes"),
        FenceAnswer::Unknown { reason } => reason,
    }
}

// ---------------------------------------------------------------- append

#[tokio::test(start_paused = true)]
async fn frames_in_order_are_held_and_read_back() {
    for mode in [Mode::Fsync, Mode::Replicated] {
        let (_, _, replica) = start(1, mode).await;
        let all = filled(&replica, 30).await;
        assert_eq!(replica.length(), all.len() as u64);
        known(replica.fence(1).await.expect("fences"));
        assert_eq!(content(&replica, 1).await, all);
    }
}

#[tokio::test(start_paused = true)]
async fn a_gap_is_refused() {
    let (_, _, replica) = start(1, Mode::Fsync).await;
    let error = refusal(&replica, 10, &frame(10, b"x")).await;
    assert!(matches!(error, StoreError::State(_)) && error.to_string().contains("0 bytes"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn identical_bytes_may_come_again_and_other_bytes_never() {
    let (_, _, replica) = start(1, Mode::Fsync).await;
    let all = filled(&replica, 3).await;
    append(&replica, 0, &all).await;
    // The end of what is here and a new frame behind it, in one message.
    let mut more = BytesMut::from(&all[112..]);
    more.extend_from_slice(&frame(all.len() as u64, b"new"));
    append(&replica, 112, &more.freeze()).await;
    assert_eq!(replica.length(), all.len() as u64 + 15);
    let error = refusal(&replica, 0, &frame(0, &[9; 100])).await;
    assert!(error.to_string().contains("other bytes"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn bad_checksums_and_broken_frames_are_refused() {
    let (_, _, replica) = start(1, Mode::Fsync).await;
    let good = frame(0, b"payload");
    let wrong_crc = replica.append(0, good.clone(), 1, 0).await.expect_err("refused");
    assert!(matches!(wrong_crc, StoreError::Invalid(_)), "{wrong_crc}");
    let half = good.slice(..good.len() - 1);
    let elsewhere = frame(1, b"payload");
    let mut foreign = BytesMut::new();
    encode_frame(SegmentKey { log_id: LOG + 1, segment_id: SEGMENT }, 0, b"payload", &mut foreign);
    for bytes in [half, elsewhere, foreign.freeze(), Bytes::from_static(&[0; 100])] {
        let error = refusal(&replica, 0, &bytes).await;
        assert!(matches!(error, StoreError::Invalid(_)), "{error}");
    }
    assert_eq!(replica.length(), 0);
}

#[tokio::test(start_paused = true)]
async fn absurd_offsets_are_refused() {
    let (_, _, replica) = start(1, Mode::Fsync).await;
    let good = frame(0, b"payload");
    for (offset, committed) in [(u64::MAX, 0), (0, u64::MAX), (LENGTH_MAX + 1, 0)] {
        let error = replica.append(offset, good.clone(), crc32fast::hash(&good), committed).await.expect_err("absurd");
        assert!(matches!(error, StoreError::Invalid(_)), "{error}");
    }
    assert!(replica.hear_committed(u64::MAX).is_err());
    assert_eq!(known(replica.fence(1).await.expect("fences")), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_full_segment_takes_no_further_frame() {
    let (_, _, replica) = start(1, Mode::Replicated).await;
    let payload = vec![1; 32 << 20];
    let mut length = 0;
    for _ in 0..3 {
        let frame = frame(length, &payload);
        if length >= SEGMENT_BYTES_MAX {
            let error = refusal(&replica, length, &frame).await;
            assert!(error.to_string().contains("full"), "{error}");
            return;
        }
        append(&replica, length, &frame).await;
        length += frame.len() as u64;
    }
    panic!("{length} bytes were taken");
}

#[tokio::test(start_paused = true)]
async fn a_second_open_must_name_the_same_log_and_mode() {
    let (_, process, _) = start(1, Mode::Fsync).await;
    let open = OpenAppend { log_id: LOG, mode: Mode::Fsync, create: false };
    process.segments.open_for_append(SEGMENT, open).await.expect("again");
    for wrong in [OpenAppend { log_id: LOG + 1, ..open }, OpenAppend { mode: Mode::Replicated, ..open }] {
        let error = process.segments.open_for_append(SEGMENT, wrong).await.expect_err("refused");
        assert!(matches!(error, StoreError::Invalid(_)), "{error}");
    }
    let missing = process.segments.open_for_append(SEGMENT + 1, open).await.expect_err("not there");
    assert!(matches!(missing, StoreError::NotFound(_)), "{missing}");
    let zero = OpenAppend { log_id: 0, create: true, ..open };
    assert!(process.segments.open_for_append(SEGMENT + 1, zero).await.is_err());
    assert!(process.segments.open_for_append(0, OpenAppend { create: true, ..open }).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn many_appends_share_one_sync() {
    let (machine, process, replica) = start(1, Mode::Fsync).await;
    machine.disk.faults(|f| f.sync_delay = std::time::Duration::from_millis(10));
    let begin = process.env.clock.now();
    filled(&replica, 200).await;
    let took = process.env.clock.since(begin);
    assert!(took < std::time::Duration::from_millis(50), "{took:?} for 200 appends");
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_refuses_appends_but_not_fences_and_recovers() {
    let machine = Machine::new(1);
    let config = ChunkServerConfigForTest { disk_reserve_bytes: 10_000, ..Default::default() };
    let process = machine.start_with(config).await;
    let replica = process.open(Mode::Fsync).await;
    let first = frame(0, &[1; 1000]);
    append(&replica, 0, &first).await;
    let used: u64 = machine.disk.files().iter().map(|(_, len)| len).sum();
    machine.disk.faults(|f| f.capacity_bytes = Some(used + 10_500));
    process.host.space.refresh(&process.host).await;
    let offset = first.len() as u64;
    let error = refusal(&replica, offset, &frame(offset, &[2; 1000])).await;
    assert!(matches!(error, StoreError::Full(_)), "{error}");
    assert!(process.host.space.refusing().contains("disk full"));
    // Without a fresh estimate the disk itself refuses, and that is remembered too.
    machine.disk.faults(|f| f.capacity_bytes = Some(1 << 20));
    process.host.space.refresh(&process.host).await;
    machine.disk.faults(|f| f.capacity_bytes = Some(used + 100));
    let error = refusal(&replica, offset, &frame(offset, &[2; 1000])).await;
    assert!(matches!(error, StoreError::Full(_)), "{error}");
    machine.disk.faults(|f| f.capacity_bytes = Some(used + 10_500));
    assert_eq!(known(replica.fence(1).await.expect("the reserve has room for it")), (offset, 0));
    machine.disk.faults(|f| f.capacity_bytes = None);
    process.host.space.refresh(&process.host).await;
    assert_eq!(process.host.space.refusing(), "");
}

type ChunkServerConfigForTest = crate::chunkserver::ChunkServerConfig;

#[tokio::test(start_paused = true)]
async fn appends_go_on_after_the_disk_was_full() {
    let (machine, process, replica) = start(1, Mode::Fsync).await;
    let all = filled(&replica, 3).await;
    let offset = all.len() as u64;
    let used: u64 = machine.disk.files().iter().map(|(_, len)| len).sum();
    machine.disk.faults(|f| f.capacity_bytes = Some(used + 50));
    let next = frame(offset, &[7; 1000]);
    assert!(matches!(refusal(&replica, offset, &next).await, StoreError::Full(_)));
    machine.disk.faults(|f| f.capacity_bytes = None);
    process.host.space.refresh(&process.host).await;
    // Half of the frame was written before the error; the same bytes go to the same place.
    append(&replica, offset, &next).await;
    held(&replica, offset + next.len() as u64).await;
    known(replica.fence(1).await.expect("fences"));
    assert_eq!(content(&replica, 1).await.slice(offset as usize..), next);
}

#[tokio::test(start_paused = true)]
async fn a_write_error_is_no_acknowledgement() {
    let (machine, _, replica) = start(1, Mode::Replicated).await;
    machine.disk.faults(|f| f.write_error_chance = 1.0);
    let error = refusal(&replica, 0, &frame(0, b"x")).await;
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    assert_eq!(*replica.acked().borrow(), 0);
}

// ----------------------------------------------------------------- fence

#[tokio::test(start_paused = true)]
async fn a_fence_stops_appends_and_reports_length_and_committed() {
    let (_, _, replica) = start(1, Mode::Fsync).await;
    let all = filled(&replica, 4).await;
    replica.hear_committed(224).expect("plausible");
    assert_eq!(known(replica.fence(3).await.expect("fences")), (448, 224));
    let error = refusal(&replica, 448, &frame(448, b"late")).await;
    assert!(matches!(error, StoreError::Fenced { fence: 3, .. }), "{error}");
    // Also what is there already: nothing is acknowledged any more.
    assert!(matches!(refusal(&replica, 0, &all).await, StoreError::Fenced { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_lower_fence_is_refused_and_an_equal_one_repeated() {
    let (_, _, replica) = start(1, Mode::Fsync).await;
    filled(&replica, 2).await;
    let first = replica.fence(5).await.expect("fences");
    assert_eq!(replica.fence(5).await.expect("again"), first);
    assert!(matches!(replica.fence(4).await, Err(StoreError::Fenced { fence: 5, .. })));
    assert_eq!(replica.fence(6).await.expect("higher"), first);
    assert!(matches!(replica.fence(5).await, Err(StoreError::Fenced { fence: 6, .. })));
    for absurd in [0, u64::MAX] {
        assert!(matches!(replica.fence(absurd).await, Err(StoreError::Invalid(_))));
    }
}

#[tokio::test(start_paused = true)]
async fn the_fence_answer_includes_pending_syncs() {
    let (machine, _, replica) = start(1, Mode::Fsync).await;
    machine.disk.faults(|f| f.sync_delay = std::time::Duration::from_millis(50));
    let one = frame(0, &[1; 100]);
    append(&replica, 0, &one).await;
    assert_eq!(*replica.acked().borrow(), 0, "its sync is pending");
    assert_eq!(known(replica.fence(1).await.expect("fences")).0, one.len() as u64);
    assert_eq!(*replica.acked().borrow(), one.len() as u64, "the fence waited for it");
}

#[tokio::test(start_paused = true)]
async fn a_segment_that_was_never_created_is_fenced_too() {
    let machine = Machine::new(1);
    let process = machine.start().await;
    assert_eq!(known(process.segments.fence(SEGMENT, 9).await.expect("fences")), (0, 0));
    let open = OpenAppend { log_id: LOG, mode: Mode::Fsync, create: true };
    let late = process.segments.open_for_append(SEGMENT, open).await.expect_err("too late");
    assert!(matches!(late, StoreError::Fenced { fence: 9, .. }), "{late}");
    process.crash(&machine, true).await;
    let process = machine.start().await;
    let late = process.segments.open_for_append(SEGMENT, open).await.expect_err("too late");
    assert!(matches!(late, StoreError::Fenced { fence: 9, .. }), "{late}");
    assert!(process.segments.fence(SEGMENT, 8).await.is_err());
}

// ------------------------------------------------------ complete, finish

fn completion(recovery: u64, range: std::ops::Range<u64>, create: bool) -> Completion {
    Completion { recovery, offset: range.start, length: range.end, create, mode: Mode::Fsync }
}

async fn complete(replica: &Replica, asked: Completion, bytes: &Bytes) -> Result<u64, StoreError> {
    assert!(replica.begin_completion(asked).await?, "not sealed");
    let mut position = asked.offset;
    for piece in bytes.chunks(70) {
        replica.push_completion(asked, position, Bytes::copy_from_slice(piece)).await?;
        position += piece.len() as u64;
    }
    replica.end_completion(asked, position).await
}

/// A member that holds 2 of 5 frames, and all five of them.
async fn short_member() -> (Machine, Process, Arc<Replica>, Bytes) {
    short_member_on(1).await
}

async fn short_member_on(seed: u64) -> (Machine, Process, Arc<Replica>, Bytes) {
    let (_, _, other) = start(9, Mode::Fsync).await;
    let all = filled(&other, 5).await;
    let (machine, process, replica) = start(seed, Mode::Fsync).await;
    append(&replica, 0, &all.slice(..224)).await;
    (machine, process, replica, all)
}

#[tokio::test(start_paused = true)]
async fn a_completion_needs_the_current_fence() {
    let (_, _, replica, all) = short_member().await;
    let rest = all.slice(224..);
    let unfenced = complete(&replica, completion(3, 224..560, false), &rest).await.expect_err("no fence");
    assert!(matches!(unfenced, StoreError::State(_)), "{unfenced}");
    known(replica.fence(3).await.expect("fences"));
    let higher = complete(&replica, completion(4, 224..560, false), &rest).await.expect_err("not fenced by 4");
    assert!(matches!(higher, StoreError::State(_)), "{higher}");
    let lower = complete(&replica, completion(2, 224..560, false), &rest).await.expect_err("older");
    assert!(matches!(lower, StoreError::Fenced { .. }), "{lower}");
    assert_eq!(complete(&replica, completion(3, 224..560, false), &rest).await.expect("completes"), 560);
    assert_eq!(content(&replica, 3).await, all);
    assert_eq!(known(replica.fence(4).await.expect("fences")).0, 560);
}

#[tokio::test(start_paused = true)]
async fn a_completion_is_durable_and_counts_only_as_a_whole() {
    let (machine, process, replica, all) = short_member().await;
    known(replica.fence(3).await.expect("fences"));
    let asked = completion(3, 224..560, false);
    assert!(replica.begin_completion(asked).await.expect("begins"));
    replica.push_completion(asked, 224, all.slice(224..300)).await.expect("takes a piece");
    assert_eq!(replica.length(), 224, "half a frame does not count");
    let early = replica.end_completion(asked, 300).await.expect_err("not all");
    assert!(matches!(early, StoreError::Invalid(_)), "{early}");
    assert_eq!(complete(&replica, asked, &all.slice(224..)).await.expect("completes"), 560);
    process.crash(&machine, true).await;
    let process = machine.start().await;
    let replica = process.segments.get(SEGMENT).expect("there");
    assert_eq!(known(replica.fence(3).await.expect("fences")).0, 560);
    assert_eq!(content(&replica, 3).await, all);
}

#[tokio::test(start_paused = true)]
async fn a_completion_with_gaps_too_many_or_broken_bytes_is_refused() {
    let (_, _, replica, all) = short_member().await;
    known(replica.fence(3).await.expect("fences"));
    for asked in [
        completion(3, 300..560, false),
        Completion { offset: 560, ..completion(3, 0..224, false) },
        completion(3, 0..LENGTH_MAX + 1, false),
        completion(0, 224..560, false),
        completion(u64::MAX, 224..560, false),
    ] {
        replica.begin_completion(asked).await.expect_err("refused");
    }
    let too_many = complete(&replica, completion(3, 224..500, false), &all.slice(224..)).await;
    assert!(matches!(too_many, Err(StoreError::Invalid(_))));
    let broken = complete(&replica, completion(3, 224..560, false), &Bytes::from(vec![1; 336])).await;
    assert!(matches!(broken, Err(StoreError::Invalid(_))));
    let different = complete(&replica, completion(3, 0..560, false), &Bytes::from(vec![1; 560])).await;
    assert!(matches!(different, Err(StoreError::State(_))));
    assert_eq!(replica.length(), 224);
}

#[tokio::test(start_paused = true)]
async fn a_newer_fence_cuts_a_completion_off() {
    let (_, _, replica, all) = short_member().await;
    known(replica.fence(3).await.expect("fences"));
    let asked = completion(3, 224..560, false);
    replica.begin_completion(asked).await.expect("begins");
    assert_eq!(known(replica.fence(4).await.expect("fences")).0, 224);
    let cut = replica.push_completion(asked, 224, all.slice(224..)).await.expect_err("overtaken");
    assert!(matches!(cut, StoreError::Fenced { fence: 4, .. }), "{cut}");
    assert!(replica.end_completion(asked, 560).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_copy_on_a_new_server_never_counts_as_an_answer() {
    let (_, _, _, all) = short_member().await;
    let machine = Machine::new(2);
    let process = machine.start().await;
    let replica = process.segments.get_or_absent(SEGMENT).expect("new");
    let missing = replica.begin_completion(completion(3, 0..560, false)).await.expect_err("no create");
    assert!(matches!(missing, StoreError::NotFound(_)), "{missing}");
    assert_eq!(complete(&replica, completion(3, 0..560, true), &all).await.expect("completes"), 560);
    assert!(unknown(replica.fence(3).await.expect("answers")).contains("copy"));
    // Another recoverer may take it over, also with fewer bytes.
    assert_eq!(complete(&replica, completion(5, 0..448, true), &all.slice(..448)).await.expect("completes"), 560);
    process.crash(&machine, true).await;
    let process = machine.start().await;
    let replica = process.segments.get(SEGMENT).expect("there");
    assert!(unknown(replica.fence(6).await.expect("answers")).contains("copy"));
    replica.finish(448, crc32fast::hash(&all[..448])).await.expect("finishes");
    assert_eq!(content(&replica, 0).await, all.slice(..448));
}

#[tokio::test(start_paused = true)]
async fn finishing_cuts_seals_and_survives() {
    for power in [false, true] {
        let (machine, process, replica) = start(1, Mode::Fsync).await;
        let all = filled(&replica, 5).await;
        let crc = crc32fast::hash(&all[..336]);
        replica.finish(336, crc).await.expect("finishes");
        replica.finish(336, crc).await.expect("idempotent");
        assert!(matches!(replica.finish(448, 1).await, Err(StoreError::State(_))));
        assert!(matches!(refusal(&replica, 336, &frame(336, b"x")).await, StoreError::Fenced { .. }));
        assert_eq!(content(&replica, 0).await, all.slice(..336));
        process.crash(&machine, power).await;
        let process = machine.start().await;
        let replica = process.segments.get(SEGMENT).expect("there");
        assert_eq!(content(&replica, 0).await, all.slice(..336));
        assert_eq!(known(replica.fence(1).await.expect("answers")).0, 336);
        assert!(replica.begin_completion(completion(1, 336..560, false)).await.is_err());
        let open = OpenAppend { log_id: LOG, mode: Mode::Fsync, create: true };
        assert!(process.segments.open_for_append(SEGMENT, open).await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn a_seal_that_does_not_fit_changes_nothing() {
    let (_, _, replica) = start(1, Mode::Fsync).await;
    let all = filled(&replica, 5).await;
    replica.hear_committed(336).expect("plausible");
    let crc = crc32fast::hash(&all);
    assert!(matches!(replica.finish(560, crc ^ 1).await, Err(StoreError::State(_))));
    assert!(matches!(replica.finish(561, crc).await, Err(StoreError::Behind { held: 560, length: 561, .. })));
    let cut = replica.finish(224, crc32fast::hash(&all[..224])).await.expect_err("cuts committed bytes");
    assert!(matches!(cut, StoreError::Corrupt { .. }), "{cut}");
    append(&replica, 560, &frame(560, b"still open")).await;
    assert_eq!(known(replica.fence(1).await.expect("fences")).0, 582);
}

#[tokio::test(start_paused = true)]
async fn an_empty_segment_is_sealed_too() {
    let machine = Machine::new(1);
    let process = machine.start().await;
    known(process.segments.fence(SEGMENT, 1).await.expect("fences"));
    let replica = process.segments.get(SEGMENT).expect("fenced");
    replica.finish(0, 0).await.expect("finishes");
    assert_eq!(content(&replica, 0).await.len(), 0);
    process.crash(&machine, true).await;
    let process = machine.start().await;
    assert!(process.segments.get(SEGMENT).expect("there").glance().sealed.is_some());
}

#[tokio::test(start_paused = true)]
async fn readers_see_committed_or_sealed_bytes_only() {
    let (_, _, replica) = start(1, Mode::Fsync).await;
    let all = filled(&replica, 5).await;
    assert_eq!(content(&replica, 0).await.len(), 0);
    replica.hear_committed(336).expect("plausible");
    assert_eq!(content(&replica, 0).await, all.slice(..336));
    assert!(matches!(replica.reader(7).await, Err(StoreError::Fenced { .. })), "fence 7 was never set");
    known(replica.fence(7).await.expect("fences"));
    assert_eq!(content(&replica, 7).await, all);
    assert_eq!(content(&replica, 0).await, all.slice(..336));
}

// ---------------------------------------------------------------- damage

#[tokio::test(start_paused = true)]
async fn a_flipped_bit_of_a_sealed_segment_is_named_with_file_and_offset() {
    let (machine, _, replica) = start(1, Mode::Fsync).await;
    let all = filled(&replica, 5).await;
    replica.finish(560, crc32fast::hash(&all)).await.expect("finishes");
    machine.disk.flip_bit(&replica.log_path(), (DATA_OFFSET + 100) * 8).expect("flips");
    let (reader, limit) = replica.reader(0).await.expect("opens");
    let error = reader.read(0, limit).await.expect_err("damaged");
    assert!(error.to_string().contains(".log, offset 4096"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn damage_below_what_was_acknowledged_is_never_taken_for_a_torn_tail() {
    for bit in [0, 8 * 100, 8 * 559] {
        let (machine, process, replica) = start(1, Mode::Fsync).await;
        filled(&replica, 5).await;
        let path = replica.log_path();
        process.crash(&machine, false).await;
        machine.disk.flip_bit(&path, DATA_OFFSET * 8 + bit).expect("flips");
        let process = machine.start().await;
        let replica = process.segments.get(SEGMENT).expect("there");
        assert!(replica.glance().damaged.is_some());
        assert!(unknown(replica.fence(1).await.expect("answers")).contains("acknowledged"));
        assert!(replica.finish(112, 0).await.is_err());
        // It stays so: the fence that was stored meanwhile does not make it look sound.
        process.crash(&machine, true).await;
        let process = machine.start().await;
        unknown(process.segments.fence(SEGMENT, 2).await.expect("answers"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_or_missing_file_makes_the_replica_unknown_and_not_empty() {
    for name in ["log", "meta"] {
        let (machine, process, replica) = start(1, Mode::Fsync).await;
        filled(&replica, 5).await;
        let (log, meta) = (replica.log_path(), replica.meta_path());
        process.crash(&machine, false).await;
        match name {
            "log" => {
                let disk = machine.disk.mount(uruk_base::Clock::real());
                disk.remove(&log).await.expect("removes");
            }
            _ => machine.disk.flip_bit(&meta, 100).expect("flips"),
        }
        for power in [false, true] {
            let process = machine.start().await;
            let replica = process.segments.get(SEGMENT).expect("there");
            assert!(replica.glance().unvouched.is_some(), "{name}");
            unknown(process.segments.fence(SEGMENT, 1).await.expect("answers"));
            process.crash(&machine, power).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn deleted_segments_never_come_back() {
    let (machine, process, replica) = start(1, Mode::Fsync).await;
    let all = filled(&replica, 2).await;
    process.segments.delete(&[SEGMENT, SEGMENT + 1]).await.expect("deletes");
    assert!(matches!(refusal(&replica, 0, &all).await, StoreError::Fenced { .. }));
    let open = OpenAppend { log_id: LOG, mode: Mode::Fsync, create: true };
    process.crash(&machine, true).await;
    let process = machine.start().await;
    for id in [SEGMENT, SEGMENT + 1] {
        let error = process.segments.open_for_append(id, open).await.expect_err("never again");
        assert!(matches!(error, StoreError::Fenced { .. }), "{error}");
        assert!(unknown(process.segments.fence(id, 3).await.expect("answers")).contains("deleted"));
    }
    assert!(process.segments.present().is_empty());
    let leftovers = machine.disk.files().into_iter().filter(|(path, _)| path.extension().is_some()).count();
    assert_eq!(leftovers, 0);
}

#[tokio::test(start_paused = true)]
async fn a_distrusted_replica_is_replaced_by_a_sound_copy() {
    let (machine, process, replica) = start(1, Mode::Fsync).await;
    let all = filled(&replica, 5).await;
    replica.mark_damaged("found by a test");
    let temporary = process.segments.temporary(SEGMENT);
    let sums = BlockSums::of(&all);
    let file = process.env.disk.open(&temporary, OpenMode::CreateNew).await.expect("creates");
    file.write_at(0, encode_header(SEGMENT)).await.expect("writes");
    file.write_at(DATA_OFFSET, all.clone()).await.expect("writes");
    file.sync().await.expect("syncs");
    let sealed = SealedMeta { length: 560, crc: sums.total(), blocks: sums.blocks() };
    replica.install(&temporary, sealed).await.expect("installs");
    assert!(replica.glance().damaged.is_none());
    assert_eq!(content(&replica, 0).await, all);
    assert!(matches!(refusal(&replica, 560, &frame(560, b"x")).await, StoreError::Fenced { .. }));
    process.crash(&machine, true).await;
    let process = machine.start().await;
    let replica = process.segments.get(SEGMENT).expect("there");
    assert_eq!(content(&replica, 0).await, all);
    assert!(replica.glance().unvouched.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_completion_after_a_restart_writes_again_what_a_failed_sync_left() {
    let mut tried = 0;
    for seed in 0..40 {
        let (machine, process, replica, all) = short_member_on(seed).await;
        known(replica.fence(3).await.expect("fences"));
        // The pages are clean after the failed sync, and not on the disk.
        machine.disk.faults(|f| f.sync_error_chance = 1.0);
        let asked = completion(3, 224..560, false);
        complete(&replica, asked, &all.slice(224..)).await.expect_err("the sync fails");
        process.crash(&machine, false).await;
        machine.disk.faults(|f| f.sync_error_chance = 0.0);
        let process = machine.start().await;
        let replica = process.segments.get(SEGMENT).expect("there");
        if replica.glance().unvouched.is_some() {
            continue;
        }
        assert_eq!(complete(&replica, asked, &all.slice(224..)).await.expect("completes"), 560);
        tried += 1;
        process.crash(&machine, true).await;
        let process = machine.start().await;
        let answer = process.segments.fence(SEGMENT, 4).await.expect("answers");
        assert!(matches!(answer, FenceAnswer::Known { length: 560, .. }), "seed {seed}: {answer:?}");
    }
    assert!(tried > 10, "{tried}");
}

#[tokio::test(start_paused = true)]
async fn a_watermark_that_cannot_be_written_leaves_length_and_checksum_together() {
    let mut refused = 0;
    for seed in 0..60 {
        let (machine, _, replica) = start(seed, Mode::Replicated).await;
        let first = frame(0, &[1; 1000]);
        append(&replica, 0, &first).await;
        let offset = first.len() as u64;
        let second = frame(offset, &[2; 1000]);
        machine.disk.faults(|f| f.write_error_chance = 0.5);
        let result = replica.append(offset, second.clone(), crc32fast::hash(&second), 0).await;
        machine.disk.faults(|f| f.write_error_chance = 0.0);
        let held = if result.is_ok() { offset + second.len() as u64 } else { offset };
        refused += u64::from(result.is_err());
        assert_eq!(*replica.acked().borrow(), held, "seed {seed}");
        match replica.fence(1).await.expect("fences") {
            FenceAnswer::Known { length, crc, .. } => {
                assert_eq!((length, crc), (held, crc32fast::hash(&content(&replica, 1).await)), "seed {seed}");
            }
            FenceAnswer::Unknown { reason } => panic!("seed {seed}: {reason}"),
        }
    }
    assert!((20..50).contains(&refused), "both writes are hit: {refused}");
}

#[tokio::test(start_paused = true)]
async fn a_longer_copy_of_an_earlier_seal_serves_the_next_one_and_is_cut_by_it() {
    let (_, _, other) = start(9, Mode::Fsync).await;
    let all = filled(&other, 5).await;
    let machine = Machine::new(1);
    let process = machine.start().await;
    let replica = process.segments.get_or_absent(SEGMENT).expect("may be created");
    assert_eq!(complete(&replica, completion(3, 0..560, true), &all).await.expect("the first seal's copy"), 560);
    let shorter = all.slice(..448);
    let reached = complete(&replica, completion(4, 0..448, true), &shorter).await.expect("the next seal's copy");
    assert_eq!(reached, 560, "more than asked for counts as a copy");
    replica.finish(448, crc32fast::hash(&shorter)).await.expect("seals and cuts");
    assert_eq!(content(&replica, 0).await, shorter);
    process.crash(&machine, true).await;
    let process = machine.start().await;
    let replica = process.segments.get(SEGMENT).expect("there");
    assert_eq!(content(&replica, 0).await, shorter);
}

#[tokio::test(start_paused = true)]
async fn a_replica_known_to_be_damaged_is_no_longer_read_through_a_map() {
    let (machine, _, replica) = start(1, Mode::Fsync).await;
    let all = filled(&replica, 5).await;
    replica.finish(560, crc32fast::hash(&all)).await.expect("finishes");
    assert!(matches!(replica.reader(0).await.expect("opens").0.source, Source::Mapped(_)));
    replica.mark_damaged("a sector cannot be read");
    let (reader, limit) = replica.reader(0).await.expect("opens");
    assert!(matches!(reader.source, Source::File(_)));
    assert_eq!(reader.read(0, limit).await.expect("these bytes are sound"), all);
    machine.disk.faults(|f| f.read_error_chance = 1.0);
    let error = reader.read(0, limit).await.expect_err("an error, no signal");
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
}
