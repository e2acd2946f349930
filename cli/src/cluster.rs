//! A whole cluster of separate processes on this machine: what `dev`, `demo` and `drill` run.
//!
//! Every process gets a pipe as its standard input and ends at once when that pipe closes, so nothing
//! outlives this process, however it dies; no tablet is moved when all servers end. A process that dies is started again with the same ports
//! and folder; tablet servers' workers are started again by their own watching parents.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{mpsc, oneshot};
use uruk_base::Env;
use uruk_tabletserver::server::parent;

use crate::process::{Durability, Ready};

/// A process must be ready within this time.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// A process that died is started again after this time.
const RESTART_DELAY: Duration = Duration::from_millis(300);
/// A process whose pipe was closed is killed after this time.
const END_TIMEOUT: Duration = Duration::from_millis(1500);

/// What to start.
#[derive(Clone, Debug)]
pub struct ClusterSpec {
    /// Data, logs and the list of ports.
    pub dir: PathBuf,
    /// Number of masters: 1 or 3.
    pub masters: usize,
    /// Number of the chunk store's controllers: 1 or 3.
    pub controllers: usize,
    /// Number of tablet servers.
    pub tablet_servers: usize,
    /// Number of chunk servers.
    pub chunk_servers: usize,
    /// First of consecutive ports (master, its status page, controller, chunk servers, tablet
    /// servers, more masters and their pages, more controllers); 0 picks free ones.
    pub port_base: u16,
    /// What an acknowledged write has survived.
    pub durability: Durability,
    /// More flags for each tablet server.
    pub tabletserver_flags: Vec<String>,
    /// More flags for each master.
    pub master_flags: Vec<String>,
    /// Start processes again that died.
    pub restart: bool,
}

/// One process of the cluster.
#[derive(Clone, Debug, Serialize)]
pub struct ProcessInfo {
    /// `chunkserver-2`.
    pub name: String,
    /// `chunkserver`.
    pub role: String,
    /// Its pid now; of the watching parent for tablet servers.
    pub pid: u32,
    /// Where it serves.
    pub address: String,
    /// The status page.
    pub http: Option<String>,
}

/// Something that a person at the terminal wants to know.
#[derive(Clone, Debug)]
pub enum ClusterEvent {
    /// The process died.
    Died { name: String, pid: u32, how: String },
    /// It runs again.
    Restarted { name: String, pid: u32 },
    /// It does not come up.
    Failed { name: String, error: String },
}

/// The running cluster. Drop it only after [`LocalCluster::stop`], or its processes end unasked.
pub struct LocalCluster {
    spec: ClusterSpec,
    ports: Ports,
    processes: Arc<Mutex<BTreeMap<String, ProcessInfo>>>,
    /// By role, in the order of start.
    stops: Vec<(&'static str, oneshot::Sender<oneshot::Sender<()>>)>,
    /// Names of processes that are left dead.
    held: Arc<Mutex<BTreeSet<String>>>,
    events: mpsc::UnboundedReceiver<ClusterEvent>,
    event_sender: mpsc::UnboundedSender<ClusterEvent>,
    env: Env,
}

/// Kept in the folder, so that a cluster keeps its addresses.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Ports {
    master: u16,
    http: u16,
    controller: u16,
    chunk_servers: Vec<u16>,
    tablet_servers: Vec<u16>,
    /// The second master and its page, the third, ...
    #[serde(default)]
    more_masters: Vec<(u16, u16)>,
    #[serde(default)]
    more_controllers: Vec<u16>,
}

impl LocalCluster {
    /// Starts every process and waits until each is ready.
    pub async fn start(env: &Env, spec: ClusterSpec) -> Result<LocalCluster> {
        let ports = Ports::load_or_pick(env, &spec).await?;
        env.disk.create_dir_all(&spec.dir.join("logs")).await.context("cannot make the folder for logs")?;
        let (event_sender, events) = mpsc::unbounded_channel();
        let mut cluster = LocalCluster {
            spec,
            ports,
            processes: Arc::default(),
            stops: Vec::new(),
            held: Arc::default(),
            events,
            event_sender,
            env: env.clone(),
        };
        let launches = cluster.launches();
        // Processes of a role start together: members of a group need each other.
        for group in launches.chunk_by(|a, b| a.role == b.role) {
            if let Err(error) = cluster.launch(group).await {
                cluster.stop().await;
                return Err(error);
            }
        }
        Ok(cluster)
    }

    /// The masters' addresses.
    pub fn masters(&self) -> Vec<String> {
        self.ports.masters(&self.spec).into_iter().map(|(port, _)| local(port)).collect()
    }

    /// The status page.
    pub fn status_page(&self) -> String {
        format!("http://{}/", local(self.ports.http))
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.spec.dir
    }

    /// Every process as it is now, by name.
    pub fn processes(&self) -> Vec<ProcessInfo> {
        self.processes.lock().values().cloned().collect()
    }

    /// Leaves the process dead once it dies, until [`LocalCluster::release`].
    pub fn hold(&self, name: &str) {
        self.held.lock().insert(name.to_owned());
    }

    /// Lets the process be started again.
    pub fn release(&self, name: &str) {
        self.held.lock().remove(name);
    }

    /// The next thing that happened to a process.
    pub async fn event(&mut self) -> ClusterEvent {
        self.events.recv().await.expect("the cluster holds a sender itself")
    }

    /// Ends every process, tablet servers first, and waits for them.
    pub async fn stop(&mut self) {
        while let Some((role, _)) = self.stops.last() {
            let role = *role;
            let mut waits = Vec::new();
            while let Some((_, stop)) = self.stops.pop_if(|(other, _)| *other == role) {
                let (done, wait) = oneshot::channel();
                if stop.send(done).is_ok() {
                    waits.push(wait);
                }
            }
            futures::future::join_all(waits).await;
        }
    }

    fn launches(&self) -> Vec<Launch> {
        let spec = &self.spec;
        let folder = |name: &str| spec.dir.join(name).display().to_string();
        let durability = format!("--durability={}", spec.durability);
        let flags = |list: &[&str]| list.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>();
        let controller_ports = self.ports.controllers(spec);
        let (controllers, controller_members) = group(&controller_ports);
        let master_ports = self.ports.masters(spec);
        let (masters, master_members) = group(&master_ports.iter().map(|(port, _)| *port).collect::<Vec<_>>());
        let mut launches = Vec::new();
        for (place, port) in controller_ports.iter().enumerate() {
            let (node, name) = ((place + 1).to_string(), format!("dfs-controller-{}", place + 1));
            let mut args = flags(&["--dir", &folder(&name), "--listen", &local(*port)]);
            args.extend(flags(&["--node", &node, "--members", &controller_members]));
            launches.push(Launch { name, role: "dfs-controller", args });
        }
        for (place, port) in self.ports.chunk_servers.iter().enumerate().take(spec.chunk_servers) {
            let name = format!("chunkserver-{}", place + 1);
            let args = flags(&["--dir", &folder(&name), "--listen", &local(*port), "--controllers", &controllers]);
            launches.push(Launch { name, role: "chunkserver", args });
        }
        for (place, (port, page)) in master_ports.iter().enumerate() {
            let (node, name) = ((place + 1).to_string(), format!("master-{}", place + 1));
            let mut args = flags(&["--dir", &folder(&name), "--listen", &local(*port), "--http", &local(*page)]);
            args.extend(flags(&["--node", &node, "--members", &master_members]));
            args.extend(flags(&["--controllers", &controllers, &durability]));
            args.extend(spec.master_flags.iter().cloned());
            launches.push(Launch { name, role: "master", args });
        }
        for (place, port) in self.ports.tablet_servers.iter().enumerate().take(spec.tablet_servers) {
            let name = format!("tabletserver-{}", place + 1);
            let mut args = flags(&["--listen", &local(*port), "--masters", &masters]);
            args.extend(flags(&["--controllers", &controllers, &durability]));
            args.extend(spec.tabletserver_flags.iter().cloned());
            launches.push(Launch { name, role: "tabletserver", args });
        }
        launches
    }

    /// Starts some processes at the same time and waits until each is ready.
    async fn launch(&mut self, launches: &[Launch]) -> Result<()> {
        let spawns = launches.iter().map(|launch| launch.spawn(&self.env, &self.spec.dir));
        let running = futures::future::try_join_all(spawns).await?;
        for (launch, running) in launches.iter().zip(running) {
            self.processes.lock().insert(launch.name.clone(), running.info.clone());
            let (stop, stopped) = oneshot::channel();
            self.stops.push((launch.role, stop));
            let keeper = Keeper {
                launch: launch.clone(),
                dir: self.spec.dir.clone(),
                restart: self.spec.restart,
                processes: self.processes.clone(),
                held: self.held.clone(),
                events: self.event_sender.clone(),
                env: self.env.clone(),
            };
            self.env.tasks.spawn_to_end("process keeper", keeper.keep(running, stopped));
        }
        Ok(())
    }
}

fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// The addresses of a group, as `--controllers` takes them and as `--members` does.
fn group(ports: &[u16]) -> (String, String) {
    let addresses: Vec<String> = ports.iter().map(|port| local(*port)).collect();
    let members: Vec<String> = (1..).zip(&addresses).map(|(node, address)| format!("{node}={address}")).collect();
    (addresses.join(","), members.join(","))
}

impl Ports {
    /// Each master's port and its page's.
    fn masters(&self, spec: &ClusterSpec) -> Vec<(u16, u16)> {
        let more = self.more_masters.iter().take(spec.masters - 1);
        std::iter::once(&(self.master, self.http)).chain(more).copied().collect()
    }

    fn controllers(&self, spec: &ClusterSpec) -> Vec<u16> {
        let more = self.more_controllers.iter().take(spec.controllers - 1);
        std::iter::once(&self.controller).chain(more).copied().collect()
    }

    async fn load_or_pick(env: &Env, spec: &ClusterSpec) -> Result<Ports> {
        env.disk.create_dir_all(&spec.dir).await.with_context(|| format!("cannot make {}", spec.dir.display()))?;
        let file = spec.dir.join("ports.json");
        let mut ports =
            match env.disk.exists(&file).await.with_context(|| format!("cannot look at {}", file.display()))? {
                true => {
                    let text = env.disk.read(&file).await.context("cannot read ports.json")?;
                    serde_json::from_slice(&text).with_context(|| format!("bad {}", file.display()))?
                }
                false => Ports::default(),
            };
        let mut picker = PortPicker { next: spec.port_base, held: Vec::new() };
        for port in [&mut ports.master, &mut ports.http, &mut ports.controller] {
            picker.fill(port)?;
        }
        ports.chunk_servers.resize(ports.chunk_servers.len().max(spec.chunk_servers), 0);
        ports.tablet_servers.resize(ports.tablet_servers.len().max(spec.tablet_servers), 0);
        ports.more_masters.resize(ports.more_masters.len().max(spec.masters - 1), (0, 0));
        ports.more_controllers.resize(ports.more_controllers.len().max(spec.controllers - 1), 0);
        let more_masters = ports.more_masters.iter_mut().flat_map(|(port, page)| [port, page]);
        let servers = ports.chunk_servers.iter_mut().chain(&mut ports.tablet_servers);
        for port in servers.chain(more_masters).chain(&mut ports.more_controllers) {
            picker.fill(port)?;
        }
        let text = serde_json::to_vec_pretty(&ports).expect("plain data becomes JSON");
        env.disk.replace(&file, text.into()).await.context("cannot write ports.json")?;
        Ok(ports)
    }
}

/// Picks ports and holds them until all are picked, so that none is picked twice.
struct PortPicker {
    next: u16,
    held: Vec<std::net::TcpListener>,
}

impl PortPicker {
    fn fill(&mut self, port: &mut u16) -> Result<()> {
        let is_kept = *port != 0;
        if *port == 0 && self.next != 0 {
            *port = self.next;
        }
        if self.next != 0 {
            self.next = self.next.checked_add(1).context("--port-base is too high")?;
        }
        let listener = std::net::TcpListener::bind(("127.0.0.1", *port)).with_context(|| match is_kept {
            true => {
                format!("port {port} is in use, which this folder's cluster keeps (ports.json); does it run already?")
            }
            false => format!(
                "port {port} is in use; stop what uses it (another `uruk dev`?), or give --port-base 0 for free ports"
            ),
        })?;
        *port = listener.local_addr().context("cannot read a local address")?.port();
        self.held.push(listener);
        Ok(())
    }
}

/// How to start one process.
#[derive(Clone, Debug)]
struct Launch {
    name: String,
    role: &'static str,
    args: Vec<String>,
}

struct Running {
    child: Child,
    info: ProcessInfo,
    /// The process ends when this is dropped.
    stdin: ChildStdin,
}

impl Launch {
    /// Starts the process and waits for its `ready` line.
    async fn spawn(&self, env: &Env, dir: &Path) -> Result<Running> {
        let log_path = dir.join("logs").join(format!("{}.log", self.name));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&log_path);
        let log = log.with_context(|| format!("cannot open {}", log_path.display()))?;
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut child = Command::new(program)
            .arg(self.role)
            .args(&self.args)
            .arg("--end-with-stdin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0) // Ctrl-C reaches this process alone, which then ends the others in order
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", self.name))?;
        let stdin = child.stdin.take().expect("standard input is piped");
        let stdout = child.stdout.take().expect("standard output is piped");
        let mut lines = BufReader::new(stdout).lines();
        let ready = env.clock.timeout(READY_TIMEOUT, async {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some(ready) = Ready::parse(&line) {
                    return Some(ready);
                }
            }
            None
        });
        let Ok(Some(ready)) = ready.await else {
            let _ = child.start_kill();
            let _ = child.wait().await;
            bail!("{} does not start: {}", self.name, last_line(&log_path));
        };
        // Keep reading, or the process would block (or die) on a full (or closed) pipe.
        env.tasks.spawn("process output", async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let info = ProcessInfo {
            name: self.name.clone(),
            role: self.role.to_owned(),
            pid: child.id().unwrap_or(ready.pid),
            address: ready.address,
            http: ready.http,
        };
        Ok(Running { child, info, stdin })
    }
}

#[allow(clippy::disallowed_methods)] // a log file of another process
fn last_line(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    line.map_or_else(|| format!("see {}", path.display()), str::to_owned)
}

/// Watches one process: starts it again when it dies, ends it when asked.
struct Keeper {
    launch: Launch,
    dir: PathBuf,
    restart: bool,
    processes: Arc<Mutex<BTreeMap<String, ProcessInfo>>>,
    held: Arc<Mutex<BTreeSet<String>>>,
    events: mpsc::UnboundedSender<ClusterEvent>,
    env: Env,
}

impl Keeper {
    async fn keep(self, mut running: Running, mut stop: oneshot::Receiver<oneshot::Sender<()>>) {
        let name = self.launch.name.clone();
        loop {
            let status = tokio::select! {
                biased;
                done = &mut stop => {
                    self.end(running).await;
                    if let Ok(done) = done {
                        let _ = done.send(());
                    }
                    return;
                }
                status = running.child.wait() => status,
            };
            let how = status.map_or_else(|error| error.to_string(), parent::describe);
            let _ = self.events.send(ClusterEvent::Died { name: name.clone(), pid: running.info.pid, how });
            if !self.restart {
                if let Ok(done) = stop.await {
                    let _ = done.send(());
                }
                return;
            }
            running = loop {
                tokio::select! {
                    biased;
                    done = &mut stop => {
                        if let Ok(done) = done {
                            let _ = done.send(());
                        }
                        return;
                    }
                    () = self.env.clock.sleep(RESTART_DELAY) => {}
                }
                if self.held.lock().contains(&name) {
                    continue;
                }
                match self.launch.spawn(&self.env, &self.dir).await {
                    Ok(again) => break again,
                    Err(error) => {
                        let error = format!("{error:#}");
                        let _ = self.events.send(ClusterEvent::Failed { name: name.clone(), error });
                    }
                }
            };
            let pid = running.info.pid;
            self.processes.lock().insert(name.clone(), running.info.clone());
            let _ = self.events.send(ClusterEvent::Restarted { name: name.clone(), pid });
        }
    }

    async fn end(&self, Running { mut child, info, stdin }: Running) {
        drop(stdin);
        if self.env.clock.timeout(END_TIMEOUT, child.wait()).await.is_err() {
            tracing::warn!(process = info.name, "does not end when asked; killed");
            let _ = child.start_kill();
            let _ = child.wait().await;
        }
    }
}
