//! A connection to Kubernetes' API server: one at a time, for a list and the watch that continues it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Longest wait for a connection, TLS included.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Longest wait for the head of an answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// Most bytes of a refusal that are shown.
const MAX_REFUSAL: usize = 64 << 10;

/// Where the API is and what it asks for.
#[derive(Clone, Debug)]
pub struct Api {
    /// `https://HOST:PORT`, or `http://…` for `kubectl proxy`.
    pub base: Uri,
    /// The file with the account's token. Read for each connection: Kubernetes renews it.
    pub token: Option<PathBuf>,
    /// The file with the authority that signs the server's certificate, for https.
    pub authority: Option<PathBuf>,
}

/// Why the API cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Neither http nor https, or no host.
    #[error("{0} is no address of an API server")]
    Address(Uri),
    /// The token or the authority cannot be read.
    #[error("read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The token cannot stand in a header.
    #[error("{} holds no token", .0.display())]
    Token(PathBuf),
    /// The authority's file holds no certificate that can be used.
    #[error("{} holds no certificate of an authority", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// TLS cannot be set up.
    #[error("set up TLS")]
    Tls(#[from] rustls::Error),
    /// The host is no name that a certificate could have.
    #[error("the API server's host is no name")]
    Name(#[from] InvalidDnsNameError),
    /// No connection, or no trust.
    #[error("connect to the API server at {address}")]
    Connect {
        /// Where.
        address: String,
        /// What the system or TLS said.
        #[source]
        source: io::Error,
    },
    /// The connection broke.
    #[error("ask the API server")]
    Send(#[source] hyper::Error),
    /// The answer broke off.
    #[error("read the API server's answer")]
    Read(#[source] hyper::Error),
    /// A page of a list broke off or is too long.
    #[error("read a page of at most {most} bytes")]
    Page {
        /// The most bytes.
        most: usize,
        /// What happened.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It answers something else.
    #[error("the API server answers {status}: {says}")]
    Refused {
        /// Its status.
        status: StatusCode,
        /// Its words.
        says: String,
    },
    /// It does not answer in time.
    #[error("{what} has not come within {after:?}")]
    Late {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// More than can be held.
    #[error("{what} is longer than {most} bytes")]
    TooLong {
        /// What.
        what: &'static str,
        /// The most bytes.
        most: usize,
    },
    /// Not the JSON of the API.
    #[error("understand the API server's answer")]
    Json(#[source] serde_json::Error),
}

/// An open connection; dropped = closed.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    host: HeaderValue,
    authorization: Option<HeaderValue>,
    /// Moves the bytes; ends with the connection.
    _driver: JoinSet<()>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Api {
    /// Opens a connection with the token and authority of now.
    pub(super) async fn connect(&self) -> Result<Connection, ApiError> {
        let wrong = || ApiError::Address(self.base.clone());
        let authority = self.base.authority().ok_or_else(wrong)?;
        let tls = match self.base.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            Some(_) | None => return Err(wrong()),
        };
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let authorization = self.token.as_deref().map(bearer).transpose()?;
        let connecting = async {
            let failed = |source| ApiError::Connect { address: authority.to_string(), source };
            let tcp = TcpStream::connect((host.as_str(), port)).await.map_err(failed)?;
            let stream: Box<dyn Stream> = if tls {
                let name = ServerName::try_from(host.clone())?;
                Box::new(self.trust()?.connect(name, tcp).await.map_err(failed)?)
            } else {
                Box::new(tcp)
            };
            handshake(TokioIo::new(stream)).await.map_err(ApiError::Send)
        };
        let late = |_late| ApiError::Late { what: "a connection to the API server", after: CONNECT_DEADLINE };
        let (sender, connection) = timeout(CONNECT_DEADLINE, connecting).await.map_err(late)??;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // Whoever reads the answer learns of a broken connection.
            drop(connection.await);
        });
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_invalid| wrong())?;
        Ok(Connection { sender, host, authorization, _driver: driver })
    }

    fn trust(&self) -> Result<TlsConnector, ApiError> {
        let mut roots = RootCertStore::empty();
        if let Some(path) = &self.authority {
            let bytes = read(path)?;
            let unusable = |source| ApiError::Authority { path: path.clone(), source };
            for certificate in CertificateDer::pem_slice_iter(&bytes) {
                roots
                    .add(certificate.map_err(|error| unusable(error.into()))?)
                    .map_err(|error| unusable(error.into()))?;
            }
            if roots.is_empty() {
                return Err(unusable("there is none in it".into()));
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        Ok(TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth())))
    }
}

impl Connection {
    /// Asks for a path; the body of a good answer.
    pub(super) async fn get(&mut self, path: &str) -> Result<Incoming, ApiError> {
        let mut request = Request::builder().method(Method::GET).uri(path).header(header::HOST, &self.host);
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request.header(header::ACCEPT, "application/json").body(Empty::new());
        // Paths are made of checked parts.
        let request = request.map_err(|_invalid| ApiError::TooLong { what: "a path", most: path.len() })?;
        let asking = async {
            self.sender.ready().await.map_err(ApiError::Send)?;
            self.sender.send_request(request).await.map_err(ApiError::Send)
        };
        let late = |_late| ApiError::Late { what: "an answer of the API server", after: ANSWER_DEADLINE };
        let (head, body) = timeout(ANSWER_DEADLINE, asking).await.map_err(late)??.into_parts();
        if head.status == StatusCode::OK {
            return Ok(body);
        }
        let words = timeout(ANSWER_DEADLINE, Limited::new(body, MAX_REFUSAL).collect()).await;
        let words = words.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
        Err(ApiError::Refused { status: head.status, says: message(&words) })
    }
}

/// The `message` of the API's refusals.
fn message(body: &[u8]) -> String {
    let told: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let told = told.as_ref().and_then(|told| told.get("message")?.as_str()).map(str::to_owned);
    told.unwrap_or_else(|| String::from_utf8_lossy(body).chars().take(200).collect())
}

fn read(path: &Path) -> Result<Vec<u8>, ApiError> {
    std::fs::read(path).map_err(|source| ApiError::File { path: path.to_owned(), source })
}

fn bearer(path: &Path) -> Result<HeaderValue, ApiError> {
    let bytes = read(path)?;
    let token = bytes.trim_ascii();
    let value = HeaderValue::from_bytes(&[b"Bearer ", token].concat()).ok().filter(|_| !token.is_empty());
    let mut value = value.ok_or_else(|| ApiError::Token(path.to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}
