//! turmoil's simulated TCP. Host names are turmoil's host names.

use std::fmt;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use turmoil::net::{TcpListener, TcpStream};

use super::{Connection, Listener, Transport};

/// The network of one simulated host. It never retransmits: deadlines and keep-alives are the
/// caller's, as `base::rpc` sets them.
#[derive(Clone, Copy, Debug)]
pub struct SimulatedTransport;

#[async_trait]
impl Transport for SimulatedTransport {
    async fn connect(&self, address: &str) -> io::Result<Connection> {
        Ok(Box::pin(TcpStream::connect(address).await?))
    }

    async fn listen(&self, address: &str) -> io::Result<Arc<dyn Listener>> {
        // A simulated host listens on all of its addresses, under its own name.
        let (_, port) = address.rsplit_once(':').ok_or_else(|| io::Error::other(format!("no port in {address}")))?;
        let port: u16 = port.parse().map_err(io::Error::other)?;
        let listener = TcpListener::bind(("0.0.0.0", port)).await?;
        Ok(Arc::new(Bound { listener, address: address.to_owned() }))
    }
}

struct Bound {
    listener: TcpListener,
    address: String,
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bound({})", self.address)
    }
}

#[async_trait]
impl Listener for Bound {
    async fn accept(&self) -> io::Result<Connection> {
        let (stream, _) = self.listener.accept().await?;
        Ok(Box::pin(stream))
    }

    fn local_address(&self) -> String {
        self.address.clone()
    }
}
