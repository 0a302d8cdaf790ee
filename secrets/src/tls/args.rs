//! The flags of TLS, the same on `kvgate sidecar` and `kvgate router`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use rustls::pki_types::ServerName;

use super::{Client, Pair, Server, TlsError};

/// What a server shows, and whom it lets in.
#[derive(Clone, Debug, Default, Args)]
pub struct ServerArgs {
    /// Serve HTTPS with this certificate (PEM, with those that lead to its authority); read again when it changes
    #[arg(long, env = "KVGATE_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// The key of --tls-cert (PEM)
    #[arg(long, env = "KVGATE_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Let only clients in that show a certificate of this authority (PEM): mutual TLS
    #[arg(long, env = "KVGATE_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,
}

/// Whom a client trusts, and what it shows.
#[derive(Clone, Debug, Default, Args)]
pub struct ClientArgs {
    /// The authority (PEM) that signs the certificates of https:// engines and sidecars; there is no other one
    #[arg(long, env = "KVGATE_UPSTREAM_CA", value_name = "FILE")]
    pub upstream_ca: Option<PathBuf>,

    /// The certificate (PEM) to show to https:// engines and sidecars; read again when it changes
    #[arg(long, env = "KVGATE_UPSTREAM_CERT", value_name = "FILE")]
    pub upstream_cert: Option<PathBuf>,

    /// The key of --upstream-cert (PEM)
    #[arg(long, env = "KVGATE_UPSTREAM_KEY", value_name = "FILE")]
    pub upstream_key: Option<PathBuf>,

    /// The name that their certificates must bear, instead of the URL's host: for pods that are reached by their addresses
    #[arg(long, env = "KVGATE_UPSTREAM_SERVER_NAME", value_name = "NAME")]
    pub upstream_server_name: Option<String>,
}

impl ServerArgs {
    /// Reads the files; `None` without `--tls-cert`.
    ///
    /// # Errors
    /// [`TlsError`] for flags that miss one another, and for files that cannot be used.
    pub fn check(&self) -> Result<Option<Arc<Server>>, TlsError> {
        let Self { tls_cert, tls_key, tls_client_ca } = self;
        let pair = pair(("tls-cert", tls_cert.as_ref()), ("tls-key", tls_key.as_ref()))?;
        match pair {
            Some(pair) => Server::read(pair, tls_client_ca.clone()).map(Some),
            None if tls_client_ca.is_some() => Err(TlsError::Alone { flag: "tls-client-ca", needs: "tls-cert" }),
            None => Ok(None),
        }
    }
}

impl ClientArgs {
    /// Reads the files; `None` without `--upstream-ca`.
    ///
    /// # Errors
    /// [`TlsError`] for flags that miss one another, and for files that cannot be used.
    pub fn check(&self) -> Result<Option<Arc<Client>>, TlsError> {
        let Self { upstream_ca, upstream_cert, upstream_key, upstream_server_name } = self;
        let pair = pair(("upstream-cert", upstream_cert.as_ref()), ("upstream-key", upstream_key.as_ref()))?;
        let given = [("upstream-cert", pair.is_some()), ("upstream-server-name", upstream_server_name.is_some())];
        let alone = given.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag);
        let name = upstream_server_name
            .as_ref()
            .map(|name| ServerName::try_from(name.clone()).map_err(|_invalid| TlsError::Name(name.clone())));
        match (upstream_ca, alone) {
            (Some(authority), _) => Client::read(authority.clone(), pair, name.transpose()?).map(Some),
            (None, Some(flag)) => Err(TlsError::Alone { flag, needs: "upstream-ca" }),
            (None, None) => Ok(None),
        }
    }
}

type Flag<'a> = (&'static str, Option<&'a PathBuf>);

fn pair(certificate: Flag<'_>, key: Flag<'_>) -> Result<Option<Pair>, TlsError> {
    match (certificate.1, key.1) {
        (Some(certificate), Some(key)) => Ok(Some(Pair { certificate: certificate.clone(), key: key.clone() })),
        (Some(_), None) => Err(TlsError::Alone { flag: certificate.0, needs: key.0 }),
        (None, Some(_)) => Err(TlsError::Alone { flag: key.0, needs: certificate.0 }),
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_that_belong_together_are_asked_for_together() {
        let file = || Some(PathBuf::from("no/such/file"));
        let server = |tls_cert, tls_key, tls_client_ca| ServerArgs { tls_cert, tls_key, tls_client_ca }.check();
        let client = |upstream_ca, upstream_cert, upstream_key, name: Option<&str>| {
            let upstream_server_name = name.map(str::to_owned);
            ClientArgs { upstream_ca, upstream_cert, upstream_key, upstream_server_name }.check()
        };
        assert!(matches!(server(None, None, None), Ok(None)) && matches!(client(None, None, None, None), Ok(None)));
        for (error, says) in [
            (server(file(), None, None).unwrap_err(), "--tls-cert needs --tls-key"),
            (server(None, file(), None).unwrap_err(), "--tls-key needs --tls-cert"),
            (server(None, None, file()).unwrap_err(), "--tls-client-ca needs --tls-cert"),
            (client(file(), file(), None, None).unwrap_err(), "--upstream-cert needs --upstream-key"),
            (client(None, file(), file(), None).unwrap_err(), "--upstream-cert needs --upstream-ca"),
            (client(None, None, None, Some("a")).unwrap_err(), "--upstream-server-name needs --upstream-ca"),
            (client(file(), None, None, Some("no name")).unwrap_err(), "\"no name\" is no DNS name"),
            (server(file(), file(), None).unwrap_err(), "read no/such/file"),
            (client(file(), None, None, None).unwrap_err(), "read no/such/file"),
        ] {
            assert!(error.to_string().contains(says), "{error} does not say {says}");
        }
    }
}
