//! Connections to tablet servers.
//!
//! Scans have connections of their own, a few scans on each: a scan whose reader pauses holds its
//! share of the connection's flow-control window, and must not hold up point reads and writes.
//!
//! Lock order: none of the locks here is taken while another is held.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tonic::transport::Channel;
use uruk_base::Env;
use uruk_base::rpc::{self, MESSAGE_BYTES_MAX};
use uruk_proto::tablet::tablet_server_client::TabletServerClient;

use crate::calls::{Caller, SharedStream};
use crate::config::ClientConfig;

/// The generated client, with our message limits.
pub(crate) type TabletClient = TabletServerClient<Channel>;

/// All tablet servers in use, by address.
pub(crate) struct Servers {
    env: Env,
    channels_per_server: usize,
    calls_per_server_max: usize,
    scans_per_channel_max: usize,
    /// Weak: a server that no location names any more closes its connections.
    known: Mutex<BTreeMap<String, Weak<Server>>>,
}

impl Servers {
    pub fn new(env: Env, config: &ClientConfig) -> Servers {
        Servers {
            env,
            channels_per_server: config.channels_per_server,
            calls_per_server_max: config.calls_per_server_max,
            scans_per_channel_max: config.scans_per_channel_max,
            known: Mutex::default(),
        }
    }

    /// The server at `address`, connected on first use.
    pub fn at(&self, address: &str) -> Arc<Server> {
        let mut known = self.known.lock();
        if let Some(server) = known.get(address).and_then(Weak::upgrade) {
            return server;
        }
        known.retain(|_, server| server.strong_count() > 0);
        let connector = Connector { env: self.env.clone(), address: address.to_owned() };
        let server = Arc::new(Server {
            channels: (0..self.channels_per_server).map(|_| Mutex::new(connector.caller())).collect(),
            next: AtomicUsize::new(0),
            calls: Semaphore::new(self.calls_per_server_max),
            scans: Mutex::default(),
            scans_per_channel_max: self.scans_per_channel_max,
            connector,
        });
        known.insert(address.to_owned(), Arc::downgrade(&server));
        server
    }
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.known.lock().keys()).finish()
    }
}

struct Connector {
    env: Env,
    address: String,
}

impl Connector {
    /// A channel that connects on first use, and again after it broke.
    fn connect(&self) -> TabletClient {
        client(self.channel())
    }

    /// Such a channel, for single calls and for those that share a stream.
    fn caller(&self) -> ChannelInUse {
        let channel = self.channel();
        ChannelInUse { caller: self.caller_on(&channel), channel }
    }

    fn caller_on(&self, channel: &Channel) -> Caller {
        let shared = Arc::new(SharedStream::new(&self.env, channel.clone()));
        Caller { alone: client(channel.clone()), shared }
    }

    fn channel(&self) -> Channel {
        rpc::channel(&self.env.transport, &self.address)
    }
}

fn client(channel: Channel) -> TabletClient {
    TabletServerClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

struct ChannelInUse {
    channel: Channel,
    caller: Caller,
}

/// One tablet server.
pub(crate) struct Server {
    connector: Connector,
    channels: Vec<Mutex<ChannelInUse>>,
    next: AtomicUsize,
    /// Calls in flight, scans apart.
    pub calls: Semaphore,
    scans: Mutex<Vec<ScanChannel>>,
    scans_per_channel_max: usize,
}

struct ScanChannel {
    client: TabletClient,
    scans: usize,
}

impl Server {
    pub fn address(&self) -> &str {
        &self.connector.address
    }

    /// One of the channels, in turn, and its number.
    pub fn caller(&self) -> (usize, Caller) {
        let number = self.next.fetch_add(1, Ordering::Relaxed) % self.channels.len();
        let mut channel = self.channels[number].lock();
        if channel.caller.shared.has_ended() {
            channel.caller = self.connector.caller_on(&channel.channel);
        }
        (number, channel.caller.clone())
    }

    /// Opens channel `number` anew, unless another call has: `silent`, on the old one, got no answer.
    pub fn reconnect(&self, number: usize, silent: &Arc<SharedStream>) {
        let mut channel = self.channels[number].lock();
        if Arc::ptr_eq(&channel.caller.shared, silent) {
            *channel = self.connector.caller();
        }
    }

    /// A channel for one scan.
    pub fn scan_client(self: &Arc<Server>) -> ScanClient {
        let mut channels = self.scans.lock();
        let free = channels.iter().position(|channel| channel.scans < self.scans_per_channel_max);
        let number = free.unwrap_or_else(|| {
            channels.push(ScanChannel { client: self.connector.connect(), scans: 0 });
            channels.len() - 1
        });
        channels[number].scans += 1;
        ScanClient { client: channels[number].client.clone(), server: self.clone(), number }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({})", self.connector.address)
    }
}

/// A scan's place on a channel; given back when dropped.
pub(crate) struct ScanClient {
    client: TabletClient,
    server: Arc<Server>,
    number: usize,
}

impl ScanClient {
    /// Opens the scan's channel anew for the scans that come: this one fell silent.
    pub fn reconnect(&self) {
        let client = self.server.connector.connect();
        if let Some(channel) = self.server.scans.lock().get_mut(self.number) {
            channel.client = client;
        }
    }
}

impl Deref for ScanClient {
    type Target = TabletClient;
    fn deref(&self) -> &TabletClient {
        &self.client
    }
}

impl Drop for ScanClient {
    fn drop(&mut self) {
        let mut channels = self.server.scans.lock();
        channels[self.number].scans -= 1;
        // Numbers are places in the list, so only the end of it can go; the first channel stays.
        while channels.len() > 1 && channels.last().is_some_and(|channel| channel.scans == 0) {
            channels.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn scans_share_a_channel_up_to_the_limit_and_give_their_place_back() {
        let config = ClientConfig { scans_per_channel_max: 2, ..ClientConfig::default() };
        let server = Servers::new(Env::real(), &config).at("127.0.0.1:1");
        let mut scans: Vec<ScanClient> = (0..5).map(|_| server.scan_client()).collect();
        assert_eq!(scans.iter().map(|scan| scan.number).collect::<Vec<_>>(), [0, 0, 1, 1, 2]);
        scans.remove(2);
        assert_eq!(server.scan_client().number, 1);
        scans.clear();
        assert_eq!(server.scans.lock().len(), 1);
    }

    #[tokio::test]
    async fn a_server_that_nobody_names_is_closed() {
        let servers = Servers::new(Env::real(), &ClientConfig::default());
        let first = servers.at("a:1");
        assert!(Arc::ptr_eq(&first, &servers.at("a:1")));
        drop(first);
        servers.at("b:1");
        assert_eq!(servers.known.lock().keys().collect::<Vec<_>>(), ["b:1"]);
    }
}
