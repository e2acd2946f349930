//! The watching parent: what it tells the masters.

use std::time::Duration;

use uruk_base::rpc;
use uruk_tabletserver::server::parent::{ParentConfig, run};

use crate::cluster::Cluster;
use crate::master::FakeMaster;

#[tokio::test]
async fn the_last_death_is_reported_to_the_leader_whichever_master_is_asked_first() {
    let cluster = Cluster::new().await;
    let follower = FakeMaster::new();
    follower.with(|state| state.leader = Some(cluster.master_address.clone()));
    let listener = cluster.env.transport.listen("127.0.0.1:0").await.expect("listens");
    let masters = vec![listener.local_address(), cluster.master_address.clone()];
    let (serve_env, routes) = (cluster.env.clone(), follower.routes());
    cluster.env.tasks.spawn("follower", async move {
        rpc::serve(&serve_env, listener, routes, &serve_env.tasks).await.expect("serves");
    });
    let env = cluster.env.with_tasks(cluster.env.tasks.child());
    let config = ParentConfig { masters, restart: true, stop_timeout: Duration::from_secs(10) };
    let command = |_| {
        let mut command = tokio::process::Command::new("sleep");
        command.arg("60").kill_on_drop(true);
        command
    };
    let end = run(&env, config, command, |_| env.tasks.cancel()).await.expect("ends");
    let deaths = cluster.master.with(|state| state.deaths.clone());
    assert_eq!(deaths.iter().map(|death| death.nonce).collect::<Vec<_>>(), [end.nonce]);
}
