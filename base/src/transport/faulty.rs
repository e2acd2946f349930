//! A simulated host's network whose process can be paused and whose connections can be reset.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::{Connection, Listener, SimulatedTransport, Transport};
use crate::task::Pause;

/// The network of one simulated host, with its faults. Clones mean the same host.
#[derive(Clone, Debug)]
pub struct FaultyTransport {
    pause: Pause,
    /// Cancelled when all connections of now are reset.
    connections: Arc<Mutex<CancellationToken>>,
}

impl FaultyTransport {
    /// A network without faults, for a process that `pause` may stop.
    pub fn new(pause: Pause) -> FaultyTransport {
        FaultyTransport { pause, connections: Arc::default() }
    }

    /// Breaks every connection that is open now, at this end.
    pub fn reset_all(&self) {
        std::mem::take(&mut *self.connections.lock()).cancel();
    }

    fn wrap(&self, inner: Connection) -> Connection {
        let reset = Box::pin(self.connections.lock().clone().cancelled_owned());
        Box::pin(FaultyConnection { inner, pause: self.pause.clone(), reset, is_reset: false })
    }
}

#[async_trait]
impl Transport for FaultyTransport {
    async fn connect(&self, address: &str) -> io::Result<Connection> {
        self.pause.running().await;
        Ok(self.wrap(SimulatedTransport.connect(address).await?))
    }

    async fn listen(&self, address: &str) -> io::Result<Arc<dyn Listener>> {
        let listener = SimulatedTransport.listen(address).await?;
        Ok(Arc::new(FaultyListener { listener, transport: self.clone() }))
    }
}

#[derive(Debug)]
struct FaultyListener {
    listener: Arc<dyn Listener>,
    transport: FaultyTransport,
}

#[async_trait]
impl Listener for FaultyListener {
    async fn accept(&self) -> io::Result<Connection> {
        let connection = self.listener.accept().await?;
        self.transport.pause.running().await;
        Ok(self.transport.wrap(connection))
    }

    fn local_address(&self) -> String {
        self.listener.local_address()
    }
}

struct FaultyConnection {
    inner: Connection,
    pause: Pause,
    reset: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_reset: bool,
}

impl fmt::Debug for FaultyConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultyConnection")
    }
}

impl FaultyConnection {
    /// Ready with an error when reset, with nothing when bytes may move.
    fn poll_usable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.pause.poll_running(cx).is_pending() {
            return Poll::Pending;
        }
        if self.is_reset || self.reset.as_mut().poll(cx).is_ready() {
            self.is_reset = true;
            return Poll::Ready(Err(io::Error::from(io::ErrorKind::ConnectionReset)));
        }
        Poll::Ready(Ok(()))
    }
}

macro_rules! usable {
    ($self:ident, $cx:ident) => {
        match $self.poll_usable($cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => return Poll::Pending,
        }
    };
}

impl AsyncRead for FaultyConnection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        usable!(self, cx);
        self.inner.as_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for FaultyConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        usable!(self, cx);
        self.inner.as_mut().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        usable!(self, cx);
        self.inner.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        usable!(self, cx);
        self.inner.as_mut().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        usable!(self, cx);
        self.inner.as_mut().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
