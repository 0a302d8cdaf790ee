//! How following the pods goes, read when Prometheus asks; nothing when none are looked for.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use tokio::time::Instant;

use super::{Followed, Sources};

/// Of all sources of one side and kind: several names are one line.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    pods: u64,
    syncs: u64,
    failures: u64,
    age: Duration,
}

impl Sources {
    fn figures(&self, now: Instant) -> BTreeMap<(&'static str, &'static str), Figures> {
        let mut all: BTreeMap<_, Figures> = BTreeMap::new();
        for Followed { source, seen, tally } in &self.0 {
            let figures = all.entry((source.side.as_str(), source.by)).or_default();
            figures.pods += u64::try_from(seen.borrow().pods.len()).unwrap_or(u64::MAX);
            figures.syncs += tally.syncs();
            figures.failures += tally.failures();
            figures.age = figures.age.max(tally.age(now));
        }
        all
    }
}

impl Collector for Sources {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.figures(Instant::now());
        if all.is_empty() {
            return Ok(());
        }
        let labels = |(side, source): &(&'static str, &'static str)| [("side", *side), ("source", *source)];
        let help = "Pods that are known by discovery";
        let mut family = encoder.encode_descriptor("router_discovery_pods", help, None, MetricType::Gauge)?;
        for (of, figures) in &all {
            let pods = i64::try_from(figures.pods).unwrap_or(i64::MAX);
            ConstGauge::new(pods).encode(family.encode_family(&labels(of))?)?;
        }
        type Figure = fn(&Figures) -> u64;
        let counters: [(&str, &str, Figure); 2] = [
            ("router_discovery_syncs", "Whole answers: lists of pods, or lookups of a name", |figures| figures.syncs),
            ("router_discovery_failures", "Questions and watches of discovery that failed", |figures| figures.failures),
        ];
        for (name, help, figure) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (of, figures) in &all {
                ConstCounter::new(figure(figures)).encode(family.encode_family(&labels(of))?)?;
            }
        }
        let help = "Time since the last word of whoever is asked for pods";
        let unit = Some(&Unit::Seconds);
        let mut family = encoder.encode_descriptor("router_discovery_age", help, unit, MetricType::Gauge)?;
        for (of, figures) in &all {
            ConstGauge::new(figures.age.as_secs_f64()).encode(family.encode_family(&labels(of))?)?;
        }
        Ok(())
    }
}
