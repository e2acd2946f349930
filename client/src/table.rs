//! A table: its name resolved to id and schema, and the retry loop that all of its calls share.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use parking_lot::RwLock;
use tonic::Status;
use uruk_base::Moment;
use uruk_proto::cell_batch::Row;
use uruk_proto::master::GetTableRequest;
use uruk_proto::schema::TableSchema;
use uruk_proto::tablet::TabletRef;
use uruk_proto::{ErrorCode, TableId};

use crate::calls::Caller;
use crate::client::Core;
use crate::error::{Error, Result};
use crate::locate::{Locations, Wanted};
use crate::location::Location;
use crate::masters::Deadlines;
use crate::retry::{Attempts, Effect, Failure, Origin, Step};
use crate::salt::Salt;
use crate::shared_work::{SharedWork, Work};

/// A family that the schema lacks is looked for at the master at most this often.
const SCHEMA_AGE_MIN: Duration = Duration::from_millis(100);

/// Handle on a table. Cheap to clone; clones share connections and caches.
#[derive(Clone)]
pub struct Table {
    pub(crate) core: Arc<Core>,
    state: Arc<TableState>,
    deadline: Duration,
}

/// A table as it was when its name was last resolved.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub schema: Arc<TableSchema>,
    pub locations: Arc<Locations>,
    asked: Moment,
}

/// A table by name, whatever it resolves to.
#[derive(Debug)]
pub(crate) struct TableState {
    name: String,
    current: RwLock<Arc<Resolved>>,
    resolve: SharedWork<Result<Arc<Resolved>>>,
}

/// What an attempt needs to make its request.
pub(crate) struct Target {
    pub client: Caller,
    pub tablet: TabletRef,
    pub schema: Arc<TableSchema>,
    /// The key under which the call's row is stored there.
    pub row: Bytes,
}

impl TableState {
    /// Asks the master for the table.
    pub async fn fetch(core: &Core, name: &str, within: Duration) -> Result<Arc<TableState>> {
        let asked = core.env.clock.now();
        let schema = fetch_schema(core, name, within).await?;
        let locations = Arc::new(Locations::new(schema.id, core.config.locations_max));
        let resolved = Resolved { schema: Arc::new(schema), locations, asked };
        let current = RwLock::new(Arc::new(resolved));
        Ok(Arc::new(TableState { name: name.to_owned(), current, resolve: SharedWork::new() }))
    }

    /// The table's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// As last resolved.
    pub fn current(&self) -> Arc<Resolved> {
        self.current.read().clone()
    }

    /// Resolves the name again, unless somebody has since `after`.
    async fn refresh(
        self: &Arc<TableState>,
        core: &Arc<Core>,
        after: Moment,
        within: Duration,
    ) -> Result<Arc<Resolved>> {
        loop {
            let known = self.current();
            // Not at the same moment: what failed then may have changed since that answer.
            if known.asked > after {
                return Ok(known);
            }
            let resolve = || {
                let (state, core) = (self.clone(), core.clone());
                async move { state.resolve_anew(&core, within).await }.boxed()
            };
            match self.resolve.join_or_start(resolve) {
                Work::Own(work) => return work.await,
                Work::Other(work) => drop(work.await),
            }
        }
    }

    async fn resolve_anew(&self, core: &Core, within: Duration) -> Result<Arc<Resolved>> {
        let asked = core.env.clock.now();
        let schema = fetch_schema(core, &self.name, within).await?;
        let known = self.current();
        let locations = match schema.id == known.schema.id {
            true => known.locations.clone(),
            false => Arc::new(Locations::new(schema.id, core.config.locations_max)),
        };
        let fresh = Arc::new(Resolved { schema: Arc::new(schema), locations, asked });
        *self.current.write() = fresh.clone();
        Ok(fresh)
    }
}

async fn fetch_schema(core: &Core, name: &str, within: Duration) -> Result<TableSchema> {
    let request = GetTableRequest { name: name.to_owned(), table_id: 0 };
    let deadlines = Deadlines { call: within, attempt: core.config.master_attempt_deadline() };
    let answer = core.masters.call(Effect::Read, deadlines, |mut master| {
        let request = request.clone();
        async move { master.get_table(request).await }
    });
    let info = answer.await.map_err(|error| match error {
        Error::Refused { code: ErrorCode::NotFound, .. } => Error::UnknownTable { table: name.to_owned() },
        other => other,
    })?;
    let schema = info.schema.ok_or_else(|| Error::bad_response(format!("table {name} comes without schema")))?;
    TableSchema::try_from(&schema).map_err(|error| Error::bad_response(format!("schema of table {name}: {error}")))
}

impl Table {
    pub(crate) fn new(core: Arc<Core>, state: Arc<TableState>) -> Table {
        let deadline = core.config.call_deadline();
        Table { core, state, deadline }
    }

    /// The table's name.
    pub fn name(&self) -> &str {
        self.state.name()
    }

    /// The schema, as last fetched.
    pub fn schema(&self) -> Arc<TableSchema> {
        self.resolved().schema.clone()
    }

    /// The table's id, as last fetched. A table that was deleted and made again has another.
    pub fn id(&self) -> TableId {
        self.resolved().schema.id
    }

    /// The same table, with this deadline for its calls instead of the configured one.
    pub fn with_deadline(&self, deadline: Duration) -> Table {
        Table { deadline, ..self.clone() }
    }

    pub(crate) fn resolved(&self) -> Arc<Resolved> {
        self.state.current()
    }

    pub(crate) fn attempts(&self, effect: Effect) -> Attempts {
        Attempts::new(effect, self.core.env.clock.now(), self.deadline)
    }

    /// Of a call with a request of so many bytes.
    pub(crate) fn attempts_at(&self, effect: Effect, bytes: usize) -> Attempts {
        let deadline = self.deadline + self.core.config.transfer_time(bytes);
        Attempts::new(effect, self.core.env.clock.now(), deadline)
    }

    /// Of an attempt with a request of so many bytes, when so much time is left to the call.
    pub(crate) fn deadlines(&self, left: Duration, bytes: usize) -> Deadlines {
        let config = &self.core.config;
        Deadlines { call: left, attempt: config.attempt_deadline() + config.transfer_time(bytes) }
    }

    /// What `build` makes of the schema: names become ids. A family that is not in it may be new, so
    /// the schema is fetched again before that is an error.
    pub(crate) async fn with_schema<T>(
        &self,
        build: impl Fn(&TableSchema) -> Result<T>,
    ) -> Result<(T, Arc<TableSchema>)> {
        let known = self.resolved();
        match build(&known.schema) {
            Err(Error::UnknownFamily { .. }) if self.core.env.clock.since(known.asked) >= SCHEMA_AGE_MIN => {
                let fresh = self.refresh_schema().await?;
                Ok((build(&fresh)?, fresh))
            }
            result => Ok((result?, known.schema.clone())),
        }
    }

    /// The schema as it is now.
    pub(crate) async fn refresh_schema(&self) -> Result<Arc<TableSchema>> {
        let now = self.core.env.clock.now();
        Ok(self.state.refresh(&self.core, now, self.deadline).await?.schema.clone())
    }

    /// A schema that names all families of `rows`: a family that `schema` lacks may be new.
    pub(crate) async fn naming(&self, schema: Arc<TableSchema>, rows: &[Row]) -> Result<Arc<TableSchema>> {
        let mut cells = rows.iter().flat_map(|row| &row.cells);
        if cells.all(|cell| schema.family_by_id(cell.family).is_some()) {
            return Ok(schema);
        }
        match self.core.env.clock.since(self.resolved().asked) >= SCHEMA_AGE_MIN {
            true => self.refresh_schema().await,
            false => Ok(self.resolved().schema.clone()),
        }
    }

    /// How the table's rows are spread, as last fetched.
    pub(crate) fn salt(&self) -> Salt {
        Salt::of(&self.resolved().schema)
    }

    /// Calls the tablet that holds the row of this key until it answers. `request`, of about so many bytes, is
    /// made anew for each attempt.
    pub(crate) async fn call<T, F>(
        &self,
        key: &Bytes,
        effect: Effect,
        bytes: usize,
        request: impl Fn(Target) -> Result<F>,
    ) -> Result<T>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut attempts = self.attempts_at(effect, bytes);
        let mut wanted = Wanted::default();
        loop {
            let resolved = self.resolved();
            // Anew for each attempt: a table that was made anew may be salted otherwise.
            let row = Salt::of(&resolved.schema).row(key).map_err(|error| attempts.ends_with(error))?;
            let (location, failure) = match self.served(&resolved, &row, wanted, &attempts).await {
                Err(failure) => (None, failure?),
                Ok(location) => {
                    let make = |target| request(target).map_err(|error| attempts.ends_with(error));
                    let deadlines = self.deadlines(attempts.left(self.now()), bytes);
                    match self.attempt(&resolved, &location, &row, deadlines, make).await? {
                        Ok(answer) => return Ok(answer),
                        Err(failure) => (Some(location), failure),
                    }
                }
            };
            wanted = self.after(&resolved, location.as_deref(), failure, &mut attempts).await?;
        }
    }

    /// One attempt at the owner that `location` names.
    pub(crate) async fn attempt<T, F>(
        &self,
        resolved: &Resolved,
        location: &Location,
        row: &Bytes,
        deadlines: Deadlines,
        request: impl FnOnce(Target) -> Result<F>,
    ) -> Result<Result<T, Failure>>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let server = location.server.as_ref().expect("attempts go to served tablets");
        let Ok(permit) = self.core.env.clock.timeout(deadlines.call, server.calls.acquire()).await else {
            let message = format!("too many calls wait for the tablet server at {}", server.address());
            return Ok(Err(Failure::answered(ErrorCode::Overloaded, message)));
        };
        let _permit = permit.expect("the semaphore is never closed");
        let (number, client) = server.caller();
        let stream = client.shared.clone();
        let tablet = TabletRef { tablet_id: location.tablet.0, schema_version: resolved.schema.version };
        let call = request(Target { client, tablet, schema: resolved.schema.clone(), row: row.clone() })?;
        let result = self.answer(resolved, location, row, deadlines, call).await;
        if let Err(failure) = &result
            && failure.origin == Origin::Silent
        {
            server.reconnect(number, &stream);
        }
        Ok(result)
    }

    /// Waits for `call`'s answer. When it is slow, looks now and then whether the tablet has moved:
    /// a server that fell silent is left as soon as its tablets have another owner.
    pub(crate) async fn answer<T>(
        &self,
        resolved: &Resolved,
        location: &Location,
        row: &[u8],
        deadlines: Deadlines,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Failure> {
        let (clock, config) = (&self.core.env.clock, &self.core.config);
        let mut call = pin!(call);
        let give_up = clock.now() + deadlines.call.min(deadlines.attempt);
        loop {
            let patience = config.slow_check().min(give_up.saturating_since(clock.now()));
            if let Ok(result) = clock.timeout(patience, call.as_mut()).await {
                return result.map_err(Failure::from);
            }
            let now = clock.now();
            let left = give_up.saturating_since(now);
            if left.is_zero() {
                return Err(Failure::silent(format!("{location:?} does not answer")));
            }
            // Calls that wait for one server share the answer.
            let wanted = Wanted { asked_after: Some(before(now, config.slow_check() / 2)), from_leader: false };
            tokio::select! {
                biased;
                result = call.as_mut() => return result.map_err(Failure::from),
                found = resolved.locations.find(&self.core, row, wanted, left) => {
                    if let Ok(found) = found && !found.is_same_assignment(location) {
                        return Err(Failure::silent(format!("{} has left a silent server", location.tablet)));
                    }
                }
            }
        }
    }

    /// The tablet that holds `row`, once somebody serves it. The inner error is what the call ends
    /// with; the outer one is a failure to be judged like that of an attempt.
    pub(crate) async fn served(
        &self,
        resolved: &Resolved,
        row: &[u8],
        mut wanted: Wanted,
        attempts: &Attempts,
    ) -> Result<Arc<Location>, Result<Failure>> {
        if wanted == Wanted::default()
            && let Some(location) = resolved.locations.served(row)
        {
            return Ok(location);
        }
        let (clock, config) = (&self.core.env.clock, &self.core.config);
        let started = clock.now();
        wanted.asked_after = wanted.asked_after.or(Some(before(started, config.location_poll())));
        loop {
            let left = attempts.left(clock.now());
            let location = match resolved.locations.find(&self.core, row, wanted, left).await {
                Ok(location) => location,
                Err(Error::Refused { code, message, .. }) => return Err(Ok(Failure::answered(code, message))),
                Err(other) => return Err(Err(attempts.ends_with(other))),
            };
            if location.server.is_some() {
                return Ok(location);
            }
            let waited = clock.since(started);
            let poll = config.location_poll().max(waited / 50).min(self.core.policy.wait_max);
            let pause = self.core.env.random.jitter(poll);
            if pause >= attempts.left(clock.now()) {
                let message = format!("nobody serves {} {:?}", location.tablet, location.range);
                return Err(Err(attempts.error(Failure::answered(ErrorCode::Unavailable, message))));
            }
            clock.sleep(pause).await;
            wanted = Wanted { asked_after: Some(before(clock.now(), poll / 2)), from_leader: false };
        }
    }

    /// Draws the conclusions from a failed attempt: forgets, waits, resolves, or ends the call. What
    /// it returns is how good the location for the next attempt must be.
    pub(crate) async fn after(
        &self,
        resolved: &Resolved,
        location: Option<&Location>,
        failure: Failure,
        attempts: &mut Attempts,
    ) -> Result<Wanted> {
        let clock = &self.core.env.clock;
        let failed = clock.now();
        tracing::debug!(table = self.name(), ?location, ?failure, "an attempt fails");
        if let Some(location) = location
            && failure.code == ErrorCode::StaleLocation
        {
            resolved.locations.forget(location);
        }
        match attempts.failed(&failure, failed, self.core.env.random.unit(), &self.core.policy) {
            Step::Fail => Err(attempts.error(failure)),
            Step::Retry { after, ask_leader } => {
                let mut asked_after = failed;
                if !after.is_zero() {
                    clock.sleep(after).await;
                    asked_after = asked_after.max(before(clock.now(), self.core.config.location_poll()));
                }
                let doubts = failure.doubts_location();
                Ok(Wanted { asked_after: doubts.then_some(asked_after), from_leader: ask_leader })
            }
            Step::Resolve => {
                let fresh = self.state.refresh(&self.core, failed, attempts.left(failed)).await;
                let fresh = fresh.map_err(|error| attempts.ends_with(error))?;
                if fresh.schema.id != resolved.schema.id {
                    return Ok(Wanted::default());
                }
                // The table is there: a replica of the master may not have heard of it yet.
                Ok(Wanted { asked_after: Some(failed), from_leader: true })
            }
        }
    }

    pub(crate) fn now(&self) -> Moment {
        self.core.env.clock.now()
    }
}

fn before(moment: Moment, by: Duration) -> Moment {
    Moment::from_start(moment.since_start().saturating_sub(by))
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Table({})", self.name())
    }
}
