//! `/metrics`: the core's totals and the ranks' figures, read when Prometheus asks.
//!
//! Labels are small sets of words (stage, outcome, state) and rank numbers; never an engine id, an address or an error's text.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::model::{Counters, DurationHistogram, RankSnapshot, RankState};
use crate::pod::Pod;

/// Which build this is, and which NIXL it runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Build {
    /// kvgate's version.
    pub version: &'static str,
    /// The commit that it was built from.
    pub git_sha: &'static str,
    /// The NIXL library that was loaded.
    pub nixl_path: String,
    /// What that library says its version is.
    pub nixl_version: String,
    /// Whether that library is the tests' stand-in.
    pub nixl_mock: bool,
}

/// The page and what it is made of.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
}

impl Metrics {
    pub(crate) fn new(pod: Pod, build: &Build) -> Self {
        let mut registry = Registry::default();
        let labels = vec![
            ("version", build.version.to_owned()),
            ("git_sha", build.git_sha.to_owned()),
            ("nixl_version", build.nixl_version.clone()),
        ];
        registry.register("build", "The build that runs and the NIXL that it loaded", Info::new(labels));
        registry.register_collector(Box::new(pod.spans().clone()));
        registry.register_collector(Box::new(PodCollector { pod }));
        Self { registry }
    }

    pub(crate) fn page(&self) -> Result<String, fmt::Error> {
        let mut page = String::new();
        text::encode(&mut page, &self.registry)?;
        Ok(page)
    }
}

#[derive(Debug)]
struct PodCollector {
    pod: Pod,
}

impl Collector for PodCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counters = self.pod.counters();
        let ranks = self.pod.ranks().borrow().clone();
        totals(&mut encoder, &counters)?;
        ended(&mut encoder, &counters)?;
        stages(&mut encoder, &counters, &ranks)?;
        alive(&mut encoder, self.pod.alive())?;
        figures(&mut encoder, &ranks)?;
        staging(&mut encoder, &ranks)?;
        states(&mut encoder, &ranks)
    }
}

fn totals(encoder: &mut DescriptorEncoder<'_>, counters: &Counters) -> fmt::Result {
    let totals: [(&str, &str, &AtomicU64); 17] = [
        ("kv_transfer_started", "Transfers accepted", &counters.started),
        ("kv_transfer_bytes", "Bytes landed in staging with a receipt", &counters.bytes_landed),
        ("kv_collected", "Landed transfers that the decode engine collected", &counters.collected),
        ("kv_uncollected", "Landed transfers freed without the decode engine's notification", &counters.uncollected),
        (
            "kv_late_collect",
            "Notifications for staging that was free already: reused memory may have been read",
            &counters.late_collect,
        ),
        ("kv_wrong_rank_collect", "Collections by a rank other than the one staged for", &counters.wrong_rank_collect),
        ("kv_peer_handshake", "Handshakes with prefill engines", &counters.handshakes),
        ("kv_peer_handshake_failed", "Handshakes with prefill engines that failed", &counters.handshakes_failed),
        ("kv_lease_heartbeat", "Heartbeats sent to prefill engines", &counters.heartbeats),
        ("kv_source_told", "Done notifications handed to the transport", &counters.told),
        ("kv_source_told_failed", "Done notifications that could not be sent", &counters.tells_failed),
        ("kv_handle_leaked", "Prefill handles whose lease ran out unreleased", &counters.leaked_handles),
        ("kv_quarantined_bytes", "Bytes that ever went into quarantine", &counters.quarantined_bytes),
        ("kv_agent_recycled", "Pull agents made anew to end a quarantine", &counters.recycled_agents),
        ("kv_digest_compared_bytes", "Bytes compared with digests of the source", &counters.compared_bytes),
        ("kv_digest_served_bytes", "Bytes of the own engines digested for others", &counters.served_digest_bytes),
        ("kv_engine_restart", "Engine restarts noticed", &counters.engine_restarts),
    ];
    for (name, help, counter) in totals {
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(load(counter)).encode(metric)?;
    }
    Ok(())
}

fn ended(encoder: &mut DescriptorEncoder<'_>, counters: &Counters) -> fmt::Result {
    let help = "Transfers ended, by how: landed, or the code of the failure";
    let mut family = encoder.encode_descriptor("kv_transfer_ended", help, None, MetricType::Counter)?;
    for (outcome, count) in counters.ended() {
        ConstCounter::new(count).encode(family.encode_family(&[("outcome", outcome.as_str())])?)?;
    }
    Ok(())
}

fn stages(encoder: &mut DescriptorEncoder<'_>, counters: &Counters, ranks: &[Arc<RankSnapshot>]) -> fmt::Result {
    let help = "Time per stage of transfers that landed";
    let (name, unit) = ("kv_transfer_duration", Some(&Unit::Seconds));
    let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Histogram)?;
    for rank in ranks {
        for (stage, histogram) in counters.stages.of(rank.dp_rank).named() {
            let labels = [("dp_rank", rank.dp_rank.to_string()), ("stage", stage.to_owned())];
            Shown(histogram).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn alive(encoder: &mut DescriptorEncoder<'_>, alive: bool) -> fmt::Result {
    let help = "1 while all NIXL agent threads live and get round";
    let metric = encoder.encode_descriptor("kv_agents_alive", help, None, MetricType::Gauge)?;
    ConstGauge::new(i64::from(alive)).encode(metric)
}

fn figures(encoder: &mut DescriptorEncoder<'_>, ranks: &[Arc<RankSnapshot>]) -> fmt::Result {
    type Figure = (&'static str, &'static str, fn(&RankSnapshot) -> i64);
    let figures: [Figure; 4] = [
        ("kv_transfer_in_flight", "Transfers without an end yet", |rank| i64::from(rank.in_flight)),
        ("kv_handle_active", "Handles alive: pinned in the engine or landed in staging", |rank| {
            i64::from(rank.handles)
        }),
        ("kv_quarantine_bytes", "Staging that hardware may still write to", quarantine_bytes),
        ("kv_rank_draining", "1 when the rank takes no new work", |rank| i64::from(rank.draining)),
    ];
    for (name, help, figure) in figures {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for rank in ranks {
            ConstGauge::new(figure(rank)).encode(family.encode_family(&[("dp_rank", rank.dp_rank.0)])?)?;
        }
    }
    Ok(())
}

fn staging(encoder: &mut DescriptorEncoder<'_>, ranks: &[Arc<RankSnapshot>]) -> fmt::Result {
    let help = "Blocks of the staging arena, by use";
    let mut family = encoder.encode_descriptor("kv_staging_blocks", help, None, MetricType::Gauge)?;
    for rank in ranks {
        let figures = &rank.staging;
        let uses = [
            ("capacity", figures.capacity_blocks),
            ("used", figures.used_blocks),
            ("quarantined", figures.quarantined_blocks),
        ];
        for (r#use, blocks) in uses {
            let labels = [("dp_rank", rank.dp_rank.to_string()), ("use", r#use.to_owned())];
            ConstGauge::new(i64::from(blocks)).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn states(encoder: &mut DescriptorEncoder<'_>, ranks: &[Arc<RankSnapshot>]) -> fmt::Result {
    let help = "1 for the state that the rank is in";
    let mut family = encoder.encode_descriptor("kv_rank_state", help, None, MetricType::Gauge)?;
    for rank in ranks {
        for state in RankState::ALL {
            let labels = [("dp_rank", rank.dp_rank.to_string()), ("state", state.as_str().to_owned())];
            ConstGauge::new(i64::from(rank.state == state)).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn quarantine_bytes(rank: &RankSnapshot) -> i64 {
    let bytes = u64::from(rank.staging.quarantined_blocks).saturating_mul(rank.staging.block_bytes);
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// The core's histogram as the encoder wants it: per bucket, not cumulative, with a last one for what is longer.
#[derive(Debug)]
struct Shown<'a>(&'a DurationHistogram);

impl EncodeMetric for Shown<'_> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let mut buckets = Vec::with_capacity(DurationHistogram::BOUNDS_US.len() + 1);
        let mut below = 0;
        for (bound, cumulative) in self.0.buckets() {
            buckets.push((bound.as_secs_f64(), cumulative.saturating_sub(below)));
            below = cumulative.max(below);
        }
        // The count is read after the buckets: a time that came in between is in the last bucket for one scrape.
        let count = self.0.count().max(below);
        buckets.push((f64::INFINITY, count - below));
        encoder.encode_histogram::<[(&str, &str); 0]>(self.0.sum().as_secs_f64(), count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Code, Ended, Stages};
    use kv::ids::DpRank;
    use std::time::Duration;

    #[derive(Debug)]
    struct Counted(Counters);

    impl Collector for Counted {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
            ended(&mut encoder, &self.0)?;
            let mut family =
                encoder.encode_descriptor("kv_transfer_duration_seconds", "Times", None, MetricType::Histogram)?;
            for (stage, histogram) in self.0.stages.of(DpRank(0)).named() {
                Shown(histogram).encode(family.encode_family(&[("stage", stage)])?)?;
            }
            Ok(())
        }
    }

    #[test]
    fn times_land_in_cumulative_buckets_and_ends_in_their_outcome() {
        let counters = Counters::default();
        for (ms, times) in [(3, 2), (60_000, 1)] {
            let wire = Some(Duration::from_millis(ms));
            (0..times)
                .for_each(|_| counters.stages.of(DpRank(0)).observe_landed(&Stages { wire, ..Stages::default() }));
        }
        counters.count_end(Ended::Landed);
        counters.count_end(Ended::Failed(Code::LeaseExpired));
        counters.count_end(Ended::Failed(Code::LeaseExpired));
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Counted(counters)));
        let mut page = String::new();
        text::encode(&mut page, &registry).unwrap();
        for line in [
            "kv_transfer_duration_seconds_bucket{le=\"0.0025\",stage=\"wire\"} 0",
            "kv_transfer_duration_seconds_bucket{le=\"0.005\",stage=\"wire\"} 2",
            "kv_transfer_duration_seconds_bucket{le=\"30.0\",stage=\"wire\"} 2",
            "kv_transfer_duration_seconds_bucket{le=\"+Inf\",stage=\"wire\"} 3",
            "kv_transfer_duration_seconds_count{stage=\"wire\"} 3",
            "kv_transfer_duration_seconds_sum{stage=\"wire\"} 60.006",
            "kv_transfer_duration_seconds_count{stage=\"queued\"} 0",
            "kv_transfer_ended_total{outcome=\"landed\"} 1",
            "kv_transfer_ended_total{outcome=\"lease_expired\"} 2",
        ] {
            assert!(page.lines().any(|have| have == line), "{line} is not in\n{page}");
        }
    }
}
