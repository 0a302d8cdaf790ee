//! The router's own figures. Whether a decode had a receipt is not among them: only the engines' and sidecars' logs prove that.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric, LabelValueEncoder,
};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::admission::Admission;
use crate::headers::Path;
use crate::ladder::Next;

/// The media type of the page.
pub(crate) const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of TTFT, in seconds.
const TTFT_BUCKETS: [f64; 14] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    /// The whole answer went out.
    Ok,
    /// The client's mistake, by our check or the engine's.
    ClientError,
    /// Turned away: queue full or draining.
    Rejected,
    /// No rank was ready.
    NotReady,
    /// The last attempt failed.
    Failed,
    /// The client left.
    ClientGone,
    /// The answer broke off after its first byte.
    Broken,
    /// The drain timeout ended it.
    Cut,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ClientError => "client_error",
            Self::Rejected => "rejected",
            Self::NotReady => "not_ready",
            Self::Failed => "failed",
            Self::ClientGone => "client_gone",
            Self::Broken => "broken",
            Self::Cut => "cut",
        }
    }
}

macro_rules! label_by_word {
    ($($name:ident),*) => {$(
        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
                EncodeLabelValue::encode(&self.as_str(), encoder)
            }
        }
    )*};
}
label_by_word!(Outcome, Path, Next);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndedLabels {
    outcome: Outcome,
    path: Path,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabels {
    step: Next,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FaultLabels {
    leg: &'static str,
    fault: &'static str,
}

#[derive(Clone, Debug)]
struct Figures {
    ended: Family<EndedLabels, Counter<u64, AtomicU64>>,
    steps: Family<StepLabels, Counter<u64, AtomicU64>>,
    failed: Family<FaultLabels, Counter<u64, AtomicU64>>,
    receipts: Counter<u64, AtomicU64>,
    ttft: Histogram,
}

/// All figures.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    figures: Figures,
}

impl Metrics {
    pub(crate) fn new(admission: Arc<Admission>) -> Self {
        let mut registry = Registry::default();
        let figures = Figures {
            ended: Family::default(),
            steps: Family::default(),
            failed: Family::default(),
            receipts: Counter::default(),
            ttft: Histogram::new(TTFT_BUCKETS),
        };
        registry.register("router_request_ended", "Requests ended, by outcome and path", figures.ended.clone());
        registry.register("router_failure_step", "Failed attempts, by what was done next", figures.steps.clone());
        registry.register("router_attempt_failed", "Failed attempts, by leg and what happened", figures.failed.clone());
        registry.register("router_receipts", "Receipts redeemed for a decode", figures.receipts.clone());
        registry.register(
            "router_ttft_seconds",
            "From the request to the first byte of its answer",
            figures.ttft.clone(),
        );
        registry.register_collector(Box::new(Inside(admission)));
        Self { registry, figures }
    }

    /// The page.
    pub(crate) fn page(&self) -> Result<String, fmt::Error> {
        let mut page = String::new();
        text::encode(&mut page, &self.registry)?;
        Ok(page)
    }

    /// Counts one request's end when the guard goes.
    pub(crate) fn begin(&self) -> Ended {
        Ended { figures: self.figures.clone(), path: Path::None, outcome: Outcome::ClientGone }
    }

    pub(crate) fn step(&self, step: Next) {
        self.figures.steps.get_or_create(&StepLabels { step }).inc();
    }

    /// Counts one failed attempt; both words from short lists.
    pub(crate) fn failed(&self, leg: &'static str, fault: &'static str) {
        self.figures.failed.get_or_create(&FaultLabels { leg, fault }).inc();
    }

    pub(crate) fn receipt(&self) {
        self.figures.receipts.inc();
    }

    pub(crate) fn first_byte(&self, after: Duration) {
        self.figures.ttft.observe(after.as_secs_f64());
    }
}

/// One request's end, counted once: as [`Outcome::ClientGone`] unless something else is known by then.
#[derive(Debug)]
pub(crate) struct Ended {
    figures: Figures,
    path: Path,
    outcome: Outcome,
}

impl Ended {
    pub(crate) fn path(&mut self, path: Path) {
        self.path = path;
    }

    pub(crate) fn outcome(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.figures.ended.get_or_create(&EndedLabels { outcome: self.outcome, path: self.path }).inc();
    }
}

#[derive(Debug)]
struct Inside(Arc<Admission>);

impl Collector for Inside {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let inside = ConstGauge::new(i64::try_from(self.0.inside()).unwrap_or(i64::MAX));
        let help = "Requests inside the router, working or waiting";
        inside.encode(encoder.encode_descriptor("router_requests_inside", help, None, inside.metric_type())?)
    }
}
