//! A small state machine, and groups of members in one process.
#![allow(dead_code)] // each test file uses its part

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

pub mod disk;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::service::Routes;
use uruk_base::transport::{Connection, Listener, TcpTransport, Transport};
use uruk_base::{Env, Tasks, rpc};
use uruk_consensus::{Config, Consensus, Leadership, RestoreError, StateMachine};

/// Remembers what was added, and in which order.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Numbers {
    pub seen: BTreeSet<u64>,
    pub order: Vec<u64>,
    pub ballast: Vec<u8>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Command {
    Add(u64),
    Ballast(Vec<u8>),
    Panic,
}

impl StateMachine for Numbers {
    type Command = Command;
    /// How many numbers there are.
    type Reply = usize;

    fn apply(&mut self, command: Command) -> usize {
        match command {
            Command::Add(number) => {
                if self.seen.insert(number) {
                    self.order.push(number);
                }
            }
            Command::Ballast(bytes) => self.ballast = bytes,
            Command::Panic => panic!("on purpose"),
        }
        self.order.len()
    }

    fn snapshot(&self) -> Vec<u8> {
        postcard::to_stdvec(self).unwrap()
    }

    fn restore(bytes: &[u8]) -> Result<Self, RestoreError> {
        Ok(postcard::from_bytes(bytes)?)
    }
}

/// How long a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `holds` holds.
pub async fn until(env: &Env, what: &str, mut holds: impl FnMut() -> bool) {
    let start = env.clock.now();
    while !holds() {
        assert!(env.clock.since(start) < PATIENCE, "still not: {what}");
        env.clock.sleep(Duration::from_millis(5)).await;
    }
}

pub async fn leads(member: &Consensus<Numbers>) {
    let mut leadership = member.leadership();
    let wait = leadership.wait_for(|l| l.is_leader);
    Env::real().clock.timeout(PATIENCE, wait).await.expect("leads in time").expect("lives");
}

/// Cuts one member off: what it sends is swallowed, what is sent to it never arrives. Connections
/// that were cut stay broken.
#[derive(Clone, Debug, Default)]
pub struct Cable(Arc<AtomicU64>);

impl Cable {
    /// Odd while cut.
    fn generation(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    pub fn cut(&self) {
        assert_eq!(self.0.fetch_add(1, Ordering::SeqCst) % 2, 0, "is cut already");
    }

    pub fn mend(&self) {
        assert_eq!(self.0.fetch_add(1, Ordering::SeqCst) % 2, 1, "is not cut");
    }

    fn wrap(&self, inner: Connection) -> Connection {
        Box::pin(Wire { inner, cable: self.clone(), generation: self.generation() })
    }
}

#[async_trait]
impl Transport for Cable {
    async fn connect(&self, address: &str) -> io::Result<Connection> {
        if self.generation() % 2 == 1 {
            return Err(io::ErrorKind::HostUnreachable.into());
        }
        Ok(self.wrap(TcpTransport.connect(address).await?))
    }

    async fn listen(&self, address: &str) -> io::Result<Arc<dyn Listener>> {
        Ok(Arc::new(CableListener { inner: TcpTransport.listen(address).await?, cable: self.clone() }))
    }
}

#[derive(Debug)]
struct CableListener {
    inner: Arc<dyn Listener>,
    cable: Cable,
}

#[async_trait]
impl Listener for CableListener {
    async fn accept(&self) -> io::Result<Connection> {
        Ok(self.cable.wrap(self.inner.accept().await?))
    }

    fn local_address(&self) -> String {
        self.inner.local_address()
    }
}

struct Wire {
    inner: Connection,
    cable: Cable,
    generation: u64,
}

impl Wire {
    fn broken(&self) -> bool {
        self.cable.generation() != self.generation || self.generation % 2 == 1
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = self.inner.as_mut().poll_read(cx, buf);
        match self.broken() {
            true => {
                buf.set_filled(before);
                Poll::Pending
            }
            false => polled,
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.broken() {
            true => Poll::Ready(Ok(buf.len())),
            false => self.inner.as_mut().poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_shutdown(cx)
    }
}

/// One running member.
pub struct Member {
    pub consensus: Consensus<Numbers>,
    pub cable: Cable,
    tasks: Tasks,
}

/// A group of members on ports of this machine.
pub struct Group {
    pub env: Env,
    pub folders: TempDir,
    pub members: BTreeMap<u64, Member>,
    pub addresses: BTreeMap<u64, String>,
    pub adjust: fn(&mut Config),
}

impl Group {
    /// Starts `size` members, each on a free port.
    pub async fn start(size: u64, adjust: fn(&mut Config)) -> Group {
        let env = Env::real();
        let mut listeners = BTreeMap::new();
        for node in 1..=size {
            let cable = Cable::default();
            let listener = cable.listen("127.0.0.1:0").await.unwrap();
            listeners.insert(node, (cable, listener));
        }
        let addresses = listeners.iter().map(|(node, (_, listener))| (*node, listener.local_address())).collect();
        let folders = tempfile::tempdir().unwrap();
        let mut group = Group { env, folders, members: BTreeMap::new(), addresses, adjust };
        for (node, (cable, listener)) in listeners {
            group.run(node, cable, listener).await;
        }
        group
    }

    async fn run(&mut self, node: u64, cable: Cable, listener: Arc<dyn Listener>) {
        let mut config = Config::new("numbers", node, self.addresses.clone());
        (self.adjust)(&mut config);
        let tasks = Tasks::new();
        let mut env = self.env.with_tasks(tasks.clone());
        env.transport = Arc::new(cable.clone());
        let folder = self.folders.path().join(node.to_string());
        let consensus = Consensus::start(&env, config, Path::new(&folder), Numbers::default()).await.unwrap();
        let routes = Routes::new(consensus.service());
        let served = tasks.clone();
        tasks.spawn_to_end("server", async move { rpc::serve(&env, listener, routes, &served).await.unwrap() });
        self.members.insert(node, Member { consensus, cable, tasks });
    }

    pub fn get(&self, node: u64) -> &Consensus<Numbers> {
        &self.members[&node].consensus
    }

    /// Stops a member as a process would end.
    pub async fn stop(&mut self, node: u64) {
        let member = self.members.remove(&node).unwrap();
        member.tasks.shutdown().await.unwrap();
    }

    /// Starts a member that was stopped.
    pub async fn restart(&mut self, node: u64) {
        let cable = Cable::default();
        let start = self.env.clock.now();
        let listener = loop {
            match cable.listen(&self.addresses[&node]).await {
                Ok(listener) => break listener,
                Err(error) => assert!(self.env.clock.since(start) < PATIENCE, "{error}"),
            }
            self.env.clock.sleep(Duration::from_millis(10)).await;
        };
        self.run(node, cable, listener).await;
    }

    /// The member of `nodes` that leads.
    pub async fn leader_among(&self, nodes: &[u64]) -> u64 {
        let leads = |node: &u64| self.get(*node).leadership().borrow().is_leader;
        until(&self.env, "one leads", || nodes.iter().any(leads)).await;
        nodes.iter().copied().find(leads).unwrap_or(nodes[0])
    }

    pub async fn leader(&self) -> u64 {
        let nodes: Vec<u64> = self.members.keys().copied().collect();
        self.leader_among(&nodes).await
    }

    /// Proposes at whoever of `nodes` leads, until it is acknowledged. Adding twice adds once.
    pub async fn add(&self, nodes: &[u64], number: u64) {
        let start = self.env.clock.now();
        loop {
            let leader = self.leader_among(nodes).await;
            match self.get(leader).propose(Command::Add(number)).await {
                Ok(_) => return,
                Err(error) => assert!(self.env.clock.since(start) < PATIENCE, "{error}"),
            }
        }
    }

    pub fn seen(&self, node: u64) -> Vec<u64> {
        self.get(node).read(|numbers| numbers.order.clone())
    }

    pub fn leadership(&self, node: u64) -> Leadership {
        self.get(node).leadership().borrow().clone()
    }
}
