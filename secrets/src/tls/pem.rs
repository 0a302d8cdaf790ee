//! Certificates and keys as files in PEM.

use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::{Error, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{Pair, TlsError};

/// A certificate with those that lead to its authority, and its key.
pub(super) fn identity(pair: &Pair) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let key = PrivateKeyDer::from_pem_file(&pair.key).map_err(|error| unreadable(&pair.key, "private key", error))?;
    Ok((certificates(&pair.certificate)?, key))
}

/// The authorities of a file.
pub(super) fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|source| TlsError::Authority { path: path.to_owned(), source })?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    const WHAT: &str = "certificate";
    let failed = |error| unreadable(path, WHAT, error);
    let all = CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    if all.is_empty() { Err(TlsError::Nothing { path: path.to_owned(), what: WHAT }) } else { Ok(all) }
}

fn unreadable(path: &Path, what: &'static str, error: Error) -> TlsError {
    let path = path.to_owned();
    if matches!(error, Error::NoItemsFound) {
        TlsError::Nothing { path, what }
    } else {
        TlsError::Read { path, source: error }
    }
}
