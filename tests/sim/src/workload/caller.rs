//! A client of a workload: performs operations and records them, with how they ended.
//!
//! (1) An operation is in the history before anything of it is sent. (2) An error is an outcome, unless
//! no fault can explain it: that one ends the run.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use futures::StreamExt;
use uruk_base::{Env, Random};
use uruk_client::{
    Client, ClientConfig, Error, FamilySpec, Filter, Mutation, Order, Outcome, ReadModifyWriteRule, ReadOptions,
    RowMutation, RowRange, ScanOptions,
};
use uruk_proto::ErrorCode;

use super::layout;
use super::{Phase, Shared};
use crate::history::{
    Cells, Ended, Expect, Node, Op, OpId, RowId, ScanOrder, ScanShape, SeenRow, Token, Told, Write, now, token_text,
    token_value,
};

/// A data call ends after this.
const CALL_DEADLINE_MS: u64 = 3_000;
/// An attempt ends after this.
const ATTEMPT_DEADLINE_MS: u64 = 1_000;
/// A table is made or deleted within this, or nobody knows.
const ADMIN_DEADLINE_MS: u64 = 8_000;
/// Between two attempts to make a table that is needed.
const SETUP_PAUSE: Duration = Duration::from_millis(300);

/// A client of a workload.
pub struct Caller {
    /// Its process.
    pub env: Env,
    /// What it shares with the others.
    pub shared: Arc<Shared>,
    client: Client,
    workload: &'static str,
    number: u64,
}

/// What an operation brought; none if it failed as faults make it fail.
pub type Brought<T> = anyhow::Result<Option<T>>;

impl Caller {
    /// Another client.
    pub fn new(env: &Env, masters: &[String], shared: &Arc<Shared>, workload: &'static str) -> anyhow::Result<Caller> {
        let config = ClientConfig {
            call_deadline_ms: CALL_DEADLINE_MS,
            attempt_deadline_ms: ATTEMPT_DEADLINE_MS,
            admin_deadline_ms: ADMIN_DEADLINE_MS,
            master_attempt_deadline_ms: ATTEMPT_DEADLINE_MS / 2,
            ..ClientConfig::default()
        };
        let client = Client::builder().masters(masters).config(config).connect(env)?;
        Ok(Caller { env: env.clone(), shared: shared.clone(), client, workload, number: shared.client() })
    }

    /// Its randomness.
    pub fn random(&self) -> &Random {
        &self.env.random
    }

    /// Its number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether to end.
    pub fn stops(&self) -> bool {
        self.shared.phase() == Phase::Stop
    }

    /// Waits about this long; now and then far longer, since constant load hides bugs.
    pub async fn pause(&self, mean_ms: u64) {
        let mut wait = self.random().jitter(Duration::from_millis(mean_ms).mul_f64(self.shared.pace));
        if self.random().range(0..60) == 0 {
            wait += Duration::from_millis(self.random().range(500..2_500));
        }
        self.env.clock.sleep(wait).await;
    }

    /// Sees to it that a fixed table is there; false if the run stops before.
    pub async fn needs(&self, name: &str) -> anyhow::Result<bool> {
        let (families, splits) = layout::table(name);
        while !self.stops() {
            match self.client.create_table(name, &families, &splits).await {
                Ok(_) => return Ok(true),
                Err(error) if error.code() == ErrorCode::AlreadyExists => return Ok(true),
                Err(error) => drop(ended(error)?),
            }
            self.env.clock.sleep(SETUP_PAUSE).await;
        }
        Ok(false)
    }

    fn begin(&self, op: Op) -> OpId {
        self.shared.history.begin(self.workload, self.number, op)
    }

    fn finish<T>(&self, id: OpId, result: Result<T, Error>, told: impl FnOnce(&T) -> Told) -> Brought<T> {
        match result {
            Ok(value) => {
                self.shared.history.end(id, Ended::Done(told(&value)));
                Ok(Some(value))
            }
            Err(error) => {
                self.shared.history.end(id, ended(error)?);
                Ok(None)
            }
        }
    }

    /// Writes a register.
    pub async fn write(&self, row: RowId, write: Write) -> Brought<()> {
        let mutations = layout::mutations(&write, self.random());
        let id = self.begin(Op::Write { row: row.clone(), write });
        let call = async { self.client.table(row.table).await?.mutate_row(&row.key, mutations).await };
        self.finish(id, call.await, |()| Told::Done)
    }

    /// Writes registers of one table in one call; how many are done.
    pub async fn write_all(&self, table: &str, writes: Vec<(RowId, Write)>) -> anyhow::Result<usize> {
        let rows = writes
            .iter()
            .map(|(row, write)| RowMutation::new(row.key.clone(), layout::mutations(write, self.random())));
        let rows: Vec<RowMutation> = rows.collect();
        let ids: Vec<OpId> = writes.into_iter().map(|(row, write)| self.begin(Op::Write { row, write })).collect();
        let results = match self.client.table(table).await {
            Ok(table) => table.mutate_rows(rows).await,
            Err(error) => vec![Err(error); ids.len()],
        };
        let mut done = 0;
        for (id, result) in ids.into_iter().zip(results) {
            done += usize::from(self.finish(id, result, |()| Told::Done)?.is_some());
        }
        Ok(done)
    }

    /// Writes a register one way or the other.
    pub async fn check(
        &self,
        row: RowId,
        expect: Expect,
        then: Option<Write>,
        otherwise: Option<Write>,
    ) -> Brought<bool> {
        let branch = |write: &Option<Write>| match write {
            Some(write) => layout::mutations(write, self.random()),
            None => Vec::new(),
        };
        let (if_matched, if_not) = (branch(&then), branch(&otherwise));
        let id = self.begin(Op::Check { row: row.clone(), expect, then, otherwise });
        let call = async {
            let table = self.client.table(row.table).await?;
            table.check_and_mutate(&row.key, &layout::predicate(expect), if_matched, if_not).await
        };
        self.finish(id, call.await, |matched| Told::Matched(*matched))
    }

    /// Reads a register.
    pub async fn read(&self, row: RowId) -> Brought<Cells> {
        let id = self.begin(Op::Read { row: row.clone() });
        let call = async {
            let row = self.client.table(row.table).await?.read_row(&row.key, &ReadOptions::default()).await?;
            Ok(row.as_ref().map(layout::cells).unwrap_or_default())
        };
        self.finish(id, call.await, |cells| Told::Cells(*cells))
    }

    /// Appends to a log and counts.
    pub async fn append(&self, row: RowId) -> Brought<()> {
        let token = self.shared.token();
        let id = self.begin(Op::Append { row: row.clone(), token });
        let rules = vec![
            ReadModifyWriteRule::append("a", "log", token_text(token)),
            ReadModifyWriteRule::increment("a", "count", 1),
        ];
        let call = async {
            let row = self.client.table(row.table).await?.read_modify_write(&row.key, rules).await?;
            Ok(layout::log(Some(&row)))
        };
        let told = |(tokens, count): &(Vec<Token>, i64)| Told::Log { tokens: tokens.clone(), count: *count };
        Ok(self.finish(id, call.await, told)?.map(|_| ()))
    }

    /// Reads a log.
    pub async fn read_log(&self, row: RowId) -> Brought<()> {
        let id = self.begin(Op::ReadLog { row: row.clone() });
        let newest = ReadOptions::filter(Filter::all().cells_per_column(1));
        let call = async {
            let row = self.client.table(row.table).await?.read_row(&row.key, &newest).await?;
            Ok(layout::log(row.as_ref()))
        };
        let told = |(tokens, count): &(Vec<Token>, i64)| Told::Log { tokens: tokens.clone(), count: *count };
        Ok(self.finish(id, call.await, told)?.map(|_| ()))
    }

    /// Reads registers; whether to the end.
    pub async fn scan(&self, shape: ScanShape, parallel: usize, prefetch: usize) -> anyhow::Result<bool> {
        let range = RowRange::new(shape.start.clone(), shape.end.clone());
        let order = match shape.order {
            ScanOrder::Ascending => Order::Ascending,
            ScanOrder::Descending => Order::Descending,
            ScanOrder::Any => Order::Any,
        };
        let filter = layout::filter(shape.shown);
        let fill_cache = self.random().range(0..2) == 0;
        let options = ScanOptions { filter, limit: shape.limit, order, parallel, prefetch, fill_cache };
        let name = shape.table;
        let id = self.begin(Op::Scan { shape });
        let mut rows = Vec::new();
        let mut failed = None;
        match self.client.table(name).await {
            Ok(table) => {
                let mut stream = table.scan(range, options);
                while let Some(row) = stream.next().await {
                    match row {
                        Ok(row) => {
                            rows.push(SeenRow { key: copied(row.key()), cells: layout::cells(&row), at: now() });
                        }
                        Err(error) => failed = Some(error),
                    }
                }
            }
            Err(error) => failed = Some(error),
        }
        if let Some(error) = failed {
            // What came before the error holds all the same.
            let why = ended(error)?;
            tracing::debug!(?why, rows = rows.len(), "scan failed");
            self.shared.history.end(id, Ended::Done(Told::Rows { rows, whole: false }));
            return Ok(false);
        }
        self.shared.history.end(id, Ended::Done(Told::Rows { rows, whole: true }));
        Ok(true)
    }

    /// Writes nodes; whether all of them are flushed.
    pub async fn write_nodes(&self, nodes: &Arc<Vec<Node>>) -> anyhow::Result<bool> {
        let id = self.begin(Op::Nodes { nodes: nodes.clone() });
        let rows =
            nodes.iter().map(|node| RowMutation::new(layout::node_key(node.id), vec![layout::node_mutation(node)]));
        let results = match self.client.table(layout::LIST).await {
            Ok(table) => table.mutate_rows(rows.collect()).await,
            Err(error) => vec![Err(error)],
        };
        let all_failed = results.iter().all(Result::is_err);
        let mut worst = Ended::Done(Told::Done);
        for error in results.into_iter().filter_map(Result::err) {
            match (ended(error)?, &worst) {
                (_, Ended::Unknown(_)) => {}
                (Ended::NotDone(why), _) if all_failed => worst = Ended::NotDone(why),
                // Others of the batch are done.
                (Ended::NotDone(why), _) => worst = Ended::Unknown(why),
                (other, _) => worst = other,
            }
        }
        let flushed = worst == Ended::Done(Told::Done);
        self.shared.history.end(id, worst);
        Ok(flushed)
    }

    /// Reads all nodes.
    pub async fn read_nodes(&self) -> Brought<()> {
        let id = self.begin(Op::ReadNodes);
        let call = async {
            let mut nodes = Vec::new();
            let mut rows = self.client.table(layout::LIST).await?.scan(RowRange::ALL, ScanOptions::default());
            while let Some(row) = rows.next().await {
                nodes.push(layout::node(&row?));
            }
            Ok(nodes)
        };
        Ok(self.finish(id, call.await, |nodes: &Vec<Node>| Told::Nodes(nodes.clone()))?.map(|_| ()))
    }

    /// Makes a table; whether one of this name is there for certain.
    pub async fn create_table(&self, name: &Arc<str>, splits: &[Bytes]) -> anyhow::Result<bool> {
        let id = self.begin(Op::CreateTable { name: name.clone() });
        let result = self.client.create_table(name, &[FamilySpec::new("f")], splits).await.map(|_| ());
        let exists = matches!(&result, Err(error) if error.code() == ErrorCode::AlreadyExists);
        Ok(self.finish(id, result, |()| Told::Done)?.is_some() || exists)
    }

    /// Deletes a table; whether there is none of this name for certain.
    pub async fn delete_table(&self, name: &Arc<str>) -> anyhow::Result<bool> {
        let id = self.begin(Op::DeleteTable { name: name.clone() });
        let result = self.client.delete_table(name).await;
        let gone = matches!(&result, Err(Error::UnknownTable { .. }));
        Ok(self.finish(id, result, |()| Told::Done)?.is_some() || gone)
    }

    /// Asks which tables there are.
    pub async fn list_tables(&self) -> Brought<()> {
        let id = self.begin(Op::ListTables);
        let names = self
            .client
            .list_tables()
            .await
            .map(|tables| tables.into_iter().map(|table| Arc::from(table.schema.name)).collect::<Vec<Arc<str>>>());
        Ok(self.finish(id, names, |names| Told::Tables(names.clone()))?.map(|_| ()))
    }

    /// Splits, merges, moves or drains; None if it failed as faults, and others at work, make it fail. What became
    /// of it is nobody's promise, so it is not in the history.
    pub async fn reshape<T>(&self, what: &str, call: impl Future<Output = Result<T, Error>>) -> Brought<T> {
        tracing::info!(client = self.number, what, "changes a shape");
        match call.await {
            Ok(value) => Ok(Some(value)),
            // A row that others have made the first one of its tablet, a table that is gone.
            Err(Error::InvalidArgument { .. }) => Ok(None),
            Err(error) => {
                let why = ended(error)?;
                tracing::info!(client = self.number, what, ?why, "does not change it");
                Ok(None)
            }
        }
    }

    /// Its connection to the cluster.
    pub fn cluster(&self) -> &Client {
        &self.client
    }

    /// Writes a row of a table that comes and goes.
    pub async fn write_table(&self, name: &Arc<str>) -> Brought<()> {
        let token = self.shared.token();
        let key = format!("k{}-{token}", token % 10);
        let id = self.begin(Op::TableWrite { name: name.clone(), token });
        let mutations = vec![Mutation::set("f", "v", token_value(token))];
        let call = async { self.client.table(name).await?.mutate_row(key, mutations).await };
        self.finish(id, call.await, |()| Told::Done)
    }

    /// Reads such a table; done also if it is not there.
    pub async fn scan_table(&self, name: &Arc<str>) -> Brought<()> {
        let id = self.begin(Op::TableScan { name: name.clone() });
        let call = async {
            let mut tokens = Vec::new();
            let mut rows = self.client.table(name).await?.scan(RowRange::ALL, ScanOptions::default());
            while let Some(row) = rows.next().await {
                let row = row?;
                tokens.push(
                    row.value("f", "v").map_or(crate::history::GARBAGE, |value| crate::history::parse_value(value)),
                );
            }
            Ok(Some(tokens))
        };
        let result = match call.await {
            Err(Error::UnknownTable { .. }) => Ok(None),
            other => other,
        };
        let told = |tokens: &Option<Vec<Token>>| match tokens {
            Some(tokens) => Told::Tokens(tokens.clone()),
            None => Told::Done,
        };
        Ok(self.finish(id, result, told)?.map(|_| ()))
    }
}

/// A key that does not hold on to the response it came in.
fn copied(key: &Bytes) -> Bytes {
    Bytes::copy_from_slice(key)
}

/// How a call that failed ended.
///
/// # Errors
/// No fault explains the failure.
fn ended(error: Error) -> anyhow::Result<Ended> {
    match &error {
        Error::InvalidArgument { .. } | Error::UnknownFamily { .. } | Error::BadResponse { .. } => {
            bail!("no fault explains this error: {error}")
        }
        Error::UnknownTable { .. }
        | Error::Refused { .. }
        | Error::DeadlineExceeded { .. }
        | Error::ShutDown { .. } => {}
    }
    Ok(match error.outcome() {
        Outcome::NotDone => Ended::NotDone(error.to_string()),
        Outcome::Unknown => Ended::Unknown(error.to_string()),
    })
}
