//! How the router reaches engines and sidecars: one small trait, so that tests and simulations bring their own network.

mod line;
mod payload;
mod pool;
mod pooled;

use std::fmt::Debug;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::uri::Scheme;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Limited};

pub use line::Wire;
pub use payload::Payload;
pub use pooled::{Connect, Pooled};

/// Something that sends HTTP requests. The body of a response comes as it arrives; dropping it (or the future) closes
/// the connection, which is how a request is cancelled.
pub trait Upstream: Debug + Send + Sync + 'static {
    /// Sends one request to the authority in its URI.
    fn send(&self, request: Request<Payload>) -> BoxFuture<'static, Result<Response<Body>, UpstreamError>>;
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
    let to = server(&request);
    let answer = tokio::time::timeout(deadline, upstream.send(request)).await;
    answer.unwrap_or(Err(UpstreamError::Late { to, deadline }))
}

/// Sends a request and reads the whole answer, of at most `limit` bytes, within `deadline`.
pub(crate) async fn fetch(
    upstream: &dyn Upstream,
    request: Request<Payload>,
    deadline: Duration,
    limit: usize,
) -> Result<Response<Bytes>, UpstreamError> {
    let to = server(&request);
    let server = to.clone();
    let whole = async move {
        let (head, body) = upstream.send(request).await?.into_parts();
        let body = Limited::new(body, limit).collect().await;
        let body = body.map_err(|source| UpstreamError::Body { to: server, source })?;
        Ok(Response::from_parts(head, body.to_bytes()))
    };
    tokio::time::timeout(deadline, whole).await.unwrap_or(Err(UpstreamError::Late { to, deadline }))
}

/// The host and port that a request goes to.
pub(crate) fn server<B>(request: &Request<B>) -> String {
    request.uri().authority().map(ToString::to_string).unwrap_or_default()
}

/// `path` (starting with `/`) on the server `base`, reached as that is.
pub(crate) fn at(base: &Uri, path: &str) -> Result<Uri, http::Error> {
    let mut builder = Uri::builder().scheme(base.scheme().cloned().unwrap_or(Scheme::HTTP)).path_and_query(path);
    if let Some(authority) = base.authority() {
        builder = builder.authority(authority.clone());
    }
    builder.build()
}
