//! gRPC over a [`Transport`]: the server loop, and channels with keep-alives.
//!
//! Every channel has HTTP/2 keep-alives, so that a peer that fell silent is noticed; every call has a
//! deadline of its own, given by the caller.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::service::Routes;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Server, Uri};

use crate::env::Env;
use crate::task::Tasks;
use crate::transport::{Connection, Listener, Transport};

/// Largest message that servers and clients of Uruk accept, in bytes. A cell is at most 100 MiB.
pub const MESSAGE_BYTES_MAX: usize = 128 << 20;
/// HTTP/2 flow-control window of one stream, in bytes.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// HTTP/2 flow-control window of one connection, in bytes.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// A silent connection is probed this often.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// A probe unanswered for this long ends the connection.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Opening a connection takes at most this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The accept loop rests this long after an error such as too many open files.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

/// Serves `routes` on `listener` until `tasks` shuts down; open calls are then cut off.
pub async fn serve(
    env: &Env,
    listener: Arc<dyn Listener>,
    routes: Routes,
    tasks: &Tasks,
) -> Result<(), tonic::transport::Error> {
    let (clock, group) = (env.clock.clone(), tasks.clone());
    let incoming = futures::stream::unfold(listener, move |listener| {
        let (clock, group) = (clock.clone(), group.clone());
        async move {
            loop {
                match listener.accept().await {
                    Ok(connection) => return Some((Ok::<_, io::Error>(Accepted::new(connection, group)), listener)),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        clock.sleep(ACCEPT_RETRY_DELAY).await;
                    }
                }
            }
        }
    });
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(Some(1 << 20))
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .add_routes(routes)
        .serve_with_incoming(incoming);
    tokio::select! {
        biased;
        () = tasks.cancelled() => Ok(()),
        result = server => result,
    }
}

/// A channel to `address` (`host:port`), which connects on first use and again after a failure.
pub fn channel(transport: &Arc<dyn Transport>, address: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .unwrap_or_else(|_| Endpoint::from_static("http://invalid-address.invalid:1"))
        .connect_timeout(CONNECT_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(false);
    endpoint.connect_with_connector_lazy(Connector { transport: transport.clone() })
}

/// Channels by address, each opened once. Clones share them.
#[derive(Clone)]
pub struct Channels {
    transport: Arc<dyn Transport>,
    open: Arc<Mutex<BTreeMap<(String, usize), Channel>>>,
}

impl Channels {
    /// No channels yet.
    pub fn new(transport: Arc<dyn Transport>) -> Channels {
        Channels { transport, open: Arc::default() }
    }

    /// The channel to `address`.
    pub fn get(&self, address: &str) -> Channel {
        self.get_nth(address, 0)
    }

    /// One of several channels to `address`: one connection is one task at either end, so a busy
    /// caller spreads its calls over `n`.
    pub fn get_nth(&self, address: &str, n: usize) -> Channel {
        let mut open = self.open.lock();
        open.entry((address.to_owned(), n)).or_insert_with(|| channel(&self.transport, address)).clone()
    }

    /// Drops the channels to `address`, so that the next call connects anew.
    pub fn forget(&self, address: &str) {
        self.open.lock().retain(|(known, _), _| known != address);
    }
}

impl fmt::Debug for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.open.lock().keys()).finish()
    }
}

#[derive(Clone)]
struct Connector {
    transport: Arc<dyn Transport>,
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Connection>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Connection>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let transport = self.transport.clone();
        Box::pin(async move {
            let authority = uri.authority().ok_or_else(|| io::Error::other("address without a host"))?;
            Ok(TokioIo::new(transport.connect(authority.as_str()).await?))
        })
    }
}

/// An accepted connection, in the form that tonic serves. It breaks when the server's tasks shut
/// down: tonic's own connection tasks would otherwise go on answering.
struct Accepted {
    connection: Connection,
    shutdown: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_shut_down: bool,
}

impl Accepted {
    fn new(connection: Connection, group: Tasks) -> Accepted {
        let shutdown = Box::pin(async move { group.cancelled().await });
        Accepted { connection, shutdown, is_shut_down: false }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.is_shut_down && self.shutdown.as_mut().poll(cx).is_pending() {
            return Ok(());
        }
        self.is_shut_down = true;
        Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the server is shutting down"))
    }
}

impl Connected for Accepted {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Accepted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        self.connection.as_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        self.connection.as_mut().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        self.connection.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.as_mut().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        self.connection.as_mut().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }
}
