//! The watching parent: runs the worker as its child and reports the child's death to the masters.
//!
//! The parent holds no state and serves nothing. Each launch has a nonce that registration binds to
//! one incarnation, and the report of death names it, so that a late report cannot hit a successor.
//! Only an end that `waitpid` has told is reported; a stopped child is not dead.
//!
//! A worker whose parent dies ends as planned: nobody would report its death any more, and it must not
//! hold the port against a new start. It learns of it by the end of a pipe, its [`Lifeline`]. Killed with its
//! parent, it dies unreported, and the masters wait for its lease to run out.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsRawFd, RawFd};
use std::process::ExitStatus;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use uruk_base::{Env, Moment};
use uruk_proto::master::ReportDeathRequest;

use super::masters::{Client, Masters};

/// Shortest pause before a new worker is started.
const RESTART_DELAY_MIN: Duration = Duration::from_millis(50);
/// Longest pause before a new worker is started, when one after the other ends early.
const RESTART_DELAY_MAX: Duration = Duration::from_secs(5);
/// A worker that ran for this long did not fail to start.
const STEADY: Duration = Duration::from_secs(10);
/// A single attempt to report a death takes at most this long.
const REPORT_TIMEOUT: Duration = Duration::from_secs(1);
/// At its own end the parent tries to report the last death for at most this long: the masters may be
/// going down as well.
const LAST_REPORT_PATIENCE: Duration = Duration::from_secs(2);

/// Settings of the watching parent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParentConfig {
    /// All masters, `host:port`.
    pub masters: Vec<String>,
    /// Whether a new worker follows one that ended.
    pub restart: bool,
    /// What a stopped worker gets before it is killed.
    pub stop_timeout: Duration,
}

/// What became of a worker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerEnd {
    /// Its launch.
    pub nonce: u64,
    /// "exited with code 1", "killed by signal 9".
    pub how: String,
}

/// Why the parent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ParentError {
    /// The worker's program cannot be run.
    #[error("cannot start the worker: {0}")]
    Start(std::io::Error),
    /// Its end cannot be waited for.
    #[error("cannot wait for the worker: {0}")]
    Wait(std::io::Error),
}

/// Runs workers until the env's tasks are asked to end; then stops the last one and returns its end.
///
/// `command` builds the command line of a launch with the given nonce; `started` is told each
/// worker's process id.
pub async fn run(
    env: &Env,
    config: ParentConfig,
    command: impl Fn(u64) -> Command + Send,
    started: impl Fn(u32) + Send,
) -> Result<WorkerEnd, ParentError> {
    let masters = std::sync::Arc::new(Masters::new(env, &config.masters, REPORT_TIMEOUT));
    let mut delay = RESTART_DELAY_MIN;
    loop {
        let nonce = env.random.u64();
        let begun = env.clock.now();
        let mut child = command(nonce).spawn().map_err(ParentError::Start)?;
        if let Some(pid) = child.id() {
            started(pid);
        }
        let (status, is_stopping) = tokio::select! {
            biased;
            status = child.wait() => (status.map_err(ParentError::Wait)?, false),
            () = env.tasks.cancelled() => (stop(env, &mut child, config.stop_timeout).await?, true),
        };
        let end = WorkerEnd { nonce, how: describe(status) };
        tracing::info!(nonce, how = end.how, "worker ended");
        if is_stopping {
            let call = masters.call("report death", |master| report(master, &end));
            let told = env.clock.timeout(LAST_REPORT_PATIENCE, call).await.is_ok_and(|answer| answer.result.is_ok());
            if !told {
                tracing::warn!(nonce, "no master takes the report of the last worker's end");
            }
            return Ok(end);
        }
        let (reporter, report_end) = (masters.clone(), end.clone());
        env.tasks.spawn("report death", async move {
            if let Err(error) = reporter.call("report death", |master| report(master, &report_end)).await.result {
                tracing::warn!(%error, "the master does not take the report of a death");
            }
        });
        if !config.restart {
            return Ok(end);
        }
        delay = next_delay(delay, begun, env.clock.now());
        tokio::select! {
            biased;
            () = env.tasks.cancelled() => return Ok(end),
            () = env.clock.sleep(delay) => {}
        }
    }
}

async fn report(
    mut master: Client,
    end: &WorkerEnd,
) -> Result<tonic::Response<uruk_proto::master::ReportDeathResponse>, tonic::Status> {
    master.report_death(ReportDeathRequest { nonce: end.nonce, how: end.how.clone() }).await
}

/// Asks the child to end, and kills it when it takes too long.
async fn stop(env: &Env, child: &mut Child, patience: Duration) -> Result<ExitStatus, ParentError> {
    if let Some(pid) = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid as i32)) {
        // It may have ended in this moment: then there is nobody to ask.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    match env.clock.timeout(patience, child.wait()).await {
        Ok(status) => status.map_err(ParentError::Wait),
        Err(_) => {
            child.start_kill().map_err(ParentError::Wait)?;
            child.wait().await.map_err(ParentError::Wait)
        }
    }
}

/// "killed by signal 9", "exited with code 1".
pub fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => format!("ended: {status}"),
    }
}

/// A worker that ran for a while starts again at once; one that keeps failing waits longer each time.
fn next_delay(before: Duration, begun: Moment, ended: Moment) -> Duration {
    if ended.saturating_since(begun) >= STEADY { RESTART_DELAY_MIN } else { (before * 2).min(RESTART_DELAY_MAX) }
}

/// A pipe whose other end the parent alone holds and never writes to: it ends when the parent does, however
/// that dies.
#[derive(Debug)]
pub struct Lifeline {
    inherited: PipeReader,
    _held: PipeWriter,
}

impl Lifeline {
    /// Makes it; every process started from now on inherits the reading end, and no other.
    pub fn new() -> io::Result<Lifeline> {
        let (inherited, _held) = io::pipe()?;
        rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::empty())?;
        Ok(Lifeline { inherited, _held })
    }

    /// The number of the reading end, in this process and in those that inherit it.
    pub fn descriptor(&self) -> RawFd {
        self.inherited.as_raw_fd()
    }
}

/// The worker's side: completes when the parent that gave it this descriptor has died.
pub async fn parent_died(descriptor: RawFd) {
    let path = format!("/dev/fd/{descriptor}");
    let mut pipe = match tokio::net::unix::pipe::OpenOptions::new().open_receiver(path) {
        Ok(pipe) => pipe,
        Err(error) => {
            tracing::warn!(%error, "cannot watch the parent; without it this worker goes on");
            return std::future::pending().await;
        }
    };
    let mut byte = [0];
    while matches!(pipe.read(&mut byte).await, Ok(n) if n > 0) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_fails_at_once_is_restarted_ever_more_slowly() {
        let at = |s| Moment::from_start(Duration::from_secs(s));
        let mut delay = RESTART_DELAY_MIN;
        for _ in 0..10 {
            delay = next_delay(delay, at(0), at(1));
        }
        assert_eq!(delay, RESTART_DELAY_MAX);
        assert_eq!(next_delay(delay, at(0), at(11)), RESTART_DELAY_MIN);
    }

    #[tokio::test]
    async fn a_lifeline_ends_with_its_holder_and_not_before() {
        let lifeline = Lifeline::new().unwrap();
        // As after a fork: the worker has the reading end alone.
        let inherited = lifeline.inherited.try_clone().unwrap();
        let mut died = std::pin::pin!(parent_died(inherited.as_raw_fd()));
        assert!(futures::poll!(&mut died).is_pending());
        drop(lifeline);
        died.await;
    }
}
