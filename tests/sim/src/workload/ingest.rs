//! Sequential ingest in bursts of odd sizes, with pauses between them.

use super::caller::Caller;
use super::layout::{INGEST, ingest_row};
use crate::history::{Mask, Write};

/// Rows of a burst.
const BURSTS: [u64; 8] = [97, 101, 97, 101, 97, 101, 997, 1_009];
/// Rows of one call.
const CALL_ROWS: u64 = 300;
/// Between two bursts.
const PAUSE_MS: u64 = 1_500;

/// Works until the run stops.
pub async fn run(caller: &Caller) -> anyhow::Result<()> {
    if !caller.needs(INGEST).await? {
        return Ok(());
    }
    // Two columns, so that a row can be torn.
    let mask = Mask(Mask::MARK.0 | 0b1000);
    let mut next = 0;
    while !caller.stops() {
        let mut left = BURSTS[caller.random().range(0..BURSTS.len() as u64) as usize];
        while left > 0 && !caller.stops() {
            let count = left.min(CALL_ROWS);
            let write = |n| (ingest_row(n), Write::Value { token: caller.shared.token(), mask });
            caller.write_all(INGEST, (next..next + count).map(write).collect()).await?;
            next += count;
            left -= count;
        }
        caller.pause(PAUSE_MS).await;
    }
    Ok(())
}
