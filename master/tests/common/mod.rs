//! A master with tablet servers and storage that a test can hold up at any step.

#![allow(dead_code)] // each test file uses a part of it

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use parking_lot::Mutex;
use std::ops::Range;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use uruk_base::commit_log::{CommitLogStore, LogError, LogId, LogRecord, LogWriter, Lsn, SealedLog};
use uruk_base::rpc::{self, Channels};
use uruk_base::{Env, Tasks};
use uruk_master::{Master, MasterConfig, NoHealth, Storage, Tuning};
use uruk_proto::master::master_client::MasterClient;
use uruk_proto::master::master_control_client::MasterControlClient;
use uruk_proto::master::*;
use uruk_proto::tablet::tablet_server_control_server::{TabletServerControl, TabletServerControlServer};
use uruk_proto::tablet::*;
use uruk_proto::{ErrorCode, RpcError};

mod reshape;

/// Whatever a test waits for must have come by then.
const PATIENCE: Duration = Duration::from_secs(40);

/// What the test holds up: `true` holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Holds {
    pub seal: bool,
    pub sort: bool,
    /// The piece is sorted and stored, but the answer is lost.
    pub sort_answer: bool,
    pub open: bool,
    pub flush: bool,
    pub delete_log: bool,
    /// Orders to split or merge are not taken.
    pub reshape: bool,
    /// They are done, but the server does not hear of it.
    pub reshape_answer: bool,
    /// They are declined.
    pub decline: bool,
    pub set_schema: bool,
}

/// Logs without content: two pieces each.
#[derive(Debug, Default)]
pub struct FakeLogs {
    pub holds: Arc<Mutex<Holds>>,
    pub sealed: Mutex<BTreeSet<u64>>,
    pub deleted: Mutex<BTreeSet<u64>>,
    pub trimmed: Mutex<BTreeMap<u64, u64>>,
}

#[async_trait]
impl CommitLogStore for FakeLogs {
    async fn create(&self, id: LogId) -> Result<Box<dyn LogWriter>, LogError> {
        Err(LogError::Fenced(id))
    }

    async fn seal(&self, id: LogId) -> Result<SealedLog, LogError> {
        if self.holds.lock().seal {
            return Err(LogError::Unavailable(id, "held up".into()));
        }
        self.sealed.lock().insert(id.0);
        Ok(SealedLog { id, segments: vec![Lsn(0)..Lsn(100), Lsn(100)..Lsn(150)], end: Lsn(150) })
    }

    fn read(&self, _: &SealedLog, _: Range<Lsn>) -> BoxStream<'static, Result<LogRecord, LogError>> {
        futures::stream::empty().boxed()
    }

    async fn trim(&self, id: LogId, upto: Lsn) -> Result<(), LogError> {
        self.trimmed.lock().insert(id.0, upto.0);
        Ok(())
    }

    async fn delete(&self, id: LogId) -> Result<(), LogError> {
        if self.holds.lock().delete_log {
            return Err(LogError::Unavailable(id, "held up".into()));
        }
        self.deleted.lock().insert(id.0);
        Ok(())
    }
}

/// What every part of a test's cluster shares.
pub struct World {
    pub env: Env,
    pub logs: Arc<FakeLogs>,
    pub objects: Arc<InMemory>,
    pub holds: Arc<Mutex<Holds>>,
    pub address: String,
    folder: tempfile::TempDir,
    channels: Channels,
    master: Option<Master>,
    pub lease_ms: u32,
    pub renewal_ms: u32,
    pub sweep_every_ms: u64,
    /// What the test wants otherwise.
    pub tune: fn(&mut Tuning),
}

impl World {
    /// A master, freshly made, with leases of `lease_ms`.
    pub async fn start(lease_ms: u32) -> World {
        // Nothing happens by itself.
        World::start_with(lease_ms, |tuning| tuning.balance_every_ms = 3_600_000).await
    }

    /// The same, with other settings.
    pub async fn start_with(lease_ms: u32, tune: fn(&mut Tuning)) -> World {
        let env = Env::real();
        let holds = Arc::<Mutex<Holds>>::default();
        let logs = Arc::new(FakeLogs { holds: holds.clone(), ..FakeLogs::default() });
        let channels = Channels::new(env.transport.clone());
        let mut world = World {
            env,
            logs,
            objects: Arc::new(InMemory::new()),
            holds,
            address: "127.0.0.1:0".into(),
            folder: tempfile::tempdir().expect("temporary folder"),
            channels,
            master: None,
            lease_ms,
            renewal_ms: 100,
            sweep_every_ms: 500,
            tune,
        };
        world.start_master().await;
        world
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn storage(&self) -> Storage {
        Storage { objects: self.objects.clone(), logs: self.logs.clone() }
    }

    pub async fn start_master(&mut self) {
        let mut config = MasterConfig::new(self.folder.path(), self.address.clone());
        config.http_listen = Some("127.0.0.1:0".into());
        config.tuning.lease_ms = self.lease_ms;
        config.tuning.renewal_ms = self.renewal_ms;
        config.tuning.meta_tablet_rows_max = 5;
        config.tuning.sweep_every_ms = self.sweep_every_ms;
        (self.tune)(&mut config.tuning);
        let master = Master::start(&self.env, config, self.storage(), Arc::new(NoHealth)).await.expect("starts");
        self.address = master.address().to_owned();
        self.master = Some(master);
    }

    pub async fn stop_master(&mut self) {
        self.master.take().expect("runs").shutdown().await.expect("no task panicked");
        self.channels.forget(&self.address);
    }

    pub fn master(&self) -> &Master {
        self.master.as_ref().expect("runs")
    }

    pub fn control(&self) -> MasterControlClient<Channel> {
        MasterControlClient::new(self.channels.get(&self.address))
    }

    pub fn client(&self) -> MasterClient<Channel> {
        MasterClient::new(self.channels.get(&self.address))
    }

    /// Polls until it holds.
    pub async fn until<F: Future<Output = bool>>(&self, what: &str, mut holds: impl FnMut() -> F) {
        let polling = async {
            while !holds().await {
                self.env.clock.sleep(Duration::from_millis(5)).await;
            }
        };
        if self.env.clock.timeout(PATIENCE, polling).await.is_err() {
            let status = match &self.master {
                Some(master) => master.status("status").await.unwrap_or_default(),
                None => vec![],
            };
            panic!("in vain: {what}; {}", String::from_utf8_lossy(&status));
        }
    }

    pub async fn status(&self, path: &str) -> serde_json::Value {
        serde_json::from_slice(&self.master().status(path).await.expect("a known path")).expect("JSON")
    }

    /// State of the recovery of a server, as the status page tells it.
    pub async fn recovery_state(&self, server: u64) -> String {
        let recoveries = self.status(&format!("recoveries/{server}")).await;
        recoveries["recoveries"][0]["state"].as_str().unwrap_or("none").to_owned()
    }

    /// Runs it beside the test, which gets the result when it is there.
    pub fn begin<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::sync::oneshot::Receiver<T> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.env.tasks.spawn("beside the test", async move {
            // A test that has ended needs no answer.
            let _ = sender.send(work.await);
        });
        receiver
    }

    pub async fn tablet_server(&self, nonce: u64) -> FakeServer {
        FakeServer::start(self, nonce).await
    }

    pub async fn leads(&self) {
        self.until("the master leads", || async { self.master().is_leader() }).await;
    }

    /// Makes a table and waits until it is open.
    pub async fn create(&self, name: &str, tablets: usize) -> TableInfo {
        let splits = (1..tablets).map(|n| format!("{n:03}").into()).collect();
        let families = vec![FamilySchema { name: "f".into(), ..Default::default() }];
        let request = CreateTableRequest { name: name.into(), families, splits, request: 77, ..Default::default() };
        self.client().create_table(request).await.expect("a table").into_inner()
    }

    pub async fn report_death(&self, nonce: u64) {
        let request = ReportDeathRequest { nonce, how: "killed by signal 9".into() };
        self.control().report_death(request).await.expect("taken");
    }
}

/// A tablet server that does what it is told, and knows what it must never be told.
pub struct FakeServer {
    pub id: u64,
    pub nonce: u64,
    pub shared: Arc<FakeShared>,
    tasks: Tasks,
}

pub struct FakeShared {
    id: u64,
    env: Env,
    holds: Arc<Mutex<Holds>>,
    logs: Arc<FakeLogs>,
    objects: Arc<InMemory>,
    master: MasterControlClient<Channel>,
    /// Rows of the tablets that it serves.
    pub rows: Mutex<BTreeMap<u64, MetaRow>>,
    counter: Mutex<u64>,
    pub opened: Mutex<Vec<(u64, u64)>>,
    pub pinned: Mutex<Vec<String>>,
    pub refused: Mutex<bool>,
    /// Newest version of each table's schema.
    pub schemas: Mutex<BTreeMap<u64, u64>>,
    /// Its flushes and compactions, its budget and how many compactions run and wait.
    pub maintenance_report: Mutex<ServerLoad>,
    /// Loads to report, by tablet.
    pub loads: Mutex<BTreeMap<u64, TabletLoad>>,
    /// Held while files come and go.
    pub maintenance: tokio::sync::Mutex<()>,
    /// Procedures that it knows.
    pub begun: Mutex<BTreeSet<u64>>,
}

struct Control(Arc<FakeShared>);

impl FakeServer {
    async fn start(world: &World, nonce: u64) -> FakeServer {
        let tasks = Tasks::new();
        let env = world.env.with_tasks(tasks.clone());
        let listener = env.transport.listen("127.0.0.1:0").await.expect("a port");
        let address = listener.local_address();
        let request = RegisterRequest { nonce, address, ..RegisterRequest::default() };
        let mut id = 0;
        world
            .until("registered", || async {
                match world.control().register(request.clone()).await {
                    Ok(response) => response.into_inner().server_id > 0,
                    Err(_) => false,
                }
            })
            .await;
        // A repeat gets the same answer.
        if let Ok(response) = world.control().register(request).await {
            id = response.into_inner().server_id;
        }
        assert!(id > 0, "the repeat is answered");
        let shared = Arc::new(FakeShared {
            id,
            env: env.clone(),
            holds: world.holds.clone(),
            logs: world.logs.clone(),
            objects: world.objects.clone(),
            // Of its own, since its tasks outlive a master's run: channels connect again by themselves.
            master: MasterControlClient::new(Channels::new(env.transport.clone()).get(&world.address)),
            rows: Mutex::default(),
            counter: Mutex::default(),
            opened: Mutex::default(),
            pinned: Mutex::default(),
            refused: Mutex::default(),
            schemas: Mutex::default(),
            maintenance_report: Mutex::default(),
            loads: Mutex::default(),
            begun: Mutex::default(),
            maintenance: tokio::sync::Mutex::default(),
        });
        let routes = Routes::new(TabletServerControlServer::new(Control(shared.clone())));
        let serving = (env.clone(), tasks.clone());
        tasks.spawn("fake rpc", async move {
            let (env, tasks) = serving;
            rpc::serve(&env, listener, routes, &tasks).await.expect("serves");
        });
        tasks.spawn("fake renewals", renew(shared.clone(), Duration::from_millis(world.renewal_ms.into())));
        FakeServer { id, nonce, shared, tasks }
    }

    /// Stops everything at once, as SIGKILL does. Nobody is told.
    pub async fn kill(&self) {
        self.tasks.shutdown().await.expect("no task panicked");
    }

    pub fn tablets(&self) -> Vec<u64> {
        self.shared.rows.lock().keys().copied().collect()
    }

    /// Flushes every tablet that it serves, and lets go of the logs that were replayed.
    pub async fn flush(&self) {
        let rows: Vec<MetaRow> = self.shared.rows.lock().values().cloned().collect();
        for row in rows {
            flush(&self.shared, row).await;
        }
    }
}

async fn renew(shared: Arc<FakeShared>, every: Duration) {
    for report_number in 1.. {
        let load = ServerLoad {
            pinned_files: shared.pinned.lock().clone(),
            tablets: shared.report(),
            ..shared.maintenance_report.lock().clone()
        };
        let (server_id, load) = (shared.id, Some(load));
        let request = RenewLeaseRequest { server_id, load, report_number, ..Default::default() };
        let answer = shared.env.clock.timeout(Duration::from_secs(1), shared.master.clone().renew_lease(request)).await;
        if let Ok(Ok(response)) = answer
            && !response.into_inner().granted
        {
            *shared.refused.lock() = true;
            return;
        }
        shared.env.clock.sleep(every).await;
    }
}

async fn flush(shared: &Arc<FakeShared>, row: MetaRow) {
    let _one_at_a_time = shared.maintenance.lock().await;
    // As it is now: another flush may have come before, or a split or merge.
    let Some(row) = shared.rows.lock().get(&row.tablet_id).cloned() else { return };
    let number = shared.next();
    let path = format!("tables/{}/{}-{number}.sst", row.table_id, shared.id);
    shared.objects.put(&path.as_str().into(), "data".into()).await.expect("stored");
    let seq = row.epoch << 40 | number;
    let file =
        FileRef { path, bytes: reshape::width(&row) / 10, cells: 1, min_seq: seq, max_seq: seq, ..FileRef::default() };
    let request = CommitFilesRequest {
        server_id: shared.id,
        tablet: Some(TabletKey { tablet_id: row.tablet_id, epoch: row.epoch }),
        schema_version: shared.schemas.lock().get(&row.table_id).copied().unwrap_or(1),
        command: number,
        flushed_seq: seq,
        memory_file: String::new(),
        remove: row.groups.iter().flat_map(|group| &group.files).map(|file| file.path.clone()).collect(),
        add: vec![LocalityGroupFiles { locality_group: 0, files: vec![file] }],
        logs_done: row.needed_logs.iter().copied().filter(|log| *log != shared.id).collect(),
        ..CommitFilesRequest::default()
    };
    let committed = shared.call(|mut master| {
        let request = request.clone();
        async move { master.commit_files(request).await }
    });
    let row = committed.await.expect("committed").row.expect("a row");
    shared.rows.lock().insert(row.tablet_id, row);
}

impl FakeShared {
    /// Whether it hears of the procedure for the first time.
    fn begin(&self, procedure: u64) -> bool {
        self.begun.lock().insert(procedure)
    }

    /// Whether it serves the tablet. The master may know that it is open before its owner has heard so.
    fn has(&self, key: &TabletKey) -> bool {
        self.rows.lock().get(&key.tablet_id).is_some_and(|row| row.epoch == key.epoch)
    }

    fn report(&self) -> Vec<TabletLoad> {
        let loads = self.loads.lock();
        let load = |row: &MetaRow| TabletLoad {
            tablet_id: row.tablet_id,
            epoch: row.epoch,
            ..loads.get(&row.tablet_id).cloned().unwrap_or_default()
        };
        self.rows.lock().values().map(load).collect()
    }

    fn next(&self) -> u64 {
        let mut counter = self.counter.lock();
        *counter += 1;
        *counter
    }

    /// Until the master answers, whichever run of it.
    async fn call<T, F>(&self, call: impl Fn(MasterControlClient<Channel>) -> F) -> Result<T, RpcError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        loop {
            let answer = self.env.clock.timeout(Duration::from_secs(2), call(self.master.clone())).await;
            match answer.map(|answer| answer.map_err(RpcError::from)) {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(error)) if !error.code.is_retriable() => return Err(error),
                Ok(Err(_)) | Err(_) => self.env.clock.sleep(Duration::from_millis(10)).await,
            }
        }
    }
}

#[tonic::async_trait]
impl TabletServerControl for Control {
    async fn open_tablets(
        &self,
        request: Request<OpenTabletsRequest>,
    ) -> Result<Response<OpenTabletsResponse>, Status> {
        let request = request.into_inner();
        assert_eq!(request.server_id, self.0.id, "orders name their incarnation");
        let holds = *self.0.holds.lock();
        if holds.open {
            return Err(RpcError::new(ErrorCode::Unavailable, "held up").into());
        }
        for tablet in request.tablets {
            let row = tablet.row.expect("a row");
            if let Some(schema) = tablet.schema {
                let mut schemas = self.0.schemas.lock();
                let known = schemas.entry(schema.table_id).or_insert(0);
                *known = schema.version.max(*known);
            }
            for log in row.needed_logs.iter().filter(|log| **log != self.0.id) {
                // Invariant: a tablet opens only after every log it needs is sealed and sorted.
                assert!(self.0.logs.sealed.lock().contains(log), "log {log} is not sealed");
                assert!(!self.0.logs.deleted.lock().contains(log), "log {log} is needed, but deleted");
                let pieces = tablet.recovered.iter().filter(|piece| piece.log_id == *log);
                for piece in pieces.clone() {
                    self.0.objects.head(&piece.path.as_str().into()).await.expect("a sorted piece exists");
                }
                assert_eq!(pieces.map(|piece| piece.segment).collect::<Vec<_>>(), [0, 1], "all pieces of {log}");
            }
            let shared = self.0.clone();
            self.0.env.tasks.spawn("fake open", async move { opened(shared, row).await });
        }
        Ok(Response::new(OpenTabletsResponse {}))
    }

    async fn close_tablets(
        &self,
        request: Request<CloseTabletsRequest>,
    ) -> Result<Response<CloseTabletsResponse>, Status> {
        for tablet in request.into_inner().tablets {
            let shared = self.0.clone();
            self.0.env.tasks.spawn("fake close", async move {
                shared.rows.lock().remove(&tablet.tablet_id);
                let request =
                    TabletReleasedRequest { server_id: shared.id, tablet: Some(tablet), ..Default::default() };
                let released = shared.call(|mut master| async move { master.tablet_released(request).await });
                released.await.expect("released");
            });
        }
        Ok(Response::new(CloseTabletsResponse {}))
    }

    async fn sort_segment(
        &self,
        request: Request<SortSegmentRequest>,
    ) -> Result<Response<SortSegmentResponse>, Status> {
        let request = request.into_inner();
        assert_eq!(request.log_segments, [0, 100, 100, 150]);
        assert_eq!(request.start_lsn, [0, 100][request.segment as usize]);
        if self.0.holds.lock().sort {
            return Err(RpcError::new(ErrorCode::Unavailable, "held up").into());
        }
        let path = format!("recovery/{}/{}", self.0.id, self.0.next());
        self.0.objects.put(&path.as_str().into(), "sorted".into()).await.expect("stored");
        if self.0.holds.lock().sort_answer {
            return Err(RpcError::new(ErrorCode::Unavailable, "lost").into());
        }
        Ok(Response::new(SortSegmentResponse { path, records: 5, bytes: 6 }))
    }

    async fn split_tablet(&self, request: Request<SplitTabletOrder>) -> Result<Response<OrderTaken>, Status> {
        let order = request.into_inner();
        assert_eq!(order.server_id, self.0.id, "orders name their incarnation");
        if self.0.holds.lock().reshape {
            return Err(RpcError::new(ErrorCode::Unavailable, "held up").into());
        }
        if !order.tablet.as_ref().is_some_and(|key| self.0.has(key)) {
            return Err(RpcError::new(ErrorCode::Unavailable, "not here yet").into());
        }
        if self.0.begin(order.procedure) {
            let shared = self.0.clone();
            self.0.env.tasks.spawn("fake split", async move { reshape::split(shared, order).await });
        }
        Ok(Response::new(OrderTaken {}))
    }

    async fn merge_tablets(&self, request: Request<MergeTabletsOrder>) -> Result<Response<OrderTaken>, Status> {
        let order = request.into_inner();
        assert_eq!(order.server_id, self.0.id, "orders name their incarnation");
        if self.0.holds.lock().reshape {
            return Err(RpcError::new(ErrorCode::Unavailable, "held up").into());
        }
        let is_here = |key: &Option<TabletKey>| key.as_ref().is_some_and(|key| self.0.has(key));
        if !is_here(&order.left) || !is_here(&order.right) {
            return Err(RpcError::new(ErrorCode::Unavailable, "not here yet").into());
        }
        if self.0.begin(order.procedure) {
            let shared = self.0.clone();
            self.0.env.tasks.spawn("fake merge", async move { reshape::merge(shared, order).await });
        }
        Ok(Response::new(OrderTaken {}))
    }

    async fn set_schema(&self, request: Request<SetSchemaRequest>) -> Result<Response<SetSchemaResponse>, Status> {
        if self.0.holds.lock().set_schema {
            return Err(RpcError::new(ErrorCode::Unavailable, "held up").into());
        }
        let schema = request.into_inner().schema.expect("a schema");
        let mut schemas = self.0.schemas.lock();
        let known = schemas.entry(schema.table_id).or_insert(0);
        *known = schema.version.max(*known);
        Ok(Response::new(SetSchemaResponse {}))
    }
}

async fn opened(shared: Arc<FakeShared>, row: MetaRow) {
    let key = TabletKey { tablet_id: row.tablet_id, epoch: row.epoch };
    let request = TabletsOpenedRequest { server_id: shared.id, tablets: vec![key] };
    let answer = shared.call(|mut master| {
        let request = request.clone();
        async move { master.tablets_opened(request).await }
    });
    if !answer.await.is_ok_and(|response| response.owned.contains(&key)) {
        return;
    }
    shared.rows.lock().insert(row.tablet_id, row.clone());
    shared.opened.lock().push((row.tablet_id, row.epoch));
    if row.epoch > 1 {
        while shared.holds.lock().flush {
            shared.env.clock.sleep(Duration::from_millis(5)).await;
        }
        flush(&shared, row).await;
    }
}
