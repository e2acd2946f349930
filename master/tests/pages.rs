//! The status page, its JSON, and the errors for bad input.

mod common;

use std::sync::Arc;

use async_trait::async_trait;
use common::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uruk_base::data_folder::DataFolderError;
use uruk_master::{Master, MasterConfig, NoHealth, StartError, StorageHealth, StorageReport};
use uruk_proto::master::{
    CreateTableRequest, FamilySchema, GetTableRequest, LocateRequest, Maintenance, MaintenanceJob, MaintenanceKind,
    MaintenanceTotals, MemoryBudget, ServerLoad, SplitTabletRequest, StatusRequest, TabletChoice,
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

/// A compaction in the middle, of a tablet.
fn job(tablet_id: u64, kind: MaintenanceKind, started_micros: i64) -> MaintenanceJob {
    MaintenanceJob {
        tablet_id,
        kind: kind as i32,
        locality_group: 7,
        reason: "ratio".into(),
        input_files: 4,
        input_bytes: 4 << 20,
        bytes_done: if started_micros == 0 { 0 } else { 1 << 20 },
        bytes_written: if started_micros == 0 { 0 } else { 512 << 10 },
        started_micros,
        running_ms: 1_500,
    }
}

/// What stands between two texts of a page.
fn between<'a>(page: &'a str, from: &str, to: &str) -> &'a str {
    let (_, rest) = page.split_once(from).expect("the page has the first text");
    rest.split_once(to).expect("the page has the second text").0
}

#[tokio::test]
async fn flushes_and_compactions_are_shown_whether_none_one_or_many() {
    let world = World::start(600_000).await;
    let server = world.tablet_server(1).await;
    world.create("words", 2).await;
    let http = world.master().http_address().expect("a status page").to_owned();
    let reported = async |load: ServerLoad| {
        let running = load.compactions_running;
        *server.shared.maintenance_report.lock() = load;
        let is_shown = || async { world.status("compactions").await["total"]["compactions_running"] == running };
        world.until("it is reported", is_shown).await;
        let (status, page) = get(&http, "/compactions").await;
        assert_eq!(status, 200, "{page}");
        page
    };
    let maintenance = |running: Vec<MaintenanceJob>, queued: Vec<MaintenanceJob>| Maintenance {
        running,
        queued,
        totals: Some(MaintenanceTotals {
            log_bytes: 100 << 20,
            flushed_bytes: 50 << 20,
            compaction_read_bytes: 90 << 20,
            compaction_written_bytes: 75 << 20,
            file_bytes: 60 << 20,
            kept_bytes: 40 << 20,
            flushes: 5,
            compactions: 3,
        }),
        ..Maintenance::default()
    };
    let (_, nothing) = get(&http, "/compactions").await;
    assert!(nothing.contains("nothing runs, nothing waits") && nothing.contains("<b>–</b>write amp"), "{nothing}");

    let one = ServerLoad {
        compactions_running: 1,
        memtable_bytes: 30 << 20,
        maintenance: Some(maintenance(vec![job(1, MaintenanceKind::Merging, 1_700_000_000_000_000)], vec![])),
        budget: Some(MemoryBudget {
            memtable_bytes_soft: 20 << 20,
            memtable_bytes_hard: 40 << 20,
            memtable_bytes_peak: 39 << 20,
            refused_for_memtables: 12,
            ..MemoryBudget::default()
        }),
        ..ServerLoad::default()
    };
    let page = reported(one.clone()).await;
    let row = between(&page, "<tbody>", "</tbody>");
    for text in
        ["running", "server-1", "words", "merging", ">7<", "ratio", "4.0 MiB", "25 %", "512.0 KiB", "2023-11-14"]
    {
        assert!(row.contains(text), "lacks {text}: {row}");
    }
    assert_eq!(row.matches("<tr>").count(), 1, "{row}");
    for text in ["1 + 0", "2.25", "1.50", "width: 75%", "left: 50%", "39.0 MiB", "memtables full: 12"] {
        assert!(page.contains(text), "lacks {text}: {page}");
    }
    let (_, overview) = get(&http, "/").await;
    for text in ["href=\"/compactions\"", "1 + 0", "width: 75%", "class=\"busy\" style"] {
        assert!(overview.contains(text), "lacks {text}: {overview}");
    }
    let json = world.status("compactions").await;
    assert_eq!((&json["jobs"][0]["kind"], &json["jobs"][0]["percent"]), (&"merging".into(), &25.0.into()));
    assert_eq!(json["servers"][0]["write_amplification"], 2.25);
    assert_eq!(json["total"]["space_amplification"], 1.5);
    let (_, metrics) = get(&http, "/metrics").await;
    assert!(metrics.contains("uruk_master_write_amplification_ratio 2.25"), "{metrics}");

    // A server that lists more than it may is cut short; what is not listed is still counted.
    let many = |started| (0..100).map(|_| job(2, MaintenanceKind::Major, started)).collect();
    let page = reported(ServerLoad {
        compactions_running: 100,
        compactions_queued: 1_000,
        maintenance: Some(Maintenance { flushes_queued: 7, ..maintenance(many(1), many(0)) }),
        ..one
    })
    .await;
    let rows = between(&page, "<tbody>", "</tbody>");
    assert_eq!((rows.matches(">running<").count(), rows.matches(">queued<").count()), (32, 32));
    for text in ["100 + 1000", "0 + 7", "and 1043 more"] {
        assert!(page.contains(text), "lacks {text}: {page}");
    }
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
