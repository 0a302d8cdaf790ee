//! One question to a process's HTTP API: short, bounded, with the token when there is one. For `doctor` and `top`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use secrets::tls::{self, Dial};
use serde_json::Value;
use tokio::time::timeout;

/// The most bytes of an answer that are read.
const MAX_ANSWER: usize = 16 << 20;

/// Asks any number of processes; clones share connections.
#[derive(Clone)]
pub(crate) struct Asker {
    client: Client<Dial, Full<Bytes>>,
    token: Option<HeaderValue>,
    patience: Duration,
}

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// The body, when it is JSON.
    pub(crate) body: Value,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// Not an address that can be asked.
    #[error("{base}{path} is no http:// or https:// address")]
    Url { base: String, path: String },
    /// No connection, or it broke.
    #[error("ask {url}")]
    Send {
        url: Uri,
        #[source]
        source: hyper_util::client::legacy::Error,
    },
    /// The answer broke off, or is too long.
    #[error("read the answer of {url}")]
    Body {
        url: Uri,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("{url} has not answered within {patience:?}")]
    Late { url: Uri, patience: Duration },
}

impl Asker {
    /// Waits `patience` for each answer; https:// needs `tls`.
    pub(crate) fn new(token: Option<HeaderValue>, tls: Option<Arc<tls::Client>>, patience: Duration) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build(Dial::new(patience, tls)), token, patience }
    }

    /// The same without the token: for whoever is not a sidecar, or not yet known to be one.
    pub(crate) fn anonymous(&self) -> Self {
        Self { token: None, ..self.clone() }
    }

    pub(crate) async fn get(&self, base: &str, path: &str) -> Result<Answer, AskError> {
        self.send(Method::GET, base, path, Bytes::new()).await
    }

    /// `POST` of a JSON body.
    pub(crate) async fn post(&self, base: &str, path: &str, body: &Value) -> Result<Answer, AskError> {
        self.send(Method::POST, base, path, Bytes::from(body.to_string())).await
    }

    pub(crate) async fn delete(&self, base: &str, path: &str) -> Result<Answer, AskError> {
        self.send(Method::DELETE, base, path, Bytes::new()).await
    }

    async fn send(&self, method: Method, base: &str, path: &str, body: Bytes) -> Result<Answer, AskError> {
        let wrong = || AskError::Url { base: base.to_owned(), path: path.to_owned() };
        let url: Uri = format!("{}{path}", base.trim_end_matches('/')).parse().map_err(|_invalid| wrong())?;
        if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none() {
            return Err(wrong());
        }
        let mut request = Request::builder().method(method).uri(url.clone());
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body)).map_err(|_invalid| wrong())?;
        let late = AskError::Late { url: url.clone(), patience: self.patience };
        timeout(self.patience, self.exchange(url, request)).await.unwrap_or(Err(late))
    }

    async fn exchange(&self, url: Uri, request: Request<Full<Bytes>>) -> Result<Answer, AskError> {
        let response =
            self.client.request(request).await.map_err(|source| AskError::Send { url: url.clone(), source })?;
        let (parts, body) = response.into_parts();
        let bytes = Limited::new(body, MAX_ANSWER).collect().await;
        let bytes = bytes.map_err(|source| AskError::Body { url, source })?.to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asker").field("token", &self.token.is_some()).finish_non_exhaustive()
    }
}

/// An error with all its causes, in one line.
pub(crate) fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let words = next.to_string();
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_cannot_be_asked_is_said_with_its_cause() {
        let asker = Asker::new(None, None, Duration::from_secs(5));
        for base in ["nonsense", "ftp://host", ""] {
            assert!(matches!(asker.get(base, "/x").await, Err(AskError::Url { .. })), "{base}");
        }
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = asker.get(&format!("http://{free}"), "/health").await.unwrap_err();
        assert!(with_causes(&error).contains("refused"), "{}", with_causes(&error));
    }

    #[test]
    fn whoever_is_no_sidecar_is_asked_without_the_token() {
        let asker = Asker::new(Some(HeaderValue::from_static("Bearer x")), None, Duration::from_secs(1));
        assert!(asker.token.is_some() && asker.anonymous().token.is_none());
    }
}
