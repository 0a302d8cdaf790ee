//! How the router reaches engines and sidecars: one small trait, so that tests and simulations bring their own network.

mod line;
mod payload;
mod pool;
mod pooled;
mod turns;
mod whole;

use std::fmt::Debug;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::uri::{self, PathAndQuery};
use http::{Request, Response, Uri};

pub use line::Wire;
pub use payload::Payload;
pub use pooled::{Connect, Pooled};
pub(crate) use whole::{Unread, read_whole};

/// Something that sends HTTP requests. The body of a response comes as it arrives; dropping it (or the future) closes
/// the connection, which is how a request is cancelled.
pub trait Upstream: Debug + Send + Sync + 'static {
    /// Sends one request to the authority in its URI.
    fn send(&self, request: Request<Payload>) -> BoxFuture<'static, Result<Response<Body>, UpstreamError>>;

    /// Sends one request and reads the whole answer, of at most `limit` bytes.
    fn fetch(
        &self,
        request: Request<Payload>,
        limit: usize,
    ) -> BoxFuture<'static, Result<Response<Bytes>, UpstreamError>> {
        let uri = request.uri().clone();
        let sent = self.send(request);
        Box::pin(async move { whole(sent.await?, &uri, limit).await })
    }
}

/// An answer whose body is read.
async fn whole<B>(answer: Response<B>, uri: &Uri, limit: usize) -> Result<Response<Bytes>, UpstreamError>
where
    B: http_body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin,
{
    let (head, body) = answer.into_parts();
    let body = read_whole(body, limit).await;
    let body = body.map_err(|source| UpstreamError::Body { to: server(uri), source: source.into() })?;
    Ok(Response::from_parts(head, body))
}

/// Why no response came.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The server was not reached: it has seen nothing of the request.
    #[error("connect to {to}")]
    Connect {
        /// The server.
        to: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The connection broke before a response: the server may have seen the request.
    #[error("get an answer from {to}")]
    Broken {
        /// The server.
        to: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time: the server may have seen the request.
    #[error("get an answer from {to} within {deadline:?}")]
    Late {
        /// The server.
        to: String,
        /// How long was waited.
        deadline: Duration,
    },
    /// The body of the answer broke off, was late or too long.
    #[error("read the answer of {to}")]
    Body {
        /// The server.
        to: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl UpstreamError {
    /// Whether the server certainly has seen nothing of the request.
    pub fn never_sent(&self) -> bool {
        match self {
            Self::Connect { .. } => true,
            Self::Broken { .. } | Self::Late { .. } | Self::Body { .. } => false,
        }
    }

    /// Whether time ran out.
    pub fn is_late(&self) -> bool {
        match self {
            Self::Late { .. } => true,
            Self::Connect { .. } | Self::Broken { .. } | Self::Body { .. } => false,
        }
    }
}

/// Sends a request and waits for the head of the answer at most `deadline`.
pub(crate) async fn send_within(
    upstream: &dyn Upstream,
    request: Request<Payload>,
    deadline: Duration,
) -> Result<Response<Body>, UpstreamError> {
    let uri = request.uri().clone();
    let answer = tokio::time::timeout(deadline, upstream.send(request)).await;
    answer.unwrap_or_else(|_| Err(UpstreamError::Late { to: server(&uri), deadline }))
}

/// Sends a request and reads the whole answer, of at most `limit` bytes, within `deadline`.
pub(crate) async fn fetch(
    upstream: &dyn Upstream,
    request: Request<Payload>,
    deadline: Duration,
    limit: usize,
) -> Result<Response<Bytes>, UpstreamError> {
    let uri = request.uri().clone();
    let answer = tokio::time::timeout(deadline, upstream.fetch(request, limit)).await;
    answer.unwrap_or_else(|_| Err(UpstreamError::Late { to: server(&uri), deadline }))
}

/// The host and port that a request goes to.
fn server(uri: &Uri) -> String {
    uri.authority().map(ToString::to_string).unwrap_or_default()
}

/// What can be the path of a URI.
pub(crate) trait Path: TryInto<PathAndQuery, Error: Into<http::Error>> {}

impl<P: TryInto<PathAndQuery, Error: Into<http::Error>>> Path for P {}

/// `path` (starting with `/`) on the server `base`, reached as that is.
pub(crate) fn at(base: &Uri, path: impl Path) -> Result<Uri, http::Error> {
    let mut parts = uri::Parts::default();
    parts.scheme = Some(base.scheme().cloned().unwrap_or(uri::Scheme::HTTP));
    parts.authority = base.authority().cloned();
    parts.path_and_query = Some(path.try_into().map_err(Into::into)?);
    Ok(Uri::from_parts(parts)?)
}
