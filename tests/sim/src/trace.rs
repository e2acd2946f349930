//! The trace of a run: every event that Uruk's code emits, with simulated time, hashed in order, and of
//! the simulated network every event's kind and time.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterFn, filter_fn};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// Events kept for the report of a violation.
const LAST_EVENTS_MAX: usize = 80;

/// Simulated time, for events between two steps of it.
static OUTSIDE_MICROS: AtomicU64 = AtomicU64::new(0);

/// Events from now on, unless they happen inside of a simulated process, are at this time.
pub fn set_time_outside(at: Duration) {
    OUTSIDE_MICROS.store(at.as_micros() as u64, Ordering::Relaxed);
}

/// Handle on the trace of this process's run.
#[derive(Clone)]
pub struct Trace(Arc<Mutex<State>>);

struct State {
    events: u64,
    hash: u64,
    last: VecDeque<String>,
    line: String,
    print: bool,
}

/// A whole trace in two numbers.
#[derive(Clone, Debug)]
pub struct Summary {
    /// How many events.
    pub events: u64,
    /// FNV-1a over all lines, as hex.
    pub hash: String,
}

/// Starts recording; `print` also prints each event, with the host that it happened on.
pub fn record(print: bool) -> Trace {
    let state = State { events: 0, hash: FNV_START, last: VecDeque::new(), line: String::new(), print };
    let trace = Trace(Arc::new(Mutex::new(state)));
    tracing_subscriber::registry().with(trace.clone().with_filter(wanted(print))).init();
    trace
}

/// Our events down to DEBUG, the network's down to TRACE. Spans name the host and are for printing alone.
fn wanted(print: bool) -> FilterFn<impl Fn(&tracing::Metadata<'_>) -> bool> {
    filter_fn(move |metadata| {
        if metadata.is_span() {
            return print && metadata.target().starts_with("turmoil");
        }
        let target = metadata.target();
        target.starts_with("turmoil") || target.starts_with("uruk") && *metadata.level() <= tracing::Level::DEBUG
    })
}

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

impl Trace {
    /// What has been recorded so far.
    pub fn summary(&self) -> Summary {
        let state = self.0.lock();
        Summary { events: state.events, hash: format!("{:016x}", state.hash) }
    }

    /// The newest events, oldest first; none when an event is being recorded just now.
    pub fn last_events(&self) -> Vec<String> {
        self.0.try_lock().map(|state| state.last.iter().cloned().collect()).unwrap_or_default()
    }
}

/// The name of the host whose turn it is.
struct HostName(String);

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Trace {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut name = String::new();
        attributes.record(&mut Fields(&mut name));
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(HostName(name.trim_start_matches(" name=").trim_matches('"').to_owned()));
        }
    }

    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        let outside = || Duration::from_micros(OUTSIDE_MICROS.load(Ordering::Relaxed));
        let at = turmoil::sim_elapsed().unwrap_or_else(outside);
        let mut state = self.0.lock();
        let state = &mut *state;
        state.events += 1;
        // The network's own events decide the hash, but nobody reads them.
        if metadata.target().starts_with("turmoil") {
            state.hash = fnv(state.hash, &at.as_micros().to_le_bytes());
            state.hash = fnv(state.hash, &metadata.line().unwrap_or(0).to_le_bytes());
            return;
        }
        state.line.clear();
        let _ = write!(state.line, "{:>10.6} {} {}", at.as_secs_f64(), metadata.level(), metadata.target());
        event.record(&mut Fields(&mut state.line));
        state.hash = fnv(state.hash, state.line.as_bytes());
        if state.print {
            let host = context
                .event_scope(event)
                .and_then(|mut scope| scope.find_map(|span| Some(span.extensions().get::<HostName>()?.0.clone())));
            println!("[{:<12}] {}", host.as_deref().unwrap_or("-"), state.line);
        }
        if state.last.len() == LAST_EVENTS_MAX {
            state.last.pop_front();
        }
        state.last.push_back(state.line.clone());
    }
}

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}
