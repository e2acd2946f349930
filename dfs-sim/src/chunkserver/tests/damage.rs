//! Damage, and the controller's orders that repair it.

use super::segments::{filled, segment_read};
use super::*;

fn path(kind: &str, id: u64, suffix: &str) -> std::path::PathBuf {
    format!("/data/{kind}/{id:016x}.{suffix}").into()
}

fn answer(change: impl FnOnce(&mut ChunkServerHeartbeatResponse)) -> ChunkServerHeartbeatResponse {
    let mut answer = ChunkServerHeartbeatResponse { term: 1, ..Default::default() };
    change(&mut answer);
    answer
}

fn copy_order(id: u64, is_segment: bool, bytes: &Bytes, source: &str) -> CopyOrder {
    let crc = crc32fast::hash(bytes);
    CopyOrder { id, is_segment, bytes: bytes.len() as u64, crc, sources: vec!["127.0.0.1:1".into(), source.into()] }
}

#[tokio::test]
async fn a_bad_block_is_reported_and_a_copy_order_repairs_it() {
    let (good, bad) = (Rig::start(4).await, Rig::start(5).await);
    let bytes = data(2_000_000);
    good.write_chunk(1, &bytes).await.expect("writes");
    bad.write_chunk(1, &bytes).await.expect("writes");
    bad.disk.flip_bit(&path("chunks", 1, "chunk"), 8 * 1_500_000).expect("flips");
    let error = bad.read_chunk(1, 0, 2_000_000).await.expect_err("damaged");
    assert_eq!(error.code(), Code::DataLoss);
    assert!(error.message().contains("0001.chunk, offset 1441792"), "{error}");
    bad.until_reported("damaged", |h| h.chunks.iter().any(|c| c.chunk_id == 1 && c.damaged)).await;
    bad.controller.order(answer(|a| a.copies.push(copy_order(1, false, &bytes, &good.address))));
    let repaired = || bad.server.core.chunks.state(1).is_some_and(|c| c.damaged.is_none());
    bad.until("repaired", repaired).await;
    assert_eq!(bad.read_chunk(1, 0, 2_000_000).await.expect("reads"), bytes);
    bad.until_reported("sound again", |h| h.chunks.iter().any(|c| c.chunk_id == 1 && !c.damaged)).await;
    good.stop().await;
    bad.stop().await;
}

#[tokio::test]
async fn copies_that_do_not_fit_the_checksum_are_not_kept() {
    let (good, new) = (Rig::start(4).await, Rig::start(5).await);
    let bytes = data(100_000);
    good.write_chunk(1, &bytes).await.expect("writes");
    let segment = filled(&good, 9, 5).await;
    let finish = FinishSegmentRequest { segment_id: 9, length: 5060, crc: crc32fast::hash(&segment) };
    good.client.clone().finish_segment(finish).await.expect("finishes");
    for (id, is_segment, content) in [(1, false, &bytes), (9, true, &segment)] {
        let order = copy_order(id, is_segment, content, &good.address);
        let wrong = CopyOrder { crc: order.crc ^ 1, ..order.clone() };
        assert!(copying::copy(&new.server.core, wrong).await.is_err());
        let short = CopyOrder { bytes: order.bytes - 1, ..order.clone() };
        assert!(copying::copy(&new.server.core, short).await.is_err());
        let huge = CopyOrder { bytes: u64::MAX, ..order.clone() };
        assert!(copying::copy(&new.server.core, huge).await.is_err());
        assert!(copying::copy(&new.server.core, CopyOrder { sources: vec![], ..order.clone() }).await.is_err());
        let read = new.read(ReadRequest { id, is_segment, offset: 0, length: 1, recovery: 0 }).await;
        assert_eq!(code(read), ErrorCode::NotFound);
        copying::copy(&new.server.core, order).await.expect("copies");
        let length = content.len() as u64;
        let read = new.read(ReadRequest { id, is_segment, offset: 0, length, recovery: 0 }).await;
        assert_eq!(read.expect("reads"), content);
    }
    good.stop().await;
    new.stop().await;
}

#[tokio::test]
async fn orders_to_finish_and_delete_are_carried_out_and_reported() {
    let rig = Rig::start(4).await;
    rig.write_chunk(1, &data(1000)).await.expect("writes");
    let all = filled(&rig, 9, 5).await;
    filled(&rig, 10, 5).await;
    let kept = all.slice(..2 * 1012);
    rig.controller.order(answer(|a| {
        a.delete_chunks = vec![1, 2];
        a.delete_segments = vec![10];
        a.finish = vec![FinishSegmentRequest { segment_id: 9, length: 2024, crc: crc32fast::hash(&kept) }];
    }));
    rig.until_reported("chunk 1 deleted", |h| h.chunks.iter().any(|c| c.chunk_id == 1 && c.deleted)).await;
    rig.until_reported("chunk 2 deleted", |h| h.chunks.iter().any(|c| c.chunk_id == 2 && c.deleted)).await;
    rig.until_reported("segment 10 deleted", |h| h.segments.iter().any(|s| s.segment_id == 10 && s.deleted)).await;
    rig.until_reported("segment 9 sealed", |h| h.segments.iter().any(|s| s.segment_id == 9 && s.sealed)).await;
    assert_eq!(rig.read(segment_read(9, 2024, 0)).await.expect("sealed"), kept);
    assert_eq!(code(rig.read_chunk(1, 0, 1).await), ErrorCode::NotFound);
    rig.stop().await;
}

#[tokio::test]
async fn a_replica_that_lacks_the_end_of_what_was_sealed_is_reported_as_behind_and_replaced() {
    let (good, short) = (Rig::start(4).await, Rig::start(5).await);
    let all = filled(&good, 9, 5).await;
    filled(&short, 9, 3).await;
    let finish = FinishSegmentRequest { segment_id: 9, length: all.len() as u64, crc: crc32fast::hash(&all) };
    good.client.clone().finish_segment(finish).await.expect("finishes");
    short.controller.order(answer(|a| a.finish.push(finish)));
    short.until_reported("damaged", |h| h.segments.iter().any(|s| s.segment_id == 9 && s.damaged && s.behind)).await;
    short.controller.order(answer(|a| a.copies.push(copy_order(9, true, &all, &good.address))));
    short.until_reported("replaced", |h| h.segments.iter().any(|s| s.segment_id == 9 && s.sealed && !s.damaged)).await;
    assert_eq!(short.read(segment_read(9, all.len() as u64, 0)).await.expect("reads"), all);
    good.stop().await;
    short.stop().await;
}

#[tokio::test]
async fn orders_of_an_older_term_are_ignored() {
    let rig = Rig::start(4).await;
    rig.write_chunk(1, &data(1000)).await.expect("writes");
    rig.controller.script.lock().term = 5;
    rig.until_reported("term 5", |h| h.term_seen == 5).await;
    rig.controller.order(answer(|a| a.delete_chunks.push(1)));
    let seen = rig.controller.script.lock().heartbeats.len();
    rig.until("two more heartbeats", || rig.controller.script.lock().heartbeats.len() > seen + 2).await;
    rig.read_chunk(1, 0, 1000).await.expect("still there");
    assert_eq!(rig.controller.script.lock().heartbeats.last().expect("some").term_seen, 5);
    rig.stop().await;
}

#[tokio::test]
async fn the_check_in_the_background_finds_flipped_bits_and_unreadable_files() {
    let disk = SimDisk::new(7);
    let quick = |config: &mut ChunkServerConfig| {
        (config.scrub_bytes_per_s, config.scrub_pause_ms) = (1 << 30, 5);
    };
    let rig = Rig::on(disk, 4, quick).await;
    rig.write_chunk(1, &data(300_000)).await.expect("writes");
    rig.write_chunk(2, &data(300_000)).await.expect("writes");
    let all = filled(&rig, 9, 5).await;
    let finish = FinishSegmentRequest { segment_id: 9, length: all.len() as u64, crc: crc32fast::hash(&all) };
    rig.client.clone().finish_segment(finish).await.expect("finishes");
    rig.disk.flip_bit(&path("chunks", 2, "chunk"), 8 * 299_999).expect("flips");
    rig.disk.flip_bit(&path("segments", 9, "log"), 8 * (DATA_OFFSET + 5)).expect("flips");
    rig.until_reported("chunk 2", |h| h.chunks.iter().any(|c| c.chunk_id == 2 && c.damaged)).await;
    rig.until_reported("segment 9", |h| h.segments.iter().any(|s| s.segment_id == 9 && s.damaged)).await;
    assert!(rig.server.core.chunks.state(1).expect("there").damaged.is_none());
    rig.disk.faults(|f| f.read_error_chance = 1.0);
    rig.until_reported("chunk 1", |h| h.chunks.iter().any(|c| c.chunk_id == 1 && c.damaged)).await;
    rig.disk.faults(|f| f.read_error_chance = 0.0);
    rig.stop().await;
}

#[tokio::test]
async fn a_full_disk_is_reported_and_so_is_its_end() {
    let disk = SimDisk::new(8);
    let rig = Rig::on(disk, 4, |config| config.disk_reserve_bytes = 100_000).await;
    rig.disk.faults(|f| f.capacity_bytes = Some(120_000));
    rig.until_reported("full", |h| h.free_bytes < 1 << 20).await;
    let refused = rig.write_chunk(1, &data(50_000)).await;
    assert_eq!(code(refused), ErrorCode::Overloaded);
    rig.until_reported("refusing", |h| h.refusing_writes.contains("disk full")).await;
    rig.disk.faults(|f| f.capacity_bytes = None);
    let last = || rig.controller.script.lock().heartbeats.last().is_some_and(|h| h.refusing_writes.is_empty());
    rig.until("accepting again", last).await;
    rig.write_chunk(1, &data(50_000)).await.expect("room again");
    rig.stop().await;
}

#[tokio::test]
async fn a_copy_that_fails_is_reported_at_once() {
    let rig = Rig::start(4).await;
    rig.until("it reports", || !rig.controller.script.lock().heartbeats.is_empty()).await;
    rig.controller.order(answer(|a| {
        a.copies.push(copy_order(3, false, &data(100), "127.0.0.1:1"));
        a.copies.push(copy_order(9, true, &data(100), "127.0.0.1:1"));
    }));
    rig.until_reported("the chunk", |h| h.chunks.iter().any(|c| c.chunk_id == 3 && c.deleted)).await;
    rig.until_reported("the segment", |h| h.segments.iter().any(|s| s.segment_id == 9 && s.deleted)).await;
    rig.stop().await;
}
