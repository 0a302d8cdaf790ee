//! The two legs to vLLM engines.
//!
//! A decode that carries transfer parameters is sent by [`Engines::decode`] only, and that takes a [`DecodeTicket`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use tokio::time::timeout;
use vllm_wire::body::{AnswerError, BodyError, Endpoint, PrefillAnswer, for_decode, prefill_answer};
use vllm_wire::headers::{DP_RANK, REQUEST_ID};

use crate::headers::{toward_client, toward_engine};
use crate::ladder::Retry;
use crate::relay::{Held, NoAnswer};
use crate::targets::Target;
use crate::ticket::DecodeTicket;
use crate::upstream::{Upstream, UpstreamError, at, fetch, send_within, server};

/// Longest answer of a prefill: the token ids of a million tokens with room to spare.
const MAX_PREFILL_ANSWER: usize = 16 << 20;
/// Longest error of an engine that is passed on.
const MAX_ERROR: usize = 256 * 1024;

/// Speaks to all engines.
#[derive(Clone, Debug)]
pub(crate) struct Engines {
    upstream: Arc<dyn Upstream>,
    prefill_deadline: Duration,
    decode_deadline: Duration,
}

/// What is the same for every leg of a request.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) endpoint: Endpoint,
    /// The client's.
    pub(crate) headers: HeaderMap,
    /// The router's own id of this attempt, for the engines: letters, digits and dashes.
    pub(crate) id: String,
}

/// An engine's answer.
#[derive(Debug)]
pub(crate) enum Answer<T> {
    /// What was wanted.
    Given(T),
    /// The engine finds fault with the client's request: to be passed on, not tried again.
    ClientError(Response<Bytes>),
}

/// A decode's answer, its beginning held.
#[derive(Debug)]
pub(crate) struct Decoding {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) held: Held,
}

/// Why a leg failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LegError {
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error("the engine answers {0}")]
    Status(StatusCode),
    #[error("read the prefill engine's answer")]
    Prefill(#[from] AnswerError),
    #[error("get an answer from the decode engine")]
    Decode(#[from] NoAnswer),
    #[error("get the decode engine's first byte within {0:?}")]
    Late(Duration),
    #[error("edit the body")]
    Body(#[from] BodyError),
    #[error("write the request")]
    Request(#[from] http::Error),
}

impl LegError {
    /// What may help, for either leg.
    pub(crate) fn retry(&self) -> Retry {
        match self {
            Self::Prefill(AnswerError::Unsupported(_)) | Self::Body(_) | Self::Request(_) => Retry::Never,
            Self::Upstream(_) | Self::Status(_) | Self::Prefill(_) | Self::Decode(_) | Self::Late(_) => {
                Retry::NewPrefill
            }
        }
    }

    /// The end of the stable code, after `prefill_` or `decode_`.
    pub(crate) fn what(&self) -> &'static str {
        match self {
            Self::Upstream(error) if error.is_late() => "timeout",
            Self::Late(_) => "timeout",
            Self::Upstream(error) if error.never_sent() => "unreachable",
            Self::Prefill(AnswerError::NoParams) => "no_kv",
            Self::Prefill(AnswerError::Engine(_)) => "failed",
            Self::Prefill(_) => "answer_invalid",
            Self::Upstream(_) | Self::Status(_) | Self::Decode(_) | Self::Body(_) | Self::Request(_) => "failed",
        }
    }
}

impl Engines {
    pub(crate) fn new(upstream: Arc<dyn Upstream>, prefill_deadline: Duration, decode_deadline: Duration) -> Self {
        Self { upstream, prefill_deadline, decode_deadline }
    }

    /// Runs a prefill; `body` is the prefill's already.
    pub(crate) async fn prefill(
        &self,
        target: &Target,
        call: &Call,
        body: Bytes,
    ) -> Result<Answer<PrefillAnswer>, LegError> {
        let request = request(target, call, body)?;
        let answer = fetch(&*self.upstream, request, self.prefill_deadline, MAX_PREFILL_ANSWER).await?;
        if is_clients_fault(answer.status()) {
            return Ok(Answer::ClientError(answer));
        }
        if !answer.status().is_success() {
            return Err(LegError::Status(answer.status()));
        }
        Ok(Answer::Given(prefill_answer(answer.body())?))
    }

    /// Sends a decode to where its ticket is valid.
    pub(crate) async fn decode(
        &self,
        ticket: DecodeTicket,
        call: &Call,
        body: &[u8],
    ) -> Result<Answer<Decoding>, LegError> {
        let target = ticket.target().clone();
        let body = for_decode(body, Some(&ticket.into_params()))?;
        self.answer(&target, call, body).await
    }

    /// Has one engine do the whole request.
    pub(crate) async fn whole(&self, target: &Target, call: &Call, body: &[u8]) -> Result<Answer<Decoding>, LegError> {
        self.answer(target, call, for_decode(body, None)?).await
    }

    async fn answer(&self, target: &Target, call: &Call, body: Vec<u8>) -> Result<Answer<Decoding>, LegError> {
        let request = request(target, call, body.into())?;
        let to = server(&request);
        let begin = async {
            let answer = send_within(&*self.upstream, request, self.decode_deadline).await?;
            let (head, body) = answer.into_parts();
            if is_clients_fault(head.status) {
                let body = axum::body::to_bytes(body, MAX_ERROR).await;
                let body = body.map_err(|source| UpstreamError::Body { to, source: source.into() })?;
                return Ok(Answer::ClientError(Response::from_parts(head, body)));
            }
            if !head.status.is_success() {
                return Err(LegError::Status(head.status));
            }
            let held = Held::first(body, is_event_stream(&head.headers)).await?;
            Ok(Answer::Given(Decoding { status: head.status, headers: toward_client(&head.headers), held }))
        };
        timeout(self.decode_deadline, begin).await.unwrap_or(Err(LegError::Late(self.decode_deadline)))
    }

    /// Passes a request without a body on to an engine and its answer back.
    pub(crate) async fn get(
        &self,
        engine: &http::Uri,
        path: &str,
        headers: &HeaderMap,
        deadline: Duration,
    ) -> Result<Response<Bytes>, LegError> {
        let mut request = Request::builder().method(Method::GET).uri(at(engine, path)?).body(Full::default())?;
        *request.headers_mut() = toward_engine(headers);
        Ok(fetch(&*self.upstream, request, deadline, MAX_PREFILL_ANSWER).await?)
    }
}

fn request(target: &Target, call: &Call, body: Bytes) -> Result<Request<Full<Bytes>>, http::Error> {
    let uri = at(&target.pod.engine, call.endpoint.path())?;
    let mut request = Request::builder().method(Method::POST).uri(uri).body(Full::new(body))?;
    let headers = request.headers_mut();
    *headers = toward_engine(&call.headers);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(DP_RANK, HeaderValue::from(target.local.0));
    headers.insert(REQUEST_ID, HeaderValue::from_str(&call.id)?);
    Ok(request)
}

/// 4xx, but for those that are about the moment and not the request.
fn is_clients_fault(status: StatusCode) -> bool {
    let of_the_moment = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS];
    status.is_client_error() && !of_the_moment.contains(&status)
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("text/event-stream")
}
