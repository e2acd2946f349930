//! Completing, finishing, and what readers may see of it.

use super::*;

pub fn completion(recovery: u64, range: std::ops::Range<u64>, create: bool) -> Completion {
    Completion { recovery, offset: range.start, length: range.end, create, mode: Mode::Fsync }
}

pub async fn complete(replica: &Replica, asked: Completion, bytes: &Bytes) -> Result<u64, StoreError> {
    assert!(replica.begin_completion(asked).await?, "not sealed");
    let mut position = asked.offset;
    for piece in bytes.chunks(70) {
        replica.push_completion(asked, position, Bytes::copy_from_slice(piece)).await?;
        position += piece.len() as u64;
    }
    replica.end_completion(asked, position).await
}

/// A member that holds 2 of 5 frames, and all five of them.
pub async fn short_member() -> (Machine, Process, Arc<Replica>, Bytes) {
    short_member_on(1).await
}

pub async fn short_member_on(seed: u64) -> (Machine, Process, Arc<Replica>, Bytes) {
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
async fn room_that_a_crash_left_behind_a_sealed_segment_is_given_back() {
    let (machine, process, replica) = start(1, Mode::Fsync).await;
    let all = filled(&replica, 5).await;
    replica.finish(560, crc32fast::hash(&all)).await.expect("finishes");
    // As if it had ended between the seal and the cut.
    let file = process.env.disk.open(&replica.log_path(), OpenMode::Write).await.expect("opens");
    file.set_len(DATA_OFFSET + 560 + RESERVE_BYTES).await.expect("extends");
    file.sync().await.expect("syncs");
    process.crash(&machine, false).await;
    let process = machine.start().await;
    let replica = process.segments.get(SEGMENT).expect("there");
    assert_eq!(content(&replica, 0).await, all);
    let held = machine.disk.files().into_iter().find(|(path, _)| *path == replica.log_path());
    assert_eq!(held.expect("there").1, DATA_OFFSET + 560);
}

#[tokio::test(start_paused = true)]
async fn a_segment_on_a_disk_with_little_room_does_not_grow_ahead() {
    let (machine, process, replica) = start(1, Mode::Fsync).await;
    let log_bytes = || machine.disk.files().into_iter().find(|(path, _)| *path == replica.log_path()).expect("there").1;
    let used: u64 = machine.disk.files().iter().map(|(_, len)| len).sum();
    machine.disk.faults(|f| f.capacity_bytes = Some(used + 2 * RESERVE_BYTES));
    process.host.space.refresh(&process.host).await;
    let all = filled(&replica, 3).await;
    assert_eq!(log_bytes(), DATA_OFFSET + all.len() as u64);
    machine.disk.faults(|f| f.capacity_bytes = None);
    process.host.space.refresh(&process.host).await;
    let next = frame(all.len() as u64, b"next");
    append(&replica, all.len() as u64, &next).await;
    assert!(log_bytes() > DATA_OFFSET + (all.len() + next.len()) as u64, "{}", log_bytes());
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
