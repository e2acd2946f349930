//! The `object_store` crate's own tests, on a real cluster.

use object_store::integration as suite;
use object_store::path::Path;

use super::cluster::Cluster;

/// One cluster for all of them: each cleans up after itself, or starts by doing so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passes_the_object_store_crates_own_tests() {
    let cluster = Cluster::start(3).await;
    let store = cluster.client().object_store();
    suite::put_get_delete_list(&store).await;
    suite::put_get_attributes(&store).await;
    suite::get_opts(&store).await;
    suite::put_opts(&store, false).await;
    for path in ["put_opts", "test"] {
        object_store::ObjectStoreExt::delete(&store, &Path::from(path)).await.unwrap();
    }
    suite::stream_get(&store).await;
    suite::list_uses_directories_correctly(&store).await;
    for path in ["foo/x.json", "foo.bar/y.json"] {
        object_store::ObjectStoreExt::delete(&store, &Path::from(path)).await.unwrap();
    }
    suite::list_with_delimiter(&store).await;
    suite::list_with_offset_exclusivity(&store).await;
    let missing = suite::get_nonexistent_object(&store, None).await.unwrap_err();
    assert!(matches!(missing, object_store::Error::NotFound { .. }), "{missing}");
    suite::rename_and_copy(&store).await;
    suite::copy_if_not_exists(&store).await;
    suite::copy_rename_nonexistent_object(&store).await;
    suite::multipart_race_condition(&store, true).await;
    suite::multipart_out_of_order(&store).await;
}
