//! The two legs to vLLM engines.
//!
//! A decode that carries transfer parameters is sent by [`Engines::decode`] only, and that takes a [`DecodeTicket`].

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use kv::ids::EngineRequestId;
use tokio::time::timeout;
use vllm_wire::body::{AnswerError, Endpoint, Pieces, PrefillAnswer, RequestBody, prefill_answer};

use crate::headers::{DP_RANK, REQUEST_ID, toward_client, toward_engine};
use crate::ladder::Retry;
use crate::relay::{ErrorEvent, Held, NoAnswer};
use crate::spans::{AttemptTrace, TRACE_PARENT};
use crate::targets::{Fault, Target};
use crate::ticket::DecodeTicket;
use crate::trail::Leg;
use crate::upstream::{Payload, Upstream, UpstreamError, at, fetch, send_within};

/// Longest answer of a prefill: the token ids of a million tokens with room to spare.
const MAX_PREFILL_ANSWER: usize = 16 << 20;

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
    pub(crate) headers: Arc<HeaderMap>,
    /// The router's own id of this attempt, for the engines: letters, digits and dashes.
    pub(crate) id: HeaderValue,
    /// Its trace, if it is traced.
    pub(crate) trace: Option<AttemptTrace>,
}

impl Call {
    /// The id as a text.
    pub(crate) fn id(&self) -> &str {
        self.id.to_str().unwrap_or_default()
    }
}

/// A request that is passed on as it is.
#[derive(Debug)]
pub(crate) struct Proxied<'a> {
    pub(crate) method: &'a Method,
    /// With its query.
    pub(crate) path: &'a str,
    /// The client's.
    pub(crate) headers: &'a HeaderMap,
    /// The router's own id of this attempt.
    pub(crate) id: &'a str,
    /// Its trace, if it is traced.
    pub(crate) trace: Option<AttemptTrace>,
    pub(crate) body: Pieces,
}

/// An engine's answer.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "what is wanted is as large: a prefill's answer, or a decode's")]
pub(crate) enum Answer<T> {
    /// What was wanted.
    Given(T),
    /// The engine finds fault with the client's request: to be passed on as it comes, however long, and not tried again.
    ClientError(Decoding),
}

/// An answer for the client. A decode's has its beginning held.
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
    #[error("the engine has no room: it answers {status}")]
    Overloaded {
        status: StatusCode,
        /// When it wants to be asked again, in seconds.
        retry_after: Option<u32>,
    },
    #[error("the prefill engine answers request {asked} with the KV of {got}")]
    Foreign { asked: String, got: EngineRequestId },
    #[error("read the prefill engine's answer")]
    Prefill(#[from] AnswerError),
    #[error("get an answer from the decode engine")]
    Decode(#[from] NoAnswer),
    #[error("get the decode engine's first byte within {0:?}")]
    Late(Duration),
    #[error("write the request")]
    Request(#[from] http::Error),
}

impl LegError {
    /// Whether the engine certainly has seen nothing of the request.
    pub(crate) fn never_sent(&self) -> bool {
        matches!(self, Self::Upstream(error) if error.never_sent())
    }

    /// What may help, for either leg.
    pub(crate) fn retry(&self) -> Retry {
        match self {
            Self::Prefill(AnswerError::Unsupported(_)) | Self::Request(_) => Retry::Never,
            Self::Upstream(_)
            | Self::Status(_)
            | Self::Overloaded { .. }
            | Self::Foreign { .. }
            | Self::Prefill(_)
            | Self::Decode(_)
            | Self::Late(_) => Retry::NewPrefill,
        }
    }

    /// What it says about the engine, for breakers: nothing when it has no room, or when the request could not be written.
    pub(crate) fn fault(&self) -> Option<Fault> {
        match self {
            Self::Upstream(error) if error.never_sent() => Some(Fault::Unreachable),
            Self::Overloaded { .. } | Self::Prefill(AnswerError::Unsupported(_)) | Self::Request(_) => None,
            Self::Upstream(_)
            | Self::Status(_)
            | Self::Foreign { .. }
            | Self::Prefill(_)
            | Self::Decode(_)
            | Self::Late(_) => Some(Fault::Failed),
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
            Self::Prefill(_) | Self::Foreign { .. } => "answer_invalid",
            Self::Overloaded { .. } => "overloaded",
            Self::Upstream(_) | Self::Status(_) | Self::Decode(_) | Self::Request(_) => "failed",
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
        body: Pieces,
    ) -> Result<Answer<PrefillAnswer>, LegError> {
        let request = request(target, call, body, Leg::Prefill)?;
        let answer = fetch(&*self.upstream, request, self.prefill_deadline, MAX_PREFILL_ANSWER).await?;
        if is_clients_fault(answer.status()) {
            return Ok(Answer::ClientError(against_the_request(answer.map(Body::from))));
        }
        if !answer.status().is_success() {
            return Err(refused(answer.status(), answer.headers()));
        }
        let answer = prefill_answer(answer.body())?;
        if is_foreign(answer.params.remote_request_id.as_str(), call.id()) {
            return Err(LegError::Foreign { asked: call.id().to_owned(), got: answer.params.remote_request_id });
        }
        Ok(Answer::Given(answer))
    }

    /// Sends a decode to where its ticket is valid.
    pub(crate) async fn decode(
        &self,
        ticket: DecodeTicket,
        call: &Call,
        body: &RequestBody,
    ) -> Result<Answer<Decoding>, LegError> {
        let target = ticket.target().clone();
        let body = body.for_decode(Some(&ticket.into_params()));
        self.answer(&target, call, body).await
    }

    /// Has one engine do the whole request.
    pub(crate) async fn whole(
        &self,
        target: &Target,
        call: &Call,
        body: &RequestBody,
    ) -> Result<Answer<Decoding>, LegError> {
        self.answer(target, call, body.for_decode(None)).await
    }

    async fn answer(&self, target: &Target, call: &Call, body: Pieces) -> Result<Answer<Decoding>, LegError> {
        let request = request(target, call, body, Leg::Decode)?;
        let begin = async {
            let (head, body) = self.upstream.send(request).await?.into_parts();
            if is_clients_fault(head.status) {
                return Ok(Answer::ClientError(against_the_request(Response::from_parts(head, body))));
            }
            if !head.status.is_success() {
                return Err(refused(head.status, &head.headers));
            }
            let is_stream = is_event_stream(&head.headers);
            let held = match Held::first(body, is_stream).await {
                Ok(held) => held,
                Err(NoAnswer::ErrorEvent(event)) => return late_verdict(event),
                Err(no_answer) => return Err(no_answer.into()),
            };
            let mut headers = toward_client(head.headers);
            if is_stream {
                // Should it break off, it ends with an event of ours.
                headers.remove(header::CONTENT_LENGTH);
            }
            Ok(Answer::Given(Decoding { status: head.status, headers, held }))
        };
        timeout(self.decode_deadline, begin).await.unwrap_or(Err(LegError::Late(self.decode_deadline)))
    }

    /// Passes any request on; the answer is whatever the engine says.
    pub(crate) async fn proxied(&self, target: &Target, ask: Proxied<'_>) -> Result<Response<Body>, LegError> {
        let uri = at(&target.pod.engine, ask.path)?;
        let mut request = Request::builder().method(ask.method).uri(uri).body(Payload::from(ask.body))?;
        let headers = request.headers_mut();
        *headers = toward_engine(ask.headers);
        headers.insert(DP_RANK, target.local_rank());
        headers.insert(REQUEST_ID, HeaderValue::from_str(ask.id).map_err(http::Error::from)?);
        trace_on(headers, ask.trace, Leg::Decode);
        Ok(send_within(&*self.upstream, request, self.decode_deadline).await?)
    }

    /// Passes a request without a body on to an engine and its answer back.
    pub(crate) async fn get(
        &self,
        engine: &http::Uri,
        path: &str,
        headers: &HeaderMap,
        deadline: Duration,
    ) -> Result<Response<Bytes>, LegError> {
        let mut request = Request::builder().method(Method::GET).uri(at(engine, path)?).body(Payload::default())?;
        *request.headers_mut() = toward_engine(headers);
        Ok(fetch(&*self.upstream, request, deadline, MAX_PREFILL_ANSWER).await?)
    }
}

/// The engine goes on from the leg's span. What a client sends with a request that is not traced has been passed on.
fn trace_on(headers: &mut HeaderMap, trace: Option<AttemptTrace>, leg: Leg) {
    if let Some(parent) = trace.and_then(|trace| trace.header(leg)) {
        headers.insert(TRACE_PARENT, parent);
    }
}

fn request(target: &Target, call: &Call, body: Pieces, leg: Leg) -> Result<Request<Payload>, http::Error> {
    let uri = at(&target.pod.engine, PathAndQuery::from_static(call.endpoint.path()))?;
    let mut request = Request::builder().method(Method::POST).uri(uri).body(Payload::from(body))?;
    let headers = request.headers_mut();
    *headers = toward_engine(&call.headers);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(DP_RANK, target.local_rank());
    headers.insert(REQUEST_ID, call.id.clone());
    trace_on(headers, call.trace, leg);
    Ok(request)
}

/// An error that came as the first event of a stream means what its status would have meant.
fn late_verdict(event: ErrorEvent) -> Result<Answer<Decoding>, LegError> {
    match event.status() {
        Some(status) if is_clients_fault(status) => {
            let mut answer = Response::new(Body::from(event.body));
            *answer.status_mut() = status;
            answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            Ok(Answer::ClientError(against_the_request(answer)))
        }
        Some(status) if is_overload(status) => Err(LegError::Overloaded { status, retry_after: None }),
        Some(_) | None => Err(LegError::Decode(event.into())),
    }
}

/// What an engine says against a request, for the client: vLLM repeats what it finds fault with, which may be long.
fn against_the_request(answer: Response<Body>) -> Decoding {
    let (head, body) = answer.into_parts();
    Decoding { status: head.status, headers: toward_client(head.headers), held: Held::unread(body) }
}

/// An engine's refusal that is not the client's fault.
fn refused(status: StatusCode, headers: &HeaderMap) -> LegError {
    if !is_overload(status) {
        return LegError::Status(status);
    }
    let retry_after = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    LegError::Overloaded { status, retry_after: retry_after.and_then(|seconds| seconds.trim().parse().ok()) }
}

fn is_overload(status: StatusCode) -> bool {
    matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
}

/// Whether an engine's name for a request holds another id of this router than the one it was sent. vLLM builds its names around the
/// id that it was sent (protocol doc §4.5); of an engine that does not, nothing can be said.
fn is_foreign(name: &str, sent: &str) -> bool {
    // Ours are PREFIX-REQUEST-ATTEMPT.
    let Some((prefix, _)) = sent.rsplit_once('-').and_then(|(request, _)| request.rsplit_once('-')) else {
        return false;
    };
    let begins = |at: usize| name.get(..at).is_some_and(|before| before.is_empty() || before.ends_with('-'));
    let ends = |rest: &str| rest.is_empty() || rest.starts_with('-');
    let mut ours = name
        .match_indices(prefix)
        .filter(|(at, found)| begins(*at) && name.get(at + found.len()..).is_some_and(|rest| rest.starts_with('-')));
    ours.any(|(at, _)| {
        let rest = name.get(at..).and_then(|rest| rest.strip_prefix(sent));
        !rest.is_some_and(ends)
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kv_of_another_request_is_told_by_its_name() {
        for (name, foreign) in [
            ("cmpl-r-7-12-1-0-12345678", false),
            ("chatcmpl-r-7-12-1-12345678", false),
            ("r-7-12-1", false),
            ("cmpl-r-7-12-2-0-12345678", true),
            ("cmpl-r-7-123-1-0-12345678", true),
            ("cmpl-r-7-12-10-0-12345678", true),
            ("cmpl-0123456789abcdef-0-12345678", false),
            ("cmpl-or-7-5-1-0", false),
        ] {
            assert_eq!(is_foreign(name, "r-7-12-1"), foreign, "{name}");
        }
    }
}
