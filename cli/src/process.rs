//! The server processes, each alone: flags and TOML in, one `ready` line out, until a signal.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uruk_base::Env;
use uruk_dfs_sim::client::{DfsClient, DfsClientConfig};

pub mod chunkserver;
pub mod dfs_controller;
pub mod master;
pub mod tabletserver;
mod tuned;

pub use tuned::tuned;

/// What an acknowledged write has survived.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// fdatasync on a quorum of replicas: survives power loss
    #[default]
    Fsync,
    /// In the page cache of a quorum of replicas: survives killed processes
    Replicated,
}

impl From<Durability> for uruk_dfs_sim::client::Durability {
    fn from(durability: Durability) -> Self {
        match durability {
            Durability::Fsync => uruk_dfs_sim::client::Durability::Fsync,
            Durability::Replicated => uruk_dfs_sim::client::Durability::Replicated,
        }
    }
}

impl std::fmt::Display for Durability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Durability::Fsync => "fsync",
            Durability::Replicated => "replicated",
        })
    }
}

/// Reads a TOML file of options; unknown keys are errors that name the file, line and key.
pub fn read_toml<T: DeserializeOwned + Default>(path: Option<&PathBuf>) -> Result<T> {
    let Some(path) = path else { return Ok(T::default()) };
    #[allow(clippy::disallowed_methods)] // before any component exists
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("bad configuration in {}", path.display()))
}

/// `required(flag, value)`: the value, or an error that names the flag.
pub fn required<T>(name: &str, value: Option<T>) -> Result<T> {
    value.with_context(|| {
        format!("--{name} is missing (as a flag, or `{}` in the file of --config)", name.replace('-', "_"))
    })
}

/// Takes each named option from the flags, else from the file.
macro_rules! merge {
    ($flags:ident, $file:ident; $($field:ident),* $(,)?) => {
        Options { $($field: $flags.$field.or($file.$field),)* ..$flags }
    };
}
use merge;

/// Serves until the process is asked to end or its component ends by itself (an error), then joins
/// every task.
pub async fn serve_until(
    env: &Env,
    supervision: &Supervision,
    component: impl Future<Output = Result<()>>,
) -> Result<ExitCode> {
    let outcome = tokio::select! {
        biased;
        why = supervision.end() => why.map(|why| tracing::info!(%why, "ending")),
        () = env.tasks.cancelled() => Ok(()),
        outcome = component => outcome,
    };
    env.tasks.shutdown().await?;
    outcome.map(|()| ExitCode::SUCCESS)
}

/// A client of the chunk store.
pub async fn dfs_client(env: &Env, controllers: &str, durability: Durability) -> Result<DfsClient> {
    let mut config = DfsClientConfig::new(parse_addresses(controllers).context("--controllers")?);
    config.durability = durability.into();
    DfsClient::connect(env, config).await.context("cannot use the chunk store")
}

/// Parses `1=host:port,2=host:port`; a lone `host:port` is member 1.
pub fn parse_members(text: &str) -> Result<std::collections::BTreeMap<u64, String>> {
    let mut members = std::collections::BTreeMap::new();
    for (place, part) in text.split(',').map(str::trim).filter(|part| !part.is_empty()).enumerate() {
        let (id, address) = match part.split_once('=') {
            Some((id, address)) => {
                (id.parse().with_context(|| format!("member id in {part:?} is not a number"))?, address)
            }
            None => (place as u64 + 1, part),
        };
        check_address(address)?;
        if members.insert(id, address.to_owned()).is_some() {
            bail!("member {id} is given twice in {text:?}");
        }
    }
    if members.is_empty() {
        bail!("no member in {text:?}; give host:port, or 1=host:port,2=host:port,3=host:port");
    }
    Ok(members)
}

/// `host:port` with a port that fits.
pub fn check_address(address: &str) -> Result<()> {
    match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(()),
        _ => bail!("bad address {address:?}; give host:port"),
    }
}

/// Splits `a:1,b:2` and checks each address.
pub fn parse_addresses(text: &str) -> Result<Vec<String>> {
    let addresses: Vec<String> =
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect();
    if addresses.is_empty() {
        bail!("no address in {text:?}; give host:port, or several separated by commas");
    }
    addresses.iter().try_for_each(|address| check_address(address))?;
    Ok(addresses)
}

/// The line by which a supervisor learns that a process serves, and where.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ready {
    /// `master`, `tabletserver`, `dfs-controller`, `chunkserver`.
    pub role: String,
    /// This process.
    pub pid: u32,
    /// Where it serves RPCs.
    pub address: String,
    /// Where the status page is; masters only.
    pub http: Option<String>,
}

impl Ready {
    /// Prints the line: `ready {json}`.
    pub fn print(role: &str, address: &str, http: Option<String>) {
        let ready = Ready { role: role.to_owned(), pid: std::process::id(), address: address.to_owned(), http };
        println!("ready {}", serde_json::to_string(&ready).expect("plain data becomes JSON"));
    }

    /// Parses the line.
    pub fn parse(line: &str) -> Option<Ready> {
        serde_json::from_str(line.strip_prefix("ready ")?).ok()
    }
}

/// Why a process should end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// It was sent a signal: this process alone is to end.
    Signal(&'static str),
    /// Who started it is gone or ends the whole local cluster.
    SupervisorGone,
    /// Its watching parent died.
    ParentDied,
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            End::Signal(how) => how,
            End::SupervisorGone => "the supervisor is gone",
            End::ParentDied => "the watching parent died",
        })
    }
}

/// How a process learns that it should end, besides signals.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Supervision {
    /// End when standard input ends (the supervisor holds the other end)
    #[arg(long, hide = true)]
    pub end_with_stdin: bool,
}

impl Supervision {
    /// Completes when the process should end; says why.
    pub async fn end(&self) -> Result<End> {
        tokio::select! {
            biased;
            () = self.gone() => Ok(End::SupervisorGone),
            signal = crate::runtime::end_signal() => signal.map(End::Signal),
        }
    }

    /// Completes when a process that ends for the `first` reason is asked once more: it should end at once.
    pub async fn end_again(&self, first: End) -> Result<()> {
        match first {
            End::Signal(_) | End::ParentDied => self.end().await.map(drop),
            End::SupervisorGone => crate::runtime::end_signal().await.map(drop),
        }
    }

    /// Completes when the supervisor is gone, if there is one.
    pub async fn gone(&self) {
        match self.end_with_stdin {
            true => crate::runtime::stdin_end().await,
            false => std::future::pending().await,
        }
    }
}

/// A folder given by flag or file, made absolute for messages.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_and_addresses_parse_or_say_why_not() {
        assert_eq!(parse_members("a:1").unwrap().into_iter().collect::<Vec<_>>(), [(1, "a:1".to_owned())]);
        assert_eq!(parse_members("1=a:1, 3=b:2").unwrap().len(), 2);
        for bad in ["", "a", "1=a", "x=a:1", "1=a:1,1=b:2", "a:99999"] {
            assert!(parse_members(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_addresses("a:1,b:2").unwrap(), ["a:1", "b:2"]);
        assert!(parse_addresses("a:1,b").unwrap_err().to_string().contains("\"b\""));
    }

    #[test]
    fn a_ready_line_survives() {
        let ready = Ready { role: "master".into(), pid: 4, address: "a:1".into(), http: Some("a:2".into()) };
        let line = format!("ready {}", serde_json::to_string(&ready).unwrap());
        assert_eq!(Ready::parse(&line), Some(ready));
        assert_eq!(Ready::parse("steady {}"), None);
    }
}
