//! What carries the side channel's bytes.

use std::fmt::Debug;
use std::io;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use crate::channel::Endpoint;

/// A network of byte streams. Small messages must not wait on it for an acknowledgement of the ones before.
pub trait Network: Debug + Send + Sync + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// Takes connections; dropped, it takes none any more.
    type Listener: Send + Sync + 'static;

    /// Opens a connection; may take for ever.
    fn connect(&self, to: &Endpoint) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Listens, and says on which port.
    fn listen(&self, on: &Endpoint) -> impl Future<Output = io::Result<(Self::Listener, u16)>> + Send;

    /// The next connection.
    ///
    /// # Cancel safety
    /// No connection is lost.
    fn accept(listener: &Self::Listener) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

/// The system's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tcp;

impl Network for Tcp {
    type Stream = TcpStream;
    type Listener = TcpListener;

    async fn connect(&self, to: &Endpoint) -> io::Result<TcpStream> {
        let stream = TcpStream::connect((to.host.as_str(), to.port)).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn listen(&self, on: &Endpoint) -> io::Result<(TcpListener, u16)> {
        let listener = TcpListener::bind((on.host.as_str(), on.port)).await?;
        let port = listener.local_addr()?.port();
        Ok((listener, port))
    }

    async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
        let (stream, _) = listener.accept().await?;
        // A peer that has gone already is noticed when it is spoken to.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "small side-channel messages may be delayed");
        }
        Ok(stream)
    }
}
