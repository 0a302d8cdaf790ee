//! Where transfers spend their time: percentiles per rank, peer and stage over a sliding window, and what stands out.
//!
//! | module | is |
//! |---|---|
//! | `window` | the histograms: sub-windows that rotate, a bounded number of peers |
//! | [`query`] | grouping them for `/v1/latency` |
//! | [`causes`] | which peer or rank makes a stage slow, in words |
//! | [`mod@why`] | why one transfer was slow, in words |
//!
//! Only transfers that landed are counted. Whoever asks works on a copy: the ranks' tasks are not held up.

pub mod causes;
pub mod query;
pub mod why;
mod window;

use std::time::Duration;

use kv::ids::{DpRank, EngineId};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::model::{ReadFacts, Stages};
pub use query::{By, Figures, Group, Query, Report};
pub use why::{Usual, Why, why};
use window::Windows;
pub use window::{MAX_WINDOW, SUB_WINDOW};

/// Stages whose sum is the time to the receipt.
pub(crate) const BEFORE_RECEIPT: usize = 5;
/// Where the whole time to the receipt is counted.
pub(crate) const TOTAL: usize = 7;
/// Where the size is counted, in KiB.
pub(crate) const SIZE: usize = 8;
/// Where of `verify` is counted what P's sidecar was waited for, and what is ours.
pub(crate) const AWAITED: usize = 9;
pub(crate) const OWN_VERIFY: usize = 10;
/// What is counted: the seven stages, the whole, the size, the two parts of `verify`.
pub(crate) const MEASURES: usize = 11;

/// Whose transfers are counted together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    /// The rank that they were for (global).
    pub dp_rank: DpRank,
    /// The engine that they came from; none for all those that are not kept apart any more.
    pub peer: Option<EngineId>,
}

/// The recorder that all ranks share.
#[derive(Debug)]
pub struct Latency {
    epoch: Instant,
    windows: Mutex<Windows>,
}

impl Latency {
    /// Nothing counted yet; offsets count from now.
    pub fn new() -> Self {
        Self { epoch: Instant::now(), windows: Mutex::default() }
    }

    /// When counting began: the origin of traces, so that several fit together.
    pub fn epoch(&self) -> Instant {
        self.epoch
    }

    /// Counts the stages up to the receipt.
    pub(crate) fn landed(&self, series: &Series, read: &ReadFacts, stages: &Stages, bytes: u64) {
        let times = stages.named().into_iter().take(BEFORE_RECEIPT).enumerate();
        let mut values: Vec<(usize, u64)> =
            times.filter_map(|(stage, (_, time))| Some((stage, micros(time?)))).collect();
        let total = values.iter().map(|(_, time)| time).sum();
        values.push((TOTAL, total));
        values.push((SIZE, bytes / 1024));
        if let Some(verify) = stages.verify {
            let awaited = awaited(read, stages).min(verify);
            values.push((AWAITED, micros(awaited)));
            values.push((OWN_VERIFY, micros(verify.saturating_sub(awaited))));
        }
        self.windows.lock().observe(series, read.address.as_ref(), &values, self.epoch.elapsed());
    }

    /// Counts the stages after the receipt.
    pub(crate) fn collected(&self, series: &Series, stages: &Stages) {
        let times = stages.named().into_iter().enumerate().skip(BEFORE_RECEIPT);
        let values: Vec<(usize, u64)> = times.filter_map(|(stage, (_, time))| Some((stage, micros(time?)))).collect();
        self.windows.lock().observe(series, None, &values, self.epoch.elapsed());
    }

    /// Percentiles as asked for.
    pub fn report(&self, query: &Query) -> Report {
        let now = self.epoch.elapsed();
        let copied = self.windows.lock().copy(query.window, now);
        query::report(query, &copied)
    }

    /// What is usual for transfers, to judge single ones by.
    pub fn usual(&self) -> Usual {
        let now = self.epoch.elapsed();
        let copied = self.windows.lock().copy(MAX_WINDOW, now);
        Usual::of(&copied)
    }
}

impl Default for Latency {
    fn default() -> Self {
        Self::new()
    }
}

/// How long P's digests were waited for once everything had landed: they are asked for as the transfer begins.
fn awaited(read: &ReadFacts, stages: &Stages) -> Duration {
    let Some(source) = read.digests.and_then(|digests| digests.source) else { return Duration::ZERO };
    let before =
        stages.named().into_iter().take_while(|(name, _)| *name != "verify").filter_map(|(_, time)| time).sum();
    source.saturating_sub(before)
}

pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// A time as people say it, in two or three digits.
pub(crate) fn words(us: u64) -> String {
    let tenths = |value: u64, unit: u64| format!("{}.{}", value / unit, value % unit * 10 / unit);
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..10_000 => format!("{} ms", tenths(us, 1_000)),
        10_000..1_000_000 => format!("{} ms", us / 1_000),
        _ => format!("{} s", tenths(us, 1_000_000)),
    }
}
