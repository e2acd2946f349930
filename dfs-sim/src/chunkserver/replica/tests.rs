use bytes::{Bytes, BytesMut};

use super::*;
use crate::chunkserver::block_reader::Source;
use crate::chunkserver::testing::*;
use crate::format::encode_frame;

mod crashes;
mod damage;
mod graves;
mod sealing;

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
    // More than the room ahead.
    let error = refusal(&replica, offset, &frame(offset, &[2; 100_000])).await;
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
    // More than what is reserved.
    let next = frame(offset, &vec![7; RESERVE_BYTES as usize + 1000]);
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
async fn a_replica_that_cannot_be_created_leaves_nothing_behind() {
    let machine = Machine::new(1);
    let process = machine.start().await;
    let before = machine.disk.files();
    let open = OpenAppend { log_id: 1, mode: Mode::Fsync, create: true };
    machine.disk.faults(|f| f.write_error_chance = 1.0);
    let error = process.segments.open_for_append(SEGMENT, open).await.expect_err("cannot write");
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    assert_eq!(machine.disk.files(), before);
    machine.disk.faults(|f| f.write_error_chance = 0.0);
    process.segments.open_for_append(SEGMENT, open).await.expect("the next attempt begins afresh");
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
