//! What the RPC layer can do at all: a server that answers a tablet server's calls without doing anything.
//!
//! It is a process of its own with one thread, as a tablet server is, reached over loopback with as many
//! connections as the client library opens to three tablet servers. Single operations are unary calls, a scan is
//! one stream. Sizes are those of the real requests and answers, but a batch is one call, whatever number of
//! tablets it would go to.

use std::pin::Pin;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Args;
use futures::{Stream, StreamExt, stream};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use uruk_base::Env;
use uruk_base::rpc::{self, MESSAGE_BYTES_MAX};
use uruk_client::ClientConfig;
use uruk_proto::tablet::tablet_server_client::TabletServerClient;
use uruk_proto::tablet::tablet_server_server::{TabletServer, TabletServerServer};
use uruk_proto::tablet::{
    CheckAndMutateRequest, CheckAndMutateResponse, MutateRowsRequest, MutateRowsResponse, ReadModifyWriteRequest,
    ReadModifyWriteResponse, ReadRequest, ReadResponse, RowMutations, TabletRef,
};

use super::{Bench, Workload};
use crate::load::in_flight::{Done, Stop, in_flight};
use crate::output::{human_count, print_table};
use crate::process::{Ready, Supervision, serve_until};

/// Each echo is measured for this long.
const SECONDS: Duration = Duration::from_millis(1500);
/// Tablet servers whose connections it stands for.
const SERVERS: usize = 3;
/// The echo server must be ready within this time.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of a scan's answer, as a tablet server cuts them.
const SCAN_BATCH_BYTES: usize = 512 << 10;
/// Messages of one streaming call.
const STREAM_MESSAGES: usize = 200;
/// Bytes of a row's key in the bench.
const KEY_BYTES: usize = 24;
/// Bytes that stand around a value in a write or in an answer.
const AROUND_VALUE_BYTES: usize = 24;

/// Measure calls of the bench's sizes against a server that does nothing
#[derive(Args, Debug)]
pub struct Echo {
    /// Size of each value in bytes
    #[arg(long, default_value_t = 1000)]
    value_bytes: usize,
    /// Calls in flight
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    in_flight: u16,
    /// Rows per batch
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch_rows: u32,
    /// Connections to each of three servers' worth [default: the client library's]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: Option<u16>,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// Answer the bench's calls without doing anything.
#[derive(Args, Debug)]
pub struct Serve {
    #[command(flatten)]
    supervision: Supervision,
}

/// Which calls are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// Unary: rows of this size there, nothing back.
    Write { rows: u32, value_bytes: usize },
    /// Unary: a key there, a value back.
    Read { value_bytes: usize },
    /// Streams of large messages back.
    Scan { value_bytes: usize },
}

impl Shape {
    /// The calls of a workload.
    pub fn of(workload: Workload, options: &Bench) -> Shape {
        let value_bytes = options.value_bytes;
        match workload {
            Workload::SequentialWrite | Workload::RandomWrite => Shape::Write { rows: 1, value_bytes },
            Workload::BatchWrite => Shape::Write { rows: options.batch_rows, value_bytes },
            Workload::SequentialRead | Workload::RandomRead => Shape::Read { value_bytes },
            Workload::Scan => Shape::Scan { value_bytes },
        }
    }

    fn name(self) -> &'static str {
        match self {
            Shape::Write { rows: 1, .. } => "echo-write",
            Shape::Write { .. } => "echo-batch-write",
            Shape::Read { .. } => "echo-read",
            Shape::Scan { .. } => "echo-scan",
        }
    }
}

/// What an echo did.
#[derive(Debug)]
pub struct Echoed {
    done: Done,
    seconds: f64,
}

impl Echoed {
    /// Rows' worth of messages a second.
    pub fn rows_per_s(&self) -> f64 {
        self.done.rows as f64 / self.seconds
    }
}

#[derive(Debug, Serialize)]
struct Measurement {
    workload: &'static str,
    rows_per_s: f64,
    mb_per_s: f64,
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
    durability: &'static str,
    replicas: u32,
    value_bytes: usize,
    in_flight: u16,
}

/// Measures all shapes.
pub async fn run(env: &Env, options: Echo) -> Result<()> {
    let value_bytes = options.value_bytes;
    let shapes = [
        Shape::Write { rows: 1, value_bytes },
        Shape::Write { rows: options.batch_rows, value_bytes },
        Shape::Read { value_bytes },
        Shape::Scan { value_bytes },
    ];
    let server = EchoServer::start(env, options.connections.map(usize::from)).await?;
    let mut rows = Vec::new();
    for shape in shapes {
        let echoed = server.measure(env, shape, options.in_flight).await?;
        let latencies = &echoed.done.latencies;
        let measurement = Measurement {
            workload: shape.name(),
            rows_per_s: echoed.rows_per_s(),
            mb_per_s: echoed.done.bytes as f64 / echoed.seconds / 1e6,
            p50_us: latencies.value_at_quantile(0.5),
            p99_us: latencies.value_at_quantile(0.99),
            p999_us: latencies.value_at_quantile(0.999),
            durability: "none",
            replicas: 0,
            value_bytes,
            in_flight: options.in_flight,
        };
        if options.json {
            println!("{}", serde_json::to_string(&measurement).expect("plain data becomes JSON"));
        }
        let rates = [human_count(measurement.rows_per_s as u64), format!("{:.1}", measurement.mb_per_s)];
        let times = [measurement.p50_us, measurement.p99_us, measurement.p999_us];
        let times = times.map(|us| format!("{:.2}", us as f64 / 1000.0));
        rows.push([shape.name().to_owned()].into_iter().chain(rates).chain(times).collect::<Vec<_>>());
    }
    server.stop(env).await;
    if !options.json {
        print_table(&["CALLS", "ROWS/S", "MB/S", "P50 MS", "P99 MS", "P99.9 MS"], rows);
    }
    Ok(())
}

/// A running echo server and the connections to it.
pub struct EchoServer {
    child: Child,
    /// The process ends when this is dropped.
    stdin: ChildStdin,
    clients: Arc<Vec<TabletServerClient<Channel>>>,
}

impl EchoServer {
    /// Starts one and waits until it serves.
    pub async fn start(env: &Env, connections: Option<usize>) -> Result<EchoServer> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut child = Command::new(program)
            .args(["bench", "echo-server", "--end-with-stdin"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the echo server")?;
        let stdin = child.stdin.take().expect("standard input is piped");
        let mut lines = BufReader::new(child.stdout.take().expect("standard output is piped")).lines();
        let line = env.clock.timeout(READY_TIMEOUT, lines.next_line()).await;
        let line = line.context("the echo server does not start")?.context("cannot hear the echo server")?;
        let ready = line.as_deref().and_then(Ready::parse).context("the echo server is not ready")?;
        let channels = SERVERS * connections.unwrap_or(ClientConfig::default().channels_per_server);
        let connect = |_| {
            TabletServerClient::new(rpc::channel(&env.transport, &ready.address))
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX)
        };
        Ok(EchoServer { child, stdin, clients: Arc::new((0..channels).map(connect).collect()) })
    }

    /// Makes calls for a while; a scan is one call at a time.
    pub async fn measure(&self, env: &Env, shape: Shape, callers: u16) -> Result<Echoed> {
        let callers = if matches!(shape, Shape::Scan { .. }) { 1 } else { callers };
        let clients = self.clients.clone();
        let started = env.clock.now();
        let done = in_flight(env, callers, Stop::At(started + SECONDS), move |_, n| {
            call(clients[n as usize % clients.len()].clone(), shape)
        });
        let done = done.await.context("the echo server")?;
        Ok(Echoed { done, seconds: env.clock.since(started).as_secs_f64() })
    }

    /// Ends it.
    pub async fn stop(self, env: &Env) {
        let EchoServer { mut child, stdin, clients } = self;
        drop((stdin, clients));
        if env.clock.timeout(READY_TIMEOUT, child.wait()).await.is_err() {
            let _ = child.start_kill();
        }
    }
}

/// One call; returns rows and bytes of values.
async fn call(mut client: TabletServerClient<Channel>, shape: Shape) -> Result<(u64, u64)> {
    let key = Bytes::from_static(&[b'k'; KEY_BYTES]);
    match shape {
        Shape::Write { rows, value_bytes } => {
            let mutations = Bytes::from(vec![b'v'; value_bytes + AROUND_VALUE_BYTES]);
            let entries = (0..rows).map(|_| RowMutations { row: key.clone(), mutations: mutations.clone() }).collect();
            let tablet = Some(TabletRef { tablet_id: 1, schema_version: 1 });
            client.mutate_rows(MutateRowsRequest { tablet, key: None, entries }).await?;
            Ok((u64::from(rows), u64::from(rows) * value_bytes as u64))
        }
        Shape::Read { value_bytes } => {
            let wanted = Some(TabletRef { tablet_id: (value_bytes + AROUND_VALUE_BYTES) as u64, schema_version: 1 });
            let request = ReadModifyWriteRequest { tablet: wanted, key: None, row: key, rules: Vec::new() };
            client.read_modify_write(request).await?;
            Ok((1, value_bytes as u64))
        }
        Shape::Scan { value_bytes } => {
            let tablet = Some(TabletRef { tablet_id: SCAN_BATCH_BYTES as u64, schema_version: 1 });
            let rows_limit = STREAM_MESSAGES as u64;
            let request = ReadRequest { tablet, rows_limit, ..ReadRequest::default() };
            let mut stream = client.read(request).await?.into_inner();
            let mut bytes = 0;
            while let Some(message) = stream.message().await? {
                bytes += message.batch.len();
            }
            let rows = bytes / (value_bytes + KEY_BYTES + AROUND_VALUE_BYTES);
            Ok((rows as u64, (rows * value_bytes) as u64))
        }
    }
}

/// Serves until it is asked to end.
pub async fn serve(env: &Env, options: Serve) -> Result<ExitCode> {
    let listener = env.transport.listen("127.0.0.1:0").await.context("cannot listen")?;
    Ready::print("echo-server", &listener.local_address(), None);
    let service = TabletServerServer::new(Answers)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let (env_of_server, tasks) = (env.clone(), env.tasks.child());
    let server = async move { Ok(rpc::serve(&env_of_server, listener, Routes::new(service), &tasks).await?) };
    serve_until(env, &options.supervision, server).await
}

/// The service: sizes of answers come in the place of the tablet's id.
struct Answers;

fn zeros(tablet: Option<TabletRef>) -> Result<Bytes, Status> {
    let bytes = tablet.map_or(0, |tablet| tablet.tablet_id) as usize;
    match bytes <= MESSAGE_BYTES_MAX / 2 {
        true => Ok(Bytes::from(vec![0; bytes])),
        false => Err(Status::invalid_argument("too large an answer")),
    }
}

#[tonic::async_trait]
impl TabletServer for Answers {
    type ReadStream = Pin<Box<dyn Stream<Item = Result<ReadResponse, Status>> + Send>>;

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let batch = zeros(request.tablet)?;
        let answer = move |_| Ok(ReadResponse { batch: batch.clone(), last_scanned: Bytes::new() });
        let messages = stream::iter(0..request.rows_limit).map(answer);
        Ok(Response::new(messages.boxed()))
    }

    async fn mutate_rows(&self, _: Request<MutateRowsRequest>) -> Result<Response<MutateRowsResponse>, Status> {
        Ok(Response::new(MutateRowsResponse::default()))
    }

    async fn check_and_mutate(
        &self,
        _: Request<CheckAndMutateRequest>,
    ) -> Result<Response<CheckAndMutateResponse>, Status> {
        Err(Status::unimplemented("an echo"))
    }

    async fn read_modify_write(
        &self,
        request: Request<ReadModifyWriteRequest>,
    ) -> Result<Response<ReadModifyWriteResponse>, Status> {
        Ok(Response::new(ReadModifyWriteResponse { batch: zeros(request.into_inner().tablet)? }))
    }
}
