//! How commands find the cluster.

use anyhow::{Context, Result};
use clap::Args;
use uruk_base::Env;
use uruk_client::Client;

use crate::command::dev::DEFAULT_PORT_BASE;
use crate::process::parse_addresses;

/// Where the cluster is.
#[derive(Args, Clone, Debug)]
pub struct Connect {
    /// Addresses of the masters, separated by commas [default: that of `uruk dev`]
    #[arg(long, env = "URUK_MASTER", value_name = "HOST:PORT")]
    master: Option<String>,
}

impl Connect {
    /// The masters' addresses.
    pub fn masters(&self) -> Result<Vec<String>> {
        match &self.master {
            Some(text) => parse_addresses(text).context("--master"),
            None => Ok(vec![format!("127.0.0.1:{DEFAULT_PORT_BASE}")]),
        }
    }

    /// A client of the cluster. Nothing is sent yet; see [`Connect::hint`].
    pub fn client(&self, env: &Env) -> Result<Client> {
        Ok(Client::connect(env, &self.masters()?)?)
    }

    /// What to say when the first call fails.
    pub fn hint(&self) -> String {
        match self.masters() {
            Ok(masters) => format!("cluster at {} (start one with `uruk dev`, or give --master)", masters.join(",")),
            Err(error) => error.to_string(),
        }
    }
}
