//! Connections in memory that can be cut, frozen and refused.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::io::DuplexStream;
use tokio::sync::{Mutex as AsyncMutex, mpsc, watch};
use uruk_base::Tasks;
use uruk_base::transport::{Connection, Listener, Transport};

const PIPE_BYTES: usize = 256 << 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Link {
    Flows,
    Frozen,
    Cut,
}

#[derive(Default)]
struct State {
    listeners: BTreeMap<String, mpsc::UnboundedSender<Connection>>,
    links: BTreeMap<String, watch::Sender<Link>>,
    connects: BTreeMap<String, usize>,
}

/// A network of one test.
#[derive(Clone)]
pub struct Net {
    tasks: Tasks,
    state: Arc<Mutex<State>>,
}

impl Net {
    pub fn new(tasks: Tasks) -> Net {
        Net { tasks, state: Arc::default() }
    }

    /// Breaks all connections to `address`; new ones can be made.
    pub fn cut(&self, address: &str) {
        if let Some(link) = self.state.lock().links.get(address) {
            link.send_replace(Link::Cut);
        }
        self.state.lock().links.insert(address.to_owned(), watch::channel(Link::Flows).0);
    }

    /// Nothing goes through to `address` any more, and nobody is told.
    pub fn freeze(&self, address: &str) {
        let mut state = self.state.lock();
        state
            .links
            .entry(address.to_owned())
            .or_insert_with(|| watch::channel(Link::Flows).0)
            .send_replace(Link::Frozen);
    }

    /// Breaks all connections to `address` and refuses new ones.
    pub fn kill(&self, address: &str) {
        self.state.lock().listeners.remove(address);
        self.cut(address);
    }

    /// Connections made to `address` so far.
    pub fn connects(&self, address: &str) -> usize {
        self.state.lock().connects.get(address).copied().unwrap_or(0)
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Net")
    }
}

#[async_trait]
impl Transport for Net {
    async fn connect(&self, address: &str) -> io::Result<Connection> {
        let (client, near) = tokio::io::duplex(PIPE_BYTES);
        let (far, server) = tokio::io::duplex(PIPE_BYTES);
        let link = {
            let mut state = self.state.lock();
            *state.connects.entry(address.to_owned()).or_default() += 1;
            let listener = state.listeners.get(address).ok_or(io::ErrorKind::ConnectionRefused)?;
            listener.send(Box::pin(server)).map_err(|_| io::ErrorKind::ConnectionRefused)?;
            state.links.entry(address.to_owned()).or_insert_with(|| watch::channel(Link::Flows).0).subscribe()
        };
        self.tasks.spawn("link", pump(near, far, link));
        Ok(Box::pin(client))
    }

    async fn listen(&self, address: &str) -> io::Result<Arc<dyn Listener>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.state.lock().listeners.insert(address.to_owned(), sender);
        Ok(Arc::new(Bound { address: address.to_owned(), incoming: AsyncMutex::new(receiver) }))
    }
}

async fn pump(mut near: DuplexStream, mut far: DuplexStream, mut link: watch::Receiver<Link>) {
    tokio::select! {
        biased;
        _ = link.wait_for(|link| *link != Link::Flows) => {}
        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
    }
    // Frozen: both ends stay open, and silent, until the link is cut.
    let _ = link.wait_for(|link| *link == Link::Cut).await;
}

struct Bound {
    address: String,
    incoming: AsyncMutex<mpsc::UnboundedReceiver<Connection>>,
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bound({})", self.address)
    }
}

#[async_trait]
impl Listener for Bound {
    async fn accept(&self) -> io::Result<Connection> {
        match self.incoming.lock().await.recv().await {
            Some(connection) => Ok(connection),
            None => std::future::pending().await,
        }
    }

    fn local_address(&self) -> String {
        self.address.clone()
    }
}
