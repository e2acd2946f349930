//! Tables that are made with splits, used, deleted, and made again under the same name.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;

use super::caller::Caller;

/// Clients at once, each with names of its own.
const CLIENTS: usize = 2;
/// Between two operations.
const PAUSE_MS: u64 = 250;
/// Attempts to make or delete a table before something else is done.
const ATTEMPTS_MAX: usize = 4;

/// Works until the run stops.
pub async fn run(caller: impl Fn() -> anyhow::Result<Caller>) -> anyhow::Result<()> {
    let callers = (0..CLIENTS).map(|_| caller()).collect::<anyhow::Result<Vec<_>>>()?;
    try_join_all(callers.iter().map(work)).await.map(|_| ())
}

async fn work(caller: &Caller) -> anyhow::Result<()> {
    let random = caller.random();
    let mut generation = 0;
    while !caller.stops() {
        let name: Arc<str> = format!("temp-{}-{generation}", caller.number()).into();
        let splits: &[&'static str] =
            [&[][..], &["k5"], &["k3", "k6"], &["k2", "k4", "k6", "k8"]][random.range(0..4) as usize];
        let splits: Vec<Bytes> = splits.iter().map(|split| Bytes::from(split.as_bytes())).collect();
        for _ in 0..ATTEMPTS_MAX {
            if caller.stops() || caller.create_table(&name, &splits).await? {
                break;
            }
            caller.pause(PAUSE_MS).await;
        }
        for _ in 0..random.range(3..10) {
            if caller.stops() {
                return Ok(());
            }
            match random.range(0..6) {
                0 => drop(caller.list_tables().await?),
                1 => drop(caller.scan_table(&name).await?),
                _ => drop(caller.write_table(&name).await?),
            }
            caller.pause(PAUSE_MS).await;
        }
        for _ in 0..ATTEMPTS_MAX {
            if caller.stops() || caller.delete_table(&name).await? {
                break;
            }
            caller.pause(PAUSE_MS).await;
        }
        caller.list_tables().await?;
        // Mostly the same name again.
        generation += u64::from(random.range(0..4) == 0);
        caller.pause(PAUSE_MS).await;
    }
    Ok(())
}
