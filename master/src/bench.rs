//! The master measured alone: the production master on a real folder, with synthetic tablet servers in this process.
//!
//! | part | is |
//! |---|---|
//! | master | [`Master::start`] as `uruk master` does it: Raft log, snapshots, driver, planner, RPC services |
//! | tablet servers | [`fleet`]: real RPCs over loopback; they renew, report loads, open what they are told at once |
//! | storage | no files; logs that seal at once and hold no records |
//! | fill | through the log: tables are created, planned, ordered, opened; each tablet then commits its files |
//!
//! So a figure has all that the master does, and nothing of what a tablet server does beside its RPCs. Memory is of the
//! whole process, the synthetic servers included.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use object_store::memory::InMemory;
use serde::{Deserialize, Serialize};
use uruk_base::{Env, Moment};
use uruk_proto::RpcError;

use crate::config::{MasterConfig, Tuning};
use crate::error::StartError;
use crate::master::Master;
use crate::shared::Storage;
use crate::status::NoHealth;

mod figures;
mod fill;
mod fleet;
mod logs;

use fleet::Fleet;
use logs::EmptyLogs;

/// Whatever the bench waits for must have come by then.
const PATIENCE: Duration = Duration::from_secs(600);
/// The bench looks so often whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What to measure.
#[derive(Clone, Debug)]
pub struct MasterBench {
    /// Must be empty or not exist.
    pub folder: PathBuf,
    /// In all.
    pub tablets: u64,
    /// At least 3.
    pub servers: u32,
    /// References to files in each tablet's row.
    pub files: u32,
    /// Tablets of one table.
    pub table_tablets: u64,
    /// Of the tablet servers.
    pub lease_ms: u32,
    /// How long look-ups are made.
    pub locate_for: Duration,
}

/// What was measured.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    /// As it was asked for.
    pub tablets: u64,
    /// As it was asked for.
    pub servers: u32,
    /// As it was asked for.
    pub files: u32,
    /// Until every tablet was open.
    pub open_ms: u64,
    /// Until every tablet had its files, from then.
    pub files_ms: u64,
    /// Resident memory of the process, filled and at rest.
    pub steady_bytes: u64,
    /// The same, at the most while it was filled.
    pub fill_peak_bytes: u64,
    /// The same, at the most in all.
    pub peak_bytes: u64,
    /// Look-ups of one tablet at random keys, in one task, without the network.
    pub locate_per_s: f64,
    /// The same over the network, several at a time; the callers are in this process, too.
    pub locate_rpc_per_s: f64,
    /// CPU time that the process takes with nothing but renewals, in thousandths of a core.
    pub idle_cpu_permille: u64,
    /// Renewals while at rest, as their senders see them: half of them are faster.
    pub renewal_p50_us: u64,
    /// 99 of 100 are faster.
    pub renewal_p99_us: u64,
    /// The slowest.
    pub renewal_max_us: u64,
    /// One look of the planner with nothing to do.
    pub plan_us: u64,
    /// One balancing decision.
    pub decide_ms: f64,
    /// Moves that it found.
    pub moves: usize,
    /// The slowest renewal while decisions were made.
    pub decide_renewal_max_us: u64,
    /// Tablets of each server that died.
    pub reassigned: u64,
    /// From the report of a death until all its tablets are open again: the median.
    pub reassign_ms: f64,
    /// The longest.
    pub reassign_max_ms: f64,
    /// The state as a snapshot.
    pub snapshot_bytes: u64,
    /// For so long commands wait for it.
    pub capture_ms: f64,
    /// Making one, without writing it.
    pub snapshot_ms: f64,
    /// From the start until the services answer.
    pub restart_open_ms: f64,
    /// Until it leads.
    pub restart_lead_ms: f64,
    /// Until the first tablet that was waiting is ordered to be opened.
    pub restart_assign_ms: f64,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The settings or the folder.
    #[error("the master does not start: {0}")]
    Start(#[from] StartError),
    /// A call was not done.
    #[error("the master refuses: {0}")]
    Rpc(#[from] RpcError),
    /// The synthetic servers have no port.
    #[error("cannot listen: {0}")]
    Listen(std::io::Error),
    /// This did not come to pass.
    #[error("in vain: {0}")]
    InVain(&'static str),
    /// A bug.
    #[error("task {0} panicked")]
    Panicked(&'static str),
}

/// Measures; `progress` is told what is under way.
pub async fn run(env: &Env, options: &MasterBench, progress: &dyn Fn(&str)) -> Result<Figures, BenchError> {
    let mut bench = Bench::start(env, options, progress).await?;
    let measured = bench.measure().await;
    bench.stop().await?;
    measured
}

/// The parts of a run.
struct Bench<'a> {
    env: Env,
    options: &'a MasterBench,
    progress: &'a dyn Fn(&str),
    logs: Arc<EmptyLogs>,
    storage: Storage,
    address: String,
    master: Option<Master>,
    fleet: Fleet,
    figures: Figures,
}

impl<'a> Bench<'a> {
    async fn start(env: &Env, options: &'a MasterBench, progress: &'a dyn Fn(&str)) -> Result<Bench<'a>, BenchError> {
        let env = env.with_tasks(env.tasks.child());
        let logs = Arc::new(EmptyLogs::default());
        let storage = Storage { objects: Arc::new(InMemory::new()), logs: logs.clone() };
        let mut bench = Bench {
            fleet: Fleet::listen(&env).await?,
            env,
            options,
            progress,
            logs,
            storage,
            address: "127.0.0.1:0".to_owned(),
            master: None,
            figures: Figures { tablets: options.tablets, servers: options.servers, ..Figures::default() },
        };
        bench.figures.files = options.files;
        bench.start_master().await?;
        bench.until("the master leads", |bench| bench.master().is_leader()).await?;
        bench.fleet.register(options.servers, &bench.address, bench.tuning().renewal_ms).await?;
        Ok(bench)
    }

    /// The defaults, but for what would disturb: nothing is reshaped while it is measured.
    fn tuning(&self) -> Tuning {
        Tuning {
            lease_ms: self.options.lease_ms,
            table_tablets_max: usize::try_from(self.options.table_tablets).unwrap_or(usize::MAX),
            table_deadline_ms: PATIENCE.as_millis() as u64,
            // What it would do is decided all the same, but not begun.
            auto_balance: false,
            auto_split: false,
            auto_merge: false,
            // There are no files to be found.
            check_every_ms: 3_600_000,
            ..Tuning::default()
        }
    }

    async fn start_master(&mut self) -> Result<(), BenchError> {
        let mut config = MasterConfig::new(self.options.folder.clone(), self.address.clone());
        config.tuning = self.tuning();
        let master = Master::start(&self.env, config, self.storage.clone(), Arc::new(NoHealth)).await?;
        self.address = master.address().to_owned();
        self.master = Some(master);
        Ok(())
    }

    async fn stop_master(&mut self) -> Result<(), BenchError> {
        match self.master.take() {
            Some(master) => master.shutdown().await.map_err(|error| BenchError::Panicked(error.0)),
            None => Ok(()),
        }
    }

    async fn stop(mut self) -> Result<(), BenchError> {
        self.stop_master().await?;
        self.env.tasks.shutdown().await.map_err(|error| BenchError::Panicked(error.0))
    }

    fn master(&self) -> &Master {
        self.master.as_ref().expect("it runs but for the restart")
    }

    /// Waits until it holds.
    async fn until(&self, what: &'static str, holds: impl Fn(&Bench<'_>) -> bool) -> Result<(), BenchError> {
        let began = self.env.clock.now();
        while !holds(self) {
            if self.env.clock.since(began) > PATIENCE {
                return Err(BenchError::InVain(what));
            }
            if self.fleet.members.is_broken.load(Ordering::Relaxed) {
                return Err(BenchError::InVain("every server keeps its lease"));
            }
            self.env.clock.sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    fn ms_since(&self, began: Moment) -> f64 {
        self.env.clock.since(began).as_secs_f64() * 1_000.0
    }

    fn tell(&self, what: impl AsRef<str>) {
        (self.progress)(what.as_ref());
    }
}
