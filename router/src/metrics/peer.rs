//! vllm-router's names (as 0.1.17 shows them) for what means the same here, so that its dashboards go on working. Off unless asked for:
//! its `worker` label is an engine's URL.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::labels::Outcome;
use super::{Count, PerLabel, REQUEST_BUCKETS};
use crate::headers::Path;
use crate::ladder::Next;
use crate::records::Record;
use crate::targets::{Board, Candidate, Part, Side};
use crate::trail::Leg;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: &'static str,
}

/// What is counted at a request's end.
#[derive(Debug)]
pub(super) struct Peer {
    requests: Family<RouteLabels, Counter<u64, AtomicU64>>,
    duration: PerLabel<RouteLabels>,
    retries: Family<RouteLabels, Count>,
    exhausted: Family<RouteLabels, Count>,
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            duration: PerLabel::new_with_constructor(|| Histogram::new(REQUEST_BUCKETS)),
            retries: Family::default(),
            exhausted: Family::default(),
        }
    }
}

impl Peer {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("vllm_router_pd_requests", "Requests split into prefill and decode", self.requests.clone());
        registry.register_with_unit(
            "vllm_router_pd_request_duration",
            "From such a request to the end of its answer",
            Unit::Seconds,
            self.duration.clone(),
        );
        registry.register("vllm_router_retries", "Attempts after the first", self.retries.clone());
        registry.register(
            "vllm_router_retries_exhausted",
            "Requests that failed after their last attempt",
            self.exhausted.clone(),
        );
    }

    pub(super) fn count(&self, record: &Record) {
        let labels = RouteLabels { route: record.trail.endpoint };
        if matches!(record.trail.path, Path::Pd | Path::Direct) {
            self.requests.get_or_create(&labels).inc();
            self.duration.get_or_create(&labels).observe(record.took.as_secs_f64());
        }
        let failed = record.trail.tries.iter().filter_map(|one| one.failed.as_ref());
        let again = failed.filter(|failed| !matches!(failed.why.next, Next::GiveUp | Next::BudgetSpent));
        let retries = u64::try_from(again.count()).unwrap_or(u64::MAX);
        if retries > 0 {
            self.retries.get_or_create(&labels).inc_by(retries);
        }
        let gave_up = record
            .trail
            .tries
            .last()
            .and_then(|last| last.failed.as_ref())
            .is_some_and(|failed| matches!(failed.why.next, Next::GiveUp | Next::BudgetSpent));
        if gave_up && retries > 0 && record.outcome == Outcome::Failed {
            self.exhausted.get_or_create(&labels).inc();
        }
    }
}

/// The peer's figures per worker, read when Prometheus asks.
#[derive(Debug)]
pub(super) struct Workers {
    board: Arc<Board>,
}

impl Workers {
    pub(super) fn new(board: Arc<Board>) -> Self {
        Self { board }
    }
}

impl Collector for Workers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all: Vec<Candidate> =
            [Side::Prefill, Side::Decode].into_iter().flat_map(|side| self.board.ranks(side)).collect();
        type Count = fn(&Part) -> u64;
        let count = |of: Count, rank: &Candidate, leg: Leg| rank.target.part(leg).map_or(0, of);
        let (served, failed): (Count, Count) = (Part::served, Part::failed);
        let legs = [(Side::Prefill, Leg::Prefill), (Side::Decode, Leg::Decode)];
        for (side, leg) in legs {
            let word = side.as_str();
            for (what, help, of) in [
                ("requests", "Legs that the worker did well", served),
                ("errors", "Legs that failed on the worker", failed),
            ] {
                let name = format!("vllm_router_pd_{word}_{what}");
                let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
                for rank in all.iter().filter(|rank| rank.target.pod.id.side == side) {
                    ConstCounter::new(count(of, rank, leg))
                        .encode(family.encode_family(&[("worker", worker(rank))])?)?;
                }
            }
        }
        let help = "Legs that the worker was given and that have ended";
        let mut family =
            encoder.encode_descriptor("vllm_router_processed_requests", help, None, MetricType::Counter)?;
        for rank in &all {
            let own = legs.iter().filter(|(side, _)| *side == rank.target.pod.id.side);
            let ended = own.map(|(_, leg)| count(served, rank, *leg) + count(failed, rank, *leg)).sum();
            ConstCounter::<u64>::new(ended).encode(family.encode_family(&[("worker", worker(rank))])?)?;
        }
        type Figure = (&'static str, &'static str, fn(&Candidate) -> i64);
        let gauges: [Figure; 2] = [
            ("vllm_router_worker_health", "1 when the worker can take work", |rank| i64::from(rank.view.ready)),
            ("vllm_router_running_requests", "This router's requests on the worker", |rank| i64::from(rank.occupied)),
        ];
        for (name, help, figure) in gauges {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for rank in &all {
                ConstGauge::new(figure(rank)).encode(family.encode_family(&[("worker", worker(rank))])?)?;
            }
        }
        let active = all.iter().filter(|rank| rank.view.ready).count();
        let help = "Workers that can take work";
        let gauge = encoder.encode_descriptor("vllm_router_active_workers", help, None, MetricType::Gauge)?;
        ConstGauge::new(i64::try_from(active).unwrap_or(i64::MAX)).encode(gauge)
    }
}

/// As the peer names it: the URL, with the rank where a URL has several.
fn worker(rank: &Candidate) -> String {
    let pod = &rank.target.pod;
    let url = pod.engine.to_string();
    let url = url.trim_end_matches('/');
    if pod.ranks() > 1 { format!("{url}@{}", rank.target.local) } else { url.to_owned() }
}
