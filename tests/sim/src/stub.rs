//! Writes rows one by one and reads them back.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use parking_lot::Mutex;
use uruk_base::Env;
use uruk_client::{Client, FamilySpec, Mutation};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Faults,
    Healed,
    Stop,
}

pub struct Violation {
    pub invariant: &'static str,
    pub detail: String,
    pub history: Vec<String>,
}

pub struct Shared {
    phase: Mutex<Phase>,
    acked: Mutex<std::collections::BTreeMap<Bytes, Bytes>>,
    wrong: Mutex<Vec<String>>,
    pub ops: Mutex<u64>,
}

impl Shared {
    pub fn new(_seed: u64) -> Arc<Shared> {
        Arc::new(Shared {
            phase: Mutex::new(Phase::Faults),
            acked: Mutex::default(),
            wrong: Mutex::default(),
            ops: Mutex::default(),
        })
    }
    pub fn phase(&self) -> Phase {
        *self.phase.lock()
    }
    pub fn set_phase(&self, phase: Phase) {
        *self.phase.lock() = phase;
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workload {
    Rows,
    Batches,
}
impl Workload {
    pub const ALL: &'static [Workload] = &[Workload::Rows, Workload::Batches];
    pub fn name(self) -> &'static str {
        "rows"
    }
}

pub async fn run(workload: Workload, env: &Env, masters: &[String], shared: &Arc<Shared>) -> Result<()> {
    let client = Client::connect(env, masters)?;
    let name = format!("t{}", workload as u32);
    let splits: Vec<Bytes> = (1..4).map(|n| Bytes::from(format!("{n}"))).collect();
    let table = loop {
        if let Err(error) = client.create_table(&name, &[FamilySpec::new("f")], &splits).await {
            tracing::info!(%error, "create");
        }
        match client.table(&name).await {
            Ok(table) => break table,
            Err(error) => tracing::info!(%error, "table"),
        }
        if shared.phase() == Phase::Stop {
            return Ok(());
        }
    };
    let mut n = 0_u64;
    while shared.phase() != Phase::Stop {
        n += 1;
        let key = Bytes::from(format!("{}{:04}", env.random.range(0..5), env.random.range(0..200)));
        let value = Bytes::from(format!("{n}"));
        let full = Bytes::from([name.as_bytes(), b"/", &key].concat());
        shared.acked.lock().remove(&full);
        if table.mutate_row(key.clone(), vec![Mutation::set("f", "q", value.clone())]).await.is_ok() {
            shared.acked.lock().insert(full, value);
            *shared.ops.lock() += 1;
        }
        env.clock.sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

pub async fn verify(env: &Env, masters: &[String], shared: &Arc<Shared>) -> Result<()> {
    let client = Client::connect(env, masters)?;
    let acked = shared.acked.lock().clone();
    for (full, value) in acked {
        let text = String::from_utf8_lossy(&full).into_owned();
        let (name, key) = text.split_once('/').context("key")?;
        let row = client.table(name).await?.read_row(key.as_bytes(), &uruk_client::ReadOptions::default()).await?;
        let found = row.and_then(|row| row.value("f", "q").cloned());
        if found.as_ref() != Some(&value) {
            shared.wrong.lock().push(format!("{full:?}: {found:?} and not {value:?}"));
        }
    }
    Ok(())
}

pub fn violations(shared: &Shared) -> Vec<Violation> {
    shared
        .wrong
        .lock()
        .iter()
        .map(|detail| Violation { invariant: "acknowledged", detail: detail.clone(), history: Vec::new() })
        .collect()
}

pub fn operations(shared: &Shared) -> u64 {
    *shared.ops.lock()
}
