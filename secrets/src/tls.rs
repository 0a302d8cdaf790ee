//! TLS of both sides: what a server shows and asks for ([`Server`]), and whom a client trusts ([`Client`], [`Dial`]).
//!
//! TLS 1.2 and 1.3, with rustls and aws-lc-rs. The files are read again when they change; a connection keeps what it was opened with. There are no
//! revocation lists: who must be shut out gets an authority that no longer signs it, or certificates that live shortly.

mod args;
mod client;
mod pem;
mod server;
mod stream;

use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use thiserror::Error;

pub use args::{ClientArgs, ServerArgs};
pub use client::{Client, Dial, DialError};
pub use server::Server;
pub use stream::Stream;

/// Why TLS cannot be spoken as the command line wants it.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A flag without the one that it needs.
    #[error("--{flag} needs --{needs}")]
    Alone {
        /// The flag that was given.
        flag: &'static str,
        /// The flag that was not.
        needs: &'static str,
    },
    /// A file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A file holds nothing of what it should.
    #[error("{} holds no {what} in PEM", path.display())]
    Nothing {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// A certificate of an authority cannot be one.
    #[error("trust the certificates in {}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rustls::Error,
    },
    /// The certificate and its key do not fit, or cannot be used.
    #[error("use the certificate in {} with the key in {}", certificate.display(), key.display())]
    Pair {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of its key.
        key: PathBuf,
        /// What is wrong with them.
        #[source]
        source: rustls::Error,
    },
    /// No client could be asked for a certificate.
    #[error("ask clients for certificates of {}", path.display())]
    Verifier {
        /// The file of the authority.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rustls::server::VerifierBuilderError,
    },
    /// Not a name that a certificate may bear.
    #[error("--upstream-server-name {0:?} is no DNS name and no IP address")]
    Name(String),
    /// The library does not speak what is wanted.
    #[error("set up TLS")]
    Library(#[from] rustls::Error),
}

/// A certificate and its key, as files in PEM.
#[derive(Clone, Debug)]
struct Pair {
    /// The certificate, and after it those that lead to the authority.
    certificate: PathBuf,
    key: PathBuf,
}

/// Whose cryptography is used. Named for each configuration, since a process may hold other users of rustls.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
