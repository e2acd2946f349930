//! Batches over many tablets; each row of them ends on its own.

use super::caller::Caller;
use super::layout::{BATCH_ROWS, DATA, HOT_ROWS, batch_row, draw_mask, hot_row};
use crate::history::Write;

/// Between two batches.
const PAUSE_MS: u64 = 500;
/// Rows of the largest batch.
const ROWS_MAX: u64 = 30;

/// Works until the run stops.
pub async fn run(caller: &Caller) -> anyhow::Result<()> {
    if !caller.needs(DATA).await? {
        return Ok(());
    }
    let random = caller.random();
    while !caller.stops() {
        let mut rows: Vec<_> = (0..BATCH_ROWS).map(batch_row).chain((0..HOT_ROWS).map(hot_row)).collect();
        random.shuffle(&mut rows);
        rows.truncate(random.range(1..ROWS_MAX + 1) as usize);
        let write = |row| match random.range(0..8) {
            0 => (row, Write::Delete),
            _ => (row, Write::Value { token: caller.shared.token(), mask: draw_mask(random) }),
        };
        let writes = rows.into_iter().map(write).collect();
        caller.write_all(DATA, writes).await?;
        caller.read(batch_row(random.range(0..BATCH_ROWS))).await?;
        caller.pause(PAUSE_MS).await;
    }
    Ok(())
}
