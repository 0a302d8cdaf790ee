//! One question to a process's HTTP API: short, bounded, with the token when there is one. For `doctor` and `top`.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use secrets::tls::{self, Dial, DialError};
use serde_json::Value;
use tokio::time::timeout;

/// The most bytes of an answer that are read.
const MAX_ANSWER: usize = 16 << 20;

/// Asks any number of processes, each question over a connection of its own.
#[derive(Clone)]
pub(crate) struct Asker {
    dial: Dial,
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
    /// No connection.
    #[error("ask {url}")]
    Open {
        url: Uri,
        #[source]
        source: DialError,
    },
    /// The connection broke, or brought no HTTP.
    #[error("ask {url}")]
    Send {
        url: Uri,
        #[source]
        source: hyper::Error,
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
        Self { dial: Dial::new(patience, tls), token, patience }
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
        let (Some("http" | "https"), Some(authority)) = (url.scheme_str(), url.authority()) else {
            return Err(wrong());
        };
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let host = authority.as_str().rsplit_once('@').map_or(authority.as_str(), |(_user, host)| host);
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, host);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body)).map_err(|_invalid| wrong())?;
        let late = AskError::Late { url: url.clone(), patience: self.patience };
        timeout(self.patience, Box::pin(self.exchange(url, request))).await.unwrap_or(Err(late))
    }

    async fn exchange(&self, url: Uri, request: Request<Full<Bytes>>) -> Result<Answer, AskError> {
        let wire = self.dial.open(url.clone()).await.map_err(|source| AskError::Open { url: url.clone(), source })?;
        let sending = |source| AskError::Send { url: url.clone(), source };
        let (mut sender, connection) = handshake(wire).await.map_err(sending)?;
        // Queued before the connection is looked at for the first time. In TLS 1.3 a server that wants another certificate says so after the
        // handshake, and hyper tells it to the request that waits, or to nobody.
        let response = sender.send_request(request);
        let asking = async {
            let (parts, body) = response.await.map_err(sending)?.into_parts();
            let bytes = Limited::new(body, MAX_ANSWER).collect().await;
            let bytes = bytes.map_err(|source| AskError::Body { url: url.clone(), source })?.to_bytes();
            let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
            Ok(Answer { status: parts.status, headers: parts.headers, body })
        };
        let mut asking = pin!(asking);
        tokio::select! {
            answer = &mut asking => answer,
            // What ended it is told to who waits.
            _ = connection => asking.await,
        }
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
#[path = "../tests/support/authority.rs"]
mod authority;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::net::TcpListener;
    use tokio_util::task::TaskTracker;

    use super::authority::Authority;
    use super::*;

    /// A server that lets only clients of `authority` in, and closes what it has not let in.
    async fn guarded(authority: &Authority, tasks: &TaskTracker) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, tls) = (listener.local_addr().unwrap(), authority.server(Some(&authority.ca())));
        tasks.spawn(async move {
            while let Ok((wire, _)) = listener.accept().await {
                drop(tls.accept(wire).await);
            }
        });
        address
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn why_a_server_wants_another_certificate_is_said_whenever_it_says_so() {
        let (authority, tasks) = (Authority::new(), TaskTracker::new());
        let address = guarded(&authority, &tasks).await;
        let asker = Asker { dial: authority.client(None), token: None, patience: Duration::from_secs(60) };
        let asked: Vec<_> = (0..256)
            .map(|_| {
                let (asker, url) = (asker.clone(), format!("https://{address}"));
                tasks.spawn(async move { with_causes(&asker.get(&url, "/livez").await.unwrap_err()) })
            })
            .collect();
        for said in asked {
            let said = said.await.unwrap();
            assert!(said.contains("CertificateRequired"), "{said}");
        }
    }

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
