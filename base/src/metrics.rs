//! The metrics registry. Names are `uruk_<crate>_<noun>_<unit>`; labels never carry row keys.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::encoding::text::encode;
pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::gauge::Gauge;
pub use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};

/// Handle on one process's metrics.
#[derive(Clone)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Metrics {
    /// An empty registry.
    pub fn new() -> Metrics {
        Metrics(Arc::new(Mutex::new(Registry::default())))
    }

    /// Registers a clone of `metric` under `name` and returns it. `help` is one sentence.
    pub fn register<M: Metric + Clone>(&self, name: &str, help: &str, metric: M) -> M {
        // The encoder ends the help with a full stop of its own.
        let help = help.strip_suffix('.').unwrap_or(help);
        self.0.lock().register(name, help, metric.clone());
        metric
    }

    /// All metrics as Prometheus text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.0.lock()).expect("writing to a String cannot fail");
        text
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registered_counter_is_shown() {
        let metrics = Metrics::new();
        let appends: Counter = metrics.register("uruk_base_appends", "Appends so far.", Counter::default());
        appends.inc();
        assert!(metrics.encode().contains("uruk_base_appends_total 1"));
        assert!(metrics.encode().contains("# HELP uruk_base_appends Appends so far.\n"), "{}", metrics.encode());
    }
}
