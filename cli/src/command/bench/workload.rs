//! What the bench does to a table.

use std::sync::Arc;

use anyhow::{Result, bail};
use bytes::Bytes;
use futures::StreamExt;
use uruk_base::Env;
use uruk_client::{Filter, Mutation, ReadOptions, RowMutation, RowRange, ScanOptions, Table};

use super::{Bench, FAMILY, QUALIFIER, Workload};
use crate::load::in_flight::{Done, Stop, in_flight};
use crate::load::record::WriteId;

/// One run of the bench: its table through each client.
pub struct Run {
    pub env: Env,
    pub tables: Vec<Table>,
    pub options: Arc<Bench>,
}

impl Run {
    fn table(&self, place: usize) -> &Table {
        &self.tables[place % self.tables.len()]
    }

    /// Key `n`: in ascending order of `n` over the whole key space, so that "sequential" means it.
    fn key(&self, n: u64) -> Vec<u8> {
        let place = u128::from(n) * 0x1_0000_0000 / u128::from(self.options.rows);
        format!("{place:08x}{}", WriteId { writer: 0, n }.suffix()).into_bytes()
    }

    fn row(&self, n: u64) -> RowMutation {
        let value = Bytes::from(WriteId { writer: 0, n }.value(self.options.value_bytes));
        RowMutation::new(self.key(n), vec![Mutation::set(FAMILY, QUALIFIER, value)])
    }

    fn operations(&self) -> u64 {
        self.options.operations.unwrap_or(self.options.rows.min(100_000))
    }

    /// Runs one of them.
    pub async fn perform(self: Arc<Self>, workload: Workload) -> Result<Done> {
        match workload {
            Workload::BatchWrite => self.batch_write().await,
            Workload::SequentialWrite | Workload::RandomWrite => self.single_writes(workload).await,
            Workload::SequentialRead | Workload::RandomRead => self.single_reads(workload).await,
            Workload::Scan => self.scan().await,
        }
    }

    /// All rows once, in an order that looks random, in batches.
    pub async fn batch_write(self: Arc<Self>) -> Result<Done> {
        let (rows, batch) = (self.options.rows, u64::from(self.options.batch_rows));
        let step = coprime_step(rows);
        let row_bytes = self.options.value_bytes as u64;
        let run = self.clone();
        in_flight(&self.env, self.options.in_flight, Stop::After(rows.div_ceil(batch)), move |place, call| {
            let run = run.clone();
            async move {
                let ns = (call * batch..rows.min((call + 1) * batch)).map(|n| scatter(n, step, rows));
                let batch: Vec<RowMutation> = ns.map(|n| run.row(n)).collect();
                let count = batch.len() as u64;
                for result in run.table(place).mutate_rows(batch).await {
                    result?;
                }
                Ok((count, count * row_bytes))
            }
        })
        .await
    }

    async fn single_writes(self: Arc<Self>, workload: Workload) -> Result<Done> {
        let run = self.clone();
        let (rows, bytes) = (self.options.rows, self.options.value_bytes as u64);
        in_flight(&self.env, self.options.in_flight, Stop::After(self.operations()), move |place, call| {
            let run = run.clone();
            async move {
                let n = if workload == Workload::RandomWrite { run.env.random.range(0..rows) } else { call % rows };
                let RowMutation { key, mutations } = run.row(n);
                run.table(place).mutate_row(key, mutations).await?;
                Ok((1, bytes))
            }
        })
        .await
    }

    async fn single_reads(self: Arc<Self>, workload: Workload) -> Result<Done> {
        let run = self.clone();
        let rows = self.options.rows;
        let read_options = ReadOptions::filter(Filter::all().cells_per_column(1));
        in_flight(&self.env, self.options.in_flight, Stop::After(self.operations()), move |place, call| {
            let (run, read_options) = (run.clone(), read_options.clone());
            async move {
                let n = if workload == Workload::RandomRead { run.env.random.range(0..rows) } else { call % rows };
                let row = run.table(place).read_row(&run.key(n), &read_options).await?;
                let Some(row) = row else { bail!("row {n} is missing") };
                Ok((1, row.cells().map(|cell| cell.value.len() as u64).sum()))
            }
        })
        .await
    }

    async fn scan(&self) -> Result<Done> {
        let mut done = Done::nothing();
        let options = ScanOptions {
            filter: Filter::all().cells_per_column(1),
            parallel: usize::from(self.options.scan_parallel),
            ..ScanOptions::default()
        };
        let mut rows = self.table(0).scan(RowRange::ALL, options);
        let mut before = self.env.clock.now();
        while let Some(row) = rows.next().await {
            let row = row?;
            done.rows += 1;
            done.bytes += row.cells().map(|cell| cell.value.len() as u64).sum::<u64>();
            if done.rows.is_multiple_of(1000) {
                // A scan's latency is the time between rows, taken over a thousand.
                let now = self.env.clock.now();
                done.latencies.saturating_record((now.saturating_since(before).as_micros() as u64 / 1000).max(1));
                before = now;
            }
        }
        if done.rows < self.options.rows {
            bail!("the scan found {} of {} rows", done.rows, self.options.rows);
        }
        Ok(done)
    }
}

/// A step that visits all of `0..rows` once: odd multiples are coprime to most sizes; take the next that is.
fn coprime_step(rows: u64) -> u64 {
    let mut step = (rows as f64 * 0.618_033_988_749) as u64 | 1;
    while gcd(step, rows) != 1 {
        step += 2;
    }
    step
}

fn scatter(n: u64, step: u64, rows: u64) -> u64 {
    (u128::from(n) * u128::from(step) % u128::from(rows)) as u64
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattering_visits_every_row_once() {
        for rows in [1, 2, 7, 100, 1000, 1024] {
            let step = coprime_step(rows);
            let mut seen: Vec<u64> = (0..rows).map(|n| scatter(n, step, rows)).collect();
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..rows), "{rows}");
        }
    }
}
