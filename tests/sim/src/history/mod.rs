//! The history of a run: every operation of every client, when it was called and how it ended.
//!
//! Times are true simulated time, which no process of the cluster knows. (1) Entries are only
//! appended, in the order of their calls; (2) an operation that has not ended counts as unknown.

mod op;

use std::fmt;
use std::time::Duration;

use parking_lot::Mutex;

pub use op::*;

/// Entries shown around the one that matters, of those that concern the same row.
const SHOWN_AROUND: usize = 20;

/// Names an operation: its place in the history.
pub type OpId = usize;

/// How an operation ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// It is done.
    Done(Told),
    /// It had no effect, and will have none.
    NotDone(String),
    /// It may have had its effect, or may still have it.
    Unknown(String),
}

/// An operation and its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its place in the history.
    pub id: OpId,
    /// Who calls: one client has one operation at a time, apart from the rows of a batch.
    pub client: u64,
    /// What the client works at.
    pub workload: &'static str,
    /// The call.
    pub start: Duration,
    /// The answer; none while there is none.
    pub end: Option<Duration>,
    /// What is asked.
    pub op: Op,
    /// What is answered.
    pub ended: Ended,
}

impl Entry {
    /// What a done operation was told.
    pub fn told(&self) -> Option<&Told> {
        match &self.ended {
            Ended::Done(told) => Some(told),
            Ended::NotDone(_) | Ended::Unknown(_) => None,
        }
    }

    /// Whether it is done.
    pub fn is_done(&self) -> bool {
        self.told().is_some()
    }

    /// Whether it may have had its effect.
    pub fn may_be_done(&self) -> bool {
        !matches!(self.ended, Ended::NotDone(_))
    }

    /// When it ended; the end of time if it has not.
    pub fn end(&self) -> Duration {
        self.end.unwrap_or(Duration::MAX)
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = self.start.as_secs_f64();
        match self.end {
            Some(end) => write!(f, "[{start:.6} .. {:.6}]", end.as_secs_f64())?,
            None => write!(f, "[{start:.6} ..         ]")?,
        }
        write!(f, " #{} {}-{}: {} -> ", self.id, self.workload, self.client, self.op)?;
        match &self.ended {
            Ended::Done(told) => write!(f, "{told}"),
            Ended::NotDone(why) => write!(f, "NOT DONE: {why}"),
            Ended::Unknown(why) => write!(f, "UNKNOWN: {why}"),
        }
    }
}

/// All operations of a run.
#[derive(Debug, Default)]
pub struct History {
    entries: Mutex<Vec<Entry>>,
}

impl History {
    /// A call begins now.
    pub fn begin(&self, workload: &'static str, client: u64, op: Op) -> OpId {
        self.begin_at(now(), workload, client, op)
    }

    /// It ends now.
    pub fn end(&self, id: OpId, ended: Ended) {
        self.end_at(now(), id, ended);
    }

    /// A call begins at a given time.
    pub fn begin_at(&self, start: Duration, workload: &'static str, client: u64, op: Op) -> OpId {
        let mut entries = self.entries.lock();
        let id = entries.len();
        let ended = Ended::Unknown("not ended".to_owned());
        entries.push(Entry { id, client, workload, start, end: None, op, ended });
        id
    }

    /// It ends at a given time.
    pub fn end_at(&self, end: Duration, id: OpId, ended: Ended) {
        let mut entries = self.entries.lock();
        let entry = &mut entries[id];
        assert!(entry.end.is_none(), "an operation ends once: {entry}");
        entry.end = Some(end);
        entry.ended = ended;
    }

    /// How many operations there are.
    pub fn len(&self) -> usize {
        self.entries.lock().len()
    }

    /// Looks at all operations.
    pub fn with<T>(&self, look: impl FnOnce(&[Entry]) -> T) -> T {
        look(&self.entries.lock())
    }
}

/// True simulated time.
pub fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

/// The operations on the same row (or table, or of the same workload) as `about`, around it in time.
pub fn around(entries: &[Entry], about: OpId) -> Vec<String> {
    let Some(center) = entries.get(about) else { return Vec::new() };
    let concerns = |entry: &&Entry| match (center.op.row(), center.op.table()) {
        (Some(row), _) => touches(entry, row),
        (None, Some(table)) => entry.op.table() == Some(table) || entry.op == Op::ListTables,
        (None, None) => entry.id == about || entry.workload == center.workload,
    };
    let before = entries[..about].iter().rev().filter(concerns).take(SHOWN_AROUND);
    let mut shown: Vec<&Entry> = before.collect();
    shown.reverse();
    shown.extend(entries[about..].iter().filter(concerns).take(SHOWN_AROUND + 1));
    shown.into_iter().map(Entry::to_string).collect()
}

fn touches(entry: &Entry, row: &RowId) -> bool {
    match &entry.op {
        Op::Scan { shape } => {
            shape.table == row.table
                && row.key >= shape.start
                && (shape.end.is_empty() || row.key < shape.end)
                && entry.is_done()
        }
        other => other.row() == Some(row),
    }
}
