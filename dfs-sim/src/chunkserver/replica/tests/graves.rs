//! Deleted segments stay deleted, whatever fails on the way.

use super::*;
use crate::chunkserver::map_cache::MapCache;
use crate::chunkserver::segment_store::SegmentStore;

#[tokio::test(start_paused = true)]
async fn a_grave_is_durable_before_it_is_believed() {
    for seed in 0..60 {
        let (machine, process, replica) = start(seed, Mode::Fsync).await;
        filled(&replica, 2).await;
        machine.disk.faults(|f| f.sync_error_chance = 1.0);
        process.segments.delete(&[SEGMENT]).await.expect_err("the grave is not durable");
        process.crash(&machine, false).await;
        machine.disk.faults(|f| f.sync_error_chance = 0.0);
        // The record may be read from the page cache now, and the files removed because of it.
        machine.start().await.crash(&machine, true).await;
        let process = machine.start().await;
        let open = OpenAppend { log_id: LOG, mode: Mode::Fsync, create: true };
        process.segments.open_for_append(SEGMENT, open).await.expect_err("deleted, or there and of an older process");
    }
}

#[tokio::test(start_paused = true)]
async fn a_grave_that_could_not_be_written_is_written_by_the_next_order() {
    let (machine, process, replica) = start(1, Mode::Fsync).await;
    filled(&replica, 2).await;
    machine.disk.faults(|f| f.write_error_chance = 1.0);
    process.segments.delete(&[SEGMENT]).await.expect_err("no grave");
    machine.disk.faults(|f| f.write_error_chance = 0.0);
    assert_eq!(replica.length(), 224, "and no deletion");
    process.segments.delete(&[SEGMENT]).await.expect("deletes");
    process.crash(&machine, true).await;
    let process = machine.start().await;
    let open = OpenAppend { log_id: LOG, mode: Mode::Fsync, create: true };
    process.segments.open_for_append(SEGMENT, open).await.expect_err("never again");
}

#[tokio::test(start_paused = true)]
async fn a_start_that_cannot_look_for_graves_forgets_none() {
    let (machine, process, replica) = start(1, Mode::Fsync).await;
    filled(&replica, 2).await;
    process.segments.delete(&[SEGMENT]).await.expect("deletes");
    process.crash(&machine, true).await;
    let process = machine.start().await;
    let open = || SegmentStore::open(process.host.clone(), Arc::new(MapCache::new(4)));
    machine.disk.faults(|f| f.list_errors = 1);
    assert!(open().await.is_err(), "it takes the file for absent");
    let again = open().await.expect("opens");
    again.get_or_absent(SEGMENT).expect_err("never again");
}

#[tokio::test(start_paused = true)]
async fn graves_are_compacted_at_start_and_none_is_forgotten() {
    let machine = Machine::new(1);
    let process = machine.start().await;
    let dead: Vec<u64> = (100..1_100).chain((2_000..2_200).step_by(2)).collect();
    for ids in dead.chunks(7) {
        process.segments.delete(ids).await.expect("deletes");
    }
    let graves_bytes = || {
        let files = machine.disk.files();
        files.iter().find(|(path, _)| path.ends_with("GRAVES")).map(|(_, bytes)| *bytes)
    };
    let before = graves_bytes();
    assert_eq!(before, Some(1_101 * 16), "a head, and a record for each");
    process.crash(&machine, true).await;
    for round in 0..3 {
        let process = machine.start().await;
        assert_eq!(
            graves_bytes(),
            Some((102 + u64::from(round > 0)) * 16),
            "a head, and one record for each run of ids"
        );
        for id in &dead {
            process.segments.get_or_absent(*id).expect_err("never again");
        }
        for id in [99, 1_100, 2_001, 2_199] {
            process.segments.get_or_absent(id).expect("was never deleted");
        }
        process.segments.delete(&[5_000 + round % 2]).await.expect("deletes");
        process.crash(&machine, round == 1).await;
    }
}
