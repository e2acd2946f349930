//! Scans of every shape while others write: whole tables, ranges, prefixes, limits, backwards, in any
//! order, parallel, with every filter.

use bytes::Bytes;
use futures::future::try_join_all;
use uruk_client::RowRange;

use super::caller::Caller;
use super::layout::{BATCH_ROWS, DATA, HOT_ROWS, INGEST, batch_row, draw_shown, hot_row, ingest_row};
use crate::history::{Mask, ScanOrder, ScanShape, Shown};

/// Clients at once.
const CLIENTS: usize = 2;
/// Between two scans of one of them.
const PAUSE_MS: u64 = 350;
/// The largest limit drawn.
const LIMIT_MAX: u64 = 40;

/// Works until the run stops.
pub async fn run(caller: impl Fn() -> anyhow::Result<Caller>) -> anyhow::Result<()> {
    let callers = (0..CLIENTS).map(|_| caller()).collect::<anyhow::Result<Vec<_>>>()?;
    for table in [DATA, INGEST] {
        if !callers[0].needs(table).await? {
            return Ok(());
        }
    }
    try_join_all(callers.iter().map(work)).await.map(|_| ())
}

async fn work(caller: &Caller) -> anyhow::Result<()> {
    let random = caller.random();
    while !caller.stops() {
        let shape = if random.range(0..8) == 0 { ingest_shape(caller) } else { data_shape(caller) };
        let parallel = [1, 1, 2, 4][random.range(0..4) as usize];
        let prefetch = random.range(0..3) as usize;
        caller.scan(shape, parallel, prefetch).await?;
        caller.pause(PAUSE_MS).await;
    }
    Ok(())
}

fn draw_order(caller: &Caller) -> ScanOrder {
    match caller.random().range(0..6) {
        0 | 1 => ScanOrder::Descending,
        2 => ScanOrder::Any,
        _ => ScanOrder::Ascending,
    }
}

fn data_shape(caller: &Caller) -> ScanShape {
    let random = caller.random();
    let any_key = || match random.range(0..2) {
        0 => batch_row(random.range(0..BATCH_ROWS)).key,
        _ => hot_row(random.range(0..HOT_ROWS)).key,
    };
    let (start, end) = match random.range(0..6) {
        0..3 => (Bytes::new(), Bytes::new()),
        3 => {
            let mut keys = [any_key(), any_key()];
            keys.sort();
            let [start, end] = keys;
            if start == end { (start, Bytes::new()) } else { (start, end) }
        }
        4 => (any_key(), Bytes::new()),
        _ => {
            let prefix = [&b"b"[..], b"b2", b"r", b"r0"][random.range(0..4) as usize];
            let range = RowRange::prefix(prefix);
            (range.start, range.end)
        }
    };
    let limit = if random.range(0..3) == 0 { random.range(1..LIMIT_MAX) } else { 0 };
    // A token of late: some row may still have it.
    let recent = caller.shared.last_token().saturating_sub(random.range(0..20));
    ScanShape { table: DATA, start, end, order: draw_order(caller), limit, shown: draw_shown(random, recent) }
}

fn ingest_shape(caller: &Caller) -> ScanShape {
    let start = ingest_row(caller.random().range(0..5_000)).key;
    let shown = Shown::Columns(Mask::ALL);
    ScanShape { table: INGEST, start, end: Bytes::new(), order: ScanOrder::Ascending, limit: 150, shown }
}
