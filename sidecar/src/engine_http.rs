//! The engine's own HTTP pages, as the watcher reads them: short GETs with a deadline and a bounded body.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::uri::PathAndQuery;
use http::{StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::Connect;
use hyper_util::rt::TokioExecutor;
use secrets::tls::{self, Dial};

/// The most bytes of a page that are read. vLLM's `/metrics` of 16 ranks is below 2 MiB.
const PAGE_LIMIT: usize = 16 << 20;
/// Longer than any page may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// One page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Its status.
    pub status: StatusCode,
    /// Its body.
    pub body: Bytes,
}

/// Reads pages of one engine.
pub trait EngineHttp: Debug + Send + Sync + 'static {
    /// GETs `path` within `deadline`, body included.
    fn get<'a>(&'a self, path: &'static str, deadline: Duration) -> BoxFuture<'a, Result<Page, GetError>>;
}

/// Why there is no page.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GetError {
    /// The engine's address and the path make no URL.
    #[error("{base}{path} is no URL")]
    Url {
        /// The engine's address.
        base: Uri,
        /// The page.
        path: &'static str,
    },
    /// No answer.
    #[error("GET {url}")]
    Send {
        /// Which page.
        url: Uri,
        /// Why.
        #[source]
        source: Arc<hyper_util::client::legacy::Error>,
    },
    /// No whole answer.
    #[error("read the body of {url}")]
    Body {
        /// Which page.
        url: Uri,
        /// Why.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("GET {url} took longer than {deadline:?}")]
    Late {
        /// Which page.
        url: Uri,
        /// The time it had.
        deadline: Duration,
    },
}

/// An engine behind an address that its connector reaches.
#[derive(Clone, Debug)]
pub struct TcpEngine<C = Dial> {
    base: Uri,
    client: Client<C, Empty<Bytes>>,
}

impl TcpEngine {
    /// The engine at `base` (`http://host:port`; a path is kept as a prefix); `tls` for https.
    pub fn new(base: Uri, tls: Option<Arc<tls::Client>>) -> Self {
        Self::over(Dial::new(CONNECT_WITHIN, tls), base)
    }
}

impl<C: Connect + Clone + Send + Sync + 'static> TcpEngine<C> {
    /// The same over another network.
    pub fn over(connector: C, base: Uri) -> Self {
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(2).build(connector);
        Self { base, client }
    }

    fn url(&self, path: &'static str) -> Result<Uri, GetError> {
        let error = || GetError::Url { base: self.base.clone(), path };
        let mut parts = self.base.clone().into_parts();
        let joined = format!("{}{path}", self.base.path().trim_end_matches('/'));
        parts.path_and_query = Some(PathAndQuery::try_from(joined).map_err(|_invalid| error())?);
        Uri::from_parts(parts).map_err(|_invalid| error())
    }

    async fn read(&self, url: Uri) -> Result<Page, GetError> {
        let send = |source| GetError::Send { url: url.clone(), source: Arc::new(source) };
        let answer = self.client.get(url.clone()).await.map_err(send)?;
        let status = answer.status();
        let body = |source: Box<dyn std::error::Error + Send + Sync>| {
            let source = Arc::from(source);
            GetError::Body { url: url.clone(), source }
        };
        let body = Limited::new(answer.into_body(), PAGE_LIMIT).collect().await.map_err(body)?.to_bytes();
        Ok(Page { status, body })
    }
}

impl<C: Connect + Clone + Send + Sync + Debug + 'static> EngineHttp for TcpEngine<C> {
    fn get<'a>(&'a self, path: &'static str, deadline: Duration) -> BoxFuture<'a, Result<Page, GetError>> {
        Box::pin(async move {
            let url = self.url(path)?;
            let late = GetError::Late { url: url.clone(), deadline };
            tokio::time::timeout(deadline, self.read(url)).await.unwrap_or(Err(late))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_joined_to_the_base() {
        let url = |base: &'static str| TcpEngine::new(Uri::from_static(base), None).url("/health").unwrap().to_string();
        assert_eq!(url("http://127.0.0.1:8000"), "http://127.0.0.1:8000/health");
        assert_eq!(url("http://engine:8000/prefix/"), "http://engine:8000/prefix/health");
    }
}
