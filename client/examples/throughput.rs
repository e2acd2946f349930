//! What the client library itself can do: its calls against a server that does next to nothing, each
//! on a thread of its own, over TCP on the loopback.
//!
//! `cargo run --release -p uruk-client --example throughput [channels per server]`

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use uruk_base::{Env, rpc};
use uruk_client::{Client, ClientConfig, Mutation, Order, ReadOptions, RowMutation, RowRange, ScanOptions};
use uruk_proto::FamilyId;
use uruk_proto::cell_batch::BatchBuilder;
use uruk_proto::master::master_server::{Master, MasterServer};
use uruk_proto::master::*;
use uruk_proto::tablet::tablet_server_server::{TabletServer, TabletServerServer};
use uruk_proto::tablet::{
    CheckAndMutateRequest, CheckAndMutateResponse, MutateRowsRequest, MutateRowsResponse, ReadModifyWriteRequest,
    ReadModifyWriteResponse, ReadRequest, ReadResponse,
};

const TABLETS: usize = 12;
const ROWS_PER_TABLET: usize = 20_000;
const ROWS_PER_BATCH: usize = 128;
const VALUE_BYTES: usize = 1_000;
const IN_FLIGHT: usize = 64;
const POINT_READS: usize = 200_000;
const ROWS_WRITTEN: usize = 300_000;

fn key(row: usize) -> String {
    format!("row-{row:012}")
}

fn batch(rows: std::ops::Range<usize>) -> Bytes {
    let (qualifier, value) = (Bytes::from_static(b"q"), vec![b'v'; VALUE_BYTES]);
    let mut builder = BatchBuilder::new();
    for row in rows {
        builder.start_row(key(row).as_bytes(), false);
        builder.push(FamilyId(1), &qualifier, 1, &value);
    }
    builder.finish()
}

struct Fake {
    address: String,
    one_row: Bytes,
}

#[tonic::async_trait]
impl Master for Fake {
    async fn locate(&self, _: Request<LocateRequest>) -> Result<Response<LocateResponse>, Status> {
        let bound = |n: usize| if n.is_multiple_of(TABLETS) { Bytes::new() } else { key(n * ROWS_PER_TABLET).into() };
        let tablets = (0..TABLETS)
            .map(|n| TabletLocation {
                tablet_id: n as u64 + 1,
                start: bound(n),
                end: bound(n + 1),
                epoch: 1,
                address: self.address.clone(),
                server_id: 1,
            })
            .collect();
        Ok(Response::new(LocateResponse { tablets }))
    }

    async fn get_table(&self, request: Request<GetTableRequest>) -> Result<Response<TableInfo>, Status> {
        let family = FamilySchema { name: "f".into(), family_id: 1, gc: None, locality_group: 0 };
        let name = request.into_inner().name;
        let schema = TableSchema { table_id: 1, name, version: 1, families: vec![family], ..Default::default() };
        Ok(Response::new(TableInfo { schema: Some(schema), tablets: 12, tablets_open: 12, bytes: 0 }))
    }

    async fn create_table(&self, _: Request<CreateTableRequest>) -> Result<Response<TableInfo>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn list_tables(&self, _: Request<ListTablesRequest>) -> Result<Response<ListTablesResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn delete_table(&self, _: Request<DeleteTableRequest>) -> Result<Response<DeleteTableResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn alter_table(
        &self,
        _: tonic::Request<uruk_proto::master::AlterTableRequest>,
    ) -> Result<tonic::Response<uruk_proto::master::TableInfo>, tonic::Status> {
        Err(tonic::Status::unimplemented("alter_table"))
    }

    async fn split_tablet(
        &self,
        _: tonic::Request<uruk_proto::master::SplitTabletRequest>,
    ) -> Result<tonic::Response<uruk_proto::master::ProcedureInfo>, tonic::Status> {
        Err(tonic::Status::unimplemented("split_tablet"))
    }

    async fn merge_tablets(
        &self,
        _: tonic::Request<uruk_proto::master::MergeTabletsRequest>,
    ) -> Result<tonic::Response<uruk_proto::master::ProcedureInfo>, tonic::Status> {
        Err(tonic::Status::unimplemented("merge_tablets"))
    }

    async fn move_tablet(
        &self,
        _: tonic::Request<uruk_proto::master::MoveTabletRequest>,
    ) -> Result<tonic::Response<uruk_proto::master::ProcedureInfo>, tonic::Status> {
        Err(tonic::Status::unimplemented("move_tablet"))
    }

    async fn drain_server(
        &self,
        _: tonic::Request<uruk_proto::master::DrainServerRequest>,
    ) -> Result<tonic::Response<uruk_proto::master::DrainServerResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("drain_server"))
    }

    async fn balance(
        &self,
        _: tonic::Request<uruk_proto::master::BalanceRequest>,
    ) -> Result<tonic::Response<uruk_proto::master::BalanceResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("balance"))
    }

    async fn check(
        &self,
        _: tonic::Request<uruk_proto::master::CheckRequest>,
    ) -> Result<tonic::Response<uruk_proto::master::CheckResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("check"))
    }
}

#[tonic::async_trait]
impl TabletServer for Fake {
    type ReadStream = Pin<Box<dyn Stream<Item = Result<ReadResponse, Status>> + Send>>;

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let answer = |batch| Ok(ReadResponse { batch, last_scanned: Bytes::new() });
        if !request.rows.is_empty() {
            return Ok(Response::new(futures::stream::iter([answer(self.one_row.clone())]).boxed()));
        }
        let first = (request.tablet.map_or(1, |tablet| tablet.tablet_id) as usize - 1) * ROWS_PER_TABLET;
        let starts = (first..first + ROWS_PER_TABLET).step_by(ROWS_PER_BATCH);
        let end = first + ROWS_PER_TABLET;
        let batches = starts.map(move |start| answer(batch(start..(start + ROWS_PER_BATCH).min(end))));
        Ok(Response::new(futures::stream::iter(batches).boxed()))
    }

    async fn mutate_rows(&self, _: Request<MutateRowsRequest>) -> Result<Response<MutateRowsResponse>, Status> {
        Ok(Response::new(MutateRowsResponse::default()))
    }

    async fn check_and_mutate(
        &self,
        _: Request<CheckAndMutateRequest>,
    ) -> Result<Response<CheckAndMutateResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn read_modify_write(
        &self,
        _: Request<ReadModifyWriteRequest>,
    ) -> Result<Response<ReadModifyWriteResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

#[allow(clippy::disallowed_methods)] // a thread for the server, so that the client is measured alone
fn start_server() -> String {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime().block_on(async move {
            let env = Env::real();
            let listener = env.transport.listen("127.0.0.1:0").await.expect("a free port");
            let address = listener.local_address();
            let fake = || Fake { address: address.clone(), one_row: batch(7..8) };
            let tablets = TabletServerServer::new(fake()).max_decoding_message_size(rpc::MESSAGE_BYTES_MAX);
            let routes = Routes::new(MasterServer::new(fake())).add_service(tablets);
            sender.send(address.clone()).expect("the client waits for it");
            rpc::serve(&env, listener, routes, &env.tasks).await.expect("serves");
        });
    });
    receiver.recv().expect("the server starts")
}

fn report(what: &str, count: usize, bytes: usize, took: Duration) {
    let seconds = took.as_secs_f64();
    println!("{what:32} {:>9.0}/s {:>8.1} MB/s", count as f64 / seconds, bytes as f64 / seconds / 1e6);
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = start_server();
    let env = Env::real();
    runtime().block_on(async {
        let mut config = ClientConfig::default();
        if let Some(channels) = std::env::args().nth(1) {
            config.channels_per_server = channels.parse()?;
        }
        let client = Client::builder().masters(&[address]).config(config).connect(&env)?;
        let table = client.table("t").await?;
        let options = ReadOptions::default();
        table.read_row(key(7), &options).await?;

        let started = env.clock.now();
        let mut reads = futures::stream::iter((0..POINT_READS).map(|_| table.read_row(key(7), &options)))
            .buffer_unordered(IN_FLIGHT);
        while let Some(row) = reads.next().await {
            assert!(row?.is_some());
        }
        report("point reads, 64 in flight", POINT_READS, POINT_READS * VALUE_BYTES, env.clock.since(started));

        let started = env.clock.now();
        let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
        let writer = table.batch_writer();
        for row in 0..ROWS_WRITTEN {
            let row = row * 7_919 % (TABLETS * ROWS_PER_TABLET);
            writer.add(RowMutation::new(key(row), vec![Mutation::set("f", "q", value.clone())])).await?;
        }
        writer.flush().await?;
        report("batch writer", ROWS_WRITTEN, ROWS_WRITTEN * VALUE_BYTES, env.clock.since(started));

        for (what, order, parallel) in [
            ("scan, in order", Order::Ascending, 1),
            ("scan, in order, 4 tablets", Order::Ascending, 4),
            ("scan, any order, 4 tablets", Order::Any, 4),
        ] {
            let started = env.clock.now();
            let mut rows = table.scan(RowRange::ALL, ScanOptions { order, parallel, ..ScanOptions::default() });
            let (mut count, mut bytes) = (0, 0);
            while let Some(row) = rows.next().await {
                count += 1;
                bytes += row?.value("f", "q").map_or(0, Bytes::len);
            }
            assert_eq!(count, TABLETS * ROWS_PER_TABLET);
            report(what, count, bytes, env.clock.since(started));
        }
        let started = env.clock.now();
        let mut batches = table.scan_batches(RowRange::ALL, ScanOptions::default());
        let (mut count, mut bytes) = (0, 0);
        while let Some(batch) = batches.next().await {
            for row in batch?.rows {
                count += 1;
                bytes += row.cells[0].value.len();
            }
        }
        report("scan by batches", count, bytes, env.clock.since(started));
        Ok(())
    })
}
