//! What became of spans, for `/metrics`.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use super::Spans;

/// Why spans did not reach the collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The queue was full: the collector is slower than spans are made, or does not answer.
    QueueFull,
    /// The collector was not reached, or did not answer in time.
    Unreachable,
    /// It answered that it does not take them.
    Refused,
    /// The process ended before they were sent.
    Shutdown,
}

impl Lost {
    const ALL: [Self; 4] = [Self::QueueFull, Self::Unreachable, Self::Refused, Self::Shutdown];

    fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::Shutdown => "shutdown",
        }
    }
}

/// Totals since start.
#[derive(Debug, Default)]
pub struct Counts {
    exported: AtomicU64,
    dropped: [AtomicU64; Lost::ALL.len()],
}

impl Counts {
    /// The collector has them.
    pub fn export(&self, spans: usize) {
        self.exported.fetch_add(spans as u64, Ordering::Relaxed);
    }

    /// It never will.
    pub fn lose(&self, why: Lost, spans: usize) {
        let places = Lost::ALL.into_iter().zip(&self.dropped);
        for (_, counter) in places.filter(|(of, _)| *of == why) {
            counter.fetch_add(spans as u64, Ordering::Relaxed);
        }
    }

    /// Spans that the collector has taken.
    pub fn exported(&self) -> u64 {
        self.exported.load(Ordering::Relaxed)
    }

    /// Spans lost for one reason.
    pub fn dropped(&self, why: Lost) -> u64 {
        let places = Lost::ALL.into_iter().zip(&self.dropped);
        places.filter(|(of, _)| *of == why).map(|(_, counter)| counter.load(Ordering::Relaxed)).sum()
    }
}

impl Collector for Spans {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counts = self.counts();
        let help = "Spans that the OTLP collector has taken";
        let metric = encoder.encode_descriptor("otlp_spans_exported", help, None, MetricType::Counter)?;
        ConstCounter::new(counts.exported()).encode(metric)?;
        let help = "Spans that the OTLP collector will never get, by why";
        let mut family = encoder.encode_descriptor("otlp_spans_dropped", help, None, MetricType::Counter)?;
        for why in Lost::ALL {
            let labels = [("reason", why.as_str())];
            ConstCounter::new(counts.dropped(why)).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
