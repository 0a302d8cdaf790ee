//! One client request from its first byte to the response: limits, inspection, admission, the path it takes, its end.

mod batch;
mod keepalive;
pub(crate) mod proxy;
mod reply;
mod split;
mod whole;

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Body as _;
use kv::ids::DpRank;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{Span, error_span};
use vllm_wire::body::{Endpoint, PlainReason, RequestBody};
use vllm_wire::headers::DP_RANK;

use crate::admission::{Caller, Reserved, Running};
use crate::choice::{Ask, Avoid, Terms, Wish};
use crate::config::Gate;
use crate::engine::{Call, Decoding};
use crate::error::ApiError;
use crate::handoff::Claimed;
use crate::headers::{PREFILL_RANK, Path};
use crate::ladder::wait;
use crate::metrics::{Ended, Outcome};
use crate::pod_local::Prefillers;
use crate::router::{Shared, numbered};
use crate::spans::{RequestTrace, TRACE_PARENT};
use crate::targets::{Board, Occupied, PodId, Side, Target, TargetId};
use crate::trail::{Failed, Leg, Trail};
use crate::upstream::{Unread, read_whole};
use reply::{Begun, Client};

/// A request that has been read and understood.
struct Job<'a> {
    shared: &'a Shared,
    /// The router's id of the request; attempts add to it.
    id: Arc<str>,
    /// The client's id, or ours: a label for sidecars' lists.
    label: Arc<str>,
    endpoint: Endpoint,
    headers: Arc<HeaderMap>,
    body: RequestBody,
    wish: Wish,
    /// Who may prefill it.
    prefillers: Prefillers,
    ask: Ask,
    trail: &'a mut Trail,
    /// Ranks that have failed this request, once per failure.
    blamed: Vec<TargetId>,
    /// Tokens that each prefill rank found in its cache when this request came to it for the first time.
    cached: Vec<(TargetId, u64)>,
}

/// How a request was answered by an engine.
enum Done {
    /// An answer has begun.
    Begun { decoding: Decoding, seat: Occupied, claimed: Option<Claimed> },
    /// The engine found fault with the request.
    ClientError(Decoding),
}

/// Serves one request.
///
/// # Cancel safety
/// The client's leaving drops the future or the response's body, and with it every leg; what is owed to sidecars is paid by tasks.
pub(crate) async fn serve(shared: Arc<Shared>, endpoint: Endpoint, request: Request<Body>) -> Response<Body> {
    match shared.config.deadlines.sse_keepalive {
        None => work(shared, endpoint, request).await,
        Some(every) => keepalive::serve(request, every, move |request| work(shared, endpoint, request)).await,
    }
}

async fn work(shared: Arc<Shared>, endpoint: Endpoint, request: Request<Body>) -> Response<Body> {
    let id = shared.ids.next();
    let client = Client::of(&request, &id);
    let mut trail = Trail::new(id, client.label(), endpoint.path());
    trail.trace = RequestTrace::of(shared.metrics.spans(), request.headers());
    let mut ended = shared.metrics.begin(trail);
    let arrived = ended.trail.arrived;
    match in_time(&shared, arrived, answer(&shared, endpoint, request, &mut ended)).await {
        Ok((Done::Begun { decoding, seat, claimed }, running)) => {
            let Decoding { status, headers, held } = decoding;
            client.begun(&shared, ended, Begun { status, headers, held, running, seat, claimed })
        }
        Ok((Done::ClientError(Decoding { status, headers, held }), running)) => {
            let seat = Occupied::none();
            client.passed(&shared, ended, Begun { status, headers, held, running, seat, claimed: None })
        }
        Err(error) => client.failed(&shared, ended, &error),
    }
}

/// Until the first byte of the answer, no longer than `--request-deadline-ms` after the request has arrived.
async fn in_time<T>(
    shared: &Shared,
    arrived: Instant,
    answered: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    match shared.config.deadlines.request {
        Some(deadline) => timeout_at(arrived + deadline, answered).await.unwrap_or_else(|_| Err(late())),
        None => answered.await,
    }
}

async fn answer(
    shared: &Shared,
    endpoint: Endpoint,
    request: Request<Body>,
    ended: &mut Ended,
) -> Result<(Done, Running), ApiError> {
    let place = shared.admission.enter(request.extensions().get().unwrap_or(&Caller::default()))?;
    shared.retries.request();
    let (mut head, body) = request.into_parts();
    let picked = match &shared.gateway {
        Some(gateway) => Some(gateway.picked(&mut head.headers).await?),
        None => None,
    };
    let mut wish = wish(shared, &head.headers)?;
    let prefillers = picked.map_or(Prefillers::Any, |picked| {
        wish.decode = picked.decode.or(wish.decode);
        picked.prefillers
    });
    ended.trail.begin(Leg::Body);
    let (body, _reserved) = read_body(shared, body).await?;
    ended.trail.end(Leg::Body);
    let body = understood(shared, endpoint, body).await?;
    ended.trail.begin(Leg::Queue);
    let running = tokio::select! {
        running = shared.admission.start(place) => running?,
        () = shared.cut.cancelled() => return Err(cut()),
    };
    if body.inspected().stream {
        keepalive::Streaming::announce(&head.extensions);
    }
    ended.started();
    let trail = &mut ended.trail;
    if let Some(trace) = &mut trail.trace {
        trace.asks(body.model(), body.inspected().stream);
    }
    let ask = Ask::new(&shared.policies, &head.headers, body.bytes(), &body.inspected().sketch);
    let mut job = Job {
        shared,
        id: Arc::clone(&trail.id),
        label: trail.client_id.clone().unwrap_or_else(|| Arc::clone(&trail.id)),
        endpoint,
        headers: Arc::new(head.headers),
        body,
        ask,
        wish,
        prefillers,
        trail,
        blamed: Vec::new(),
        cached: Vec::new(),
    };
    job.trail.path = job.planned_path();
    let done = tokio::select! {
        done = job.run() => done,
        () = shared.cut.cancelled() => Err(cut()),
    };
    done.map(|done| (done, running))
}

impl Job<'_> {
    fn planned_path(&self) -> Path {
        match (self.plain_because(), self.shared.config.choice.gate) {
            (Some(_), _) => Path::Local,
            (None, Gate::Stage) => Path::Pd,
            (None, Gate::Direct(_)) => Path::Direct,
        }
    }

    async fn run(&mut self) -> Result<Done, ApiError> {
        if self.is_batch() { self.batch().await } else { self.one().await }
    }

    async fn one(&mut self) -> Result<Done, ApiError> {
        if let Some(reason) = self.plain_because() {
            self.trail.local_because = Some(reason);
            return self.whole().await;
        }
        self.split().await
    }

    fn plain_because(&self) -> Option<&'static str> {
        if matches!(self.prefillers, Prefillers::Nobody) {
            return Some("no_prefiller");
        }
        let least = usize::try_from(self.shared.config.paths.min_prefill_tokens).unwrap_or(usize::MAX);
        if self.is_batch() {
            return None;
        }
        let reason = self.body.inspected().plain_because.map(PlainReason::as_str);
        reason.or_else(|| (least > 0 && self.body.estimated_prompt_tokens() < least).then_some("short_prompt"))
    }

    fn terms<'a>(&'a self, avoid: &'a Avoid) -> Terms<'a> {
        let by = Some((&*self.shared.policies, &self.ask));
        let pairing = self.shared.config.choice.pairing;
        Terms { pairing, wish: self.wish, prefillers: &self.prefillers, avoid, by }
    }

    /// Notes that an attempt has failed, and what comes next.
    fn failed(&mut self, why: Failed, error: &dyn std::error::Error) {
        self.shared.metrics.failed(&why);
        self.trail.failed(why, error);
    }

    fn failed_on(&mut self, target: &Target) {
        self.blamed.push(target.id());
    }

    /// Waits before the next attempt when one of its ranks has failed this request already; another rank is tried at once.
    async fn leave_alone(&mut self, targets: &[&Target]) {
        self.trail.chosen();
        if targets.iter().any(|target| self.blamed.contains(&target.id())) {
            let nth = u32::try_from(self.blamed.len().saturating_sub(1)).unwrap_or(u32::MAX);
            self.trail.backing_off();
            sleep(wait(&self.shared.config.failure.backoff, nth, fastrand::f64())).await;
        }
    }

    /// The next attempt's identity towards engines.
    fn next_call(&mut self) -> Call {
        let attempt = u64::from(self.trail.next_attempt());
        // The router's ids have letters, digits and dashes only.
        let id = numbered(&self.id, attempt, |id| HeaderValue::from_str(id).unwrap_or(HeaderValue::from_static("")));
        Call { endpoint: self.endpoint, headers: Arc::clone(&self.headers), id, trace: self.trail.attempt_trace() }
    }

    /// What log lines about this request stand in, whatever is left out of the log. Made for each of them: most requests have none, and a span
    /// asks for memory eight times.
    fn span(&self) -> Span {
        let traceparent = self.headers.get(TRACE_PARENT).and_then(|value| value.to_str().ok());
        error_span!("request", request_id = %self.id, path = self.endpoint.path(), traceparent)
    }
}

fn wish(shared: &Shared, headers: &HeaderMap) -> Result<Wish, ApiError> {
    // A gateway that knows ranks says the decode rank as vLLM reads it.
    let (by_client, by_gateway) = (shared.config.choice.allow_rank_headers, shared.gateway.is_some());
    let rank = |name: &'static str| -> Result<Option<DpRank>, ApiError> {
        let Some(value) = headers.get(name) else { return Ok(None) };
        let rank = value.to_str().ok().and_then(|text| text.trim().parse().ok()).map(DpRank);
        let rank = rank.ok_or_else(|| {
            ApiError::client(StatusCode::BAD_REQUEST, "rank_header_invalid", format!("{name} is not a DP rank"))
        })?;
        let exists = |side| shared.board.fleet().side(side).iter().any(|pod| pod.has(rank));
        if exists(if name == PREFILL_RANK { Side::Prefill } else { Side::Decode }) {
            return Ok(Some(rank));
        }
        Err(ApiError::client(StatusCode::BAD_REQUEST, "rank_unknown", format!("{name}: there is no DP rank {rank}")))
    };
    Ok(Wish {
        prefill: if by_client { rank(PREFILL_RANK)? } else { None },
        decode: if by_client || by_gateway { rank(DP_RANK)? } else { None },
    })
}

/// Reads a body, within its limit and the router's. The memory is given back when the answer has begun.
async fn read_body(shared: &Shared, body: Body) -> Result<(Bytes, Reserved), ApiError> {
    let limit = u64::from(shared.config.limits.max_body_bytes);
    let too_large = || {
        let message = format!("the body is larger than {limit} bytes");
        ApiError::client(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    };
    // A body of unknown length may become as long as one may be.
    let length = body.size_hint().exact().unwrap_or(limit);
    if length > limit {
        return Err(too_large());
    }
    let reserved = shared.admission.reserve(length)?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    match timeout(shared.config.deadlines.queue, read_whole(body, limit)).await {
        Ok(Ok(body)) => Ok((body, reserved)),
        Ok(Err(Unread::TooLong(_))) => Err(too_large()),
        Ok(Err(Unread::Broken(_))) => {
            Err(ApiError::client(StatusCode::BAD_REQUEST, "body_incomplete", "the body ends before it is complete"))
        }
        Err(_) => {
            Err(ApiError::client(StatusCode::REQUEST_TIMEOUT, "body_timeout", "the body does not arrive in time"))
        }
    }
}

/// Bodies longer than this are read on a thread of their own: others' requests would wait meanwhile.
const LONG_BODY: usize = 1 << 20;

async fn understood(shared: &Shared, endpoint: Endpoint, body: Bytes) -> Result<RequestBody, ApiError> {
    let read = if body.len() < LONG_BODY {
        RequestBody::read(endpoint, body)
    } else {
        let reading = shared.tasks.spawn_blocking(move || RequestBody::read(endpoint, body));
        reading.await.map_err(|_| cut())?
    };
    read.map_err(|error| bad_body(&error))
}

fn bad_body(error: &vllm_wire::body::BodyError) -> ApiError {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    ApiError::client(StatusCode::BAD_REQUEST, "body_invalid", format!("{error}{cause}"))
}

fn late() -> ApiError {
    let message = "no answer has begun within the router's deadline for a request";
    ApiError::new(StatusCode::GATEWAY_TIMEOUT, "request_timeout", message, Outcome::Failed)
}

fn cut() -> ApiError {
    let message = "the router is shutting down; retry elsewhere";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message, Outcome::Cut)
}

/// No pair or rank can be chosen: which are missing, in words without addresses.
fn not_ready(board: &Board, sides: &[Side], prefillers: &Prefillers) -> ApiError {
    let meant = |pod: PodId| match (pod.side, prefillers) {
        (Side::Prefill, Prefillers::These(pods)) => pods.contains(&pod.index),
        (Side::Prefill, Prefillers::Any | Prefillers::Nobody) | (Side::Decode, _) => true,
    };
    let why: Vec<String> =
        sides.iter().map(|side| board.why_not_ready(*side, meant)).filter(|why| !why.is_empty()).collect();
    let why = if why.is_empty() { "no ready ranks go together".to_owned() } else { why.join(", ") };
    ApiError::not_ready(format!("no rank can take the request: {why}"))
}
