//! Random interleavings of a writer, faults and sealers, each run decided by its seed (the network's
//! own timing aside). Whatever happens: nothing acknowledged is lost, all sealers agree, nothing is
//! acknowledged beyond the end, and what is read has no gap.

use std::sync::Arc;
use std::time::Duration;

use uruk_base::Random;
use uruk_base::commit_log::{CommitLogStore, LogError, LogId, LogWriter, SealedLog};

use super::cluster::{Cluster, numbers, payload};
use super::network::Mode;

const RUNS: u64 = 12;
const SERVERS: usize = 4;
const STEPS: u64 = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_ever_lost() {
    let mut cluster = Cluster::start(SERVERS).await;
    for seed in 0..RUNS {
        run(&mut cluster, seed).await;
    }
}

async fn run(cluster: &mut Cluster, seed: u64) {
    let random = Random::from_seed(seed);
    let id = LogId(1_000 + seed);
    let small = 500 + random.range(0..20_000);
    let logs = cluster
        .client_with(|c| {
            c.log_segment_bytes = small;
            c.log_slow_replica_ms = 30;
            c.log_stalled_replica_ms = 200;
            c.log_write_deadline_ms = 5_000;
        })
        .commit_logs();
    let writer: Arc<dyn LogWriter> = logs.create(id).await.unwrap().into();
    let write = tokio::spawn(write(writer, random.u64()));
    let mut faulty = None;
    let mut sealers = Vec::new();
    for step in 0..STEPS {
        tokio::time::sleep(Duration::from_millis(random.range(0..8))).await;
        match random.range(0..10) {
            // At most one server is in trouble at a time: that much is promised.
            0..=3 => {
                if let Some(index) = faulty.take() {
                    cluster.set(index, Mode::Pass);
                }
                let index = random.range(0..SERVERS as u64) as usize;
                cluster.set(index, if random.range(0..2) == 0 { Mode::Stall } else { Mode::Cut });
                faulty = Some(index);
            }
            4 if faulty.is_none() => cluster.restart_server(random.range(0..SERVERS as u64) as usize).await,
            5 | 6 => {
                if let Some(index) = faulty.take() {
                    cluster.set(index, Mode::Pass);
                }
            }
            7 if step > STEPS / 2 => sealers.push(seal(cluster, id)),
            _ => {}
        }
    }
    sealers.push(seal(cluster, id));
    sealers.push(seal(cluster, id));
    let mut ends: Vec<SealedLog> = Vec::new();
    for sealer in sealers {
        ends.push(sealer.await.unwrap());
    }
    if let Some(index) = faulty {
        cluster.set(index, Mode::Pass);
    }
    let (acknowledged, error) = write.await.unwrap();
    assert!(matches!(error, LogError::Fenced(_) | LogError::Indeterminate(..)), "seed {seed}: {error}");
    assert!(ends.iter().all(|end| *end == ends[0]), "seed {seed}: {ends:?}");
    assert!(acknowledged <= ends[0].end.0, "seed {seed}: {acknowledged} acknowledged, sealed at {}", ends[0].end);
    let found = numbers(&cluster.logs(), &ends[0]).await;
    assert_eq!(found, (0..found.len() as u64).collect::<Vec<_>>(), "seed {seed}");
}

fn seal(cluster: &Cluster, id: LogId) -> tokio::task::JoinHandle<SealedLog> {
    let logs = cluster.client_with(|c| c.seal_attempt_ms = 200).commit_logs();
    tokio::spawn(async move { logs.seal(id).await.unwrap() })
}

/// Appends records of random sizes until the end; how far they were acknowledged.
async fn write(writer: Arc<dyn LogWriter>, seed: u64) -> (u64, LogError) {
    let random = Random::from_seed(seed);
    let durable = writer.durable();
    let mut acknowledged = 0;
    for n in 0.. {
        let bytes = 8 + random.range(0..3_000) as usize;
        if let Err(error) = writer.append(payload(n, bytes)).await {
            return (acknowledged, error);
        }
        if let Ok(lsn) = &*durable.borrow() {
            acknowledged = acknowledged.max(lsn.0);
        }
        if random.range(0..4) == 0 {
            match writer.flush().await {
                Ok(lsn) => acknowledged = acknowledged.max(lsn.0),
                Err(error) => return (acknowledged, error),
            }
        }
    }
    unreachable!("the log is sealed in the end")
}
