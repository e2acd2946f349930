//! Measures commit logs and files on a cluster in this process: one controller, three chunk servers,
//! loopback, three replicas. Run with `cargo run --release -p uruk-dfs-sim --example dfs_bench`.
//!
//! Arguments, in any order: a folder for the data (default: a temporary one), `replicated` for that
//! durability, `logs` or `files` for one half alone.

#![allow(clippy::disallowed_methods, clippy::print_stdout)] // a benchmark reads the clock

use std::future::Future;
use std::path::{Path as FilePath, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use uruk_base::Env;
use uruk_base::commit_log::{CommitLogStore, LogId, LogWriter, Lsn};
use uruk_dfs_sim::chunkserver::{ChunkServer, ChunkServerConfig};
use uruk_dfs_sim::client::{DfsClient, DfsClientConfig, DfsCommitLogs, Durability};
use uruk_dfs_sim::controller::{Controller, ControllerConfig};

const MIB: f64 = 1024.0 * 1024.0;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let says = |word: &str| arguments.iter().any(|a| a == word);
    let durability = if says("replicated") { Durability::Replicated } else { Durability::Fsync };
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let folder = arguments.iter().find(|a| a.contains('/')).map_or(temporary.path().to_owned(), PathBuf::from);
    let client = start(&folder, durability).await;
    println!("durability {durability:?}, 3 replicas, all in one process with 2 threads");
    if !says("files") {
        let logs = client.commit_logs();
        for (number, (bytes, frames)) in [(4 << 10, 5_000), (100 << 10, 3_000), (1 << 20, 400)].into_iter().enumerate()
        {
            appends(&logs, LogId(number as u64 + 1), bytes, frames).await;
        }
        latency(&logs, LogId(100), 4 << 10, 500).await;
    }
    if !says("logs") {
        files(&client).await;
    }
}

async fn start(folder: &FilePath, durability: Durability) -> DfsClient {
    let env = Env::real();
    let config = ControllerConfig {
        heartbeat: Duration::from_millis(100),
        ..ControllerConfig::new(folder.join("controller"), "127.0.0.1:0")
    };
    let controller = Controller::run(&env, config).await.expect("the controller starts");
    for index in 0..3 {
        let config = ChunkServerConfig {
            folder: folder.join(format!("chunks-{index}")),
            controllers: vec![controller.address().to_owned()],
            ..ChunkServerConfig::default()
        };
        let server = ChunkServer::start(&env, config).await.expect("the chunk server starts");
        let listener = server.listen().await.expect("the chunk server listens");
        env.tasks.spawn("chunk server", async move { server.serve(listener).await.expect("it serves") });
    }
    let config = DfsClientConfig { durability, ..DfsClientConfig::new(vec![controller.address().to_owned()]) };
    let client = DfsClient::connect(&env, config).await.expect("the controller answers");
    while client.health().await.expect("the controller answers").servers.iter().filter(|s| s.live).count() < 3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The controller serves for as long as the process lives.
    std::mem::forget(controller);
    client
}

async fn timed<T>(work: impl Future<Output = T>) -> (T, f64) {
    let start = Instant::now();
    let output = work.await;
    (output, start.elapsed().as_secs_f64())
}

async fn appends(logs: &DfsCommitLogs, id: LogId, bytes: usize, frames: u64) {
    let writer = logs.create(id).await.expect("a new log");
    let payload = Bytes::from((0..bytes).map(|i| (i * 31) as u8).collect::<Vec<_>>());
    let ((), seconds) = timed(async {
        for _ in 0..frames {
            writer.append(payload.clone()).await.expect("appended");
        }
        writer.flush().await.expect("durable");
    })
    .await;
    let total = bytes as f64 * frames as f64;
    println!(
        "append {:>7} B frames, 4 in flight: {:>8.0} frames/s {:>7.1} MiB/s",
        bytes,
        frames as f64 / seconds,
        total / MIB / seconds
    );
    let (sealed, seconds) = timed(logs.seal(id)).await;
    let sealed = sealed.expect("sealed");
    println!("  seal, writer alive: {:.1} ms, {} segments", seconds * 1e3, sealed.segments.len());
    drop(writer);
    let (records, seconds) =
        timed(logs.read(&sealed, Lsn(0)..sealed.end).try_fold(0u64, |n, _| async move { Ok(n + 1) })).await;
    assert_eq!(records.expect("read"), frames);
    println!("  read back: {:>7.1} MiB/s, {:>8.0} records/s", total / MIB / seconds, frames as f64 / seconds);
}

async fn latency(logs: &DfsCommitLogs, id: LogId, bytes: usize, frames: usize) {
    let writer = logs.create(id).await.expect("a new log");
    let payload = Bytes::from(vec![7; bytes]);
    let mut micros = Vec::with_capacity(frames);
    for _ in 0..frames {
        let ((), seconds) = timed(flush_one(&*writer, payload.clone())).await;
        micros.push((seconds * 1e6) as u64);
    }
    micros.sort_unstable();
    println!(
        "append + flush of one {bytes} B frame: p50 {} us, p99 {} us",
        micros[frames / 2],
        micros[frames * 99 / 100]
    );
    let (closed, seconds) = timed(writer.close()).await;
    closed.expect("closed");
    println!("  close: {:.1} ms", seconds * 1e3);
}

async fn flush_one(writer: &dyn LogWriter, payload: Bytes) {
    writer.append(payload).await.expect("appended");
    writer.flush().await.expect("durable");
}

async fn files(client: &DfsClient) {
    let store = client.object_store();
    let (path, bytes) = (Path::from("bench/file"), 256 << 20);
    let data = Bytes::from((0..bytes).map(|i| (i * 7 / 5) as u8).collect::<Vec<_>>());
    let (put, seconds) = timed(store.put(&path, data.into())).await;
    put.expect("written");
    println!("put of {} MiB: {:.1} MiB/s", bytes >> 20, bytes as f64 / MIB / seconds);
    let (read, seconds) = timed(async {
        let mut stream = store.get(&path).await.expect("found").into_stream();
        let mut n = 0;
        while let Some(piece) = stream.next().await {
            n += piece.expect("read").len();
        }
        n
    })
    .await;
    assert_eq!(read, bytes);
    println!("get of {} MiB: {:.1} MiB/s", bytes >> 20, bytes as f64 / MIB / seconds);
    for in_flight in [1, 16] {
        let reads = 5_000u64;
        let ((), seconds) = timed(async {
            futures::stream::iter(0..reads)
                .map(|i| {
                    let at = i * 7_919 * 4_096 % (bytes as u64 - 16_384);
                    let (store, path) = (&store, &path);
                    async move { store.get_range(path, at..at + 16_384).await.expect("read") }
                })
                .buffer_unordered(in_flight)
                .for_each(|_| async {})
                .await;
        })
        .await;
        println!("point reads of 16 KiB, {in_flight} in flight: {:.0}/s", reads as f64 / seconds);
    }
    let (put, seconds) = timed(async {
        for i in 0..200 {
            store.put(&Path::from(format!("bench/small-{i}")), Bytes::from(vec![1; 4_096]).into()).await?;
        }
        Ok::<_, object_store::Error>(())
    })
    .await;
    put.expect("written");
    println!("puts of 4 KiB, one in flight: {:.0}/s", 200.0 / seconds);
    store.delete(&path).await.expect("deleted");
}
