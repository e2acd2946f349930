//! The Big Linked List: batches of nodes that point at the previous flushed batch, closed into rings.

use std::sync::Arc;

use super::caller::Caller;
use super::layout::LIST;
use crate::history::Node;

/// Nodes of a batch.
const WIDTH: usize = 24;
/// Batches until the ring is closed.
const BATCHES: usize = 8;
/// Between two batches.
const PAUSE_MS: u64 = 400;

/// Works until the run stops.
pub async fn run(caller: &Caller) -> anyhow::Result<()> {
    if !caller.needs(LIST).await? {
        return Ok(());
    }
    while !caller.stops() {
        ring(caller).await?;
    }
    Ok(())
}

async fn ring(caller: &Caller) -> anyhow::Result<()> {
    let random = caller.random();
    let mut first: Vec<u64> = Vec::new();
    let mut previous: Vec<u64> = Vec::new();
    for _ in 0..BATCHES {
        // Ids that no other node has, over all tablets.
        let ids: Vec<u64> = (0..WIDTH).map(|_| random.u64()).collect();
        let nodes = ids.iter().enumerate().map(|(place, id)| Node { id: *id, next: previous.get(place).copied() });
        if !flush(caller, nodes.collect()).await? {
            return Ok(());
        }
        if first.is_empty() {
            first.clone_from(&ids);
        }
        previous = ids;
    }
    random.shuffle(&mut previous);
    let closing = first.iter().zip(&previous).map(|(id, next)| Node { id: *id, next: Some(*next) });
    flush(caller, closing.collect()).await.map(|_| ())
}

/// Writes the nodes until all of them are done; false if the run stops before.
async fn flush(caller: &Caller, nodes: Vec<Node>) -> anyhow::Result<bool> {
    let nodes = Arc::new(nodes);
    while !caller.stops() {
        let flushed = caller.write_nodes(&nodes).await?;
        caller.pause(PAUSE_MS).await;
        if flushed {
            return Ok(true);
        }
    }
    Ok(false)
}
