//! Damaged, missing, distrusted and deleted replicas.

use super::sealing::*;
use super::*;

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
