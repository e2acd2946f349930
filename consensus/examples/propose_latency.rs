//! Measures one member alone: a proposal against a bare `fdatasync`, throughput, and the cost of idling.
//!
//! `cargo run --release -p uruk-consensus --example propose_latency -- FOLDER`

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use uruk_base::Env;
use uruk_base::disk::OpenMode;
use uruk_consensus::{Config, Consensus, RestoreError, StateMachine};

/// Counts commands.
struct Count(u64);

impl StateMachine for Count {
    type Command = Vec<u8>;
    type Reply = u64;

    fn apply(&mut self, _: Vec<u8>) -> u64 {
        self.0 += 1;
        self.0
    }

    fn snapshot(&self) -> Vec<u8> {
        self.0.to_le_bytes().to_vec()
    }

    fn restore(bytes: &[u8]) -> Result<Count, RestoreError> {
        bytes.try_into().map(|b| Count(u64::from_le_bytes(b))).map_err(|_| RestoreError("eight bytes".into()))
    }
}

const SAMPLES: usize = 2000;
const COMMAND_BYTES: usize = 200;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("give a folder")?;
    let folder = Path::new(&folder);
    let env = Env::real();
    env.disk.create_dir_all(folder).await?;
    println!("fdatasync of {COMMAND_BYTES} bytes more:  {}", bare_sync(&env, folder).await?);

    let config = Config::new("count", 1, BTreeMap::from([(1, "127.0.0.1:1".to_owned())]));
    let member = Consensus::start(&env, config, &folder.join("raft"), Count(0)).await?;
    member.leadership().wait_for(|leadership| leadership.is_leader).await?;
    let mut samples = Vec::new();
    for _ in 0..SAMPLES {
        let start = env.clock.now();
        member.propose(vec![1; COMMAND_BYTES]).await?;
        samples.push(env.clock.since(start));
    }
    println!("propose, one at a time:       {}", summary(samples));

    let start = env.clock.now();
    let tasks = (0..100).map(|_| {
        let member = member.clone();
        async move {
            for _ in 0..200 {
                member.propose(vec![1; COMMAND_BYTES]).await.expect("proposes");
            }
        }
    });
    futures::future::join_all(tasks).await;
    println!("propose, 100 at a time:       {:.0} per second", 20_000.0 / env.clock.since(start).as_secs_f64());

    let mut samples = Vec::new();
    for _ in 0..SAMPLES {
        let start = env.clock.now();
        member.confirm_leadership().await?;
        samples.push(env.clock.since(start));
    }
    println!("confirm_leadership:           {}", summary(samples));

    let (before, idle) = (cpu_ticks(), Duration::from_secs(20));
    env.clock.sleep(idle).await;
    println!("idle for {idle:?}:              {} ticks of 10 ms of CPU", cpu_ticks() - before);
    member.shutdown().await;
    Ok(())
}

async fn bare_sync(env: &Env, folder: &Path) -> std::io::Result<String> {
    let file = env.disk.open(&folder.join("bare"), OpenMode::CreateOrWrite).await?;
    let mut samples = Vec::new();
    for at in 0..SAMPLES {
        let start = env.clock.now();
        file.write_at((at * COMMAND_BYTES) as u64, Bytes::from_static(&[7; COMMAND_BYTES])).await?;
        file.sync().await?;
        samples.push(env.clock.since(start));
    }
    Ok(summary(samples))
}

fn summary(mut samples: Vec<Duration>) -> String {
    samples.sort();
    let at = |part: f64| samples[((samples.len() - 1) as f64 * part) as usize];
    format!("median {:?}, 99 % {:?}, worst {:?}", at(0.5), at(0.99), at(1.0))
}

/// CPU time of this process so far, in clock ticks.
fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}
