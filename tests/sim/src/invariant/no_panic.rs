//! Nothing panics.
//!
//! Why: a panic is a broken invariant inside the code. A process that dies of one comes back, so
//! nothing else would show it. One kind is meant: a member of a Raft group whose disk is full ends its process, so
//! that another one leads.

/// Its name in reports.
pub const NAME: &str = "no-panic";

/// Tells `report` of the first panic of this process, whichever task it is in.
pub fn watch(report: impl Fn(String) + Send + Sync + 'static) {
    std::panic::set_hook(Box::new(move |panic| {
        let panic = panic.to_string();
        if !is_meant(&panic) {
            report(panic);
        }
    }));
}

fn is_meant(panic: &str) -> bool {
    panic.contains("consensus/src/engine_watch.rs") && panic.contains(": no storage space")
}
