//! The router's client of the sidecars' HTTP API: only what it asks, in its own words; unknown fields are ignored.

mod wire;

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use kv::ids::{AttemptId, DpRank, EngineId, EngineRequestId, TransferId};
use secrets::Tokens;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize, Serializer};
use vllm_wire::params::RawParams;

use crate::headers::REQUEST_ID;
use crate::ladder::Retry;
use crate::spans::TRACE_PARENT;
use crate::ticket::{Asked, Receipt};
use crate::upstream::{Path, Payload, Upstream, UpstreamError, at, fetch, send_within};

use wire::{LandedJson, ProblemJson, RanksJson, StagesJson, TransferJson, TransfersJson};
pub(crate) use wire::{RankJson, TransferStages};

/// Longest answer that is read.
const MAX_ANSWER: usize = 4 << 20;

/// Paths that are asked with most requests: as static ones they are not copied.
const TRANSFERS: &str = "/v1/transfers";
const FINISHED: &str = "/v1/finished-transfers";

/// W3C's header beside `traceparent`.
const TRACE_STATE: HeaderName = HeaderName::from_static("tracestate");

/// Headers of a request at most: type, host, authorization, id, trace, preference.
const HEADERS: usize = 8;

/// Most transfers that are ended with one request; the sidecars' own bound.
pub(crate) const MAX_FINISHED: usize = 256;

/// How much longer than the transfer's own deadline the router waits for the answer.
const GRACE: Duration = Duration::from_secs(5);

/// Longest wait for the answers that are given at once.
const SHORT: Duration = Duration::from_secs(5);

/// Why a sidecar did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SidecarError {
    /// It said no, in a problem document.
    #[error("the sidecar refuses: {code} ({status}): {detail}")]
    Problem { code: String, status: StatusCode, retry: Retry, detail: String },
    /// It was not reached, or broke off.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// It answered something that is not its API.
    #[error("understand the sidecar's answer with status {status}")]
    Answer {
        status: StatusCode,
        #[source]
        source: Option<serde_json::Error>,
    },
    /// The question was so long on its way that P's lease may have been over when it got there, which the sidecar cannot know.
    #[error("the transfer was asked for {age:?} after the prefill and {unseen:?} on its way, too long for P's lease")]
    Stale { age: Duration, unseen: Duration },
    /// The router ended while the answer was being waited for.
    #[error("wait for the sidecar's answer: the router ends")]
    Abandoned,
    /// The request could not be written down.
    #[error("write a request to the sidecar")]
    Request(#[from] http::Error),
}

impl SidecarError {
    /// Whether a transfer that was asked for may be running all the same.
    pub(crate) fn may_be_running(&self) -> bool {
        match self {
            Self::Problem { .. } | Self::Request(_) => false,
            Self::Upstream(error) => !error.never_sent(),
            Self::Answer { .. } | Self::Abandoned | Self::Stale { .. } => true,
        }
    }

    /// What may help.
    pub(crate) fn retry(&self) -> Retry {
        match self {
            Self::Problem { retry, .. } => *retry,
            Self::Upstream(error) if error.never_sent() => Retry::OtherTarget,
            Self::Upstream(_) | Self::Answer { .. } | Self::Stale { .. } => Retry::NewPrefill,
            Self::Request(_) | Self::Abandoned => Retry::Never,
        }
    }

    /// What happened, from a short list, for metrics.
    pub(crate) fn what(&self) -> &'static str {
        match self {
            Self::Problem { .. } => "refused",
            Self::Upstream(error) if error.is_late() => "timeout",
            Self::Stale { .. } => "timeout",
            Self::Upstream(error) if error.never_sent() => "unreachable",
            Self::Upstream(_) | Self::Answer { .. } | Self::Request(_) | Self::Abandoned => "failed",
        }
    }

    /// The stable code: the sidecar's own, or what happened on the way to it.
    pub(crate) fn code(&self) -> &str {
        match self {
            Self::Problem { code, .. } => code,
            Self::Stale { .. } => "lease_expired",
            Self::Upstream(error) if error.is_late() => "sidecar_timeout",
            Self::Upstream(_) => "sidecar_unreachable",
            Self::Answer { .. } | Self::Request(_) | Self::Abandoned => "sidecar_error",
        }
    }
}

/// One transfer to be asked for.
#[derive(Clone, Debug)]
pub(crate) struct TransferAsk {
    pub(crate) sidecar: Uri,
    pub(crate) asked: Asked,
    pub(crate) label: Arc<str>,
    pub(crate) params: RawParams,
    pub(crate) deadline: Duration,
    pub(crate) lease: Duration,
    /// Time since the prefill request was sent: P cannot have finished earlier.
    pub(crate) prefill_done_age: Duration,
    /// The sidecar of P's pod: whom D's sidecar asks what P holds, if it verifies.
    pub(crate) source_sidecar: Option<Uri>,
}

impl TransferAsk {
    /// Whether P's lease may have been over when the sidecar was asked, `unseen` being the time that the question and its answer may have
    /// been on their way: it counts the lease from the age that it was told, and cannot see how old that had become.
    pub(crate) fn is_stale(&self, unseen: Duration) -> bool {
        // The sidecars' own margin.
        self.prefill_done_age.saturating_add(unseen) >= self.lease.saturating_sub(self.lease / 20)
    }
}

/// The sidecar's yes.
#[derive(Clone, Debug)]
pub(crate) struct LandedAnswer {
    pub(crate) receipt: Receipt,
    /// The claim must be renewed within this time.
    pub(crate) collect_by: Duration,
    /// How long the sidecar has worked on it, by its own account.
    pub(crate) spent: Duration,
}

/// A prefill's blocks to be reported to P's sidecar.
#[derive(Clone, Debug)]
pub(crate) struct HandleReport {
    pub(crate) rank: DpRank,
    pub(crate) engine: EngineId,
    pub(crate) request: EngineRequestId,
    pub(crate) params: RawParams,
    pub(crate) lease: Duration,
    pub(crate) age: Duration,
}

/// Speaks to all sidecars.
#[derive(Clone, Debug)]
pub(crate) struct Sidecars {
    upstream: Arc<dyn Upstream>,
    tokens: Option<Arc<Tokens>>,
    traced: Traced,
}

/// What lets one query find a request in the logs of all that it touches: sent along with everything that is asked for its sake.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traced {
    /// The router's id of the attempt, as engines get it.
    request_id: Option<HeaderValue>,
    /// The W3C trace context: the leg's, or the client's.
    traceparent: Option<HeaderValue>,
    tracestate: Option<HeaderValue>,
}

impl Traced {
    /// An attempt by its id, for a client that sent these headers; `leg` is the span that asks, where the request is traced.
    pub(crate) fn new(attempt: &HeaderValue, client: &HeaderMap, leg: Option<HeaderValue>) -> Self {
        Self {
            request_id: Some(attempt.clone()),
            traceparent: leg.or_else(|| client.get(TRACE_PARENT).cloned()),
            tracestate: client.get(&TRACE_STATE).cloned(),
        }
    }

    fn write(&self, headers: &mut HeaderMap) {
        let parent = HeaderName::from_static(TRACE_PARENT);
        let all = [(REQUEST_ID, &self.request_id), (parent, &self.traceparent), (TRACE_STATE, &self.tracestate)];
        for (name, value) in all {
            if let Some(value) = value {
                headers.insert(name, value.clone());
            }
        }
    }
}

#[derive(Serialize)]
struct TransferBody<'a> {
    attempt_id: &'a str,
    request_id: &'a str,
    dp_rank: u16,
    deadline_ms: u64,
    lease_ms: u64,
    prefill_done_age_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_sidecar: Option<Shown<'a>>,
}

#[derive(Serialize)]
struct FinishedBody<'a> {
    transfer_ids: Vec<&'a str>,
}

#[derive(Serialize)]
struct HandleBody<'a> {
    dp_rank: u16,
    remote_request_id: &'a str,
    remote_engine_id: &'a str,
    lease_ms: u64,
    age_ms: u64,
}

/// Why a prefill's handle is let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LetGo {
    /// Nobody will read its blocks.
    Abandoned,
    /// D's sidecar has read them and tells P's engine itself.
    Read,
}

impl LetGo {
    fn as_str(self) -> &'static str {
        match self {
            Self::Abandoned => "abandoned",
            Self::Read => "read",
        }
    }
}

impl Sidecars {
    pub(crate) fn new(upstream: Arc<dyn Upstream>, tokens: Option<Arc<Tokens>>) -> Self {
        Self { upstream, tokens, traced: Traced::default() }
    }

    /// The same, asking for one attempt's sake.
    pub(crate) fn of(&self, traced: Traced) -> Self {
        Self { upstream: Arc::clone(&self.upstream), tokens: self.tokens.clone(), traced }
    }

    /// Asks for a transfer and waits until it has landed or failed.
    pub(crate) async fn transfer(&self, ask: &TransferAsk) -> Result<LandedAnswer, SidecarError> {
        let path = PathAndQuery::from_static(TRANSFERS);
        let request = self.request(Method::POST, &ask.sidecar, path, transfer_body(ask)?, None)?;
        let answer = fetch(&*self.upstream, request, ask.deadline.saturating_add(GRACE), MAX_ANSWER).await?;
        let body = answer.body();
        let answer = read::<LandedJson<'_>>(&answer)?;
        let source = &ask.asked.source_engine;
        let as_asked = *answer.receipt.source_engine_id == *source.as_str();
        Ok(LandedAnswer {
            collect_by: Duration::from_millis(answer.receipt.collect_by_ms),
            spent: answer.receipt.stages_us.all(),
            receipt: Receipt {
                asked: ask.asked.clone(),
                transfer: TransferId::new(answer.transfer_id),
                rank: DpRank(answer.receipt.dp_rank),
                source_engine: if as_asked { source.clone() } else { EngineId::new(answer.receipt.source_engine_id) },
                virtual_engine: shared(body, answer.receipt.virtual_engine_id),
                request: shared(body, answer.receipt.request_id),
                params: RawParams::part_of(body, answer.kv_transfer_params),
            },
        })
    }

    /// Asks for the name of a transfer that is under way (the same attempt is the same transfer).
    pub(crate) async fn name_of(&self, ask: &TransferAsk) -> Result<TransferId, SidecarError> {
        let request =
            self.request(Method::POST, &ask.sidecar, TRANSFERS, transfer_body(ask)?, Some("respond-async"))?;
        let answer = fetch(&*self.upstream, request, SHORT, MAX_ANSWER).await?;
        Ok(TransferId::new(read::<TransferJson>(&answer)?.transfer_id))
    }

    /// Renews the claim on a landed transfer.
    pub(crate) async fn claim(&self, sidecar: &Uri, transfer: &TransferId) -> Result<(), SidecarError> {
        let path = format!("/v1/transfers/{}/claim", segment(transfer.as_str()));
        self.short::<IgnoredAny>(Method::POST, sidecar, path, Bytes::from_static(b"{}")).await?;
        Ok(())
    }

    /// Whether a landed transfer's slots are still D's, or were until D had read them.
    pub(crate) async fn was_held(&self, sidecar: &Uri, transfer: &TransferId) -> Result<bool, SidecarError> {
        let path = format!("/v1/transfers/{}", segment(transfer.as_str()));
        match self.short::<TransferJson>(Method::GET, sidecar, path, Bytes::new()).await {
            Ok(Some(transfer)) => Ok(transfer.was_held()),
            Ok(None) => Ok(false),
            // A sidecar that does not know it is not the one that held it, or has long freed it.
            Err(SidecarError::Problem { status: StatusCode::NOT_FOUND, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Cancels or finishes a transfer. Says whether it had landed (P has been told, then); unknown means it never did.
    pub(crate) async fn finish(&self, sidecar: &Uri, transfer: &TransferId) -> Result<bool, SidecarError> {
        let path = format!("/v1/transfers/{}", segment(transfer.as_str()));
        match self.short::<TransferJson>(Method::DELETE, sidecar, path, Bytes::new()).await {
            Ok(Some(transfer)) => Ok(transfer.has_landed()),
            Ok(None) => Ok(true),
            Err(SidecarError::Problem { status: StatusCode::NOT_FOUND, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Says that the decode legs of landed transfers have ended, of at most [`MAX_FINISHED`].
    pub(crate) async fn finish_all(&self, sidecar: &Uri, transfers: &[TransferId]) -> Result<(), SidecarError> {
        let body = written(&FinishedBody { transfer_ids: transfers.iter().map(TransferId::as_str).collect() }, None)?;
        self.short::<IgnoredAny>(Method::POST, sidecar, PathAndQuery::from_static(FINISHED), body).await?;
        Ok(())
    }

    /// Where an attempt's transfer has spent its time: by its name where that is known. `None` when the sidecar knows no such attempt.
    pub(crate) async fn stages(
        &self,
        sidecar: &Uri,
        transfer: Option<&TransferId>,
        attempt: &AttemptId,
    ) -> Result<Option<TransferStages>, SidecarError> {
        if let Some(transfer) = transfer {
            let path = format!("/v1/transfers/{}", segment(transfer.as_str()));
            return Ok(self.short::<StagesJson>(Method::GET, sidecar, path, Bytes::new()).await?.map(StagesJson::read));
        }
        let path = format!("/v1/transfers?attempt_id={}", segment(attempt.as_str()));
        let listed = self.short::<TransfersJson>(Method::GET, sidecar, path, Bytes::new()).await?;
        // A sidecar that does not know this question answers with all that it has.
        let mut all = listed.into_iter().flat_map(|listed| listed.transfers);
        Ok(all.find(|one| one.is_of(attempt.as_str())).map(StagesJson::read))
    }

    /// Tells P's sidecar of blocks that a prefill has left pinned.
    pub(crate) async fn report_handle(&self, sidecar: &Uri, report: &HandleReport) -> Result<(), SidecarError> {
        let body = HandleBody {
            dp_rank: report.rank.0,
            remote_request_id: report.request.as_str(),
            remote_engine_id: report.engine.as_str(),
            lease_ms: millis(report.lease),
            age_ms: millis(report.age),
        };
        let body = written(&body, Some(&report.params))?;
        self.short::<IgnoredAny>(Method::POST, sidecar, "/v1/handles", body).await?;
        Ok(())
    }

    /// Has P's sidecar let a prefill's handle go: one that nobody will read (it tells its engine), or one that D's sidecar has read.
    pub(crate) async fn release_handle(
        &self,
        sidecar: &Uri,
        rank: DpRank,
        request: &EngineRequestId,
        reason: LetGo,
    ) -> Result<(), SidecarError> {
        let path = format!("/v1/handles/{}?dp_rank={rank}&reason={}", segment(request.as_str()), reason.as_str());
        self.short::<IgnoredAny>(Method::DELETE, sidecar, path, Bytes::new()).await?;
        Ok(())
    }

    /// Subscribes to the states of a pod's ranks.
    pub(crate) async fn rank_events(&self, sidecar: &Uri) -> Result<Body, SidecarError> {
        let request = self.request(Method::GET, sidecar, "/v1/ranks/events", Bytes::new(), None)?;
        let answer = send_within(&*self.upstream, request, SHORT).await?;
        if answer.status().is_success() {
            return Ok(answer.into_body());
        }
        Err(SidecarError::Answer { status: answer.status(), source: None })
    }

    /// The states of a pod's ranks, within `deadline`.
    pub(crate) async fn ranks(&self, sidecar: &Uri, deadline: Duration) -> Result<Vec<RankJson>, SidecarError> {
        let request = self.request(Method::GET, sidecar, "/v1/ranks", Bytes::new(), None)?;
        let answer = fetch(&*self.upstream, request, deadline, MAX_ANSWER).await?;
        Ok(read::<RanksJson>(&answer)?.ranks)
    }

    /// A request whose answer is given at once; `None` when the answer has no body.
    async fn short<T: DeserializeOwned>(
        &self,
        method: Method,
        sidecar: &Uri,
        path: impl Path,
        body: Bytes,
    ) -> Result<Option<T>, SidecarError> {
        let request = self.request(method, sidecar, path, body, None)?;
        let answer = fetch(&*self.upstream, request, SHORT, MAX_ANSWER).await?;
        if answer.status().is_success() && answer.body().is_empty() {
            return Ok(None);
        }
        read(&answer).map(Some)
    }

    fn request(
        &self,
        method: Method,
        sidecar: &Uri,
        path: impl Path,
        body: Bytes,
        prefer: Option<&'static str>,
    ) -> Result<Request<Payload>, SidecarError> {
        let mut headers = HeaderMap::with_capacity(HEADERS);
        if let Some(tokens) = &self.tokens {
            headers.insert(header::AUTHORIZATION, tokens.header());
        }
        if let Some(prefer) = prefer {
            headers.insert(HeaderName::from_static("prefer"), HeaderValue::from_static(prefer));
        }
        if !body.is_empty() {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        self.traced.write(&mut headers);
        let mut request = Request::new(Payload::from(body));
        (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (method, at(sidecar, path)?, headers);
        Ok(request)
    }
}

fn transfer_body(ask: &TransferAsk) -> Result<Bytes, SidecarError> {
    let body = TransferBody {
        attempt_id: ask.asked.attempt.as_str(),
        request_id: &ask.label,
        dp_rank: ask.asked.rank.0,
        deadline_ms: millis(ask.deadline),
        lease_ms: millis(ask.lease),
        prefill_done_age_ms: millis(ask.prefill_done_age),
        source_sidecar: ask.source_sidecar.as_ref().map(Shown),
    };
    written(&body, Some(&ask.params))
}

/// What is serialized as it is displayed.
struct Shown<'a>(&'a Uri);

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self.0)
    }
}

/// Counts what is written.
struct Length(usize);

impl io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A JSON object, with parameters as they came for its last member, in memory of its size. (serde_json would read the parameters
/// again to let them through.)
fn written(object: &impl Serialize, params: Option<&RawParams>) -> Result<Bytes, SidecarError> {
    const MEMBER: &[u8] = b",\"kv_transfer_params\":";
    let params = params.map(RawParams::as_str);
    let unwritable = |source| SidecarError::Answer { status: StatusCode::OK, source: Some(source) };
    let mut length = Length(params.map_or(0, |params| params.len() + MEMBER.len()));
    serde_json::to_writer(&mut length, object).map_err(unwritable)?;
    let mut body = Vec::with_capacity(length.0);
    serde_json::to_writer(&mut body, object).map_err(unwritable)?;
    if let Some(params) = params {
        body.pop();
        body.extend_from_slice(MEMBER);
        body.extend_from_slice(params.as_bytes());
        body.push(b'}');
    }
    Ok(body.into())
}

/// A text that was read from an answer, as a part of it where it can be one.
fn shared(answer: &Bytes, text: Cow<'_, str>) -> Bytes {
    match text {
        Cow::Borrowed(text) => answer.slice_ref(text.as_bytes()),
        Cow::Owned(text) => text.into(),
    }
}

fn read<'a, T: Deserialize<'a>>(answer: &'a Response<Bytes>) -> Result<T, SidecarError> {
    let status = answer.status();
    if status.is_success() {
        let read = serde_json::from_slice(answer.body());
        return read.map_err(|source| SidecarError::Answer { status, source: Some(source) });
    }
    match serde_json::from_slice::<ProblemJson>(answer.body()) {
        Ok(problem) => Err(problem.into_error(status)),
        Err(source) => Err(SidecarError::Answer { status, source: Some(source) }),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A path segment: everything but unreserved characters percent-encoded.
fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_cannot_leave_its_path_segment() {
        assert_eq!(segment("cmpl-a/b?c#d%e-0"), "cmpl-a%2Fb%3Fc%23d%25e-0");
    }
}
