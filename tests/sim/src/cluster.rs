//! The processes of the simulated cluster. Each is a turmoil host of its own, so that it can be crashed
//! at any of its awaits.
//!
//! | name | runs |
//! |---|---|
//! | `controller-N` | a controller of the chunk store |
//! | `cs-N` | a chunk server |
//! | `master-N` | a master |
//! | `ts-N` | a tablet server: one launch, as its watching parent starts it |
//! | `parents` | what the watching parents say to the masters, when they say it |
//! | `client-N` | workloads |

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures::future::join_all;
use uruk_base::Env;
use uruk_dfs_sim::chunkserver::ChunkServer;
use uruk_dfs_sim::client::DfsClient;
use uruk_dfs_sim::controller::Controller;
use uruk_master::{Master, NoHealth};
use uruk_proto::master::ReportDeathRequest;
use uruk_proto::master::master_control_client::MasterControlClient;
use uruk_tabletserver::server::TabletServer;

use crate::host::Host;
use crate::plan::Plan;
use crate::registry::{Progress, Registry};
use crate::workload::{self, Shared, Workload};

/// Where every process listens.
const PORT: u16 = 7000;
/// The watching parents look for something to report this often.
const PARENT_TICK: Duration = Duration::from_millis(10);
/// One attempt to report a death takes at most this long.
const REPORT_TIMEOUT: Duration = Duration::from_millis(500);
/// Attempts to report one death.
const REPORT_ATTEMPTS: usize = 12;

/// What a process is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// Of the chunk store.
    Controller,
    /// Of the chunk store.
    ChunkServer,
    /// Of the master group.
    Master,
    /// Serves tablets.
    TabletServer,
    /// Of the tablet servers: reports their ends.
    Parents,
    /// Runs workloads.
    Client,
}

/// A process's machine.
pub struct Machine {
    /// What runs on it.
    pub role: Role,
    /// Its disk, clock and network.
    pub host: Host,
}

/// What every process is told at its start.
pub struct Setting {
    /// Sizes and settings.
    pub plan: Plan,
    /// The observer.
    pub registry: Registry,
    /// What the workloads share.
    pub shared: Arc<Shared>,
    /// Addresses of the controllers.
    pub controllers: Vec<String>,
    /// Addresses of the masters.
    pub masters: Vec<String>,
}

fn address(name: &str) -> String {
    format!("{name}:{PORT}")
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (1..=count).map(|n| format!("{prefix}-{n}")).collect()
}

impl Setting {
    /// Names everybody.
    pub fn new(plan: Plan, registry: Registry, shared: Arc<Shared>) -> Arc<Setting> {
        let controllers = names("controller", plan.controllers).iter().map(|name| address(name)).collect();
        let masters = names("master", plan.masters).iter().map(|name| address(name)).collect();
        Arc::new(Setting { plan, registry, shared, controllers, masters })
    }
}

/// Adds the whole cluster to the simulation.
pub fn build(sim: &mut turmoil::Sim<'static>, setting: &Arc<Setting>) -> Vec<Machine> {
    let plan = &setting.plan;
    let mut machines = Vec::new();
    let mut add = |role: Role, name: &str| {
        let host = Host::new(name, plan.seed, plan.clock_of(name));
        machines.push(Machine { role, host: host.clone() });
        host
    };
    for (role, prefix, count) in [
        (Role::Controller, "controller", plan.controllers),
        (Role::ChunkServer, "cs", plan.chunk_servers),
        (Role::Master, "master", plan.masters),
        (Role::TabletServer, "ts", plan.tablet_servers),
    ] {
        for (number, name) in (1..).zip(names(prefix, count)) {
            let (host, setting) = (add(role, &name), setting.clone());
            sim.host(name, move || run(role, number, host.clone(), setting.clone()));
        }
    }
    let (host, parents) = (add(Role::Parents, "parents"), setting.clone());
    sim.host("parents", move || run(Role::Parents, 1, host.clone(), parents.clone()));
    for (number, name) in (1..).zip(names("client", plan.clients.len())) {
        setting.registry.progress(&name, Progress::Running);
        let (host, setting) = (add(Role::Client, &name), setting.clone());
        sim.host(name, move || run(Role::Client, number, host.clone(), setting.clone()));
    }
    machines
}

type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;

/// One process. It never returns: who ends on his own is crashed by the observer, which drops all of it.
async fn run(role: Role, number: u64, host: Host, setting: Arc<Setting>) -> Outcome {
    let env = host.start();
    let gate = env.clone();
    let body = async {
        match role {
            Role::Controller => controller(&env, number, &host, &setting).await,
            Role::ChunkServer => chunk_server(&env, &host, &setting).await,
            Role::Master => master(&env, number, &host, &setting).await,
            Role::TabletServer => tablet_server(&env, &host, &setting).await,
            Role::Parents => parents(&env, &setting).await,
            Role::Client => client(&env, number as usize, &host, &setting).await,
        }
    };
    let ended = host.pause().gate(body).await;
    let why = ended.map_or_else(|error| format!("{error:#}"), |()| "done".to_owned());
    if role == Role::Client {
        if why != "done" {
            setting.registry.progress(host.name(), Progress::Failed(why));
        }
    } else {
        setting.registry.ended(host.name(), why);
    }
    std::future::pending::<()>().await;
    drop(gate);
    Ok(())
}

async fn controller(env: &Env, number: u64, host: &Host, setting: &Setting) -> Result<()> {
    let listen = &setting.controllers[number as usize - 1];
    let config = setting.plan.tuning.controller(listen, number, &setting.controllers);
    let controller = Arc::new(Controller::run(env, config).await?);
    setting.registry.controller(host.name(), &controller);
    env.tasks.cancelled().await;
    Ok(())
}

async fn chunk_server(env: &Env, host: &Host, setting: &Setting) -> Result<()> {
    let zone = host.name().to_owned();
    let config = setting.plan.tuning.chunk_server(address(host.name()), zone, &setting.controllers);
    ChunkServer::start(env, config).await?.run().await?;
    Ok(())
}

fn dfs(env: &Env, setting: &Setting) -> Result<DfsClient> {
    Ok(DfsClient::new(env, setting.plan.tuning.dfs(&setting.controllers))?)
}

async fn master(env: &Env, number: u64, host: &Host, setting: &Setting) -> Result<()> {
    let dfs = dfs(env, setting)?;
    let storage = uruk_master::Storage { objects: Arc::new(dfs.object_store()), logs: Arc::new(dfs.commit_logs()) };
    let listen = &setting.masters[number as usize - 1];
    let config = setting.plan.tuning.master(listen, number, &setting.masters);
    let master = Arc::new(Master::start(env, config, storage, Arc::new(NoHealth)).await?);
    setting.registry.master(host.name(), &master);
    master.wait().await;
    Ok(())
}

async fn tablet_server(env: &Env, host: &Host, setting: &Setting) -> Result<()> {
    let dfs = dfs(env, setting)?;
    let objects = dfs.object_store();
    let storage = uruk_tabletserver::server::Storage {
        recovery_objects: Arc::new(objects.with_durability(setting.plan.recovery_files)),
        objects: Arc::new(objects),
        logs: Arc::new(dfs.commit_logs()),
    };
    let nonce = env.random.u64();
    setting.registry.launched(host.name(), nonce);
    let config =
        setting.plan.tuning.tablet_server(address(host.name()), host.name().to_owned(), nonce, &setting.masters);
    let server = Arc::new(TabletServer::start(env, config, storage).await?);
    setting.registry.tablet_server(host.name(), &server);
    let planned = setting.registry.planned_end(host.name());
    tokio::select! {
        biased;
        why = server.wait() => Err(why.into()),
        () = planned.notified() => {
            server.stop().await?;
            anyhow::bail!("planned end")
        }
    }
}

/// Reports ends of tablet servers when the observer says so.
async fn parents(env: &Env, setting: &Arc<Setting>) -> Result<()> {
    loop {
        while let Some(nonce) = setting.registry.take_report() {
            let (task_env, task_setting) = (env.clone(), setting.clone());
            env.tasks.spawn("report death", async move { report_death(&task_env, &task_setting, nonce).await });
        }
        env.clock.sleep(PARENT_TICK).await;
    }
}

async fn report_death(env: &Env, setting: &Setting, nonce: u64) {
    for attempt in 0..REPORT_ATTEMPTS {
        let master = &setting.masters[attempt % setting.masters.len()];
        let mut client = MasterControlClient::new(uruk_base::rpc::channel(&env.transport, master));
        let request = ReportDeathRequest { nonce, how: "killed by signal 9".to_owned() };
        if matches!(env.clock.timeout(REPORT_TIMEOUT, client.report_death(request)).await, Ok(Ok(_))) {
            return;
        }
        env.clock.sleep(PARENT_TICK).await;
    }
}

/// Runs its workloads until they are asked to stop; the first client then reads everything back.
async fn client(env: &Env, number: usize, host: &Host, setting: &Setting) -> Result<()> {
    let workloads: &[Workload] = &setting.plan.clients[number - 1];
    let running = workloads.iter().map(|each| workload::run(*each, env, &setting.masters, &setting.shared));
    for (workload, outcome) in workloads.iter().zip(join_all(running).await) {
        outcome.map_err(|error| error.context(format!("workload {}", workload.name())))?;
    }
    setting.registry.progress(host.name(), Progress::Ran);
    if number > 1 {
        return Ok(());
    }
    while !setting.registry.may_verify() {
        env.clock.sleep(PARENT_TICK).await;
    }
    workload::verify(env, &setting.masters, &setting.shared).await?;
    setting.registry.progress(host.name(), Progress::Verified);
    Ok(())
}
