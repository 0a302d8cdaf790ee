//! `URL[,sidecar=URL]`: where a pod's engine and its sidecar answer.

use std::str::FromStr;

use http::Uri;
use http::uri::Authority;

/// The sidecar's default port.
const SIDECAR_PORT: u16 = 7700;

/// One pod as the command line names it; both addresses are scheme and authority only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodUrl {
    /// The engine's address.
    pub engine: Uri,
    /// Its sidecar's address.
    pub sidecar: Uri,
    /// Whether the command line says it, or it is the default one.
    pub sidecar_is_named: bool,
}

/// How a server is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Scheme {
    /// Without TLS.
    Http,
    /// With TLS.
    Https,
}

impl Scheme {
    /// As URLs write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Why a pod's URL cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PodUrlError {
    /// Not a URL of a server.
    #[error("{0:?} is not a URL like http://10.2.1.187:8000")]
    NotAUrl(String),
    /// Another scheme.
    #[error("{0:?} is neither http nor https")]
    Scheme(String),
    /// A path or query that would be dropped silently.
    #[error("{0:?} has a path or query: give scheme, host and port only")]
    Path(String),
    /// `URL@rank`.
    #[error("{0:?} names a rank or a user: the URL stands for all ranks, see --intra-node-data-parallel-size")]
    Rank(String),
    /// Something after the comma that is not `sidecar=`.
    #[error("{0:?} is not an option of a pod: the only one is sidecar=URL")]
    Option(String),
}

impl FromStr for PodUrl {
    type Err = PodUrlError;

    fn from_str(text: &str) -> Result<Self, PodUrlError> {
        let (engine, options) = text.split_once(',').unwrap_or((text, ""));
        let engine = server(engine)?;
        let mut sidecar = None;
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("sidecar", url)) => sidecar = Some(server(url)?),
                Some(_) | None => return Err(PodUrlError::Option(option.to_owned())),
            }
        }
        let sidecar_is_named = sidecar.is_some();
        let sidecar = match sidecar {
            Some(url) => url,
            None => default_sidecar(Scheme::Http, &engine)?,
        };
        Ok(Self { engine, sidecar, sidecar_is_named })
    }
}

impl PodUrl {
    /// The same, its sidecar reached so unless the command line says how.
    pub(crate) fn with_sidecar_scheme(&self, scheme: Scheme) -> Self {
        let mut same = self.clone();
        if !self.sidecar_is_named
            && let Ok(sidecar) = default_sidecar(scheme, &self.engine)
        {
            same.sidecar = sidecar;
        }
        same
    }

    /// Which of the two is asked with TLS, if one is.
    pub(crate) fn https(&self) -> Option<&Uri> {
        [&self.engine, &self.sidecar].into_iter().find(|url| url.scheme() == Some(&http::uri::Scheme::HTTPS))
    }
}

fn server(text: &str) -> Result<Uri, PodUrlError> {
    let not_a_url = || PodUrlError::NotAUrl(text.to_owned());
    let uri: Uri = text.trim().parse().map_err(|_| not_a_url())?;
    let authority = uri.authority().ok_or_else(not_a_url)?;
    if authority.as_str().contains('@') {
        return Err(PodUrlError::Rank(text.to_owned()));
    }
    if authority.host().is_empty() {
        return Err(not_a_url());
    }
    let scheme = match uri.scheme_str() {
        Some("http") => Scheme::Http,
        Some("https") => Scheme::Https,
        Some(_) => return Err(PodUrlError::Scheme(text.to_owned())),
        None => return Err(not_a_url()),
    };
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(PodUrlError::Path(text.to_owned()));
    }
    let uri = Uri::builder().scheme(scheme.as_str()).authority(authority.clone());
    uri.path_and_query("/").build().map_err(|_| not_a_url())
}

fn default_sidecar(scheme: Scheme, engine: &Uri) -> Result<Uri, PodUrlError> {
    let not_a_url = || PodUrlError::NotAUrl(engine.to_string());
    let host = engine.host().ok_or_else(not_a_url)?;
    let authority: Authority = format!("{host}:{SIDECAR_PORT}").parse().map_err(|_| not_a_url())?;
    Uri::builder().scheme(scheme.as_str()).authority(authority).path_and_query("/").build().map_err(|_| not_a_url())
}
