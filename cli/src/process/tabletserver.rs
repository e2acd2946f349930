//! `uruk tabletserver`: a watching parent without state, and the worker that serves.
//!
//! The parent starts the worker with a new nonce, waits for its death, reports it to the masters (so
//! that nobody has to wait for the lease to run out), and starts the next one.
//!
//! SIGTERM or Ctrl-C is a planned end: the worker flushes and releases its tablets first, so that nobody
//! has to recover them. A second one, to the parent, ends both at once; so does the end of the local
//! cluster that started them. The parent's death is a planned end too: nobody would report the worker's death
//! any more, and a new start needs its port.

use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde::Deserialize;
use uruk_base::Env;
use uruk_tabletserver::server::parent::{self, ParentConfig};
use uruk_tabletserver::server::{Storage, TabletServer, TabletServerConfig};

use super::{Durability, End, Ready, Supervision, dfs_client, merge, parse_addresses, read_toml, required};

/// A worker that was asked to end is killed after this: what it has to give up its tablets, and a little.
const WORKER_STOP_TIMEOUT: Duration = Duration::from_secs(12);
/// When there is nobody to give tablets to, the worker ends within this time whatever it still does.
const END_AT_ONCE_TIMEOUT: Duration = Duration::from_secs(1);

/// Run a tablet server (a watching parent and its worker).
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Read options from this TOML file (same names, with _ for -); flags win
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Address to listen on
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Address that others use [default: the one listened on]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// The masters' addresses, separated by commas
    #[arg(long, value_name = "HOST:PORT,...")]
    masters: Option<String>,
    /// The chunk store's controllers, separated by commas
    #[arg(long, value_name = "HOST:PORT,...")]
    controllers: Option<String>,
    /// Failure zone, such as a rack
    #[arg(long)]
    zone: Option<String>,
    /// What an acknowledged write has survived [default: fsync]
    #[arg(long, value_enum)]
    durability: Option<Durability>,
    /// Memory for memtables in MiB: beyond half of it tablets are flushed, beyond all of it writes
    /// are refused [default: 384]
    #[arg(long)]
    memtable_mib: Option<u64>,
    /// Most of its log that may be unflushed, in MiB: what bounds a failover [default: 256]
    #[arg(long)]
    unflushed_log_mib: Option<u64>,
    /// Memory for the block cache in MiB
    #[arg(long)]
    block_cache_mib: Option<u64>,
    /// Threads that serve; on small machines one is fastest [default: 1]
    #[arg(long)]
    worker_threads: Option<usize>,
    /// Set one of the server's values, such as memtable_idle_ms=5000 or engine.compaction_ratio=1.5; repeatable
    #[arg(long, value_name = "NAME=VALUE")]
    tune: Option<Vec<String>>,
    /// Serve without a watching parent
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    no_parent: Option<bool>,
    /// This process is the worker of this launch
    #[arg(long, hide = true)]
    #[serde(skip)]
    worker_nonce: Option<u64>,
    #[arg(long, hide = true)]
    #[serde(skip)]
    parent_pid: Option<u32>,
    /// The descriptor of the parent's lifeline
    #[arg(long, hide = true)]
    #[serde(skip)]
    parent_pipe: Option<i32>,
    #[command(flatten)]
    #[serde(skip)]
    supervision: Supervision,
}

/// Runs until a signal.
pub fn run(options: Options) -> Result<ExitCode> {
    let file: Options = read_toml(options.config.as_ref())?;
    let options = merge!(
        options, file; listen, advertise, masters, controllers, zone, durability, memtable_mib,
        unflushed_log_mib, block_cache_mib, worker_threads, tune, no_parent
    );
    // Both check the options, so that a bad one ends the parent too instead of being tried again.
    let config = server_config(&options)?;
    let controllers = required("controllers", options.controllers.clone())?;
    match (options.worker_nonce, options.no_parent) {
        (None, None | Some(false)) => crate::runtime::block_on(1, watch(config, options.supervision)),
        (_, _) => {
            let threads = options.worker_threads.unwrap_or(1);
            let durability = options.durability.unwrap_or_default();
            let asked = Asked { supervision: options.supervision, parent_pipe: options.parent_pipe };
            crate::runtime::block_on(threads, serve(config, controllers, durability, asked))
        }
    }
}

fn server_config(options: &Options) -> Result<TabletServerConfig> {
    let mut config = TabletServerConfig {
        listen: required("listen", options.listen.clone())?,
        advertise: options.advertise.clone().unwrap_or_default(),
        masters: parse_addresses(&required("masters", options.masters.clone())?).context("--masters")?,
        pid: std::process::id(),
        parent_pid: options.parent_pid.unwrap_or(0),
        process_metrics: true,
        ..TabletServerConfig::default()
    };
    if let Some(zone) = &options.zone {
        config.zone.clone_from(zone);
    }
    if let Some(mib) = options.memtable_mib {
        config.memtable_bytes_hard = mib << 20;
        config.memtable_bytes_soft = mib << 19;
    }
    if let Some(mib) = options.unflushed_log_mib {
        config.unflushed_log_bytes_max = mib << 20;
    }
    if let Some(mib) = options.block_cache_mib {
        config.engine.block_cache_bytes = mib << 20;
    }
    for setting in options.tune.iter().flatten() {
        config = super::tuned(&config, setting)?;
    }
    config.nonce = options.worker_nonce.unwrap_or(0);
    config.validate().context("tablet server options")?;
    Ok(config)
}

/// How the worker learns that it should end.
struct Asked {
    supervision: Supervision,
    /// Its watching parent's lifeline, if it has a parent.
    parent_pipe: Option<i32>,
}

impl Asked {
    async fn end(&self) -> Result<End> {
        let parent_died = async {
            match self.parent_pipe {
                Some(descriptor) => parent::parent_died(descriptor).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            why = self.supervision.end() => why,
            () = parent_died => Ok(End::ParentDied),
        }
    }

    /// Completes when the worker's planned end should be cut short. A signal to a terminal or a group of
    /// processes reaches both worker and parent, which passes it on: two are one then, and the parent
    /// kills the worker when it is asked again itself.
    async fn again(&self, first: End) {
        match (first, self.parent_pipe) {
            (End::Signal(_), Some(_)) => self.supervision.gone().await,
            (_, _) => {
                if self.supervision.end_again(first).await.is_err() {
                    std::future::pending().await
                }
            }
        }
    }
}

/// The worker.
async fn serve(
    mut config: TabletServerConfig,
    controllers: String,
    durability: Durability,
    asked: Asked,
) -> Result<ExitCode> {
    let env = Env::real();
    if config.nonce == 0 {
        config.nonce = env.random.u64();
    }
    let start = async {
        let dfs = dfs_client(&env, &controllers, durability).await?;
        let objects = dfs.object_store();
        let storage = Storage {
            recovery_objects: Arc::new(objects.with_durability(Durability::Replicated.into()).with_replicas(2)),
            objects: Arc::new(objects),
            logs: Arc::new(dfs.commit_logs()),
        };
        Ok::<_, anyhow::Error>(TabletServer::start(&env, config, storage).await?)
    };
    let server = tokio::select! {
        biased;
        why = asked.end() => {
            // It waits for the masters, maybe for ever; it serves nothing yet.
            tracing::info!(why = %why?, "ending before the start");
            return Ok(ExitCode::SUCCESS);
        }
        started = start => started?,
    };
    Ready::print("tabletserver", server.address(), None);
    let code = tokio::select! {
        biased;
        why = asked.end() => {
            let why = why?;
            match why {
                End::ParentDied => tracing::warn!("the watching parent died; ending, so that a new one can start"),
                End::Signal(_) | End::SupervisorGone => tracing::info!(%why, "ending"),
            }
            if why != End::SupervisorGone {
                tokio::select! {
                    biased;
                    () = asked.again(why) => tracing::warn!("ending at once"),
                    stopped = server.stop() => stopped?,
                }
            }
            // What is left to wait for is of no use to anybody.
            let end = async {
                server.shutdown().await?;
                env.tasks.shutdown().await
            };
            if let Ok(ended) = env.clock.timeout(END_AT_ONCE_TIMEOUT, end).await {
                ended?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        why = server.wait() => {
            tracing::warn!(%why, "this incarnation is over");
            ExitCode::from(why.exit_code())
        }
    };
    env.tasks.shutdown().await?;
    Ok(code)
}

/// The watching parent.
async fn watch(config: TabletServerConfig, supervision: Supervision) -> Result<ExitCode> {
    let env = Env::real();
    let program = std::env::current_exe().context("cannot find this program")?;
    let lifeline = parent::Lifeline::new().context("cannot make a pipe")?;
    let descriptor = lifeline.descriptor();
    // The same arguments, so that the worker reads the same flags and file.
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    let command = move |nonce: u64| {
        let mut command = tokio::process::Command::new(&program);
        command
            .args(&arguments)
            .arg(format!("--worker-nonce={nonce}"))
            .arg(format!("--parent-pid={}", std::process::id()))
            .arg(format!("--parent-pipe={descriptor}"));
        // The worker's `ready` line goes to whoever waits for ours; its standard input is ours, so
        // that it ends with the supervisor even when this parent was killed.
        command.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
        command
    };
    let settings = ParentConfig { masters: config.masters, restart: true, stop_timeout: WORKER_STOP_TIMEOUT };
    let worker = AtomicU32::new(0);
    let started = |pid| {
        worker.store(pid, Ordering::Relaxed);
        tracing::info!(pid, "worker started");
    };
    let mut run = std::pin::pin!(parent::run(&env, settings, command, started));
    let end = tokio::select! {
        biased;
        end = &mut run => end,
        why = supervision.end() => {
            let why = why?;
            tracing::info!(%why, "ending");
            env.tasks.cancel();
            tokio::select! {
                biased;
                end = &mut run => end,
                again = supervision.end_again(why) => {
                    again?;
                    tracing::warn!("asked to end again: killing the worker");
                    // Until `run` has waited for it, the pid is the worker's and nobody else's.
                    if let Some(pid) = rustix::process::Pid::from_raw(worker.load(Ordering::Relaxed) as i32) {
                        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                    }
                    run.await
                }
            }
        }
    };
    env.tasks.shutdown().await?;
    let end = end?;
    tracing::info!(how = end.how, "the last worker has ended");
    Ok(ExitCode::SUCCESS)
}
