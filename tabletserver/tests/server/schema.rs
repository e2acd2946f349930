//! Schemas that change while tablets are served.

use uruk_proto::master::{FamilySchema, TableSchema};
use uruk_proto::tablet::{MutateRowsRequest, RowMutations};
use uruk_proto::{ErrorCode, FamilyId, RpcError};
use uruk_tabletserver::server::TabletServerConfig;

use crate::cluster::*;

const SECOND: FamilyId = FamilyId(8);

/// Version 2 has a second family.
fn second() -> TableSchema {
    let mut schema = schema();
    schema.version = 2;
    schema.families.push(FamilySchema { name: "g".into(), family_id: SECOND.0, gc: None, locality_group: 0 });
    schema
}

async fn put_second(host: &Host, tablet: u64) -> Result<Option<u32>, RpcError> {
    let entry = RowMutations { row: "a".into(), mutations: set_in(SECOND, "1") };
    let request = MutateRowsRequest { tablet: tablet_ref(tablet), key: None, entries: vec![entry] };
    Ok(host.mutate(request).await?.first().map(|error| error.code))
}

#[tokio::test]
async fn a_new_family_can_be_written_once_the_schema_is_set_and_an_older_one_is_ignored() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    assert!(put_second(&host, TABLET).await.expect("answers").is_some(), "unknown family");
    host.set_schema(second()).await;
    assert_eq!(put_second(&host, TABLET).await, Ok(None));
    host.set_schema(schema()).await;
    assert_eq!(put_second(&host, TABLET).await, Ok(None));
}

#[tokio::test]
async fn an_older_order_to_open_does_not_undo_a_schema_that_overtook_it() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    let order = cluster.assign(&host, TABLET, vec![]);
    // The server has no tablet of the table yet.
    cluster.open(&host, TABLET + 1).await;
    host.set_schema(second()).await;
    host.order_open(vec![order]).await;
    host.until_serving(TABLET).await;
    assert_eq!(put_second(&host, TABLET).await, Ok(None));
    // Nor does a tablet made of what is in memory fall back.
    host.put(TABLET, "z", "1").await;
    let [left, _] = host.split(&cluster, TABLET, "m").await;
    assert_eq!(put_second(&host, left).await, Ok(None));
}

#[tokio::test]
async fn a_tablet_that_is_being_opened_goes_by_the_new_schema() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET + 1).await;
    cluster.hides_files.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut order = cluster.assign(&host, TABLET, vec![]);
    order.row.as_mut().expect("row").memory_file = "tables/1/100/77-1.mem".into();
    host.order_open(vec![order]).await;
    assert_eq!(host.try_scan(TABLET).await.expect_err("opening").code, ErrorCode::Unavailable);
    host.set_schema(second()).await;
    let file = object_store::path::Path::from("tables/1/100/77-1.mem");
    let memory = uruk_tabletserver::server::memory::Memory::new(std::time::Duration::from_secs(600));
    let bytes = memory.encode(uruk_proto::SeqNo::ZERO);
    object_store::ObjectStoreExt::put(cluster.objects.as_ref(), &file, bytes.into()).await.expect("writes");
    cluster.hides_files.store(false, std::sync::atomic::Ordering::Relaxed);
    host.until_serving(TABLET).await;
    assert_eq!(put_second(&host, TABLET).await, Ok(None));
}

#[tokio::test]
async fn what_was_compacted_or_flushed_under_an_older_schema_is_refused_and_done_again() {
    let cluster = Cluster::new().await;
    let host = cluster.start_with(TabletServerConfig { memtable_bytes_soft: 20_000, ..cluster.config() }).await;
    cluster.open(&host, TABLET).await;
    cluster.master.with(|state| state.schema_version = Some(2));
    let mut rows = 0;
    let refused = || cluster.master.with(|state| state.commits.len()) >= 1;
    while !refused() {
        host.put(TABLET, &format!("{rows:04}"), &"v".repeat(3000)).await;
        rows += 1;
    }
    assert!(cluster.master.row(TABLET).groups.is_empty());
    host.set_schema(second()).await;
    let is_compacted = || cluster.master.with(|state| state.commits.iter().any(|commit| !commit.remove.is_empty()));
    while !is_compacted() {
        host.put(TABLET, &format!("{rows:04}"), &"v".repeat(3000)).await;
        rows += 1;
        assert!(rows < 5000, "no compaction");
    }
    assert_eq!(host.scan(TABLET).await.len(), rows);
}
