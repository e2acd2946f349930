//! Named tasks, joined at shutdown. Nothing in Uruk runs detached.
//!
//! Invariants: (1) after [`Tasks::shutdown`] has returned, no task of the group runs; (2) a task that
//! panics shuts its whole group down, since a half-dead process serves nobody.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

mod pause;

pub use pause::{Gated, Pause};

/// Handle on a group of tasks. Clones mean the same group.
#[derive(Clone, Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
    panicked: Arc<Mutex<Option<&'static str>>>,
    blocking: Blocking,
    /// Set in simulation, where a process may be paused.
    pause: Option<Pause>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blocking {
    /// On tokio's blocking threads.
    Threads,
    /// On the caller, as simulation needs: threads would break the replay of a seed.
    Inline,
}

impl Tasks {
    /// A group whose blocking work runs on threads.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Tasks {
        Tasks::with_blocking(Blocking::Threads)
    }

    /// A group that uses no thread but the caller's, for simulation.
    pub fn simulated() -> Tasks {
        Tasks::with_blocking(Blocking::Inline)
    }

    /// Like [`Tasks::simulated`], for a process that `pause` may stop.
    pub fn pausable(pause: Pause) -> Tasks {
        Tasks { pause: Some(pause), ..Tasks::simulated() }
    }

    fn with_blocking(blocking: Blocking) -> Tasks {
        Tasks {
            tracker: TaskTracker::new(),
            token: CancellationToken::new(),
            panicked: Arc::default(),
            blocking,
            pause: None,
        }
    }

    /// A group of its own that ends with this one (its tasks still have to be joined by it, or by
    /// its own [`Tasks::shutdown`]).
    pub fn child(&self) -> Tasks {
        Tasks {
            tracker: TaskTracker::new(),
            token: self.token.child_token(),
            panicked: Arc::default(),
            blocking: self.blocking,
            pause: self.pause.clone(),
        }
    }

    /// Runs `future` until it ends or the group shuts down; at shutdown it is dropped at its next
    /// await, so it must be safe to stop anywhere.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        let token = self.token.clone();
        self.spawn_to_end(name, async move {
            tokio::select! {
                biased;
                () = token.cancelled() => {}
                () = future => {}
            }
        });
    }

    /// Runs `future` to its end; shutdown waits for it. It watches [`Tasks::cancelled`] itself.
    #[allow(clippy::disallowed_methods)] // this is the one place that spawns
    pub fn spawn_to_end(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        let group = self.clone();
        let task = async move {
            if AssertUnwindSafe(future).catch_unwind().await.is_err() {
                tracing::error!(task = name, "task panicked; shutting down");
                group.panicked.lock().get_or_insert(name);
                group.token.cancel();
            }
        };
        match &self.pause {
            Some(pause) => self.tracker.spawn(pause.gate(task)),
            None => self.tracker.spawn(task),
        };
    }

    /// Ends the process by a panic, for a reason that lies outside of it. Where processes are simulated only this
    /// group ends, as if one of its tasks had panicked: a panic ends all of them in builds that abort.
    ///
    /// # Panics
    /// Outside of simulations, always.
    pub fn fail(&self, task: &'static str, why: &str) {
        assert!(self.pause.is_some(), "{task}: {why}");
        tracing::error!(task, why, "task failed; shutting down");
        self.panicked.lock().get_or_insert(task);
        self.token.cancel();
    }

    /// Runs `work` where blocking is allowed, and returns its result.
    ///
    /// In simulation it runs inline. A panic in `work` is resumed here.
    #[allow(clippy::disallowed_methods)]
    pub async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self.blocking {
            Blocking::Inline => work(),
            Blocking::Threads => match tokio::task::spawn_blocking(work).await {
                Ok(output) => output,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => unreachable!("blocking work is never cancelled"),
            },
        }
    }

    /// Completes when the group has been asked to shut down.
    pub async fn cancelled(&self) {
        self.token.cancelled().await;
    }

    /// Whether the group has been asked to shut down.
    pub fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Asks all tasks to end, without waiting.
    pub fn cancel(&self) {
        self.token.cancel();
    }

    /// Asks all tasks to end and waits for them. Returns the name of the first task that panicked.
    pub async fn shutdown(&self) -> Result<(), TaskPanicked> {
        self.token.cancel();
        self.tracker.close();
        self.tracker.wait().await;
        match *self.panicked.lock() {
            Some(name) => Err(TaskPanicked(name)),
            None => Ok(()),
        }
    }
}

/// A task of the group panicked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("task {0} panicked")]
pub struct TaskPanicked(pub &'static str);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failed_task_ends_its_simulated_process_without_a_panic() {
        let tasks = Tasks::pausable(Pause::new());
        tasks.fail("writer", "no room");
        assert!(tasks.is_cancelled());
        assert_eq!(tasks.shutdown().await, Err(TaskPanicked("writer")));
    }

    #[test]
    #[should_panic(expected = "writer: no room")]
    fn a_failed_task_panics_outside_of_simulations() {
        Tasks::new().fail("writer", "no room");
    }

    #[tokio::test]
    async fn shutdown_joins_every_task() {
        let tasks = Tasks::new();
        let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
        tasks.spawn("holds a sender", async move {
            let _sender = sender;
            std::future::pending().await
        });
        tasks.shutdown().await.expect("no panic");
        assert!(receiver.await.is_err(), "the task was dropped");
    }

    #[tokio::test]
    async fn a_panic_ends_the_group_and_is_named() {
        let tasks = Tasks::new();
        tasks.spawn("breaks", async { panic!("on purpose") });
        tasks.cancelled().await;
        assert_eq!(tasks.shutdown().await, Err(TaskPanicked("breaks")));
    }

    #[tokio::test]
    async fn a_child_ends_with_its_parent() {
        let parent = Tasks::new();
        let child = parent.child();
        parent.cancel();
        assert!(child.is_cancelled());
    }
}
