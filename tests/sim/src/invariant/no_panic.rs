//! Nothing panics.
//!
//! Why: a panic is a broken invariant inside the code. A process that dies of one comes back, so
//! nothing else would show it.

/// Its name in reports.
pub const NAME: &str = "no-panic";

/// Tells `report` of the first panic of this process, whichever task it is in.
pub fn watch(report: impl Fn(String) + Send + Sync + 'static) {
    std::panic::set_hook(Box::new(move |panic| report(panic.to_string())));
}
