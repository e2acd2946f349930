//! The trace of a run: every event that Uruk's code and the simulated network emit, with simulated
//! time, hashed in order.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Events kept for the report of a violation.
const LAST_EVENTS_MAX: usize = 60;

/// Handle on the trace of this process's run.
#[derive(Clone)]
pub struct Trace(Arc<Mutex<State>>);

struct State {
    events: u64,
    hash: u64,
    last: VecDeque<String>,
    print: bool,
}

/// A whole trace in two numbers.
pub struct Summary {
    /// How many events.
    pub events: u64,
    /// FNV-1a over all lines, as hex.
    pub hash: String,
}

/// Starts recording; `print` also prints each event.
pub fn record(print: bool) -> Trace {
    let state = State { events: 0, hash: 0xcbf2_9ce4_8422_2325, last: VecDeque::new(), print };
    let trace = Trace(Arc::new(Mutex::new(state)));
    let ours = Targets::new()
        .with_target("uruk", tracing::Level::DEBUG)
        .with_target("uruk_base", tracing::Level::DEBUG)
        .with_target("uruk_consensus", tracing::Level::DEBUG)
        .with_target("uruk_dfs_sim", tracing::Level::DEBUG)
        .with_target("uruk_master", tracing::Level::DEBUG)
        .with_target("uruk_tabletserver", tracing::Level::DEBUG)
        .with_target("uruk_client", tracing::Level::DEBUG)
        .with_target("uruk_sim", tracing::Level::DEBUG)
        .with_target("turmoil", tracing::Level::TRACE);
    tracing_subscriber::registry().with(trace.clone().with_filter(ours)).init();
    trace
}

impl Trace {
    /// What has been recorded so far.
    pub fn summary(&self) -> Summary {
        let state = self.0.lock();
        Summary { events: state.events, hash: format!("{:016x}", state.hash) }
    }

    /// The newest events, oldest first.
    pub fn last_events(&self) -> Vec<String> {
        self.0.lock().last.iter().cloned().collect()
    }
}

impl<S: tracing::Subscriber> Layer<S> for Trace {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut line = String::new();
        let at = turmoil::sim_elapsed().unwrap_or_default();
        let _ = write!(line, "{:>10.6} {} {}", at.as_secs_f64(), event.metadata().level(), event.metadata().target());
        event.record(&mut Fields(&mut line));
        let mut state = self.0.lock();
        state.events += 1;
        for byte in line.bytes() {
            state.hash = (state.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        // The network's own events decide the hash, but nobody reads them.
        if event.metadata().target().starts_with("turmoil") {
            return;
        }
        if state.print {
            println!("{line}");
        }
        if state.last.len() == LAST_EVENTS_MAX {
            state.last.pop_front();
        }
        state.last.push_back(line);
    }
}

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}
