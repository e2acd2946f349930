//! A cluster in memory: one master and some tablet servers that speak the real protocol over
//! connections in memory, hold their rows in a map, and make mistakes to order.

#![allow(dead_code)] // each test uses a part of it

mod master;
mod net;
mod tablet;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tonic::service::Routes;
use uruk_base::clock::{Clock, SimulatedClock};
use uruk_base::disk::RealDisk;
use uruk_base::rpc::{self, MESSAGE_BYTES_MAX};
use uruk_base::{Env, Metrics, Random, Tasks};
use uruk_client::{Client, ClientConfig};
use uruk_proto::calls::{SharedCalls, Spawn};
use uruk_proto::cell_batch::Cell;
use uruk_proto::master::ProcedureInfo;
use uruk_proto::master::master_server::MasterServer;
use uruk_proto::schema::{Family, GcRule, TableSchema};
use uruk_proto::tablet::IdempotencyKey;
use uruk_proto::tablet::tablet_server_calls_server::TabletServerCallsServer;
use uruk_proto::tablet::tablet_server_server::TabletServerServer;
use uruk_proto::{ErrorCode, FamilyId, RowRange, RpcError, TableId};

pub use net::Net;

/// What goes wrong with one request to a tablet server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing.
    None,
    /// The server says that it does not own the tablet.
    Stale,
    Unavailable,
    Overloaded {
        retry_after_ms: u64,
    },
    /// The connection breaks before the request is performed (a scan: before its first batch).
    BreakBefore,
    /// The connection breaks after the request was performed (a scan: after `batches` batches).
    BreakAfter {
        batches: usize,
    },
    /// Performed, but the answer is a status without explanation.
    Unexplained {
        batches: usize,
    },
    /// The answer takes this long.
    Slow {
        ms: u64,
    },
    /// The tablet moves to another server first.
    Move,
    /// The tablet splits in two first, if it can.
    Split,
    /// The tablet is merged with its right neighbour first, if it has one.
    Merge,
    /// The tablet takes no writes for some time; then it has split, if it can.
    FreezeAndSplit {
        ms: u64,
    },
    /// The server dies; its tablets are nobody's for some time, then the others'.
    Die {
        unserved_ms: u64,
    },
    /// The server falls silent; after some time others have its tablets.
    Freeze {
        unserved_ms: u64,
    },
    /// The first row of the request fails with this code, the others go on.
    RowFails(ErrorCode),
    /// The request ends with this code.
    Code(ErrorCode),
}

#[derive(Clone, Debug)]
pub struct Tablet {
    pub table: u64,
    pub range: RowRange,
    pub epoch: u64,
    /// Which server has it.
    pub server: usize,
    /// Nobody serves it before this time.
    pub unserved_until: Duration,
    /// It takes no writes, and once this time has come it splits.
    pub frozen_until: Option<Duration>,
}

/// What a tablet remembers of a write.
#[derive(Clone, Debug)]
pub enum Answer {
    Done,
    Matched(bool),
    Cells(Bytes),
}

#[derive(Default)]
pub struct State {
    pub tables: BTreeMap<u64, TableSchema>,
    pub tablets: BTreeMap<u64, Tablet>,
    /// By table and row.
    pub rows: BTreeMap<(u64, Bytes), Vec<Cell>>,
    /// Requests to come meet these, one each.
    pub faults: VecDeque<Fault>,
    /// As many locate answers to come are those of before the last change, unless of the leader.
    pub old_news: usize,
    /// Tablets as they were before the last change.
    pub before: BTreeMap<u64, Tablet>,
    pub remembered: BTreeMap<(u64, u64), Answer>,
    /// Every key of every write request that arrived.
    pub keys: Vec<IdempotencyKey>,
    /// Every row write that was performed, in order.
    pub performed: Vec<(u64, u64, Bytes)>,
    /// Broken rules of the protocol.
    pub violations: Vec<String>,
    pub reads: usize,
    pub writes: usize,
    pub locates: usize,
    pub bytes_in_flight: usize,
    pub bytes_in_flight_max: usize,
    pub batch_rows: Vec<usize>,
    pub cells_per_batch: usize,
    pub next_id: u64,
    pub alive: Vec<bool>,
    pub table_requests: BTreeMap<u64, u64>,
    /// Procedures by the request that started them.
    pub procedures: BTreeMap<u64, ProcedureInfo>,
    /// Requests that altered a table.
    pub alters: BTreeSet<u64>,
    /// Why procedures to come are given up.
    pub decline: Option<String>,
    /// Servers that are draining.
    pub draining: BTreeSet<u64>,
    /// The last one that a server gave.
    pub timestamp: i64,
}

/// The cluster.
#[derive(Clone)]
pub struct Cluster {
    pub env: Env,
    pub net: Net,
    pub state: Arc<Mutex<State>>,
}

impl Cluster {
    /// A cluster of `servers` tablet servers, with a clock of its own.
    pub async fn start(servers: usize) -> Cluster {
        Cluster::start_with(servers, true).await
    }

    /// One whose servers take calls on streams, or do not.
    pub async fn start_with(servers: usize, has_streams: bool) -> Cluster {
        let tasks = Tasks::simulated();
        let net = Net::new(tasks.clone());
        let env = Env {
            clock: Clock::from_source(Arc::new(SimulatedClock::new(1.0, 1_000_000_000))),
            random: Random::from_seed(1),
            transport: Arc::new(net.clone()),
            disk: Arc::new(RealDisk),
            tasks,
            metrics: Metrics::new(),
        };
        let state = State { next_id: 1, cells_per_batch: 3, alive: vec![true; servers], ..State::default() };
        let cluster = Cluster { env, net, state: Arc::new(Mutex::new(state)) };
        let master = MasterServer::new(cluster.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        cluster.serve("master:1", Routes::new(master)).await;
        for number in 0..servers {
            let server = tablet::Server { cluster: cluster.clone(), number };
            let tasks = cluster.env.tasks.clone();
            let spawn: Spawn = Arc::new(move |work| tasks.spawn("calls", work));
            let calls = has_streams.then(|| TabletServerCallsServer::new(SharedCalls::new(server.clone(), spawn)));
            let server = TabletServerServer::new(server)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX);
            let mut routes = Routes::new(server);
            if let Some(calls) = calls {
                routes = routes.add_service(calls);
            }
            cluster.serve(&Cluster::address(number), routes).await;
        }
        cluster
    }

    async fn serve(&self, address: &str, routes: Routes) {
        let listener = self.env.transport.listen(address).await.expect("the address is free");
        let (env, tasks) = (self.env.clone(), self.env.tasks.clone());
        self.env.tasks.spawn("fake server", async move {
            rpc::serve(&env, listener, routes, &tasks).await.expect("serves");
        });
    }

    pub fn address(server: usize) -> String {
        format!("server:{}", server + 1)
    }

    pub fn client(&self) -> Client {
        self.client_with(ClientConfig::default())
    }

    pub fn client_with(&self, config: ClientConfig) -> Client {
        Client::builder().masters(&["master:1".to_owned()]).config(config).connect(&self.env).expect("valid")
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub fn now(&self) -> Duration {
        self.env.clock.now().since_start()
    }

    pub fn faults(&self, faults: impl IntoIterator<Item = Fault>) {
        self.lock().faults = faults.into_iter().collect();
    }

    /// A table with family `f`, split at `splits`, its tablets spread over all servers.
    pub fn table(&self, name: &str, splits: &[&str]) -> u64 {
        let splits: Vec<Bytes> = splits.iter().map(|split| Bytes::copy_from_slice(split.as_bytes())).collect();
        self.lock().add_table(name, &["f".to_owned()], &splits)
    }

    /// Puts `count` rows with two cells each (family `f`): `row-000`, `row-001`, …
    pub fn fill(&self, table: u64, count: usize) -> Vec<String> {
        let mut state = self.lock();
        let family = state.tables[&table].families[0].id;
        let keys: Vec<String> = (0..count).map(|n| format!("row-{n:03}")).collect();
        for key in &keys {
            let cell = |qualifier: &'static str| Cell {
                family,
                qualifier: Bytes::from_static(qualifier.as_bytes()),
                timestamp: 7,
                value: Bytes::from(format!("{qualifier} of {key}")),
            };
            state.rows.insert((table, Bytes::from(key.clone())), vec![cell("a"), cell("b")]);
        }
        keys
    }

    /// What a value of the cell `f:q` is, as the servers have it.
    pub fn value(&self, table: u64, row: &str) -> Option<Bytes> {
        let state = self.lock();
        state.rows.get(&(table, Bytes::copy_from_slice(row.as_bytes())))?.first().map(|cell| cell.value.clone())
    }

    pub fn check(&self) {
        let state = self.lock();
        assert!(state.violations.is_empty(), "{:#?}", state.violations);
        let mut once: Vec<_> = state.performed.iter().map(|(client, sequence, _)| (*client, *sequence)).collect();
        once.sort_unstable();
        assert!(once.windows(2).all(|pair| pair[0] != pair[1]), "a write was performed twice");
    }
}

impl State {
    pub fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub fn add_table(&mut self, name: &str, families: &[String], splits: &[Bytes]) -> u64 {
        let table = self.id();
        let families = families
            .iter()
            .map(|name| Family { name: name.clone(), id: FamilyId(self.id()), gc: GcRule::KeepAll, locality_group: 0 })
            .collect();
        let (id, name) = (TableId(table), name.to_owned());
        let schema = TableSchema { id, name, version: 1, families, ..TableSchema::default() };
        self.tables.insert(table, schema);
        let mut bounds = vec![Bytes::new()];
        bounds.extend(splits.iter().cloned());
        bounds.push(Bytes::new());
        for (number, pair) in bounds.windows(2).enumerate() {
            let id = self.id();
            let range = RowRange::new(pair[0].clone(), pair[1].clone());
            let server = number % self.alive.len();
            let tablet = Tablet { table, range, epoch: 1, server, unserved_until: Duration::ZERO, frozen_until: None };
            self.tablets.insert(id, tablet);
        }
        table
    }

    pub fn drop_table(&mut self, table: u64) {
        self.tables.remove(&table);
        self.tablets.retain(|_, tablet| tablet.table != table);
        self.rows.retain(|(of, _), _| *of != table);
    }

    pub fn remember_before(&mut self) {
        self.before = self.tablets.clone();
    }

    /// Moves the tablet to the next live server.
    pub fn move_tablet(&mut self, tablet: u64, unserved_until: Duration) {
        self.remember_before();
        let servers = self.alive.len();
        let here = self.tablets[&tablet].server;
        let next = (1..=servers).map(|by| (here + by) % servers).find(|server| self.alive[*server]);
        let moved = self.tablets.get_mut(&tablet).expect("it exists");
        moved.server = next.expect("one server lives");
        moved.epoch += 1;
        moved.unserved_until = unserved_until;
    }

    /// Splits the tablet at the middle of its rows, if it has any.
    pub fn split(&mut self, tablet: u64) -> bool {
        let parent = self.tablets[&tablet].clone();
        let rows: Vec<Bytes> = self
            .rows
            .keys()
            .filter(|(table, row)| *table == parent.table && parent.range.contains(row))
            .map(|(_, row)| row.clone())
            .collect();
        match rows.get(rows.len() / 2).cloned() {
            Some(middle) => self.split_at(tablet, middle),
            None => false,
        }
    }

    /// Splits the tablet at this row, if it lies strictly inside.
    pub fn split_at(&mut self, tablet: u64, at: Bytes) -> bool {
        let parent = self.tablets[&tablet].clone();
        if at == parent.range.start || !parent.range.contains(&at) {
            return false;
        }
        self.remember_before();
        self.tablets.remove(&tablet);
        let RowRange { start, end } = parent.range.clone();
        for range in [RowRange::new(start, at.clone()), RowRange::new(at, end)] {
            let id = self.id();
            let epoch = parent.epoch + 1;
            self.tablets.insert(id, Tablet { range, epoch, frozen_until: None, ..parent.clone() });
        }
        true
    }

    /// Merges the tablet with its right neighbour, if it has one, at its own server.
    pub fn merge(&mut self, tablet: u64) -> Option<u64> {
        let left = self.tablets[&tablet].clone();
        let is_next = |other: &Tablet| {
            other.table == left.table && !other.range.start.is_empty() && other.range.start == left.range.end
        };
        let (right_id, right) = self.tablets.iter().find(|(_, other)| is_next(other))?;
        let (right_id, right) = (*right_id, right.clone());
        self.remember_before();
        self.tablets.remove(&tablet);
        self.tablets.remove(&right_id);
        let range = RowRange::new(left.range.start.clone(), right.range.end);
        let epoch = left.epoch.max(right.epoch) + 1;
        let id = self.id();
        self.tablets.insert(id, Tablet { range, epoch, frozen_until: None, ..left });
        Some(id)
    }

    /// Splits what was frozen until now.
    pub fn thaw(&mut self, now: Duration) {
        let due = |tablet: &Tablet| tablet.frozen_until.is_some_and(|until| until <= now);
        let frozen: Vec<u64> = self.tablets.iter().filter(|(_, tablet)| due(tablet)).map(|(id, _)| *id).collect();
        for tablet in frozen {
            if !self.split(tablet) {
                self.tablets.get_mut(&tablet).expect("it exists").frozen_until = None;
            }
        }
    }

    /// Checks that the server owns the tablet and that it takes writes.
    pub fn writable(&mut self, server: usize, tablet: u64, now: Duration) -> Result<Tablet, RpcError> {
        self.thaw(now);
        let tablet = self.owned(server, tablet, now)?.clone();
        match tablet.frozen_until {
            None => Ok(tablet),
            Some(_) => Err(RpcError::new(ErrorCode::Unavailable, "the tablet is frozen")),
        }
    }

    /// All tablets of `server` become the others', after some time.
    pub fn fail_over(&mut self, server: usize, unserved_until: Duration) {
        if self.alive.iter().filter(|alive| **alive).count() < 2 {
            return;
        }
        self.alive[server] = false;
        let lost: Vec<u64> =
            self.tablets.iter().filter(|(_, tablet)| tablet.server == server).map(|(id, _)| *id).collect();
        for tablet in lost {
            self.move_tablet(tablet, unserved_until);
        }
    }

    /// Checks that the server owns the tablet.
    pub fn owned(&self, server: usize, tablet: u64, now: Duration) -> Result<&Tablet, RpcError> {
        match self.tablets.get(&tablet) {
            Some(found) if found.server == server && found.unserved_until <= now => Ok(found),
            _ => Err(RpcError::new(ErrorCode::StaleLocation, format!("tablet-{tablet} is not here"))),
        }
    }
}
