//! D's side: whoever answers for P's blocks. The real one is P's sidecar, over HTTP ([`crate::http::HttpSources`]).

use std::fmt::Debug;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::{StatusCode, Uri};

use super::{DigestAsk, Digests};
use crate::model::Code;
use crate::peer_allow::NotAllowed;
use crate::problem::Kind;

/// Asks prefill pods' sidecars for digests.
pub trait SourceDigests: Debug + Send + Sync + 'static {
    /// Asks the sidecar at `sidecar`, until the question's deadline.
    fn ask<'a>(&'a self, sidecar: &'a Uri, ask: &'a DigestAsk) -> BoxFuture<'a, Result<Digests, SourceError>>;
}

/// Why there are no digests.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SourceError {
    /// No question can be sent there.
    #[error("the address is no http://HOST:PORT or https://HOST:PORT")]
    Address,
    /// It must not be connected to.
    #[error(transparent)]
    NotAllowed(NotAllowed),
    /// The question cannot be written down.
    #[error("write the question down")]
    Write(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// It was not reached, or broke off.
    #[error("ask for the digests")]
    Send(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// No answer in time.
    #[error("it did not answer in time")]
    Late,
    /// It said no.
    #[error("it refuses with {status} {code}: {detail}")]
    Refused {
        /// The status.
        status: StatusCode,
        /// The problem's code; empty when the answer was no problem document.
        code: String,
        /// In its words.
        detail: String,
    },
    /// An answer that is not the API's.
    #[error("its answer cannot be used: {0}")]
    Answer(&'static str),
}

impl SourceError {
    /// Whether it had no room for the question at that moment.
    pub fn is_for_now(&self) -> bool {
        match self {
            Self::Refused { status, code, .. } => {
                *status == StatusCode::TOO_MANY_REQUESTS || code == Kind::TooManyConnections.code()
            }
            Self::Address | Self::NotAllowed(_) | Self::Write(_) | Self::Send(_) | Self::Late | Self::Answer(_) => {
                false
            }
        }
    }

    /// What it means for the transfer: P cannot be asked, or is another one by now.
    pub fn code(&self) -> Code {
        match self {
            Self::NotAllowed(_) => Code::PeerNotAllowed,
            Self::Refused { code, .. } if code == Code::PeerChanged.as_str() => Code::PeerChanged,
            Self::Address | Self::Write(_) | Self::Send(_) | Self::Late | Self::Refused { .. } | Self::Answer(_) => {
                Code::PeerUnreachable
            }
        }
    }
}

/// For pods that never verify, and for tests: answers nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSources;

impl SourceDigests for NoSources {
    fn ask<'a>(&'a self, _: &'a Uri, _: &'a DigestAsk) -> BoxFuture<'a, Result<Digests, SourceError>> {
        Box::pin(std::future::ready(Err(SourceError::Address)))
    }
}
