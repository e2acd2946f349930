//! What load reports say about requests.

use uruk_proto::master::TabletLoad;
use uruk_tabletserver::server::TabletServerConfig;

use crate::cluster::*;

/// The sum of a tablet's reports until it says something of requests.
async fn report_of(cluster: &Cluster, host: &Host, tablet: u64) -> TabletLoad {
    let id = host.server.server_id().0;
    let find = || {
        cluster.master.with(|state| {
            let load = state.loads.get(&id)?;
            load.tablets.iter().find(|load| load.tablet_id == tablet && load.writes > 0).cloned()
        })
    };
    cluster.until("a report of writes", || find().is_some()).await;
    find().expect("just looked at")
}

#[tokio::test]
async fn a_report_says_where_the_load_is_and_which_row_is_hottest() {
    let cluster = Cluster::new().await;
    cluster.master.with(|state| state.renewal_ms = 1000);
    let host = cluster.start_with(TabletServerConfig { process_metrics: true, ..cluster.config() }).await;
    cluster.open(&host, TABLET).await;
    cluster.open(&host, TABLET + 1).await;
    for i in 0..200 {
        let row = if i % 4 == 0 { "k50".to_owned() } else { format!("k{:02}", i % 100) };
        host.put(TABLET, &row, "x").await;
    }
    // 64 samples or more of one request in four for this row: three deviations on either side.
    let is_told = |load: &TabletLoad| load.hottest_row == "k50" && (80..420).contains(&load.hottest_row_permille);
    let find = || {
        let id = host.server.server_id().0;
        let load = cluster.master.with(|state| {
            state.loads.get(&id)?.tablets.iter().find(|load| load.tablet_id == TABLET && is_told(load)).cloned()
        });
        load.filter(|load| load.writes > 0)
    };
    cluster.until("a report of the hottest row", || find().is_some()).await;
    let load = find().expect("just looked at");
    assert!(load.load_median[..] > *b"k20".as_slice() && load.load_median[..] < *b"k80".as_slice());
    assert!(load.bytes_written > load.writes * 4);
    let server = cluster.master.with(|state| state.loads[&host.server.server_id().0].clone());
    let idle = server.tablets.iter().find(|load| load.tablet_id == TABLET + 1).expect("reported");
    assert_eq!((idle.load_median.len(), idle.cpu_micros, idle.hottest_row_permille), (0, 0, 0));
    assert!(server.cpus_milli >= 100 && server.memory_limit_bytes > server.memory_bytes && server.memory_bytes > 0);
    assert!(server.network_bytes_received > 0);
}

#[tokio::test]
async fn the_cost_of_requests_is_guessed_where_the_system_is_not_asked() {
    let cluster = Cluster::new().await;
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    host.put(TABLET, "a", "x").await;
    let load = report_of(&cluster, &host, TABLET).await;
    assert!(load.cpu_micros > 0);
    assert_eq!(cluster.master.with(|state| state.loads[&host.server.server_id().0].cpus_milli), 0);
}

#[tokio::test]
async fn scans_of_a_whole_tablet_make_no_row_hot() {
    let cluster = Cluster::new().await;
    cluster.master.with(|state| state.renewal_ms = 1000);
    let host = cluster.start().await;
    cluster.open(&host, TABLET).await;
    for i in 0..100 {
        host.put(TABLET, &format!("k{i:02}"), "x").await;
    }
    for _ in 0..300 {
        host.scan(TABLET).await;
    }
    let hottest = || {
        let loads = cluster.master.with(|state| state.loads.get(&host.server.server_id().0).cloned());
        loads.and_then(|load| load.tablets.first().map(|tablet| tablet.hottest_row_permille))
    };
    cluster.until("a report", || hottest().is_some_and(|permille| permille > 0)).await;
    assert!(hottest().expect("reported") < 300, "{:?}", hottest());
}
