//! An authority of a test's own, with certificates that it signs, as files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use secrets::tls::{ClientArgs, Dial, Server, ServerArgs};
use tempfile::TempDir;

/// For connections that are to be made; a pass never waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Dropped, its files are gone.
pub(crate) struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let mut params = CertificateParams::new(Vec::new()).expect("no name is a good name");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // No two authorities have a name in common.
        params.distinguished_name.push(DnType::CommonName, folder.path().display().to_string());
        let key = KeyPair::generate().expect("a key");
        let own = params.self_signed(&key).expect("it signs itself");
        std::fs::write(folder.path().join("ca.pem"), own.pem()).expect("the file is written");
        Self { folder, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Writes `NAME.pem` and `NAME.key`, good for one DNS name or address.
    pub(crate) fn sign(&self, name: &str, subject: &str) -> [PathBuf; 2] {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![subject.to_owned()]).expect("a name or an address");
        let certificate = params.signed_by(&key, &self.issuer).expect("it is signed");
        let [pem, secret] = ["pem", "key"].map(|end| self.folder.path().join(format!("{name}.{end}")));
        std::fs::write(&pem, certificate.pem()).expect("the file is written");
        std::fs::write(&secret, key.serialize_pem()).expect("the file is written");
        [pem, secret]
    }

    /// A server for 127.0.0.1.
    pub(crate) fn server(&self, client_ca: Option<&Path>) -> Arc<Server> {
        let [certificate, key] = self.sign("server", "127.0.0.1");
        let (tls_cert, tls_key, tls_client_ca) = (Some(certificate), Some(key), client_ca.map(Path::to_owned));
        ServerArgs { tls_cert, tls_key, tls_client_ca }.check().expect("the files are good").expect("TLS is wanted")
    }

    /// A client that trusts this authority and shows what `own` has.
    pub(crate) fn client(&self, own: Option<[PathBuf; 2]>) -> Dial {
        let [upstream_cert, upstream_key] = own.map_or([None, None], |own| own.map(Some));
        let args = ClientArgs { upstream_ca: Some(self.ca()), upstream_cert, upstream_key, ..ClientArgs::default() };
        Dial::new(PATIENCE, args.check().expect("the files are good"))
    }
}
