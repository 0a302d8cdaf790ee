//! The serving edge of router and sidecar: how many connections, how long they may be silent or take no bytes, how they end.
//!
//! HTTP/1.1 and HTTP/2 on the same port, with TLS or without, over any listener: its streams need only read and write, so that the same
//! edge stands before real sockets and simulated ones. A handshake happens in a place of its own: one that takes long holds up nobody. One timer per connection, which is set anew only when it fires: requests
//! write down when something happened and never touch a timer. Nothing here is chosen at run time per request: whoever answers is
//! known to the compiler.
#![forbid(unsafe_code)]

mod connection;
mod stall;
mod sync;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::serve::Listener;
use http::{HeaderValue, Request, Response, Version, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use secrets::tls::Server;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service as _;
use tracing::{debug, trace, warn};

use connection::{Answering, Phase, Seen, SeenIo};
use stall::NoStallIo;

/// Requests at once on one HTTP/2 connection.
const STREAMS: u32 = 256;

/// Between two lines that say that all connections are taken.
const SAY_FULL_EVERY: Duration = Duration::from_secs(10);

/// What connections are held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Open at once.
    pub connections: u32,
    /// Further ones, whose first request is answered by [`Answer::refuse`] and which are closed then. Beyond these, connections
    /// wait in the system's backlog.
    pub refused: u32,
    /// For the head of a request, from its first byte; of a connection's first request, from the start, a handshake included.
    pub head: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// For a peer that takes no bytes.
    pub stall: Duration,
    /// Largest head of a request in bytes; a larger one is answered 431.
    pub head_bytes: u32,
    /// Most headers of a request; more are answered 431.
    pub headers: u32,
}

/// Where connections come in.
#[derive(Debug)]
pub struct Port<L> {
    /// The sockets.
    pub listener: L,
    /// The TLS that every connection speaks, if any.
    pub tls: Option<Arc<Server>>,
}

impl<L> Port<L> {
    /// Without TLS.
    pub fn plain(listener: L) -> Self {
        Self { listener, tls: None }
    }
}

/// Whoever answers requests. A clone answers one.
pub trait Answer: Clone + Send + Sync + 'static {
    /// Answers a request.
    fn answer(self, request: Request<Body>) -> impl Future<Output = Response<Body>> + Send;

    /// Answers a request that came when all connections were taken: with a refusal, or as ever if it must be answered even then.
    fn refuse(self, request: Request<Body>) -> impl Future<Output = Response<Body>> + Send {
        self.answer(request)
    }
}

impl Answer for axum::Router {
    async fn answer(mut self, request: Request<Body>) -> Response<Body> {
        match self.call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// The answers of connections that there is no room for: one each.
#[derive(Clone)]
struct Refusing<A> {
    inner: A,
    close: CancellationToken,
}

impl<A: Answer> Answer for Refusing<A> {
    async fn answer(self, request: Request<Body>) -> Response<Body> {
        let version = request.version();
        let mut response = self.inner.refuse(request).await;
        // HTTP/2 has no such header and says the same with a frame.
        if version < Version::HTTP_2 {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        self.close.cancel();
        response
    }
}

/// Serves until `close`, then lets requests under way end and returns when all connections are closed.
pub async fn serve<L: Listener>(port: Port<L>, front: impl Answer, terms: Terms, close: CancellationToken) {
    let Port { mut listener, tls } = port;
    let builder = builder(terms);
    let places = Places::new(terms);
    let connections = TaskTracker::new();
    let mut said_full: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            biased;
            () = close.cancelled() => break,
            accepted = accept(&mut listener, &places) => accepted,
        };
        let Some((io, place)) = accepted else { break };
        let (front, builder, close) = (front.clone(), builder.clone(), close.child_token());
        if place.is_refused {
            if said_full.is_none_or(|said| said.elapsed() > SAY_FULL_EVERY) {
                said_full = Some(Instant::now());
                warn!(connections = terms.connections, "all connections are taken: further ones are refused");
            }
            let front = Refusing { inner: front, close: close.clone() };
            connections
                .spawn(Held { front, builder, terms, close, place, opened: Instant::now() }.opened(io, tls.clone()));
        } else {
            connections
                .spawn(Held { front, builder, terms, close, place, opened: Instant::now() }.opened(io, tls.clone()));
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn accept<L: Listener>(listener: &mut L, places: &Places) -> Option<(L::Io, Place)> {
    let place = places.any().await?;
    let (io, _) = listener.accept().await;
    Some((io, places.better(place)))
}

/// Room for connections.
struct Places {
    open: Arc<Semaphore>,
    refused: Arc<Semaphore>,
}

/// One connection's room.
struct Place {
    is_refused: bool,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    fn new(terms: Terms) -> Self {
        let room = |number: u32| Arc::new(Semaphore::new(usize::try_from(number).unwrap_or(Semaphore::MAX_PERMITS)));
        Self { open: room(terms.connections), refused: room(terms.refused) }
    }

    async fn any(&self) -> Option<Place> {
        tokio::select! {
            biased;
            open = Arc::clone(&self.open).acquire_owned() => Some(Place { is_refused: false, _permit: open.ok()? }),
            refused = Arc::clone(&self.refused).acquire_owned() => Some(Place { is_refused: true, _permit: refused.ok()? }),
        }
    }

    /// While a connection was waited for, another may have ended.
    fn better(&self, place: Place) -> Place {
        if !place.is_refused {
            return place;
        }
        let open = Arc::clone(&self.open).try_acquire_owned();
        open.map_or(place, |permit| Place { is_refused: false, _permit: permit })
    }
}

fn builder(terms: Terms) -> Builder<TokioExecutor> {
    /// hyper keeps its headers on the stack up to this many.
    const ON_STACK: u32 = 100;
    let mut builder = Builder::new(TokioExecutor::new());
    let bytes = usize::try_from(terms.head_bytes).unwrap_or(usize::MAX);
    let mut one = builder.http1();
    one.max_buf_size(bytes).half_close(false);
    if terms.headers != ON_STACK {
        one.max_headers(usize::try_from(terms.headers).unwrap_or(usize::MAX));
    }
    builder.http2().max_header_list_size(terms.head_bytes).max_concurrent_streams(STREAMS);
    builder
}

/// One connection.
struct Held<A> {
    front: A,
    builder: Builder<TokioExecutor>,
    terms: Terms,
    close: CancellationToken,
    /// Given back at its end.
    place: Place,
    opened: Instant,
}

impl<A: Answer> Held<A> {
    /// From its start to its end.
    async fn opened<I>(self, io: I, tls: Option<Arc<Server>>)
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        match tls {
            None => self.hold(io).await,
            // On its own on the heap: connections without TLS are not to be as large.
            Some(tls) => Box::pin(self.secured(io, tls)).await,
        }
    }

    async fn secured<I>(self, io: I, tls: Arc<Server>)
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let agreed = tokio::select! {
            biased;
            () = self.close.cancelled() => return,
            agreed = timeout_at(self.opened + self.terms.head, tls.accept(io)) => agreed,
        };
        match agreed {
            Ok(Ok(io)) => self.hold(io).await,
            // The other end may be anybody: not worth a line at the usual level.
            Ok(Err(error)) => debug!(error = &error as &dyn std::error::Error, "a connection does not agree on TLS"),
            Err(_late) => debug!("a connection does not come to the end of its handshake"),
        }
    }

    async fn hold<I>(self, io: I)
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let Self { front, builder, terms, close, place: _place, opened } = self;
        let seen = Arc::new(Seen::new(opened));
        let service = {
            let seen = Arc::clone(&seen);
            service_fn(move |request| answer(front.clone(), Arc::clone(&seen), request))
        };
        let io = TokioIo::new(SeenIo::new(NoStallIo::new(io, terms.stall), Arc::clone(&seen)));
        let mut connection = std::pin::pin!(builder.serve_connection(io, service));
        let mut timer = std::pin::pin!(sleep_until(opened + terms.head));
        let mut ending = false;
        loop {
            tokio::select! {
                biased;
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        trace!(error, "a connection ends with an error");
                    }
                    return;
                }
                () = timer.as_mut() => {
                    let (phase, since) = seen.phase();
                    let end = match phase {
                        Phase::Answering => None,
                        Phase::Head => Some(since + terms.head),
                        Phase::Idle => Some(since + terms.idle),
                    };
                    if end.is_some_and(|end| end <= Instant::now()) {
                        debug!(phase = ?phase, "a connection is closed for its silence");
                        return;
                    }
                    // Whatever begins after this moment may not end before the shorter of the two.
                    let soonest = Instant::now() + terms.head.min(terms.idle);
                    timer.as_mut().reset(end.map_or(soonest, |end| end.min(soonest)));
                }
                () = close.cancelled(), if !ending => {
                    ending = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

async fn answer(
    front: impl Answer,
    seen: Arc<Seen>,
    request: Request<Incoming>,
) -> Result<Response<Answering>, Infallible> {
    let under_way = seen.begin(request.version());
    let response = front.answer(request.map(Body::new)).await;
    Ok(response.map(|body| Answering::new(body, under_way)))
}
