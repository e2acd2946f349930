//! TCP of the machine.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::net::{TcpListener, TcpStream};

use super::{Connection, Listener, Transport};

/// The machine's network, with Nagle's delay off.
#[derive(Clone, Copy, Debug)]
pub struct TcpTransport;

#[async_trait]
impl Transport for TcpTransport {
    async fn connect(&self, address: &str) -> io::Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::pin(stream))
    }

    async fn listen(&self, address: &str) -> io::Result<Arc<dyn Listener>> {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            let hint =
                if error.kind() == io::ErrorKind::AddrInUse { "; is another process using the port?" } else { "" };
            io::Error::new(error.kind(), format!("cannot listen on {address}: {error}{hint}"))
        })?;
        Ok(Arc::new(Bound(listener)))
    }
}

#[derive(Debug)]
struct Bound(TcpListener);

#[async_trait]
impl Listener for Bound {
    async fn accept(&self) -> io::Result<Connection> {
        let (stream, _) = self.0.accept().await?;
        stream.set_nodelay(true)?;
        Ok(Box::pin(stream))
    }

    fn local_address(&self) -> String {
        match self.0.local_addr() {
            Ok(address) => address.to_string(),
            Err(error) => format!("unknown ({error})"),
        }
    }
}
