//! Tablets split, merge and move, whatever happens to the master and to the servers meanwhile.

mod common;

use common::{FakeServer, World};
use uruk_proto::master::*;
use uruk_proto::{ErrorCode, RpcError};

/// Long enough that no lease lapses by itself, however busy the machine is.
const NEVER_MS: u32 = 600_000;

fn by_row(table: &str, row: &'static str) -> Option<TabletChoice> {
    Some(TabletChoice { tablet_id: 0, table: table.into(), row: row.into() })
}

/// Every tablet of the table is served by exactly one of the servers, where `locate` says; gives their starts.
async fn assert_served(world: &World, table: u64, servers: &[&FakeServer]) -> Vec<String> {
    let request = LocateRequest { table_id: table, row: vec![].into(), limit: 100, from_leader: true };
    let located = world.client().locate(request).await.expect("located").into_inner().tablets;
    assert!(located.windows(2).all(|pair| pair[0].end == pair[1].start), "no hole");
    assert!(located[0].start.is_empty() && located.last().expect("one").end.is_empty());
    for tablet in &located {
        for server in servers {
            let row = server.shared.rows.lock().get(&tablet.tablet_id).cloned();
            assert_eq!(row.is_some(), server.id == tablet.server_id, "{tablet:?} on server {}", server.id);
            assert!(row.is_none_or(|row| row.epoch == tablet.epoch));
        }
    }
    let rows: usize = servers.iter().map(|server| server.tablets().len()).sum();
    assert_eq!(rows, located.len(), "nobody serves what is gone");
    world.master().check().expect("all invariants");
    located.iter().map(|tablet| String::from_utf8_lossy(&tablet.start).into_owned()).collect()
}

#[tokio::test]
async fn a_tablet_is_split_moved_and_merged_by_command() {
    let world = World::start(NEVER_MS).await;
    let (a, b) = (world.tablet_server(1).await, world.tablet_server(2).await);
    let id = world.create("t", 1).await.schema.expect("a schema").table_id;
    let split = SplitTabletRequest { tablet: by_row("t", "x"), at: "500".into(), request: 4 };
    let done = world.client().split_tablet(split.clone()).await.expect("split").into_inner();
    assert_eq!((done.kind.as_str(), done.outcome.as_str(), done.results.len()), ("split", "done", 2));
    assert_eq!(world.client().split_tablet(split).await.expect("a repeat").into_inner(), done);
    assert_eq!(assert_served(&world, id, &[&a, &b]).await, ["", "500"]);
    // The server chooses where.
    let split = SplitTabletRequest { tablet: by_row("t", "700"), request: 5, ..Default::default() };
    assert_eq!(world.client().split_tablet(split).await.expect("split").into_inner().outcome, "done");
    assert_eq!(assert_served(&world, id, &[&a, &b]).await, ["", "500", "750"]);
    // The middle one goes to the other server, and comes back for the merge.
    let owner = a.tablets().len();
    let tablet = TabletChoice { tablet_id: 0, table: "t".into(), row: "600".into() };
    let relocate = MoveTabletRequest { tablet: Some(tablet), server_id: 0, request: 6 };
    let moved = world.client().move_tablet(relocate.clone()).await.expect("moved").into_inner();
    assert_eq!((moved.outcome.as_str(), &moved.tablets), ("done", &moved.results));
    assert_eq!(a.tablets().len().abs_diff(owner), 1);
    assert_eq!(world.client().move_tablet(relocate).await.expect("a repeat").into_inner(), moved);
    assert_served(&world, id, &[&a, &b]).await;
    let merge = MergeTabletsRequest { tablet: by_row("t", "0"), request: 7 };
    let merged = world.client().merge_tablets(merge.clone()).await.expect("merged").into_inner();
    assert_eq!((merged.outcome.as_str(), merged.results.len()), ("done", 1));
    assert_eq!(world.client().merge_tablets(merge).await.expect("a repeat").into_inner(), merged);
    assert_eq!(assert_served(&world, id, &[&a, &b]).await, ["", "750"]);
    // What cannot be done says so.
    let last = MergeTabletsRequest { tablet: by_row("t", "800"), request: 8 };
    let error = RpcError::from(world.client().merge_tablets(last).await.expect_err("the last"));
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    let nowhere = SplitTabletRequest { tablet: by_row("u", "1"), ..Default::default() };
    let error = RpcError::from(world.client().split_tablet(nowhere).await.expect_err("no such table"));
    assert_eq!(error.code, ErrorCode::NotFound);
    let edge = SplitTabletRequest { tablet: by_row("t", "800"), at: "750".into(), request: 9 };
    let error = RpcError::from(world.client().split_tablet(edge).await.expect_err("its first row"));
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    world.holds.lock().decline = true;
    let split = SplitTabletRequest { tablet: by_row("t", "1"), request: 10, ..Default::default() };
    let declined = world.client().split_tablet(split).await.expect("answered").into_inner();
    assert_eq!((declined.outcome.as_str(), declined.results.len()), ("declined: one hot row", 0));
    assert_eq!(assert_served(&world, id, &[&a, &b]).await, ["", "750"]);
}

#[tokio::test]
async fn a_split_whose_answer_is_lost_is_opened_by_order() {
    let world = World::start(NEVER_MS).await;
    let a = world.tablet_server(1).await;
    let id = world.create("t", 1).await.schema.expect("a schema").table_id;
    world.holds.lock().reshape_answer = true;
    let split = SplitTabletRequest { tablet: by_row("t", "x"), request: 4, ..Default::default() };
    assert_eq!(world.client().split_tablet(split).await.expect("split").into_inner().outcome, "done");
    assert_eq!(assert_served(&world, id, &[&a]).await, ["", "500"]);
    let merge = MergeTabletsRequest { tablet: by_row("t", "0"), request: 5 };
    assert_eq!(world.client().merge_tablets(merge).await.expect("merged").into_inner().outcome, "done");
    assert_eq!(assert_served(&world, id, &[&a]).await, [""]);
}

#[tokio::test]
async fn procedures_go_on_after_a_restart_of_the_master() {
    let mut world = World::start(NEVER_MS).await;
    let (a, b) = (world.tablet_server(1).await, world.tablet_server(2).await);
    let id = world.create("t", 1).await.schema.expect("a schema").table_id;
    world.holds.lock().reshape = true;
    let split = SplitTabletRequest { tablet: by_row("t", "x"), request: 4, ..Default::default() };
    let mut client = world.client();
    let first = split.clone();
    let asked = world.begin(async move { client.split_tablet(first).await });
    let running = || async {
        let procedures = world.status("procedures").await;
        procedures["running"].as_array().is_some_and(|running| running.len() == 1)
    };
    world.until("the split has begun", running).await;
    world.stop_master().await;
    let _ = asked.await.expect("ends");
    world.start_master().await;
    world.leads().await;
    world.holds.lock().reshape = false;
    assert_eq!(world.client().split_tablet(split).await.expect("found").into_inner().outcome, "done");
    assert_eq!(assert_served(&world, id, &[&a, &b]).await, ["", "500"]);
}

#[tokio::test]
async fn a_server_that_dies_while_it_splits_loses_nothing() {
    let world = World::start(NEVER_MS).await;
    let (a, b) = (world.tablet_server(1).await, world.tablet_server(2).await);
    let id = world.create("t", 2).await.schema.expect("a schema").table_id;
    world.holds.lock().reshape = true;
    let mut client = world.client();
    let request = SplitTabletRequest { tablet: by_row("t", "000"), request: 4, ..Default::default() };
    let asked = world.begin(async move { client.split_tablet(request).await });
    let running = || async { world.status("procedures").await["running"].as_array().is_some_and(|r| !r.is_empty()) };
    world.until("the split has begun", running).await;
    let owner = world.status("tablets").await["tablets"][0]["server_id"].as_u64().expect("an owner");
    let (dead, left, nonce) = if owner == a.id { (&a, &b, 1) } else { (&b, &a, 2) };
    dead.kill().await;
    world.report_death(nonce).await;
    let info = asked.await.expect("ends").expect("answered").into_inner();
    assert!(info.outcome.contains("died"), "{}", info.outcome);
    world.until("the recovery is done", || async { world.recovery_state(dead.id).await == "done" }).await;
    assert_eq!(assert_served(&world, id, &[left]).await, ["", "001"]);
}

#[tokio::test]
async fn a_drained_server_is_left_and_gets_nothing_until_that_is_undone() {
    let mut world = World::start(NEVER_MS).await;
    let a = world.tablet_server(1).await;
    let lonely = DrainServerRequest { server_id: a.id, undo: false };
    let error = RpcError::from(world.client().drain_server(lonely).await.expect_err("nowhere to go"));
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    let b = world.tablet_server(2).await;
    let id = world.create("t", 40).await.schema.expect("a schema").table_id;
    world.until("both know what they serve", || async { a.tablets().len() == 20 && b.tablets().len() == 20 }).await;
    let drained = world.client().drain_server(lonely).await.expect("drained").into_inner();
    assert_eq!((drained.moved, a.tablets().len()), (20, 0));
    world.until("the other one serves all", || async { b.tablets().len() == 40 }).await;
    // It is remembered.
    world.stop_master().await;
    world.start_master().await;
    world.leads().await;
    assert_eq!(world.status("servers").await["servers"][0]["state"], "draining");
    let to_it = MoveTabletRequest { tablet: by_row("t", "001"), server_id: a.id, request: 1 };
    let error = RpcError::from(world.client().move_tablet(to_it.clone()).await.expect_err("it is drained"));
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    world.client().drain_server(DrainServerRequest { server_id: a.id, undo: true }).await.expect("undone");
    assert_eq!(world.client().move_tablet(to_it).await.expect("moved").into_inner().outcome, "done");
    assert_served(&world, id, &[&a, &b]).await;
}

#[tokio::test]
async fn an_alteration_is_answered_once_every_owner_goes_by_it_or_is_dead() {
    let world = World::start(NEVER_MS).await;
    let (a, b) = (world.tablet_server(1).await, world.tablet_server(2).await);
    let id = world.create("t", 2).await.schema.expect("a schema").table_id;
    let create = family_change::Change::Create(FamilySchema { name: "g".into(), ..Default::default() });
    let changes = vec![FamilyChange { change: Some(create) }];
    let alter = AlterTableRequest { name: "t".into(), request: 3, changes, groups: vec![] };
    world.holds.lock().set_schema = true;
    let mut client = world.client();
    let request = alter.clone();
    let mut asked = world.begin(async move { client.alter_table(request).await });
    let version = || async { world.status("tables").await["tables"][0]["schema_version"] == 2 };
    world.until("the schema has changed", version).await;
    b.kill().await;
    world.report_death(2).await;
    assert!(asked.try_recv().is_err(), "the other one has not confirmed");
    world.holds.lock().set_schema = false;
    let altered = asked.await.expect("ends").expect("altered").into_inner().schema.expect("a schema");
    assert_eq!((altered.version, altered.families.len()), (2, 2));
    assert_eq!(a.shared.schemas.lock().get(&id), Some(&2));
    let again = world.client().alter_table(alter).await.expect("a repeat").into_inner().schema.expect("a schema");
    assert_eq!(again.version, 2);
    world.until("the recovery is done", || async { world.recovery_state(b.id).await == "done" }).await;
    assert_served(&world, id, &[&a]).await;
}
