//! What the master does by itself: splits, moves; and what its check finds.

mod common;

use common::{Holds, World};
use object_store::ObjectStoreExt;
use uruk_proto::master::*;

/// Long enough that no lease lapses by itself, however busy the machine is.
const NEVER_MS: u32 = 600_000;

#[tokio::test]
async fn large_tablets_are_split_and_a_new_server_gets_its_share() {
    let world = World::start_with(NEVER_MS, |tuning| {
        tuning.balance_every_ms = 50;
        (tuning.split_bytes, tuning.split_bytes_min) = (20, 10);
        tuning.move_rest_ms = 200;
    })
    .await;
    let a = world.tablet_server(1).await;
    world.create("t", 1).await;
    a.flush().await;
    // 100 bytes: 50, 25, 12 each.
    world.until("it has been split until all is small", || async { a.tablets().len() == 8 }).await;
    let b = world.tablet_server(2).await;
    world.until("the new server has its share", || async { b.tablets().len() >= 4 && a.tablets().len() <= 12 }).await;
    let balanced = || async {
        let plan = world.client().balance(BalanceRequest { run: false }).await.expect("planned").into_inner();
        let most = plan.servers.iter().map(|server| server.load).fold(0.0, f64::max);
        plan.moves.is_empty() && plan.verdict.starts_with("balanced") && most <= 1.25
    };
    world.until("loads are even", balanced).await;
    world.master().check().expect("all invariants");
    let procedures = world.status("procedures").await;
    let kinds: Vec<&str> =
        procedures["ended"].as_array().expect("some").iter().filter_map(|ended| ended["kind"].as_str()).collect();
    assert!(kinds.contains(&"split") && kinds.contains(&"move"), "{kinds:?}");
}

#[tokio::test]
async fn cold_neighbours_melt_together() {
    let world = World::start_with(NEVER_MS, |tuning| {
        tuning.balance_every_ms = 50;
        tuning.merge_age_ms = 0;
        (tuning.split_bytes, tuning.split_bytes_min) = (1 << 30, 1 << 20);
    })
    .await;
    let (a, b) = (world.tablet_server(1).await, world.tablet_server(2).await);
    world.create("t", 6).await;
    world.until("one is left", || async { a.tablets().len() + b.tablets().len() == 1 }).await;
    world
        .until("nothing runs", || async { world.status("procedures").await["running"] == serde_json::json!([]) })
        .await;
    world.master().check().expect("all invariants");
}

#[tokio::test]
async fn the_balancer_waits_until_it_is_told_to() {
    let world = World::start_with(NEVER_MS, |tuning| {
        tuning.balance_every_ms = 50;
        tuning.auto_balance = false;
    })
    .await;
    let a = world.tablet_server(1).await;
    world.create("t", 8).await;
    let b = world.tablet_server(2).await;
    let planned = || async {
        let plan = world.client().balance(BalanceRequest { run: false }).await.expect("planned").into_inner();
        plan.moves.len() == 4 && plan.cost_after < plan.cost
    };
    world.until("it would move four", planned).await;
    assert_eq!((a.tablets().len(), b.tablets().len()), (8, 0));
}

#[tokio::test]
async fn a_check_finds_what_is_wrong_and_nothing_else() {
    let world = &World::start(NEVER_MS).await;
    let (a, b) = (world.tablet_server(1).await, world.tablet_server(2).await);
    world.create("t", 4).await;
    a.flush().await;
    let found = |deep: bool| async move {
        let answer = world.client().check(CheckRequest { deep }).await.expect("checked").into_inner();
        let kinds: Vec<(String, bool)> =
            answer.findings.iter().map(|finding| (finding.kind.clone(), finding.is_error)).collect();
        (kinds, answer)
    };
    let (kinds, answer) = found(true).await;
    assert_eq!((kinds, answer.tablets, answer.logs), (vec![], 4, 2), "{answer:?}");
    // A file is lost.
    let path = {
        let rows = a.shared.rows.lock();
        rows.values().find_map(|row| row.groups.first()).expect("it has flushed").files[0].path.clone()
    };
    world.objects.delete(&path.as_str().into()).await.expect("deleted");
    assert_eq!(found(false).await.0, [("missing-file".to_owned(), true)]);
    world.objects.put(&path.as_str().into(), "back".into()).await.expect("stored");
    // A server says that it serves what is another one's.
    let stolen = b.shared.rows.lock().values().next().cloned().expect("it serves something");
    a.shared.rows.lock().insert(stolen.tablet_id, stolen.clone());
    let two = || async { found(false).await.0 == [("two-owners".to_owned(), true)] };
    world.until("it is noticed", two).await;
    a.shared.rows.lock().remove(&stolen.tablet_id);
    world.until("it is over", || async { found(false).await.0.is_empty() }).await;
    // Files that nobody of ours made are told, but not touched.
    world.objects.put(&"tables/1/strange".into(), "x".into()).await.expect("stored");
    assert_eq!(found(true).await.0, [("unnamed-file".to_owned(), false)]);
    // Nobody can serve what the dead server had, as long as its log is not sealed.
    *world.holds.lock() = Holds { seal: true, ..Holds::default() };
    b.kill().await;
    world.report_death(2).await;
    let (kinds, _) = found(false).await;
    assert!(!kinds.is_empty() && kinds.iter().all(|kind| *kind == ("no-owner".to_owned(), false)), "{kinds:?}");
}
