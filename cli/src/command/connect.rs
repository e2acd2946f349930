//! How commands find the cluster.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use uruk_base::Env;
use uruk_client::Client;

use crate::command::dev::DEFAULT_PORT_BASE;
use crate::process::parse_addresses;

/// While nobody listens at any of the addresses, a master may be starting again: for this long.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Between two looks whether somebody does.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

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

    /// A client of the cluster; an error when nobody is there, which a client would hope for much longer.
    /// When the first call fails see [`Connect::hint`].
    pub async fn client(&self, env: &Env) -> Result<Client> {
        let masters = self.masters()?;
        let begun = env.clock.now();
        while let Some(error) = nobody_listens(env, &masters).await {
            if env.clock.since(begun) >= SILENCE_MAX {
                bail!("nobody answers: {}: {error}", self.hint());
            }
            env.clock.sleep(LOOK_AGAIN).await;
        }
        Ok(Client::connect(env, &masters)?)
    }

    /// What to say when the first call fails.
    pub fn hint(&self) -> String {
        match self.masters() {
            Ok(masters) => format!("cluster at {} (start one with `uruk dev`, or give --master)", masters.join(",")),
            Err(error) => error.to_string(),
        }
    }
}

/// Why no address can be connected to; None when one can.
async fn nobody_listens(env: &Env, addresses: &[String]) -> Option<String> {
    let mut error = None;
    for address in addresses {
        match env.clock.timeout(SILENCE_MAX, env.transport.connect(address)).await {
            Ok(Ok(_)) => return None,
            Ok(Err(refused)) => error = Some(refused.to_string()),
            Err(elapsed) => error = Some(elapsed.to_string()),
        }
    }
    error
}
