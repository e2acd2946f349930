//! Synthetic tablet servers: each has an address and a connection of its own, all share one listener.
//!
//! What they hold is what they were told; they open and give up at once, find nothing in the logs that they sort,
//! and decline what they cannot do.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use uruk_base::rpc::{self, Channels, MESSAGE_BYTES_MAX};
use uruk_base::transport::Listener;
use uruk_base::{Env, Moment};
use uruk_proto::master::master_control_client::MasterControlClient;
use uruk_proto::master::{
    RegisterRequest, RenewLeaseRequest, ReportDeathRequest, ServerLoad, TabletKey, TabletLoad, TabletReleasedRequest,
    TabletsOpenedRequest,
};
use uruk_proto::tablet::tablet_server_control_server::{TabletServerControl, TabletServerControlServer};
use uruk_proto::tablet::{
    CloseTabletsRequest, CloseTabletsResponse, MergeTabletsOrder, OpenTabletsRequest, OpenTabletsResponse, OrderTaken,
    SetSchemaRequest, SetSchemaResponse, SortSegmentRequest, SortSegmentResponse, SplitTabletOrder,
};
use uruk_proto::{ErrorCode, RpcError};

use super::BenchError;

/// Connections to the master that the servers share.
const CONNECTIONS: usize = 8;
/// A call to the master takes at most this long, and is tried again.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
const CALL_REST: Duration = Duration::from_millis(10);
/// One tablet in so many has traffic.
const BUSY_EVERY: u64 = 10;

/// All servers.
pub struct Fleet {
    pub members: Arc<Members>,
    port: u16,
}

/// What the servers share.
pub struct Members {
    env: Env,
    by_id: Mutex<BTreeMap<u64, Arc<Member>>>,
    /// When an order to open came first since this was taken.
    pub first_order: Mutex<Option<Moment>>,
    /// How long renewals took, in microseconds.
    pub renewals: Mutex<Vec<u64>>,
    /// Set when a renewal was refused, or a server does not get through.
    pub is_broken: AtomicBool,
}

/// One server.
pub struct Member {
    pub id: u64,
    nonce: u64,
    master: MasterControlClient<Channel>,
    /// Epochs of the tablets that it serves.
    tablets: Mutex<BTreeMap<u64, u64>>,
    /// How busy its tablets are, times.
    pub heat: AtomicU64,
    end: watch::Sender<bool>,
}

impl Fleet {
    /// Listens on every loopback address, at one port.
    pub async fn listen(env: &Env) -> Result<Fleet, BenchError> {
        let listener = env.transport.listen("0.0.0.0:0").await.map_err(BenchError::Listen)?;
        let port = listener.local_address().rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or(0);
        let members = Arc::new(Members {
            env: env.clone(),
            by_id: Mutex::default(),
            first_order: Mutex::default(),
            renewals: Mutex::default(),
            is_broken: AtomicBool::new(false),
        });
        serve(env, listener, members.clone());
        Ok(Fleet { members, port })
    }

    /// Registers so many servers; they renew from now on.
    pub async fn register(&self, servers: u32, master: &str, renewal_ms: u32) -> Result<(), BenchError> {
        let (env, every) = (&self.members.env, Duration::from_millis(renewal_ms.into()));
        let channels = Channels::new(env.transport.clone());
        for number in 0..servers {
            let channel = channels.get_nth(master, number as usize % CONNECTIONS);
            let mut client = MasterControlClient::new(channel).max_encoding_message_size(MESSAGE_BYTES_MAX);
            let address = format!("{}:{}", Ipv4Addr::from(0x7f01_0000 + number), self.port);
            let nonce = u64::from(number) + 1;
            let zone = format!("zone-{}", number % 3);
            let request = RegisterRequest { nonce, address, zone, version: "bench".into(), pid: number, parent_pid: 1 };
            let id = client.register(request).await.map_err(RpcError::from)?.into_inner().server_id;
            let (end, ended) = watch::channel(false);
            let member = Member { id, nonce, master: client, tablets: Mutex::default(), heat: AtomicU64::new(1), end };
            let member = Arc::new(member);
            self.members.by_id.lock().insert(id, member.clone());
            let members = self.members.clone();
            // So that they do not all renew at once.
            let first = every * number / servers;
            env.tasks.spawn("synthetic renewals", renew(members, member, first, every, ended));
        }
        Ok(())
    }

    /// Those that live, by id.
    pub fn all(&self) -> Vec<Arc<Member>> {
        self.members.by_id.lock().values().cloned().collect()
    }

    /// The server with this id ends, and its watching parent reports it.
    pub async fn kill(&self, member: &Member) -> Result<(), BenchError> {
        self.members.by_id.lock().remove(&member.id);
        // Its task may have ended with the fleet.
        let _ = member.end.send(true);
        let request = ReportDeathRequest { nonce: member.nonce, how: "killed by the bench".to_owned() };
        member.master.clone().report_death(request).await.map_err(RpcError::from)?;
        Ok(())
    }
}

impl Member {
    pub fn tablets(&self) -> usize {
        self.tablets.lock().len()
    }

    /// Tablets and their epochs.
    pub fn keys(&self) -> Vec<TabletKey> {
        self.tablets
            .lock()
            .iter()
            .map(|(tablet_id, epoch)| TabletKey { tablet_id: *tablet_id, epoch: *epoch })
            .collect()
    }

    fn load(&self, report: u64) -> ServerLoad {
        let heat = self.heat.load(Ordering::Relaxed);
        let of_tablet = |(tablet_id, epoch): (&u64, &u64)| {
            let mut load = TabletLoad {
                tablet_id: *tablet_id,
                epoch: *epoch,
                file_bytes: 16 << 20,
                files: 2,
                ..TabletLoad::default()
            };
            if tablet_id.is_multiple_of(BUSY_EVERY) {
                let key = Bytes::from(format!("user{tablet_id:010}"));
                (load.memtable_bytes, load.reads, load.writes) = (1 << 20, 40 * heat, 10 * heat);
                (load.bytes_read, load.bytes_written, load.cpu_micros) = (40_000 * heat, 10_000 * heat, 1_000 * heat);
                (load.load_median, load.hottest_row, load.hottest_row_permille) = (key.clone(), key, 20);
            }
            load
        };
        let tablets: Vec<TabletLoad> = self.tablets.lock().iter().map(of_tablet).collect();
        let cpu_micros = report * tablets.len() as u64 * 100 * heat;
        ServerLoad { tablets, memory_bytes: 4 << 30, cpu_micros, cpus_milli: 4_000, ..ServerLoad::default() }
    }
}

async fn renew(
    members: Arc<Members>,
    member: Arc<Member>,
    first: Duration,
    every: Duration,
    mut ended: watch::Receiver<bool>,
) {
    let clock = members.env.clock.clone();
    let start = clock.now() + first;
    let mut number = 0;
    loop {
        // At a fixed beat: else a moment's delay would bring all servers into step for good.
        let next = start + every * u32::try_from(number).unwrap_or(u32::MAX);
        tokio::select! {
            biased;
            _ = ended.changed() => return,
            () = clock.sleep(next.saturating_since(clock.now())) => {}
        }
        number += 1;
        let load = Some(member.load(number));
        let request = RenewLeaseRequest { server_id: member.id, load, report_number: number, draining: false };
        let began = clock.now();
        let mut master = member.master.clone();
        let renewed = tokio::select! {
            biased;
            _ = ended.changed() => return,
            renewed = clock.timeout(CALL_DEADLINE, master.renew_lease(request)) => renewed,
        };
        if let Ok(Ok(response)) = renewed {
            members.renewals.lock().push(clock.since(began).as_micros() as u64);
            if !response.into_inner().granted && !*ended.borrow() {
                members.is_broken.store(true, Ordering::Relaxed);
                return;
            }
        }
    }
}

fn serve(env: &Env, listener: Arc<dyn Listener>, members: Arc<Members>) {
    let control = TabletServerControlServer::new(Orders(members))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let env = env.clone();
    env.tasks.clone().spawn("synthetic servers", async move {
        if let Err(error) = rpc::serve(&env, listener, Routes::new(control), &env.tasks).await {
            tracing::error!(%error, "the synthetic servers do not serve");
        }
    });
}

/// Takes orders for all servers.
struct Orders(Arc<Members>);

impl Orders {
    fn member(&self, id: u64) -> Result<Arc<Member>, Status> {
        let member = self.0.by_id.lock().get(&id).cloned();
        member.ok_or_else(|| RpcError::new(ErrorCode::Unavailable, "it is dead").into())
    }

    /// Reports beside the order's answer, until the master takes it.
    fn report<F, R>(&self, call: F)
    where
        F: Fn() -> R + Send + 'static,
        R: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let members = self.0.clone();
        self.0.env.tasks.spawn("synthetic report", async move {
            loop {
                match members
                    .env
                    .clock
                    .timeout(CALL_DEADLINE, call())
                    .await
                    .map(|answer| answer.map_err(RpcError::from))
                {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) if !error.code.is_retriable() => return,
                    Ok(Err(_)) | Err(_) => members.env.clock.sleep(CALL_REST).await,
                }
            }
        });
    }
}

#[tonic::async_trait]
impl TabletServerControl for Orders {
    async fn open_tablets(
        &self,
        request: Request<OpenTabletsRequest>,
    ) -> Result<Response<OpenTabletsResponse>, Status> {
        let request = request.into_inner();
        self.0.first_order.lock().get_or_insert_with(|| self.0.env.clock.now());
        let member = self.member(request.server_id)?;
        let rows = request.tablets.into_iter().filter_map(|order| order.row);
        let tablets: Vec<TabletKey> =
            rows.map(|row| TabletKey { tablet_id: row.tablet_id, epoch: row.epoch }).collect();
        self.report(move || {
            let (member, tablets) = (member.clone(), tablets.clone());
            async move {
                let request = TabletsOpenedRequest { server_id: member.id, tablets };
                let opened = member.master.clone().tablets_opened(request).await?.into_inner();
                member.tablets.lock().extend(opened.owned.iter().map(|key| (key.tablet_id, key.epoch)));
                Ok(())
            }
        });
        Ok(Response::new(OpenTabletsResponse {}))
    }

    async fn close_tablets(
        &self,
        request: Request<CloseTabletsRequest>,
    ) -> Result<Response<CloseTabletsResponse>, Status> {
        let request = request.into_inner();
        let member = self.member(request.server_id)?;
        for key in request.tablets {
            member.tablets.lock().remove(&key.tablet_id);
            let member = member.clone();
            self.report(move || {
                let member = member.clone();
                async move {
                    let request =
                        TabletReleasedRequest { server_id: member.id, tablet: Some(key), ..Default::default() };
                    member.master.clone().tablet_released(request).await.map(|_| ())
                }
            });
        }
        Ok(Response::new(CloseTabletsResponse {}))
    }

    async fn sort_segment(
        &self,
        request: Request<SortSegmentRequest>,
    ) -> Result<Response<SortSegmentResponse>, Status> {
        self.member(request.into_inner().server_id)?;
        Ok(Response::new(SortSegmentResponse::default()))
    }

    async fn split_tablet(&self, _: Request<SplitTabletOrder>) -> Result<Response<OrderTaken>, Status> {
        Err(RpcError::new(ErrorCode::FailedPrecondition, "it is synthetic").into())
    }

    async fn merge_tablets(&self, _: Request<MergeTabletsOrder>) -> Result<Response<OrderTaken>, Status> {
        Err(RpcError::new(ErrorCode::FailedPrecondition, "it is synthetic").into())
    }

    async fn set_schema(&self, _: Request<SetSchemaRequest>) -> Result<Response<SetSchemaResponse>, Status> {
        Ok(Response::new(SetSchemaResponse {}))
    }
}
