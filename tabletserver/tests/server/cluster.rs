//! A master, storage, and tablet servers over loopback.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use parking_lot::Mutex;
use uruk_base::clock::ClockSource;
use uruk_base::commit_log::{CommitLogStore, LogId};
use uruk_base::{Clock, Env, Moment, rpc};
use uruk_proto::cell_batch::{self, Row};
use uruk_proto::master::{FamilySchema, MetaRow, OpenTablet, RecoveredSegment, TableSchema, TabletKey, TabletState};
use uruk_proto::mutation::{self, Mutation, SERVER_TIME};
use uruk_proto::tablet::tablet_server_client::TabletServerClient;
use uruk_proto::tablet::tablet_server_control_client::TabletServerControlClient;
use uruk_proto::tablet::*;
use uruk_proto::{ErrorCode, FamilyId, RpcError};
use uruk_tabletserver::server::{Storage, TabletServer, TabletServerConfig};

use crate::logs::MemoryLogs;
use crate::master::FakeMaster;
use crate::objects::FaultyObjects;

pub const FAMILY: FamilyId = FamilyId(7);
pub const TABLET: u64 = 100;
type Channel = tonic::transport::Channel;

/// The machine's clock, which tests may put forward: as if the process had been stopped meanwhile.
#[derive(Debug, Default)]
pub struct JumpingClock {
    ahead_ms: AtomicU64,
    wall_ahead_ms: AtomicU64,
}

impl JumpingClock {
    pub fn jump(&self, by: Duration) {
        self.ahead_ms.fetch_add(by.as_millis() as u64, Ordering::SeqCst);
    }

    /// Puts only the wall clock forward.
    pub fn jump_wall(&self, by: Duration) {
        self.wall_ahead_ms.fetch_add(by.as_millis() as u64, Ordering::SeqCst);
    }
}

impl ClockSource for JumpingClock {
    fn now(&self) -> Moment {
        Clock::real().now() + Duration::from_millis(self.ahead_ms.load(Ordering::SeqCst))
    }

    fn wall_micros(&self) -> i64 {
        Clock::real().wall_micros() + self.wall_ahead_ms.load(Ordering::SeqCst) as i64 * 1000
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move { Clock::real().sleep(duration).await })
    }
}

pub struct Cluster {
    pub env: Env,
    /// The tablet servers' clock.
    pub clock: Arc<JumpingClock>,
    pub master: FakeMaster,
    pub master_address: String,
    pub objects: Arc<InMemory>,
    /// Recovery files cannot be read while set.
    pub hides_recovery_files: Arc<AtomicBool>,
    /// Nor can all others.
    pub hides_files: Arc<AtomicBool>,
    /// What was read of those, by path.
    pub reads: Arc<Mutex<Vec<String>>>,
    /// Bytes of it.
    pub bytes_read: Arc<AtomicU64>,
    pub logs: MemoryLogs,
}

impl Cluster {
    pub async fn new() -> Cluster {
        Cluster::with_segments(1 << 20).await
    }

    pub async fn with_segments(segment_bytes: u64) -> Cluster {
        let env = Env::real();
        let master = FakeMaster::new();
        let listener = env.transport.listen("127.0.0.1:0").await.expect("listens");
        let master_address = listener.local_address();
        let (serve_env, routes) = (env.clone(), master.routes());
        env.tasks.spawn("master", async move {
            rpc::serve(&serve_env, listener, routes, &serve_env.tasks).await.expect("serves");
        });
        let clock = Arc::default();
        let logs = MemoryLogs::new(segment_bytes);
        let (objects, reads, bytes_read) = (Arc::default(), Arc::default(), Arc::default());
        let (hides_recovery_files, hides_files) = (Arc::default(), Arc::default());
        Cluster {
            env,
            clock,
            master,
            master_address,
            objects,
            hides_recovery_files,
            hides_files,
            reads,
            bytes_read,
            logs,
        }
    }

    pub fn config(&self) -> TabletServerConfig {
        TabletServerConfig { masters: vec![self.master_address.clone()], master_call_ms: 500, ..Default::default() }
    }

    pub async fn start(&self) -> Host {
        self.start_with(self.config()).await
    }

    pub async fn start_with(&self, config: TabletServerConfig) -> Host {
        let (inner, is_unreadable, reads) = (self.objects.clone(), self.hides_files.clone(), self.reads.clone());
        let objects = FaultyObjects { inner, is_unreadable, reads, bytes_read: self.bytes_read.clone() };
        let objects: Arc<dyn ObjectStore> = Arc::new(objects);
        let (inner, is_unreadable) = (self.objects.clone(), self.hides_recovery_files.clone());
        let recovery_objects =
            Arc::new(FaultyObjects { inner, is_unreadable, reads: Arc::default(), bytes_read: Arc::default() });
        let storage = Storage { objects, recovery_objects, logs: Arc::new(self.logs.clone()) };
        // As in a process of its own: nothing is shared, not even metrics.
        let clock = Clock::from_source(self.clock.clone());
        let env = Env { metrics: Default::default(), clock, ..self.env.with_tasks(self.env.tasks.child()) };
        let server = TabletServer::start(&env, config, storage).await.expect("starts");
        let channel = rpc::channel(&env.transport, server.address());
        Host { server: Arc::new(server), channel, env }
    }

    /// Assigns the tablet to `host` under the next epoch; the order for it.
    pub fn assign(&self, host: &Host, tablet: u64, recovered: Vec<RecoveredSegment>) -> OpenTablet {
        let server_id = host.server.server_id().0;
        let row = self.master.with(|state| {
            let row = state.rows.entry(tablet).or_insert_with(|| MetaRow {
                tablet_id: tablet,
                table_id: 1,
                ..MetaRow::default()
            });
            row.epoch += 1;
            row.server_id = server_id;
            row.state = TabletState::Opening as i32;
            if !row.needed_logs.contains(&server_id) {
                row.needed_logs.push(server_id);
            }
            row.clone()
        });
        OpenTablet { row: Some(row), recovered, schema: Some(schema()) }
    }

    pub async fn open(&self, host: &Host, tablet: u64) {
        let order = self.assign(host, tablet, vec![]);
        host.order_open(vec![order]).await;
        host.until_serving(tablet).await;
    }

    /// Seals a dead server's log and has `host` sort it.
    pub async fn sort_log(&self, host: &Host, log: u64) -> Vec<RecoveredSegment> {
        let sealed = self.logs.seal(LogId(log)).await.expect("seals");
        host.until_leased().await;
        let log_segments: Vec<u64> = sealed.segments.iter().flat_map(|s| [s.start.0, s.end.0]).collect();
        let mut recovered = Vec::new();
        for (segment, piece) in sealed.segments.iter().enumerate() {
            let request = SortSegmentRequest {
                server_id: host.server.server_id().0,
                log_id: log,
                segment: segment as u32,
                start_lsn: piece.start.0,
                end_lsn: piece.end.0,
                log_segments: log_segments.clone(),
            };
            let path = host.control().sort_segment(request).await.expect("sorts").into_inner().path;
            recovered.push(RecoveredSegment { log_id: log, segment: segment as u32, path });
        }
        recovered
    }

    /// All needed logs but `host`'s own, sorted.
    pub async fn recover(&self, host: &Host, tablet: u64) -> OpenTablet {
        let needed = self.master.row(tablet).needed_logs;
        let mut recovered = Vec::new();
        for log in needed.into_iter().filter(|log| *log != host.server.server_id().0) {
            recovered.extend(self.sort_log(host, log).await);
        }
        self.assign(host, tablet, recovered)
    }

    /// Waits for two more load reports: whatever was about to happen had the time for it.
    pub async fn let_time_pass(&self) {
        for _ in 0..2 {
            self.master.with(|state| state.loads.clear());
            self.until("a load report", || !self.master.with(|state| state.loads.is_empty())).await;
        }
    }

    /// From now on the log keeps frames and does not acknowledge them; how many it has.
    pub fn held(&self, host: &Host) -> usize {
        self.logs.hold(host.log());
        self.logs.frames(host.log())
    }

    /// Waits until the log has more frames than these.
    pub async fn appended(&self, host: &Host, frames: usize) {
        self.until("a frame is appended", || self.logs.frames(host.log()) > frames).await;
    }

    /// Until the master knows that what was made is open, and takes part in the next split or merge.
    pub async fn until_reported(&self, tablets: &[u64]) {
        let is_open = |tablet: &u64| self.master.row(*tablet).state == TabletState::Open as i32;
        self.until("it is reported as opened", || tablets.iter().all(is_open)).await;
    }

    /// Polls until `holds`, for at most ten seconds.
    pub async fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = self.env.clock.now() + Duration::from_secs(10);
        while !holds() {
            assert!(self.env.clock.now() < deadline, "waited in vain: {what}");
            self.env.clock.sleep(Duration::from_millis(2)).await;
        }
    }
}

pub struct Host {
    pub server: Arc<TabletServer>,
    pub channel: Channel,
    pub env: Env,
}

impl Host {
    pub fn log(&self) -> LogId {
        LogId(self.server.server_id().0)
    }

    pub fn client(&self) -> TabletServerClient<Channel> {
        TabletServerClient::new(self.channel.clone())
            .max_decoding_message_size(rpc::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(rpc::MESSAGE_BYTES_MAX)
    }

    pub fn control(&self) -> TabletServerControlClient<Channel> {
        TabletServerControlClient::new(self.channel.clone())
    }

    pub async fn order_open(&self, tablets: Vec<OpenTablet>) {
        let request = OpenTabletsRequest { server_id: self.server.server_id().0, tablets };
        self.until_leased().await;
        self.control().open_tablets(request).await.expect("takes the order");
    }

    /// Orders are taken only under a lease.
    async fn until_leased(&self) {
        let deadline = self.env.clock.now() + Duration::from_secs(10);
        let empty = || CloseTabletsRequest { server_id: self.server.server_id().0, ..Default::default() };
        while let Err(status) = self.control().close_tablets(empty()).await {
            assert!(self.env.clock.now() < deadline, "no lease: {status}");
            self.env.clock.sleep(Duration::from_millis(2)).await;
        }
    }

    pub async fn order_close(&self, key: TabletKey, discard: bool) {
        let request = CloseTabletsRequest { server_id: self.server.server_id().0, tablets: vec![key], discard };
        self.control().close_tablets(request).await.expect("takes the order");
    }

    /// Orders a split that the master has started, as often as the master would.
    pub async fn order_split(&self, cluster: &Cluster, tablet: u64, procedure: u64, at: &str) {
        let epoch = cluster.master.with(|state| state.rows.get(&tablet).map_or(0, |row| row.epoch));
        let order = SplitTabletOrder {
            server_id: self.server.server_id().0,
            tablet: Some(TabletKey { tablet_id: tablet, epoch }),
            procedure,
            at: at.to_string().into(),
            by_load: false,
        };
        self.control().split_tablet(order).await.expect("takes the order");
    }

    /// Splits a tablet; the ids of the halves, which are served and reported.
    pub async fn split(&self, cluster: &Cluster, tablet: u64, at: &str) -> [u64; 2] {
        let procedure = cluster.master.start(&[tablet]);
        self.order_split(cluster, tablet, procedure, at).await;
        let halves = self.until_split(cluster, procedure).await;
        cluster.until_reported(&halves).await;
        halves
    }

    /// Merges two neighbours; the id of what they have become, which is served and reported.
    pub async fn merge(&self, cluster: &Cluster, tablets: [u64; 2]) -> u64 {
        let procedure = cluster.master.start(&tablets);
        self.order_merge(cluster, tablets, procedure).await;
        let merged = self.until_merged(cluster, procedure).await;
        cluster.until_reported(&[merged]).await;
        merged
    }

    pub async fn order_merge(&self, cluster: &Cluster, tablets: [u64; 2], procedure: u64) {
        let key = |tablet: u64| {
            let epoch = cluster.master.with(|state| state.rows.get(&tablet).map_or(0, |row| row.epoch));
            Some(TabletKey { tablet_id: tablet, epoch })
        };
        let [left, right] = tablets.map(key);
        let server_id = self.server.server_id().0;
        let order = MergeTabletsOrder { server_id, left, right, procedure };
        self.control().merge_tablets(order).await.expect("takes the order");
    }

    pub async fn until_merged(&self, cluster: &Cluster, procedure: u64) -> u64 {
        cluster.until("the merge is done", || cluster.master.results(procedure).is_some()).await;
        let merged = cluster.master.results(procedure).expect("just looked at")[0].tablet_id;
        self.until_serving(merged).await;
        merged
    }

    pub async fn set_schema(&self, schema: TableSchema) {
        let request = SetSchemaRequest { server_id: self.server.server_id().0, schema: Some(schema) };
        self.control().set_schema(request).await.expect("is set");
    }

    pub async fn until_split(&self, cluster: &Cluster, procedure: u64) -> [u64; 2] {
        cluster.until("the split is done", || cluster.master.results(procedure).is_some()).await;
        let halves = cluster.master.results(procedure).expect("just looked at");
        for half in &halves {
            self.until_serving(half.tablet_id).await;
        }
        [halves[0].tablet_id, halves[1].tablet_id]
    }

    pub async fn until_serving(&self, tablet: u64) {
        let deadline = self.env.clock.now() + Duration::from_secs(10);
        while let Err(error) = self.try_scan(tablet).await {
            assert!(self.env.clock.now() < deadline, "tablet {tablet} is not served: {error}");
            self.env.clock.sleep(Duration::from_millis(2)).await;
        }
    }

    pub async fn try_scan(&self, tablet: u64) -> Result<Vec<Row>, RpcError> {
        self.try_read(ReadRequest { tablet: tablet_ref(tablet), ..ReadRequest::default() }).await
    }

    /// The row with this key, if there is one.
    pub async fn try_row(&self, tablet: u64, row: &str) -> Result<Vec<Row>, RpcError> {
        let rows = vec![Bytes::copy_from_slice(row.as_bytes())];
        self.try_read(ReadRequest { tablet: tablet_ref(tablet), rows, ..ReadRequest::default() }).await
    }

    async fn try_read(&self, request: ReadRequest) -> Result<Vec<Row>, RpcError> {
        let mut stream = self.client().read(request).await?.into_inner();
        let mut rows: Vec<Row> = Vec::new();
        while let Some(response) = stream.message().await? {
            for piece in cell_batch::unpack(response.batch).expect("well formed") {
                match rows.last_mut().filter(|_| piece.goes_on_from_before) {
                    Some(row) => row.cells.extend(piece.row.cells),
                    None => rows.push(piece.row),
                }
            }
        }
        Ok(rows)
    }

    pub async fn scan(&self, tablet: u64) -> Vec<Row> {
        self.try_scan(tablet).await.expect("reads")
    }

    /// Newest value of each row's column "q".
    pub async fn values(&self, tablet: u64) -> Vec<(String, String)> {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let newest = |row: Row| {
            let cell = row.cells.into_iter().find(|cell| cell.qualifier[..] == *b"q").expect("has column q");
            (text(&row.key), text(&cell.value))
        };
        self.scan(tablet).await.into_iter().map(newest).collect()
    }

    pub async fn mutate(&self, request: MutateRowsRequest) -> Result<Vec<RowError>, RpcError> {
        Ok(self.client().mutate_rows(request).await?.into_inner().errors)
    }

    pub async fn try_put(&self, tablet: u64, row: &str, value: &str) -> Result<(), RpcError> {
        let errors = self.mutate(puts(tablet, &[(row, value)], None)).await?;
        assert_eq!(errors, []);
        Ok(())
    }

    /// Whether neither reads nor writes of the tablet are answered.
    pub async fn is_closed_to_all(&self, tablet: u64) -> bool {
        let (read, write) = tokio::join!(self.try_scan(tablet), self.try_put(tablet, "probe", "x"));
        let is_refused = |error: RpcError| matches!(error.code, ErrorCode::Unavailable | ErrorCode::StaleLocation);
        read.is_err_and(is_refused) && write.is_err_and(is_refused)
    }

    pub async fn put(&self, tablet: u64, row: &str, value: &str) {
        self.try_put(tablet, row, value).await.expect("writes");
    }
}

pub fn schema() -> TableSchema {
    let families = vec![FamilySchema { name: "f".into(), family_id: FAMILY.0, gc: None, locality_group: 0 }];
    TableSchema { table_id: 1, name: "t".into(), version: 1, families, ..Default::default() }
}

pub fn tablet_ref(tablet: u64) -> Option<TabletRef> {
    Some(TabletRef { tablet_id: tablet, schema_version: 1 })
}

pub fn set(value: &str) -> Bytes {
    set_in(FAMILY, value)
}

pub fn set_in(family: FamilyId, value: &str) -> Bytes {
    mutation::pack([&Mutation::SetCell {
        family,
        qualifier: "q".into(),
        timestamp: SERVER_TIME,
        value: Bytes::copy_from_slice(value.as_bytes()),
    }])
}

pub fn puts(tablet: u64, rows: &[(&str, &str)], key: Option<IdempotencyKey>) -> MutateRowsRequest {
    let entry = |(row, value): &(&str, &str)| RowMutations { row: row.to_string().into(), mutations: set(value) };
    MutateRowsRequest { tablet: tablet_ref(tablet), key, entries: rows.iter().map(entry).collect() }
}

/// Call number `sequence` of client 1, issued now.
pub fn call(cluster: &Cluster, sequence: u64) -> Option<IdempotencyKey> {
    let issued_micros = cluster.env.clock.wall_micros();
    Some(IdempotencyKey { client_id: 1, sequence, first_incomplete: 0, issued_micros })
}

pub fn pairs(rows: &[(&str, &str)]) -> Vec<(String, String)> {
    rows.iter().map(|(row, value)| (row.to_string(), value.to_string())).collect()
}

pub fn increment(tablet: u64, row: &str, by: i64, key: Option<IdempotencyKey>) -> ReadModifyWriteRequest {
    let rule = ReadModifyWriteRule {
        family_id: FAMILY.0,
        qualifier: "n".into(),
        rule: Some(read_modify_write_rule::Rule::Increment(by)),
    };
    ReadModifyWriteRequest { tablet: tablet_ref(tablet), key, row: row.to_string().into(), rules: vec![rule] }
}

/// The number in an answer to [`increment`].
pub fn number(batch: Bytes) -> i64 {
    let row = cell_batch::unpack(batch).expect("well formed").remove(0).row;
    i64::from_be_bytes(row.cells[0].value[..].try_into().expect("8 bytes"))
}

/// Sets the row's column to `value` if it has no cell yet.
pub fn put_if_absent(tablet: u64, row: &str, value: &str, key: Option<IdempotencyKey>) -> CheckAndMutateRequest {
    CheckAndMutateRequest {
        tablet: tablet_ref(tablet),
        key,
        row: row.to_string().into(),
        predicate: None,
        true_mutations: Bytes::new(),
        false_mutations: set(value),
    }
}
