//! A network that fails on demand: connections to an address can stall or break.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use uruk_base::transport::{Connection, Listener, TcpTransport, Transport};

/// How connections to an address behave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    Pass,
    /// Nothing moves, in either direction, as with a stopped process.
    Stall,
    /// Open connections break, new ones are refused.
    Cut,
}

#[derive(Debug)]
struct Link {
    mode: Mutex<Mode>,
    wakers: Mutex<Vec<Waker>>,
}

/// TCP with a switch per address.
#[derive(Clone, Debug, Default)]
pub struct Network {
    links: Arc<Mutex<BTreeMap<String, Arc<Link>>>>,
}

impl Network {
    pub fn set(&self, address: &str, mode: Mode) {
        let link = self.link(address);
        *link.mode.lock() = mode;
        let wakers = std::mem::take(&mut *link.wakers.lock());
        wakers.into_iter().for_each(Waker::wake);
    }

    fn link(&self, address: &str) -> Arc<Link> {
        let new = || Arc::new(Link { mode: Mutex::new(Mode::Pass), wakers: Mutex::default() });
        self.links.lock().entry(address.to_owned()).or_insert_with(new).clone()
    }
}

#[async_trait]
impl Transport for Network {
    async fn connect(&self, address: &str) -> io::Result<Connection> {
        let link = self.link(address);
        if *link.mode.lock() == Mode::Cut {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let inner = TcpTransport.connect(address).await?;
        Ok(Box::pin(Switched { inner, link }))
    }

    async fn listen(&self, address: &str) -> io::Result<Arc<dyn Listener>> {
        TcpTransport.listen(address).await
    }
}

struct Switched {
    inner: Connection,
    link: Arc<Link>,
}

impl Switched {
    /// Ready when bytes may move.
    fn gate(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let mode = self.link.mode.lock();
        match *mode {
            Mode::Pass => {
                // Whoever then waits for the socket must also learn of a cut.
                let mut wakers = self.link.wakers.lock();
                if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                    wakers.push(cx.waker().clone());
                }
                Poll::Ready(Ok(()))
            }
            Mode::Stall => {
                self.link.wakers.lock().push(cx.waker().clone());
                Poll::Pending
            }
            Mode::Cut => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

macro_rules! pass {
    ($self:ident, $cx:ident, $call:ident($($argument:expr),*)) => {
        match $self.gate($cx) {
            Poll::Ready(Ok(())) => $self.inner.as_mut().$call($cx, $($argument),*),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    };
}

impl AsyncRead for Switched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        pass!(self, cx, poll_read(buf))
    }
}

impl AsyncWrite for Switched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        pass!(self, cx, poll_write(buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        pass!(self, cx, poll_flush())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        pass!(self, cx, poll_shutdown())
    }
}
