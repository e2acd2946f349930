use bytes::Bytes;

use super::*;
use crate::chunkserver::ChunkServerConfig;
use crate::chunkserver::testing::{Machine, Process};
use crate::format::CHECKSUM_BLOCK_BYTES;

fn data(bytes: usize) -> Bytes {
    (0..bytes).map(|i| (i * 31 + i / 253) as u8).collect::<Vec<u8>>().into()
}

async fn write(process: &Process, id: u64, bytes: &Bytes, mode: Mode) -> Result<u32, StoreError> {
    let mut writer = process.chunks.begin(id, bytes.len() as u64, mode).await?;
    for piece in bytes.chunks(50_000) {
        if let Err(error) = writer.push(Bytes::copy_from_slice(piece)).await {
            writer.abort().await;
            return Err(error);
        }
    }
    writer.finish(None).await
}

async fn read(process: &Process, id: u64) -> Bytes {
    let reader = process.chunks.reader(id).await.expect("opens");
    reader.read(0, reader.bytes).await.expect("sound")
}

fn temporaries(machine: &Machine) -> usize {
    machine.disk.files().iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "tmp")).count()
}

#[tokio::test(start_paused = true)]
async fn written_chunks_survive_power_loss() {
    for seed in 0..20 {
        let machine = Machine::new(seed);
        let process = machine.start().await;
        let sizes = [0, 1, 65_536, 200_000];
        for (id, size) in (1..).zip(sizes) {
            let crc = write(&process, id, &data(size), Mode::Fsync).await.expect("writes");
            assert_eq!(crc, crc32fast::hash(&data(size)));
        }
        process.crash(&machine, true).await;
        let process = machine.start().await;
        for (id, size) in (1..).zip(sizes) {
            assert_eq!(process.chunks.state(id).expect("listed").bytes, size as u64);
            assert_eq!(read(&process, id).await, data(size));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_chunk_is_whole_or_absent_after_a_kill_at_any_point() {
    let mut absent = 0;
    for seed in 0..100 {
        let machine = Machine::new(seed);
        let process = machine.start().await;
        let clock = process.env.clock.clone();
        let limit = std::time::Duration::from_micros(machine.random.range(0..1500));
        let bytes = data(100_000);
        let written = clock.timeout(limit, write(&process, 7, &bytes, Mode::Fsync)).await.is_ok();
        process.crash(&machine, true).await;
        let process = machine.start().await;
        assert_eq!(temporaries(&machine), 0, "leftovers go at the start");
        match process.chunks.state(7) {
            Some(_) => assert_eq!(read(&process, 7).await, bytes),
            None => {
                assert!(!written, "seed {seed}: it was acknowledged");
                absent += 1;
            }
        }
    }
    assert!(absent > 5, "{absent}");
}

#[tokio::test(start_paused = true)]
async fn a_replicated_chunk_torn_by_power_loss_is_noticed() {
    let mut noticed = 0;
    for seed in 0..50 {
        let machine = Machine::new(seed);
        let process = machine.start().await;
        let bytes = data(100_000);
        write(&process, 7, &bytes, Mode::Replicated).await.expect("writes");
        process.env.disk.sync_dir(&process.chunks.dir).await.expect("the name survives, the content may not");
        process.crash(&machine, true).await;
        let process = machine.start().await;
        let Ok(reader) = process.chunks.reader(7).await else {
            noticed += 1;
            continue;
        };
        match reader.read(0, reader.bytes).await {
            Ok(read) => assert_eq!(read, bytes),
            Err(_) => noticed += 1,
        }
    }
    assert!(noticed > 10, "{noticed}");
}

#[tokio::test(start_paused = true)]
async fn wrong_lengths_and_ids_are_refused_and_leave_nothing() {
    let machine = Machine::new(1);
    let process = machine.start().await;
    for (id, bytes) in [(0, 1), (1, CHUNK_BYTES_MAX + 1), (1, u64::MAX)] {
        let error = process.chunks.begin(id, bytes, Mode::Fsync).await.expect_err("refused");
        assert!(matches!(error, StoreError::Invalid(_)), "{error}");
    }
    let writer = process.chunks.begin(1, 10, Mode::Fsync).await.expect("begins");
    let short = writer.finish(None).await.expect_err("too short");
    assert!(matches!(short, StoreError::Invalid(_)), "{short}");
    let mut writer = process.chunks.begin(1, 10, Mode::Fsync).await.expect("begins again");
    let long = writer.push(data(11)).await.expect_err("too long");
    assert!(matches!(long, StoreError::Invalid(_)), "{long}");
    let busy = process.chunks.begin(1, 10, Mode::Fsync).await.expect_err("being written");
    assert!(matches!(busy, StoreError::Busy(_)), "{busy}");
    writer.abort().await;
    let mut writer = process.chunks.begin(1, 10, Mode::Fsync).await.expect("begins again");
    writer.push(data(10)).await.expect("fits");
    let unexpected = writer.finish(Some(1)).await.expect_err("not what was ordered");
    assert!(matches!(unexpected, StoreError::State(_)), "{unexpected}");
    assert_eq!(temporaries(&machine), 0);
    assert!(process.chunks.state(1).is_none());
    let missing = process.chunks.reader(1).await.expect_err("absent");
    assert!(matches!(missing, StoreError::NotFound(_)), "{missing}");
}

#[tokio::test(start_paused = true)]
async fn the_same_chunk_may_come_again_and_another_one_never() {
    let machine = Machine::new(1);
    let process = machine.start().await;
    let crc = write(&process, 1, &data(70_000), Mode::Fsync).await.expect("writes");
    assert_eq!(write(&process, 1, &data(70_000), Mode::Fsync).await.expect("again"), crc);
    for other in [data(69_999), Bytes::from(vec![0; 70_000])] {
        let error = write(&process, 1, &other, Mode::Fsync).await.expect_err("refused");
        assert!(matches!(error, StoreError::Exists(_)), "{error}");
    }
    assert_eq!(read(&process, 1).await, data(70_000));
}

#[tokio::test(start_paused = true)]
async fn a_flipped_bit_is_named_and_a_good_copy_replaces_the_chunk() {
    let machine = Machine::new(1);
    let process = machine.start().await;
    let bytes = data(200_000);
    write(&process, 1, &bytes, Mode::Fsync).await.expect("writes");
    let path = process.chunks.path(1);
    machine.disk.flip_bit(&path, 150_000 * 8).expect("flips");
    let reader = process.chunks.reader(1).await.expect("opens");
    assert_eq!(reader.read(0, 100_000).await.expect("sound blocks are served"), bytes.slice(..100_000));
    let error = reader.read(140_000, 10).await.expect_err("a touched block is bad");
    let offset = 2 * CHECKSUM_BLOCK_BYTES;
    assert!(error.to_string().contains(&format!("{:016x}.chunk, offset {offset}", 1)), "{error}");
    process.chunks.mark_damaged(1, &error.to_string());
    assert!(process.chunks.state(1).expect("there").damaged.is_some());
    write(&process, 1, &bytes, Mode::Fsync).await.expect("replaces");
    assert!(process.chunks.state(1).expect("there").damaged.is_none());
    assert_eq!(read(&process, 1).await, bytes);
}

#[tokio::test(start_paused = true)]
async fn damaged_trailers_lengths_and_unreadable_files_are_named() {
    let machine = Machine::new(1);
    let process = machine.start().await;
    write(&process, 1, &data(1000), Mode::Fsync).await.expect("writes");
    write(&process, 2, &data(1000), Mode::Fsync).await.expect("writes");
    machine.disk.flip_bit(&process.chunks.path(1), 1001 * 8).expect("flips");
    let error = process.chunks.reader(1).await.expect_err("damaged");
    assert!(error.to_string().contains("offset 1000: the trailer is damaged"), "{error}");
    assert!(process.chunks.scrub_reader(1).await.is_err());
    machine.disk.faults(|f| f.read_error_chance = 1.0);
    let error = process.chunks.reader(2).await.expect_err("unreadable");
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    machine.disk.faults(|f| f.read_error_chance = 0.0);
    let file = process.env.disk.open(&process.chunks.path(2), OpenMode::Write).await.expect("opens");
    file.set_len(30).await.expect("cuts");
    process.crash(&machine, false).await;
    let process = machine.start().await;
    assert!(process.chunks.state(2).expect("listed").damaged.is_some(), "no chunk file has 30 bytes");
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_refuses_chunks_with_a_reason() {
    let machine = Machine::new(1);
    machine.disk.faults(|f| f.capacity_bytes = Some(100_000));
    let config = ChunkServerConfig { disk_reserve_bytes: 50_000, ..ChunkServerConfig::default() };
    let process = machine.start_with(config).await;
    let error = write(&process, 1, &data(60_000), Mode::Fsync).await.expect_err("full");
    assert!(matches!(&error, StoreError::Full(why) if why.contains("disk full")), "{error}");
    machine.disk.faults(|f| f.capacity_bytes = Some(1_000_000));
    process.host.space.refresh(&process.host).await;
    write(&process, 1, &data(60_000), Mode::Fsync).await.expect("room again");
    // The estimate is too high: the disk refuses in the middle.
    machine.disk.faults(|f| f.capacity_bytes = Some(80_000));
    let error = write(&process, 2, &data(60_000), Mode::Fsync).await.expect_err("full");
    assert!(matches!(error, StoreError::Full(_)), "{error}");
    assert_eq!(temporaries(&machine), 0);
}

#[tokio::test(start_paused = true)]
async fn only_so_many_chunks_are_written_at_once() {
    let machine = Machine::new(1);
    let config = ChunkServerConfig { disk_reserve_bytes: 0, chunk_writes_max: 2, ..ChunkServerConfig::default() };
    let process = machine.start_with(config).await;
    let _first = process.chunks.begin(1, 10, Mode::Fsync).await.expect("one");
    let second = process.chunks.begin(2, 10, Mode::Fsync).await.expect("two");
    assert!(matches!(process.chunks.begin(3, 10, Mode::Fsync).await, Err(StoreError::Busy(_))));
    second.abort().await;
    process.chunks.begin(3, 10, Mode::Fsync).await.expect("a place is free");
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_acknowledges_nothing_and_ends_the_process() {
    let machine = Machine::new(1);
    let process = machine.start().await;
    machine.disk.faults(|f| f.sync_errors = 1);
    assert!(write(&process, 1, &data(10), Mode::Fsync).await.is_err());
    assert!(process.host.failed().await.contains("sync"));
    assert!(process.chunks.state(1).is_none());
}

#[tokio::test(start_paused = true)]
async fn deletion_removes_the_file_and_spares_who_reads_it() {
    let machine = Machine::new(1);
    let process = machine.start().await;
    write(&process, 1, &data(1000), Mode::Fsync).await.expect("writes");
    let reader = process.chunks.reader(1).await.expect("opens");
    process.chunks.delete(1).await.expect("deletes");
    process.chunks.delete(1).await.expect("idempotent");
    assert!(matches!(process.chunks.reader(1).await, Err(StoreError::NotFound(_))));
    assert_eq!(reader.read(0, 1000).await.expect("still mapped"), data(1000));
}

#[tokio::test(start_paused = true)]
async fn a_large_chunk_is_synced_while_it_arrives_and_a_failure_then_is_not_missed() {
    let bytes = data(20 << 20);
    let machine = Machine::new(1);
    let process = machine.start().await;
    write(&process, 1, &bytes, Mode::Fsync).await.expect("writes");
    process.crash(&machine, true).await;
    let process = machine.start().await;
    assert!(read(&process, 1).await == bytes);
    // The first sync fails, in the middle; the last one succeeds.
    machine.disk.faults(|f| f.sync_errors = 1);
    assert!(write(&process, 2, &bytes, Mode::Fsync).await.is_err());
    assert!(process.host.failed().await.contains("sync"));
    assert!(process.chunks.state(2).is_none());
}
