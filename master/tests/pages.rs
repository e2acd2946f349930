//! The status page, its JSON, and the errors for bad input.

mod common;

use std::sync::Arc;

use async_trait::async_trait;
use common::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uruk_base::data_folder::DataFolderError;
use uruk_master::{Master, MasterConfig, NoHealth, StartError, StorageHealth, StorageReport};
use uruk_proto::master::{
    CreateTableRequest, FamilySchema, GetTableRequest, LocateRequest, SplitTabletRequest, StatusRequest, TabletChoice,
};
use uruk_proto::{ErrorCode, RpcError};

async fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connects");
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
    (status, answer)
}

#[tokio::test]
async fn the_pages_show_servers_tables_and_recoveries() {
    let world = World::start(600_000).await;
    let (a, b) = (world.tablet_server(1).await, world.tablet_server(2).await);
    world.create("words", 4).await;
    a.kill().await;
    world.report_death(1).await;
    world.until("the recovery is done", || async { world.recovery_state(a.id).await == "done" }).await;
    let first = Some(TabletChoice { tablet_id: 1, ..Default::default() });
    let split = SplitTabletRequest { tablet: first, at: "0005".into(), request: 1 };
    assert_eq!(world.client().split_tablet(split).await.expect("split").into_inner().outcome, "done");
    let http = world.master().http_address().expect("a status page").to_owned();
    for (path, wanted) in [
        ("/", vec!["words", "server-2", "killed by signal 9", "all tablets open", "log sealed", "5 / 5"]),
        ("/tables/words", vec!["first row", "last row", "001", "open", "by server", "by load", "flex-grow"]),
        ("/servers", vec!["server-1", "killed by signal 9"]),
        ("/recoveries/1", vec!["noticed", "ms", "done"]),
        ("/balance", vec!["Splits, merges and moves", "split", "by command", "cost", "Check"]),
        ("/tablets/1", vec!["born with its table", "split into"]),
        ("/api/v1/balance", vec!["\"verdict\":", "\"hot_rows\":[]"]),
        ("/api/v1/check", vec!["\"findings\":[]"]),
        ("/api/v1/procedures", vec!["\"kind\":\"split\"", "\"outcome\":\"done\""]),
        ("/api/v1/history/1", vec!["\"exists\":false", "split into"]),
        (
            "/metrics",
            vec![
                "uruk_master_tablets_open 5",
                "uruk_master_is_leader 1",
                "uruk_master_leases_granted_total",
                "uruk_master_recovery_seconds_count 1",
            ],
        ),
        ("/api/v1/status", vec!["\"is_leader\":true", "\"open\":5"]),
        ("/api/v1/tables", vec!["\"name\":\"words\""]),
        ("/api/v1/tablets", vec!["\"start\":\"001\"", "\"epoch\":2"]),
        ("/api/v1/tablets/words", vec!["\"tablet_id\":2"]),
        ("/api/v1/servers", vec!["\"state\":\"live\"", "\"state\":\"dead\"", "lease_age_ms"]),
        ("/api/v1/recoveries", vec!["\"state\":\"done\"", "after_ms", "timeline"]),
        ("/api/v1/storage", vec!["null"]),
    ] {
        let (status, body) = get(&http, path).await;
        assert_eq!(status, 200, "{path}: {body}");
        for text in wanted {
            assert!(body.contains(text), "{path} lacks {text:?}: {body}");
        }
    }
    for path in ["/nothing", "/tables/nothing", "/recoveries/99", "/tablets/99", "/api/v1/nothing"] {
        assert_eq!(get(&http, path).await.0, 404, "{path}");
    }
    let status = StatusRequest { path: "servers".into() };
    let json = world.client().status(status).await.expect("answered").into_inner().json;
    let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    assert_eq!(json["servers"][0]["server_id"], b.id);
}

struct Store(StorageReport);

#[async_trait]
impl StorageHealth for Store {
    async fn health(&self) -> serde_json::Value {
        self.0.to_json()
    }
}

#[tokio::test]
async fn copies_that_are_not_counted_yet_are_unknown_not_0() {
    let world = World::start(600_000).await;
    for (copies_known, wanted, unwanted) in
        [(false, "unknown yet</b>chunks", "7</b>chunks"), (true, "7</b>chunks", "unknown yet")]
    {
        let report = StorageReport { copies_known, under_replicated: 7, ..StorageReport::default() };
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut config = MasterConfig::new(folder.path(), "127.0.0.1:0");
        config.http_listen = Some("127.0.0.1:0".into());
        let master = Master::start(&world.env, config, world.storage(), Arc::new(Store(report))).await.expect("starts");
        // Its one member may not lead yet, and then knows no leader's page to send to.
        let (status, body) = get(master.http_address().expect("a status page"), "/?here").await;
        assert_eq!(status, 200, "{body}");
        assert!(body.contains(wanted) && !body.contains(unwanted), "{body}");
        master.shutdown().await.expect("no task panicked");
    }
}

#[tokio::test]
async fn bad_requests_say_what_is_wrong() {
    let world = World::start(600_000).await;
    let _server = world.tablet_server(1).await;
    world.create("t", 2).await;
    let family = |name: &str| FamilySchema { name: name.into(), ..Default::default() };
    let table = |name: &str, families: Vec<FamilySchema>, splits: Vec<&'static str>| CreateTableRequest {
        name: name.into(),
        families,
        splits: splits.into_iter().map(Into::into).collect(),
        request: 1,
        ..Default::default()
    };
    let long = &*Box::leak("k".repeat(5_000).into_boxed_str());
    for (request, code, text) in [
        (table("t", vec![], vec![]), ErrorCode::AlreadyExists, "table t exists"),
        (table("", vec![], vec![]), ErrorCode::InvalidArgument, "bad table name"),
        (table("u", vec![family("a b")], vec![]), ErrorCode::InvalidArgument, "bad family name"),
        (table("u", vec![family("a"), family("a")], vec![]), ErrorCode::InvalidArgument, "given twice"),
        (table("u", vec![], vec!["k", "k"]), ErrorCode::InvalidArgument, "given twice"),
        (table("u", vec![], vec![""]), ErrorCode::InvalidArgument, "non-empty"),
        (table("u", vec![], vec![long]), ErrorCode::InvalidArgument, "5000 bytes"),
    ] {
        let error = RpcError::from(world.client().create_table(request).await.expect_err("refused"));
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.contains(text), "{error}");
    }
    let request = GetTableRequest { name: "nothing".into(), table_id: 0 };
    let error = RpcError::from(world.client().get_table(request).await.expect_err("refused"));
    assert_eq!((error.code, error.message.as_str()), (ErrorCode::NotFound, "table nothing does not exist"));
    let request = LocateRequest { table_id: 99, ..LocateRequest::default() };
    assert_eq!(RpcError::from(world.client().locate(request).await.expect_err("refused")).code, ErrorCode::NotFound);
}

#[tokio::test]
async fn a_folder_or_port_in_use_is_named() {
    let world = World::start(600_000).await;
    let start = async |config| match Master::start(&world.env, config, world.storage(), Arc::new(NoHealth)).await {
        Ok(_) => panic!("started"),
        Err(error) => error,
    };
    let error = start(MasterConfig::new(world.folder(), "127.0.0.1:0")).await;
    assert!(matches!(error, StartError::Folder(DataFolderError::InUse(_))), "{error}");
    let other = tempfile::tempdir().expect("temporary folder");
    let error = start(MasterConfig::new(other.path(), world.address.clone())).await;
    assert!(error.to_string().contains(&world.address), "{error}");
    let mut config = MasterConfig::new(other.path(), "127.0.0.1:0");
    config.http_listen = Some(world.address.clone());
    let error = start(config).await;
    assert!(matches!(&error, StartError::Listen { address, .. } if *address == world.address), "{error}");
}
