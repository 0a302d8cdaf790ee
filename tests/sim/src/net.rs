//! The simulated network, in the forms that servers and clients take it in.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use side_channel::{Endpoint, Network};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use turmoil::net::{TcpListener, TcpStream};

use crate::hosts::{Host, Links};

/// What connecting answers.
pub type Opened = Result<TokioIo<Wire>, Box<dyn std::error::Error + Send + Sync>>;

/// A connection.
#[derive(Debug)]
pub struct Wire(TcpStream);

/// Listens on a port of the host that runs.
///
/// # Errors
/// When the port is taken.
pub async fn listen(port: u16) -> io::Result<Server> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    Ok(Server { listener, local: SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)) })
}

/// A listening port, for HTTP.
pub struct Server {
    listener: TcpListener,
    local: SocketAddr,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("local", &self.local).finish_non_exhaustive()
    }
}

impl Listener for Server {
    type Io = Wire;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Wire, SocketAddr) {
        loop {
            // A peer that has gone meanwhile is none.
            if let Ok((stream, from)) = self.listener.accept().await {
                return (Wire(stream), from);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }
}

/// Opens connections, each within a time.
#[derive(Clone, Debug)]
pub struct Dial {
    /// From where.
    pub from: Host,
    /// What is cut.
    pub links: Links,
    /// The time.
    pub within: Duration,
}

impl Dial {
    async fn open(self, server: Uri) -> Opened {
        let host = server.host().ok_or("the URI names no host")?.to_owned();
        let port = server.port_u16().ok_or("the URI names no port")?;
        let stream = timeout(self.within, connect(self.from, &self.links, &host, port)).await??;
        Ok(TokioIo::new(Wire(stream)))
    }
}

/// The simulation refuses what goes to a host that is cut off; a network says nothing at all.
async fn connect(from: Host, links: &Links, to: &str, port: u16) -> io::Result<TcpStream> {
    let connected = TcpStream::connect((to, port)).await;
    match (connected, Host::named(to)) {
        (Err(_), Some(to)) if links.is_cut(from, to) || links.is_cut(to, from) => std::future::pending().await,
        (connected, _) => connected,
    }
}

impl router::upstream::Connect for Dial {
    type Wire = TokioIo<Wire>;

    fn connect(&self, server: Uri) -> impl Future<Output = Opened> + Send {
        self.clone().open(server)
    }
}

impl tower::Service<Uri> for Dial {
    type Response = TokioIo<Wire>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Opened> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        Box::pin(self.clone().open(server))
    }
}

/// For side channels. A host listens on all its addresses, whatever it calls itself.
#[derive(Clone, Debug)]
pub struct SideNet {
    /// From where.
    pub from: Host,
    /// What is cut.
    pub links: Links,
}

impl Network for SideNet {
    type Stream = TcpStream;
    type Listener = TcpListener;

    async fn connect(&self, to: &Endpoint) -> io::Result<TcpStream> {
        connect(self.from, &self.links, &to.host, to.port).await
    }

    async fn listen(&self, on: &Endpoint) -> io::Result<(TcpListener, u16)> {
        Ok((TcpListener::bind((Ipv4Addr::UNSPECIFIED, on.port)).await?, on.port))
    }

    async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
        Ok(listener.accept().await?.0)
    }
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
