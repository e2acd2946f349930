//! The client: what all tables of a cluster share.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use uruk_base::Env;
use uruk_proto::schema::validate_table_name;

use crate::config::ClientConfig;
use crate::error::{Error, Result, from_check};
use crate::idempotency::Sequencer;
use crate::masters::Masters;
use crate::retry::RetryPolicy;
use crate::server::Servers;
use crate::table::{Table, TableState};

/// Handle on a cluster. Cheap to clone; clones share connections and caches.
#[derive(Clone)]
pub struct Client {
    pub(crate) core: Arc<Core>,
}

/// What tables and admin calls share.
pub(crate) struct Core {
    pub env: Env,
    pub config: ClientConfig,
    pub policy: RetryPolicy,
    pub masters: Masters,
    pub servers: Servers,
    pub sequencer: Arc<Sequencer>,
    pub tables: Mutex<BTreeMap<String, Arc<TableState>>>,
}

impl Client {
    /// A client of the cluster whose masters have these addresses (`host:port`), with default
    /// settings. Connects on first use.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] without addresses, or with one that is not `host:port`.
    pub fn connect(env: &Env, masters: &[String]) -> Result<Client> {
        Client::builder().masters(masters).connect(env)
    }

    /// For other than default settings.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// The table of this name. Its id and schema are fetched once, and again when they turn out old.
    ///
    /// # Errors
    /// [`Error::UnknownTable`].
    pub async fn table(&self, name: &str) -> Result<Table> {
        validate_table_name(name).map_err(from_check)?;
        let known = self.core.tables.lock().get(name).cloned();
        let state = match known {
            Some(state) => state,
            None => {
                let fresh = TableState::fetch(&self.core, name, self.core.config.call_deadline()).await?;
                self.core.tables.lock().entry(name.to_owned()).or_insert(fresh).clone()
            }
        };
        Ok(Table::new(self.core.clone(), state))
    }

    /// The settings.
    pub fn config(&self) -> &ClientConfig {
        &self.core.config
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({:?})", self.core.masters)
    }
}

/// Makes a [`Client`].
#[derive(Clone, Debug, Default)]
pub struct ClientBuilder {
    masters: Vec<String>,
    config: ClientConfig,
}

impl ClientBuilder {
    /// Addresses of the masters, `host:port`.
    pub fn masters(mut self, addresses: &[String]) -> ClientBuilder {
        self.masters = addresses.to_vec();
        self
    }

    /// Settings other than the default.
    pub fn config(mut self, config: ClientConfig) -> ClientBuilder {
        self.config = config;
        self
    }

    /// The client. Nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] names the address or setting that will not do.
    pub fn connect(self, env: &Env) -> Result<Client> {
        self.config.validate()?;
        if self.masters.is_empty() {
            return Err(Error::invalid("no master address is given"));
        }
        for address in &self.masters {
            let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse());
            if !matches!(port, Some(Ok(1u16..))) {
                return Err(Error::invalid(format!("bad master address {address:?}: it must be host:port")));
            }
        }
        let policy = RetryPolicy::new(&self.config);
        let core = Core {
            policy,
            masters: Masters::new(env.clone(), policy, self.masters),
            servers: Servers::new(env.clone(), &self.config),
            sequencer: Sequencer::new(env.random.u64()),
            tables: Mutex::default(),
            config: self.config,
            env: env.clone(),
        };
        Ok(Client { core: Arc::new(core) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn refuses_addresses_that_cannot_be_right() {
        let why = |addresses: &[&str]| {
            let addresses: Vec<String> = addresses.iter().map(|a| (*a).to_owned()).collect();
            Client::connect(&Env::real(), &addresses).map(|_| ()).map_err(|e| e.to_string())
        };
        assert_eq!(why(&[]), Err("no master address is given".into()));
        assert_eq!(why(&["localhost"]), Err("bad master address \"localhost\": it must be host:port".into()));
        assert!(why(&["a:1", ":7"]).is_err() && why(&["a:0"]).is_err() && why(&["a:70000"]).is_err());
        assert_eq!(why(&["a:1", "[::1]:7"]), Ok(()));
    }
}
