//! The process around everything: runtime, logs, signals.

use std::future::Future;
use std::io::IsTerminal;

use anyhow::{Context, Result};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Logs go to standard error, quiet by default: warnings and errors; `-v` adds state changes, `-vv`
/// the data path. `URUK_LOG` (as in `uruk_master=debug,warn`) overrides.
pub fn log_to_stderr(verbose: u8) {
    let default = match verbose {
        // openraft reports every heartbeat to a dead member as an error; what matters we report ourselves.
        0 => "warn,openraft=off",
        1 => "info,h2=warn,hyper=warn,tonic=warn,tower=warn,openraft=warn",
        _ => "debug,h2=info,hyper=info,tonic=info,tower=info,openraft=info",
    };
    let filter = EnvFilter::try_from_env("URUK_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let is_read_by_people = std::io::stderr().is_terminal();
    let format = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(is_read_by_people);
    format.with_writer(std::io::stderr).with_target(true).init();
}

/// Runs `future` on a runtime with `threads` workers; 1 means the caller's thread alone, which costs
/// least on small machines.
pub fn block_on<T>(threads: usize, future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = match threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
        n => tokio::runtime::Builder::new_multi_thread().worker_threads(n).enable_all().build(),
    };
    let runtime = runtime.context("cannot start the runtime")?;
    let result = runtime.block_on(future);
    // Blocking work that is still running belongs to tasks that were joined or is of no use now.
    runtime.shutdown_background();
    result
}

/// Completes at Ctrl-C or SIGTERM; tells which.
pub async fn end_signal() -> Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
    tokio::select! {
        biased;
        _ = interrupt.recv() => Ok("interrupted"),
        _ = terminate.recv() => Ok("terminated"),
    }
}

/// Completes when standard input ends: the local cluster holds the other end, so its processes end
/// with it however it dies.
pub async fn stdin_end() {
    // A pipe read through tokio, not on a blocking thread, which nothing could stop.
    let Ok(mut pipe) = tokio::net::unix::pipe::Receiver::from_owned_fd(duplicate_stdin()) else {
        return std::future::pending().await;
    };
    let mut buffer = [0; 64];
    while matches!(pipe.read(&mut buffer).await, Ok(n) if n > 0) {}
}

fn duplicate_stdin() -> std::os::fd::OwnedFd {
    rustix::io::dup(rustix::stdio::stdin()).expect("standard input is open")
}
