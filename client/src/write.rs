//! Writes: one row, many rows, and the conditional ones.
//!
//! Invariants: (1) every attempt of a row's write carries the same sequence number; (2) a batch's
//! rows are numbered in the order in which they are stored, so that the rows of any tablet are numbered without gaps, and stay
//! so when a tablet splits; (3) a row counts as done only if a server said so.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, FuturesUnordered};
use tonic::Status;
use uruk_proto::schema::TableSchema;
use uruk_proto::tablet::{
    CheckAndMutateRequest, MutateRowsRequest, ReadModifyWriteRequest, ReadModifyWriteRule as RuleMessage, RowError,
    RowMutations, read_modify_write_rule,
};
use uruk_proto::{ErrorCode, RpcError, limits};

use crate::error::{Error, Outcome, Result};
use crate::filter::Filter;
use crate::idempotency::{Ticket, runs};
use crate::locate::Wanted;
use crate::location::Location;
use crate::mutation::{
    Mutation, ReadModifyWriteRule, RowMutation, RuleKind, check_qualifier, check_row_key, check_row_write, family_id,
    pack, repack,
};
use crate::read::join;
use crate::retry::{Attempts, Effect, Failure};
use crate::row::Row;
use crate::salt::Salt;
use crate::table::{Resolved, Table, Target};

/// A row write, checked and packed.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The row's own key.
    pub key: Bytes,
    /// The key under which it is stored: another one in a salted table.
    pub row: Bytes,
    pub packed: Bytes,
}

impl Entry {
    pub fn bytes(&self) -> usize {
        self.row.len() + self.packed.len()
    }
}

impl Table {
    /// Changes one row: all of the mutations, at one moment, or none.
    ///
    /// # Errors
    /// [`Error::outcome`] says whether the row is certainly unchanged.
    pub async fn mutate_row(&self, key: impl AsRef<[u8]>, mutations: Vec<Mutation>) -> Result<()> {
        let key = key.as_ref();
        check_row_key(key)?;
        let (packed, packed_for) = self.with_schema(|schema| pack(schema, &mutations)).await?;
        let key = Bytes::copy_from_slice(key);
        let ticket = self.ticket(1);
        let request = |Target { mut client, tablet, schema, row }: Target| {
            let entry = RowMutations { row, mutations: repack(&packed, &packed_for, &schema)? };
            let request = MutateRowsRequest { tablet: Some(tablet), key: Some(ticket.key(0)), entries: vec![entry] };
            Ok(async move {
                match client.mutate_rows(request).await?.errors.into_iter().next() {
                    None => Ok(()),
                    Some(error) => Err(Status::from(row_error(error))),
                }
            })
        };
        self.call(&key, Effect::Write, packed.len(), request).await
    }

    /// Changes many rows, each atomically and on its own, in no particular order; the results stand
    /// in the order of `rows`.
    pub async fn mutate_rows(&self, rows: Vec<RowMutation>) -> Vec<Result<()>> {
        let mut results: Vec<Result<()>> = Vec::with_capacity(rows.len());
        let mut entries: Vec<(usize, Entry)> = Vec::with_capacity(rows.len());
        let mut packed_for = self.schema();
        for (place, row) in rows.into_iter().enumerate() {
            match self.pack_row(&packed_for, row).await {
                Ok((entry, schema)) => {
                    packed_for = schema;
                    entries.push((place, entry));
                    results.push(Ok(()));
                }
                Err(error) => results.push(Err(error)),
            }
        }
        entries.sort_by(|(_, a), (_, b)| a.row.cmp(&b.row));
        let (places, entries): (Vec<usize>, Vec<Entry>) = entries.into_iter().unzip();
        let written = self.write_sorted(&entries, &packed_for).await;
        for (place, result) in places.into_iter().zip(written) {
            results[place] = result;
        }
        results
    }

    /// Changes a row one way if `predicate` lets any of its cells through, else the other way. Either
    /// may be no mutation at all, but not both. Returns whether it matched.
    ///
    /// # Errors
    /// [`Error::outcome`] says whether the row is certainly unchanged.
    pub async fn check_and_mutate(
        &self,
        key: impl AsRef<[u8]>,
        predicate: &Filter,
        if_matched: Vec<Mutation>,
        otherwise: Vec<Mutation>,
    ) -> Result<bool> {
        let key = key.as_ref();
        check_row_key(key)?;
        if if_matched.is_empty() && otherwise.is_empty() {
            return Err(Error::invalid("No mutations provided"));
        }
        let pack_branch = |schema: &TableSchema, mutations: &[Mutation]| match mutations {
            [] => Ok(Bytes::new()),
            some => pack(schema, some),
        };
        let build = |schema: &TableSchema| {
            predicate.to_message(schema)?;
            let branches = (pack_branch(schema, &if_matched)?, pack_branch(schema, &otherwise)?);
            check_row_write(branches.0.len() + branches.1.len())?;
            Ok(branches)
        };
        let ((if_matched, otherwise), packed_for) = self.with_schema(build).await?;
        let key = Bytes::copy_from_slice(key);
        let ticket = self.ticket(1);
        let request = |Target { mut client, tablet, schema, row }: Target| {
            let request = CheckAndMutateRequest {
                tablet: Some(tablet),
                key: Some(ticket.key(0)),
                row,
                predicate: Some(predicate.to_message(&schema)?),
                true_mutations: repack(&if_matched, &packed_for, &schema)?,
                false_mutations: repack(&otherwise, &packed_for, &schema)?,
            };
            Ok(async move { Ok(client.check_and_mutate(request).await?.matched) })
        };
        self.call(&key, Effect::Write, if_matched.len() + otherwise.len(), request).await
    }

    /// Reads a row's columns and writes new cells made of them, at one moment. Returns the new cells.
    ///
    /// # Errors
    /// [`Error::outcome`] says whether the row is certainly unchanged.
    pub async fn read_modify_write(&self, key: impl AsRef<[u8]>, rules: Vec<ReadModifyWriteRule>) -> Result<Row> {
        let key = key.as_ref();
        check_row_key(key)?;
        if rules.is_empty() || rules.len() > limits::READ_MODIFY_WRITE_RULES_MAX {
            return Err(Error::invalid(format!(
                "{} rules; there must be 1 to {}",
                rules.len(),
                limits::READ_MODIFY_WRITE_RULES_MAX
            )));
        }
        self.with_schema(|schema| rule_messages(schema, &rules)).await?;
        let key = Bytes::copy_from_slice(key);
        let ticket = self.ticket(1);
        let request = |Target { mut client, tablet, schema, row }: Target| {
            let request = ReadModifyWriteRequest {
                tablet: Some(tablet),
                key: Some(ticket.key(0)),
                row: row.clone(),
                rules: rule_messages(&schema, &rules)?,
            };
            Ok(async move { Ok((client.read_modify_write(request).await?.batch, row, schema)) })
        };
        let (batch, row, schema) = self.call(&key, Effect::Write, 0, request).await?;
        // Done, but the answer makes no sense.
        let bad = |error: Error| error.with_outcome(Outcome::Unknown);
        let row = join(&row, vec![batch]).map_err(bad)?;
        let mut row = row.ok_or_else(|| bad(Error::bad_response("no row comes back")))?;
        row.key = key;
        let schema = self.naming(schema, std::slice::from_ref(&row)).await?;
        Ok(Row::new(row, schema))
    }

    fn ticket(&self, rows: usize) -> Ticket {
        self.core.sequencer.issue(rows as u64, self.core.env.clock.wall_micros())
    }

    /// Checks and packs a row with `schema`, or with a newer one of the same table.
    pub(crate) async fn pack_row(
        &self,
        schema: &Arc<TableSchema>,
        row: RowMutation,
    ) -> Result<(Entry, Arc<TableSchema>)> {
        let stored = Salt::of(schema).row(&row.key)?;
        match pack(schema, &row.mutations) {
            Ok(packed) => Ok((Entry { key: row.key, row: stored, packed }, schema.clone())),
            Err(Error::UnknownFamily { .. }) => {
                let (packed, fresh) = self.with_schema(|schema| pack(schema, &row.mutations)).await?;
                // The rows before it were packed for another table: bring this one to theirs.
                let packed = repack(&packed, &fresh, schema)?;
                Ok((
                    Entry { key: row.key, row: stored, packed },
                    if fresh.id == schema.id { fresh } else { schema.clone() },
                ))
            }
            Err(other) => Err(other),
        }
    }

    /// Writes rows that stand in the order in which they are stored; the results stand in the same order.
    pub(crate) async fn write_sorted(&self, entries: &[Entry], packed_for: &TableSchema) -> Vec<Result<()>> {
        if entries.is_empty() {
            return Vec::new();
        }
        let ticket = self.ticket(entries.len());
        let batch = Batch { table: self, entries, packed_for, ticket: &ticket };
        // Each tablet's rows have a retry loop of their own: one that is down holds up no other.
        let groups = batch.groups().await;
        let mut written = stream::iter(groups.into_iter().map(|group| batch.write(group)))
            .buffer_unordered(self.core.config.batch_calls_max);
        let mut results: Vec<Result<()>> = Vec::new();
        results.resize_with(entries.len(), || Err(Error::ShutDown { outcome: Outcome::Unknown }));
        while let Some((group, group_results)) = written.next().await {
            for (place, result) in group.zip(group_results) {
                results[place] = result;
            }
        }
        results
    }
}

/// One call of `mutate_rows`.
struct Batch<'a> {
    table: &'a Table,
    entries: &'a [Entry],
    packed_for: &'a TableSchema,
    ticket: &'a Ticket,
}

/// How one request ended: what became of its rows.
type RunResult = (Range<usize>, Arc<Location>, Result<Vec<(usize, Failure)>, Failure>);

impl Batch<'_> {
    /// The rows by tablet, as far as that is known; a guess, that `write` does not rely on.
    async fn groups(&self) -> Vec<Range<usize>> {
        let resolved = self.table.resolved();
        let attempts = self.table.attempts(Effect::Write);
        let mut groups: Vec<Range<usize>> = Vec::new();
        let mut start = 0;
        while start < self.entries.len() {
            let row = &self.entries[start].row;
            let left = attempts.left(self.table.now());
            let Ok(tablet) = resolved.locations.find(&self.table.core, row, Wanted::default(), left).await else {
                groups.push(start..self.entries.len());
                break;
            };
            let rows = self.entries[start..].iter().take_while(|entry| tablet.range.is_before_end(&entry.row));
            let end = start + rows.count().max(1);
            groups.push(start..end);
            start = end;
        }
        groups
    }

    fn bytes(&self, rows: &Range<usize>) -> usize {
        self.entries[rows.clone()].iter().map(Entry::bytes).sum()
    }

    /// Writes the rows of `group` until each is done or has failed for good.
    async fn write(&self, group: Range<usize>) -> (Range<usize>, Vec<Result<()>>) {
        let mut results: Vec<Result<()>> = group.clone().map(|_| Ok(())).collect();
        let mut pending: Vec<usize> = group.clone().collect();
        let mut unknown: BTreeSet<usize> = BTreeSet::new();
        let mut attempts = self.table.attempts_at(Effect::Write, self.bytes(&group));
        let mut wanted = Wanted::default();
        while !pending.is_empty() {
            let resolved = self.table.resolved();
            let failed = match self.round(&resolved, &pending, wanted, &attempts).await {
                Ok(runs) => self.settle(runs, &attempts, &mut pending, &mut unknown, &mut results, group.start),
                Err(Ok(failure)) => Some((None, failure)),
                Err(Err(error)) => {
                    self.fail_all(&pending, &unknown, error, &mut results, group.start);
                    break;
                }
            };
            let Some((location, failure)) = failed else { continue };
            // Rows are judged one by one, so the call's own view must not make all of them unknown.
            match self.table.after(&resolved, location.as_deref(), failure, &mut attempts).await {
                Ok(next) => wanted = next,
                Err(error) => {
                    self.fail_all(&pending, &unknown, error, &mut results, group.start);
                    break;
                }
            }
        }
        (group, results)
    }

    /// Sends one request per tablet (or more, if they are many) for the rows in `pending`.
    async fn round(
        &self,
        resolved: &Resolved,
        pending: &[usize],
        wanted: Wanted,
        attempts: &Attempts,
    ) -> Result<Vec<RunResult>, Result<Failure>> {
        let config = &self.table.core.config;
        let mut requests = Vec::new();
        let mut rest = pending;
        while let Some(first) = rest.first() {
            let location = self.table.served(resolved, &self.entries[*first].row, wanted, attempts).await?;
            let within = rest.iter().take_while(|row| location.range.is_before_end(&self.entries[**row].row));
            let (here, beyond) = rest.split_at(within.count().max(1));
            rest = beyond;
            let mut bytes = 0;
            let fits = |start: usize, next: usize| {
                if next == start + 1 {
                    bytes = self.entries[start].bytes();
                }
                bytes += self.entries[next].bytes();
                next - start < config.batch_rows_max && bytes <= config.batch_bytes_max
            };
            requests.extend(runs(here, fits).into_iter().map(|run| (run, location.clone())));
        }
        let mut sent = FuturesUnordered::new();
        let mut results = Vec::with_capacity(requests.len());
        for (run, location) in requests {
            if sent.len() >= config.batch_calls_max
                && let Some(result) = sent.next().await
            {
                results.push(result);
            }
            sent.push(self.send(resolved, location, run, attempts));
        }
        while let Some(result) = sent.next().await {
            results.push(result);
        }
        Ok(results)
    }

    async fn send(
        &self,
        resolved: &Resolved,
        location: Arc<Location>,
        run: Range<usize>,
        attempts: &Attempts,
    ) -> RunResult {
        let deadlines = self.table.deadlines(attempts.left(self.table.now()), self.bytes(&run));
        let request = |Target { mut client, tablet, schema, .. }: Target| {
            Salt::of(self.packed_for).check(&schema)?;
            let mut entries = Vec::with_capacity(run.len());
            for entry in &self.entries[run.clone()] {
                let mutations = repack(&entry.packed, self.packed_for, &schema)?;
                entries.push(RowMutations { row: entry.row.clone(), mutations });
            }
            let key = Some(self.ticket.key(run.start));
            let request = MutateRowsRequest { tablet: Some(tablet), key, entries };
            Ok(async move { Ok(client.mutate_rows(request).await?.errors) })
        };
        let first_row = &self.entries[run.start].row;
        let result = match self.table.attempt(resolved, &location, first_row, deadlines, request).await {
            Ok(Ok(errors)) => rows_of(errors, &run),
            Ok(Err(failure)) => Err(failure),
            Err(error) => Err(Failure::answered(error.code(), error.to_string())),
        };
        (run, location, result)
    }

    /// Takes in what a round brought. Rows that are done or have failed for good leave `pending`.
    /// Returns a failure that calls for another round, if any does.
    fn settle(
        &self,
        runs: Vec<RunResult>,
        attempts: &Attempts,
        pending: &mut Vec<usize>,
        unknown: &mut BTreeSet<usize>,
        results: &mut [Result<()>],
        group_start: usize,
    ) -> Option<(Option<Arc<Location>>, Failure)> {
        let mut again: BTreeSet<usize> = BTreeSet::new();
        let mut worst: Option<(Option<Arc<Location>>, Failure)> = None;
        for (run, location, result) in runs {
            let failures = match result {
                Ok(failures) => failures,
                Err(failure) => run.map(|row| (row, failure.clone())).collect(),
            };
            for (row, failure) in failures {
                if failure.is_unknown() {
                    unknown.insert(row);
                }
                // Not found: the table's name is resolved once, then that is final.
                if failure.is_retriable() || (failure.code == ErrorCode::NotFound && !attempts.has_resolved()) {
                    again.insert(row);
                    let longer = worst.as_ref().is_none_or(|(_, known)| known.retry_after < failure.retry_after);
                    if longer {
                        worst = Some((Some(location.clone()), failure));
                    }
                } else {
                    let mut attempts = self.table.attempts(Effect::Write);
                    if unknown.contains(&row) {
                        attempts.mark_unknown();
                    }
                    results[row - group_start] = Err(attempts.error(failure));
                }
            }
        }
        *pending = again.into_iter().collect();
        worst
    }

    fn fail_all(
        &self,
        pending: &[usize],
        unknown: &BTreeSet<usize>,
        error: Error,
        results: &mut [Result<()>],
        group_start: usize,
    ) {
        for row in pending {
            let outcome = if unknown.contains(row) { Outcome::Unknown } else { Outcome::NotDone };
            results[row - group_start] = Err(error.clone().with_outcome(outcome));
        }
    }
}

/// The failures of a request's rows.
fn rows_of(errors: Vec<RowError>, run: &Range<usize>) -> Result<Vec<(usize, Failure)>, Failure> {
    let mut failures = Vec::with_capacity(errors.len());
    for error in errors {
        let row = run.start + error.index as usize;
        if !run.contains(&row) {
            let message = format!("an error for row {} of {} comes back", error.index, run.len());
            return Err(Failure::answered(ErrorCode::Internal, message));
        }
        let error = row_error(error);
        failures.push((row, Failure::answered(error.code, error.message)));
    }
    Ok(failures)
}

fn row_error(error: RowError) -> RpcError {
    // A code from a newer server: nothing is known of the row.
    let code = ErrorCode::from_u32(error.code).unwrap_or(ErrorCode::Unknown);
    RpcError::new(code, error.message)
}

fn rule_messages(schema: &TableSchema, rules: &[ReadModifyWriteRule]) -> Result<Vec<RuleMessage>> {
    let mut messages = Vec::with_capacity(rules.len());
    let mut bytes = 0;
    for rule in rules {
        check_qualifier(&rule.qualifier)?;
        if let RuleKind::Append(value) = &rule.rule {
            bytes += value.len();
            check_row_write(bytes)?;
        }
        let kind = match &rule.rule {
            RuleKind::Append(value) if value.len() > limits::VALUE_BYTES_MAX => {
                return Err(Error::invalid(format!(
                    "value of {} bytes; the limit is {}",
                    value.len(),
                    limits::VALUE_BYTES_MAX
                )));
            }
            RuleKind::Append(value) => read_modify_write_rule::Rule::Append(value.clone()),
            RuleKind::Increment(by) => read_modify_write_rule::Rule::Increment(*by),
        };
        messages.push(RuleMessage {
            family_id: family_id(schema, &rule.family)?.0,
            qualifier: rule.qualifier.clone(),
            rule: Some(kind),
        });
    }
    Ok(messages)
}
