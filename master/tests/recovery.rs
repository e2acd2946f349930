//! A tablet server dies: its tablets are served again, whatever happens to the master meanwhile.

mod common;

use common::{Holds, World};
use uruk_proto::master::{
    DeleteTableRequest, GetTabletRequest, ListTablesRequest, LocateRequest, TabletKey, TabletsOpenedRequest,
};
use uruk_proto::{ErrorCode, RpcError};

/// Long enough that no lease lapses by itself, however busy the machine is.
const NEVER_MS: u32 = 600_000;

/// Every tablet of the table is served by exactly one of the servers, where `locate` says.
async fn assert_served(world: &World, table: u64, tablets: usize, servers: &[&common::FakeServer]) {
    let request = LocateRequest { table_id: table, row: vec![].into(), limit: 100, from_leader: true };
    let located = world.client().locate(request).await.expect("located").into_inner().tablets;
    assert_eq!(located.len(), tablets);
    assert!(located.windows(2).all(|pair| pair[0].end == pair[1].start), "no hole");
    for tablet in located {
        let owner = servers.iter().find(|server| server.id == tablet.server_id).expect("a live server");
        let row = owner.shared.rows.lock().get(&tablet.tablet_id).cloned().expect("it serves the tablet");
        assert_eq!(row.epoch, tablet.epoch);
    }
    world.master().check().expect("all invariants");
}

#[tokio::test]
async fn a_killed_servers_tablets_are_served_by_the_others() {
    let world = World::start(NEVER_MS).await;
    let (a, b, c) = (world.tablet_server(1).await, world.tablet_server(2).await, world.tablet_server(3).await);
    let table = world.create("t", 12).await;
    assert_eq!((table.tablets, table.tablets_open), (12, 12));
    let id = table.schema.expect("a schema").table_id;
    for server in [&a, &b, &c] {
        assert_eq!(server.tablets().len(), 4, "spread evenly");
        server.flush().await;
    }
    assert_served(&world, id, 12, &[&a, &b, &c]).await;
    let lost = a.tablets();
    a.kill().await;
    world.report_death(1).await;
    world.until("the recovery is done", || async { world.recovery_state(a.id).await == "done" }).await;
    assert_served(&world, id, 12, &[&b, &c]).await;
    assert_eq!((b.tablets().len(), c.tablets().len()), (6, 6));
    assert!(world.logs.deleted.lock().contains(&a.id));
    // The timeline tells every step in order.
    let recovery = &world.status(&format!("recoveries/{}", a.id)).await["recoveries"][0];
    let steps: Vec<&str> =
        recovery["timeline"].as_array().expect("steps").iter().map(|step| step["what"].as_str().unwrap()).collect();
    assert_eq!(steps.iter().filter(|step| step.contains("open on")).count(), lost.len());
    let place =
        |what: &str| steps.iter().position(|step| step.contains(what)).unwrap_or_else(|| panic!("{what}: {steps:?}"));
    assert!(place("noticed: killed by signal 9") < place("log sealed"));
    assert!(place("log sealed") < place("log sorted") && place("log sorted") < place("all tablets open"));
    assert!(place("all tablets open") < place("done"));
    // Files that nothing names go, once everyone has reported.
    world
        .until("the sorted pieces and the replaced files are deleted", || async {
            world.status("status").await["files_to_delete"] == 0
        })
        .await;
    let mut left: Vec<String> = Vec::new();
    let mut listed = object_store::ObjectStore::list(&*world.objects, None);
    while let Some(file) = futures::StreamExt::next(&mut listed).await {
        left.push(file.expect("listed").location.to_string());
    }
    assert_eq!(left.len(), 12, "{left:?}");
    // The meta tablets have split: none has more than five rows.
    assert_eq!(world.status("tables").await["tables"][0]["tablets"], 12);
}

#[tokio::test]
async fn recovery_goes_on_after_a_restart_of_the_master_at_any_step() {
    let held = |hold: fn(&mut Holds)| {
        let mut holds = Holds::default();
        hold(&mut holds);
        holds
    };
    for (step, holds) in [
        ("sealing", held(|holds| holds.seal = true)),
        ("sorting", held(|holds| holds.sort = true)),
        ("reassigning", held(|holds| holds.open = true)),
        ("collecting", held(|holds| holds.flush = true)),
        ("collecting", held(|holds| holds.delete_log = true)),
    ] {
        let mut world = World::start(NEVER_MS).await;
        let (a, b, c) = (world.tablet_server(1).await, world.tablet_server(2).await, world.tablet_server(3).await);
        let id = world.create("t", 6).await.schema.expect("a schema").table_id;
        *world.holds.lock() = holds;
        a.kill().await;
        world.report_death(1).await;
        world.until(step, || async { world.recovery_state(a.id).await == step }).await;
        world.stop_master().await;
        world.start_master().await;
        world.leads().await;
        // Nothing is skipped: what was held up still holds the recovery up.
        assert_eq!(world.recovery_state(a.id).await, step);
        *world.holds.lock() = Holds::default();
        world.until("the recovery is done", || async { world.recovery_state(a.id).await == "done" }).await;
        assert_served(&world, id, 6, &[&b, &c]).await;
        // Nothing was decided twice: each lost tablet was assigned once more, the others not at all.
        let epochs: Vec<u64> =
            [&b, &c].iter().flat_map(|server| server.shared.opened.lock().clone()).map(|(_, e)| e).collect();
        assert_eq!(epochs.iter().filter(|epoch| **epoch == 2).count(), 2, "{step}: {epochs:?}");
        assert_eq!(epochs.iter().max(), Some(&2), "{step}: {epochs:?}");
        world.stop_master().await;
    }
}

#[tokio::test]
async fn a_silent_server_is_declared_dead_after_its_lease_and_refused() {
    let world = World::start(1_000).await;
    let (a, b) = (world.tablet_server(1).await, world.tablet_server(2).await);
    let id = world.create("t", 4).await.schema.expect("a schema").table_id;
    let key = {
        let rows = a.shared.rows.lock();
        let row = rows.values().next().expect("it serves half of the tablets");
        TabletKey { tablet_id: row.tablet_id, epoch: row.epoch }
    };
    a.kill().await; // and nobody reports it
    world.until("the recovery is done", || async { world.recovery_state(a.id).await == "done" }).await;
    assert_served(&world, id, 4, &[&b]).await;
    // Whatever comes late from the dead is refused.
    let late = TabletsOpenedRequest { server_id: a.id, tablets: vec![key] };
    let error = RpcError::from(world.control().tablets_opened(late).await.expect_err("refused"));
    assert_eq!(error.code, ErrorCode::Fenced);
    let renewal = uruk_proto::master::RenewLeaseRequest { server_id: a.id, ..Default::default() };
    assert!(!world.control().renew_lease(renewal).await.expect("answered").into_inner().granted);
    assert!(!*b.shared.refused.lock(), "the other one kept its lease");
}

#[tokio::test]
async fn tablets_wait_for_a_server_and_a_table_for_its_tablets() {
    let world = World::start(NEVER_MS).await;
    world.leads().await;
    let (table, server) = tokio::join!(world.create("t", 3), world.tablet_server(1));
    assert_eq!(table.tablets_open, 3);
    // The last server dies: everything waits until there is another one.
    server.kill().await;
    world.report_death(1).await;
    world.until("sealed, unsorted", || async { world.recovery_state(server.id).await == "sorting" }).await;
    let next = world.tablet_server(2).await;
    world.until("the recovery is done", || async { world.recovery_state(server.id).await == "done" }).await;
    assert_served(&world, table.schema.expect("a schema").table_id, 3, &[&next]).await;
}

#[tokio::test]
async fn a_deleted_table_is_gone_with_its_files() {
    let mut world = World::start(NEVER_MS).await;
    let (a, b) = (world.tablet_server(1).await, world.tablet_server(2).await);
    let table = world.create("t", 4).await;
    let tablet = a.tablets()[0];
    a.flush().await;
    b.kill().await;
    // One owner is dead without our knowing: deletion waits for it.
    let delete = DeleteTableRequest { name: "t".into(), request: 5 };
    let mut client = world.client();
    let (deleted, ()) = tokio::join!(client.delete_table(delete.clone()), async {
        world.until("the live owner has released", || async { a.tablets().is_empty() }).await;
        world.report_death(2).await;
    });
    deleted.expect("deleted");
    client.delete_table(delete.clone()).await.expect("a repeat is answered alike");
    assert!(client.list_tables(ListTablesRequest {}).await.expect("listed").into_inner().tables.is_empty());
    let gone = world.control().get_tablet(GetTabletRequest { tablet_id: tablet }).await.expect_err("gone");
    assert_eq!(RpcError::from(gone).code, ErrorCode::NotFound);
    let locate = LocateRequest { table_id: table.schema.expect("a schema").table_id, ..LocateRequest::default() };
    assert_eq!(RpcError::from(client.locate(locate).await.expect_err("gone")).code, ErrorCode::NotFound);
    world.until("its files are deleted", || async { world.objects.is_empty_now().await }).await;
    // It is remembered across a restart, too.
    world.stop_master().await;
    world.start_master().await;
    world.leads().await;
    world.client().delete_table(delete).await.expect("a repeat is answered alike");
    let other = DeleteTableRequest { name: "t".into(), request: 6 };
    assert_eq!(RpcError::from(world.client().delete_table(other).await.expect_err("gone")).code, ErrorCode::NotFound);
}

#[tokio::test]
async fn sorted_pieces_that_the_master_never_heard_of_are_deleted_while_their_creator_lives() {
    let world = World::start(NEVER_MS).await;
    let (a, b) = (world.tablet_server(1).await, world.tablet_server(2).await);
    world.create("t", 4).await;
    world.holds.lock().sort_answer = true;
    a.kill().await;
    world.report_death(1).await;
    world.until("something is sorted", || async { !world.objects.is_empty_now().await }).await;
    *world.holds.lock() = Holds::default();
    world.until("the recovery is done", || async { world.recovery_state(a.id).await == "done" }).await;
    assert_eq!(b.tablets().len(), 4);
    let pieces_left = || async {
        let mut pieces = object_store::ObjectStore::list(&*world.objects, Some(&"recovery".into()));
        futures::StreamExt::next(&mut pieces).await.is_some()
    };
    world.until("no piece is left", || async { !pieces_left().await }).await;
}

trait IsEmptyNow {
    async fn is_empty_now(&self) -> bool;
}

impl IsEmptyNow for object_store::memory::InMemory {
    async fn is_empty_now(&self) -> bool {
        futures::StreamExt::next(&mut object_store::ObjectStore::list(self, None)).await.is_none()
    }
}
