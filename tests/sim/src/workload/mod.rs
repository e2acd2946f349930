//! What clients do while faults happen.
//!
//! Each workload is a few clients that work one operation after the other, with pauses, until the run
//! stops. What they draw comes from the environment's randomness; what they do and are told goes to
//! the history ([`caller`]); what rows look like is in [`layout`].

mod batches;
mod caller;
mod ingest;
mod layout;
mod linked_list;
mod rows;
mod scans;
mod shape;
mod tables;
mod verify;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use uruk_base::Env;
use uruk_proto::TabletId;

use crate::check::{self, FINAL, Violation};
use crate::history::{History, Token};
use caller::Caller;
pub use shape::Reshaping;

/// Where a run stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Phase {
    /// Faults happen.
    Faults,
    /// No more faults; the load goes on.
    Healed,
    /// Workloads end.
    Stop,
}

/// What all clients of a run share.
pub struct Shared {
    /// Every operation.
    pub history: History,
    phase: Mutex<Phase>,
    tokens: AtomicU64,
    clients: AtomicU64,
    asked: Mutex<VecDeque<(TabletId, Reshaping)>>,
    /// Pauses are multiplied by this.
    pub pace: f64,
}

impl Shared {
    /// For a run whose workloads' pauses are multiplied by `pace`.
    pub fn new(pace: f64) -> Arc<Shared> {
        Arc::new(Shared {
            history: History::default(),
            phase: Mutex::new(Phase::Faults),
            tokens: AtomicU64::new(0),
            clients: AtomicU64::new(0),
            asked: Mutex::default(),
            pace,
        })
    }

    /// Where the run stands.
    pub fn phase(&self) -> Phase {
        *self.phase.lock()
    }

    /// Tells the workloads.
    pub fn set_phase(&self, phase: Phase) {
        *self.phase.lock() = phase;
    }

    /// A token that no other write carries.
    pub fn token(&self) -> Token {
        self.tokens.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The newest of them; zero if there is none.
    pub fn last_token(&self) -> Token {
        self.tokens.load(Ordering::Relaxed)
    }

    /// Asks the workload for a tablet of another shape.
    pub fn ask(&self, tablet: TabletId, work: Reshaping) {
        self.asked.lock().push_back((tablet, work));
    }

    /// What was asked for next.
    pub fn take_asked(&self) -> Option<(TabletId, Reshaping)> {
        self.asked.lock().pop_front()
    }

    /// A number that no other client has.
    pub fn client(&self) -> u64 {
        self.clients.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// A kind of load.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Workload {
    /// Single-row operations of every kind on few hot rows.
    Rows,
    /// Batches over many tablets.
    Batches,
    /// Scans of every shape.
    Scans,
    /// Tables made and deleted.
    Tables,
    /// The Big Linked List.
    LinkedList,
    /// Sequential ingest in bursts.
    Ingest,
    /// Splits, merges, moves, drains.
    Shape,
}

impl Workload {
    /// Those that write and read.
    pub const ALL: [Workload; 6] =
        [Workload::Rows, Workload::Batches, Workload::Scans, Workload::Tables, Workload::LinkedList, Workload::Ingest];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Workload::Rows => "rows",
            Workload::Batches => "batches",
            Workload::Scans => "scans",
            Workload::Tables => "tables",
            Workload::LinkedList => "linked-list",
            Workload::Ingest => "ingest",
            Workload::Shape => "shape",
        }
    }
}

/// Works until the run stops. Calls that fail are outcomes in the history.
///
/// # Errors
/// What no fault can explain: bad arguments, an answer that breaks the protocol.
pub async fn run(workload: Workload, env: &Env, masters: &[String], shared: &Arc<Shared>) -> anyhow::Result<()> {
    let caller = || Caller::new(env, masters, shared, workload.name());
    match workload {
        Workload::Rows => rows::run(caller).await,
        Workload::Batches => batches::run(&caller()?).await,
        Workload::Scans => scans::run(caller).await,
        Workload::Tables => tables::run(caller).await,
        Workload::LinkedList => linked_list::run(&caller()?).await,
        Workload::Ingest => ingest::run(&caller()?).await,
        Workload::Shape => shape::run(caller).await,
    }
}

/// Reads everything back once all is healed and no workload runs any more.
///
/// # Errors
/// Something cannot be read within the bound.
pub async fn verify(env: &Env, masters: &[String], shared: &Arc<Shared>) -> anyhow::Result<()> {
    verify::run(&Caller::new(env, masters, shared, FINAL)?).await
}

/// What is wrong with the history.
pub fn violations(shared: &Shared) -> Vec<Violation> {
    shared.history.with(check::check)
}
