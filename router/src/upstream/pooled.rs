//! Requests over kept connections.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response, Uri, header};
use hyper_util::rt::TokioIo;
use secrets::tls::{Client, Dial, Stream};

use super::line::{Answer, Line, Wire};
use super::pool::Pool;
use super::{Payload, Upstream, UpstreamError, whole};

/// Opens connections, each within a time of its own.
pub trait Connect: Clone + Debug + Send + Sync + 'static {
    /// What it opens.
    type Wire: Wire;

    /// Opens one to the server in the URI.
    fn connect(
        &self,
        server: Uri,
    ) -> impl Future<Output = Result<Self::Wire, Box<dyn std::error::Error + Send + Sync>>> + Send;
}

impl Connect for Dial {
    type Wire = TokioIo<Stream>;

    async fn connect(&self, server: Uri) -> Result<Self::Wire, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.open(server).await?)
    }
}

/// The client: HTTP/1.1 over what its connector opens, connections kept between requests.
pub struct Pooled<C: Connect = Dial> {
    pool: Pool<C::Wire>,
    connector: C,
}

// Derived, both would ask the same of the wires.
impl<C: Connect> Clone for Pooled<C> {
    fn clone(&self) -> Self {
        Self { pool: self.pool.clone(), connector: self.connector.clone() }
    }
}

impl<C: Connect> Debug for Pooled<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pooled").field("connector", &self.connector).finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("the URI names no server")]
    NoServer,
    #[error("open a connection")]
    Open(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("begin to speak HTTP")]
    Handshake(#[from] hyper::Error),
}

impl Pooled {
    /// A client for real networks, without connections yet; one may take `connect` to be made. https:// servers need `tls`.
    pub fn tcp(connect: Duration, tls: Option<Arc<Client>>) -> Self {
        Self::over(Dial::new(connect, tls))
    }
}

impl<C: Connect> Pooled<C> {
    /// A client without connections yet.
    pub fn over(connector: C) -> Self {
        Self { pool: Pool::default(), connector }
    }

    async fn open(&self, server: Uri) -> Result<Box<Line<C::Wire>>, ConnectError> {
        let wire = self.connector.connect(server).await.map_err(ConnectError::Open)?;
        Ok(Line::over(wire).await?)
    }

    async fn exchange(self, request: Request<Payload>) -> Result<Response<Answer<C::Wire>>, UpstreamError> {
        let uri = request.uri().clone();
        let (Some(server), Some(key)) = (uri.authority(), self.pool.key(&uri)) else {
            let source = ConnectError::NoServer.into();
            return Err(UpstreamError::Connect { to: uri.to_string(), source });
        };
        let mut request = addressed(request, key.host());
        loop {
            let kept = self.pool.take(&key);
            let is_kept = kept.is_some();
            let line = match kept {
                Some(line) => line,
                None => self
                    .open(uri.clone())
                    .await
                    .map_err(|error| UpstreamError::Connect { to: server.to_string(), source: error.into() })?,
            };
            let mut error = match line.exchange(request).await {
                Ok((response, line)) => {
                    return Ok(response.map(|body| Answer::new(body, line, self.pool, key)));
                }
                Err(error) => error,
            };
            // A server may close a connection in the very moment in which it is taken: of a request that hyper gives back it has
            // seen nothing.
            match error.take_message() {
                Some(unsent) if is_kept => request = unsent,
                Some(_) | None => {
                    let source = error.into_error().into();
                    return Err(UpstreamError::Broken { to: server.to_string(), source });
                }
            }
        }
    }
}

/// A request as it stands on the wire.
fn addressed(mut request: Request<Payload>, host: HeaderValue) -> Request<Payload> {
    let mut uri = std::mem::take(request.uri_mut()).into_parts();
    (uri.scheme, uri.authority) = (None, None);
    *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
    request.headers_mut().insert(header::HOST, host);
    request
}

impl<C: Connect> Upstream for Pooled<C> {
    fn send(&self, request: Request<Payload>) -> BoxFuture<'static, Result<Response<Body>, UpstreamError>> {
        let this = self.clone();
        Box::pin(async move { Ok(this.exchange(request).await?.map(Body::new)) })
    }

    fn fetch(
        &self,
        request: Request<Payload>,
        limit: usize,
    ) -> BoxFuture<'static, Result<Response<Bytes>, UpstreamError>> {
        let (this, uri) = (self.clone(), request.uri().clone());
        Box::pin(async move { whole(this.exchange(request).await?, &uri, limit).await })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::net::{TcpListener, TcpSocket, TcpStream};
    use tokio::sync::Notify;
    use tokio::time::{sleep, timeout};
    use tokio_util::task::TaskTracker;

    use super::*;

    #[tokio::test]
    async fn a_server_that_takes_no_connection_is_given_up_after_the_deadline_as_not_reached() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        // The system takes a few into the backlog, and lets everyone else wait.
        let mut backlog = Vec::new();
        while let Ok(connected) = timeout(Duration::from_secs(1), TcpStream::connect(address)).await {
            backlog.push(connected.unwrap());
            assert!(backlog.len() < 64, "the backlog has no end here");
        }
        let pooled = Pooled::tcp(Duration::from_millis(50), None);
        let request = Request::get(format!("http://{address}/")).body(Payload::default()).unwrap();
        let error = timeout(Duration::from_secs(30), pooled.send(request)).await.unwrap().unwrap_err();
        assert!(error.never_sent(), "{error:?}");
        assert_eq!(error.to_string(), format!("connect to {address}"));
    }

    /// What a server does with a connection after its first answer.
    #[derive(Clone, Copy, Debug)]
    enum After {
        Closes,
        /// It says that it will send no more, and goes on to read.
        HalfCloses,
        /// It says something that nobody asked for.
        Babbles,
    }

    /// Answers one request on each connection; counts the connections.
    async fn server(after: After, answered: Arc<Notify>) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&count);
        TaskTracker::new().spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut socket, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(socket.read_u8().await.unwrap());
                }
                socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                match after {
                    After::Closes => drop(socket),
                    After::HalfCloses => {
                        socket.shutdown().await.unwrap();
                        open.push(socket);
                    }
                    After::Babbles => {
                        socket.write_all(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                        open.push(socket);
                    }
                }
                answered.notify_one();
            }
        });
        (address, count)
    }

    #[tokio::test]
    async fn a_connection_that_its_server_has_ended_while_idle_takes_no_further_request() {
        for after in [After::Closes, After::HalfCloses, After::Babbles] {
            let answered = Arc::new(Notify::new());
            let (address, connections) = server(after, Arc::clone(&answered)).await;
            let pooled = Pooled::tcp(Duration::from_secs(5), None);
            for number in 1..=20 {
                let request = Request::post(format!("http://{address}/")).body(Payload::default()).unwrap();
                let answer = timeout(Duration::from_secs(20), pooled.send(request)).await.unwrap();
                let body = axum::body::to_bytes(answer.unwrap().into_body(), 16).await.unwrap();
                assert_eq!(&body[..], b"ok", "{after:?}, request {number}");
                answered.notified().await;
                // What the server has sent has to get here.
                sleep(Duration::from_millis(5)).await;
            }
            assert_eq!(connections.load(Ordering::SeqCst), 20, "{after:?}");
        }
    }

    /// A network of one server, on a clock that can be moved: it answers one request on each connection, and ends it a second later.
    #[derive(Clone, Debug)]
    struct OneServer {
        after: After,
        connections: Arc<AtomicUsize>,
    }

    impl Connect for OneServer {
        type Wire = TokioIo<DuplexStream>;

        async fn connect(&self, _: Uri) -> Result<Self::Wire, Box<dyn std::error::Error + Send + Sync>> {
            self.connections.fetch_add(1, Ordering::SeqCst);
            let (ours, mut theirs) = duplex(4096);
            let after = self.after;
            TaskTracker::new().spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(theirs.read_u8().await.unwrap());
                }
                theirs.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                sleep(Duration::from_secs(1)).await;
                match after {
                    After::Closes => return,
                    After::HalfCloses => theirs.shutdown().await.unwrap(),
                    After::Babbles => theirs.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.unwrap(),
                }
                // It would take whatever comes, and never answer.
                drop(theirs.read_to_end(&mut head).await);
            });
            Ok(TokioIo::new(ours))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_its_server_has_ended_after_a_second_of_idleness_takes_no_request_hours_later() {
        for after in [After::Closes, After::HalfCloses, After::Babbles] {
            let server = OneServer { after, connections: Arc::default() };
            let pooled = Pooled::over(server.clone());
            for number in 1..=5 {
                let request = Request::post("http://engine/").body(Payload::default()).unwrap();
                let answer = timeout(Duration::from_secs(60), pooled.send(request)).await.unwrap();
                let body = axum::body::to_bytes(answer.unwrap().into_body(), 16).await.unwrap();
                assert_eq!(&body[..], b"ok", "{after:?}, request {number}");
                sleep(Duration::from_secs(5 * 3600)).await;
            }
            assert_eq!(server.connections.load(Ordering::SeqCst), 5, "{after:?}");
        }
    }
}
