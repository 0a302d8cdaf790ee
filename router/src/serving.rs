//! Connections: how many, how long they may be idle or dawdle over a request's head, how they end.
//!
//! HTTP/1.1 and HTTP/2 without TLS on the same port. One timer per connection, which is set anew only when it fires: requests
//! write down when something happened and never touch a timer.

mod connection;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router as Routes;
use axum::body::Body;
use axum::serve::Listener;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service as _;
use tracing::{debug, trace};

use crate::config::listen::Listen;
use crate::guard::Guard;
use connection::{Answering, Phase, Seen, SeenIo};

/// Requests at once on one HTTP/2 connection.
const STREAMS: u32 = 256;

/// What connections are held to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) connections: u32,
    /// For the head of a request.
    pub(crate) head: Duration,
    /// Between two requests.
    pub(crate) idle: Duration,
    pub(crate) head_bytes: u32,
    pub(crate) headers: u32,
}

impl From<&Listen> for Terms {
    fn from(listen: &Listen) -> Self {
        Self {
            connections: listen.max_connections,
            head: listen.header_deadline,
            idle: listen.idle_timeout,
            head_bytes: listen.max_header_bytes,
            headers: listen.max_headers,
        }
    }
}

/// What requests meet: the guard first, then the routes.
#[derive(Clone, Debug)]
pub(crate) struct Front {
    pub(crate) guard: Arc<Guard>,
    pub(crate) routes: Routes,
}

/// Serves until `close`, then lets requests under way end and returns when all connections are closed.
///
/// With as many connections as there may be, further ones wait in the system's backlog.
pub(crate) async fn serve<L: Listener>(mut listener: L, front: Front, terms: Terms, close: CancellationToken) {
    let builder = builder(terms);
    let open = Arc::new(Semaphore::new(usize::try_from(terms.connections).unwrap_or(Semaphore::MAX_PERMITS)));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = close.cancelled() => break,
            accepted = accept(&mut listener, &open) => accepted,
        };
        let Some((io, place)) = accepted else { break };
        let connection = hold(io, front.clone(), builder.clone(), terms, close.child_token());
        connections.spawn(async move {
            connection.await;
            drop(place);
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn accept<L: Listener>(
    listener: &mut L,
    open: &Arc<Semaphore>,
) -> Option<(L::Io, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(open).acquire_owned().await.ok()?;
    let (io, _) = listener.accept().await;
    Some((io, place))
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

/// One connection from its start to its end.
async fn hold<I>(io: I, front: Front, builder: Builder<TokioExecutor>, terms: Terms, close: CancellationToken)
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let seen = Arc::new(Seen::new(Instant::now()));
    let service = {
        let seen = Arc::clone(&seen);
        service_fn(move |request| answer(front.clone(), Arc::clone(&seen), request))
    };
    let io = TokioIo::new(SeenIo::new(io, Arc::clone(&seen)));
    let mut connection = std::pin::pin!(builder.serve_connection(io, service));
    let mut timer = std::pin::pin!(sleep_until(Instant::now() + terms.head));
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

async fn answer(
    mut front: Front,
    seen: Arc<Seen>,
    request: Request<Incoming>,
) -> Result<Response<Answering>, Infallible> {
    let under_way = seen.begin(request.version());
    let mut request = request.map(Body::new);
    let response = match front.guard.admit(&mut request) {
        Ok(()) => match front.routes.call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        },
        Err(refused) => {
            let unauthorized = refused.status == StatusCode::UNAUTHORIZED;
            let mut response = refused.into_response();
            if unauthorized {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            response
        }
    };
    Ok(response.map(|body| Answering::new(body, under_way)))
}
