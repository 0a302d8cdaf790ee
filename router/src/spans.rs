//! A request's trail as spans (docs/tracing.md). They are made when it has ended; before that a traced request costs the ids that are sent
//! along, and any other nothing.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use telemetry::trace::{Context, Kind, Received, Span, Spans};
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::metrics::Outcome;
use crate::targets::Target;
use crate::trail::{Attempt, Leg, Span as Part, Trail};

/// W3C's header.
pub(crate) const TRACE_PARENT: &str = "traceparent";

/// What a traced request carries with its trail.
#[derive(Clone, Debug)]
pub(crate) struct RequestTrace {
    received: Received,
    model: Option<String>,
    stream: bool,
}

impl RequestTrace {
    /// A request with these headers, if it is to be traced.
    pub(crate) fn of(spans: &Spans, headers: &HeaderMap) -> Option<Box<Self>> {
        if !spans.are_on() {
            return None;
        }
        let caller = headers.get(TRACE_PARENT).and_then(|value| value.to_str().ok());
        let received = spans.receive(caller)?;
        Some(Box::new(Self { received, model: None, stream: false }))
    }

    /// What its body asks for.
    pub(crate) fn asks(&mut self, model: Option<String>, stream: bool) {
        self.model = model;
        self.stream = stream;
    }

    /// An attempt's share of it.
    pub(crate) fn attempt(&self, seed: u64) -> AttemptTrace {
        AttemptTrace { request: self.received.context, seed }
    }
}

/// Which spans an attempt's legs are: known before they begin, so that engines and sidecars can go on from there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttemptTrace {
    request: Context,
    seed: u64,
}

impl AttemptTrace {
    fn leg(&self, leg: Leg) -> Context {
        Context { span_id: xxh3_64_with_seed(leg.as_str().as_bytes(), self.seed).max(1), ..self.request }
    }

    /// The header for whoever works on a leg.
    pub(crate) fn header(&self, leg: Leg) -> Option<HeaderValue> {
        HeaderValue::try_from(self.leg(leg).to_string()).ok()
    }
}

/// A request's spans, if they are recorded.
pub(crate) fn of(trail: &Trail, outcome: Outcome, took: Duration) -> Vec<Span> {
    let Some(trace) = trail.trace.as_ref().filter(|trace| trace.received.context.sampled) else { return Vec::new() };
    let Received { context, parent } = trace.received;
    let whole = Span::new(context, parent, "request", trail.arrived, trail.arrived + took).kind(Kind::Server);
    let mut spans = vec![about(whole, trail, trace, outcome)];
    for (leg, part) in [(Leg::Body, trail.body), (Leg::Queue, trail.queue), (Leg::Stream, trail.stream)] {
        spans.extend(child(trail, took, context.child(), &context, leg, part));
    }
    for attempt in &trail.tries {
        let ids = trace.attempt(attempt.seed);
        for (leg, part) in attempt.legs() {
            let span = child(trail, took, ids.leg(leg), &context, leg, part);
            spans.extend(span.map(|span| about_leg(span, attempt, leg)));
        }
    }
    spans
}

fn about(span: Span, trail: &Trail, trace: &RequestTrace, outcome: Outcome) -> Span {
    let last = trail.tries.last();
    let target = |of: fn(&Attempt) -> Option<&Target>| last.and_then(of).map(|target| target.id().to_string());
    let mut span = span
        .text("request_id", trail.client_id.as_ref().unwrap_or(&trail.id).to_string())
        .text("router_id", trail.id.to_string())
        .text("http.route", trail.endpoint)
        .maybe("model", trace.model.clone())
        .flag("stream", trace.stream)
        .text("path", trail.path.as_str())
        .text("outcome", outcome.as_str())
        .number("attempts", trail.attempts)
        .number("chunks", trail.chunks)
        .number("bytes", trail.bytes)
        .maybe("local_because", trail.local_because)
        .maybe("prefill", target(|attempt| attempt.prefill_target.as_ref()))
        .maybe("decode", target(|attempt| attempt.decode_target.as_ref()))
        .maybe("fault", trail.code.clone());
    if let Some(first_byte) = trail.stream.from {
        span = span.number("ttft_ms", u64::try_from(first_byte.as_millis()).unwrap_or(u64::MAX));
    }
    if let Some(status) = trail.status {
        span = span.number("http.response.status_code", status.as_u16());
    }
    let failed = match outcome {
        Outcome::Failed | Outcome::NotReady | Outcome::Broken | Outcome::Cut => true,
        Outcome::Ok | Outcome::ClientError | Outcome::Rejected | Outcome::ClientGone => false,
    };
    let code = trail.code.clone().unwrap_or_else(|| outcome.as_str().into());
    span.failed(failed.then_some(code))
}

/// A part of a request; one that was under way when the request ended, ended with it.
fn child(trail: &Trail, took: Duration, own: Context, request: &Context, leg: Leg, part: Part) -> Option<Span> {
    let at = |offset: Duration| -> Instant { trail.arrived + offset };
    let span = Span::new(own, Some(request.span_id), leg.as_str(), at(part.from?), at(part.to.unwrap_or(took)));
    let asks_another = matches!(leg, Leg::Prefill | Leg::Transfer | Leg::Decode);
    Some(if asks_another { span.kind(Kind::Client) } else { span })
}

fn about_leg(span: Span, attempt: &Attempt, leg: Leg) -> Span {
    let target = match leg {
        Leg::Prefill => attempt.prefill_target.as_ref(),
        Leg::Transfer | Leg::Decode => attempt.decode_target.as_ref(),
        Leg::Body | Leg::Queue | Leg::Choice | Leg::Backoff | Leg::Stream => None,
    };
    let failed = attempt.failed.as_ref().filter(|failed| failed.why.leg == leg);
    let mut span = span.number("attempt", attempt.number);
    if let Some(target) = target {
        span = span.text("target", target.id().to_string()).number("dp_rank", target.rank.0);
    }
    if leg == Leg::Transfer {
        span = span.maybe("transfer_id", attempt.transfer_id.as_ref().map(|transfer| transfer.as_str().to_owned()));
    }
    span.maybe("fault", failed.map(|failed| failed.why.fault))
        .maybe("next", failed.map(|failed| failed.why.next.as_str()))
        .failed(failed.map(|failed| failed.why.code.clone()))
}
