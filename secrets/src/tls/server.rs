//! The server's side: one certificate for every connection, and perhaps one asked of every client.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Pair, TlsError, pem, provider};
use crate::follow::Followed;

/// What a server shows and asks for, as the files say now.
#[derive(Debug)]
pub struct Server {
    pair: Pair,
    client_authority: Option<PathBuf>,
    now: RwLock<Arc<ServerConfig>>,
}

impl Server {
    pub(super) fn read(pair: Pair, client_authority: Option<PathBuf>) -> Result<Arc<Self>, TlsError> {
        let now = RwLock::new(load(&pair, client_authority.as_ref())?);
        Ok(Arc::new(Self { pair, client_authority, now }))
    }

    /// Whether nobody comes in without a certificate.
    pub fn is_mutual(&self) -> bool {
        self.client_authority.is_some()
    }

    /// A handshake with the certificates of now. Whoever calls it sees to a deadline.
    ///
    /// # Errors
    /// When the client speaks no TLS, shows no certificate where one is asked for, or breaks off.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub async fn accept<I: AsyncRead + AsyncWrite + Unpin>(&self, io: I) -> io::Result<TlsStream<I>> {
        let config = Arc::clone(&self.now.read());
        TlsAcceptor::from(config).accept(io).await
    }
}

impl Followed for Server {
    type Error = TlsError;

    const WHAT: &'static str = "server certificate";

    fn paths(&self) -> Vec<PathBuf> {
        let own = [&self.pair.certificate, &self.pair.key];
        own.into_iter().chain(&self.client_authority).cloned().collect()
    }

    fn read_again(&self) -> Result<(), TlsError> {
        let config = load(&self.pair, self.client_authority.as_ref())?;
        *self.now.write() = config;
        Ok(())
    }
}

/// Made anew, it knows no session of before: what the old files let in has to show itself to the new ones.
fn load(pair: &Pair, client_authority: Option<&PathBuf>) -> Result<Arc<ServerConfig>, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match client_authority {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(pem::authorities(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
            let verifier = verifier.map_err(|source| TlsError::Verifier { path: path.clone(), source })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let (chain, key) = pem::identity(pair)?;
    let Pair { certificate, key: key_path } = pair.clone();
    let unusable = |source| TlsError::Pair { certificate, key: key_path, source };
    let mut config = builder.with_single_cert(chain, key).map_err(unusable)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
