//! The router's own figures, listed in docs/metrics.md. Whether a decode had a receipt is not among them: only the engines' and
//! sidecars' logs prove that.
//!
//! Failures are counted as they happen, everything else about a request at its end, from its [`Trail`]. Labels are small sets of words and the places of pods on
//! the command line; never a URL, an id or an error's text ([`peer`] apart, which is off unless asked for).

mod inside;
mod labels;
mod peer;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use http::StatusCode;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use telemetry::trace::Spans;

use crate::admission::Admission;
use crate::pod_local::Headers;
use crate::records::{Record, Records};
use crate::spans;
use crate::targets::Board;
use crate::trail::{Attempt, Failed, Leg, Span, Trail};
use labels::{EndedLabels, FaultLabels, LegLabels, PathLabels, StepLabels};
use peer::Peer;

pub(crate) use labels::Outcome;

/// Upper bounds in seconds: of the time to the first byte and of whole requests, of a request's parts, of the time between chunks.
const REQUEST_BUCKETS: [f64; 16] =
    [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0];
const LEG_BUCKETS: [f64; 16] =
    [0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];
const ITL_BUCKETS: [f64; 12] = [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.25, 1.0, 5.0];

type Count = Counter<u64, AtomicU64>;
type PerLabel<L> = Family<L, Histogram, fn() -> Histogram>;

/// What the figures are read from.
#[derive(Debug)]
pub(crate) struct Sources {
    pub(crate) admission: Arc<Admission>,
    pub(crate) board: Arc<Board>,
    pub(crate) git_sha: &'static str,
    /// Whether to show the peer's names too.
    pub(crate) peer_names: bool,
    /// Ended requests to keep.
    pub(crate) records: u32,
    /// Where the spans of traced requests go.
    pub(crate) spans: Spans,
    /// What became of a gateway's headers, in a decode pod.
    pub(crate) prefiller_headers: Option<Headers>,
    /// Figures that other parts of the router bring; listed in docs/metrics.md like the rest.
    pub(crate) collectors: Vec<Box<dyn Collector>>,
}

#[derive(Debug)]
pub(crate) struct Figures {
    ended: Family<EndedLabels, Count>,
    duration: PerLabel<PathLabels>,
    ttft: Histogram,
    itl: Histogram,
    legs: PerLabel<LegLabels>,
    faults: Family<FaultLabels, Count>,
    steps: Family<StepLabels, Count>,
    receipts: Count,
    chunks: Count,
    bytes: Count,
    in_flight: Gauge,
    spans: Spans,
    peer: Option<Peer>,
}

/// All figures, and the last requests.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    figures: Arc<Figures>,
    records: Arc<Records>,
}

impl Metrics {
    pub(crate) fn new(sources: Sources) -> Self {
        let Sources { admission, board, git_sha, peer_names, records, spans, prefiller_headers, collectors } = sources;
        let figures = Arc::new(Figures {
            ended: Family::default(),
            duration: PerLabel::new_with_constructor(|| Histogram::new(REQUEST_BUCKETS)),
            ttft: Histogram::new(REQUEST_BUCKETS),
            itl: Histogram::new(ITL_BUCKETS),
            legs: PerLabel::new_with_constructor(|| Histogram::new(LEG_BUCKETS)),
            faults: Family::default(),
            steps: Family::default(),
            receipts: Count::default(),
            chunks: Count::default(),
            bytes: Count::default(),
            in_flight: Gauge::default(),
            spans,
            peer: peer_names.then(Peer::default),
        });
        let mut registry = Registry::default();
        let build = vec![("version", env!("CARGO_PKG_VERSION")), ("git_sha", git_sha)];
        registry.register("kvgate_build", "The build that runs", Info::new(build));
        figures.register(&mut registry);
        registry.register_collector(Box::new(inside::Inside::new(
            admission,
            Arc::clone(&board),
            figures.in_flight.clone(),
        )));
        if figures.peer.is_some() {
            registry.register_collector(Box::new(peer::Workers::new(board)));
        }
        if let Some(headers) = prefiller_headers {
            let help = "Requests of a gateway, by what became of the prefiller that it named";
            registry.register("router_prefiller_header", help, headers);
        }
        registry.register_collector(Box::new(figures.spans.clone()));
        for collector in collectors {
            registry.register_collector(collector);
        }
        Self { registry, figures, records: Arc::new(Records::new(usize::try_from(records).unwrap_or(usize::MAX))) }
    }

    /// The page, as OpenMetrics.
    pub(crate) fn page(&self) -> Result<String, fmt::Error> {
        let mut page = String::new();
        text::encode(&mut page, &self.registry)?;
        Ok(page)
    }

    /// Where the spans of traced requests go.
    pub(crate) fn spans(&self) -> &Spans {
        &self.figures.spans
    }

    /// The last requests.
    pub(crate) fn records(&self) -> &Records {
        &self.records
    }

    /// Counts and keeps one request when the guard goes.
    pub(crate) fn begin(&self, trail: Trail) -> Ended {
        let (figures, records) = (Arc::clone(&self.figures), Arc::clone(&self.records));
        Ended { figures, records, trail, outcome: Outcome::ClientGone, working: false }
    }

    /// An attempt has failed.
    pub(crate) fn failed(&self, why: &Failed) {
        let Failed { leg, fault, next, code: _ } = why;
        self.figures.faults.get_or_create(&FaultLabels { leg: *leg, fault }).inc();
        self.figures.steps.get_or_create(&StepLabels { step: *next }).inc();
    }

    pub(crate) fn receipt(&self) {
        self.figures.receipts.inc();
    }
}

impl Figures {
    fn register(&self, registry: &mut Registry) {
        registry.register("router_request_ended", "Requests ended, by outcome and path", self.ended.clone());
        registry.register_with_unit(
            "router_request_duration",
            "From the request to the last byte of its answer, of requests that ended well",
            Unit::Seconds,
            self.duration.clone(),
        );
        registry.register_with_unit(
            "router_ttft",
            "From the request to the first byte of its answer",
            Unit::Seconds,
            self.ttft.clone(),
        );
        registry.register_with_unit(
            "router_itl",
            "Mean time between the chunks of a streamed answer, one observation per answer",
            Unit::Seconds,
            self.itl.clone(),
        );
        registry.register_with_unit(
            "router_leg_duration",
            "Time per part of a request, of parts that ended well",
            Unit::Seconds,
            self.legs.clone(),
        );
        registry.register("router_attempt_failed", "Failed attempts, by part and fault", self.faults.clone());
        registry.register("router_failure_step", "Failed attempts, by what was done next", self.steps.clone());
        registry.register("router_receipts", "Receipts redeemed for a decode", self.receipts.clone());
        registry.register("router_stream_chunks", "Frames of answers passed on", self.chunks.clone());
        registry.register("router_stream_bytes", "Bytes of answers passed on", self.bytes.clone());
        if let Some(peer) = &self.peer {
            peer.register(registry);
        }
    }

    fn count(&self, record: &Record) {
        let Record { trail, outcome, took } = record;
        let (outcome, path) = (*outcome, trail.path);
        self.ended.get_or_create(&EndedLabels { outcome, path }).inc();
        if outcome == Outcome::Ok {
            self.duration.get_or_create(&PathLabels { path }).observe(took.as_secs_f64());
        }
        for (leg, span) in [(Leg::Body, trail.body), (Leg::Queue, trail.queue), (Leg::Stream, trail.stream)] {
            self.leg(leg, span);
        }
        for attempt in &trail.tries {
            self.attempt(attempt);
        }
        self.chunks.inc_by(trail.chunks);
        self.bytes.inc_by(trail.bytes);
        let gaps = u32::try_from(trail.chunks).unwrap_or(u32::MAX).saturating_sub(1);
        if let Some(mean) = trail.stream.took().and_then(|took| took.checked_div(gaps)) {
            self.itl.observe(mean.as_secs_f64());
        }
        if let Some(peer) = &self.peer {
            peer.count(record);
        }
    }

    fn attempt(&self, attempt: &Attempt) {
        let failed = attempt.failed.as_ref();
        for (leg, span) in attempt.legs() {
            let well = failed.is_none_or(|failed| failed.why.leg != leg);
            if well {
                self.leg(leg, span);
            }
            let (from, at) = (attempt.prefill_target.as_ref(), attempt.decode_target.as_ref());
            let targets = match leg {
                Leg::Prefill => [from, None],
                Leg::Transfer => [from, at],
                Leg::Decode => [None, at],
                Leg::Body | Leg::Queue | Leg::Choice | Leg::Backoff | Leg::Stream => [None, None],
            };
            let Some(took) = span.took() else { continue };
            for part in targets.into_iter().flatten().filter_map(|target| target.part(leg)) {
                if well { part.serve(took) } else { part.fail() }
            }
        }
    }

    fn leg(&self, leg: Leg, span: Span) {
        if let Some(took) = span.took() {
            self.legs.get_or_create(&LegLabels { leg }).observe(took.as_secs_f64());
        }
    }
}

/// One request's end, counted and kept once: as [`Outcome::ClientGone`] unless something else is known by then.
#[derive(Debug)]
pub(crate) struct Ended {
    figures: Arc<Figures>,
    records: Arc<Records>,
    pub(crate) trail: Trail,
    outcome: Outcome,
    working: bool,
}

impl Ended {
    /// Its answer begins.
    pub(crate) fn first_byte(&mut self, status: StatusCode) {
        self.trail.begin(Leg::Stream);
        self.trail.status = Some(status);
        self.figures.ttft.observe(self.trail.now().as_secs_f64());
    }

    /// It is being worked on.
    pub(crate) fn started(&mut self) {
        self.trail.end(Leg::Queue);
        if !self.working {
            self.working = true;
            self.figures.in_flight.inc();
        }
    }

    pub(crate) fn outcome(&mut self, outcome: Outcome) {
        self.outcome = outcome;
        if outcome == Outcome::Ok {
            self.trail.end(Leg::Stream);
        }
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if self.working {
            self.figures.in_flight.dec();
        }
        let empty = Trail::new(Arc::default(), None, "");
        let trail = std::mem::replace(&mut self.trail, empty);
        let record = Record { took: trail.now(), trail, outcome: self.outcome };
        self.figures.count(&record);
        if record.trail.trace.is_some() {
            self.figures.spans.send(spans::of(&record.trail, record.outcome, record.took));
        }
        self.records.keep(record);
    }
}
