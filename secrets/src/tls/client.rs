//! The client's side: opens connections, plain for http:// and with TLS for https://.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use parking_lot::RwLock;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tower::Service;

use super::{Pair, Stream, TlsError, pem, provider};
use crate::follow::Followed;

/// Whom a client trusts and what it shows, as the files say now.
#[derive(Debug)]
pub struct Client {
    authority: PathBuf,
    pair: Option<Pair>,
    /// What certificates must bear instead of the URL's host.
    name: Option<ServerName<'static>>,
    now: RwLock<Arc<ClientConfig>>,
}

impl Client {
    pub(super) fn read(
        authority: PathBuf,
        pair: Option<Pair>,
        name: Option<ServerName<'static>>,
    ) -> Result<Arc<Self>, TlsError> {
        let now = RwLock::new(load(&authority, pair.as_ref())?);
        Ok(Arc::new(Self { authority, pair, name, now }))
    }

    async fn connect(&self, server: &Uri, tcp: TcpStream) -> Result<Stream, DialError> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => named(server).ok_or(DialError::Name)?,
        };
        let config = Arc::clone(&self.now.read());
        let tls = TlsConnector::from(config).connect(name, tcp).await.map_err(DialError::Handshake)?;
        Ok(Stream::Tls(Box::new(tls)))
    }
}

impl Followed for Client {
    type Error = TlsError;

    const WHAT: &'static str = "upstream certificate";

    fn paths(&self) -> Vec<PathBuf> {
        let pair = self.pair.iter().flat_map(|pair| [&pair.certificate, &pair.key]);
        std::iter::once(&self.authority).chain(pair).cloned().collect()
    }

    fn read_again(&self) -> Result<(), TlsError> {
        let config = load(&self.authority, self.pair.as_ref())?;
        *self.now.write() = config;
        Ok(())
    }
}

fn load(authority: &Path, pair: Option<&Pair>) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = builder.with_root_certificates(pem::authorities(authority)?);
    let mut config = match pair {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let (chain, key) = pem::identity(pair)?;
            let Pair { certificate, key: key_path } = pair.clone();
            let unusable = |source| TlsError::Pair { certificate, key: key_path, source };
            builder.with_client_auth_cert(chain, key).map_err(unusable)?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn named(server: &Uri) -> Option<ServerName<'static>> {
    let host = server.host()?.trim_matches(['[', ']']);
    ServerName::try_from(host.to_owned()).ok()
}

/// Why no connection was opened.
#[derive(Debug, Error)]
pub enum DialError {
    /// The host was not found, or does not answer.
    #[error("open a TCP connection")]
    Tcp(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An https:// server, and nothing is known of whom to trust.
    #[error("https needs --upstream-ca")]
    NoAuthority,
    /// The URL's host is nothing that a certificate could bear.
    #[error("the server's host is no name")]
    Name,
    /// No trust, or no TLS at the other end.
    #[error("agree on TLS")]
    Handshake(#[source] io::Error),
    /// Not in time.
    #[error("no connection within {0:?}")]
    Late(Duration),
}

/// Opens connections to the servers of URLs, each within a time that covers the name, TCP and TLS.
#[derive(Clone, Debug)]
pub struct Dial {
    tcp: HttpConnector,
    tls: Option<Arc<Client>>,
    within: Duration,
}

impl Dial {
    /// Without `tls`, https:// servers are refused.
    pub fn new(within: Duration, tls: Option<Arc<Client>>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(within));
        Self { tcp, tls, within }
    }

    /// Opens one.
    ///
    /// # Errors
    /// [`DialError`].
    ///
    /// # Cancel safety
    /// Dropping the future closes what was opened.
    pub async fn open(&self, server: Uri) -> Result<TokioIo<Stream>, DialError> {
        self.in_time(async {
            let tcp = self.tcp.clone().call(server.clone()).await.map_err(|error| DialError::Tcp(error.into()))?;
            self.stream(tcp.into_inner(), &server).await
        })
        .await
    }

    /// The same at an address that is known already: nothing is looked up.
    ///
    /// # Errors
    /// [`DialError`].
    ///
    /// # Cancel safety
    /// Dropping the future closes what was opened.
    pub async fn open_at(&self, address: SocketAddr, server: Uri) -> Result<TokioIo<Stream>, DialError> {
        self.in_time(async {
            let tcp = TcpStream::connect(address).await.map_err(|error| DialError::Tcp(error.into()))?;
            tcp.set_nodelay(true).map_err(|error| DialError::Tcp(error.into()))?;
            self.stream(tcp, &server).await
        })
        .await
    }

    async fn in_time(
        &self,
        opening: impl Future<Output = Result<Stream, DialError>>,
    ) -> Result<TokioIo<Stream>, DialError> {
        timeout(self.within, opening).await.unwrap_or(Err(DialError::Late(self.within))).map(TokioIo::new)
    }

    async fn stream(&self, tcp: TcpStream, server: &Uri) -> Result<Stream, DialError> {
        let secure = server.scheme() == Some(&Scheme::HTTPS);
        match (&self.tls, secure) {
            (Some(tls), true) => tls.connect(server, tcp).await,
            (None, true) => Err(DialError::NoAuthority),
            (_, false) => Ok(Stream::Plain(tcp)),
        }
    }
}

impl Service<Uri> for Dial {
    type Response = TokioIo<Stream>;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<TokioIo<Stream>, DialError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let dial = self.clone();
        Box::pin(async move { dial.open(server).await })
    }
}
