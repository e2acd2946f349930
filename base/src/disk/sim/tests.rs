use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::clock::SimulatedClock;

const DIR: &str = "/data";

fn clock() -> Clock {
    Clock::from_source(Arc::new(SimulatedClock::new(1.0, 0)))
}

fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

async fn new_disk(seed: u64) -> (SimDisk, Arc<dyn Disk>) {
    let disk = SimDisk::new(seed);
    let mounted = disk.mount(clock());
    mounted.create_dir_all(Path::new(DIR)).await.expect("creates the folder");
    (disk, mounted)
}

async fn write_synced(disk: &Arc<dyn Disk>, name: &str, content: &[u8]) -> Arc<dyn DiskFile> {
    let file = disk.open(&path(name), OpenMode::CreateOrWrite).await.expect("opens");
    file.write_at(0, Bytes::copy_from_slice(content)).await.expect("writes");
    file.sync().await.expect("syncs");
    disk.sync_dir(Path::new(DIR)).await.expect("syncs the folder");
    file
}

#[tokio::test(start_paused = true)]
async fn synced_bytes_and_names_survive_power_loss() {
    for seed in 0..50 {
        let (disk, mounted) = new_disk(seed).await;
        write_synced(&mounted, "a", &[7; 3000]).await;
        disk.power_loss();
        assert_eq!(disk.mount(clock()).read(&path("a")).await.expect("there"), vec![7; 3000]);
    }
}

#[tokio::test(start_paused = true)]
async fn unsynced_bytes_survive_a_process_crash_and_only_partly_a_power_loss() {
    let (mut kept, mut lost, mut torn) = (0, 0, 0);
    for seed in 0..200 {
        let (disk, mounted) = new_disk(seed).await;
        let file = write_synced(&mounted, "a", &[1; 2048]).await;
        file.write_at(512, Bytes::from(vec![2; 1024])).await.expect("writes");
        disk.process_crash();
        let mounted = disk.mount(clock());
        let seen = mounted.read(&path("a")).await.expect("there");
        assert!(seen[512..1536].iter().all(|b| *b == 2), "the page cache outlives the process");
        disk.power_loss();
        let seen = disk.mount(clock()).read(&path("a")).await.expect("there");
        assert!(seen[..512].iter().chain(&seen[1536..]).all(|b| *b == 1));
        for sector in seen.chunks(512) {
            assert!(sector.iter().all(|b| *b == sector[0]), "sectors are never torn");
        }
        match (seen[512], seen[1024]) {
            (2, 2) => kept += 1,
            (1, 1) => lost += 1,
            _ => torn += 1,
        }
    }
    assert!(kept > 10 && lost > 10 && torn > 10, "{kept} kept, {lost} lost, {torn} torn");
}

#[tokio::test(start_paused = true)]
async fn an_unsynced_length_is_old_or_new_after_power_loss() {
    let (mut old, mut new) = (0, 0);
    for seed in 0..100 {
        let (disk, mounted) = new_disk(seed).await;
        let file = write_synced(&mounted, "a", &[1; 100]).await;
        file.write_at(100, Bytes::from(vec![2; 1000])).await.expect("writes");
        disk.power_loss();
        match disk.mount(clock()).read(&path("a")).await.expect("there").len() {
            100 => old += 1,
            1100 => new += 1,
            other => panic!("{other} bytes"),
        }
    }
    assert!(old > 10 && new > 10, "{old} old, {new} new");
}

#[tokio::test(start_paused = true)]
async fn names_need_a_sync_of_their_folder() {
    let (mut kept, mut lost) = (0, 0);
    for seed in 0..100 {
        let (disk, mounted) = new_disk(seed).await;
        let file = mounted.open(&path("a"), OpenMode::CreateNew).await.expect("creates");
        file.sync().await.expect("syncs");
        disk.power_loss();
        if disk.mount(clock()).exists(&path("a")).await.unwrap() { kept += 1 } else { lost += 1 }
    }
    assert!(kept > 10 && lost > 10, "{kept} kept, {lost} lost");
}

#[tokio::test(start_paused = true)]
async fn a_replaced_file_is_old_or_new_and_never_gone() {
    for seed in 0..200 {
        let (disk, mounted) = new_disk(seed).await;
        mounted.replace(&path("a"), Bytes::from_static(b"old")).await.expect("replaces");
        let clock = clock();
        let interrupted = clock.clone();
        let limit = std::time::Duration::from_micros(seed * 10);
        // Dropped somewhere in the middle: between write, sync, rename and sync of the folder.
        let done = interrupted.timeout(limit, mounted.replace(&path("a"), Bytes::from_static(b"new"))).await;
        disk.power_loss();
        let seen = disk.mount(clock).read(&path("a")).await.expect("never gone");
        assert!(seen == "new" || (seen == "old" && done.is_err()), "{seen:?} after {done:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_lies_ever_after() {
    let (mut lost_late, mut evicted) = (0, 0);
    for seed in 0..50 {
        let (disk, mounted) = new_disk(seed).await;
        let file = write_synced(&mounted, "a", &[1; 512]).await;
        file.write_at(0, Bytes::from(vec![2; 512])).await.expect("writes");
        disk.faults(|f| f.sync_errors = 1);
        assert_eq!(file.sync().await.expect_err("fails").raw_os_error(), Some(5));
        file.sync().await.expect("the second one claims success");
        assert_eq!(file.read_at(0, 1).await.expect("reads")[0], 2, "the cache shows it");
        if seed % 2 == 0 {
            disk.process_crash();
        } else {
            disk.power_loss();
        }
        let seen = disk.mount(clock()).read(&path("a")).await.expect("there")[0];
        match (seed % 2, seen) {
            (0, 1) => evicted += 1,
            (1, 1) => lost_late += 1,
            _ => {}
        }
    }
    assert!(lost_late > 5 && evicted > 2, "{lost_late} lost, {evicted} evicted");
}

#[tokio::test(start_paused = true)]
async fn writing_again_after_a_failed_sync_makes_it_durable() {
    for seed in 0..50 {
        let (disk, mounted) = new_disk(seed).await;
        let file = write_synced(&mounted, "a", &[1; 512]).await;
        file.write_at(0, Bytes::from(vec![2; 512])).await.expect("writes");
        disk.faults(|f| f.sync_errors = 1);
        file.sync().await.expect_err("fails");
        file.write_at(0, Bytes::from(vec![2; 512])).await.expect("writes again");
        file.sync().await.expect("syncs");
        disk.power_loss();
        assert_eq!(disk.mount(clock()).read(&path("a")).await.expect("there")[0], 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_during_a_sync_is_not_made_durable_by_it() {
    let mut lost = 0;
    for seed in 0..100 {
        let (disk, mounted) = new_disk(seed).await;
        let file = write_synced(&mounted, "a", &[1; 512]).await;
        disk.faults(|f| f.sync_delay = Duration::from_millis(5));
        let clock = clock();
        let (synced, written) = futures::join!(file.sync(), async {
            clock.sleep(Duration::from_millis(1)).await;
            file.write_at(512, Bytes::from(vec![2; 512])).await
        });
        synced.expect("syncs");
        written.expect("writes");
        disk.power_loss();
        lost += u32::from(disk.mount(clock).read(&path("a")).await.expect("there").len() == 512);
    }
    assert!(lost > 10, "{lost}");
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_refuses_and_recovers() {
    let (disk, mounted) = new_disk(1).await;
    let file = write_synced(&mounted, "a", &[1; 600]).await;
    disk.faults(|f| f.capacity_bytes = Some(1000));
    assert_eq!(mounted.free_bytes(Path::new(DIR)).await.expect("known"), 400);
    let full = file.write_at(600, Bytes::from(vec![2; 500])).await.expect_err("full");
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    assert_eq!(file.len().await.expect("known"), 1000, "what fits was written");
    file.write_at(0, Bytes::from(vec![3; 1000])).await.expect("rewriting needs no room");
    disk.faults(|f| f.capacity_bytes = Some(2000));
    file.write_at(600, Bytes::from(vec![2; 500])).await.expect("room again");
}

#[tokio::test(start_paused = true)]
async fn read_and_write_errors_are_switched_on_and_off() {
    let (disk, mounted) = new_disk(1).await;
    let file = write_synced(&mounted, "a", &[1; 10]).await;
    disk.faults(|f| (f.read_error_chance, f.write_error_chance) = (1.0, 1.0));
    assert_eq!(file.read_at(0, 1).await.expect_err("fails").raw_os_error(), Some(5));
    assert_eq!(mounted.map(&path("a")).await.expect_err("fails").raw_os_error(), Some(5));
    assert_eq!(file.write_at(0, Bytes::from_static(b"x")).await.expect_err("fails").raw_os_error(), Some(5));
    disk.faults(|f| *f = DiskFaults::default());
    assert_eq!(file.read_at(0, 1).await.expect("reads")[0], 1);
}

#[tokio::test(start_paused = true)]
async fn a_flipped_bit_stays_flipped() {
    let (disk, mounted) = new_disk(1).await;
    write_synced(&mounted, "a", &[0; 10]).await;
    disk.flip_bit(&path("a"), 8 * 3 + 1).expect("flips");
    disk.power_loss();
    assert_eq!(disk.mount(clock()).read(&path("a")).await.expect("there")[3], 2);
    assert!(disk.flip_bit(&path("a"), 80).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_crash_frees_locks_and_kills_handles() {
    let (disk, mounted) = new_disk(1).await;
    let file = write_synced(&mounted, "a", &[1; 10]).await;
    let lock = mounted.lock_dir(Path::new(DIR)).await.expect("free");
    assert_eq!(mounted.lock_dir(Path::new(DIR)).await.expect_err("held").kind(), io::ErrorKind::WouldBlock);
    let boot = mounted.boot_id();
    disk.process_crash();
    let next = disk.mount(clock());
    assert_eq!(next.boot_id(), boot);
    let _held = next.lock_dir(Path::new(DIR)).await.expect("free again");
    drop(lock);
    assert!(next.lock_dir(Path::new(DIR)).await.is_err(), "a dead process's lock releases nothing");
    assert!(file.write_at(0, Bytes::from_static(b"zombie")).await.is_err());
    assert!(mounted.open(&path("b"), OpenMode::CreateNew).await.is_err());
    disk.power_loss();
    assert_ne!(disk.mount(clock()).boot_id(), boot);
}

#[tokio::test(start_paused = true)]
async fn names_behave_as_in_a_file_system() {
    let (sim, disk) = new_disk(1).await;
    write_synced(&disk, "a", b"1").await;
    disk.create_dir_all(&path("sub/deep")).await.expect("creates");
    disk.rename(&path("a"), &path("sub/b")).await.expect("renames");
    let names = |entries: Vec<DirEntry>| entries.into_iter().map(|e| e.name).collect::<Vec<_>>();
    assert_eq!(names(disk.list(Path::new(DIR)).await.expect("lists")), ["sub"]);
    assert_eq!(names(disk.list(&path("sub")).await.expect("lists")), ["b", "deep"]);
    assert_eq!(disk.open(&path("a"), OpenMode::Read).await.expect_err("gone").kind(), io::ErrorKind::NotFound);
    let no_folder = disk.open(&path("no/x"), OpenMode::CreateNew).await.expect_err("no folder");
    assert_eq!(no_folder.kind(), io::ErrorKind::NotFound);
    disk.remove_dir_all(&path("sub")).await.expect("removes");
    assert!(!disk.exists(&path("sub/b")).await.unwrap());
    sim.faults(|f| f.list_errors = 1);
    assert!(disk.exists(&path("sub")).await.is_err(), "an error is no answer");
    assert!(disk.list(&path("sub")).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_content() {
    let run = |seed| async move {
        let (disk, mounted) = new_disk(seed).await;
        for name in ["a", "b", "c"] {
            let file = mounted.open(&path(name), OpenMode::CreateNew).await.expect("creates");
            file.write_at(0, Bytes::from(vec![1; 5000])).await.expect("writes");
        }
        disk.power_loss();
        let mounted = disk.mount(clock());
        let mut seen = Vec::new();
        for (path, _) in disk.files() {
            seen.push((path.clone(), mounted.read(&path).await.expect("there")));
        }
        seen
    };
    for seed in 0..20 {
        assert_eq!(run(seed).await, run(seed).await);
    }
    assert!(futures::future::join_all((0..20).map(run)).await.windows(2).any(|w| w[0] != w[1]));
}
