//! Prefill pods' sidecars, asked over HTTP for digests of their engines' blocks.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::uri::PathAndQuery;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::Connect;
use hyper_util::rt::TokioExecutor;
use secrets::Tokens;
use secrets::tls::{self, Dial};
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout_at};

use crate::digest::source::{SourceDigests, SourceError};
use crate::digest::{DigestAsk, Digests};
use crate::http::digests_json::{AskBody, DigestsJson};
use crate::http::edge::TRACE_PARENT;

/// Bytes of an answer: as many digests as may be asked for at a time take 3 MiB at most.
const MAX_ANSWER: usize = 4 << 20;
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// Before a sidecar that had no room is asked again.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// The sidecars that transfers name as `source_sidecar`.
///
/// They are asked with this sidecar's own token: who names one has shown that token to get here, so it is told nothing new.
#[derive(Clone, Debug)]
pub struct HttpSources<C = Dial> {
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
    /// Asks with these tokens, and `tls` where a sidecar is https.
    pub fn new(tokens: Option<Arc<Tokens>>, tls: Option<Arc<tls::Client>>) -> Self {
        Self::over(Dial::new(CONNECT_WITHIN, tls), tokens)
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
        let answer = self.client.request(request).await.map_err(|error| send(Box::new(error)))?;
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
