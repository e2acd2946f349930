//! Single-row operations of every kind on few hot rows over several tablets.

use futures::future::try_join_all;

use super::caller::Caller;
use super::layout::{DATA, HOT_ROWS, LOG_ROWS, LOGS, draw_mask, hot_row, log_row};
use crate::history::{Cells, Expect, MARK, Token, Write};

/// Clients at once.
const CLIENTS: usize = 4;
/// Between two operations of one of them.
const PAUSE_MS: u64 = 120;

/// Works until the run stops.
pub async fn run(caller: impl Fn() -> anyhow::Result<Caller>) -> anyhow::Result<()> {
    let callers = (0..CLIENTS).map(|_| caller()).collect::<anyhow::Result<Vec<_>>>()?;
    for table in [DATA, LOGS] {
        if !callers[0].needs(table).await? {
            return Ok(());
        }
    }
    try_join_all(callers.iter().map(work)).await.map(|_| ())
}

async fn work(caller: &Caller) -> anyhow::Result<()> {
    // What this client saw last of each row: what a conditional write asks for.
    let mut known = vec![0; HOT_ROWS as usize];
    while !caller.stops() {
        step(caller, &mut known).await?;
        caller.pause(PAUSE_MS).await;
    }
    Ok(())
}

async fn step(caller: &Caller, known: &mut [Token]) -> anyhow::Result<()> {
    let random = caller.random();
    let n = random.range(0..HOT_ROWS);
    let row = hot_row(n);
    let value = || Write::Value { token: caller.shared.token(), mask: draw_mask(random) };
    match random.range(0..100) {
        0..20 => {
            let write = value();
            if caller.write(row, write).await?.is_some()
                && let Write::Value { token, .. } = write
            {
                known[n as usize] = token;
            }
        }
        20..27 => drop(caller.write(row, Write::Delete).await?),
        27..50 => {
            let last = known[n as usize];
            let expect = if last == 0 || random.range(0..5) == 0 { Expect::Present } else { Expect::Token(last) };
            let (then, otherwise) = match random.range(0..10) {
                0 => (Some(Write::Delete), None),
                1..3 => (None, Some(value())),
                3..6 => (Some(value()), None),
                _ => (Some(value()), Some(value())),
            };
            if let Some(matched) = caller.check(row, expect, then, otherwise).await?
                && let Some(Write::Value { token, .. }) = if matched { then } else { otherwise }
            {
                known[n as usize] = token;
            }
        }
        50..72 => {
            if let Some(Cells(cells)) = caller.read(row).await? {
                known[n as usize] = cells[MARK];
            }
        }
        72..93 => drop(caller.append(log_row(random.range(0..LOG_ROWS))).await?),
        _ => drop(caller.read_log(log_row(random.range(0..LOG_ROWS))).await?),
    }
    Ok(())
}
