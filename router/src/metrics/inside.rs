//! What is read when Prometheus asks: requests inside, and the ranks.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Unit;

use crate::admission::Admission;
use crate::breaker::Breaker;
use crate::targets::{Board, Candidate, Part, Pod, Side, Tally};

#[derive(Debug)]
pub(super) struct Inside {
    admission: Arc<Admission>,
    board: Arc<Board>,
    in_flight: Gauge,
}

impl Inside {
    pub(super) fn new(admission: Arc<Admission>, board: Arc<Board>, in_flight: Gauge) -> Self {
        Self { admission, board, in_flight }
    }
}

type Figure = (&'static str, &'static str, fn(&Candidate) -> i64);

const RANKS: [Figure; 4] = [
    ("router_target_ready", "1 when the rank can take work", |rank| i64::from(rank.view.ready)),
    ("router_target_in_flight", "Requests of this router on the rank", |rank| i64::from(rank.occupied)),
    ("router_target_running", "Requests running in the rank's engine, as its sidecar says", |rank| {
        i64::from(rank.view.running)
    }),
    ("router_target_waiting", "Requests waiting in the rank's engine, as its sidecar says", |rank| {
        i64::from(rank.view.waiting)
    }),
];

impl Collector for Inside {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let inside = i64::try_from(self.admission.inside()).unwrap_or(i64::MAX);
        let in_flight = self.in_flight.get();
        let gauges = [
            ("router_requests_inside", "Requests inside the router, working or waiting", inside),
            ("router_requests_in_flight", "Requests that are worked on", in_flight),
            ("router_queue_depth", "Requests that wait for their body or their turn", (inside - in_flight).max(0)),
            ("router_draining", "1 when no new requests are taken", i64::from(self.admission.is_draining())),
        ];
        for (name, help, value) in gauges {
            ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        let all: Vec<Candidate> =
            [Side::Prefill, Side::Decode].into_iter().flat_map(|side| self.board.ranks(side)).collect();
        for (name, help, figure) in RANKS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for rank in &all {
                let pod = rank.target.pod.id;
                let labels = [
                    ("side", pod.side.as_str().to_owned()),
                    ("pod", pod.index.to_string()),
                    ("dp_rank", rank.target.rank.to_string()),
                ];
                ConstGauge::new(figure(rank)).encode(family.encode_family(&labels)?)?;
            }
        }
        parts(&all, &mut encoder)?;
        self.breakers(&mut encoder)
    }
}

/// What each rank has done, by its pod's place on its side: gone with its pod.
fn parts(all: &[Candidate], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    type Shown = fn(&Part, MetricEncoder<'_>) -> fmt::Result;
    let figures: [(&str, &str, Option<Unit>, Shown); 3] = [
        ("router_target_served", "Parts that a rank did well", None, |part, to| {
            ConstCounter::new(part.served()).encode(to)
        }),
        ("router_target_failed", "Parts that failed on a rank", None, |part, to| {
            ConstCounter::new(part.failed()).encode(to)
        }),
        ("router_target_time", "Time of the parts that a rank did well", Some(Unit::Seconds), |part, to| {
            ConstCounter::new(part.time().as_secs_f64()).encode(to)
        }),
    ];
    for (name, help, unit, shown) in figures {
        let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
        for Candidate { target, .. } in all {
            let pod = target.pod.id;
            for leg in Tally::legs(pod.side) {
                let Some(part) = target.part(leg) else { continue };
                let labels = [
                    ("side", pod.side.as_str().to_owned()),
                    ("pod", pod.index.to_string()),
                    ("dp_rank", target.rank.to_string()),
                    ("leg", leg.as_str().to_owned()),
                ];
                shown(part, family.encode_family(&labels)?)?;
            }
        }
    }
    Ok(())
}

impl Inside {
    fn breakers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let pods = self.board.pods();
        let place = |pod: &Pod| [("side", pod.id.side.as_str().to_owned()), ("pod", pod.id.index.to_string())];
        let help = "1 for the state that the rank's circuit breaker is in";
        let mut family = encoder.encode_descriptor("router_target_breaker", help, None, MetricType::Gauge)?;
        for pod in &pods {
            let [side, index] = place(pod);
            for rank in &pod.ranks {
                for state in Breaker::STATES {
                    let number = ("dp_rank", rank.number().to_string());
                    let labels = [side.clone(), index.clone(), number, ("state", state.to_owned())];
                    let value = i64::from(rank.breaker.as_str() == state);
                    ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        let help = "1 for the state that the circuit breaker of the whole pod is in";
        let mut family = encoder.encode_descriptor("router_pod_breaker", help, None, MetricType::Gauge)?;
        for pod in &pods {
            let [side, index] = place(pod);
            for state in Breaker::STATES {
                let labels = [side.clone(), index.clone(), ("state", state.to_owned())];
                ConstGauge::new(i64::from(pod.breaker.as_str() == state)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
