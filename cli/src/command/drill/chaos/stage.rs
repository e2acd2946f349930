//! The chaos drill's cluster, its load, and the blows that fall on it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::FutureExt;
use rustix::process::Signal;
use uruk_base::{Env, Moment, Random};
use uruk_client::{Client, FamilySpec, Table};

use super::Options;
use super::book::Book;
use super::outages::Outages;
use super::processes::{Process, named, worker_of};
use super::schedule::{self, Blow, Event, Kind, Shape};
use crate::cluster::{ClusterEvent, ClusterSpec, LocalCluster};
use crate::command::status::{fetch_servers, fetch_tablets};
use crate::load::availability::probe;
use crate::load::keyspace::hashed_splits;
use crate::load::linked_list::Lists;
use crate::load::linked_list::traffic::{ListSpec, ListTraffic, acknowledged};
use crate::output::human_count;

pub const FAMILY: &str = "f";
const TABLE: &str = "chaos";
/// After each round everything runs again; then every key range must be read and written, every
/// tablet open, every server live within this time.
pub const SERVES_AGAIN_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);
/// The worker of a killed parent ends as planned; it is killed within this time, if it still runs then.
const ORPHAN_LIFE_MAX: Duration = Duration::from_millis(500);
/// Small buffers, so that flushes, compactions and log trims happen all the time.
const TABLETSERVER_FLAGS: [&str; 3] = ["--memtable-mib=8", "--unflushed-log-mib=8", "-v"];
const MASTER_FLAGS: [&str; 1] = ["-v"];
/// What the master tells about itself, kept beside the data when something is wrong.
const STATUS_PATHS: [&str; 4] = ["status", "servers", "tablets", "recoveries"];

/// The running drill.
pub struct Stage {
    pub env: Env,
    pub cluster: LocalCluster,
    pub table: Table,
    pub traffic: ListTraffic,
    pub outages: Outages,
    pub book: Book,
    pub lists: Lists,
    /// How long it took to serve again after each round, in milliseconds.
    pub served_again_ms: Vec<u64>,
    splits: Vec<Bytes>,
    shape: Shape,
    seed: u64,
    random: Random,
    stopped: Vec<Process>,
    orphans: Vec<Process>,
    held: Vec<String>,
}

/// Something that the stage does at its time.
enum Act {
    Blow(Event),
    Resume(String, Vec<Process>),
    Release(String),
    EndOrphan(String, Process),
}

impl Stage {
    /// Starts cluster, table and load.
    pub async fn set(env: &Env, options: &Options, seed: u64, dir: std::path::PathBuf) -> Result<Stage> {
        let shape = options.shape();
        let spec = ClusterSpec {
            dir,
            masters: shape.masters,
            controllers: shape.controllers,
            tablet_servers: shape.tablet_servers,
            chunk_servers: shape.chunk_servers,
            port_base: 0,
            durability: options.durability,
            tabletserver_flags: TABLETSERVER_FLAGS.map(str::to_owned).to_vec(),
            master_flags: MASTER_FLAGS.map(str::to_owned).to_vec(),
            restart: true,
        };
        let mut cluster = LocalCluster::start(env, spec).await?;
        let splits: Vec<Bytes> = hashed_splits(usize::from(options.tablets)).into_iter().map(Bytes::from).collect();
        let (table, book) = match prepare(env, &cluster, &splits, options.json).await {
            Ok(prepared) => prepared,
            Err(error) => {
                cluster.stop().await;
                return Err(error);
            }
        };
        let lists = Lists { seed, width: u64::from(options.width), depth: u64::from(options.depth) };
        let spec = ListSpec {
            family: FAMILY,
            lists,
            writers: u32::from(options.writers),
            walkers: u32::from(options.readers),
            fill_bytes: options.value_bytes as usize,
            pause: Duration::from_millis(u64::from(options.pause_ms)),
        };
        let traffic = ListTraffic::start(env, table.clone(), spec);
        let outages = Outages::watch(env, table.clone(), FAMILY, keys(&splits, "!outage"));
        let (random, env) = (Random::from_seed(seed), env.clone());
        Ok(Stage {
            env,
            cluster,
            table,
            traffic,
            outages,
            book,
            lists,
            served_again_ms: Vec::new(),
            splits,
            shape,
            seed,
            random,
            stopped: Vec::new(),
            orphans: Vec::new(),
            held: Vec::new(),
        })
    }

    /// One round: its blows, everything back, and the cluster serves again.
    pub async fn round(&mut self, number: u64) -> Result<()> {
        let events = schedule::round(self.seed, number, &self.shape);
        self.book.say(&format!("round {number}: {} events", events.len()));
        let begun = self.env.clock.now();
        let mut agenda = BTreeMap::new();
        let mut turn = 0u64;
        for event in events {
            agenda.insert((event.at, turn), Act::Blow(event));
            turn += 1;
        }
        while let Some(((at, _), act)) = agenda.pop_first() {
            self.watch_until(begun, at).await;
            if let Some((after, act)) = self.perform(act) {
                agenda.insert((self.env.clock.since(begun) + after, turn), act);
                turn += 1;
            }
        }
        self.bring_back();
        let took = self.serve_again().await.with_context(|| format!("round {number}"))?;
        self.served_again_ms.push(took.as_millis() as u64);
        let report = self.traffic.report();
        self.book.say(&format!(
            "round {number}: serves again after {} ms; {} nodes acknowledged, {} read, {} whole scans, wrong answers {}",
            took.as_millis(),
            human_count(acknowledged(&report.ledger)),
            human_count(report.reads),
            report.scans,
            report.violations
        ));
        Ok(())
    }

    /// Waits for a time of the round, and notes what the cluster's keeper sees meanwhile.
    async fn watch_until(&mut self, begun: Moment, at: Duration) {
        let clock = self.env.clock.clone();
        let sleep = clock.sleep(at.saturating_sub(clock.since(begun)));
        tokio::pin!(sleep);
        loop {
            tokio::select! {
                biased;
                event = self.cluster.event() => note(&mut self.book, &event),
                () = &mut sleep => return,
            }
        }
    }

    /// Does it; returns what has to follow and after which time.
    fn perform(&mut self, act: Act) -> Option<(Duration, Act)> {
        match act {
            Act::Blow(event) => self.blow(event),
            Act::Resume(name, processes) => {
                send(&processes, Signal::CONT);
                self.book.say(&format!("  {name} goes on"));
                None
            }
            Act::Release(name) => {
                self.cluster.release(&name);
                self.book.say(&format!("  {name} may start again"));
                None
            }
            Act::EndOrphan(name, process) => {
                if process.signal(Signal::KILL) {
                    self.book.kills += 1;
                    self.book.say(&format!("  killed the orphaned worker of {name} (pid {})", process.pid));
                }
                None
            }
        }
    }

    fn blow(&mut self, event: Event) -> Option<(Duration, Act)> {
        let Event { kind, place, blow, .. } = event;
        let name = kind.process(place);
        if kind == Kind::ChunkServer && blow.downtime().is_some() && !self.other_chunk_servers_run(&name) {
            self.book.say(&format!("  {name} is spared: another chunk server is away"));
            return None;
        }
        let main = named(&self.cluster, &name);
        let worker = main.filter(|_| matches!(kind, Kind::Worker | Kind::Parent | Kind::TabletServer));
        let worker = worker.and_then(|parent| worker_of(&parent));
        let victims: Vec<Process> = match kind {
            Kind::Worker => worker.into_iter().collect(),
            // The parent first: it must not see the worker die.
            Kind::TabletServer => main.into_iter().chain(worker).collect(),
            Kind::Parent | Kind::Master | Kind::Controller | Kind::ChunkServer => main.into_iter().collect(),
        };
        if victims.is_empty() {
            self.book.say(&format!("  {}: {name} ({kind}) does not run at the moment", blow.name()));
            return None;
        }
        let pids: Vec<String> = victims.iter().map(|process| process.pid.to_string()).collect();
        let length = match blow {
            Blow::Kill | Blow::Restart => String::new(),
            Blow::Pause(length) | Blow::Down(length) => format!(" for {:.1} s", length.as_secs_f64()),
        };
        self.book.say(&format!("  {}{length}: {name} ({kind}, pid {})", blow.name(), pids.join(", ")));
        self.book.count(blow, kind, victims.len());
        match blow {
            Blow::Restart => {
                // A parent that is asked to end asks its worker.
                send(&victims[..1], Signal::TERM);
                None
            }
            Blow::Pause(length) => {
                send(&victims, Signal::STOP);
                self.stopped.extend(&victims);
                Some((length, Act::Resume(name, victims)))
            }
            Blow::Down(length) if kind == Kind::Worker => {
                // Its parent would start the next one: stopped, it reports the death late instead.
                let parent: Vec<Process> = main.into_iter().collect();
                send(&parent, Signal::STOP);
                self.stopped.extend(&parent);
                send(&victims, Signal::KILL);
                Some((length, Act::Resume(name, parent)))
            }
            Blow::Kill | Blow::Down(_) => {
                let down = match blow {
                    Blow::Down(length) => Some(length),
                    Blow::Kill | Blow::Restart | Blow::Pause(_) => None,
                };
                if down.is_some() {
                    self.cluster.hold(&name);
                    self.held.push(name.clone());
                }
                send(&victims, Signal::KILL);
                let orphan = worker.filter(|_| kind == Kind::Parent);
                self.orphans.extend(orphan);
                match (down, orphan) {
                    (Some(length), _) => Some((length, Act::Release(name))),
                    (None, Some(worker)) => {
                        let life = self.random.range(0..ORPHAN_LIFE_MAX.as_millis() as u64);
                        Some((Duration::from_millis(life), Act::EndOrphan(name, worker)))
                    }
                    (None, None) => None,
                }
            }
        }
    }

    fn other_chunk_servers_run(&self, name: &str) -> bool {
        let names = (0..self.shape.chunk_servers).map(|place| Kind::ChunkServer.process(place));
        names
            .filter(|other| other != name)
            .all(|other| named(&self.cluster, &other).is_some_and(|process| !process.is_stopped))
    }

    /// Wakes whoever is stopped, lets everyone start, ends orphans. Twice is as good as once.
    pub fn bring_back(&mut self) {
        send(&std::mem::take(&mut self.stopped), Signal::CONT);
        self.held.drain(..).for_each(|name| self.cluster.release(&name));
        for orphan in self.orphans.drain(..) {
            self.book.kills += u64::from(orphan.signal(Signal::KILL));
        }
    }

    /// Waits until everything is served; an error if that takes longer than [`SERVES_AGAIN_MAX`].
    pub async fn serve_again(&mut self) -> Result<Duration> {
        let begun = self.env.clock.now();
        let round = probe(&self.env, &self.table, FAMILY, keys(&self.splits, "!round"), begun, SERVES_AGAIN_MAX).await;
        let left = SERVES_AGAIN_MAX.saturating_sub(self.env.clock.since(begun));
        let whole = async {
            while self.what_is_missing().await.is_some() {
                self.env.clock.sleep(POLL).await;
            }
        };
        let is_whole = self.env.clock.timeout(left, whole).await.is_ok();
        while let Some(event) = self.cluster.event().now_or_never() {
            note(&mut self.book, &event);
        }
        if let Some(key) = round.out.first() {
            let missing = self.what_is_missing().await.unwrap_or_else(|| "the master sees nothing missing".to_owned());
            bail!(
                "{} of {} key ranges are not served within {SERVES_AGAIN_MAX:?}, the first at {key:?}; {missing}",
                round.out.len(),
                self.splits.len() + 1
            );
        }
        if !is_whole && let Some(missing) = self.what_is_missing().await {
            bail!("the cluster is not whole within {SERVES_AGAIN_MAX:?}: {missing}");
        }
        Ok(self.env.clock.since(begun))
    }

    /// What keeps the cluster from being whole, in words.
    async fn what_is_missing(&self) -> Option<String> {
        let masters = self.cluster.masters();
        let (servers, tablets) =
            match (fetch_servers(&self.env, &masters).await, fetch_tablets(&self.env, &masters).await) {
                (Ok(servers), Ok(tablets)) => (servers, tablets),
                (Err(error), _) | (_, Err(error)) => return Some(format!("{error:#}")),
            };
        let live = servers.iter().filter(|server| server.state == "live").count();
        let closed: Vec<String> = tablets
            .iter()
            .filter(|tablet| tablet.state != "open")
            .map(|tablet| format!("tablet {} is {} on server {}", tablet.tablet_id, tablet.state, tablet.server_id))
            .collect();
        let dead: Vec<String> = self.cluster.processes().into_iter().map(|process| process.name).collect();
        let dead: Vec<String> = dead.into_iter().filter(|name| named(&self.cluster, name).is_none()).collect();
        let is_whole = live >= self.shape.tablet_servers && closed.is_empty() && dead.is_empty();
        (!is_whole).then(|| {
            format!("{live} of {} tablet servers live; {closed:?}; not running {dead:?}", self.shape.tablet_servers)
        })
    }

    /// Keeps what the master tells beside the data, for whoever looks into it.
    pub async fn keep_status(&self) {
        let Ok(client) = Client::connect(&self.env, &self.cluster.masters()) else { return };
        for path in STATUS_PATHS {
            let (file, told) = (self.cluster.dir().join(format!("{path}.json")), client.status(path).await);
            let text = told.unwrap_or_else(|error| Bytes::from(error.to_string()));
            // The verdict stands without it.
            let _ = self.env.disk.replace(&file, text).await;
        }
    }
}

async fn prepare(env: &Env, cluster: &LocalCluster, splits: &[Bytes], is_quiet: bool) -> Result<(Table, Book)> {
    let book = Book::open(&env.clock, cluster.dir(), is_quiet)?;
    let client = Client::connect(env, &cluster.masters())?;
    client.create_table(TABLE, &[FamilySpec::new(FAMILY)], splits).await.context("cannot create the drill's table")?;
    Ok((client.table(TABLE).await?, book))
}

/// Whoever is gone meanwhile gets none.
fn send(processes: &[Process], what: Signal) {
    for process in processes {
        process.signal(what);
    }
}

/// A key in each range that no node has.
fn keys(splits: &[Bytes], end: &str) -> Vec<Bytes> {
    let starts = std::iter::once(&b""[..]).chain(splits.iter().map(|split| &split[..]));
    starts.map(|start| Bytes::from([start, end.as_bytes()].concat())).collect()
}

fn note(book: &mut Book, event: &ClusterEvent) {
    let text = match event {
        ClusterEvent::Died { name, pid, how } => format!("    {name}: pid {pid} {how}"),
        ClusterEvent::Restarted { name, pid } => format!("    {name}: started again as pid {pid}"),
        ClusterEvent::Failed { name, error } => format!("    {name}: does not start: {error}"),
    };
    book.say(&text);
}
