//! Prefill pods' sidecars, asked over HTTP for digests of their engines' blocks.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::uri::PathAndQuery;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::Connect;
use hyper_util::rt::{TokioExecutor, TokioIo};
use secrets::Tokens;
use secrets::tls::{self, Dial, Stream};
use serde::Deserialize;
use side_channel::Endpoint;
use tokio::time::{Instant, sleep, timeout_at};
use tower::Service;

use crate::digest::source::{SourceDigests, SourceError};
use crate::digest::{DigestAsk, Digests};
use crate::http::digests_json::{AskBody, DigestsJson};
use crate::http::edge::TRACE_PARENT;
use crate::peer_allow::{PeerAllow, PeerError};

/// Bytes of an answer: as many digests as may be asked for at a time take 3 MiB at most.
const MAX_ANSWER: usize = 4 << 20;
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// Before a sidecar that had no room is asked again.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// The sidecars that transfers name as `source_sidecar`.
///
/// They are asked with this sidecar's own token: who names one has shown that token to get here, so it is told nothing new. Whom it is told is
/// bounded by [`PeerAllow`].
#[derive(Clone, Debug)]
pub struct HttpSources<C = AllowedDial> {
    client: Client<C, Full<Bytes>>,
    tokens: Option<Arc<Tokens>>,
}

/// What a refusal says; no problem document leaves it empty.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Refusal {
    code: String,
    detail: String,
}

impl HttpSources {
    /// Asks with these tokens, and `tls` where a sidecar is https; nobody but whom `allow` allows.
    pub fn new(tokens: Option<Arc<Tokens>>, tls: Option<Arc<tls::Client>>, allow: PeerAllow) -> Self {
        Self::over(AllowedDial { dial: Dial::new(CONNECT_WITHIN, tls), allow }, tokens)
    }
}

/// Opens connections to allowed addresses only.
#[derive(Clone, Debug)]
pub struct AllowedDial {
    dial: Dial,
    allow: PeerAllow,
}

type DynError = Box<dyn std::error::Error + Send + Sync>;

impl AllowedDial {
    async fn open(self, server: Uri) -> Result<TokioIo<Stream>, DynError> {
        let peer = peer_of(&server).ok_or(SourceError::Address)?;
        let at = self.allow.resolve(&peer).await?;
        match at.host.parse() {
            Ok(address) => Ok(self.dial.open_at(SocketAddr::new(address, at.port), server).await?),
            // Whoever allows anybody has nothing looked up.
            Err(_name) => Ok(self.dial.open(server).await?),
        }
    }
}

impl Service<Uri> for AllowedDial {
    type Response = TokioIo<Stream>;
    type Error = DynError;
    type Future = BoxFuture<'static, Result<TokioIo<Stream>, DynError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DynError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        Box::pin(self.clone().open(server))
    }
}

/// What a sidecar's URL makes us connect to.
pub(crate) fn peer_of(sidecar: &Uri) -> Option<Endpoint> {
    let usual = if sidecar.scheme_str() == Some("https") { 443 } else { 80 };
    Some(Endpoint::new(sidecar.host()?.trim_matches(['[', ']']), sidecar.port_u16().unwrap_or(usual)))
}

/// A connection that was not made because it must not be.
fn not_allowed(error: &(dyn std::error::Error + 'static)) -> Option<SourceError> {
    let mut all = std::iter::successors(Some(error), |error| error.source());
    let refused = all.find_map(|error| error.downcast_ref::<PeerError>())?;
    match refused {
        PeerError::NotAllowed(refused) => Some(SourceError::NotAllowed(refused.clone())),
        PeerError::Unknown { .. } => None,
    }
}

impl<C: Connect + Clone + Send + Sync + 'static> HttpSources<C> {
    /// The same over another network.
    pub fn over(connector: C, tokens: Option<Arc<Tokens>>) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).pool_max_idle_per_host(8).build(connector), tokens }
    }

    /// A sidecar that has no room for the question just now is asked again: nobody else can answer for P's blocks, and P is well.
    async fn answer(&self, sidecar: &Uri, ask: &DigestAsk) -> Result<Digests, SourceError> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.once(sidecar, ask).await {
                Err(busy) if busy.is_for_now() && Instant::now() + pause < ask.deadline => sleep(pause).await,
                answer => return answer,
            }
            pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        }
    }

    async fn once(&self, sidecar: &Uri, ask: &DigestAsk) -> Result<Digests, SourceError> {
        let write = |error: Box<dyn std::error::Error + Send + Sync>| SourceError::Write(Arc::from(error));
        let send = |error: Box<dyn std::error::Error + Send + Sync>| SourceError::Send(Arc::from(error));
        let body = serde_json::to_vec(&AskBody::new(ask, Instant::now())).map_err(|error| write(Box::new(error)))?;
        let mut request = Request::post(digests_at(sidecar)?).header(header::CONTENT_TYPE, "application/json");
        if let Some(tokens) = &self.tokens {
            request = request.header(header::AUTHORIZATION, tokens.header());
        }
        // P's sidecar goes on in the transfer's trace.
        if let Some(trace) = ask.trace {
            request = request.header(TRACE_PARENT, trace.to_string());
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(|error| write(Box::new(error)))?;
        let answer = self.client.request(request).await;
        let answer = answer.map_err(|error| not_allowed(&error).unwrap_or_else(|| send(Box::new(error))))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(send)?.to_bytes();
        if !status.is_success() {
            let Refusal { code, detail } = serde_json::from_slice(&body).unwrap_or_default();
            return Err(SourceError::Refused { status, code, detail });
        }
        let json: DigestsJson = serde_json::from_slice(&body)
            .map_err(|_not_ours| SourceError::Answer("it is not what this API answers"))?;
        json.read(ask)
    }
}

impl<C: Connect + Clone + Send + Sync + Debug + 'static> SourceDigests for HttpSources<C> {
    fn ask<'a>(&'a self, sidecar: &'a Uri, ask: &'a DigestAsk) -> BoxFuture<'a, Result<Digests, SourceError>> {
        Box::pin(
            async move { timeout_at(ask.deadline, self.answer(sidecar, ask)).await.unwrap_or(Err(SourceError::Late)) },
        )
    }
}

/// `/v1/digests` of a sidecar.
fn digests_at(sidecar: &Uri) -> Result<Uri, SourceError> {
    let mut parts = sidecar.clone().into_parts();
    let path = format!("{}/v1/digests", sidecar.path().trim_end_matches('/'));
    parts.path_and_query = Some(PathAndQuery::try_from(path).map_err(|_invalid| SourceError::Address)?);
    Uri::from_parts(parts).map_err(|_invalid| SourceError::Address)
}

/// Whether a sidecar can be asked at this address.
pub(super) fn is_sidecar(uri: &Uri) -> bool {
    matches!(uri.scheme_str(), Some("http" | "https"))
        && uri.host().is_some_and(|host| !host.is_empty())
        && uri.query().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sidecars_are_asked_at_their_digests() {
        let at = |text: &str| digests_at(&text.parse().unwrap()).unwrap().to_string();
        assert_eq!(at("http://10.0.0.1:7700"), "http://10.0.0.1:7700/v1/digests");
        assert_eq!(at("http://gateway/pod-3/"), "http://gateway/pod-3/v1/digests");
        for no in ["/v1", "ftp://x:1", "http://x:1/?q=1", "x:1"] {
            assert!(!no.parse().is_ok_and(|uri| is_sidecar(&uri)), "{no}");
        }
    }
}
