//! The network: connections as byte streams, real TCP or turmoil's simulated one.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

#[cfg(feature = "sim")]
mod faulty;
#[cfg(feature = "sim")]
mod simulated;
mod tcp;

#[cfg(feature = "sim")]
pub use faulty::FaultyTransport;
#[cfg(feature = "sim")]
pub use simulated::SimulatedTransport;
pub use tcp::TcpTransport;

/// A byte stream in both directions.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// An owned connection.
pub type Connection = Pin<Box<dyn Io>>;

/// Opens and accepts connections. Addresses are `host:port`.
#[async_trait]
pub trait Transport: Send + Sync + fmt::Debug {
    /// Connects to `address`.
    async fn connect(&self, address: &str) -> io::Result<Connection>;
    /// Listens on `address`; port 0 picks a free one.
    async fn listen(&self, address: &str) -> io::Result<Arc<dyn Listener>>;
}

/// Accepts connections.
#[async_trait]
pub trait Listener: Send + Sync + fmt::Debug {
    /// Waits for the next connection.
    async fn accept(&self) -> io::Result<Connection>;
    /// The address that is listened on, with the real port.
    fn local_address(&self) -> String;
}
