//! Point reads, locations and the table's name, with everything going wrong that can.

mod fake;

use std::time::Duration;

use fake::{Cluster, Fault};
use futures::future::join_all;
use uruk_client::{Error, ErrorCode, FamilySpec, Filter, Mutation, Outcome, ReadOptions};

fn all() -> ReadOptions {
    ReadOptions::default()
}

#[tokio::test(start_paused = true)]
async fn a_cached_point_read_is_one_request() {
    let cluster = Cluster::start(3).await;
    let id = cluster.table("t", &["row-010", "row-020"]);
    cluster.fill(id, 30);
    let table = cluster.client().table("t").await.unwrap();
    for key in ["row-003", "row-013", "row-023", "row-003"] {
        let row = table.read_row(key, &all()).await.unwrap().unwrap();
        assert_eq!(row.key(), key);
        assert_eq!(row.value("f", "b").unwrap(), &format!("b of {key}"));
    }
    assert_eq!(table.read_row("row-999", &all()).await, Ok(None));
    let state = cluster.lock();
    assert_eq!((state.reads, state.locates), (5, 1));
}

#[tokio::test(start_paused = true)]
async fn reads_what_the_filter_lets_through() {
    let cluster = Cluster::start(1).await;
    let id = cluster.table("t", &[]);
    cluster.fill(id, 1);
    let table = cluster.client().table("t").await.unwrap();
    let options = ReadOptions::filter(Filter::all().column("f", "b"));
    let row = table.read_row("row-000", &options).await.unwrap().unwrap();
    assert_eq!(row.cells().map(|cell| (cell.family, cell.qualifier.clone())).collect::<Vec<_>>(), [("f", "b".into())]);
    let options = ReadOptions::filter(Filter::all().column("f", "c"));
    assert_eq!(table.read_row("row-000", &options).await, Ok(None));
}

#[tokio::test(start_paused = true)]
async fn every_retriable_fault_only_costs_time() {
    for fault in [
        Fault::Stale,
        Fault::Unavailable,
        Fault::Overloaded { retry_after_ms: 50 },
        Fault::BreakBefore,
        Fault::BreakAfter { batches: 0 },
        Fault::BreakAfter { batches: 1 },
        Fault::Unexplained { batches: 0 },
        Fault::Slow { ms: 2_000 },
        Fault::Move,
        Fault::Split,
        Fault::Merge,
        Fault::FreezeAndSplit { ms: 20 },
        Fault::Die { unserved_ms: 200 },
        Fault::Freeze { unserved_ms: 200 },
        Fault::Code(ErrorCode::Unknown),
        Fault::Code(ErrorCode::DeadlineExceeded),
        Fault::Code(ErrorCode::NotLeader),
    ] {
        let cluster = Cluster::start(3).await;
        let id = cluster.table("t", &["row-010", "row-020"]);
        cluster.fill(id, 30);
        let table = cluster.client().table("t").await.unwrap();
        for repeats in [1, 2, 4] {
            cluster.faults(vec![fault; repeats]);
            let row = table.read_row("row-015", &all()).await.unwrap_or_else(|e| panic!("{fault:?}: {e}"));
            assert_eq!(row.unwrap().cells().count(), 2, "{fault:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_moved_tablet_is_found_at_once() {
    let cluster = Cluster::start(3).await;
    let id = cluster.table("t", &[]);
    cluster.fill(id, 3);
    let table = cluster.client().table("t").await.unwrap();
    table.read_row("row-001", &all()).await.unwrap();
    let tablet = *cluster.lock().tablets.keys().next().unwrap();
    cluster.lock().move_tablet(tablet, Duration::ZERO);
    let started = cluster.now();
    assert!(table.read_row("row-001", &all()).await.unwrap().is_some());
    assert_eq!(cluster.now() - started, Duration::ZERO, "no wait");
    assert_eq!(cluster.lock().locates, 2);
}

#[tokio::test(start_paused = true)]
async fn old_news_is_corrected_by_the_leader_without_a_wait() {
    let cluster = Cluster::start(3).await;
    let id = cluster.table("t", &[]);
    cluster.fill(id, 3);
    let table = cluster.client().table("t").await.unwrap();
    table.read_row("row-001", &all()).await.unwrap();
    {
        let mut state = cluster.lock();
        let tablet = *state.tablets.keys().next().unwrap();
        state.move_tablet(tablet, Duration::ZERO);
        state.old_news = usize::MAX;
    }
    let started = cluster.now();
    assert!(table.read_row("row-001", &all()).await.unwrap().is_some());
    assert_eq!(cluster.now() - started, Duration::ZERO, "no wait");
    assert_eq!(cluster.lock().locates, 3, "any replica, then the leader");
}

#[tokio::test(start_paused = true)]
async fn a_failover_is_noticed_within_milliseconds_of_its_end() {
    let cluster = Cluster::start(3).await;
    let id = cluster.table("t", &["row-010", "row-020"]);
    cluster.fill(id, 30);
    let table = cluster.client().table("t").await.unwrap();
    table.read_row("row-001", &all()).await.unwrap();
    let died = cluster.now();
    cluster.faults([Fault::Die { unserved_ms: 300 }]);
    assert!(table.read_row("row-001", &all()).await.unwrap().is_some());
    let took = cluster.now() - died;
    assert!(took >= Duration::from_millis(300) && took <= Duration::from_millis(320), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_left_once_its_tablets_have_another_owner() {
    let cluster = Cluster::start(3).await;
    let id = cluster.table("t", &[]);
    cluster.fill(id, 3);
    let table = cluster.client().table("t").await.unwrap();
    table.read_row("row-001", &all()).await.unwrap();
    let froze = cluster.now();
    cluster.faults([Fault::Freeze { unserved_ms: 0 }]);
    assert!(table.read_row("row-001", &all()).await.unwrap().is_some());
    let took = cluster.now() - froze;
    assert!(took <= Duration::from_millis(350), "{took:?}, far below the attempt's deadline");
}

#[tokio::test(start_paused = true)]
async fn calls_that_lose_one_server_share_their_look_ups() {
    let cluster = Cluster::start(2).await;
    let id = cluster.table("t", &[]);
    cluster.fill(id, 3);
    let table = cluster.client().table("t").await.unwrap();
    table.read_row("row-001", &all()).await.unwrap();
    let before = cluster.lock().locates;
    cluster.lock().fail_over(0, cluster.now() + Duration::from_millis(400));
    cluster.net.kill(&Cluster::address(0));
    let options = all();
    let rows = join_all((0..64).map(|_| table.read_row("row-001", &options))).await;
    assert!(rows.into_iter().all(|row| row.unwrap().is_some()));
    let look_ups = cluster.lock().locates - before;
    assert!(look_ups < 200, "{look_ups} look-ups for 64 calls that wait 400 ms");
}

#[tokio::test(start_paused = true)]
async fn a_table_made_anew_is_resolved_anew() {
    let cluster = Cluster::start(2).await;
    let old = cluster.table("t", &["m"]);
    let client = cluster.client();
    let table = client.table("t").await.unwrap();
    table.mutate_row("k", vec![Mutation::set("f", "q", "old")]).await.unwrap();
    let new = {
        let mut state = cluster.lock();
        state.drop_table(old);
        state.add_table("t", &["e".into(), "f".into()], &[])
    };
    assert_eq!(table.read_row("k", &all()).await, Ok(None));
    assert_eq!(table.id().0, new);
    table.mutate_row("k", vec![Mutation::set("f", "q", "new")]).await.unwrap();
    assert_eq!(cluster.value(new, "k").unwrap(), "new");
    cluster.lock().drop_table(new);
    let gone = table.read_row("k", &all()).await.unwrap_err();
    assert_eq!(gone, Error::UnknownTable { table: "t".into() });
    assert_eq!(gone.outcome(), Outcome::NotDone);
}

#[tokio::test(start_paused = true)]
async fn a_write_packed_for_the_old_table_reaches_the_new_one_with_its_ids() {
    let cluster = Cluster::start(2).await;
    let old = cluster.table("t", &[]);
    let table = cluster.client().table("t").await.unwrap();
    table.read_row("k", &all()).await.unwrap();
    let new = {
        let mut state = cluster.lock();
        state.drop_table(old);
        state.add_table("t", &["e".into(), "f".into()], &[])
    };
    table.mutate_row("k", vec![Mutation::set("f", "q", "v")]).await.unwrap();
    let state = cluster.lock();
    let f = state.tables[&new].family("f").unwrap().id;
    assert_eq!(state.rows[&(new, "k".into())][0].family, f);
}

#[tokio::test(start_paused = true)]
async fn a_new_family_is_found_and_a_missing_one_is_an_error() {
    let cluster = Cluster::start(1).await;
    let id = cluster.table("t", &[]);
    let table = cluster.client().table("t").await.unwrap();
    let missing = table.mutate_row("k", vec![Mutation::set("g", "q", "v")]).await.unwrap_err();
    assert_eq!(missing, Error::UnknownFamily { table: "t".into(), family: "g".into() });
    {
        let mut state = cluster.lock();
        let mut family = state.tables[&id].families[0].clone();
        family.name = "g".into();
        family.id = uruk_proto::FamilyId(state.id());
        let schema = state.tables.get_mut(&id).unwrap();
        schema.families.push(family);
        schema.version += 1;
    }
    cluster.env.clock.sleep(Duration::from_millis(200)).await;
    table.mutate_row("k", vec![Mutation::set("g", "q", "v")]).await.unwrap();
    assert_eq!(cluster.value(id, "k").unwrap(), "v");
}

#[tokio::test(start_paused = true)]
async fn arguments_that_break_a_rule_are_refused_here() {
    let cluster = Cluster::start(1).await;
    cluster.table("t", &[]);
    let client = cluster.client();
    let table = client.table("t").await.unwrap();
    let long = vec![b'k'; 4097];
    let why = |result: Result<Option<uruk_client::Row>, Error>| result.unwrap_err().to_string();
    assert_eq!(why(table.read_row("", &all()).await), "Row keys must be non-empty");
    assert_eq!(why(table.read_row(&long, &all()).await), "row key of 4097 bytes; the limit is 4096");
    let unknown = ReadOptions::filter(Filter::all().family("x"));
    assert!(why(table.read_row("k", &unknown).await).starts_with("Requested column family not found"));
    assert!(matches!(client.table("no table").await, Err(Error::InvalidArgument { .. })));
    assert_eq!(client.table("none").await.unwrap_err(), Error::UnknownTable { table: "none".into() });
    let state = cluster.lock();
    assert_eq!((state.reads, state.locates), (0, 0), "nothing was sent");
}

#[tokio::test(start_paused = true)]
async fn a_call_ends_at_its_deadline_and_says_why() {
    let cluster = Cluster::start(1).await;
    cluster.table("t", &[]);
    let table = cluster.client().table("t").await.unwrap().with_deadline(Duration::from_secs(2));
    cluster.faults(vec![Fault::Overloaded { retry_after_ms: 30 }; 1_000]);
    let started = cluster.now();
    let error = table.read_row("k", &all()).await.unwrap_err();
    assert!(cluster.now() - started <= Duration::from_secs(2));
    assert_eq!((error.code(), error.outcome()), (ErrorCode::Overloaded, Outcome::NotDone));
    assert!(error.to_string().ends_with("the last failure: as ordered"), "{error}");
    cluster.faults([]);
    let tablet = *cluster.lock().tablets.keys().next().unwrap();
    cluster.lock().tablets.get_mut(&tablet).unwrap().unserved_until = Duration::from_secs(1_000);
    let table = cluster.client().table("t").await.unwrap().with_deadline(Duration::from_secs(2));
    let error = table.read_row("k", &all()).await.unwrap_err();
    assert!(error.to_string().contains("nobody serves"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn tables_are_made_listed_described_and_deleted() {
    let cluster = Cluster::start(2).await;
    let client = cluster.client();
    // The answer to the first attempt is lost: the retry finds its own table.
    cluster.faults([Fault::BreakAfter { batches: 0 }]);
    let made = client.create_table("b", &[FamilySpec::new("x")], &["m".into(), "c".into()]).await.unwrap();
    assert_eq!((made.schema.name.as_str(), made.tablets), ("b", 3));
    client.create_table("a", &[FamilySpec::new("x")], &[]).await.unwrap();
    let names: Vec<String> = client.list_tables().await.unwrap().into_iter().map(|info| info.schema.name).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(client.get_table("b").await.unwrap().schema, made.schema);
    let twice = client.create_table("b", &[], &[]).await.unwrap_err();
    assert_eq!((twice.code(), twice.outcome()), (ErrorCode::AlreadyExists, Outcome::NotDone));
    client.delete_table("b").await.unwrap();
    assert_eq!(client.delete_table("b").await, Err(Error::UnknownTable { table: "b".into() }));
    assert_eq!(client.get_table("b").await, Err(Error::UnknownTable { table: "b".into() }));
    assert_eq!(client.status("tables").await.unwrap(), r#"{"path":"tables"}"#);
    let bad = client.create_table("c", &[FamilySpec::new("x")], &["m".into(), "m".into()]).await.unwrap_err();
    assert_eq!(bad.to_string(), "split \"m\" is given twice");
    assert!(client.create_table("c", &[], &["".into()]).await.is_err());
    assert!(client.create_table("c", &[FamilySpec::new("ä")], &[]).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn sampled_keys_are_the_tablets_ends() {
    let cluster = Cluster::start(3).await;
    cluster.table("t", &["b", "m", "x"]);
    let table = cluster.client().table("t").await.unwrap();
    assert_eq!(table.sample_row_keys().await.unwrap(), ["b", "m", "x", ""]);
}
